# Source this from prepare_ptb.sh, prepare_text8.sh, prepare_enwik8.sh: checks and binarises a published corpus.
set -euo pipefail
corpus_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

corpus_fail() { echo "$(basename "$0"): error: $*" >&2; exit 2; }

corpus_expect_bytes() {  # FILE COUNT WHAT
  local found
  found=$(wc -c <"$1")
  [ "$found" -eq "$2" ] || corpus_fail "$3 has $found symbols, the published one $2: give the unchanged file"
}

corpus_expect_types() {  # COUNT FILE...: distinct bytes in all files together
  local found expected=$1
  shift
  found=$(cat "$@" | python3 -c 'import sys
seen = set()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""): seen.update(block)
print(len(seen))')
  [ "$found" -eq "$expected" ] || corpus_fail "there are $found different symbols, in the published corpus $expected"
}

corpus_hundred_million() {  # FILE TYPES DEST FILTER...: 90M, 5M and 5M bytes, through a filter
  local file=$1 types=$2 dest=$3
  shift 3
  corpus_expect_bytes "$file" 100000000 "$file"
  corpus_expect_types "$types" "$file"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT  # not a local variable: the trap is run outside this function
  dd if="$file" bs=1000000 count=90 status=none | "$@" >"$work/train"
  dd if="$file" bs=1000000 skip=90 count=5 status=none | "$@" >"$work/valid"
  dd if="$file" bs=1000000 skip=95 count=5 status=none | "$@" >"$work/test"
  corpus_binarise "$work" "$dest"
}

corpus_binarise() {  # FOLDER WITH train, valid, test    DEST
  source "$corpus_root/scripts/use_environment.sh"
  python "$corpus_root/scripts/prepare_text.py" "$1/train" "$1/valid" "$1/test" --dest "$2" |
    grep -v '^fairseq-train\|To train'
  local name
  name=$(basename "$0" .sh)
  printf 'written to %s. To train on it: bash scripts/train_recipe.sh %s %q SAVE_DIR\n' "$2" "${name#prepare_}" "$2"
}
