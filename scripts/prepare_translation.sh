#!/usr/bin/env bash
# Prepare parallel text for fairseq's translation task: a sentencepiece model for each side, trained on the training
# text, and the binarised splits.
# usage: bash scripts/prepare_translation.sh SRC TGT DIR [--source-type TYPE] [--target-type TYPE] [--source-size N]
#          [--target-size N] [--dest DEST]
#   SRC, TGT   endings of the files: DIR/train.SRC, DIR/train.TGT, and valid and test if they are there
#   TYPE       unigram, bpe or char (default unigram)         N   size of the vocabulary (default 8000; char: all)
#   DEST       default DIR/bin; gets spm.SRC.model and spm.TGT.model too
set -euo pipefail
fail() { echo "prepare_translation: error: $*" >&2; exit 2; }
[ $# -ge 3 ] || fail "usage: prepare_translation.sh SRC TGT DIR [--source-type TYPE] ... (see the head of this file)"
src=$1 tgt=$2 dir=${3%/}
shift 3
source_type=unigram target_type=unigram source_size=8000 target_size=8000 dest=$dir/bin
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || fail "$1 wants a value"
  case $1 in
    --source-type) source_type=$2 ;; --target-type) target_type=$2 ;;
    --source-size) source_size=$2 ;; --target-size) target_size=$2 ;;
    --dest) dest=$2 ;;
    *) fail "unknown option $1" ;;
  esac
  shift 2
done
[ "$src" != "$tgt" ] || fail "SRC and TGT must differ"
for type in "$source_type" "$target_type"; do
  case $type in unigram | bpe | char) ;; *) fail "unknown type $type: choose from unigram, bpe, char" ;; esac
done
for size in "$source_size" "$target_size"; do
  [[ $size =~ ^[1-9][0-9]*$ ]] || fail "the size of a vocabulary is a positive whole number, not $size"
done
for file in "$dir/train.$src" "$dir/train.$tgt"; do
  [ -s "$file" ] || fail "no $file"
done
for split in train valid test; do
  for file in "$dir/$split.$src" "$dir/$split.$tgt"; do
    [ ! -f "$file" ] || iconv -f UTF-8 -t UTF-8 "$file" >/dev/null 2>&1 || fail "$file is not UTF-8: convert it first"
  done
  [ ! -s "$dir/$split.$src" ] || [ ! -s "$dir/$split.$tgt" ] ||
    [ "$(wc -l < "$dir/$split.$src")" = "$(wc -l < "$dir/$split.$tgt")" ] ||
    fail "$dir/$split.$src and $dir/$split.$tgt have different numbers of lines"
done
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
mkdir -p "$dest"
work=$(mktemp -d "$dest/unfinished.XXXXXX")  # what is made goes to DEST when all of it is there
trap 'rm -rf "$work"' EXIT
mkdir "$work/pieces"

# Train the model of one side, write its dictionary, and cut every split into pieces.
prepare_side() {  # language, type, size
  python - "$dir" "$work" "$@" <<'PYTHON'
import os
import sys

import sentencepiece as spm

folder, dest, language, kind, size = sys.argv[1:]
prefix = os.path.join(dest, f"spm.{language}")
size_options = {"use_all_vocab": True} if kind == "char" else {"vocab_size": int(size), "hard_vocab_limit": False}
try:
    spm.SentencePieceTrainer.train(
        input=[os.path.join(folder, f"train.{language}")],  # a name alone would be split at commas
        model_prefix=prefix, model_type=kind,
        character_coverage=1.0, minloglevel=2, **size_options,
    )
except (OSError, RuntimeError) as error:
    print(f"prepare_translation: error: sentencepiece makes no {kind} model of train.{language}: {error}", file=sys.stderr)
    sys.exit(2)
model = spm.SentencePieceProcessor(model_file=f"{prefix}.model")
with open(os.path.join(dest, f"pieces.{language}.txt"), "w", encoding="utf-8") as dictionary:
    for index in range(3, model.get_piece_size()):  # <unk>, <s> and </s> are fairseq's own
        dictionary.write(f"{model.id_to_piece(index)} 1\n")
for split in ("train", "valid", "test"):
    path = os.path.join(folder, f"{split}.{language}")
    if os.path.exists(path):
        with open(path, encoding="utf-8", newline="\n") as text, \
                open(os.path.join(dest, "pieces", f"{split}.{language}"), "w", encoding="utf-8") as pieces:
            for line in text:
                pieces.write(" ".join(model.encode(line.rstrip("\n"), out_type=str)) + "\n")
PYTHON
}

prepare_side "$src" "$source_type" "$source_size"
prepare_side "$tgt" "$target_type" "$target_size"
splits=()
for split in valid test; do
  [ -s "$dir/$split.$src" ] && [ -s "$dir/$split.$tgt" ] && splits+=("--${split}pref" "pieces/$split")
done
# From within the folder, for fairseq-preprocess splits names at commas.
(cd "$work" && fairseq-preprocess --source-lang "$src" --target-lang "$tgt" --trainpref pieces/train "${splits[@]}" \
  --srcdict "pieces.$src.txt" --tgtdict "pieces.$tgt.txt" --destdir . --workers 1) \
  > "$work/preprocess.stdout" 2>&1 || { cat "$work/preprocess.stdout" >&2; exit 2; }
rm -rf "$dest/pieces" "$dest"/dict.*.txt "$dest"/{train,valid,test}."$src-$tgt".*  # of an earlier run
mv "$work"/* "$dest"
echo "prepared $dest: $(wc -l < "$dest/dict.$src.txt") $source_type symbols of $src," \
  "$(wc -l < "$dest/dict.$tgt.txt") $target_type symbols of $tgt"
