#!/usr/bin/env bash
# Make the environment if needed and run the tests; arguments go to pytest. usage: bash scripts/test.sh [PYTEST ARGS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
cd "$hmrnn_root"
exec python -m pytest "$@"
