"""The front door: every command has an example in its help, and the old names still lead there."""

import re

import pytest
from conftest import ROOT, run, script

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
    assert re.findall(r"^    (\w+) ", printed, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("words", [["nothing"], ["prepare"], ["prepare", "nothing"], ["sample"], ["train", "--x"]])
def test_a_wrong_word_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and re.match(r"fairseq-hmrnn( prepare| sample| train)?: error: ", line)


def test_completion_is_a_script_for_the_shell(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        run_here(["--print-completion", "bash"])
    printed = capsys.readouterr().out
    assert not stopped.value.code and "complete -o filenames -F" in printed and "average" in printed


def test_old_names_of_python_scripts_call_the_command():
    for name, words in OLD_PYTHON.items():
        lines = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        (call,) = [line.strip() for line in lines if line.strip().startswith("run(")]
        assert call == f"run([{', '.join(repr(word) for word in words.split())}, *sys.argv[1:]])".replace("'", '"')
    assert "usage: fairseq-hmrnn average" in run("scripts/average_checkpoints.py", "--help").stdout


def test_old_names_of_shell_scripts_call_the_command(data, tmp_path):
    (tmp_path / "text8").write_text("abc")
    refusals = {
        ("prepare_text8.sh", tmp_path / "text8", tmp_path / "x y"): "has 3 symbols, the published one 100,000,000",
        ("prepare_enwik8.sh",): "the following arguments are required: FILE",
        ("prepare_ptb.sh", tmp_path): f"there is no ptb.train.txt (nor ptb.char.train.txt) in {tmp_path}",
        ("prepare_translation.sh", "de", "de", tmp_path): "SRC and TGT must differ",
        ("train_recipe.sh", "ptb", tmp_path, tmp_path / "save"): f"no {tmp_path}/dict.txt: run fairseq-hmrnn prepare",
        ("train_translation.sh", data, tmp_path / "a:b", "--lr", "1"): "a list of folders",
    }  # fmt: skip
    for arguments, message in refusals.items():
        (line,) = script(*arguments, check=False).splitlines()
        assert line.startswith("fairseq-hmrnn ") and message in line
