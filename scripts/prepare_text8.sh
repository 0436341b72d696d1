#!/usr/bin/env bash
# Text8: the first 90M characters for training, 5M for validation, 5M for testing. Downloads nothing.
# usage: bash scripts/prepare_text8.sh FILE [DEST]     FILE the unpacked text8; DEST default data/text8
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh"
[ $# -ge 1 ] && [ -f "$1" ] || corpus_fail "give the unpacked file text8, of 100,000,000 bytes"
corpus_hundred_million "$1" 27 "${2:-data/text8}" cat
