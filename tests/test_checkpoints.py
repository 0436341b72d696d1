"""Checkpoints: what is let through and what is not."""

import argparse
import collections
import io
import os
import pickle

import pytest
import torch
from fairseq import checkpoint_utils

from fairseq_hmrnn.archive import pickled_globals
from fairseq_hmrnn.checkpoints import UnsafeCheckpointError, check_checkpoint


def test_wants_are_found_in_every_pickle_protocol_without_running_anything(tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        wanted = pickled_globals(pickle.dumps({"a": [Call(), collections.OrderedDict(b=1)]}, protocol))
        assert (os.mkdir.__module__, "mkdir") in wanted and ("collections", "OrderedDict") in wanted
    assert not (tmp_path / "made").exists()


def test_plain_checkpoints_pass(tmp_path):
    state = {
        "model": collections.OrderedDict(weight=torch.nn.Parameter(torch.ones(2)), half=torch.ones(1).half()),
        "args": argparse.Namespace(lr=[0.1]),
        "meters": collections.defaultdict(int, a=1),
        "sizes": torch.Size([2]),
        "kind": torch.float32,
        "bits": torch.zeros(2, dtype=torch.bool),
    }
    torch.save(state, tmp_path / "plain.pt")
    check_checkpoint(str(tmp_path / "plain.pt"))


def test_formats_that_hide_what_they_run_are_refused(tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": Call()}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": {}}, tmp_path / "good.pt")
    both = (tmp_path / "legacy.pt").read_bytes() + (tmp_path / "good.pt").read_bytes()
    (tmp_path / "both.pt").write_bytes(both)  # a zip to a reader that looks at its end, a pickle to torch
    for name in ("legacy.pt", "both.pt"):
        with pytest.raises(UnsafeCheckpointError, match="was not loaded"):
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name))
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_that_is_cut_off_is_named(tmp_path):
    torch.save({"model": {"weight": torch.ones(1000)}}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    with pytest.raises(UnsafeCheckpointError, match="cut.pt is cut off or damaged"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "cut.pt"))


@pytest.mark.parametrize("thing", [os.system, eval, torch.load, io.open, torch.nn.Linear(1, 1)])
def test_anything_else_is_refused_by_name(tmp_path, thing):
    torch.save({"model": {}, "extra": thing}, tmp_path / "other.pt")
    with pytest.raises(UnsafeCheckpointError, match="was not loaded: it holds .*[a-z]+[.]"):
        check_checkpoint(str(tmp_path / "other.pt"))


def test_a_copied_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    from fairseq.file_io import PathManager

    source, target = tmp_path / "new.pt", tmp_path / "last.pt"
    source.write_bytes(b"new" * 1000), target.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed just before the end
        with pytest.raises(KeyboardInterrupt):
            PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"old"
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == source.read_bytes() and not list(tmp_path.glob("*.tmp"))
