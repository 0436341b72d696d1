#!/usr/bin/env bash
# Penn Treebank as characters, from Mikolov's files: ptb.train.txt, ptb.valid.txt, ptb.test.txt (words), or
# ptb.char.train.txt and so on (characters with spaces between, "_" for a space). Downloads nothing.
# usage: bash scripts/prepare_ptb.sh DIR [DEST]     DEST default data/ptb
# As published: lines without the spaces around them, one symbol per character, the newline is one too.
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh"
[ $# -ge 1 ] || corpus_fail "give the folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

declare -A symbols=([train]=5017482 [valid]=393042 [test]=442423)
for split in train valid test; do
  if [ -f "$1/ptb.$split.txt" ]; then
    sed 's/^ *//; s/ *$//' "$1/ptb.$split.txt" >"$work/$split"
  elif [ -f "$1/ptb.char.$split.txt" ]; then
    sed 's/ //g; s/^_*//; s/_*$//; s/_/ /g' "$1/ptb.char.$split.txt" >"$work/$split"
  else
    corpus_fail "there is no ptb.$split.txt (nor ptb.char.$split.txt) in $1"
  fi
  corpus_expect_bytes "$work/$split" "${symbols[$split]}" "the $split split"
done
corpus_expect_types 50 "$work/train" "$work/valid" "$work/test"
corpus_binarise "$work" "${2:-data/ptb}"
