"""The compiled CPU recurrence as a setuptools extension: `setup(ext_modules=extensions(), cmdclass=cmdclass())`.

Both are empty, and the package then runs its Python path, where torch cannot be imported (build without
`--no-build-isolation`), where no C++ compiler is found, or where FAIRSEQ_HMRNN_NO_EXTENSION=1 says so.
FAIRSEQ_HMRNN_ARCH sets the processor compiled for: "native" (the default) is this one, wheels that travel want
for example "x86-64-v3"; "" leaves the choice to the compiler.
FAIRSEQ_HMRNN_SANITIZE=address, undefined or thread builds with that sanitizer of g++; scripts/sanitize.sh does so.

To build in place: python setup_extension.py build_ext --inplace
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
import sysconfig

SOURCES = ["fairseq_hmrnn/ops/cpu/csrc/hm_lstm.cpp"]
OPENMP_ON_THREADS = "scripts/sanitize/openmp.cpp"
HEADERS = sorted(glob.glob("fairseq_hmrnn/ops/cpu/csrc/*.h"))


def _can_build() -> bool:
    if os.environ.get("FAIRSEQ_HMRNN_NO_EXTENSION", "0") not in ("", "0"):
        return False
    compiler = os.environ.get("CXX") or (sysconfig.get_config_var("CXX") or "c++").split()[0]
    if not any(shutil.which(name.split()[0]) for name in (compiler, "c++", "g++", "clang++")):
        return False
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return os.name == "posix"


def _sanitizer_flags() -> list:
    kind = os.environ.get("FAIRSEQ_HMRNN_SANITIZE", "")
    if kind not in ("", "address", "undefined", "thread"):
        raise SystemExit(f"FAIRSEQ_HMRNN_SANITIZE={kind}: address, undefined or thread expected")
    if kind == "undefined":  # torch's classes have no type information to compare with
        return ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
    return [f"-fsanitize={kind}"] if kind else []


def _compile_flags() -> list:
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-Wno-psabi", "-Wno-ignored-attributes"]
    arch = os.environ.get("FAIRSEQ_HMRNN_ARCH", "native")
    if arch:
        flags.append(f"-march={arch}")
    if sys.platform != "darwin":
        # Compiled with OpenMP, not linked with it: the symbols are those of the runtime that torch has loaded, so
        # that there is one pool of threads.
        flags.append("-fopenmp")
    if _sanitizer_flags():
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-DHMRNN_SANITIZE", "-D_GLIBCXX_ASSERTIONS"]
    return flags + _sanitizer_flags()


def extensions() -> list:
    """The extension modules that can be built here: one, or none."""
    if not _can_build():
        return []
    from torch.utils.cpp_extension import CppExtension

    sources = SOURCES + [OPENMP_ON_THREADS] * ("-fsanitize=thread" in _sanitizer_flags())
    return [
        CppExtension(
            "fairseq_hmrnn.ops.cpu._kernel",
            sources,
            depends=HEADERS,
            extra_compile_args=_compile_flags(),
            extra_link_args=_sanitizer_flags(),
        )
    ]


def cmdclass() -> dict:
    """The build command that belongs to `extensions()`."""
    if not _can_build():
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {"build_ext": BuildExtension.with_options(use_ninja=False)}


if __name__ == "__main__":
    from setuptools import setup

    setup(name="fairseq_hmrnn_extension", packages=[], py_modules=[], ext_modules=extensions(), cmdclass=cmdclass())
