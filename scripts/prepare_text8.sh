#!/usr/bin/env bash
# Text8: the first 90M characters for training, 5M for validation, 5M for testing. Downloads nothing.
# usage: bash scripts/prepare_text8.sh FILE [DEST]     FILE the unpacked text8; DEST default data/text8
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh"
[ $# -ge 1 ] && [ -f "$1" ] || corpus_fail "give the unpacked file text8, of 100,000,000 bytes"
corpus_expect_bytes "$1" 100000000 "$1"
corpus_expect_types 27 "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cut() { dd if="$1" bs=1000000 skip="$2" count="$3" status=none; }
cut "$1" 0 90 >"$work/train"
cut "$1" 90 5 >"$work/valid"
cut "$1" 95 5 >"$work/test"
corpus_binarise "$work" "${2:-data/text8}"
