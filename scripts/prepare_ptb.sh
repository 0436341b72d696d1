#!/usr/bin/env bash
# The command `fairseq-hmrnn prepare ptb` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh" ptb "$@"
