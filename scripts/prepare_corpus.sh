# Source this from a bash script, with the corpus' name first: the command `fairseq-hmrnn prepare NAME` with SOURCE DEST
# OPTIONS, as the scripts of old names take them, in this project's environment.
case ${3:-} in -*) echo "prepare_$1: error: $3 in place of DEST: give SOURCE DEST OPTIONS" >&2; exit 2 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/use_environment.sh"
exec python -m fairseq_hmrnn prepare "${@:1:2}" ${3:+--dest "$3"} "${@:4}"
