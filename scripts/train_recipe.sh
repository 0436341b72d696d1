#!/usr/bin/env bash
# The command `fairseq-hmrnn train NAME DATA --save-dir SAVE_DIR -- OVERRIDES` by its old name, in this project's
# environment.
case ${3:-} in
  -*) echo "train_recipe: error: $3 in place of SAVE_DIR: give NAME DATA SAVE_DIR OVERRIDES" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn train "${@:1:2}" ${3:+--save-dir "$3"} -- "${@:4}"
