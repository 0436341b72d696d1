"""The front door: every command has an example in its help, and the old names still lead there."""

import re

import pytest
from running import ROOT, run, script

from fairseq_hmrnn.cli.main import COMMANDS, build_parser
from fairseq_hmrnn.cli.main import run as run_here
from fairseq_hmrnn.cli.prepare import KINDS

OLD_PYTHON = {
    "prepare_text": "prepare text", "sample": "sample", "segment": "segment", "plot_boundaries": "plot",
    "export": "export", "average_checkpoints": "average",
}  # fmt: skip


WORDS = [*([name] for name in COMMANDS), *(["prepare", kind] for kind in KINDS)]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_shows_an_example(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([*words, "--help"])
    printed = capsys.readouterr().out
    assert not stopped.value.code and f"fairseq-hmrnn {' '.join(words)}" in printed.partition("\n")[2]


def test_the_help_of_all_names_every_command(capsys):
    run_here([])
    printed = capsys.readouterr().out
    listed = printed.partition("\ncommands:\n")[2]
    assert re.findall(r"^    ([\w-]+) ", listed, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("words", [["nothing"], ["prepare"], ["prepare", "nothing"], ["sample"], ["train", "--x"]])
def test_a_wrong_word_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and re.match(r"fairseq-hmrnn( prepare| sample| train)?: error: ", line)


def test_options_of_fairseq_in_the_wrong_place_are_told_where_to_stand(data, capsys):
    with pytest.raises(SystemExit):
        run_here(["train", str(data), "--lr", "0.1"])
    printed = capsys.readouterr().err
    assert "unrecognized arguments: --lr" in printed and "(options of fairseq go after --)" in printed


def test_completion_is_a_script_for_the_shell(capsys):
    pytest.importorskip("shtab")
    run_here(["--print-completion", "bash"])
    printed = capsys.readouterr().out
    assert "complete -o bashdefault -F" in printed and "average" in printed


def test_old_names_of_python_scripts_call_the_command():
    for name, words in OLD_PYTHON.items():
        lines = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        (call,) = [line.strip() for line in lines if line.strip().startswith("run(")]
        assert call == f"run([{', '.join(repr(word) for word in words.split())}, *sys.argv[1:]])".replace("'", '"')
    assert "usage: fairseq-hmrnn average" in run("scripts/average_checkpoints.py", "--help").stdout


OLD_SHELL = {
    ("prepare_ptb.sh", "a b"): ["prepare", "ptb", "a b"],
    ("prepare_text8.sh", "text8", "x y"): ["prepare", "text8", "text8", "--dest", "x y"],
    ("prepare_enwik8.sh",): ["prepare", "enwik8"],
    ("prepare_translation.sh", "de", "en", "a b", "--source-size", "9"): [
        "prepare", "translation", "de", "en", "a b", "--source-size", "9",
    ],
    ("train_recipe.sh", "ptb", "da ta", "sa ve", "a.b='c'"): [
        "train", "ptb", "da ta", "--save-dir", "sa ve", "--", "a.b='c'",
    ],
    ("train_translation.sh", "da ta", "sa ve", "--lr", "1"): [
        "train", "da ta", "--save-dir", "sa ve", "--", "--lr", "1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("called", OLD_SHELL, ids=lambda called: called[0])
def test_old_names_of_shell_scripts_call_the_command(called, tmp_path, monkeypatch):
    """With a python that tells how it was called, and has all that its environment is asked for."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -m ]; then printf \'%s\\n\' "$@"; fi\n')
    python.chmod(0o755)
    monkeypatch.setattr("running.BIN", tmp_path)
    assert script(*called).splitlines() == ["-m", "fairseq_hmrnn", *OLD_SHELL[called]]


@pytest.mark.parametrize(
    "words", [["text", __file__], ["ptb", "."], ["handwriting", "."], ["translation", "de", "en", "."]]
)
def test_no_data_goes_to_a_folder_that_could_not_be_trained_on(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(["prepare", *words, "--dest", str(tmp_path / "a:b")])
    assert stopped.value.code == 2 and "would be read as a list of folders" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
