#!/usr/bin/env bash
# Train one of the published experiments, or its small version, and score the test split. Run again, it goes on.
# usage: bash scripts/train_recipe.sh NAME DATA SAVE_DIR [HYDRA OVERRIDES]
#   NAME       ptb, text8, enwik8, ptb_small or ptb_beyond: fairseq_hmrnn/configs/NAME.yaml
#   DATA       what scripts/prepare_NAME.sh made
#   OVERRIDES  any setting of the YAML, such as common.fp16=true optimization.max_update=1000 common.cpu=true
set -euo pipefail
fail() { echo "train_recipe: error: $*" >&2; exit 2; }
[ $# -ge 3 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed -n '2,6p' >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $1 in
  ptb | text8 | enwik8 | ptb_small | ptb_beyond) ;;
  *) fail "no recipe $1: give ptb, text8, enwik8, ptb_small or ptb_beyond" ;;
esac
[ -f "$2/dict.txt" ] || fail "no $2/dict.txt: run scripts/prepare_${1%%_*}.sh first"
name=$1 data=$(realpath -- "$2") save=$(mkdir -p -- "$3" && realpath -- "$3")
shift 3
source "$root/scripts/use_environment.sh"
cd "$root"

recipe=$(mktemp -d)
trap 'rm -rf -- "$recipe"' EXIT
# The folders' names go through a file: overrides are read by hydra's grammar, in which quotes and brackets mean something.
python -m fairseq_hmrnn.cli.recipe "$name" "$data" "$save" "$recipe"
HYDRA_FULL_ERROR=1 fairseq-hydra-train --config-dir "$recipe" --config-name "$name" "$@"

[ -f "$data/test.idx" ] || { echo "train_recipe: $data has no test split; done"; exit 0; }
cpu=() && [[ " $* " != *" common.cpu=true "* ]] || cpu=(--cpu)
fairseq-eval-lm "$data" --user-dir fairseq_hmrnn --task hmlstm_language_modeling --stateful \
  --path "$save/checkpoint_best.pt" --gen-subset test --tokens-per-sample 1000 "${cpu[@]}" 2>&1 | tee "$save/eval.log" |
  grep -o 'Evaluated .* tokens\|Loss (base 2): [0-9.]*'
