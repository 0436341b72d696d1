#!/usr/bin/env bash
# The command `fairseq-hmrnn prepare translation` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn prepare translation "$@"
