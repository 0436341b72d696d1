#!/usr/bin/env bash
# enwik8: the first 90M bytes for training, 5M for validation, 5M for testing; a symbol is a byte. Downloads nothing.
# usage: bash scripts/prepare_enwik8.sh FILE [DEST]     FILE the unpacked enwik8; DEST default data/enwik8
# A byte b becomes the character U+00b, so that the codec of characters gives every byte a symbol of its own.
source "$(dirname "${BASH_SOURCE[0]}")/prepare_corpus.sh"
[ $# -ge 1 ] && [ -f "$1" ] || corpus_fail "give the unpacked file enwik8, of 100,000,000 bytes"
corpus_expect_bytes "$1" 100000000 "$1"
corpus_expect_types 205 "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cut() { dd if="$1" bs=1000000 skip="$2" count="$3" status=none | iconv -f LATIN1 -t UTF-8; }
cut "$1" 0 90 >"$work/train"
cut "$1" 90 5 >"$work/valid"
cut "$1" 95 5 >"$work/test"
corpus_binarise "$work" "${2:-data/enwik8}"
