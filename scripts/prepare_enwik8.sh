#!/usr/bin/env bash
# The command `fairseq-hmrnn prepare enwik8` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn prepare enwik8 "${@:1:1}" ${2:+--dest "$2"}
