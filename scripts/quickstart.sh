#!/usr/bin/env bash
# From a fresh clone to a trained HM-LSTM in about ten minutes on two cores, without any download but the packages:
# trains on the documentation topics inside CPython, scores, samples, and draws the boundaries that the model found.
# usage: bash scripts/quickstart.sh [FOLDER]     results in FOLDER (default runs/quickstart); run again, it goes on
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
folder=$(mkdir -p "${1:-$hmrnn_root/runs/quickstart}" && cd "${1:-$hmrnn_root/runs/quickstart}" && pwd)
case $folder in
  *:*) echo "quickstart: error: fairseq takes a name with a colon as several: give a folder without" >&2; exit 2 ;;
esac
cd "$hmrnn_root"
data=$folder/data
checkpoint=$folder/checkpoints/checkpoint_best.pt
plugin=(--user-dir fairseq_hmrnn --task hmlstm_language_modeling)
updates=${UPDATES:-1000}

trap 'echo "quickstart: this step failed; the logs in $folder say why" >&2' ERR
say() { printf '\n== %s\n' "$*"; }

say "1. Data: one symbol per character, in $data"
[ -f "$data/dict.txt" ] || python scripts/prepare_text.py --embedded --dest "$data"

say "2. Training: $updates updates, log in $folder/train.log"
fairseq-train "$data" "${plugin[@]}" --arch hmlstm_lm \
  --criterion boundary_regularized_cross_entropy --boundary-rates .2,.05 \
  --optimizer adam --lr 0.002 --clip-norm 1 --batch-size 32 --tokens-per-sample 100 \
  --max-update "$updates" --best-checkpoint-metric bpc --no-epoch-checkpoints --save-dir "$folder/checkpoints" \
  --cpu --num-workers 0 --seed 1 --log-format simple --log-interval 25 2>&1 | tee "$folder/train.log" |
  sed -un -e 's/.*train_inner | epoch [0-9]*: *[0-9]* \/ [0-9]* .*\(bpc=[0-9.]*\), \(z1=[0-9.]*\), \(z2=[0-9.]*\),.*num_updates=\([0-9]*\),.*/  update \4: \1 \2 \3/p' \
    -e "s/.*'valid' subset.*| \(bpc [0-9.]*\) |.*/  validation: \1/p"

say "3. Bits per character of the test text (base-2 loss; the whole text is one sequence)"
fairseq-eval-lm "$data" "${plugin[@]}" --path "$checkpoint" --gen-subset test --tokens-per-sample 1000000 --cpu \
  2>&1 | tee "$folder/eval.log" | grep -o 'Evaluated .* tokens\|Loss (base 2): [0-9.]*'

say "4. A sample, in $folder/sample.txt"
printf 'The following' | fairseq-interactive "$data" "${plugin[@]}" --path "$checkpoint" \
  --sampling --beam 1 --temperature 0.6 --max-len-b 500 --seed 4 --cpu 2>"$folder/sample.log" |
  sed -n '/^D-0\t/,/^P-0\t/{/^P-0\t/d;s/^D-0\t[^\t]*\t//;p}' | tee "$folder/sample.txt"

say "5. The boundaries it found, in $folder/boundaries.png"
python - "$folder/text.txt" <<'TEXT'
import pydoc_data.topics as pydoc, sys
topic = pydoc.topics["sequence-methods" if "sequence-methods" in pydoc.topics else "truth"]
open(sys.argv[1], "w", encoding="utf-8").write(topic[:480])
TEXT
python scripts/plot_boundaries.py "$checkpoint" "$data" --text "$folder/text.txt" --out "$folder/boundaries.png" \
  --title "Boundaries of layers 1 and 2 after $updates updates" 2>"$folder/plot.log"

say "Done. Everything is in $folder; the next text can be your own. First, in $hmrnn_root:"
printf '  source %q\n' "${hmrnn_venv#"$hmrnn_root"/}/bin/activate"
echo "then as README.md says."
