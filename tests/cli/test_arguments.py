"""The kinds of argument: what cannot be written is told before anything is read."""

import argparse
import os
import tempfile

import pytest

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.main import run as run_here


@pytest.fixture
def unwritable(tmp_path, monkeypatch):
    """A folder in which nothing can be made, as of a disk that is read only, for whoever runs the tests."""
    folder, make = tmp_path / "folder", tempfile.mkdtemp
    folder.mkdir()

    def mkdtemp(suffix=None, prefix=None, dir=None):
        if str(dir) == str(folder):
            raise OSError(30, "Read-only file system")
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    return folder


@pytest.mark.parametrize(
    "kind", [kinds.new_file, kinds.picture, kinds.page, kinds.folder_to_write, kinds.data_to_write]
)
def test_a_place_that_cannot_be_written_to_is_refused(unwritable, kind):
    name = {kinds.picture: "a.png", kinds.page: "a.html"}.get(kind, "a")
    assert kind(str(unwritable.parent / name)) == str(unwritable.parent / name)
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"folder cannot be written to \(Read-only file system\): give"
    ):
        kind(str(unwritable / name))
    assert {path.name for path in unwritable.parent.iterdir()} == {"folder"}  # nothing is left of the attempt


def test_folders_that_are_to_be_made_are_looked_at_where_they_begin(unwritable):
    assert kinds.folder_to_write(str(unwritable.parent / "new" / "newer"))
    with pytest.raises(argparse.ArgumentTypeError, match="folder cannot be written to"):
        kinds.folder_to_write(str(unwritable / "new" / "newer"))


@pytest.mark.parametrize("command", [["segment", "no-checkpoint", "--data"], ["evaluate", "no-checkpoint"]])
def test_a_prepared_folder_whose_name_fairseq_splits_is_refused(tmp_path, capsys, command):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "dict.txt").touch()
    with pytest.raises(SystemExit):
        run_here([*command, str(tmp_path / "a:b")])
    assert "would be read as a list of folders: give the folder a name without ':'" in capsys.readouterr().err


def test_a_file_that_is_protected_is_refused(tmp_path, monkeypatch):
    (tmp_path / "kept").touch()
    monkeypatch.setattr(os, "access", lambda name, mode: not str(name).endswith("kept"))
    with pytest.raises(argparse.ArgumentTypeError, match="kept cannot be written to: give another name"):
        kinds.new_file(str(tmp_path / "kept"))


@pytest.mark.parametrize("name", ["plot", "average", "export", "sample-handwriting"])
def test_commands_say_so_before_they_load_a_model(unwritable, capsys, name):
    out = ["--html", unwritable / "a.html"] if name == "plot" else ["--out", unwritable / "a.png"]
    with pytest.raises(SystemExit):
        run_here([name, "no-checkpoint", *map(str, out)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "folder cannot be written to (Read-only file system)" in line
