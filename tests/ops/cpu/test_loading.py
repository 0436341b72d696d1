"""A kernel that cannot run here is not loaded, and the reason says what is wrong with it."""

import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
import torch
from running import ROOT

from fairseq_hmrnn.ops.cpu import kernel, loading

HERE = ".".join(torch.__version__.split(".")[:2])


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a file with this content as the kernel, on a processor with these features; "" or why it does not."""

    def load(content=None, suffix=EXTENSION_SUFFIXES[0], features="fpu avx avx2"):
        monkeypatch.delitem(sys.modules, loading.QUALIFIED, raising=False)
        if content is not None:
            (tmp_path / f"_kernel{suffix}").write_bytes(content)
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {features}\nbugs\t: none\n", encoding="utf-8")
        module, reason = loading.load(str(tmp_path), str(tmp_path / "cpuinfo"))
        assert module is None
        return reason

    return load


@pytest.fixture
def csrc(tmp_path):
    """The folder of a kernel's source, beside the kernel."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "cell.h").write_text("// as it is", encoding="utf-8")
    return tmp_path / "csrc"


def built_for(torch_version=HERE, features="avx2", source="0123456789abcdef"):
    """The content of a file; source None: one of before it was told."""
    of_source = "" if source is None else f" source {source};"
    text = f"fairseq_hmrnn kernel;{of_source} torch {torch_version}; processor {features}"
    return b"\x7fELF..\0%s\0.." % text.encode()


def test_a_file_that_is_not_there(load):
    assert load() == "was not built"


def test_a_file_of_another_python(load):
    reason = load(b"", suffix=".cpython-27-x86_64-linux-gnu.so")
    assert reason.startswith(f"was built for another Python than this {sys.version.split()[0]} (_kernel.cpython-27")


def test_a_file_of_another_torch(load):
    assert load(built_for("1.4")) == f"was built for torch 1.4, this is torch {torch.__version__}"


def test_a_file_of_another_source(load, csrc):
    """Of before or after a change of the interface, which would load and read other tensors."""
    here = loading.source_digest(str(csrc.parent))
    assert load(built_for(source=here)).startswith("does not load (")
    for source in ("0123456789abcdef", None):
        assert load(built_for(source=source)) == "was built from another version of its source"
    for content in (b"no text at all", b""):
        assert load(content) == "was built from another version of its source, or not to its end"
    (csrc / "cell.h").write_text("// as it was", encoding="utf-8")
    assert load(built_for(source=here)) == "was built from another version of its source"


def test_the_digest_of_a_source(csrc):
    def digest():
        return loading.source_digest(str(csrc.parent))

    first = digest()
    assert re.fullmatch("[0-9a-f]{16}", first) and first == digest()
    (csrc / "cell.h~").touch()
    assert digest() == first
    (csrc / "cell.h").rename(csrc / "gates.h")
    assert digest() != first
    (csrc / "gates.h").rename(csrc / "cell.h")
    (csrc / "a.cpp").touch()
    assert digest() != first
    assert loading.source_digest(str(csrc)) == ""  # not there: an installation without it is whole


def test_an_older_processor(load):
    reason = load(built_for(features="avx2 avx512f avx512_bf16"))
    assert reason == "was built for another processor: this one has no avx512_bf16, avx512f"


def test_what_fits_is_loaded_and_python_says_what_is_wrong(load):
    """Features are compared whole; where Linux does not list any, and there is no source, nothing is known against the
    file."""
    for features in ("avx2 fma", ""):
        assert load(built_for(), features=features).startswith("does not load (")
    assert "this one has no avx2" in load(built_for(), features="avx avx512f avx2x")
    assert load(b"no text at all").startswith("does not load (")
    assert load(b"").startswith("does not load (")


@pytest.mark.parametrize(
    "symbol, cause",
    [
        ("_ZN3c1019UndefinedTensorImpl10_singletonE", "was built for another torch than this"),
        ("_ZNK2at6Tensor8data_ptrIfEEPT_v", "was built for another torch than this"),
        ("GOMP_parallel", "build with CXX=g++"),
        ("__kmpc_fork_call", "build with CXX=g++"),
        ("mkl_sgemm", "does not load"),
    ],
)
def test_undefined_symbols_are_explained(symbol, cause):
    reason = loading.explain(f"/x/_kernel.so: undefined symbol: {symbol}")
    assert cause in reason and symbol in reason


def test_the_remedy_is_a_command_for_this_installation(tmp_path):
    assert loading.remedy(str(tmp_path)).endswith("-m pip install --no-build-isolation --no-deps -U .")
    (tmp_path / "setup.py").touch(), (tmp_path / "pyproject.toml").touch()
    assert loading.remedy(str(tmp_path)).startswith(f'cd "{tmp_path}" && "{sys.executable}" setup.py')


def test_a_build_that_cannot_be_says_so():
    environment = {**os.environ, "FAIRSEQ_HMRNN_NO_EXTENSION": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode == 1
    assert result.stderr == "error: the compiled CPU kernel cannot be built: FAIRSEQ_HMRNN_NO_EXTENSION is set\n"


@pytest.mark.skipif(kernel.compiled is None, reason="the compiled kernel was not built")
def test_the_kernel_that_was_built_here_says_what_for():
    found = loading.built_for(kernel.compiled.__file__)
    features = loading.processor_features(loading.CPUINFO)
    assert found.torch == HERE and found.source == loading.source_digest()
    assert loading.misfit(found, loading.source_digest(), torch.__version__, features) == ""
    assert (features is None) or found.features <= features
