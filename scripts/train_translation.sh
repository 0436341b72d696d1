#!/usr/bin/env bash
# Train a translation model on a folder of scripts/prepare_translation.sh, translate the test split, score it.
# usage: bash scripts/train_translation.sh DATA SAVE_DIR [OPTIONS OF FAIRSEQ-TRAIN...]
# Options given go before the ones here. The same command again goes on with an interrupted training.
set -euo pipefail
fail() { echo "train_translation: error: $*" >&2; exit 2; }
[ $# -ge 2 ] || fail "usage: train_translation.sh DATA SAVE_DIR [OPTIONS OF FAIRSEQ-TRAIN...]"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$1 save_dir=$2
shift 2
case $data$save_dir in *:*) fail "fairseq takes a name with a colon as several: give folders without" ;; esac
has() { local found=("$data"/$1); [ -f "${found[0]}" ]; }
has 'dict.*.txt' && has 'spm.*.model' ||
  fail "no dict.*.txt with spm.*.model in $data: prepare it with scripts/prepare_translation.sh"
has 'valid.*.idx' || fail "no valid split in $data: add valid.SRC and valid.TGT to the texts and prepare them again"
source "$here/use_environment.sh"
plugin=(--user-dir "$here/../fairseq_hmrnn" --task translation --required-batch-size-multiple 1)
fairseq-train "$data" "${plugin[@]}" --arch hmlstm_lstm_iwslt_de_en \
  --criterion boundary_regularized_cross_entropy --boundary-rates .4 --label-smoothing 0.1 \
  --optimizer adam --lr 0.001 --clip-norm 1 --max-tokens 4000 --max-epoch 10 --no-epoch-checkpoints \
  --save-dir "$save_dir" "$@"
has 'test.*.idx' || { echo "train_translation: $data has no test split; done"; exit 0; }
models=("$data"/spm.*.model)
# Which model is named does not matter here: pieces are joined the same way with any.
fairseq-generate "$data" "${plugin[@]}" --path "$save_dir/checkpoint_best.pt" --gen-subset test --beam 5 \
  --max-tokens 4000 --bpe sentencepiece --sentencepiece-model "${models[0]}" --scoring sacrebleu \
  > "$save_dir/translations.txt"
tail -n 1 "$save_dir/translations.txt"
