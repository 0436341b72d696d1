"""Prepared files that are not whole, or not of their dictionary, are named before anything is read from them."""

import importlib
import shutil
import sys

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import IndexedDatasetBuilder, MMapIndexedDatasetBuilder
from running import ROOT
from small_texts import dictionary_of

from fairseq_hmrnn.data import indexed
from fairseq_hmrnn.data.indexed import check_split

LINES = [torch.tensor([4, 5, 6]), torch.tensor([5]), torch.tensor([6, 6, 7, 4, 2])]


@pytest.fixture
def dictionary():
    return dictionary_of("abcd")


@pytest.fixture(params=["mmap", "cached"])
def path(request, tmp_path):
    """A split of 9 symbols from 0 to 7, in fairseq's present format and its older one."""
    if request.param == "mmap":
        builder = MMapIndexedDatasetBuilder(str(tmp_path / "train.bin"), dtype=np.uint16)
    else:
        builder = IndexedDatasetBuilder(str(tmp_path / "train.bin"), dtype=np.int32)
    for line in LINES:
        builder.add_item(line)
    builder.finalize(str(tmp_path / "train.idx"))
    return tmp_path / "train"


def message(path, dictionary, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_split(str(path), dictionary, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whole_splits_pass(path, dictionary):
    check_split(str(path), dictionary)
    check_split(str(path) + "x", dictionary)  # none there: fairseq says so


def test_every_length_but_the_right_one_is_refused(path, dictionary):
    for ending in ("bin", "idx"):
        file = path.with_suffix("." + ending)
        content = file.read_bytes()
        for length in [*range(9, len(content)), len(content) + 1]:
            file.write_bytes((content + b"\0")[:length])
            said = message(path, dictionary)
            assert str(path) in said and "prepare the text again" in said
        file.write_bytes(content)
    check_split(str(path), dictionary)


@pytest.mark.parametrize("part", [1, 4, 1000])
def test_symbols_beyond_the_dictionary_are_refused(path, dictionary, part, monkeypatch):
    monkeypatch.setattr(indexed, "_PART", part)  # symbols that are looked at together
    check_split(str(path), dictionary)
    dictionary.symbols.pop()
    assert "train.bin has the symbol 7, but the dictionary has only 7" in message(path, dictionary)


def test_a_missing_or_empty_bin_is_named(path, dictionary):
    (path.parent / "train.bin").unlink()
    assert "train.bin beside its .idx" in message(path, dictionary)
    (path.parent / "train.bin").mkdir()
    assert "train.bin beside its .idx" in message(path, dictionary)


def test_parts_are_looked_at_where_they_are_combined(path, dictionary):
    for ending in ("bin", "idx"):
        shutil.copy(path.with_suffix("." + ending), path.parent / f"train1.{ending}")
    with open(path.parent / "train1.bin", "ab") as file:
        file.write(bytes(8))
    check_split(str(path), dictionary)
    assert "train1.bin" in message(path, dictionary, combine=True)


@pytest.mark.parametrize("path", ["mmap"], indirect=True)
def test_lines_that_overlap_are_refused(path, dictionary):
    file = path.with_suffix(".idx")
    header, sizes = file.read_bytes()[:26], np.frombuffer(file.read_bytes()[26:], dtype=np.int32).copy()
    sizes[0], sizes[1] = sizes[1], sizes[0]  # their sum stays
    file.write_bytes(header + sizes.tobytes())
    assert "train.idx is damaged" in message(path, dictionary)


def damage_half(folder):
    content = (folder / "test.bin").read_bytes()
    (folder / "test.bin").write_bytes(content[: len(content) // 4 * 2])


def damage_dictionary(folder):
    lines = (folder / "dict.txt").read_text(encoding="utf-8").splitlines()
    (folder / "dict.txt").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("options", [["--stateful"], []])
@pytest.mark.parametrize(
    "damage, said", [(damage_half, "test.bin has .* symbols, but its .idx says"), (damage_dictionary, "has the symbol")]
)
def test_the_commands_say_so(data, trained, tmp_path, monkeypatch, options, damage, said):
    """Half a file was scored, and trained on, as if it were whole; symbols without a name stopped training midway."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    damage(folder)
    common = [folder, "--user-dir", ROOT / "fairseq_hmrnn", "--task", "hmlstm_language_modeling", "--cpu", *options]
    scored = [*common, "--path", trained / "checkpoint_best.pt", "--gen-subset", "test"]
    train = [*common, "--arch", "hmlstm_lm", "--batch-size", 8, "--tokens-per-sample", 30, "--train-subset", "test"]
    train += ["--save-dir", tmp_path / "save", "--disable-validation", "--max-update", 1, "--optimizer", "sgd"]
    scored = {"eval_lm": scored} if damage is damage_half else {}  # a model knows its dictionary
    for name, arguments in {**scored, "train": train}.items():
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(ValueError, match=said) as error:
            importlib.import_module(f"fairseq_cli.{name}").cli_main()
        assert str(folder) in str(error.value)
