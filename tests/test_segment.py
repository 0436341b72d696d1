"""The commands `segment` and `plot` as a user runs them, and the reader that both use."""

import io
import json
import os
import re

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from running import run
from small_training import TASK, TRAIN

from fairseq_hmrnn.cli.files import size_of, text_pieces
from fairseq_hmrnn.cli.main import run as run_here
from fairseq_hmrnn.cli.progress import progress_bar
from fairseq_hmrnn.data.characters import encode
from fairseq_hmrnn.inference import lines, loading
from fairseq_hmrnn.inference.boundary_ensemble import combined
from fairseq_hmrnn.inference.lines import LineReader
from fairseq_hmrnn.inference.reader import CharacterReader, Predictions, Reading


@pytest.fixture(scope="module")
def checkpoint(trained):
    return str(trained / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def text(data):
    return (data.parent / "test.txt").read_bytes().decode()


@pytest.fixture(scope="module")
def model(checkpoint):
    return loading.load([checkpoint])


def test_pieces_are_read_as_one_text(model, text):
    whole = model.reader().read_with_predictions(text)
    reader = CharacterReader(model.models[0].decoder, model.src_dict, model.begin, window=50)
    cuts = [0, 1, 60, 61, 200, len(text)]
    pieces = [text[start:stop] for start, stop in zip(cuts, cuts[1:])]
    # Every other piece without predictions: the next one is foretold all the same from where it ended.
    found = [reader.read_with_predictions(p) if n % 2 else (reader.read(p), None) for n, p in enumerate(pieces)]
    for name in Reading._fields:
        together = np.concatenate([getattr(reading, name) for reading, _ in found])
        np.testing.assert_allclose(together, getattr(whole[0], name), atol=1e-5)
    for start, stop, (_, foretold) in zip(cuts, cuts[1:], found):
        for name in Predictions._fields if foretold else ():
            np.testing.assert_allclose(getattr(foretold, name), getattr(whole[1], name)[start:stop], atol=1e-5)


def test_reading_is_what_the_model_computes(checkpoint, model, text):
    reading, foretold = model.reader().read_with_predictions(text)
    (fairseqs,), _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint])
    tokens = torch.tensor([task.source_dictionary.index(symbol) for symbol in ["</s>", *encode(text)]])
    with torch.no_grad():
        logits, extra = fairseqs.eval()(tokens.unsqueeze(0))
    log_probs = logits[0].log_softmax(-1)
    assert np.array_equal(reading.boundaries, extra["trace"].boundaries[0, 1:, :2].numpy())
    surprisal = torch.nn.functional.nll_loss(log_probs[:-1], tokens[1:], reduction="none").numpy()
    np.testing.assert_allclose(foretold.surprisal, surprisal, atol=1e-5)
    np.testing.assert_allclose(foretold.next_surprisal[:-1], surprisal[1:], atol=1e-5)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[1:].numpy()
    np.testing.assert_allclose(foretold.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(reading.norms[-1], [h.norm().item() for h in extra["state"].h], rtol=1e-5)


@pytest.fixture(scope="module")
def ensemble(checkpoint, tmp_path_factory):
    """The checkpoint, and one whose first detector fires more often."""
    state = torch.load(checkpoint)
    state["model"]["decoder.hm_lstm.bias.0"][-1] += 0.4
    other = tmp_path_factory.mktemp("ensemble") / "checkpoint_last.pt"
    torch.save(state, other)
    return [checkpoint, str(other)]


@pytest.mark.parametrize("independent_lines", [False, True])
def test_models_decide_together_by_the_mean_of_their_probabilities(ensemble, text, independent_lines):
    alone = [loading.load([path]).reader(independent_lines).read_with_predictions(text) for path in ensemble]
    reader = loading.load(ensemble).reader(independent_lines)
    (first, before), (second, behind) = alone
    reading, foretold = reader.read_with_predictions(text)
    np.testing.assert_allclose(reading.boundary_probs, (first.boundary_probs + second.boundary_probs) / 2, atol=1e-6)
    assert np.array_equal(reading.boundaries, reading.boundary_probs > 0.5)
    assert not any(np.array_equal(reading.boundaries, one.boundaries) for one in (first, second))
    np.testing.assert_allclose(foretold.entropy, (before.entropy + behind.entropy) / 2, atol=1e-5)
    pieces = loading.load(ensemble).reader(independent_lines).closings([text[:50], text[50:]], lookahead=1)
    closed = np.concatenate([closing.boundaries for closing in pieces])
    if not independent_lines:
        assert np.array_equal(loading.load(ensemble).boundaries(text), reading.boundaries)
    assert np.array_equal(closed, reader.closed_earlier(text, reading.boundaries, 1) > 0.5)


def test_models_that_decide_together(ensemble, text, tmp_path):
    """On the command line, and who cannot."""
    (tmp_path / "text.txt").write_bytes(text.encode())
    printed = run("fairseq-hmrnn", "segment", *ensemble, "--text", tmp_path / "text.txt", "--separator", "\x1f").stdout
    z = loading.load(ensemble).reader().read(text).boundaries[:, 0]
    assert printed == "".join(c + "\x1f" if closes else c for c, closes in zip(text, z))
    late = {"boundary_delay": 1, "boundary_regularizers": "rate+uncertainty,rate"}
    for part, change, message in (
        ("criterion", late, "models of an ensemble must have the same --boundary-delay, not [(0, 0), (1, 1)]"),
        ("model", {"nested_boundaries": True}, "must have the same --nested-boundaries, not [False, True]"),
        ("model", {"top_boundary": True}, "must have the same number of detectors, not [2, 3]"),
        ("dictionary", slice(None, None, -1), f"other.pt has another dictionary than {ensemble[0]}"),
    ):
        state = torch.load(ensemble[1])
        if part == "dictionary":
            state["task_state"]["dictionary"] = state["task_state"]["dictionary"][change]
        else:
            state["cfg"][part].update(change)
        torch.save(state, tmp_path / "other.pt")
        refused = run("fairseq-hmrnn", "segment", ensemble[0], tmp_path / "other.pt", stdin=text, check=False).stdout
        assert message in refused and "Traceback" not in refused


def test_models_decide_together_for_python_and_in_pictures(ensemble, text, tmp_path):
    model, z = loading.load(ensemble), loading.load(ensemble).reader().read(text).boundaries
    ends = [[*np.flatnonzero(column[:-1]) + 1, len(text)] for column in z.T]
    assert model.segment(text) == [[text[a:b] for a, b in zip([0, *layer], layer)] for layer in ends]
    assert model.segment(text) != loading.load(ensemble[:1]).segment(text)
    (tmp_path / "text.txt").write_bytes(text.encode())
    run("fairseq-hmrnn", "plot", *ensemble, "--text", tmp_path / "text.txt", "--html", tmp_path / "b.html")
    marks = [row["marks"] for row in shown_by(tmp_path / "b.html")["rows"]]
    assert marks == ["".join("01"[int(closes)] for closes in column) for column in z.T]


def test_models_that_nest_decide_nested_boundaries():
    """Two of three close both layers: of layer 1 the mean says no, so that layer 2 may not."""
    probs = np.array([[[0.55, 1.0], [0.9, 0.1]], [[0.55, 1.0], [0.9, 0.9]], [[0.0, 0.0], [0.9, 0.9]]])
    assert combined(probs, nested=False)[0].tolist() == [[0, 1], [1, 1]]
    assert combined(probs, nested=True)[0].tolist() == [[0, 0], [1, 1]]


def test_segmenting_computes_no_prediction(checkpoint, text):
    model = loading.load([checkpoint])
    expected = model.boundaries(text)
    model.models[0].decoder.predict = model.models[0].decoder.layer_output = None
    assert torch.equal(model.boundaries(text), expected)
    pieces = [text[:7], text[7:8], text[8:]]
    closings = list(model.reader().closings(pieces, lookahead=3))
    assert "".join(closing.text for closing in closings) == text
    found = np.concatenate([closing.boundaries for closing in closings])
    assert np.array_equal(found[:-3], expected[3:].numpy() > 0) and not found[-3:].any()


def test_segments_as_text_json_and_against_gold(checkpoint, model, text, tmp_path):
    (tmp_path / "text.txt").write_bytes(text.encode())
    arguments = [checkpoint, "--text", tmp_path / "text.txt"]
    as_text = run("fairseq-hmrnn", "segment", *arguments, "--separator", "\x1f").stdout
    assert as_text.replace("\x1f", "") == text
    z = model.reader().read(text).boundaries[:, 0]
    assert as_text == "".join(c + "\x1f" if closes else c for c, closes in zip(text, z))

    as_json = run("fairseq-hmrnn", "segment", checkpoint, "--format", "json", stdin=text).stdout
    records = [json.loads(line) for line in as_json.splitlines()]
    assert "".join(record["text"] for record in records) == text
    stops = [record["stop"] for record in records if 1 in record["layers"]]
    assert stops == (np.flatnonzero(z) + 1).tolist()

    late = run("fairseq-hmrnn", "segment", *arguments, "--separator", "\x1f", "--lookahead", 1).stdout
    assert late == "".join(c + "\x1f" if closes else c for c, closes in zip(text, [*z[1:], 0]))

    (tmp_path / "gold.txt").write_bytes(as_text.encode())
    table = run("fairseq-hmrnn", "segment", *arguments, "--gold", tmp_path / "gold.txt", "--separator", "\x1f").stdout
    rows = [line.split() for line in table.splitlines()]
    assert ["1", "detector"] in [row[:2] for row in rows]
    assert next(row for row in rows if row[:3] == ["1", "detector", "file"])[4:] == ["1.000"] * 13  # itself
    assert float(next(row for row in rows if row[:3] == ["1", "random", "file"])[6]) < 0.8
    assert max(map(len, table.splitlines())) <= 120 and any(row[1:3] == ["entropy", "peaks"] for row in rows)
    (tmp_path / "late.txt").write_bytes(late.encode())
    options = ["--gold", tmp_path / "late.txt", "--separator", "\x1f", "--lookahead", 1, "--no-peaks"]
    rows = [line.split() for line in run("fairseq-hmrnn", "segment", *arguments, *options).stdout.splitlines()]
    assert next(row for row in rows if row[:3] == ["1", "detector", "file"])[4:] == ["1.000"] * 13
    assert not any("peaks" in row for row in rows)


def alone(model, rows, lookahead=0):
    """What a reader of each line by itself finds: boundaries, readings and predictions, of all lines one after the
    other."""
    found = [model.reader().read_with_predictions(line) for line in rows]
    closings = [c for line in rows for c in model.reader().closings([line], lookahead)]
    joined = [type(parts[0])(*map(np.concatenate, zip(*parts))) for parts in zip(*found)]
    return np.concatenate([closing.boundaries for closing in closings]), *joined


@pytest.mark.parametrize("cut", [1, 7, 150, 10**6])
def test_independent_lines_are_read_as_each_alone(model, text, cut, monkeypatch):
    """In batches, sorted by length, by windows shorter than a line, and where pieces end within lines."""
    monkeypatch.setattr(lines, "SYMBOLS", 200)
    text = text[:300] + "\n\na\n" + text[300:600].replace("\n", " ") + "\nx\n" + text[600:900] + "q"
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    for lookahead in (0, 1, 3):
        closed, reading, foretold = alone(model, text.splitlines(keepends=True), lookahead)
        assert 0 < closed.mean() < 1
        reader = LineReader(model.models[0].decoder, model.src_dict, model.begin, window=20)
        closings = list(reader.closings(pieces, lookahead))
        assert "".join(closing.text for closing in closings) == text
        assert np.array_equal(np.concatenate([closing.boundaries for closing in closings]), closed)
    reader = model.reader(independent_lines=True)
    assert reader.boundaries("").shape == (0, closed.shape[1])
    found = zip(*(reader.read_with_predictions(piece) for piece in pieces))
    for parts, expected in zip(found, (reading, foretold)):
        for name in expected._fields:
            together = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_allclose(together, getattr(expected, name), atol=1e-5)


def shown_by(page):
    """The data of a page of `plot --html`."""
    return json.loads(page.read_text("utf-8").split('type="application/json" id="data">')[1].split("</script>")[0])


def test_independent_lines_of_the_command(checkpoint, model, text, tmp_path):
    (tmp_path / "text.txt").write_bytes(text.encode())
    options = ["--independent-lines", "--text", tmp_path / "text.txt", "--lookahead", 1]
    printed = run("fairseq-hmrnn", "segment", checkpoint, *options).stdout
    z = alone(model, text.splitlines(keepends=True), 1)[0][:, 0]
    assert printed == "".join(c + "|" if closes else c for c, closes in zip(text, z))
    assert printed != run("fairseq-hmrnn", "segment", checkpoint, *options[1:]).stdout
    page = tmp_path / "b.html"
    options += ["--html", page, "--gold", "whitespace", "--title", "</script>"]
    told = run("fairseq-hmrnn", "plot", checkpoint, *options, cwd=tmp_path).stdout
    assert str(page) in told and sorted(os.listdir(tmp_path)) == ["b.html", "text.txt"]
    shown = shown_by(page)
    assert shown["text"] == text and shown["title"] == "</script>"
    assert shown["rows"][0]["marks"] == "".join("01"[int(closes)] for closes in z)
    assert [row["name"] for row in shown["rows"]] == ["layer 1", "layer 2", "gold"]


def test_progress_is_shown_on_a_terminal_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, total, hidden, shown in [
        (Terminal(), 10, False, True),
        (Terminal(), None, False, False),
        (Terminal(), 10, True, False),
        (io.StringIO(), 10, False, False),
    ]:
        monkeypatch.setattr("sys.stderr", stream)
        with progress_bar(total, "B", hidden) as progress:
            progress.update(5)
        assert bool(stream.getvalue()) == shown


def test_size_of_what_is_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ka\u00e9\n" * 100_000, encoding="utf-8")
    told = []
    assert "".join(text_pieces(str(path), told.append)) == path.read_text("utf-8")
    assert sum(told) == size_of(str(path)) == 500_000 and len(told) > 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["--layer", "3"], "no layer 3 with a detector: choose 1 to 2"),
        (["--lexicon", "--layer", 2], "--lexicon is of layer 1: leave --layer out"),
        (["--lookahead", "-1"], "--lookahead: must be a whole number from 0 to 1000000, not -1"),
        (["--gold", "gold.txt"], "gold text has 8 characters without its separators, the text has 9"),
        (["--gold", "lines"], "--gold lines: there is no boundary in the text but its ends"),
    ],
)
def test_bad_input(checkpoint, tmp_path, options, message):
    (tmp_path / "gold.txt").write_text("ka |lumo\n")
    result = run("fairseq-hmrnn", "segment", checkpoint, *options, cwd=tmp_path, stdin="ka lumo a", check=False)
    assert result.returncode == 2 and message in result.stdout and "Traceback" not in result.stdout


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("segment", ["--gold", "lines", "--format", "json"], "leave --format json out"),
        ("segment", ["--gold", "lines", "--layer", "2"], "leave --layer out"),
        ("segment", ["--format", "json", "--layer", "1"], "leave --layer out"),
        ("segment", ["--no-peaks"], "--no-peaks requires --gold"),
        ("plot", ["--rates", "r.png"], "--rates requires --log"),
        ("plot", ["--gold", "lines"], "--gold requires --html"),
        ("plot", ["--html", "page.txt"], "suffix must be .html"),
        ("average", ["other.pt", "--last", "2", "--out", "o.pt"], "--last chooses from one folder"),
    ],
)
def test_options_that_would_do_nothing_are_refused(command, options, message, capsys):
    with pytest.raises(SystemExit):
        run_here([command, "none.pt", *options])
    assert message in capsys.readouterr().err


def test_another_models_checkpoint_is_refused(data, tmp_path):
    options = ["--arch", "lstm_lm", "--decoder-embed-dim", 4, "--decoder-hidden-size", 4, "--decoder-out-embed-dim", 4]
    options += ["--optimizer", "adam", "--lr", 0.01, "--batch-size", 8, "--tokens-per-sample", 30, "--cpu"]
    options += ["--max-update", 1, "--disable-validation", "--num-workers", 0, "--save-dir", tmp_path]
    run("fairseq-train", data, *TASK, *options)
    with pytest.raises(ValueError, match="require an HM-LSTM language model"):
        loading.load([str(tmp_path / "checkpoint_last.pt")]).reader()


def test_pictures(checkpoint, trained, tmp_path):
    pytest.importorskip("matplotlib")
    outputs = [tmp_path / name for name in ("b.png", "b.svg", "n.png", "r.svg")]
    options = ["--out", *outputs[:2], "--norms", outputs[2], "--log", trained / "log.txt", "--rates", outputs[3]]
    printed = run("fairseq-hmrnn", "plot", checkpoint, *options, stdin="ka lumo\ntiri ka\n").stdout
    assert all(path.stat().st_size > 1000 for path in outputs)
    assert "layer 2" in printed and str(outputs[3]) in printed
    options = ["--out", outputs[0], "--lookahead", 8]  # nothing lies so far after the text
    printed = run("fairseq-hmrnn", "plot", checkpoint, *options, stdin="ka lumo\n").stdout
    assert "layer 1: no boundary" in printed
    options = ["--out", tmp_path / "none.png", "--log", tmp_path / "none.txt"]
    refused = run("fairseq-hmrnn", "plot", checkpoint, *options, stdin="ka lumo\n", check=False)
    assert refused.returncode == 2 and "none.txt" in refused.stdout and not (tmp_path / "none.png").exists()


def test_segments_with_a_lexicon(checkpoint, model, text, tmp_path):
    """Of all there is of the text at once; where lines end layer 1, and everywhere layer 2, is as it was."""
    (tmp_path / "text.txt").write_bytes(text.encode())

    def segmented(*options):
        """What is printed after the warning that this detector was taught by a rate alone."""
        arguments = [checkpoint, "--text", tmp_path / "text.txt", "--lexicon", *options]
        warning, _, printed = run("fairseq-hmrnn", "segment", *arguments).stdout.partition("\n")
        assert "layer 1 of this model was not trained to find segments" in warning
        return printed

    printed = segmented("--separator", "\x1f")
    assert printed.replace("\x1f", "") == text
    z = model.reader().boundaries(text)
    marks = np.zeros(len(text), dtype=bool)
    marks[np.cumsum([len(part) for part in printed.split("\x1f")])[:-1] - 1] = True
    newline = np.array(list(text)) == "\n"
    edge = newline | np.append(newline[1:], False)
    assert np.array_equal(marks[edge], z[edge, 0] > 0.5) and not np.array_equal(marks, z[:, 0] > 0.5)
    records = list(map(json.loads, segmented("--format", "json").splitlines()))
    assert [r["stop"] for r in records if 1 in r["layers"]] == [
        stop for stop in np.cumsum([len(part) for part in printed.split("\x1f")])[:-1]
    ]
    assert [r["stop"] for r in records if 2 in r["layers"]] == (np.flatnonzero(z[:, 1]) + 1).tolist()
    table = segmented("--gold", "lines", "--no-peaks")
    assert re.search(r"^ 1 with lexicon ", table, re.MULTILINE) and not re.search(r"^ 2 with lex", table, re.MULTILINE)


def test_a_model_without_detectors_is_refused(data, tmp_path):
    options = ["--hidden-sizes", 8, "--boundary-rates", "", "--max-update", 1, "--disable-validation"]
    run("fairseq-train", data, *TASK, *TRAIN, *options, "--save-dir", tmp_path)
    for command in (["segment"], ["plot", "--html", tmp_path / "b.html"]):
        result = run("fairseq-hmrnn", command[0], tmp_path, *command[1:], stdin="ka lumo\n", check=False)
        assert result.returncode == 2 and "has no boundary detector: train two, or --top-boundary" in result.stdout
    assert not (tmp_path / "b.html").exists()


@pytest.mark.slow
def test_the_delay_that_a_detector_was_taught_is_remembered(data, text, tmp_path):
    options = [*TRAIN, "--boundary-regularizers", "rate+lexicon,rate", "--boundary-delay", 2, "--max-update", 2]
    run("fairseq-train", data, *TASK, *options, "--disable-validation", "--save-dir", tmp_path)
    (tmp_path / "text.txt").write_bytes(text.encode())
    arguments = [tmp_path, "--text", tmp_path / "text.txt"]
    printed = [
        run("fairseq-hmrnn", "segment", *arguments, *lookahead).stdout
        for lookahead in ([], ["--lookahead", 2], ["--lookahead", 0])
    ]
    assert printed[0] == printed[1] != printed[2]
    html = ["--html", "b.html"]
    run("fairseq-hmrnn", "plot", *arguments, *html, cwd=tmp_path)
    run("fairseq-hmrnn", "plot", *arguments, "--html", "c.html", "--lookahead", 2, cwd=tmp_path)
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "c.html").read_bytes()
