#!/usr/bin/env bash
# Train one of the published experiments, or its small version, and score the test split. Run again, it goes on.
# usage: bash scripts/train_recipe.sh NAME DATA SAVE_DIR [HYDRA OVERRIDES]
#   NAME       ptb, text8, enwik8, ptb_small or ptb_beyond: fairseq_hmrnn/configs/NAME.yaml
#   DATA       what scripts/prepare_NAME.sh made
#   OVERRIDES  any setting of the YAML, such as common.fp16=true optimization.max_update=1000 common.cpu=true
set -euo pipefail
[ $# -ge 3 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed -n '2,6p' >&2; exit 1; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=$1 data=$(realpath "$2") save=$(mkdir -p "$3" && cd "$3" && pwd)
shift 3
[ -f "$root/fairseq_hmrnn/configs/$name.yaml" ] || { echo "train_recipe: no recipe $name: give ptb, text8, enwik8, ptb_small or ptb_beyond" >&2; exit 1; }
[ -f "$data/dict.txt" ] || { echo "train_recipe: no $data/dict.txt: run scripts/prepare_${name%%_*}.sh first" >&2; exit 1; }
[ -n "${VIRTUAL_ENV:-}" ] || source "$root/scripts/setup_venv.sh"
cd "$root"

fairseq-hydra-train --config-dir "$root/fairseq_hmrnn/configs" --config-name "$name" \
  common.user_dir="$root/fairseq_hmrnn" task.data="$data" checkpoint.save_dir="$save" hydra.run.dir="$save" "$@"

[ -f "$data/test.idx" ] || { echo "train_recipe: $data has no test split; done"; exit 0; }
cpu=() && [[ " $* " != *" common.cpu=true "* ]] || cpu=(--cpu)
fairseq-eval-lm "$data" --user-dir fairseq_hmrnn --task hmlstm_language_modeling --stateful \
  --path "$save/checkpoint_best.pt" --gen-subset test --tokens-per-sample 1000 "${cpu[@]}" 2>&1 | tee "$save/eval.log" |
  grep -o 'Evaluated .* tokens\|Loss (base 2): [0-9.]*'
