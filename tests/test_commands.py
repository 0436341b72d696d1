"""Messages of commands about bad files, streams, encodings and arguments: one line, exit code 2, and nothing else."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys

import fuzz
import pytest
from running import PATIENCE, ROOT, environment, run
from written_lines import write_unipen

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli import errors, main
from fairseq_hmrnn.cli.errors import UserError, describe, run_command
from fairseq_hmrnn.cli.files import read_text, whole_file, write_whole
from fairseq_hmrnn.cli.prepare import KINDS
from fairseq_hmrnn.cli.recipe import load_recipe, with_folders
from fairseq_hmrnn.data.handwriting import prepare as prepare_handwriting

FUZZ = "tests/fuzz.py"


@pytest.fixture(scope="module")
def work(data, trained, tmp_path_factory):
    """The files that inputs name: a prepared text, its model, a text, a pipe that nobody writes to."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(str(data), str(folder / "bin"))
    (folder / "model").mkdir()
    for name in ("checkpoint_best.pt", "checkpoint_1_40.pt"):
        shutil.copy(str(trained / "checkpoint_last.pt"), str(folder / "model" / name))
    (folder / "text.txt").write_text("ka lumo\ntiri\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"ka \xe9\n")
    (folder / "picture.png").mkdir()
    return folder


SAMPLE = ["{work}/model", "--length", "5"]
# command, arguments, standard input, standard output, what the line says; None: it ends well
CASES = [
    ("sample", SAMPLE, "closed", "file", None),
    ("sample", [*SAMPLE, "--prompt", "-"], "closed", "file", "standard input is closed"),
    ("sample", [*SAMPLE, "--prompt", "-"], "zero", "file", "standard input has more than 67,108,864 bytes"),
    ("sample", [*SAMPLE, "--prompt", "-"], "binary", "file", "standard input is not UTF-8 (byte "),
    ("sample", [*SAMPLE, "--prompt", "\udcff"], "text", "file", "--prompt: is not UTF-8"),
    ("sample", SAMPLE, "text", "closed", "standard output is closed"),
    ("sample", SAMPLE, "text", "full", "the output was not written: No space left on device"),
    ("sample", ["--help"], "text", "full", "the output was not written: No space left on device"),
    ("sample", ["{work}/model", "--samples", "99999999999", "--length", "300"], "text", "full", "No space left"),
    ("sample", [*SAMPLE, "--top-k", str(10**30)], "text", "file", "--top-k: must be a whole number from 0 to"),
    ("sample", [*SAMPLE, "--top-k", "2000000000"], "text", "file", None),
    ("sample", [*SAMPLE, "--temperature", "1e-300"], "text", "file", "temperature must be a positive number, from"),
    ("sample", [*SAMPLE, "--beam", "7", "--diverse-beam-groups", "2"], "text", "file", "must divide --beam"),
    ("sample", [*SAMPLE, "--beam", "2", "--seed", "1"], "text", "file", "--beam does not go with options of sampling"),
    ("sample", [*SAMPLE, "--beam", "2", "--batch-size", "2"], "text", "file", "does not go with options of sampling"),
    ("sample", [*SAMPLE, "--greedy", "--top-k", "3"], "text", "file", "leave temperature, top-k and top-p out"),
    ("sample", [*SAMPLE, "--beam", "2", "--diverse-beam-strength", "1"], "text", "file", "--diverse-beam-groups"),
    ("sample", ["{work}/model", "--beam", "9999", "--length", "1000000"], "text", "file", "at most 100,000,000"),
    ("sample", ["{work}/fifo"], "text", "file", "{work}/fifo is not a regular file"),
    ("sample", ["/dev/zero"], "text", "file", "/dev/zero is not a regular file"),
    ("sample", [""], "text", "file", "not empty"),
    ("sample", [*SAMPLE, "--data", "{work}"], "text", "file", "no {work}/dict.txt"),
    ("segment", ["{work}/model"], "closed", "file", "standard input is closed"),
    ("segment", ["{work}/model", "--text", "{work}/fifo"], "text", "file", "fifo is not a regular file"),
    ("segment", ["{work}/model", "--text", "{work}/latin.txt"], "text", "file", "latin.txt is not UTF-8 (byte 3)"),
    ("segment", ["{work}/model", "--gold", "lines"], "zero", "file", "has more than 268,435,456 bytes"),
    ("segment", ["{work}/model", "--separator", ""], "text", "file", "--separator: must not be empty"),
    ("segment", ["{work}/model", "--seed", "1"], "text", "file", "it requires --gold"),
    ("segment", ["{work}/model", "--format", "json", "--separator", "/"], "text", "file", "leave --separator out"),
    ("segment", ["{work}/model", "--gold", "lines", "--separator", "/"], "text", "file", "as --gold, not lines: leave"),
    ("plot", ["{work}/model", "--separator", "/"], "text", "file", "--separator requires --gold"),
    ("sample-handwriting", ["{work}/m", "--out", "{work}/p.png", "--line", "1"], "text", "file", "they require --data"),
    ("plot", ["{work}/model"], "zero", "file", "has more than 20,000 bytes"),
    ("plot", ["{work}/model", "--out", "{work}/picture.png"], "text", "file", "picture.png is a folder"),
    ("plot", ["{work}/model", "--out", "{work}/p.gif"], "text", "file", "must be one of .png"),
    ("export", ["{work}/model", "--out", "/dev/full"], "text", "file", "/dev/full is not a regular file"),
    ("export", ["{work}/model", "--out", "{work}/bin"], "text", "file", "bin is a folder"),
    ("export", ["{work}/model", "--out", ""], "text", "file", "not empty"),
    ("export", ["{work}/model", "--out", "{work}/none/x.ts"], "text", "file", "there is no folder {work}/none"),
    ("average", ["{work}/model", "--out", "{work}/bin"], "text", "file", "bin is a folder"),
    ("prepare text", ["{work}/fifo", "--dest", "{work}/p"], "text", "file", "fifo is not a regular file"),
    ("prepare text", ["{work}/text.txt", "--dest", "{work}/text.txt"], "text", "file", "text.txt is a file"),
    ("prepare text", ["{work}/text.txt"] * 2 + ["--dest", "{work}/p", "--valid-fraction", ".6"], "text", "file",
     "VALID is given, nothing is cut off for it"),
    ("prepare synthetic", ["--dest", "{work}/l", "--seed", "nan"], "text", "file", "--seed: must be a whole number"),
    ("benchmark/recurrence", ["--repeats", "0"], "text", "file", "--repeats: must be a whole number from 1"),
    ("benchmark/recurrence", ["--peer", "os:nothing"], "text", "file", "no class that can be imported"),
    ("benchmark/translation", ["{work}"], "text", "file", "no dict.*.txt with spm.*.model in {work}"),
    ("benchmark/ranks", ["{work}"], "text", "file", "no {work}/dict.txt"),
]  # fmt: skip


@pytest.fixture(scope="module")
def endings(work):
    """(exit code, standard error, standard output) of each case."""
    cases = []
    for command, arguments, stdin, stdout, _ in CASES:
        arguments = [argument.replace("{work}", str(work)) for argument in arguments]
        command = f"scripts/{command}.py" if command.startswith("benchmark/") else f"fairseq-hmrnn {command}"
        cases.append([command, arguments, stdin, stdout])
    return json.loads(run(FUZZ, "--folder", work, "--cases", stdin=json.dumps(cases)).stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{(CASES[n][4] or 'fine')[:30]}")
def test_a_mistake_is_one_line_and_exit_code_2(number, endings, work):
    (command, *_, message), (code, errors, output) = CASES[number], endings[number]
    if message is None:
        assert (code, errors) == (0, "") and output
        return
    (line,) = errors.splitlines()
    name = command[len("benchmark/") :] if command.startswith("benchmark/") else f"fairseq-hmrnn {command.split()[0]}"
    assert code == 2 and line.startswith(f"{name}: error: ")
    assert message.replace("{work}", str(work)) in line


@pytest.fixture(scope="module")
def written(work, trained):
    """The same folder with what inputs to commands of handwriting name."""
    shutil.copy(str(trained / "log.txt"), str(work / "train.log"))
    write_unipen(work / "corpus")
    prepare_handwriting(str(work / "corpus"), str(work / "strokes"), {"valid": 0.2, "test": 0.2}, progress=False)
    options = "--user-dir fairseq_hmrnn --task hmlstm_handwriting --arch hmlstm_handwriting --embed-dim 6 "
    options += "--hidden-sizes 12,10,8 --output-dim 10 --mixtures 3 --criterion handwriting_likelihood --max-update 2 "
    options += "--boundary-rates .2,.1 --optimizer adam --lr 0.01 --batch-size 4 --cpu --num-workers 0"
    run("fairseq-train", work / "strokes", *options.split(), "--save-dir", work / "writer")
    return work


def test_random_inputs_are_of_every_command():
    """Of a new command, kind of data or benchmark too."""
    names = {f"fairseq-hmrnn {name}" for name in main.COMMANDS if name != "prepare"}
    names |= {f"fairseq-hmrnn prepare {kind}" for kind in KINDS}
    benchmarks = (ROOT / "scripts" / "benchmark").glob("*.py")
    names |= {f"scripts/benchmark/{path.name}" for path in benchmarks if "run_command(main" in path.read_text("utf-8")}
    assert names | {"fairseq-hmrnn"} == set(fuzz.COMMANDS)


@pytest.mark.slow
def test_random_inputs_end_well_or_with_one_line(written):
    """Some of the inputs of tests/fuzz.py, over every command and option."""
    ended = run(FUZZ, "--folder", written, "--inputs", 60, "--seed", 17, check=False)
    assert ended.returncode == 0, ended.stdout


def test_a_real_process_without_input_and_with_another_locale_writes_utf8(work):
    """Closed standard input, a locale of ASCII: the marks of layer 2 are UTF-8 all the same."""
    command = [sys.executable, "-m", "fairseq_hmrnn", "sample", str(work / "model"), "--show-boundaries"]
    command += ["--length", "60", "--seed", "1", "--prompt", "ka"]
    locale = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="latin-1")
    shell = ["bash", "-c", '"$@" <&-', "bash", *command]
    done = subprocess.run(shell, env=locale, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"") and "\u2016" in done.stdout.decode()


def test_a_real_process_ends_quietly_when_nobody_reads_on(work):
    command = [sys.executable, "-m", "fairseq_hmrnn", "segment", str(work / "model"), "--format", "json"]
    command += ["--text", str(work / "long.txt")]
    (work / "long.txt").write_text("ka lumo\n" * 5_000, encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=PATIENCE) == -signal.SIGPIPE


def test_an_interruption_while_a_broken_pipe_is_handled_is_quiet(monkeypatch):
    ended = []

    def end_by(number):
        ended.append(number)
        if number == signal.SIGPIPE:
            raise KeyboardInterrupt

    def write():
        raise BrokenPipeError

    monkeypatch.setattr(errors, "_end_by", end_by)
    run_command(write, "name")
    assert ended == [signal.SIGPIPE, signal.SIGINT]


def test_errors_of_the_program_keep_their_traceback():
    def fail():
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        run_command(fail, "name")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sample", "model", "--json", "--hide-prompt"], "leave --hide-prompt out"),
        (["plot", "model", "--html", "p.html", "--width", "40"], "--width applies to pictures"),
    ],
)
def test_options_without_a_meaning_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main.run(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and message in line


@pytest.mark.parametrize("shown", ["", "1"])
def test_a_variable_shows_the_traceback_of_what_is_told_in_one_line(shown, capsys, monkeypatch):
    monkeypatch.setenv("FAIRSEQ_HMRNN_TRACEBACK", shown)

    def fail():
        raise RuntimeError("a mistake of ours")

    with pytest.raises(SystemExit) as stopped:
        run_command(fail, "name")
    *trace, line = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line == "name: error: a mistake of ours"
    assert any("in fail" in each for each in trace) == bool(shown)


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("two\nlines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "x.txt: No such file or directory"),
        (OSError(28, "No space left on device"), "the output was not written: No space left on device: make room"),
        (MemoryError(), "a size is too large for this machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte\nmore"), "a size is too large for this"),
        (ValueError(), "ValueError"),
    ],
)
def test_every_error_becomes_one_line(error, line, capsys):
    def fail():
        raise error

    assert describe(error).startswith(line)
    with pytest.raises(SystemExit) as stopped:
        run_command(fail, "name")
    assert stopped.value.code == 2 and capsys.readouterr().err == f"name: error: {describe(error)}\n"


def test_files_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    write_whole(str(target), "\u00e9")
    with pytest.raises(OSError, match="file"):
        with whole_file(str(target)) as unfinished:
            (tmp_path / unfinished).write_bytes(b"half")
            raise OSError(28, "No space left on device")
    assert target.read_bytes() == "\u00e9".encode() and os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    target = tmp_path / "file"
    for mode in (0o600, 0o664):
        target.touch()
        target.chmod(mode)
        write_whole(str(target), "private")
        assert target.read_text() == "private" and target.stat().st_mode & 0o777 == mode


def test_the_package_is_imported_where_a_program_has_no_arguments():
    """As in one that embeds Python; argparse, which fairseq's import uses, requires the name of a program."""
    code = "import sys, fairseq; sys.argv = []; import fairseq_hmrnn"
    subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), env=environment(), check=True)


def test_reading_is_bounded(tmp_path):
    (tmp_path / "text").write_bytes(b"12345")
    assert read_text(str(tmp_path / "text"), 5) == "12345"
    with pytest.raises(UserError, match="more than 4 bytes"):
        read_text(str(tmp_path / "text"), 4)


@pytest.mark.parametrize("kind", [kinds.new_file, kinds.existing_file, kinds.file_or_input])
@pytest.mark.parametrize("name", ["", "folder", "fifo", "/dev/null", "x" * 5000])
def test_what_is_no_file_is_refused(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkdir("folder")
    with pytest.raises(argparse.ArgumentTypeError):
        kind(name)


@pytest.mark.parametrize("name", ["a:b", "a${b}", "a\nb"])
def test_a_folder_that_a_recipe_cannot_name_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="give the folder a name without"):
        with_folders(load_recipe("ptb"), str(tmp_path / name), str(tmp_path))
