"""What benchmarks keep between runs: results of other settings are never taken for those asked for."""

import argparse
import csv
import itertools
import json
import sys

import pytest
import torch
from running import ROOT

from fairseq_hmrnn.cli.errors import UserError


class Begun(Exception):
    """Raised in place of the work of a benchmark."""


def begin(*arguments):
    raise Begun


HANDWRITING = [["--seeds", "7"], ["--report"]], [["--hidden", "32"], ["--lr", ".5"], ["--boundary-rates", ".1,.1"]]
LANGUAGE_MODEL = (
    [["--seeds", "7", "--updates", "7"]],
    [["--recipe", "ptb"], ["--to-the-end", "--recipe", "ptb_3h"], ["--validate-every", "7"], ["--lstm-dropout", "0"]],
)
TRANSLATION = (
    [["--updates", "7", "--beam", "7"], ["--lr", "lstm=.5"]],
    [
        *(["--lr", "hmlstm=.5"], ["--dropout", "hmlstm=.5"], ["--patience", "3"], ["--rate", ".1"], ["--average", "3"]),
        ["--", "--max-tokens", "7"],
    ],
)


@pytest.mark.parametrize(
    "name, begins, others",
    [
        ("handwriting", "train", HANDWRITING),
        ("language_model", "speeds_of", LANGUAGE_MODEL),
        ("translation", "train", TRANSLATION),
    ],
)
def test_results_of_other_settings_or_data_are_not_taken(import_benchmark, monkeypatch, tmp_path, name, begins, others):
    """More runs, and what only shows them, are no other settings."""
    module, data = import_benchmark(name), tmp_path / "data"
    data.mkdir()
    for file in ("dict.txt", "dict.en.txt", "spm.en.model", "train.bin"):
        (data / file).write_text("1")

    monkeypatch.setattr(module, begins, begin)

    def main(*options):
        own = ["--models", "hmlstm"] if name == "translation" else []
        monkeypatch.setattr("sys.argv", [name, str(data), "--out", str(tmp_path / "out"), *own, *options])
        module.main()

    taken, refused = others
    with pytest.raises(Begun):
        main()
    for options in taken:
        with pytest.raises(UserError if "--report" in options else Begun, match="^$|nothing is done yet"):
            main(*options)
    for options in refused:
        with pytest.raises(UserError, match="out.* was trained with .*, not .*: give another --out$"):
            main(*options)
    (data / "preprocess.log").write_text("the same data")
    with pytest.raises(Begun):
        main()
    (data / "train.bin").write_text("2")
    with pytest.raises(UserError, match=r"was trained with data (\w+), not data (?!\1)\w+: give another --out$"):
        main()


def test_generation_makes_no_use_of_checkpoints_of_other_settings(import_benchmark, monkeypatch, tmp_path):
    generation = import_benchmark("generation")

    def main(*options):
        monkeypatch.setattr("sys.argv", ["generation.py", "--folder", str(tmp_path), *options])
        generation.main()

    monkeypatch.setattr(generation, "prepare_data", begin)
    for same in ([], ["--length", "7", "--turns", "7", "--batch", "64", "8"]):
        with pytest.raises(Begun):
            main(*same)
    for other in (["--hidden", "8"], ["--rates", ".5"], ["--normalization", "none"], ["--batch", "65"]):
        with pytest.raises(UserError, match=r" was trained with .*, not .*: give another --folder$"):
            main(*other)


def test_generation_makes_checkpoints_anew_until_they_are_calibrated(import_benchmark, monkeypatch, tmp_path):
    generation, made = import_benchmark("generation"), []
    monkeypatch.setattr("sys.argv", ["generation.py", "--folder", str(tmp_path / "made")])
    monkeypatch.setattr(generation, "prepare_data", lambda *arguments: made.append("data"))

    def make_checkpoints(args, folder):
        assert not (folder / "hmlstm_lm").exists(), "fairseq-train would go on from a calibrated one"
        trained_models(generation, folder)
        made.append("checkpoints")

    def interrupted(*arguments):
        raise Begun

    monkeypatch.setattr(generation, "make_checkpoints", make_checkpoints)
    monkeypatch.setattr(generation, "calibrate", interrupted)
    monkeypatch.setattr(generation.checkpoints, "check_checkpoint", interrupted)
    with pytest.raises(Begun):
        generation.main()
    monkeypatch.setattr(generation, "calibrate", lambda args, path: made.append(path.parent.name))
    for _ in range(2):
        with pytest.raises(Begun):
            generation.main()
    assert made == ["data", "checkpoints"] * 2 + ["hmlstm_lm"]


def trained_models(generation, folder):
    """Files in the places of all that generation.py measures."""
    for path in (folder / "data" / "dict.txt", *(generation.checkpoint_of(folder, name) for name in generation.MODELS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("trained for days")
    (folder / "test.txt").write_text("text")


@pytest.mark.parametrize("lacking", ["hmlstm_lm/checkpoint_last.pt", "lstm_lm/checkpoint_last.pt", "test.txt", None])
def test_generation_leaves_models_that_it_has_not_made(import_benchmark, monkeypatch, tmp_path, lacking):
    """Those of an earlier form of it are measured as they are, any other folder is refused."""
    generation = import_benchmark("generation")
    monkeypatch.setattr("sys.argv", ["generation.py", "--folder", str(tmp_path)])

    def measured(path):
        raise Begun

    monkeypatch.setattr(generation.checkpoints, "check_checkpoint", measured)
    trained_models(generation, tmp_path)
    if lacking:
        (tmp_path / lacking).unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = f"^there is no {tmp_path / lacking}, .*: give another --folder$" if lacking else "^$"
    with pytest.raises(UserError if lacking else Begun, match=message):
        generation.main()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    after.pop(tmp_path / "settings.json", None if lacking else b"")
    assert after == before


def test_handwriting_is_scored_again_by_another_version(import_benchmark, monkeypatch, tmp_path, capsys):
    """Before anything is trained; and --report leaves such results out."""
    handwriting, made = import_benchmark("handwriting"), []
    (tmp_path / "data").mkdir()
    result = {"log_likelihood": 5.0, "lines": 1, "parameters": 9, "rates": [0.5], "f1": {}}
    runs = {name: tmp_path / "out" / name for name in ("hm-lstm.1", "hm-lstm-annealed-slope.1", "nn.lstm.1")}
    for folder in runs.values():
        folder.mkdir(parents=True)
        (folder / "checkpoint_last.pt").touch()
        (folder / "result.json").write_text(json.dumps({**result, "scoring": 1}))
    (runs["hm-lstm.1"] / "result.json").write_text(json.dumps(result))
    (runs["nn.lstm.1"] / "result.json").unlink()

    def evaluate(args, folder):
        made.append(folder.name)
        return {**result, "scoring": handwriting.SCORING, "log_likelihood": 7.0}

    monkeypatch.setattr(handwriting, "evaluate", evaluate)
    monkeypatch.setattr(handwriting, "train", lambda args, contestant, seed, folder: made.append(contestant))

    def main(*options):
        own = [str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--seeds", "1", *options]
        monkeypatch.setattr("sys.argv", ["handwriting.py", *own])
        handwriting.main()
        return capsys.readouterr()

    with pytest.raises(UserError, match=r"^nothing is done yet in .* \(2 left out, .*: run it without --report .*\)$"):
        main("--report")
    (runs["hm-lstm.1"] / "checkpoint_last.pt").rename(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="hm-lstm.1 was scored by another version .* no checkpoint_last.pt to"):
        main()
    (tmp_path / "checkpoint").rename(runs["hm-lstm.1"] / "checkpoint_last.pt")
    with (runs["hm-lstm.1"] / "result.json").open() as before:
        assert main().out.count("| 9 | 7 | 7 | 0.500 |") == 3
        assert json.load(before) == result, "written in place: a kill would leave half a file"
    for _ in range(2):
        told = main()
        assert told.out.count("| 9 | 7 | 7 | 0.500 |") == 3 and not told.err
        assert made == ["hm-lstm.1", "hm-lstm-annealed-slope.1", "nn.LSTM", "nn.lstm.1"]
    (runs["nn.lstm.1"] / "result.json").write_text(json.dumps(result))
    told = main("--report")
    assert "nn.LSTM" not in told.out and told.out.count("| 7 | 7 |") == 2
    assert told.err.startswith("handwriting: 1 left out, scored by another version of this script: ")


def test_handwriting_reports_all_seeds_that_are_there(import_benchmark, monkeypatch, tmp_path, capsys):
    handwriting = import_benchmark("handwriting")
    result = {"scoring": handwriting.SCORING, "lines": 1, "parameters": 9, "rates": [0.5], "f1": {}}
    for name, likelihood in (("hm-lstm.1", 5.0), ("hm-lstm.12", 7.0), ("nn.lstm.4", 3.0), ("notes.8", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({**result, "log_likelihood": likelihood}))

    def told(*options):
        monkeypatch.setattr("sys.argv", ["handwriting.py", "data", "--out", str(tmp_path), "--report", *options])
        handwriting.main()
        return capsys.readouterr().out

    assert "| HM-LSTM | 9 | 6 | 5, 7 | 0.500 |\n| nn.LSTM | 9 | 3 | 3 | 0.500 |\n" in told()
    assert "| HM-LSTM | 9 | 5 | 5 | 0.500 |\n\n" in told("--seeds", "1")


def language_model_args(module, monkeypatch, out, *options):
    """As the command reads them, of a prepared folder."""
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "dict.txt").touch()
    monkeypatch.setattr("sys.argv", ["language_model.py", str(out / "data"), "--out", str(out), *options])
    return module.parse_args()


def test_language_model_times_all_models_in_one_session(import_benchmark, monkeypatch, tmp_path):
    """Also those that have a figure of before, and of a call's models alone."""
    module, timed, seconds = import_benchmark("language_model"), [], itertools.count(1)
    args = language_model_args(module, monkeypatch, tmp_path)

    def speed(model, equal_to, args):
        timed.append((model, equal_to))
        return [float(next(seconds)), 100, 9]

    monkeypatch.setattr(module, "speed", speed)
    before = {"hmlstm_lm": [70.0, 100, 9], "lstm_lm": [80.0, 100, 9]}
    (tmp_path / "speeds.json").write_text(json.dumps(before))
    assert module.speeds_of(["hmlstm_lm", "lstm_lm"], args) == before and not timed
    with (tmp_path / "speeds.json").open() as file:
        found = module.speeds_of(["hmlstm_lm", "nn_lstm_lm"], args)
        assert json.load(file) == before, "written in place: a kill would leave half a file"
    assert found == {"hmlstm_lm": [3.0, 100, 9], "nn_lstm_lm": [4.0, 100, 9]}
    assert timed == [("hmlstm_lm", None), ("nn_lstm_lm", [100, 9])] * 2
    assert module.speeds_of(["hmlstm_lm"], args) == {"hmlstm_lm": [3.0, 100, 9]} and len(timed) == 4
    assert module.speeds_of(["hmlstm_lm", "lstm_lm"], args)["lstm_lm"] == [8.0, 100, 9], "not that of before"


def test_language_model_takes_seconds_from_figures_that_are_not_rounded(import_benchmark, monkeypatch, tmp_path):
    """The slower the model, the coarser are the updates a second of fairseq's log."""
    module = import_benchmark("language_model")
    args = language_model_args(module, monkeypatch, tmp_path)
    records = [{"ups": "0.13", "wpb": "3200", "wps": wps} for wps in ("412.3", "400", "402.1")]
    lines = "".join(f"2026 | INFO | train_inner | {json.dumps(record)}\n" for record in records)

    def train(model, equal_to, folder, log, options, args):
        log.write_text(lines)
        return "(embed_tokens): Embedding(53, 8)\nnum. shared model params: 1,234 (num. trained: 1,234)\n"

    monkeypatch.setattr(module, "train", train)
    seconds, *sizes = module.speed("hmlstm_lm", None, args)
    assert seconds == pytest.approx(3200 / 402.1) and sizes == [1234, 53]


def test_language_model_makes_no_curve_shorter(import_benchmark, monkeypatch, tmp_path):
    """Of updates; of seconds a curve ends where they do."""
    module = import_benchmark("language_model")
    folder = tmp_path / "nn_lstm_lm.2"
    folder.mkdir()
    records = [{"valid_num_updates": str(updates), "valid_loss": "2.5"} for updates in (200, 400)]
    (folder / "train.log").write_text("".join(f"2026 | INFO | valid | {json.dumps(record)}\n" for record in records))
    monkeypatch.setattr(module, "speeds_of", begin)
    for options in (["--updates", "400"], ["--updates", "300", "--seeds", "1"], ["--seconds", "1"]):
        language_model_args(module, monkeypatch, tmp_path, *options)
        with pytest.raises(Begun):
            module.main()
    language_model_args(module, monkeypatch, tmp_path, "--updates", "399")
    with pytest.raises(UserError, match="nn_lstm_lm.2 was trained for 400 updates: give as many --updates, or another"):
        module.main()


def test_generation_takes_batches_of_whole_prompts(import_benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["generation.py", "--folder", str(tmp_path / "out"), "--batch", "3", "64"])
    with pytest.raises(UserError, match="^--batch: give sizes that divide the largest, 64 "):
        import_benchmark("generation").main()
    assert not (tmp_path / "out").exists()


def test_gpu_keeps_the_rows_of_settings_that_are_done(import_benchmark, monkeypatch, tmp_path):
    gpu, table = import_benchmark("gpu"), tmp_path / "table.csv"
    monkeypatch.setattr(gpu, "hm_lstm_triton", gpu.hm_lstm_triton or "installed")
    settings = iter([[["bf16", 8]], [["bf16", 9], ["bf16", 10]]])

    def measured_rows(*arguments):
        for rows in settings:
            return rows
        raise Begun

    monkeypatch.setattr(gpu, "measured_rows", measured_rows)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--tiny", "--csv", str(table)])
    with pytest.raises(Begun):
        gpu.main()
    with open(table, newline="") as file:
        assert list(csv.reader(file)) == [gpu.COLUMNS, ["bf16", "8"], ["bf16", "9"], ["bf16", "10"]]


def test_generation_counts_new_symbols_alone(import_benchmark):
    generation = import_benchmark("generation")
    assert generation.new_symbols_a_second(208.0, 200) == pytest.approx(200)


def test_stability_makes_a_run_for_every_setting(import_benchmark, monkeypatch, tmp_path):
    stability, made = import_benchmark("stability"), []
    monkeypatch.setattr(stability, "run", lambda data, *settings: made.append(settings[1:]) or [0] * 8)

    def main(*options):
        own = ["--out", tmp_path / "rows.csv", "--hidden", 4, "--layer-norm", 1, "--seeds", 1, *options]
        monkeypatch.setattr("sys.argv", ["stability.py", *map(str, own)])
        stability.main()

    for options, count in (([], 1), ([], 1), (["--updates", 3], 2), (["--batch-size", 2], 3), (["--batch-size", 2], 3)):
        main(*options)
        assert len(made) == count
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [(row["updates"], row["batch_size"]) for row in csv.DictReader(file)] == [
            ("2000", "4"), ("3", "4"), ("2000", "2"),
        ]  # fmt: skip
    (tmp_path / "rows.csv").write_text("hidden,layer_norm\n")
    with pytest.raises(UserError, match="rows.csv has other columns: give another --out$"):
        main()


VALIDATION = (
    "2026 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 3 | ppl 8.0 | num_updates {} | best_loss 3\n"
)


def test_translation_averages_by_a_command_that_starts(import_benchmark, monkeypatch, tmp_path):
    translation, commands, begun = import_benchmark("translation"), import_benchmark("commands"), []

    def command(name, *arguments, log):
        begun.append([*commands.fairseq_command(name), *map(str, arguments)])
        return commands.command(name, *arguments, log=log) if "average" in arguments else ""

    monkeypatch.setattr(translation, "command", command)
    data, folder = tmp_path / "data", tmp_path / "lstm"
    data.mkdir()
    folder.mkdir()
    (data / "spm.de.model").touch()
    state = torch.load(ROOT / "tests" / "checkpoints" / "hmlstm_lstm.pt")
    weight = "decoder.fc_out.bias"
    for updates, value in ((2, 1.0), (4, 4.0)):
        state["model"][weight].fill_(value)
        torch.save(state, folder / f"checkpoint_1_{updates}.pt")
    args = argparse.Namespace(data=data, out=tmp_path, patience=3, average=2, beam=2)
    _, checkpoint = translation.translate("lstm", args)
    assert (torch.load(checkpoint)["model"][weight] == 2.5).all()
    average, generate = begun
    assert average[:4] == [sys.executable, "-m", "fairseq_hmrnn", "average"]
    assert "from fairseq_cli.generate import cli_main" in generate[2] and str(checkpoint) in generate
    with pytest.raises(ValueError, match="none of fairseq's commands"):
        commands.fairseq_command(sys.executable)


def test_translation_trains_no_model_further_than_asked(import_benchmark, monkeypatch, tmp_path):
    translation, made = import_benchmark("translation"), []
    monkeypatch.setattr(translation, "command", lambda *arguments, log: made.append(log))
    (tmp_path / "lstm").mkdir()
    log = tmp_path / "lstm" / "train.log"
    log.write_text("".join(VALIDATION.format(updates) for updates in (500, 1000)))
    args = argparse.Namespace(data=tmp_path, out=tmp_path, rate=".4", lr=[], dropout=[], patience=None, updates=1000)
    assert translation.train("lstm", args, [], []) == log.read_text() and not made
    args.updates = 1001
    translation.train("lstm", args, [], [])
    assert made == [log]
    args.updates = 999
    with pytest.raises(UserError, match="lstm was trained for 1000 updates: give as many --updates, or another --out$"):
        translation.train("lstm", args, [], [])


def test_curve_reads_updates_as_fairseq_writes_large_numbers(import_benchmark):
    line = "| INFO | train_inner | epoch 001: 50 / 1000 bpc=2.5, num_updates=1.23457e+06, wall=7200"
    (row,) = import_benchmark("curve").read([line], None)
    assert (row["update"], row["bpc"], row["hours"]) == (1234570, 2.5, 2.0)
