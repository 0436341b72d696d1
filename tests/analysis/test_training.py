"""Curves of a training's log, in each format that fairseq writes."""

import pytest

from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.analysis.training import plot_training, read_log

SIMPLE = """
2026-01-01 00:00:00 | INFO | train_inner | epoch 001:     50 / 1490 loss=3.1, z1=0.61, z2=0, z1_within=0.55, flush1=0.61, word_f1_1=0.05, wps=9, num_updates=50, lr=0.002
2026-01-01 00:00:01 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 2.5 | z1 0.99 | z2 0.9 | word_f1_1 0.9 | num_updates 60
2026-01-01 00:00:02 | INFO | train_inner | epoch 001:    100 / 1490 loss=2.7, z1=0.2, z2=1e-05, z1_within=0.18, flush1=0.2, word_f1_1=0.85, wps=9, num_updates=100, lr=0.002
"""  # noqa: E501
JSON = """
2026-01-01 00:00:00 | INFO | train_inner | {"epoch": 1, "z1": "0.61", "z2": "0", "z1_within": "0.55", "word_f1_1": "0.05", "num_updates": "50"}
2026-01-01 00:00:01 | INFO | valid | {"epoch": 1, "valid_z1": "0.99", "valid_num_updates": "60"}
2026-01-01 00:00:02 | INFO | train_inner | {"epoch": 1, "z1": "0.2", "z2": "1e-05", "z1_within": "0.18", "word_f1_1": "0.85", "num_updates": "100"}
"""  # noqa: E501
CURVES = {"z1": [(50, 0.61), (100, 0.2)], "z2": [(50, 0), (100, 1e-5)], "word_f1_1": [(50, 0.05), (100, 0.85)]}
CURVES["z1_within"] = [(50, 0.55), (100, 0.18)]


@pytest.mark.parametrize("log", [SIMPLE, JSON], ids=["simple", "json"])
def test_reads_what_was_logged_in_training(log):
    assert read_log(log.splitlines()) == CURVES


def test_updates_that_were_made_again_are_those_of_the_last_time():
    """A training that was stopped goes on from its last checkpoint, in the same log."""
    line = "| INFO | train_inner | epoch 001: z1={}, num_updates={}"
    made = [(0.5, 50), (0.4, 100), (0.3, 150), (0.41, 100), (0.31, 150), (0.2, 200)]
    found = read_log([line.format(*entry) for entry in made])
    assert found == {"z1": [(50, 0.5), (100, 0.41), (150, 0.31), (200, 0.2)]}
    backwards = read_log([line.format(0.2, 200), line.format(0.3, 60), line.format(0.25, 150)])
    assert backwards == {"z1": [(60, 0.3), (150, 0.25), (200, 0.2)]}


def test_updates_are_read_as_fairseq_writes_large_numbers():
    line = "| INFO | train_inner | epoch 001: z1=1e-05, z2=1.5e-05, num_updates=1.23457e+06, lr=0.002"
    assert read_log([line]) == {"z1": [(1234570, 1e-5)], "z2": [(1234570, 1.5e-5)]}


def test_a_log_without_rates_is_refused():
    with pytest.raises(ValueError, match="no boundary rates"):
        read_log(["| INFO | train_inner | epoch 001: 50 / 1490 loss=3.1, num_updates=50"])


def test_draws_every_layer_in_its_colour(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_training(CURVES, str(tmp_path / "rates.svg"))
    assert (tmp_path / "rates.svg").read_bytes().startswith(b"<?xml")
    rates, scores = figure.axes
    first, second = LAYER_COLORS[:2]
    drawn = [(line.get_label(), line.get_color(), line.get_linestyle()) for line in rates.lines]
    assert drawn == [("layer 1", first, "-"), ("layer 1, within lines", first, "--"), ("layer 2", second, "-")]
    assert rates.lines[0].get_xydata().tolist() == [[50, 0.61], [100, 0.2]]
    assert rates.lines[1].get_xydata().tolist() == [[50, 0.55], [100, 0.18]]
    assert scores.lines[0].get_xydata().tolist() == [[50, 0.05], [100, 0.85]]
    both = plot_training({**CURVES, "word_f1_2": CURVES["word_f1_1"]}).axes[1]
    assert [(line.get_label(), line.get_color()) for line in both.lines] == [("layer 1", first), ("layer 2", second)]
    assert len(plot_training({"z1": CURVES["z1"]}).axes) == 1
    with pytest.raises(ValueError, match="suffix"):
        plot_training(CURVES, "rates.gif")
