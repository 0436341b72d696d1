"""Checkpoints: what is let through and what is not, what of them is used, and what writing leaves on the disk."""

import argparse
import collections
import errno
import importlib
import io
import os
import pickle
import random
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from pairs import pairs
from running import ROOT, run
from small_training import TASK

from fairseq_hmrnn.checkpoints import UnsafeCheckpointError, check_checkpoint, drop_unnamed_codec, forget_files
from fairseq_hmrnn.cli.errors import describe, raised_in
from fairseq_hmrnn.inference import loading


def test_imports_are_found_in_every_pickle_protocol_without_running_anything(tmp_path):
    refusal = f"holds {os.mkdir.__module__}.mkdir, which"  # and not what it may import beside
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps({"a": [Call(tmp_path / "made"), collections.OrderedDict(b=1)]}, protocol)
        (tmp_path / "calls.pt").write_bytes(archive_of(pickled))
        with pytest.raises(UnsafeCheckpointError, match=refusal):
            check_checkpoint(str(tmp_path / "calls.pt"))
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_without_a_moving_average_seeds_none():
    """As fairseq's --ema-seed-model reads it."""
    with pytest.raises(ValueError, match="hmlstm_lm.pt has no moving average: give one of a training with --store-ema"):
        checkpoint_utils.load_ema_from_checkpoint(str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt"))


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
    assert target.read_bytes() == b"old" and not list(tmp_path.glob("*.tmp")), "a full disk would stay full"
    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(OSError) as raised:
            PathManager.copy(str(source), str(target), overwrite=True)
    assert raised.value.filename == str(target) and raised_in(raised.tb).startswith("fairseq_hmrnn.")
    assert f"No space left ({source} is whole: --restore-file {source} goes on from it)" in describe(raised.value)
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == source.read_bytes() and not list(tmp_path.glob("*.tmp"))


class Call:
    """An object that would make a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def archive_of(pickled, **others):
    """A file as torch.save writes it, but for alignment, with other members beside the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **others}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def command(monkeypatch, name, *arguments):
    """Run one of fairseq's commands in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--user-dir", str(ROOT / "fairseq_hmrnn"), "--cpu"])
    importlib.import_module(f"fairseq_cli.{name}").cli_main()


def one_line(error, path):
    message = str(error.value)
    return "\n" not in message and len(message) < 600 and str(path) in message


def test_archives_that_two_readers_see_differently_are_refused(tmp_path):
    good, made = pickle.dumps({"model": {"a": 1}}), tmp_path / "made"
    evil = pickle.dumps({"model": Call(made)})
    evil, good = evil.ljust(200, b"."), good.ljust(200, b".")  # what follows a pickle's end is not read
    one, other = archive_of(evil), archive_of(good)
    crafted = {
        "letters": archive_of(good, **{"DATA.PKL": evil}),  # old torch finds members whatever their letters
        "more": archive_of(good, **{"code/__torch__.py": b""}),
        "tables": one[:-22] + other[:-22] + one[-22:],  # the end names the first table, Python reads the last
        "after": archive_of(good) + b"\0" * 30,
        "before": b"PK\x03\x04" + archive_of(good),
        "comment": archive_of(good)[:-2] + struct.pack("<H", 4) + b"1234",
    }
    double = io.BytesIO(archive_of(good))
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", evil)
    crafted["twice"] = double.getvalue()
    for name, content in crafted.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(UnsafeCheckpointError, match="was not loaded|is damaged|is cut off") as error:
            checkpoint_utils.load_checkpoint_to_cpu(str(path))
        assert one_line(error, path)
    assert not made.exists()
    (tmp_path / "plain.pt").write_bytes(archive_of(good))
    assert check_checkpoint(str(tmp_path / "plain.pt")) == {"model": {"a": 1}}


def test_no_changed_byte_loads_as_other_weights(tmp_path):
    path, choose = tmp_path / "changed.pt", random.Random(0)
    weights = {"a": torch.randn(3000), "b": torch.arange(1000)}
    torch.save({"model": weights}, path)
    content, refused = path.read_bytes(), 0
    changes = [(choose.randrange(len(content)), 1) for _ in range(150)] + [(4096, 4096), (8192, 4096)]
    for start, length in changes:
        changed = bytearray(content)
        changed[start : start + length] = bytes([changed[start] ^ 4]) if length == 1 else bytes(length)
        path.write_bytes(changed)
        try:
            check_checkpoint(str(path))
        except UnsafeCheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and "changed.pt" in str(error)
        else:
            found = torch.load(path)["model"]
            assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert refused > 130
    path.write_bytes(content)
    check_checkpoint(str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_what_honest_code_writes_is_let_through(tmp_path, legacy):
    """In the format of torch before 1.6 too, as checkpoints that others have published still are."""
    numbers = [np.arange(3).astype(kind) for kind in ("?", "i1", "i8", "u2", "f2", "f4", "f8", "c16")] + [np.zeros(0)]
    state = {
        "model": {"w": torch.ones(2)},
        "args": argparse.Namespace(arch="lstm_lm", task="language_modeling"),
        "optimizer_history": [{"optimizer_name": "A", "lr_scheduler_state": {}, "num_updates": 1}],
        "extra_state": {"train_iterator": None, "val_loss": np.float64(3), "meters": numbers},
        "task_state": {"dictionary": Dictionary(), "counts": collections.Counter("ab"), "few": frozenset([1 + 2j])},
    }
    torch.save(state, tmp_path / "honest.pt", _use_new_zipfile_serialization=not legacy)
    assert check_checkpoint(str(tmp_path / "honest.pt"))["model"].keys() == {"w"}
    del state["task_state"]["counts"]  # newer torch would have to be told of it
    torch.save(state, tmp_path / "honest.pt", _use_new_zipfile_serialization=not legacy)
    state.update(args=None)
    found = torch.load(tmp_path / "honest.pt")
    assert found["extra_state"]["val_loss"] == 3 and len(found["task_state"]["dictionary"]) == 4
    assert all(np.array_equal(a, b) for a, b in pairs(found["extra_state"]["meters"], numbers))


def test_objects_in_arrays_and_old_tar_files_are_refused(tmp_path):
    import tarfile

    torch.save({"model": {"w": np.array([{}], dtype=object)}}, tmp_path / "objects.pt")
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    for name in ("objects.pt", "tar.pt"):
        with pytest.raises(UnsafeCheckpointError, match="was not loaded"):
            check_checkpoint(str(tmp_path / name))


def test_what_other_code_tells_torch_to_be_safe_is_let_through(tmp_path):
    if not hasattr(torch.serialization, "safe_globals"):
        pytest.skip("this torch has no such list")
    torch.save({"model": {"w": torch.ones(1)}, "extra": zipfile.ZipInfo("a")}, tmp_path / "theirs.pt")
    with pytest.raises(UnsafeCheckpointError, match="zipfile.ZipInfo"):
        check_checkpoint(str(tmp_path / "theirs.pt"))
    with torch.serialization.safe_globals([zipfile.ZipInfo]):
        check_checkpoint(str(tmp_path / "theirs.pt"))


def changed(trained, target, change):
    """A trained checkpoint after `change` was done to it."""
    state = torch.load(trained / "checkpoint_best.pt", map_location="cpu")
    other = change(state)
    torch.save(state if other is None else other, target)
    return str(target)


def without(*path):
    def change(state):
        *parents, last = path
        for key in parents:
            state = state[key]
        del state[last]

    return change


def with_value(value, *path):
    def change(state):
        *parents, last = path
        for key in parents:
            state = state[key]
        state[last] = value

    return change


NO_CHECKPOINTS = {
    "list": (lambda state: [1, 2], "holds a list"),
    "tensor": (lambda state: torch.ones(3), "holds a single object"),
    "weights": (lambda state: state["model"], 'has no "model"'),
    "no model": (without("model"), 'has no "model"'),
    "empty model": (with_value({}, "model"), 'has no "model"'),
    "no cfg": (without("cfg"), 'neither "cfg" nor "args"'),
    "cfg is a list": (with_value([1], "cfg"), "fairseq"),
    "no history": (without("optimizer_history"), "not a whole fairseq checkpoint"),
    "history is empty": (with_value([], "optimizer_history"), "not a whole fairseq checkpoint"),
    "no position": (without("extra_state"), "not a whole fairseq checkpoint"),
    "other model": (with_value("frobnicate", "cfg", "model", "_name"), "unknown model, 'frobnicate'"),
    "other task": (with_value("frobnicate", "cfg", "task", "_name"), "unknown task, 'frobnicate'"),
    "model is none": (with_value(None, "cfg", "model"), "not a whole fairseq checkpoint"),
    "no dictionary": (with_value(None, "task_state", "dictionary"), "a NoneType where symbols and counts"),
    "a path": (with_value("/etc/passwd", "task_state", "dictionary"), "a str where symbols and counts"),
    "no symbols": (with_value([1], "task_state", "dictionary"), "a list where symbols and counts"),
    "no state": (with_value([], "task_state"), "where symbols and counts"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named_in_one_line(trained, tmp_path, monkeypatch, name):
    change, message = NO_CHECKPOINTS[name]
    path = changed(trained, tmp_path / "other.pt", change)
    monkeypatch.setattr(Dictionary, "load", None)  # nothing is opened that a checkpoint names
    with pytest.raises(UnsafeCheckpointError) as error:
        loading.load([path])
    assert one_line(error, path) and message in str(error.value)


@pytest.mark.slow
def test_whatever_is_missing_or_wrong_inside_is_one_line(trained, tmp_path):
    state, choose = torch.load(trained / "checkpoint_best.pt", map_location="cpu"), random.Random(0)
    places = [(group, key) for group in ("model", "task_state", "extra_state") for key in state[group]]
    places += [("cfg", group, key) for group in ("model", "task") for key in state["cfg"][group]]
    places += [("cfg", group) for group in state["cfg"]] + [(group,) for group in state]
    for _ in range(80):
        place, wrong = choose.choice(places), choose.choice([None, -1, "x", [], {}, float("nan"), torch.ones(2)])
        path = changed(trained, tmp_path / "wrong.pt", with_value(wrong, *place))
        try:
            loading.load([path])
        except (UnsafeCheckpointError, ValueError) as error:  # ValueError: of values out of their range
            assert "\n" not in str(error), place


def test_a_pickle_that_is_cut_short_is_named(tmp_path):
    whole = pickle.dumps({"model": {"a": [1] * 50}})
    (tmp_path / "short.pt").write_bytes(archive_of(whole[: len(whole) // 2]))
    with pytest.raises(UnsafeCheckpointError, match="short.pt was not loaded: .*cut short"):
        check_checkpoint(str(tmp_path / "short.pt"))


def test_every_command_names_what_is_no_checkpoint(data, trained, tmp_path, monkeypatch):
    nothing = changed(trained, tmp_path / "nothing.pt", lambda state: [1])
    task = [data, "--task", "hmlstm_language_modeling"]
    for name in ("eval_lm", "generate", "validate"):
        with pytest.raises(UnsafeCheckpointError, match="not a fairseq checkpoint: it holds a list") as error:
            command(monkeypatch, name, *task, "--path", nothing, "--batch-size", 1)
        assert one_line(error, nothing)
    with pytest.raises(UnsafeCheckpointError, match="holds a list"):
        command(monkeypatch, "train", *task, "--arch", "hmlstm_lm", "--restore-file", nothing, "--batch-size", 8)
    for name, arguments in {"sample": [], "export": ["--out", tmp_path / "step.ts"]}.items():
        said = run("fairseq-hmrnn", name, nothing, *arguments, stdin="ka", check=False)
        assert said.returncode == 2, said
        assert said.stdout.startswith(f"fairseq-hmrnn {name}: error: {nothing} is not a fairseq checkpoint")
        assert said.stdout.count("\n") == 1


def test_weights_that_are_not_finite_are_refused_wherever_they_are_used(data, trained, tmp_path, monkeypatch):
    def spoil(state):
        state["model"]["decoder.hm_lstm.bias.1"][3] = float("nan")

    path, weights = changed(trained, tmp_path / "nan.pt", spoil), "decoder.hm_lstm.bias.1"
    refusal = f"nan.pt is of no use: its weights {weights} are not all finite"
    with pytest.raises(UnsafeCheckpointError, match=refusal):
        loading.load([path])
    with pytest.raises(UnsafeCheckpointError, match=refusal):
        loading.load([str(trained), path])
    for name in ("eval_lm", "generate", "validate"):
        with pytest.raises(UnsafeCheckpointError, match=refusal):
            command(monkeypatch, name, data, "--task", "hmlstm_language_modeling", "--path", path, "--batch-size", 1)
    for name in ("export", "average"):
        said = run("fairseq-hmrnn", name, path, "--out", tmp_path / "out", check=False)
        assert said.returncode and "not all finite" in said.stdout and not (tmp_path / "out").exists(), said.stdout


def test_a_codec_is_the_users_to_name(trained, tmp_path, monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", None)
    codecs = {
        "gpt2": {"gpt2_encoder_json": "http://127.0.0.1:1/encoder.json", "gpt2_vocab_bpe": "http://127.0.0.1:1/bpe"},
        "bert": {"bpe_vocab_file": None},
        "sentencepiece": {"sentencepiece_model": str(trained / "log.txt")},
        "subword_nmt": {"bpe_codes": "/dev/zero"},
    }
    for name, files in codecs.items():
        path = changed(trained, tmp_path / f"{name}.pt", with_value({"_name": name, **files}, "cfg", "bpe"))
        with pytest.raises(ValueError, match=f"was trained with the codec {name}: name it and its files"):
            loading.load([path])
        models, cfg, _ = checkpoint_utils.load_model_ensemble_and_task([path])
        assert cfg.bpe is None and len(models) == 1
    path = changed(trained, tmp_path / "characters.pt", with_value({"_name": "characters"}, "cfg", "bpe"))
    assert loading.load([path]).cfg.bpe._name == "characters"


def test_files_that_a_checkpoint_names_are_not_opened(trained, tmp_path):
    """A list for replacing unknown words, and what a model was started from: that may be gone, or another by now."""
    path = changed(trained, tmp_path / "named.pt", with_value("/nowhere/list", "cfg", "generation", "replace_unk"))
    assert loading.load([path]).align_dict is None
    cfg = OmegaConf.create({"model": {"load_pretrained_encoder_from": "/a", "decoder_embed_path": "/b", "slope": 1}})
    forget_files(cfg, {"decoder_embed_path": "/b"})
    assert cfg.model == {"load_pretrained_encoder_from": "", "decoder_embed_path": "/b", "slope": 1}


def test_a_text_that_taught_boundaries_is_not_required_for_validation(data, trained, tmp_path):
    """fairseq-validate sets up the criterion that the checkpoint names."""
    supervised = with_value("/nowhere/gold.txt", "cfg", "criterion", "boundary_supervision")
    path = changed(trained, tmp_path / "supervised.pt", supervised)
    validate = ["fairseq-validate", data, *TASK, "--path", path, "--batch-size", 8, "--cpu"]
    assert "valid on 'valid' subset" in run(*validate).stdout
    named = run(*validate, "--model-overrides", "{'boundary_supervision': '/nowhere/gold.txt'}", check=False)
    assert "there is no file /nowhere/gold.txt" in named.stdout.splitlines()[-1]  # the user's to name
    assert loading.load([path]).cfg.criterion.boundary_supervision  # segment asks whether boundaries were taught


def test_a_codec_takes_only_what_the_user_names(tmp_path):
    (tmp_path / "m.model").write_text("")
    own = {"sentencepiece_model": str(tmp_path / "m.model")}
    there = {"_name": "sentencepiece", "sentencepiece_model": "/elsewhere"}
    for overrides in (own, {"bpe": "sentencepiece", **own}):
        cfg = OmegaConf.create({"bpe": there})
        assert drop_unnamed_codec(cfg, overrides) is None
        assert (cfg.bpe._name, cfg.bpe.sentencepiece_model) == ("sentencepiece", own["sentencepiece_model"])
    cfg = OmegaConf.create({"bpe": there})
    assert drop_unnamed_codec(cfg, {"sentencepiece_model": "/elsewhere/too"}) == "sentencepiece" and cfg.bpe is None
