#!/usr/bin/env bash
# What needs a GPU, one step a call; logs go to OUT, a short table is printed last. Every step can be repeated.
#   scripts/gpu_check.sh check OUT    the suite with its GPU tests, the kernels under memcheck
#   scripts/gpu_check.sh bench OUT [ARGUMENTS OF scripts/benchmark/gpu.py]
# PYTHON=EXE an environment with torch, Triton and fairseq (default python3). Each step ends within LIMIT seconds (540).
# Without a GPU both run what they can in Triton's interpreter: bench then wants --tiny.
set -euo pipefail
usage() { echo "usage: $0 check|bench OUT [ARGUMENTS]" >&2; exit 2; }
[ $# -ge 2 ] || usage
step=$1 out=$2
shift 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} limit=${LIMIT:-540}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
begun=$SECONDS
rows=()

# Runs a command within what is left of the limit, and adds a row to the table.
part() {  # name, command ...
  local name=$1 left=$((limit - (SECONDS - begun))) code=0 start=$SECONDS
  shift
  if [ "$left" -lt 5 ]; then rows+=("$name  not run: no time left"); failed=1; return; fi
  timeout "$left" "$@" > "$out/$name.log" 2>&1 || code=$?
  rows+=("$(printf '%-10s %-8s %4d s  %s' "$name" "$([ $code = 0 ] && echo ok || echo "failed($code)")" \
    $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)")")
  [ $code = 0 ] || failed=1
}

failed=0
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
export TRITON_INTERPRET=$((1 - gpu))
"$python" - <<'PY' | tee "$out/environment.log"
import platform, torch, triton
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: Triton's interpreter"
print(f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}, {device}")
PY

case $step in
  check)
    part kernels "$python" -m pytest -q -p no:cacheprovider tests/ops/test_triton.py
    if [ "$gpu" = 1 ] && command -v compute-sanitizer >/dev/null; then
      part memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
        tests/ops/test_triton.py -k "equals_the_reference or sorted"
    else
      rows+=("memcheck   not run: wants a GPU and compute-sanitizer")
    fi
    if "$python" -c 'import fairseq' 2>/dev/null; then
      part suite "$python" -m pytest -q -p no:cacheprovider --ignore tests/ops/test_triton.py
    else
      rows+=("suite      not run: fairseq is not installed")
      failed=1
    fi
    ;;
  bench)
    part bench "$python" scripts/benchmark/gpu.py --limit $((limit - 30)) --csv "$out/bench.csv" "$@"
    cat "$out/bench.log"
    ;;
  *) usage ;;
esac
printf '%s\n' "" "${rows[@]}"
exit "$failed"
