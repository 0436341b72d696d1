"""Whole updates in turns: sizes of the LSTMs, and a short run on CPU."""

import re

import pytest
from running import run


def test_gpu_update_has_an_lstm_of_equal_layers_where_they_are_equal(import_benchmark):
    module, model = import_benchmark("gpu_update"), {"parameters": 100_000, "num_symbols": 50}
    recipe = import_benchmark("candidates").Recipe
    for sizes, hidden in (("20,20,20", [20]), ("30,20,20", [])):
        found = module.lstm_sizes(recipe("ptb", [f"model.hidden_sizes='{sizes}'"]), model)
        titles = ["nn_lstm_lm, equal parameters", "nn_lstm_lm, equal layers"]
        assert list(found) == titles[: 1 + len(hidden)]
        assert [found[title]["hidden_size"] for title in titles[1:] if title in found] == hidden


@pytest.mark.slow
def test_gpu_update_times_models_in_turns(data, tmp_path):
    """On CPU, where the same processes make their updates: figures of a row belong together."""
    options = ["--cpu", "--precision", "float32", "--warm-up", 1, "--turns", 1, "--updates", 2, "--out", tmp_path]
    settings = ["dataset.batch_size=4", "model.embed_dim=8", "model.hidden_sizes='16,12,8'"]
    settings += ["task.tokens_per_sample=30"]
    printed = run("scripts/benchmark/gpu_update.py", data, *options, "--", *settings).stdout
    rows = [line.strip("| \n").split(" | ") for line in printed.splitlines() if "float32" in line]
    assert [row[0] for row in rows] == ["hmlstm_lm", "nn_lstm_lm, equal parameters"]
    parameters, ms, speeds = ([float(row[column].replace(",", "")) for row in rows] for column in (2, 3, 4))
    assert parameters[1] / parameters[0] == pytest.approx(1, abs=0.05)
    for milliseconds, speed in zip(ms, speeds):
        assert speed * milliseconds / 1e3 == pytest.approx(4 * 30, rel=0.01), "two whole windows"
    for row, milliseconds in zip(rows, ms):
        ratios = [float(number) for number in re.findall(r"[\d.]+", row[5])]
        assert ratios == pytest.approx([milliseconds / ms[0]] * 3, abs=0.006, rel=0.005), "to two decimals"
    assert rows[0][5].startswith("1.00 (1.00 - 1.00)")


def test_settings_that_the_benchmark_decides_are_refused(data):
    refused = {"dataset.num_workers=2": "it is always dataset.num_workers=0", "common.fp16=true": "give --precision"}
    for setting, why in refused.items():
        result = run("scripts/benchmark/gpu_update.py", data, "--", setting, check=False)
        name = setting.split("=")[0]
        assert result.returncode == 2 and f"{name} cannot be set here: {why}" in result.stdout.splitlines()[-1]
