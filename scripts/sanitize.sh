#!/usr/bin/env bash
# Build the compiled kernel with a sanitizer of g++ and run a short fuzz of it against the reference.
# usage: bash scripts/sanitize.sh address|undefined|thread [FUZZ ARGS]        in the environment of scripts/test.sh
#   BUILD=DIR    where the sanitized extension goes (default build/sanitize); the package's own is left alone
#
# address: accesses outside of an array, a tensor or a buffer of the kernel's pool, or after its end; the pool hands out
#          blocks of the exact size and keeps none. Leaks are not looked for: Python keeps much to the end.
# undefined: overflow of integers, shifts, null pointers, misaligned accesses.
# thread:  data races within csrc and in the parts of ATen's headers that are compiled with it. Its OpenMP regions run
#          on std::thread (scripts/sanitize/openmp.cpp), as libgomp is not instrumented; torch's own code is not either.
# With each of them, buffers and torch's empty tensors begin as NaN: what is read before it is written shows in the
# results.
set -euo pipefail
kind=${1:-}
case $kind in
  address) library=libasan.so ;;
  undefined) library=libubsan.so ;;
  thread) library=libtsan.so ;;
  *) echo "usage: bash scripts/sanitize.sh address|undefined|thread [FUZZ ARGS]" >&2; exit 2 ;;
esac
shift
case ${BUILD:-} in "" | /*) ;; *) BUILD=$PWD/$BUILD ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${BUILD:-build/sanitize}/$kind
export CXX=${CXX:-g++}
FAIRSEQ_HMRNN_SANITIZE=$kind python setup.py -q build_ext --build-lib "$build" --build-temp "$build/temp"

export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:${TSAN_OPTIONS:-}
export LD_PRELOAD
# Python itself is not instrumented, so the sanitizer's library must be there before it. Fixed addresses: g++ 12's
# thread sanitizer does not know where newer kernels put programs.
LD_PRELOAD=$("$CXX" -print-file-name=$library) exec setarch "$(uname -m)" -R \
  python tests/ops/cpu/kernel_fuzz.py --extension "$build"/fairseq_hmrnn/ops/cpu/_kernel*.so "$@"
