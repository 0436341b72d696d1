#!/usr/bin/env bash
# The command `fairseq-hmrnn train DATA --save-dir SAVE_DIR -- OPTIONS` by its old name, in this project's environment.
case ${2:-} in
  -*) echo "train_translation: error: $2 in place of SAVE_DIR: give DATA SAVE_DIR OPTIONS" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn train "${@:1:1}" ${2:+--save-dir "$2"} -- "${@:3}"
