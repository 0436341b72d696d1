#!/usr/bin/env bash
# From a fresh clone to a trained HM-LSTM in about five minutes on two cores, without any download but the packages:
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
updates=${UPDATES:-1000}

trap 'echo "quickstart: this step failed; the logs in $folder say why" >&2' ERR
say() { printf '\n== %s\n' "$*"; }

say "1. Data: one symbol per character, in $data"
[ -f "$data/dict.txt" ] || fairseq-hmrnn prepare text --embedded --dest "$data"

say "2. Training: $updates updates, log in $folder/train.log; then bits per character of the test text (base-2 loss)"
# Of a line's values some: others stand between them, z1_within for instance, and small ones have an exponent.
values=' \(bpc=[^,]*\),.* \(z1=[^,]*\),.* \(z2=[^,]*\),.* num_updates=\([0-9]*\)'
fairseq-hmrnn train "$data" --save-dir "$folder/checkpoints" -- --max-update "$updates" --num-workers 0 \
  --log-interval 25 2>&1 | tee "$folder/train.log" |
  sed -un -e "s/.*train_inner | epoch .*$values.*/  update \4: \1 \2 \3/p" \
    -e "s/.*'valid' subset.*| \(bpc [^ ]*\) |.*/  validation: \1/p" -e '/^Evaluated\|^Loss (base 2)/p'

say "3. A sample, in $folder/sample.txt"
fairseq-hmrnn sample "$checkpoint" --prompt 'The following' --temperature 0.6 --length 500 --seed 4 \
  2>"$folder/sample.log" | tee "$folder/sample.txt"
echo

say "4. The boundaries it found, in $folder/boundaries.png"
python - "$folder/text.txt" <<'TEXT'
import pydoc_data.topics as pydoc, sys
topic = pydoc.topics["sequence-methods" if "sequence-methods" in pydoc.topics else "truth"]
open(sys.argv[1], "w", encoding="utf-8").write(topic[:480])
TEXT
fairseq-hmrnn segment "$checkpoint" --text "$folder/text.txt" >"$folder/segments.txt" 2>"$folder/segment.log"
head -n 4 "$folder/segments.txt"
fairseq-hmrnn plot "$checkpoint" --text "$folder/text.txt" --out "$folder/boundaries.png" \
  --title "Boundaries of layers 1 and 2 after $updates updates" 2>"$folder/plot.log"

say "Done. Everything is in $folder; the next text can be your own. First, in $hmrnn_root:"
printf '  source %q\n' "${hmrnn_venv#"$hmrnn_root"/}/bin/activate"
echo "then as README.md says."
