"""Files in, fairseq's data out: every character is one token, and bad input stops at once."""

import fcntl
import filecmp
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder, infer_dataset_impl
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from running import PATIENCE, environment

from fairseq_hmrnn.cli.main import run as run_command
from fairseq_hmrnn.data import binarize
from fairseq_hmrnn.data.characters import CharacterDictionary, decode, encode
from fairseq_hmrnn.data.embedded import embedded_text
from fairseq_hmrnn.data.folders import SPLITS, recover, replaced_whole
from fairseq_hmrnn.text import InputError

LINES = "The \u2581 cat\tsat \r\n\n  on\u00a0\u3000the \U0001f63a mat.\x00\u2028 \n"


def run(*arguments):
    """The command in this process: its exit status."""
    try:
        run_command(["prepare", "text", *map(str, arguments)])
    except SystemExit as stopped:
        return stopped.code
    return 0


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def read_back(folder, split):
    """The text of a split, as fairseq reads it."""
    dictionary = CharacterDictionary.load(str(folder / "dict.txt"))
    items = MMapIndexedDataset(str(folder / split))
    return decode(dictionary[index] for item in items for index in item)


@pytest.fixture
def text_file(tmp_path):
    return write(tmp_path / "text.txt", LINES * 50)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_three_files_come_back_byte_for_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(binarize, "CHUNK_BYTES", chunk)  # borders inside characters and lines
    texts = {"train": LINES * 3, "valid": "\n\n the", "test": "cat\n"}
    files = [write(tmp_path / f"{name}.txt", text) for name, text in texts.items()]
    assert run(*files, "--dest", tmp_path / "data") == 0
    assert {name: read_back(tmp_path / "data", name) for name in texts} == texts
    assert sorted(os.listdir(tmp_path / "data")) == sorted(
        ["dict.txt"] + [f"{name}.{suffix}" for name in texts for suffix in ("bin", "idx")]
    )


def test_one_item_per_line_and_the_same_files_as_fairseqs_builder(tmp_path):
    text = "ab\n\nb c"
    assert run(*[write(tmp_path / "text", text)] * 3, "--dest", tmp_path / "data") == 0
    items = MMapIndexedDataset(str(tmp_path / "data" / "train"))
    assert items.sizes.tolist() == [3, 1, 3]
    assert infer_dataset_impl(str(tmp_path / "data" / "train")) == "mmap"

    dictionary = CharacterDictionary.load(str(tmp_path / "data" / "dict.txt"))
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for line in text.splitlines(keepends=True):
        builder.add_item(torch.tensor([dictionary.index(symbol) for symbol in encode(line)]))
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert filecmp.cmp(str(tmp_path / f"theirs.{suffix}"), str(tmp_path / "data" / f"train.{suffix}"), False)


def test_missing_splits_are_cut_from_the_end_at_line_borders(tmp_path, text_file, capsys):
    data = tmp_path / "data"
    assert run(text_file, "--dest", data, "--valid-fraction", ".2", "--test-fraction", ".1") == 0
    parts = {name: read_back(data, name) for name in SPLITS}
    whole = LINES * 50
    assert "".join(parts.values()) == whole
    assert all(part.endswith("\n") for part in parts.values())
    assert len(parts["valid"]) == pytest.approx(0.2 * len(whole), abs=max(map(len, LINES.split("\n"))))
    assert len(parts["test"]) == pytest.approx(0.1 * len(whole), abs=max(map(len, LINES.split("\n"))))
    printed = capsys.readouterr().out
    for part in parts.values():
        assert f"{len(part):,} characters" in printed
    assert f"fairseq-hmrnn train {data}" in printed


def test_only_the_missing_split_is_cut(tmp_path, text_file):
    valid = write(tmp_path / "valid.txt", "mat")
    assert run(text_file, valid, "--dest", tmp_path / "data") == 0
    assert read_back(tmp_path / "data", "valid") == "mat"
    assert read_back(tmp_path / "data", "train") + read_back(tmp_path / "data", "test") == LINES * 50


def test_dictionary_has_the_training_characters_by_frequency_and_no_padding(tmp_path):
    train, other = write(tmp_path / "train", "bb a\tb a\n\n"), write(tmp_path / "other", "z\n")
    assert run(train, other, other, "--dest", tmp_path / "data") == 0
    assert (tmp_path / "data" / "dict.txt").read_text(encoding="utf-8") == "b 3\na 2\n\u2581 2\n<U+0009> 1\n"


def test_unknown_characters_become_unk_with_one_warning(tmp_path, capsys):
    files = [write(tmp_path / name, text) for name, text in [("t", "abc\n"), ("v", "axyx\n"), ("s", "x\n")]]
    assert run(*files, "--dest", tmp_path / "data") == 0
    assert read_back(tmp_path / "data", "valid") == "a\ufffd\ufffd\ufffd\n"
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "3 of valid, 1 of test" in warnings[0] and "2 distinct: 'x' 'y'" in warnings[0]


def test_an_existing_dictionary_is_used_as_it_is(tmp_path, text_file):
    dictionary = write(tmp_path / "dict.txt", "e 7\n\u2581 3\n")
    assert run(text_file, "--dest", tmp_path / "data", "--dict", dictionary) == 0
    assert filecmp.cmp(str(dictionary), str(tmp_path / "data" / "dict.txt"), False)
    assert set(read_back(tmp_path / "data", "train")) == set("e \n\ufffd")


def test_overwrite_replaces_the_data_and_nothing_else(tmp_path, text_file):
    data = tmp_path / "data"
    assert run(text_file, "--dest", data) == 0
    write(data / "notes.txt", "mine")
    assert run(write(tmp_path / "new", "x\n\nx\n"), "--dest", data, "--overwrite") == 0
    assert "".join(read_back(data, name) for name in SPLITS) == "x\n\nx\n"
    assert (data / "notes.txt").read_text() == "mine"


def test_overwrite_leaves_no_other_kind_of_data(tmp_path, text_file):
    """A description of handwriting or a model of pieces that stayed would be taken for what the folder has."""
    data = tmp_path / "data"
    others = ("handwriting.json", "train.npz", "dict.de.txt", "spm.de.model", "valid.de-en.de.idx", "pieces.de.txt")
    for name in (*others, "pieces/train.de", "notes.txt"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("old")
    assert run(text_file, "--dest", data, "--overwrite") == 0
    made = {f"{split}.{ending}" for split in ("train", "valid", "test") for ending in ("bin", "idx")}
    assert {path.name for path in data.iterdir()} == {"dict.txt", "notes.txt", *made}


def test_a_failure_while_files_are_moved_brings_the_old_ones_back(tmp_path, monkeypatch):
    for name in ("dict.txt", "train.bin", "spm.de.model", "pieces/train.de", "pieces/mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    replace, moves = os.replace, []
    for last in (2, 5):  # while old files leave, and while new ones come

        def interrupt(source, target, last=last):
            moves.append(source)
            if len(moves) == last:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt), replaced_whole(str(tmp_path)) as new:
            (new / "dict.txt").write_text("new")
            (new / "train.idx").write_text("new")
        assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before
        moves.clear()
    monkeypatch.setattr(os, "replace", replace)
    with replaced_whole(str(tmp_path)) as new:
        (new / "dict.txt").write_text("new")
    left = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"dict.txt": "new", "pieces/mine.txt": "old"}


@pytest.mark.parametrize("last", [0, 1, 3, 4, 5])  # while it prepares, while old files leave, and while new ones come
def test_what_a_killed_preparation_left_is_undone(tmp_path, text_file, last):
    """Old data is as it was, and only --overwrite replaces it."""
    data = tmp_path / "data"
    before = {"dict.txt": "old", "train.bin": "old", "valid.npz": "old", "notes.txt": "mine"}
    data.mkdir()
    for name, text in before.items():
        (data / name).write_text(text)
    child = os.fork()
    if not child:  # ends without cleaning up
        replace, moves = os.replace, []

        def kill(source, target):
            moves.append(source)
            if len(moves) == last:
                os._exit(9)
            replace(source, target)

        os.replace = kill
        with replaced_whole(str(data)) as new:
            for name in ("dict.txt", "train.idx"):
                (new / name).write_text("new")
            if not last:
                os._exit(9)
        os._exit(0)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9 and list(data.glob(".prepare-*"))
    assert run(text_file, "--dest", data) == 2
    assert {path.name: path.read_text() for path in data.iterdir()} == before
    assert run(text_file, "--dest", data, "--overwrite") == 0
    assert not list(data.glob(".prepare-*")) and (data / "dict.txt").read_text() != "old"


def test_a_killed_preparation_does_not_stand_in_the_way_and_one_that_runs_is_left_alone(tmp_path, text_file):
    data = tmp_path / "data"
    (data / ".prepare-dead" / "new").mkdir(parents=True)
    (data / ".prepare-begun").mkdir()  # killed at once
    with replaced_whole(str(data)) as new:
        assert [path.name for path in data.iterdir()] == [new.parent.name]
        for overwrite in ([], ["--overwrite"]):
            assert run(text_file, "--dest", data, *overwrite) == 2
        assert new.is_dir()
    assert run(text_file, "--dest", data) == 0


def test_a_preparation_that_begins_is_left_alone(tmp_path, monkeypatch):
    """By another that looks for what was left, when its folder is there, and not locked yet."""
    make, other = tempfile.mkdtemp, threading.Thread(target=recover, args=[str(tmp_path)])

    def mkdtemp(*arguments, **keywords):
        made = make(*arguments, **keywords)
        other.start()
        other.join(0.3)
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with replaced_whole(str(tmp_path)) as new:
        other.join(PATIENCE)
        assert not other.is_alive() and new.is_dir()


def test_only_what_a_preparation_wrote_is_replaced(tmp_path, text_file):
    """A folder pieces/ belongs to a preparation of two languages, which leaves their models."""
    data = tmp_path / "data"
    names = ["pieces/train.de", "pieces/train.fr", "pieces/notes.txt", "spm.de.model", "train.de-en.de.bin"]
    (data / "pieces").mkdir(parents=True)
    for name in names[:3]:
        (data / name).write_text("own")
    assert run(text_file, "--dest", data, "--overwrite") == 0
    assert all((data / name).read_text() == "own" for name in names[:3])
    with pytest.raises(InputError, match="train.de was not written by a preparation"), replaced_whole(str(data)) as new:
        (new / "pieces").mkdir()
        (new / "pieces" / "train.de").write_text("x")
    assert (data / "pieces" / "train.de").read_text() == "own" and (data / "train.bin").exists()
    for name in names[3:]:
        (data / name).write_text("prepared")
    assert run(text_file, "--dest", data, "--overwrite") == 0
    assert [name for name in names if (data / name).exists()] == names[1:3]


def test_there_need_not_be_a_test_split(tmp_path, text_file):
    assert run(text_file, "--dest", tmp_path / "data", "--test-fraction", "0") == 0
    assert sorted(path.name for path in (tmp_path / "data").glob("*.bin")) == ["train.bin", "valid.bin"]
    texts = [read_back(tmp_path / "data", name) for name in ("train", "valid")]
    assert "".join(texts) == text_file.read_bytes().decode()


def test_fairseqs_language_modeling_task_reads_it(tmp_path, text_file):
    assert run(text_file, "--dest", tmp_path / "data") == 0
    config = Namespace(
        **{
            **vars(LanguageModelingConfig()),
            "data": str(tmp_path / "data"),
            "tokens_per_sample": 32,
            "dataset_impl": None,
            "seed": 1,
            "use_plasma_view": False,
            "batch_size": 4,
        }
    )
    task = LanguageModelingTask.setup_task(config)
    task.load_dataset("train")
    dataset = task.dataset("train")
    targets = torch.cat([dataset[index]["target"] for index in range(len(dataset))])
    assert decode(task.dictionary[index] for index in targets) == read_back(tmp_path / "data", "train")


def test_embedded_text(tmp_path):
    assert run("--embedded", "--dest", tmp_path / "data") == 0
    text = "".join(read_back(tmp_path / "data", name) for name in SPLITS)
    assert text == embedded_text()
    assert len(text) > 400_000


class TestBadInput:
    """(what is wrong, arguments, what the message says); {good} is a usable text, {dir} an empty folder."""

    CASES = {
        "not UTF-8": (["{latin}"], "latin is not UTF-8 (byte 3)"),
        "not UTF-8 in VALID": (["{good}", "{latin}"], "latin is not UTF-8"),
        "truncated UTF-8": (["{truncated}"], "not UTF-8 (byte 4)"),
        "empty": (["{empty}"], "empty is empty"),
        "missing": (["{dir}/none"], "there is no file"),
        "a folder": (["{dir}"], "is a folder"),
        "one line": (["{line}"], "too few lines"),
        "no text": ([], "give a TRAIN file"),
        "two texts": (["{good}", "--embedded"], "leave TRAIN"),
        "fraction 0": (["{good}", "--valid-fraction", "0"], "--valid-fraction: must be a number above 0"),
        "fraction 1": (["{good}", "--test-fraction", "1"], "--test-fraction: must be a number at least 0 and below 1"),
        "fraction nan": (["{good}", "--test-fraction", "nan"], "not nan"),
        "fractions together": (["{good}", "--valid-fraction", ".5", "--test-fraction", ".5"], "nothing to train on"),
        "no dictionary": (["{good}", "--dict", "{dir}/none"], "there is no file"),
        "word dictionary": (["{good}", "--dict", "{words}"], "not single characters"),
        "broken dictionary": (["{good}", "--dict", "{good}"], "not a fairseq dictionary"),
        "dest is a file": (["{good}", "--dest", "{good}"], "is a file"),
        "dest has data": (["{good}", "--dest", "{full}"], "--overwrite"),
    }

    @pytest.fixture
    def places(self, tmp_path):
        files = {
            "good": b"ab\ncd\nef\n",
            "latin": b"a\nb\xe9\n",
            "truncated": b"abc\n\xe2\x96",
            "empty": b"",
            "line": b"no newline",
            "words": b"the 3\ncat 2\n",
        }
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        for name in ("dir", "full"):
            (tmp_path / name).mkdir()
        (tmp_path / "full" / "something").write_bytes(b"")
        return {name: str(tmp_path / name) for name in [*files, "dir", "full"]}

    @pytest.mark.parametrize("case", CASES)
    def test_stops_with_one_line(self, case, places, tmp_path, capsys):
        arguments, message = self.CASES[case]
        arguments = [argument.format(**places) for argument in arguments]
        if "--dest" not in arguments:
            arguments += ["--dest", str(tmp_path / "data")]
        assert run(*arguments) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("fairseq-hmrnn prepare: error: ") and message in last
        assert not (tmp_path / "data").exists()

    def test_a_failure_while_writing_leaves_the_old_data(self, tmp_path, monkeypatch):
        data = tmp_path / "data"
        assert run(write(tmp_path / "old", "a\nb\nc\n"), "--dest", data) == 0
        before = {path.name: path.read_bytes() for path in data.iterdir()}

        def fail(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(binarize, "write_split", fail)
        assert run(write(tmp_path / "new", "x\ny\nz\n"), "--dest", data, "--overwrite") == 2
        assert {path.name: path.read_bytes() for path in data.iterdir()} == before


@pytest.mark.thorough
class TestCommand:
    def command(self, *arguments, cwd):
        return subprocess.run(
            [sys.executable, "-m", "fairseq_hmrnn", "prepare", "text", *map(str, arguments)],
            cwd=cwd,
            env=environment(PYTHONIOENCODING="utf-8"),
            capture_output=True,
            encoding="utf-8",
        )

    def test_shows_a_bar_on_a_terminal(self, tmp_path, text_file):
        shown, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", "fairseq_hmrnn", "prepare", "text", text_file, "--dest", tmp_path / "data"]
        streams = {"stdout": subprocess.PIPE, "stderr": terminal}
        subprocess.run(list(map(str, command)), env=environment(), check=True, timeout=PATIENCE, **streams)
        os.set_blocking(shown, False)
        assert b"writing: 100%" in os.read(shown, 1 << 16)
        os.close(terminal), os.close(shown)

    def test_runs_from_anywhere_and_fills_no_log_with_bars(self, tmp_path, text_file):
        result = self.command(text_file.name, "--dest", "data", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "") and "fairseq-hmrnn train data" in result.stdout
        assert read_back(tmp_path / "data", "train").startswith(LINES)

    def test_bad_input_has_no_traceback(self, tmp_path):
        result = self.command("none.txt", "--dest", "data", cwd=tmp_path)
        assert result.returncode == 2 and result.stdout == ""
        assert "Traceback" not in result.stderr and "there is no file none.txt" in result.stderr
