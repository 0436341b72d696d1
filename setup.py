"""The compiled CPU recurrence, which setuptools builds where it can; all else about the package is in pyproject.toml.

    python setup.py build_ext --inplace       builds it in place, where it has changed or would not be loaded
    pip install --no-build-isolation .        with the package

Where torch cannot be imported (build without `--no-build-isolation`), where no C++ compiler is found, or where
FAIRSEQ_HMRNN_NO_EXTENSION=1 says so, there is none, and the package runs its Python path; the build says so.
FAIRSEQ_HMRNN_ARCH sets the processor compiled for: "native" (the default) is this one, wheels that travel take for
example "x86-64-v3"; "" leaves the choice to the compiler. On a processor that lacks its instructions the kernel is not
loaded.
FAIRSEQ_HMRNN_SANITIZE=address, undefined or thread builds with that sanitizer of g++; scripts/sanitize.sh does so.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import runpy
import shutil
import sys
import sysconfig

from setuptools import setup
from setuptools.command.build_py import build_py

CSRC = "fairseq_hmrnn/ops/cpu/csrc"
SOURCES = [f"{CSRC}/hm_lstm.cpp"]
LOADING = "fairseq_hmrnn/ops/cpu/loading.py"
OPENMP_ON_THREADS = "scripts/sanitize/openmp.cpp"
HEADERS = sorted(glob.glob(f"{CSRC}/*.h"))


def _obstacle() -> str:
    """Why the kernel cannot be built here; empty where it can."""
    if os.environ.get("FAIRSEQ_HMRNN_NO_EXTENSION", "0") not in ("", "0"):
        return "FAIRSEQ_HMRNN_NO_EXTENSION is set"
    compiler = os.environ.get("CXX") or (sysconfig.get_config_var("CXX") or "c++").split()[0]
    if not any(shutil.which(name.split()[0]) for name in (compiler, "c++", "g++", "clang++")):
        return "there is no C++ compiler: install g++, or set CXX"
    if importlib.util.find_spec("torch") is None:
        return "torch cannot be imported: install it first, and build with --no-build-isolation"
    return "" if os.name == "posix" else "it is for Linux and macOS"


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


class BuildPackage(build_py):
    """Removes the sources that an earlier build left in build/, so that deleted files are not packed."""

    def run(self):
        earlier = os.path.join(self.build_lib, CSRC)
        if os.path.realpath(earlier) != os.path.realpath(CSRC):
            shutil.rmtree(earlier, ignore_errors=True)
        super().run()


def _build_kernel(base: type, loading: dict) -> type:
    """`base`, which goes by the time of files alone, as a command that also builds anew what would not be loaded, as
    after an update of torch. loading: the names of loading.py."""

    class BuildKernel(base):
        def run(self):
            names = [self.get_ext_filename(extension.name) for extension in self.extensions]
            folders = [self.build_lib, os.curdir] if self.inplace else [self.build_lib]
            paths = [os.path.join(folder, name) for folder in folders for name in names]
            self.force = self.force or any(loading["unfit"](path) for path in paths if os.path.exists(path))
            super().run()

    return BuildKernel


def build() -> dict:
    """Arguments of setup(): commands, and the extension where it can be built. SystemExit where nothing else was asked
    for."""
    obstacle = _obstacle()
    if obstacle and "build_ext" in sys.argv:
        raise SystemExit(f"error: the compiled CPU kernel cannot be built: {obstacle}")
    if obstacle:
        print(f"warning: the compiled CPU kernel is not built: {obstacle}", file=sys.stderr)
        return {"cmdclass": {"build_py": BuildPackage}}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    loading = runpy.run_path(LOADING)
    sources = SOURCES + [OPENMP_ON_THREADS] * ("-fsanitize=thread" in _sanitizer_flags())
    extension = CppExtension(
        "fairseq_hmrnn.ops.cpu._kernel",
        sources,
        depends=HEADERS,
        define_macros=[("HMRNN_SOURCE", loading["source_digest"]())],  # compared when it is loaded
        extra_compile_args=_compile_flags(),
        extra_link_args=_sanitizer_flags(),
    )
    command = _build_kernel(BuildExtension.with_options(use_ninja=False), loading)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": command, "build_py": BuildPackage}}


setup(zip_safe=False, **build())
