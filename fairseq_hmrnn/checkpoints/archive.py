"""Looks through a checkpoint's file before torch loads it, without running any of what is in it.

A checkpoint is a pickle in an archive, and a pickle can run any code. Newer torch refuses unknown globals by itself,
older torch does not. Here, in every version alike, nothing may be imported that is not on one allow-list, and every
byte must have its checksum, which torch does not compare. The list has what fairseq itself writes with any task, and
what other code has registered as safe (`torch.serialization.add_safe_globals`), so that honest checkpoints of other
models load as before.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from typing import Any, BinaryIO, Optional, Set, Tuple

import torch
from fairseq import file_io

from .. import compat

_PLAIN = ("bytes", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "long", "set", "str")

# Types in checkpoints of fairseq, of any model and task, beside tensors and plain values.
ALLOWED_GLOBALS = {
    *(("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *((module, name) for module in ("builtins", "__builtin__") for name in _PLAIN),
    *(("collections", name) for name in ("OrderedDict", "defaultdict", "Counter", "deque")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("typing", "Any"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("omegaconf.nodes", "AnyNode"),
    ("fairseq.distributed.utils", "_TensorPlaceholder"),
    ("fairseq.data.dictionary", "Dictionary"),
}
_TENSOR_TYPE = re.compile(r"torch\.(\w+Storage|Size|device|dtype|(b?float|int|uint)\d+|bool|storage\.\w+Storage)")
_NUMBERS = re.compile(r"[biufc]\d+")  # numpy's names of the types of plain numbers
_MEMBER = re.compile(r"data\.pkl|data/\d+|version|byteorder|\.(format_version|storage_alignment|data/serialization_id)")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins the files of torch before 1.6

# In torch's error for weights that do not fit a module: one of another shape, one that is not there, one too many.
_SIZES = re.compile(r"size mismatch for (\S+): .* torch.Size\((\[.*?\])\) from .* torch.Size\((\[.*?\])\)")
_MISSING = re.compile(r'Missing key\(s\) in state_dict: "(.+?)"')
_UNEXPECTED = re.compile(r'Unexpected key\(s\) in state_dict: "(.+?)"')

EARLIER = "use another checkpoint, such as the one before it"


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint that is not to be used: it holds more than data, is damaged, or is none. One line, with its name."""


class _Inert:
    """Stands for whatever a pickle imports: accepts anything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def update(self, items):
        pass

    def add(self, item):
        pass


class _Recorder(pickle.Unpickler):
    """Goes through a pickle as the real one would, but notes what it would import instead of importing it."""

    def __init__(self, file):
        super().__init__(file)
        self.imports: Set[Tuple[str, str]] = set()

    def find_class(self, module, name):
        self.imports.add((module, name))
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict  # so that the keys of a model are seen
        return self._dtype if (module, name) == ("numpy", "dtype") else _Inert

    def _dtype(self, kind, *_) -> _Inert:
        if not _NUMBERS.fullmatch(str(kind)):
            self.imports.add(("numpy", f"dtype({kind})"))
        return _Inert()

    def persistent_load(self, pid):
        return _Inert()


def check_checkpoint(path: str) -> Any:
    """Raise UnsafeCheckpointError if the checkpoint would import anything beyond the allow-list or is damaged.

    Returns what it holds, all objects but dicts, lists and plain values replaced by inert ones. The whole file is read
    once more for it, which takes about a third of the time that torch takes to load it.
    """
    path = file_io.PathManager.get_local_path(path)  # of a remote one, where fairseq knows such
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnsafeCheckpointError(f"{path} was not loaded: it is no file, so no checkpoint")
    with open(path, "rb") as file:
        in_archive = file.read(4) == b"PK\x03\x04"  # as torch tells the formats apart
        file.seek(0)
        recorder = _Recorder(io.BytesIO(_read_archive(path)) if in_archive else file)
        try:
            if not in_archive:
                _skip_legacy_header(path, file, recorder)
            contents = recorder.load()
            if not in_archive:
                recorder.load()  # the names of the storages after it
        except UnsafeCheckpointError:
            raise
        except Exception as error:  # whatever a pickle does to the inert objects
            _refuse_imports(path, recorder.imports)
            raise UnsafeCheckpointError(
                f"{path} was not loaded: it is no checkpoint, or its pickle is cut short or damaged "
                f"({first_line(error)}): {EARLIER}"
            ) from error
    _refuse_imports(path, recorder.imports)
    return contents


def _refuse_imports(path: str, imports: Set[Tuple[str, str]]) -> None:
    allowed = ALLOWED_GLOBALS | compat.safe_globals()
    unknown = {f"{module}.{name}" for module, name in imports if (module, name) not in allowed}
    unknown = {name for name in unknown if not _TENSOR_TYPE.fullmatch(name)}
    if unknown:
        raise UnsafeCheckpointError(
            f"{path} was not loaded: it holds {', '.join(sorted(unknown))}, which a fairseq checkpoint has no need of "
            "and which could run code. If you trust where it comes from, load it with torch yourself and save only "
            "its tensors and settings again."
        )


def _skip_legacy_header(path: str, file: BinaryIO, recorder: _Recorder) -> None:
    """Past what stands before the contents in files of torch before 1.6, which are pickles one after the other."""
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:"):
        raise UnsafeCheckpointError(f"{path} was not loaded: it is a tar archive, no checkpoint")
    file.seek(0)
    if recorder.load() != _LEGACY_MAGIC:
        raise UnsafeCheckpointError(f"{path} was not loaded: it is no checkpoint")
    recorder.load(), recorder.load()  # the protocol's version, the machine it was written on


def _read_archive(path: str) -> bytes:
    """The pickle of an archive, as torch's reader finds it. UnsafeCheckpointError for any that torch.save would not
    have written: other members, names twice or in other letters, bytes before or after, or checksums that differ."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members, first = archive.infolist(), min(archive.infolist(), key=lambda member: member.header_offset)
            folder = first.filename.split("/")[0] + "/"
            names = [member.filename[len(folder) :] for member in members]
            file.seek(-22, os.SEEK_END)
            ends_here = file.read(4) == b"PK\x05\x06" and not archive.comment
        foreign = [member.filename for member, name in zip(members, names) if member.filename != folder + name]
        foreign += [member.filename for member, name in zip(members, names) if not _MEMBER.fullmatch(name)]
        if foreign or len({*names}) < len(names) or "data.pkl" not in names:
            what = f"a member {ascii(foreign[0])}" if foreign else "another set of members"
            raise UnsafeCheckpointError(f"{path} was not loaded: it has {what}, unlike fairseq's checkpoints")
        if first.header_offset or not ends_here:
            raise UnsafeCheckpointError(f"{path} was not loaded: extra bytes before or after its archive")
        reader = torch._C.PyTorchFileReader(path)
        if {*reader.get_all_records()} != {*names}:
            raise UnsafeCheckpointError(f"{path} was not loaded: it has two tables of contents that differ")
        with open(path, "rb") as file:
            for member, name in zip(members, names):
                if _checksum(file, member, reader, name) != member.CRC:
                    raise UnsafeCheckpointError(f"{path} is damaged (checksum of {name}): {EARLIER}")
        return reader.get_record("data.pkl")
    except UnsafeCheckpointError:
        raise
    except (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, NotImplementedError, struct.error) as error:
        raise UnsafeCheckpointError(f"{path} is cut off or damaged ({first_line(error)}): {EARLIER}") from error


def _checksum(file: BinaryIO, member: zipfile.ZipInfo, reader, name: str) -> int:
    """The checksum of what torch's reader finds under a name; -1 if that is not where Python's finds it, or is not as
    long."""
    offset = compat.record_offset(reader, name)
    if offset is None:
        record = reader.get_record(name)
        return zlib.crc32(record) if len(record) == member.file_size else -1
    file.seek(member.header_offset + 26)
    start = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))  # after the member's own name and padding
    if offset != start or member.compress_size != member.file_size:
        return -1
    file.seek(start)
    checksum, left = 0, member.file_size
    while left:
        piece = file.read(min(left, 1 << 20))
        if not piece:
            return -1
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    return checksum


def first_line(error: BaseException) -> str:
    """An error's kind and the beginning of what it says, in one line."""
    said = " ".join(str(error).split("\n    full_key")[0].split())
    return f"{type(error).__name__}: {said[:250]}" if said else type(error).__name__


def misfit(error: Optional[BaseException]) -> Optional[str]:
    """What torch's error for weights that do not fit a module says of the first of them, ones of another shape before
    others; None of any other error."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    sizes = _SIZES.search(said)
    if sizes is not None:
        return "its {} is of {}, not {}".format(*sizes.groups())
    missing, unexpected = _MISSING.search(said), _UNEXPECTED.search(said)
    if missing is not None:
        return f"it has no {missing.group(1)}"
    return None if unexpected is None else f"its {unexpected.group(1)} has no place"
