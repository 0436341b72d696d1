# Source this from a bash script: makes the virtual environment $VENV (default .venv in the repository), installs the
# pinned dependencies and this package, and puts the environment first on PATH. A second run only compares stamps: the
# kernel alone is compiled again where its sources have changed.
#   VENV=DIR     another folder        PYTHON=EXE     another interpreter (3.8 to 3.12)
#   TORCH=SPEC   another build of torch than the CPU one, for instance TORCH=torch==2.13.0 for pip's default
set -euo pipefail

hmrnn_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
hmrnn_venv=${VENV:-$hmrnn_root/.venv}
case $hmrnn_venv in /*) ;; *) hmrnn_venv=$PWD/$hmrnn_venv ;; esac  # those who source this go elsewhere

hmrnn_fail() { echo "setup: error: $*" >&2; exit 1; }

hmrnn_supported() { "$1" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

# The interpreter to make the environment with: $PYTHON, else python3.11, else python3.
hmrnn_find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3}; do
    if hmrnn_supported "$candidate"; then echo "$candidate"; return; fi
  done
  candidate=${PYTHON:-python3}
  "$candidate" --version >/dev/null 2>&1 || hmrnn_fail "$candidate does not run: install Python 3.11, or set PYTHON"
  candidate=$("$candidate" --version 2>&1)
  hmrnn_fail "$candidate is not supported: install Python 3.11 (3.8 to 3.12 work), or set PYTHON to one"
}

# torch first, because building the package needs it, and as the CPU build wherever there is one: the default build
# for Linux brings several GB of CUDA libraries.
hmrnn_install_torch() {  # constraints file
  local pin
  pin=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$1")
  if [ -n "${TORCH:-}" ]; then
    python -m pip install -q -c "$1" "$TORCH"
  elif [ "$(uname -s)" != Linux ]; then
    python -m pip install -q -c "$1" "$pin"
  elif python -m pip install -q "$pin+cpu" 2>/dev/null; then
    :
  else
    echo "setup: pip finds no CPU build of $pin and takes the CUDA build, several GB; to avoid that, stop and set" \
      "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (pytorch.org, Get Started, CPU)"
    python -m pip install -q -c "$1" "$pin"
  fi
}

# Triton for the GPU kernels' tests, which run in its interpreter: a CUDA build of torch brings its own, the CPU build
# none. 190 MB, on Linux alone. torch 1.12, of older Pythons, does without: there those tests are skipped.
hmrnn_install_triton() {
  case "$(uname -s) $(uname -m)" in
    "Linux x86_64") python -c 'import triton' 2>/dev/null || python -m pip install -q triton==3.6.0 ;;
    *) echo "setup: no Triton for $(uname -s) $(uname -m): the tests of the GPU kernels are skipped" ;;
  esac
}

hmrnn_install() {
  echo "setup: installing into $hmrnn_venv (some minutes)"
  if python -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
    local pins=$hmrnn_root/constraints-py310.txt
    python -m pip install -q -c "$pins" pip setuptools wheel numpy cython
    # Before torch: its build looks whether torch is importable, and then asks for a C++ file that its archive lacks; of
    # what is built with torch nothing is used here. Without its dependencies: it asks for torchaudio, which text does
    # without.
    python -m pip install -q --no-build-isolation --no-deps fairseq==0.12.2
    hmrnn_install_torch "$pins"
    python -m pip install -q -c "$pins" omegaconf hydra-core cffi regex sacrebleu tqdm bitarray scikit-learn \
      sentencepiece pytest pytest-xdist hypothesis ruff matplotlib tensorboardX ninja shtab
    python -m pip install -q --no-build-isolation --no-deps -e "$hmrnn_root"
  else
    local pins=$hmrnn_root/constraints.txt
    python -m pip install -q -U pip setuptools wheel
    hmrnn_install_torch "$pins"
    python -m pip install -q -c "$pins" ve-fairseq sentencepiece pytest pytest-xdist hypothesis ruff mypy matplotlib \
      tensorboardX ninja shtab
    hmrnn_install_triton
    python -m pip install -q -c "$pins" --no-build-isolation -e "$hmrnn_root"
  fi
}

hmrnn_kernel_allowed() { case ${FAIRSEQ_HMRNN_NO_EXTENSION:-0} in 0) ;; *) return 1 ;; esac; }

# Compiles this Python's kernel again if there is one. Where that fails, the one of before stays, and is loaded only if
# it is of the same sources after all (ops/cpu/loading.py compares).
hmrnn_compile() {  # stamp
  local file log=$hmrnn_venv/kernel.log
  hmrnn_kernel_allowed || return 0
  file=_kernel$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  [ -f "$hmrnn_root/fairseq_hmrnn/ops/cpu/$file" ] || return 0  # it was installed without
  echo "setup: compiling the kernel, whose sources have changed (minutes)"
  if (cd "$hmrnn_root" && python setup.py -q build_ext --inplace --force) > "$log" 2>&1; then
    echo "$1" > "$hmrnn_venv/.fairseq_hmrnn_kernel"
  else
    echo "setup: warning: compiling $file failed ($(tail -n 1 "$log"); full log: $log): fix that and run this" \
      "again; the one that is there is not loaded where it is of other sources, and then the Python path runs" >&2
  fi
}

hmrnn_setup() {
  local base stamp kernel
  if [ ! -x "$hmrnn_venv/bin/python" ]; then
    base=$(hmrnn_find_python) || exit 1
    echo "setup: making $hmrnn_venv with $("$base" --version)"
    "$base" -m venv "$hmrnn_venv" || hmrnn_fail "$base cannot make a virtual environment: install its venv module"
  fi
  hmrnn_supported "$hmrnn_venv/bin/python" || hmrnn_fail "$hmrnn_venv is broken or not Python 3.8 to 3.12: remove it"
  export VIRTUAL_ENV=$hmrnn_venv PATH=$hmrnn_venv/bin:$PATH
  unset PYTHONHOME
  stamp=$(cd "$hmrnn_root" &&
    echo "${TORCH:-cpu}" | cat - constraints*.txt setup.py pyproject.toml scripts/setup_venv.sh | cksum)
  # With loading.py, whose digest of the sources a kernel carries.
  kernel=$(cd "$hmrnn_root" && cat fairseq_hmrnn/ops/cpu/csrc/* fairseq_hmrnn/ops/cpu/loading.py | cksum)
  if [ "$(cat "$hmrnn_venv/.fairseq_hmrnn" 2>/dev/null)" != "$stamp" ]; then
    hmrnn_install
    echo "$stamp" > "$hmrnn_venv/.fairseq_hmrnn"
    if hmrnn_kernel_allowed; then echo "$kernel" > "$hmrnn_venv/.fairseq_hmrnn_kernel"; fi
  elif [ "$(cat "$hmrnn_venv/.fairseq_hmrnn_kernel" 2>/dev/null)" != "$kernel" ]; then
    hmrnn_compile "$kernel"
  fi
}

hmrnn_setup
