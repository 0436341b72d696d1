"""The benchmarks of long memory: their tasks have answers, their models are what they are said to be, and a text with
resets is scored exactly."""

import csv
import itertools
import math
import sys

import pytest
import torch
from running import run

from fairseq_hmrnn.cli.errors import UserError

TINY = "--hidden 6 --updates 3 --batch-size 4 --train-gap 12 --gaps 12 40 --samples 70 --threads 1".split()


def draw(task, gap=12, size=6, test=False):
    return task.draw(size, gap, torch.Generator().manual_seed(3), test)


def test_recall_asks_for_the_value_of_a_key(import_benchmark):
    tasks = import_benchmark("long_memory_tasks")
    inputs, answers = draw(tasks.build_task("recall", 2))
    assert inputs.shape == (4 + 1 + 12 + 2, 6) and answers.shape == (1, 6)
    for sequence, answer in zip(inputs.t().tolist(), answers[0].tolist()):
        facts = dict(zip(sequence[0:4:2], sequence[1:4:2]))
        first_value = 2 + tasks.KINDS
        assert facts[sequence[-1]] - first_value == answer
        assert not set(sequence[4:-2]) & set(range(1, first_value + tasks.KINDS)), "distractors are no facts"


def test_copying_asks_for_the_items_in_order(import_benchmark):
    inputs, answers = draw(import_benchmark("long_memory_tasks").build_task("copying", 3), size=40)
    assert inputs.shape == (12 + 3 + 3, 40) and (inputs[-3:] == 1).all()
    items = [[symbol - 2 for symbol in sequence[:-3] if symbol] for sequence in inputs.t().tolist()]
    assert items == answers.t().tolist()
    assert len({tuple(row.nonzero().squeeze(1).tolist()) for row in inputs[:-3].t()}) > 20, "places differ"


def test_adding_asks_for_the_sum_of_marked_numbers(import_benchmark):
    task = import_benchmark("long_memory_tasks").build_task("adding")
    inputs, answers = draw(task, gap=13)
    for numbers, marks, answer in zip(inputs[..., 0].t(), inputs[..., 1].t(), answers[0]):
        assert numbers[marks == 1].sum() == pytest.approx(answer.item(), abs=1e-6)
        assert marks[:6].sum() == 1 == marks[6:].sum()
    off = answers + torch.tensor([0.09, -0.09, 0.11, -0.11, 0, 1.0])
    assert task.right(off.unsqueeze(-1), answers) == pytest.approx(0.5)


def test_digits_are_those_of_scikit_learn(import_benchmark):
    datasets = pytest.importorskip("sklearn.datasets")
    task = import_benchmark("long_memory_tasks").build_task("digits")
    known = {tuple(image.tolist()): (index, digit) for index, (image, digit) in enumerate(zip(*digits_of(datasets)))}
    for test in (False, True):
        inputs, answers = draw(task, gap=5, size=20, test=test)
        assert inputs.shape == (64 + 5 + 1, 20, 2) and inputs[64:, :, 0].eq(0).all()
        for pixels, answer in zip(inputs[:64, :, 0].t(), answers[0].tolist()):
            index, digit = known[tuple((pixels * 16).round().tolist())]
            assert digit == answer and (index % 5 == 0) == test, "a test image is never trained on"


def digits_of(datasets):
    found = datasets.load_digits()
    return found.data, found.target.tolist()


def test_digits_without_scikit_learn_say_what_to_install(import_benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="^the task digits requires scikit-learn: pip install scikit-learn$"):
        import_benchmark("long_memory_tasks").build_task("digits")


@pytest.mark.parametrize("name", ["hm_lstm", "lstm_chrono", "gru"])
def test_a_sequence_may_be_cut_anywhere(import_benchmark, monkeypatch, name):
    """Models carry their state from call to call, answers that lie on both sides of a border among them."""
    models, tasks = import_benchmark("long_memory_models"), import_benchmark("long_memory_tasks")
    task = tasks.build_task("copying", 3)
    torch.manual_seed(5)
    model = models.Model(models.CONTESTANTS[name], task, 7, 100).double()
    inputs, answers = draw(task)
    whole, penalty = model(inputs, len(answers), 150)
    for steps in (1, 5, 17):
        monkeypatch.setattr(models, "STEPS", steps)
        parts, penalty_of_parts = model(inputs, len(answers), 150)
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(penalty_of_parts, penalty)
    assert model(inputs, len(answers))[1] == 0, "no penalty outside training"


def test_penalties_are_those_of_the_criterion(import_benchmark):
    """`rate` by hand, and `cost` with a weight on its way from 0."""
    models, task = import_benchmark("long_memory_models"), import_benchmark("long_memory_tasks").build_task("recall")
    for name, update in (("hm_lstm", 0), ("hm_lstm_cost", 100)):
        torch.manual_seed(1)
        contestant = models.CONTESTANTS[name]
        model = models.Model(contestant, task, 9, 100)
        inputs, answers = draw(task)
        boundaries = model.recurrence(model.embed(inputs)).boundaries
        z1, z2 = boundaries[..., 0].mean().item(), boundaries[..., 1].mean().item()
        term = models.parse_terms(contestant.regularizers, models.parse_rates(".2,.05"))[0][0]
        expected = (z1 - 0.2) ** 2 + (z2 - 0.05) ** 2 if name == "hm_lstm" else term.end / 2 * (z1 + z2)
        assert 0 < expected == pytest.approx(model(inputs, len(answers), update)[1].item())


def test_a_slope_grows_with_updates_and_is_kept_in_evaluation(import_benchmark):
    models, task = import_benchmark("long_memory_models"), import_benchmark("long_memory_tasks").build_task("recall")
    torch.manual_seed(1)
    model = models.Model(models.CONTESTANTS["hm_lstm_slope"], task, 9, 100)
    inputs, answers = draw(task)
    model(inputs, len(answers), 500)
    probs = [model.recurrence(model.embed(inputs), slope=slope).boundary_probs for slope in (3.0, 1.0)]
    assert torch.equal(model.read(inputs).boundary_probs, probs[0]) and not torch.equal(*probs)
    model(inputs, len(answers), 2000)
    assert model.slope.slope == 5


def test_chrono_initialisation_sets_the_gates(import_benchmark):
    """The forget bias is the logarithm of a time between 1 and the longest, the input bias its negative."""
    lstm = torch.nn.LSTM(5, 400, 2)
    import_benchmark("long_memory_models").start_gates(lstm, 200)
    for layer in range(2):
        bias = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
        (i, f), rest = bias[:800].detach().split(400), bias[800:]
        assert torch.equal(i, -f) and rest.eq(0).all()
        assert f.exp().min() >= 1 and 190 < f.exp().max() <= 199 and f.exp().mean() == pytest.approx(100, rel=0.15)
    import_benchmark("long_memory_models").start_gates(lstm, None)
    bias = lstm.bias_ih_l1 + lstm.bias_hh_l1
    assert bias[400:800].eq(1).all() and bias[:400].eq(0).all() and bias[800:].eq(0).all()


def test_the_transformer_sees_its_window_and_no_later_step(import_benchmark):
    models, task = import_benchmark("long_memory_models"), import_benchmark("long_memory_tasks").build_task("recall")
    torch.manual_seed(1)
    model = models.Model(models.CONTESTANTS["transformer"], task, 8, 100).eval()
    inputs, _ = draw(task, gap=300)
    answer, _ = model(inputs, 1)
    torch.testing.assert_close(model(inputs[-models.WINDOW :], 1)[0], answer)
    assert not torch.allclose(model(inputs[1 - models.WINDOW :], 1)[0], answer)
    x, changed = torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    changed[:5] = x[:5]
    (before, _), (after, _) = model.recurrence(x), model.recurrence(changed)
    torch.testing.assert_close(after[:5], before[:5])
    assert not torch.allclose(after[5], before[5])


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_contestants_have_equal_parameters(import_benchmark, name):
    models, task = import_benchmark("long_memory_models"), import_benchmark("long_memory_tasks").build_task("recall")
    parameters = models.Model(models.CONTESTANTS["hm_lstm"], task, 32, 100).num_parameters
    hidden = models.equal_size(models.CONTESTANTS[name], task, parameters, 100)
    assert models.Model(models.CONTESTANTS[name], task, hidden, 100).num_parameters == pytest.approx(
        parameters, rel=0.03
    )


def test_long_memory_benchmark_goes_on_where_it_stopped(import_benchmark, monkeypatch, tmp_path):
    out, picture = tmp_path / "rows.csv", tmp_path / "picture.png"

    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["long_memory.py", *TINY, *map(str, arguments)])
        import_benchmark("long_memory").main()

    options = ["--out", out, "--tasks", "recall", "adding", "--seeds", 1, "--contestants"]
    run("scripts/benchmark/long_memory.py", *TINY, *options, "hm_lstm_cost")
    first = out.read_text()
    main(*options, "hm_lstm_cost", "gru", "--plot", picture)
    assert out.read_text().startswith(first), "runs that were done are not done again"
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["task"], row["contestant"]) for row in rows]
    assert found == [("recall", "hm_lstm_cost"), ("adding", "hm_lstm_cost"), ("recall", "gru"), ("adding", "gru")]
    assert all(0 <= float(row["gap40"]) <= 1 and float(row["ms12"]) > 0 for row in rows)
    assert [row["items"] for row in rows] == ["1", "0", "1", "0"]
    assert picture.stat().st_size > 1000
    for more, count in ((["--items", 2], 5), (["--items", 2], 5), (["--samples", 8], 6)):
        main("--out", out, "--tasks", "recall", "--seeds", 1, "--contestants", "gru", *more)
        with open(out, newline="") as file:
            row = list(csv.DictReader(file))[-1]
        assert bool(row["ms12"]) == (row["samples"] == "70") and row["gap12"], "no whole batch, no time"
        assert len(out.read_text().splitlines()) == 1 + count, "other settings are other rows"
    drawn = []
    monkeypatch.setattr(import_benchmark("long_memory"), "plot", lambda rows, gaps, path: drawn.extend(rows))
    main(*options, "gru", "--plot", picture)
    assert [row["contestant"] for row in drawn] == ["hm_lstm_cost"] * 2 + ["gru"] * 2
    assert {(row["items"], row["samples"]) for row in drawn} == {("1", "70"), ("0", "70")}
    with pytest.raises(UserError, match="rows.csv has other columns: give another --out$"):
        main("--out", out, "--gaps", 20)


@pytest.mark.parametrize("name, read", [("transformer", 256), ("gru", 405)])
def test_milliseconds_are_of_the_steps_that_are_read(import_benchmark, monkeypatch, name, read):
    long_memory, models = import_benchmark("long_memory"), import_benchmark("long_memory_models")
    task = import_benchmark("long_memory_tasks").build_task("recall")
    assert len(task.draw(1, 400, torch.Generator(), True).inputs) == 405
    model = models.Model(models.CONTESTANTS[name], task, 8, 100)
    ticks = itertools.count()
    monkeypatch.setattr(long_memory.time, "process_time", lambda: next(ticks))  # a call takes one second
    for samples in (64, 64 + 2):  # of whole batches alone
        assert long_memory.measure(model, task, 400, samples)[1] == pytest.approx(1000 / read)
    assert long_memory.measure(model, task, 400, 2)[1] is None


def test_detectors_are_shut_for_a_while(import_benchmark):
    models, why = import_benchmark("long_memory_models"), import_benchmark("long_memory_why")
    task = import_benchmark("long_memory_tasks").build_task("recall")
    torch.manual_seed(2)
    recurrence = models.Model(models.CONTESTANTS["hm_lstm"], task, 8, 100).recurrence
    x, before = torch.randn(30, 4, 8), [parameter.clone() for parameter in recurrence.parameters()]
    assert (recurrence(x).boundaries[..., :2].mean((0, 1)) > 0.05).all()
    for layer, other in ((0, 1), (1, 0)):
        with why.shut(recurrence, (layer,)):
            recurrence.bias[other].detach()[-1] += 0.1  # of another detector, and not put back
            rates = recurrence(x).boundaries.mean((0, 1))
        assert rates[layer] == 0 < rates[other]
        recurrence.bias[other].detach()[-1] -= 0.1
    for parameter, found in zip(before, recurrence.parameters()):
        torch.testing.assert_close(found, parameter)


def test_what_can_be_read_from_a_state(import_benchmark):
    why, generator = import_benchmark("long_memory_why"), torch.Generator().manual_seed(0)
    answers = torch.randint(8, (200,), generator=generator)
    noise = torch.randn(200, 12, generator=generator)
    codes = torch.randn(8, 12, generator=generator)
    assert why.readable(codes[answers] + 0.1 * noise, answers) > 0.95
    assert why.readable(noise, answers) < 0.3


def test_why_looks_at_a_model_while_it_trains(import_benchmark, monkeypatch, tmp_path):
    options = "--updates 4 --every 2 --hidden 8 --batch-size 4 --gap 150 --samples 16 --seeds 1 --threads 1".split()
    options += ["--contestants", "hm_lstm", "hm_lstm_cost", "--out", tmp_path / "why.csv"]
    options += ["--plot", tmp_path / "why.png"]
    monkeypatch.setattr("sys.argv", ["long_memory_why.py", *map(str, options)])
    import_benchmark("long_memory_why").main()
    with open(tmp_path / "why.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["contestant"], row["update"]) for row in rows] == [
        (name, update) for name in ("hm_lstm", "hm_lstm_cost") for update in ("2", "4")
    ]
    shares = [name for name in rows[0] if name.startswith(("right", "z", "layer"))]
    assert {"right_shut12", "z2", "layer3_10", "layer1_150"} <= set(shares) and "layer1_500" not in shares
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in shares)
    assert (tmp_path / "why.png").stat().st_size > 1000
    monkeypatch.setattr("sys.argv", [*sys.argv, "--lr", "0.1"])
    import_benchmark("long_memory_why").main()
    with open(tmp_path / "why.csv", newline="") as file:
        assert [row["lr"] for row in csv.DictReader(file)] == ["0.002"] * 4 + ["0.1"] * 4
    drawn = []
    monkeypatch.setattr(import_benchmark("long_memory_why"), "plot", lambda rows, path: drawn.extend(rows))
    import_benchmark("long_memory_why").main()
    assert [row["lr"] for row in drawn] == ["0.1"] * 4
    monkeypatch.setattr("sys.argv", [*sys.argv, "--lr", "0.2", "--every", "9"])
    import_benchmark("long_memory_why").main()
    assert [(row["lr"], row["update"]) for row in drawn[4:]] == [("0.2", "4")] * 2, "the last update is looked at"
    monkeypatch.setattr("sys.argv", [*sys.argv, "--gap", "20"])
    with pytest.raises(UserError, match="why.csv has other columns: give another --out$"):
        import_benchmark("long_memory_why").main()


@pytest.fixture(scope="module")
def nn_lstm(data, tmp_path_factory):
    """Folder of an nn_lstm_lm after 3 updates."""
    folder = tmp_path_factory.mktemp("nn_lstm")
    options = "--task hmlstm_language_modeling --arch nn_lstm_lm --embed-dim 8 --hidden-size 12 --num-layers 2 "
    options += "--optimizer adam --lr 0.01 --batch-size 8 --tokens-per-sample 30 --cpu --num-workers 0 --max-update 3"
    run("fairseq-train", data, "--user-dir", "scripts/benchmark/nn_lstm_lm", *options.split(), "--save-dir", folder)
    return folder


@pytest.mark.slow
def test_past_scores_a_text_with_resets(import_benchmark, data, trained, nn_lstm, tmp_path):
    """Against one call for every piece; without a reset, against fairseq-hmrnn evaluate."""
    table = tmp_path / "past.csv"
    whole = run("fairseq-hmrnn", "evaluate", trained, data, "--subset", "valid").stdout
    symbols, expected = int(whole.split()[1]), float(whole.split("(base 2): ")[1].split(",")[0])
    intervals = ["--intervals", 7, 100, symbols]
    printed = run(
        "scripts/benchmark/past.py", data, trained, nn_lstm, *intervals, "--csv", table, "--plot", tmp_path / "past.png"
    ).stdout
    assert printed.startswith(f"{symbols} symbols of valid, bits per symbol\n")
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["reset every", str(trained), str(nn_lstm)]
    assert [row[0] for row in rows[1:]] == ["7", "100", str(symbols)]
    assert float(rows[3][1]) == pytest.approx(expected, abs=2e-4)
    past = import_benchmark("past")
    for column, folder in ((1, trained), (2, nn_lstm)):
        decoder, *dictionaries = past.load(str(folder), str(data))
        windows = list(past.TextWindows(str(data), "valid", *dictionaries, symbols))
        source, target = windows[0]
        for row, interval in ((1, 7), (2, 100)):
            nats = 0.0
            for x, y in zip(source.split(interval, dim=1), target.split(interval, dim=1)):
                with torch.no_grad():
                    log_probs = decoder.get_normalized_probs(decoder(x), log_probs=True)
                nats -= log_probs.gather(2, y.unsqueeze(2)).sum().item()
            assert float(rows[row][column]) == pytest.approx(nats / symbols / math.log(2), abs=2e-4)


def test_past_refuses_an_interval_longer_than_the_text(data, trained):
    refused = run("scripts/benchmark/past.py", data, trained, "--intervals", 50, "--first", 40, check=False).stdout
    assert refused.splitlines()[-1] == "past: error: valid has 40 symbols to score: give --intervals of at most as many"
