#!/usr/bin/env bash
# enwik8: the first 90M bytes for training, 5M for validation, 5M for testing; a symbol is a byte. Downloads nothing.
# usage: bash scripts/prepare_enwik8.sh FILE [DEST]     FILE the unpacked enwik8; DEST default data/enwik8
# A byte b becomes the character U+00b, so that the codec of characters gives every byte a symbol of its own.
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh"
[ $# -ge 1 ] && [ -f "$1" ] || corpus_fail "give the unpacked file enwik8, of 100,000,000 bytes"
corpus_hundred_million "$1" 205 "${2:-data/enwik8}" iconv -f LATIN1 -t UTF-8
