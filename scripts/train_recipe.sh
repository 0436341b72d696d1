#!/usr/bin/env bash
# The command `fairseq-hmrnn train NAME DATA --save-dir SAVE_DIR -- OVERRIDES` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn train "${@:1:2}" ${3:+--save-dir "$3"} -- "${@:4}"
