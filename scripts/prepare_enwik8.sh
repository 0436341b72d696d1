#!/usr/bin/env bash
# The command `fairseq-hmrnn prepare enwik8` by its old name, in this project's environment.
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh" enwik8 "$@"
