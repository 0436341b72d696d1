#!/usr/bin/env bash
# Make the environment if needed and run the tests; arguments go to pytest. usage: bash scripts/test.sh [PYTEST ARGS]
#   WORKERS=N    test processes at once (default: one for each core, at most 8); 0 runs all in this one, for a debugger
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
cd "$hmrnn_root"
# One thread a process: tests are small, and threads of two processes on the same cores would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -n "${WORKERS:-auto}" --maxprocesses 8 --dist worksteal "$@"
