"""scripts/segment.py and plot_boundaries.py as a user runs them, and the reader behind both."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TASK, run
from fairseq import checkpoint_utils

from fairseq_hmrnn.data.characters import encode
from fairseq_hmrnn.inference.reader import CharacterReader, Reading


@pytest.fixture(scope="module")
def checkpoint(trained):
    return str(trained / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def text(data):
    return (data.parent / "test.txt").read_bytes().decode()


def test_pieces_are_read_as_one_text(checkpoint, data, text):
    whole = CharacterReader(checkpoint).read(text)
    reader = CharacterReader(checkpoint, str(data), max_steps=50)
    cuts = [0, 1, 60, 61, 200, len(text)]
    pieces = Reading.join([reader.read(text[start:stop]) for start, stop in zip(cuts, cuts[1:])])
    assert np.array_equal(pieces.boundaries, whole.boundaries)
    for ours, theirs in zip(pieces, whole):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_reading_is_what_the_model_computes(checkpoint, text):
    reading = CharacterReader(checkpoint).read(text)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint])
    tokens = torch.tensor([task.source_dictionary.index(symbol) for symbol in ["</s>", *encode(text)]])
    with torch.no_grad():
        logits, extra = model.eval()(tokens.unsqueeze(0))
    log_probs = logits[0].log_softmax(-1)
    assert np.array_equal(reading.boundaries, extra["boundaries"][0, 1:, :2].numpy())
    surprisal = torch.nn.functional.nll_loss(log_probs[:-1], tokens[1:], reduction="none").numpy()
    np.testing.assert_allclose(reading.surprisal, surprisal, atol=1e-5)
    np.testing.assert_allclose(reading.next_surprisal[:-1], surprisal[1:], atol=1e-5)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[1:].numpy()
    np.testing.assert_allclose(reading.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(reading.norms[-1], [h.norm().item() for h in extra["state"].h], rtol=1e-5)


def test_segments_as_text_json_and_against_gold(checkpoint, text, tmp_path):
    (tmp_path / "text.txt").write_bytes(text.encode())
    arguments = [checkpoint, "--text", tmp_path / "text.txt"]
    as_text = run("scripts/segment.py", *arguments, "--separator", "\x1f").stdout
    assert as_text.replace("\x1f", "") == text
    z = CharacterReader(checkpoint).read(text).boundaries[:, 0]
    assert as_text == "".join(c + "\x1f" if closes else c for c, closes in zip(text, z))

    as_json = run("scripts/segment.py", checkpoint, "--format", "json", stdin=text).stdout
    records = [json.loads(line) for line in as_json.splitlines()]
    assert "".join(record["text"] for record in records) == text
    stops = [record["stop"] for record in records if 1 in record["layers"]]
    assert stops == (np.flatnonzero(z) + 1).tolist()

    late = run("scripts/segment.py", *arguments, "--separator", "\x1f", "--lookahead", 1).stdout
    assert late == "".join(c + "\x1f" if closes else c for c, closes in zip(text, [*z[1:], 0]))

    (tmp_path / "gold.txt").write_bytes(as_text.encode())
    table = run("scripts/segment.py", *arguments, "--gold", tmp_path / "gold.txt", "--separator", "\x1f").stdout
    rows = [line.split() for line in table.splitlines()]
    assert ["1", "detector"] in [row[:2] for row in rows]
    assert next(row for row in rows if row[:2] == ["1", "detector"])[5:] == ["1.000"] * 5  # itself
    assert float(next(row for row in rows if row[:2] == ["1", "random"])[7]) < 0.8
    (tmp_path / "late.txt").write_bytes(late.encode())
    options = ["--gold", tmp_path / "late.txt", "--separator", "\x1f", "--lookahead", 1]
    rows = [line.split() for line in run("scripts/segment.py", *arguments, *options).stdout.splitlines()]
    assert next(row for row in rows if row[:2] == ["1", "detector"])[5:] == ["1.000"] * 5


@pytest.mark.parametrize(
    "options, message",
    [
        (["--layer", "3"], "no layer 3 with a detector: choose 1 to 2"),
        (["--lookahead", "-1"], "--lookahead: must be a whole number from 0 to 1000000, not -1"),
        (["--gold", "gold.txt"], "gold text has 8 characters without its separators, the text has 9"),
    ],
)
def test_bad_input(checkpoint, tmp_path, options, message):
    (tmp_path / "gold.txt").write_text("ka |lumo\n")
    result = run("scripts/segment.py", checkpoint, *options, cwd=tmp_path, stdin="ka lumo a", check=False)
    assert result.returncode == 2 and message in result.stdout and "Traceback" not in result.stdout


@pytest.mark.parametrize(
    "script, options, message",
    [
        ("segment.py", ["--gold", "lines", "--format", "json"], "leave --format json out"),
        ("segment.py", ["--gold", "lines", "--layer", "2"], "leave --layer out"),
        ("segment.py", ["--format", "json", "--layer", "1"], "leave --layer out"),
        ("plot_boundaries.py", ["--rates", "r.png"], "--rates requires --log"),
        ("average_checkpoints.py", ["other.pt", "--last", "2", "--out", "o.pt"], "--last chooses from one folder"),
    ],
)
def test_options_that_would_do_nothing_are_refused(script, options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "none.pt", *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    assert message in capsys.readouterr().err


def test_another_models_checkpoint_is_refused(data, tmp_path):
    options = ["--arch", "lstm_lm", "--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--decoder-out-embed-dim", 4]
    options += ["--optimizer", "adam", "--lr", 0.01, "--batch-size", 8, "--tokens-per-sample", 30, "--cpu"]
    options += ["--max-update", 1, "--disable-validation", "--save-dir", tmp_path]
    run("fairseq-train", data, *TASK, *options)
    with pytest.raises(ValueError, match="is not an HM-LSTM language model"):
        CharacterReader(str(tmp_path / "checkpoint_last.pt"))


def test_pictures(checkpoint, trained, tmp_path):
    pytest.importorskip("matplotlib")
    outputs = [tmp_path / name for name in ("b.png", "b.svg", "n.png", "r.svg")]
    options = ["--out", *outputs[:2], "--norms", outputs[2], "--log", trained / "log.txt", "--rates", outputs[3]]
    printed = run("scripts/plot_boundaries.py", checkpoint, *options, stdin="ka lumo\ntiri ka\n").stdout
    assert all(path.stat().st_size > 1000 for path in outputs)
    assert "layer 2" in printed and str(outputs[3]) in printed
    options = ["--out", outputs[0], "--lookahead", 8]  # nothing lies so far behind the text
    printed = run("scripts/plot_boundaries.py", checkpoint, *options, stdin="ka lumo\n").stdout
    assert "layer 1: no boundary" in printed
    options = ["--out", tmp_path / "none.png", "--log", tmp_path / "none.txt"]
    refused = run("scripts/plot_boundaries.py", checkpoint, *options, stdin="ka lumo\n", check=False)
    assert refused.returncode == 2 and "none.txt" in refused.stdout and not (tmp_path / "none.png").exists()
