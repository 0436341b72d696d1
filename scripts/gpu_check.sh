#!/usr/bin/env bash
# Checks that need a GPU, one step a call; logs go to OUT, a short table is printed last. Every step can be repeated.
#   scripts/gpu_check.sh check OUT    the kernels' tests, under memcheck too, fairseq's commands on the GPU, the suite
#   scripts/gpu_check.sh bench OUT [ARGUMENTS OF scripts/benchmark/gpu.py]
#   scripts/gpu_check.sh train OUT DATA [HYDRA OVERRIDES]   the recipe RECIPE (ptb); again, it goes on from SAVE/RECIPE
#   scripts/gpu_check.sh amp OUT DATA [HYDRA OVERRIDES]     fairseq's precisions against float32, UPDATES (200) of each,
#                                                           JOBS (1) at once
#   scripts/gpu_check.sh update OUT DATA [ARGUMENTS OF scripts/benchmark/gpu_update.py]
# DATA is what `fairseq-hmrnn prepare ptb` made. Checkpoints stay in SAVE (default runs/gpu_check of the repository),
# one every SAVE_EVERY (500) updates, the most that is lost when the time is up; OUT gets the log and the best weights
# in float16, in pieces below 16 MiB (cat best.pt.* > best.pt). PYTHON=EXE an environment with torch, Triton and fairseq
# (default .venv/bin/python of the repository if it is there, else python3). Each step ends within LIMIT seconds (540).
# PYTEST_ADDOPTS="-n 10" has check run ten tests at once.
# Without a GPU check and bench run what they can in Triton's interpreter, bench with --tiny; train, amp and update run
# on CPU, which requires a small model: 'model.hidden_sizes="16,12,8"' dataset.num_workers=0; update takes -- and the
# first of these alone.
set -euo pipefail
usage() { sed -n 's/^# \{0,1\}//p' "$0" | sed -n '2,8p' >&2; exit 2; }
[ $# -ge 2 ] || usage
step=$1 out=$2
shift 2
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
saves=${SAVE:+$(absolute "$SAVE")}
case ${PYTHON:-} in */*) PYTHON=$(absolute "$PYTHON") ;; esac  # a name alone is looked up on PATH
if [ "$step" = train ] || [ "$step" = amp ] || [ "$step" = update ]; then
  [ $# -ge 1 ] || usage
  data=$(absolute "$1")
  shift
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default} limit=${LIMIT:-540}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
saves=${saves:-$PWD/runs/gpu_check}
[ "$out" != "$saves/amp" ] || { echo "error: OUT is $out, which amp empties: give another" >&2; exit 2; }
begun=$SECONDS
rows=()

# Runs a command, or a function that keeps to the limit itself, within what is left of it; adds a row to the table.
part() {  # name, command ...
  local name=$1 left=$((limit - (SECONDS - begun))) code=0 start=$SECONDS timed=()
  shift
  # Interrupted as by Ctrl-C, pytest still prints what has failed so far.
  [ "$(type -t "$1")" = function ] || timed=(timeout --signal=INT --kill-after=15 "$left")
  if [ "$left" -lt 5 ]; then rows+=("$name  not run: no time left"); failed=1; return; fi
  "${timed[@]}" "$@" > "$out/$name.log" 2>&1 || code=$?
  rows+=("$(printf '%-10s %-8s %4d s  %s' "$name" "$([ $code = 0 ] && echo ok || echo "failed($code)")" \
    $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)")")
  [ $code = 0 ] || failed=1
}

failed=0
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
export TRITON_INTERPRET=$((1 - gpu))
"$python" - <<'PY' | tee "$out/environment.log"
import importlib.util, platform, torch
triton = __import__("triton").__version__ if importlib.util.find_spec("triton") else "not installed"
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton}, {device}")
PY

# Trains until the recipe ends or the time is nearly up; tells how far it came.
train() {  # overrides ...
  local save=$saves/${RECIPE:-ptb} code=0
  mkdir -p "$save"
  timeout "$((limit - 30))" "$python" -m fairseq_hmrnn train "${RECIPE:-ptb}" "$data" --save-dir "$save" --no-score -- \
    checkpoint.save_interval_updates="${SAVE_EVERY:-500}" "$@" || code=$?
  [ "$code" = 0 ] || [ "$code" = 124 ] || return "$code"
  if [ ! -f "$save/checkpoint_best.pt" ]; then
    echo "nothing was saved in the time: set SAVE_EVERY below ${SAVE_EVERY:-500} updates"
    return 1
  fi
  rm -f "$out/best.pt" "$out/best.pt."*  # pieces of an earlier call
  cp "$save/hydra_train.log" "$out/hydra_train.log" || return
  "$python" -m fairseq_hmrnn average "$save/checkpoint_best.pt" --half --out "$out/best.pt" || return
  sha256sum "$out/best.pt"
  if [ "$(stat -c %s "$out/best.pt")" -gt $((15 << 20)) ]; then
    split -b 15M "$out/best.pt" "$out/best.pt." && rm "$out/best.pt" || return
  fi
  echo "$(sed -n "s/.*valid on 'valid'.*| bpc \([0-9.]*\) .*num_updates \([0-9]*\).*/\1 bpc at update \2/p" \
    "$out/hydra_train.log" | sort -n | head -n 1)" \
    "$([ "$code" = 124 ] && echo "(time is up: run again to go on)" || echo "(ended)")"
}

command_tests=(cli fairseq_features handwriting precision resumption stock_tasks streams translation_cli)
command_tests=("${command_tests[@]/#/tests/test_}")
command_tests=("${command_tests[@]/%/.py}")

case $step in
  check)
    part kernels "$python" -m pytest -q -p no:cacheprovider tests/ops/test_triton.py
    if [ "$gpu" = 1 ] && command -v compute-sanitizer >/dev/null; then
      part memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
        tests/ops/test_triton.py -k "equals_the_reference or sorted"
    else
      rows+=("memcheck   not run: requires a GPU and compute-sanitizer")
    fi
    if "$python" -c 'import fairseq' 2>/dev/null; then
      # The second variable lets forks use CUDA: torch then asks the driver's library whether there is a GPU.
      part commands env FAIRSEQ_HMRNN_TEST_ON_GPU=1 PYTORCH_NVML_BASED_CUDA_CHECK=1 \
        "$python" -m pytest -q -p no:cacheprovider "${command_tests[@]}"
      part suite "$python" -m pytest -q -p no:cacheprovider --ignore tests/ops/test_triton.py \
        "${command_tests[@]/#/--ignore=}"
    else
      rows+=("suite      not run: fairseq is not installed")
      failed=1
    fi
    ;;
  bench)
    part bench "$python" scripts/benchmark/gpu.py --limit $((limit - 30)) --csv "$out/bench.csv" "$@"
    cat "$out/bench.log"
    ;;
  train) part train train "$@" ;;
  amp | update)
    cpu=() && [ "$gpu" = 1 ] || cpu=(--cpu)
    if [ "$step" = update ]; then
      part update "$python" scripts/benchmark/gpu_update.py "$data" --out "$saves/update" "${cpu[@]}" "$@"
      cat "$out/update.log"
    else
      rm -rf "$saves/amp"
      part amp "$python" scripts/benchmark/precision.py "$data" --recipe "${RECIPE:-ptb_small}" \
        --updates "${UPDATES:-200}" --jobs "${JOBS:-1}" "${cpu[@]}" --out "$saves/amp" -- "$@"
      cat "$out/amp.log"
    fi
    ;;
  *) usage ;;
esac
printf '%s\n' "" "${rows[@]}"
exit "$failed"
