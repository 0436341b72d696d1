#!/usr/bin/env bash
# The command `fairseq-hmrnn train DATA --save-dir SAVE_DIR -- OPTIONS` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn train "${@:1:1}" ${2:+--save-dir "$2"} -- "${@:3}"
