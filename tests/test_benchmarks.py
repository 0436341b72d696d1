"""The benchmarks' own arithmetic and models, and short runs of them on a tiny text. What they time is no test."""

import contextlib
import csv
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from running import run
from small_texts import dictionary_of
from written_lines import write_unipen

from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.data.handwriting import prepare as prepare_handwriting
from fairseq_hmrnn.data.handwriting.store import Strokes

TINY = ["model.embed_dim=8", "model.hidden_sizes=16,12,8", "model.output_dim=12", "task.tokens_per_sample=30"]
TINY += ["criterion.boundary_rates=.3,.1"]


def test_multiply_adds_are_those_counted_by_hand(import_benchmark):
    """Two layers of 2 and 3 over an input of 5, output module of 7, 11 symbols."""
    arithmetic = import_benchmark("arithmetic")
    # Of ten steps layer 1 updates at 7 and flushes at 3; layer 2 updates at 3, flushes at 1 and copies at 6.
    shares = [arithmetic.LayerShares(0.7, 0.0, 0.3, 1.0), arithmetic.LayerShares(0.3, 0.6, 0.1, 0.3)]
    ten_steps = {
        "recurrent": 9 * 2 * 10 + 13 * 3 * 4,  # every state but copies, each layer's 4H+1 rows
        "top-down": 9 * 3 * 3,
        "bottom-up": 13 * 2 * 3,  # where layer 1 closes a segment
        "layer 1's input": 9 * 5 * 10,
        "detectors": 4 * (2 * 10 + 3 * 3 + 5 * 10 + 10),
        "output module": (7 + 2) * 2 * 10 + (7 + 2) * 3 * 4,
        "softmax layer": 7 * 11 * 10,
    }
    found = arithmetic.hmlstm_multiply_adds(5, [2, 3], 7, 11, shares, detector_hidden=4)
    assert {name: round(10 * number, 6) for name, number in found.items()} == ten_steps
    soft = arithmetic.hmlstm_multiply_adds(5, [2, 3], 7, 11, arithmetic.dense(2))
    assert soft["recurrent"] == 9 * 2 + 13 * 3 and soft["top-down"] == 9 * 3 and soft["bottom-up"] == 13 * 2
    lstm = arithmetic.lstm_multiply_adds(input_size=5, hidden_size=2, num_layers=3, output_size=None, num_symbols=11)
    assert sum(lstm.values()) == 8 * (5 + 2) + 2 * 8 * (2 + 2) + 2 * 11


@pytest.mark.parametrize("parameters", [2_000_000, 8_453_440])
@pytest.mark.parametrize("output_size", [None, 512])
def test_an_lstm_is_given_equal_parameters(import_benchmark, parameters, output_size):
    arithmetic = import_benchmark("arithmetic")
    sizes = {"input_size": 128, "num_layers": 3, "output_size": output_size, "num_symbols": 53}
    hidden = arithmetic.equal_hidden_size(parameters, **sizes)
    modules = [torch.nn.Embedding(53, 128), torch.nn.LSTM(128, hidden, 3)]
    modules += [torch.nn.Linear(hidden, output_size)] if output_size else []
    modules += [torch.nn.Linear(output_size or hidden, 53)]
    found = sum(p.numel() for module in modules for p in module.parameters())
    assert found == arithmetic.lstm_parameters(hidden_size=hidden, **sizes)
    assert abs(found / parameters - 1) < 0.01


def nn_lstm_lm(import_benchmark):
    """A small one over 9 symbols."""
    lm, dictionary = import_benchmark("nn_lstm_lm"), dictionary_of("abcde")
    torch.manual_seed(0)
    cfg = lm.NNLSTMLanguageModelConfig(embed_dim=6, hidden_size=5, num_layers=2, dropout_input=0.0, dropout_output=0.0)
    return lm.NNLSTMLanguageModel(lm.NNLSTMDecoder(cfg, dictionary))


def test_nn_lstm_lm_carries_its_state(import_benchmark):
    """Two windows of a stream are one sequence; a row that is reset, and every row of window 0, starts from zeros."""
    model, tokens = nn_lstm_lm(import_benchmark), torch.randint(2, 9, (3, 8))
    for mode in (True, False):
        model.train(mode)
        whole, _ = model(tokens)
        for _ in range(2):  # the second time window 0 forgets where the stream ended
            first, _ = model(tokens[:, :5], stream="train", window=0)
            reset = torch.tensor([False, True, False])
            second, _ = model(tokens[:, 5:], stream="train", window=1, reset=reset)
            torch.testing.assert_close(first, whole[:, :5])
            torch.testing.assert_close(second[::2], whole[::2, 5:])
            alone = whole[1:2, 5:] if not mode else model(tokens[1:2, 5:])[0]  # evaluation never forgets
            torch.testing.assert_close(second[1:2], alone)


class Trainer:
    """Stand-ins for what the breakdown calls of fairseq: a model, a criterion over it, and gradients to forget."""

    def __init__(self, model):
        self.model, self.criterion = model, torch.nn.Module()
        self.criterion.forward = lambda tokens: -model.get_normalized_probs(model(tokens), log_probs=True).mean()

    def get_model(self):
        return self.model

    def get_criterion(self):
        return self.criterion

    def zero_grad(self):
        self.model.zero_grad()


def test_breakdown_knows_the_parts_of_both_passes(import_benchmark, monkeypatch):
    """Also what a kernel counts of itself; and nothing of it is left."""
    model, tokens = nn_lstm_lm(import_benchmark), torch.randint(2, 9, (3, 8))
    trainer, counts = Trainer(model), iter([1.0, 3.5])
    names = ("forward products", "backward gates")
    monkeypatch.setattr(
        "fairseq_hmrnn.ops.cpu.kernel_seconds", lambda: dict.fromkeys(names, next(counts)), raising=False
    )
    with import_benchmark("breakdown").Breakdown(trainer) as found:
        trainer.zero_grad()
        trainer.criterion(tokens).backward()
    parts = ("embedding", "recurrence", "softmax")
    assert all(found.seconds[part] > 0 < found.seconds[f"{part}, backward"] for part in parts)
    assert found.seconds["criterion"] > 0 < found.seconds["optimizer"]
    kernel = {name: seconds for name, seconds in found.seconds.items() if name.endswith(("of it products", "gates"))}
    assert kernel == {"recurrence, of it products": 2.5, "recurrence, backward, of it gates": 2.5}
    assert "zero_grad" not in vars(trainer) and not any(module._forward_hooks for module in model.modules())


def test_settings_reach_either_command(import_benchmark, tmp_path):
    """A recipe and a user's settings as hydra takes them, and as the flags of fairseq-train for an LSTM."""
    settings = ["criterion.boundary_rates=.3,.1", "dataset.batch_size=7", "optimization.lr=[0.5]", "common.bf16=true"]
    settings += ["model.dropout_input=.1", "model.dropout_output=.3", "task.window_jitter=.2"]
    recipe = import_benchmark("candidates").Recipe("ptb", settings)
    arguments = recipe.hmlstm_command(tmp_path, tmp_path)
    assert {"criterion.boundary_rates='.3,.1'", "dataset.batch_size=7"} <= set(arguments)
    flags = " ".join(recipe.lstm_command("nn_lstm_lm", 10, tmp_path, tmp_path))
    expected_flags = ["--batch-size 7", "--lr 0.5", "--bf16", "--stateful", "--clip-norm 1.0", "--optimizer adam"]
    expected_flags += [
        "--adam-betas (0.9, 0.999)",
        "--tokens-per-sample 100",
        "--dropout-input 0.1",
        "--dropout-output 0.3",
    ]
    expected_flags += ["--hidden-size 10", "--window-jitter 0.2"]
    for needed in expected_flags:
        assert re.search(rf"{re.escape(needed)}( |$)", flags), needed
    assert "boundary" not in flags and "slope" not in flags
    flags = " ".join(recipe.lstm_command("lstm_lm", 10, tmp_path, tmp_path))
    assert "--stateful" not in flags and "--window-jitter" not in flags, "it carries no state"
    assert "--decoder-dropout-in 0.1 --decoder-dropout-out 0.3" in flags
    flags = " ".join(recipe.lstm_command("lstm_lm", 10, tmp_path, tmp_path, dropout=0.0))
    assert "--decoder-dropout-in 0.1 --decoder-dropout-out 0.0" in flags
    flags = " ".join(recipe.lstm_command("nn_lstm_lm", 10, tmp_path, tmp_path, dropout=0.2))
    assert "--dropout-input 0.1 --dropout-output 0.2" in flags


def main_of(module, monkeypatch, capsys, arguments):
    """What a benchmark prints that runs in this process."""
    monkeypatch.setattr("sys.argv", list(map(str, [f"{module.__name__}.py", *arguments])))
    module.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_training_benchmark_on_a_tiny_text(import_benchmark, data, tmp_path, monkeypatch, capsys):
    """Its figures belong together: rates, arithmetic, limit and share, and the parts are those of an update."""
    options = ["--turns", 1, "--updates", 2, "--warm-up", 1, "--profiled", 1, "--threads", 1, "--batch-size", 4]
    options += ["--out", tmp_path, "--csv", tmp_path / "table.csv", "--beside", "nn_lstm_lm"]
    peaks = iter([2.0, 3.0])  # before the turns and after; test_benchmark_measures.py has how they are measured
    monkeypatch.setattr(
        import_benchmark("peak"), "measure", lambda *_: {"gflops": next(peaks), "shape": [9, 9, 9], "by": "mm"}
    )
    printed = main_of(import_benchmark("training"), monkeypatch, capsys, [data, "ptb", *TINY, *options])
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["hmlstm_lm", "nn_lstm_lm"]
    for row in rows.values():
        seconds, speed, gflop, limit, share, peak = (
            float(row[name]) * scale
            for name, scale in (("ms_an_update", 1e-3), ("characters_a_second", 1), ("gflop_an_update", 1),
                                ("ms_limit", 1e-3), ("share_of_limit", 1), ("peak_gflops", 1))
        )  # fmt: skip
        assert seconds * speed == pytest.approx(4 * 30, rel=0.01), "two whole windows"
        assert peak == 3
        assert limit == pytest.approx(gflop / peak, rel=0.01) and share == pytest.approx(limit / seconds, rel=0.01)
        # hmlstm_lm reads its embedding as a table, within the recurrence.
        own = {"output module"} if row["candidate"] == "hmlstm_lm" else {"embedding"}
        parts = {"recurrence", "softmax", "criterion", *own}
        for part in [*parts, *(f"{part}, backward" for part in parts), "optimizer", "fairseq, rest"]:
            assert float(row[f"ms {part}"]) > 0, part
    own = rows["hmlstm_lm"]
    for layer in (1, 2, 3):
        assert sum(float(own[f"{name}{layer}"]) for name in ("update", "copy", "flush")) == pytest.approx(1, abs=1e-3)
    assert float(own["copy1"]) == 0 == float(own["flush3"]) and float(own["below1"]) == 1
    for layer in (2, 3):  # UPDATE and the FLUSHes below which a segment closes are the steps that look down
        assert float(own[f"update{layer}"]) <= float(own[f"below{layer}"]) + 0.05
    assert "share of the limit" in printed and "best product in float32" in printed


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["tpb"], "argument recipe: invalid choice: 'tpb'"),
        (["ptb", "output_dim=3"], "'output_dim=3' is no setting: give SECTION.NAME=VALUE"),
        (["ptb", "common.bf16=true"], "common.bf16 cannot be set here: give --precision"),
        (["ptb", "--batch-size", "0"], "argument --batch-size: must be a whole number from 1 to 65536, not 0"),
        (["ptb", "--turns", "0"], "argument --turns: must be a whole number from 1 to"),
        (["ptb", "--checkpoint", "none.pt"], "argument --checkpoint: there is no file none.pt"),
        (["ptb", "--against", "no-such-commit"], "there is no commit 'no-such-commit' here"),
    ],
)
def test_training_benchmark_checks_its_options(import_benchmark, monkeypatch, tmp_path, wrong, message):
    for name in ("dict.txt", "train.idx"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr("sys.argv", ["training.py", str(tmp_path), *wrong])
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        import_benchmark("training").main()


def test_training_benchmark_says_why_a_candidate_does_not_train(data, tmp_path):
    options = ["--threads", 1, "--beside", "--out", tmp_path, "--batch-size", 60000]
    refused = run("scripts/benchmark/training.py", data, "ptb", *TINY, *options, check=False).stdout
    said = r"^training: error: hmlstm_lm does not train \(all of it: .*\): .*[Ee]rror: train has \d+ symbols"
    assert re.search(said, refused, re.M)
    assert "Traceback" not in refused


def test_language_model_benchmark_on_a_tiny_text(
    import_benchmark, forked_commands, data, tmp_path, monkeypatch, capsys
):
    """Speeds are taken as they were found before; a training that is at its end is not started again."""
    speeds = {"hmlstm_lm": [0.5, 20000, 30], "nn_lstm_lm": [1.5, 20000, 30]}
    (tmp_path / "speeds.json").write_text(json.dumps(speeds))
    arguments = [data, "--out", tmp_path, "--csv", tmp_path / "curves.csv"]
    arguments += ["--updates", 2, "--validate-every", 1, "--seeds", 1, "--beside", "nn_lstm_lm"]
    in_this_process = import_benchmark("language_model"), monkeypatch, capsys
    main_of(*in_this_process, [*arguments, "--plot", tmp_path / "curves.png"])
    logs = {path: path.read_bytes() for path in tmp_path.glob("*/train.log")}
    again = main_of(*in_this_process, arguments)
    assert len(logs) == 2 and all(path.read_bytes() == log for path, log in logs.items())
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(row["model"], row["updates"], row["seconds"]) for row in rows]
    assert points == [(m, str(u), str(s * u)) for m, s in (("hmlstm_lm", 0.5), ("nn_lstm_lm", 1.5)) for u in (1, 2)]
    assert all(1 < float(row["bpc"]) < 8 for row in rows)
    assert f"nn_lstm_lm seed 1: 2 updates, 3 s, {float(rows[-1]['bpc']):.3f}" in again
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_handwriting_benchmark_on_a_tiny_corpus(import_benchmark, forked_commands, tmp_path, monkeypatch, capsys):
    """Equal parameters, every contestant once; what is done is not done again."""
    prepare_handwriting(
        str(write_unipen(tmp_path / "corpus")), str(tmp_path / "bin"), {"valid": 0.2, "test": 0.2}, progress=False
    )
    arguments = [tmp_path / "bin", "--out", tmp_path / "out", "--updates", 3]
    arguments += ["--seeds", 1, "--hidden", 12, "--batch-size", 4]
    in_this_process = import_benchmark("handwriting"), monkeypatch, capsys
    printed = main_of(*in_this_process, arguments)
    rows = re.findall(r"^\| (\S.*?) \| ([\d,]+) \| (-?\d+) \| \3 \| (.*) \|$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["HM-LSTM", "HM-LSTM, annealed slope", "nn.LSTM"] and rows[2][3] == "-"
    sizes = [int(row[1].replace(",", "")) for row in rows]
    assert sizes[0] == sizes[1] and sizes[2] == pytest.approx(sizes[0], rel=0.06)
    assert printed.count("| HM-LSTM | 2 | ") == 2  # one for each alignment
    log = (tmp_path / "out" / "nn.lstm.1" / "train.log").read_text(encoding="utf-8")
    assert "valid_log_likelihood" in log and "pen_up_f1_1" not in log, "it has no boundaries"
    logs = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/train.log")}
    assert len(logs) == 3 and printed.splitlines()[-1] in main_of(*in_this_process, arguments)
    assert all(path.read_bytes() == log for path, log in logs.items())


LOG = """\
[2026-01-01 00:00:00,000][train_inner][INFO] - epoch 001:    100 / 200 loss=3.2, bpc=3.25, num_updates=100, wall=50
2026-01-01 00:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 3 | bpc 3.0 | num_updates 150
2026-01-01 00:00:00 | INFO | train_inner | epoch 001:    180 / 200 loss=2.9, bpc=2.95, num_updates=180, wall=90
2026-01-01 00:00:00 | INFO | train_inner | epoch 001:    180 / 200 loss=2.8, bpc=2.75, num_updates=180, wall=120
[2026-01-01 00:00:00,000][valid][INFO] - epoch 002 | valid on 'valid' subset | loss 2 | bpc 2.5 | num_updates 300
"""


def test_curve_reads_a_log_of_several_runs(import_benchmark):
    rows = import_benchmark("curve").read(LOG.splitlines())
    found = [(row["split"], row["update"], row["epoch"], row["bpc"]) for row in rows]
    training = [("training", 100, 0.5, 3.25), ("training", 180, 0.9, 2.75)]
    assert found == [*training, ("validation", 150, 0.75, 3.0), ("validation", 300, 1.5, 2.5)]
    assert [row["hours"] * 3600 for row in rows] == pytest.approx([50, 120, 50, 120])
    timed = import_benchmark("curve").read(LOG.splitlines(), seconds=2.0)
    assert [row["hours"] * 3600 for row in timed] == pytest.approx([200, 360, 300, 600])


@pytest.mark.parametrize("above", [0.0, 1.6])
def test_curve_draws_what_is_near_the_best_validation(import_benchmark, above, tmp_path):
    """Also of a text of more bits."""
    curve = import_benchmark("curve")
    log = LOG + LOG.splitlines()[0].replace("3.25", "4.5").replace("=100", "=50") + "\n"
    rows = [{**row, "bpc": row["bpc"] + above} for row in curve.read(log.splitlines())]
    found = [row["update"] for row in curve.shown(rows)]
    assert found == ([100, 180, 150, 300] if not above else [50, 100, 180, 150, 300])
    curve.plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_detector_is_brought_to_a_rate(import_benchmark):
    calibration, bias = import_benchmark("calibration"), torch.nn.Parameter(torch.zeros(3))
    seen = []

    def measured():
        seen.append(float(bias[-1]))
        return 1 / (1 + math.exp(-seen[-1]))

    calibration.set_rate(bias, 0.2, measured)
    assert float(bias[-1]) == pytest.approx(math.log(0.2 / 0.8), abs=2e-3) and len(seen) == 14
    for rate in (1, 0):
        calibration.set_rate(bias, rate, measured)
        assert measured() == pytest.approx(rate)
    assert not bias.detach()[:-1].any()


def test_the_closest_size(import_benchmark):
    closest_size = import_benchmark("calibration").closest_size
    for parameters in range(1, 300):
        for start, step in ((1, 1), (4, 2)):
            expected = min(range(start, 50, step), key=lambda size: abs(size**2 - parameters))
            assert closest_size(parameters, lambda size: size**2, start, step) == expected


def test_ratios_are_taken_within_a_turn(import_benchmark, monkeypatch, capsys, data):
    """A machine that becomes slower does not change them."""
    assert import_benchmark("turns").ratio([1, 4, 40], [2, 2, 10]) == (2, 0.5, 4)
    assert import_benchmark("turns").ratio([6], [2, 1, 1]) == (3, 3, 3), "measured in the first turn alone"
    ranks, speeds = import_benchmark("ranks"), iter([100, 180, 10, 19, 50, 90])
    monkeypatch.setattr(ranks, "train", lambda args, rest, count: ([3.0], next(speeds)))
    monkeypatch.setattr("sys.argv", ["ranks.py", str(data), "--turns", "3"])
    ranks.main()
    assert capsys.readouterr().out.splitlines()[-2:] == ["| 1 | 50 | 1.00 | 0.000 |", "| 2 | 90 | 1.80 | 0.000 |"]


def test_translation_s_contestants_get_their_learning_rate_and_dropout(import_benchmark):
    models = import_benchmark("translation_models")
    assert models.options_of("lstm", ".4", 0.001, 0.2)[-4:] == ["--dropout", "0.2", "--lr", "0.001"]
    for name, options in models.MODELS.items():
        given = models.options_of(name, ".3", dropout=0.25)
        assert given[: len(options.split())] == options.format(rate=".3").split()
        assert given.count("0.25") == len(models.DROPOUTS[options.split()[1]])


def test_translation_reads_hours_speeds_and_scores_from_logs(import_benchmark):
    translation = import_benchmark("translation")
    log = "".join(
        f"2024-01-01 | INFO | train | epoch {epoch:03d} | loss 3.1 | ups 2 | train_wall {seconds} | wall 99\n"
        for epoch, seconds in ((1, 1800), (2, 700), (2, 900))  # the second epoch was interrupted
    )
    log += "2024 | INFO | train_inner | epoch 001: 1 / 9 loss=3, wps=100, ups=2\n"
    log += "2024 | INFO | train_inner | epoch 001: 2 / 9 loss=3, wps=300.5, ups=2\n"
    hours, speed = translation.training_time(log)
    assert hours == pytest.approx(0.75) and speed == pytest.approx(200.25)
    printed = "S-1\tx\nT-1\tthe tree is green .\nH-1\t-0.5\t_the\nD-1\t-0.5\tthe tree is green .\n"
    printed += "T-0\ta house on the hill\nD-0\t-1e-05\ta house on the hill\n"
    (bleu, bleu_signature), (chrf, chrf_signature) = translation.scores(printed)
    assert bleu == pytest.approx(100) and chrf == pytest.approx(100)
    assert "tok:13a" in bleu_signature and "nc:6" in chrf_signature
    assert translation.scores(printed.replace("-1e-05\ta house", "-1e-05\tone house"))[0][0] < 90


def test_a_candidate_that_has_ended_says_why(import_benchmark, monkeypatch, tmp_path):
    contestants = import_benchmark("contestants")
    (tmp_path / "train.log").write_text("ValueError: of an earlier run\n")
    (tmp_path / "worker.py").write_text("import sys\nopen(sys.argv[1], 'a').write('ValueError: it cannot train\\n')\n")
    monkeypatch.setattr(contestants, "WORKER", tmp_path / "worker.py")
    contestant = contestants.Contestant("lstm", "lstm", "float32", 1, [], tmp_path, {**os.environ})
    with pytest.raises(UserError, match="^lstm does not train .*: ValueError: it cannot train$"):
        with contextlib.closing(contestant):
            contestant._process.wait()
            contestant.make(3)
    assert "earlier" not in contestant.log.read_text()


def test_handwriting_scores_lines_where_their_ends_are_known(import_benchmark):
    """Of three lines the second has no marks, and boundaries everywhere."""
    handwriting = import_benchmark("handwriting")
    starts, known = np.array([0, 4, 8, 12]), np.array([3, 0, 1], dtype=np.uint8)
    marks, steps = np.array([0, 3, 0, 0] + [0] * 4 + [1, 0, 0, 0], dtype=np.uint8), np.zeros((12, 3))
    steps[[5, 6], 2] = 1
    closed = np.array([[0, 1, 0, 1] + [1] * 4 + [1, 0, 0, 1]]).T > 0
    strokes = Strokes(steps, starts, marks, known, *[np.array([""] * 3)] * 3)
    found = handwriting.f1_of(strokes, closed)
    scores = {name: found[f"last point|{name}|1|layer"] for name in handwriting.GOLD}
    assert scores == pytest.approx({"pen-ups": 4 / 7, "characters": 1, "words": 1})
    assert {name.split("|")[1] for name in handwriting.f1_of(strokes._replace(known=known * 0), closed)} == {"pen-ups"}
