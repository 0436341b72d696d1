"""Unsupervised, a small model finds the words of a language that it only ever saw without separators."""

import re

import pytest
from running import run
from small_training import TASK

from fairseq_hmrnn.cli.main import run as run_command

MODEL = ["--arch", "hmlstm_lm", "--embed-dim", "16", "--hidden-sizes", "64,32,32", "--output-dim", "32"]
TRAIN = ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", "steps:.22,steps:.08"]
TRAIN += ["--boundary-regularizers", "rate+bidirectional", "--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1"]
TRAIN += ["--batch-size", "16", "--tokens-per-sample", "60", "--max-update", "300", "--disable-validation", "--cpu"]
TRAIN += ["--num-workers", "0", "--seed", "1"]


def f1(table, layer, name, alignment):
    """Boundary F1 of a row of the table of `segment --gold`, or of signals.py."""
    row = re.search(rf"^ +{layer} {name} +{alignment} +[0-9.]+ +[0-9.]+ +[0-9.]+ +([0-9.]+)", table, re.MULTILINE)
    return float(row.group(1))


@pytest.mark.slow
def test_words_and_phrases_are_found_better_than_by_chance(tmp_path, import_benchmark, monkeypatch, capsys):
    """By detectors, and by what they listened to."""
    run("fairseq-hmrnn", "prepare", "synthetic", "--dest", tmp_path, "--train-lines", 1000, "--valid-lines", 60)
    run("fairseq-hmrnn", "prepare", "text", tmp_path / "train.txt", tmp_path / "valid.txt", "--dest", tmp_path / "bin")
    run("fairseq-train", tmp_path / "bin", *TASK, *MODEL, *TRAIN, "--save-dir", tmp_path)
    for layer, level, margin in ((1, "words", 0.45), (2, "phrases", 0.6)):
        options = ["--text", tmp_path / "valid.txt", "--gold", tmp_path / f"valid.{level}.txt"]
        table = run("fairseq-hmrnn", "segment", tmp_path / "checkpoint_last.pt", *options).stdout
        chance = f1(table, layer, "random", "file")
        assert f1(table, layer, "detector", "file") > chance + margin, table
        monkeypatch.setattr("sys.argv", ["signals.py", str(tmp_path / "checkpoint_last.pt"), *map(str, options)])
        import_benchmark("signals").main()
        signals = capsys.readouterr().out
        assert f1(signals, layer, "bidirectional, highest", "file") > chance + margin, signals


def test_texts_that_are_there_are_replaced_only_when_told_to(tmp_path, capsys):
    (tmp_path / "valid.txt").write_text("mine\n")
    prepare = ["prepare", "synthetic", "--dest", str(tmp_path), "--train-lines", "2", "--valid-lines", "1"]
    with pytest.raises(SystemExit):
        run_command(prepare)
    assert "has data in it already: give another --dest, or --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"valid.txt": "mine\n"}
    (tmp_path / "bin").mkdir()
    run_command([*prepare, "--overwrite"])
    assert (tmp_path / "valid.txt").read_text() != "mine\n" and (tmp_path / "bin").is_dir()
