"""Finds the compiled kernel and loads it, or says why not: not built, built from or for something else, not loadable.

What a file was built from and for stands in it as text (csrc/built_for.h) and is compared before any of its code runs.
setup.py runs this file for `source_digest` and `unfit`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import os
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from typing import Any, FrozenSet, NamedTuple, Optional, Tuple

import torch

NAME = "_kernel"
QUALIFIED = f"{__package__}.{NAME}"
FOLDER = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(FOLDER)))  # of the repository, if it is in one
CPUINFO = "/proc/cpuinfo"
OTHER_SOURCE = "was built from another version of its source"


class BuiltFor(NamedTuple):
    """source: its `source_digest`, "" of a kernel that does not say. torch: "2.13". features: of the processor, as
    /proc/cpuinfo names them."""

    source: str
    torch: str
    features: FrozenSet[str]


def built_for(path: str) -> Optional[BuiltFor]:
    """The target that a kernel's file says it was built for; None if it says nothing."""
    if os.path.getsize(path) == 0:  # of a build that was cut off; nothing to map
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b"fairseq_hmrnn kernel; ")
        text = content[start : content.find(b"\0", start)].decode() if start >= 0 else ""
    form = r"fairseq_hmrnn kernel;(?: source (\w+);)? torch (\d+\.\d+); processor((?: \w+)*)"
    found = re.fullmatch(form, text)
    return found and BuiltFor(found.group(1) or "", found.group(2), frozenset(found.group(3).split()))


def source_digest(folder: str = FOLDER) -> str:
    """A digest of the kernel's source, csrc/ in a package's folder: 16 hexadecimal digits; "" where it is not there."""
    csrc = os.path.join(folder, "csrc")
    found = os.listdir(csrc) if os.path.isdir(csrc) else []
    names = sorted(name for name in found if name.endswith((".h", ".cpp")) and not name.startswith("."))  # an editor's
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(csrc, name), "rb") as file:
            content = file.read()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16] if names else ""


def processor_features(cpuinfo: str) -> Optional[FrozenSet[str]]:
    """The instructions that this processor has, as Linux names them in /proc/cpuinfo; None elsewhere."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^(?:flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return found and frozenset(found.group(1).split())


def misfit(found: Optional[BuiltFor], source: str, torch_version: str, features: Optional[FrozenSet[str]]) -> str:
    """Why a kernel that was built for `found` must not be loaded here; "" if nothing is known against it. source: as
    `source_digest` returns it. A kernel of another one may load, and read the arguments of its own interface."""
    if found is None:
        return f"{OTHER_SOURCE}, or not to its end" if source else ""
    if source and found.source != source:
        return OTHER_SOURCE
    if found.torch != ".".join(torch_version.split(".")[:2]):
        return f"was built for torch {found.torch}, this is torch {torch_version}"
    lacking = sorted(found.features - features) if features else []
    if lacking:
        return f"was built for another processor: this one has no {', '.join(lacking)}"
    return ""


def unfit(path: str, folder: str = FOLDER, cpuinfo: str = CPUINFO) -> str:
    """Why the kernel's file must not be loaded with the source in a package's folder; "" if nothing is known against
    it."""
    return misfit(built_for(path), source_digest(folder), torch.__version__, processor_features(cpuinfo))


def explain(error: str) -> str:
    """Why Python could not load a kernel, of an ImportError's text."""
    symbol = re.search(r"undefined symbol: (\w+)", error)
    if symbol and re.match(r"_Z.*(2at|3c10|5torch)", symbol.group(1)):
        return f"was built for another torch than this {torch.__version__} (undefined symbol {symbol.group(1)})"
    if symbol and re.match(r"(GOMP|omp|__kmpc)_", symbol.group(1)):
        return f"was built with another OpenMP than torch's (undefined symbol {symbol.group(1)}; build with CXX=g++)"
    return f"does not load ({error})"


def load(folder: str = FOLDER, cpuinfo: str = CPUINFO) -> Tuple[Any, str]:
    """The kernel in a package's folder and "", or None and why there is none."""
    if QUALIFIED in sys.modules:
        return sys.modules[QUALIFIED], ""
    names = sorted(name for name in os.listdir(folder) if name.startswith(f"{NAME}."))
    if not names:
        return None, "was not built"
    name = next((NAME + suffix for suffix in EXTENSION_SUFFIXES if NAME + suffix in names), None)
    if name is None:
        return None, f"was built for another Python than this {sys.version.split()[0]} ({', '.join(names)})"
    path = os.path.join(folder, name)
    reason = unfit(path, folder, cpuinfo)
    if reason:
        return None, reason
    try:
        loader = ExtensionFileLoader(QUALIFIED, path)
        spec = ModuleSpec(QUALIFIED, loader, origin=path)
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return None, explain(str(error))
    sys.modules[QUALIFIED] = module
    return module, ""


def remedy(checkout: str = CHECKOUT) -> str:
    """The command that builds the kernel for this Python, torch and processor."""
    if all(os.path.exists(os.path.join(checkout, name)) for name in ("setup.py", "pyproject.toml")):
        return f'cd "{checkout}" && "{sys.executable}" setup.py build_ext --inplace --force'
    return f'in the folder of its source, "{sys.executable}" -m pip install --no-build-isolation --no-deps -U .'
