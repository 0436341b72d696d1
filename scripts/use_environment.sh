# Source this from a bash script: takes the Python environment that is active if it has what is needed, else makes one.
if ! python -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("fairseq", "sentencepiece", "fairseq_hmrnn"))))' 2>/dev/null; then
  source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
fi
