"""The measuring parts of benchmarks at tiny sizes: their figures belong together. How long it takes is no test."""

import argparse
import contextlib
import csv
import functools
import json
import math
import os
import time
from types import SimpleNamespace

import pytest
import torch

from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.ops import cpu

COLLAPSE = {"hidden_sizes": "6,5,4", "slope": 1.0, "detector_bias": 0.0, "boundary_rates": "steps:.2,steps:.05"}
COLLAPSE.update(boundary_regularizers="rate", updates=4, batch_size=3, steps=8)


def test_recurrence_measures_every_candidate_in_every_task(import_benchmark, monkeypatch, tmp_path, capsys):
    """Only where it computes what its name says: single steps always skip."""
    options = "--layers 2 --hidden 4 --steps 3 --batch 2 --rates .5 --repeats 1 --threads 1 --csv rows.csv --with"
    candidates = {
        "bfloat16": "kernel, bfloat16", "dense": "kernel, no skip", "python": "python path", "reference": "reference"
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recurrence.py", *options.split(), *candidates])
    import_benchmark("recurrence").main()
    assert "parity with the reference" in capsys.readouterr().out
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["nn.LSTM", "kernel", *candidates.values()]
    expected = [(task, name) for task in ("train", "sequence", "steps") for name in names]
    expected.remove(("steps", "kernel, no skip"))
    assert [(row["task"], row["candidate"]) for row in rows] == expected
    assert all(float(row["ratio"]) == 1 for row in rows if row["candidate"] == "nn.LSTM")
    assert all(float(row["ratio_min"]) == float(row["ratio_max"]) > 0 for row in rows)


def test_stability_trains_and_tells_what_happened(import_benchmark):
    stability = import_benchmark("stability")
    data = torch.randint(8, (90, 2), generator=torch.Generator().manual_seed(1))
    row = stability.run(data, 8, 6, 1, 60, 1, 0.0, 3)
    found = dict(zip(stability.COLUMNS[len(stability.SETTINGS) :], map(float, row)))
    assert len(row) == len(found) == 8
    assert (found["made"], found["non_finite"]) == (3, 0) and found["largest_norm"] >= found["median_norm"] > 0
    assert found["bpc"] == pytest.approx(math.log2(8), abs=0.7), "three updates learn next to nothing of noise"
    assert 0 <= found["rate1"] <= 1 and 0 <= found["rate2"] <= 1 and found["seconds"] >= 0


def test_stability_counts_a_gradient_that_is_not_finite(import_benchmark, monkeypatch):
    stability, norms = import_benchmark("stability"), iter([2.0, math.inf])
    monkeypatch.setattr(stability.nn.utils, "clip_grad_norm_", lambda *given: torch.tensor(next(norms)))
    data = torch.randint(8, (90, 2))
    made, non_finite, largest, *_ = stability.run(data, 8, 6, 1, 60, 1, 0.0, 3)
    assert (made, non_finite, float(largest)) == (1, 1, 2)


def test_collapse_finds_the_rates_of_both_detectors(import_benchmark, monkeypatch):
    """The mean over a window's updates: never and always where biases make it so."""
    collapse = import_benchmark("collapse")
    monkeypatch.setattr(collapse, "WINDOW", 2)
    dictionary = collapse.CharacterDictionary()
    for symbol in collapse.encode(collapse.SENTENCE):
        dictionary.add_symbol(symbol)
    tokens = torch.tensor([dictionary.index(symbol) for symbol in collapse.encode(collapse.SENTENCE * 2)])

    def rates(normalization="layer", **changes):
        return collapse.train(argparse.Namespace(**{**COLLAPSE, **changes}), normalization, 1, tokens, dictionary)

    found = rates()
    assert found.shape == (2, 2) and (found >= 0).all() and (found <= 1).all() and 0 < found.mean() < 1
    assert torch.equal(found, rates()), "a seed decides"
    assert rates("none", detector_bias=-20.0).eq(0).all() and rates("none", detector_bias=20.0).eq(1).all()


def test_memory_measures_every_number_of_chunks(import_benchmark, monkeypatch, capsys):
    memory, options = import_benchmark("memory"), "--steps 20 --batch 2 --hidden 8 --turns 1 --threads 1".split()
    monkeypatch.setattr("sys.argv", ["memory.py", *options, "--chunks", "4", "--in-process"])
    memory.main()
    found = json.loads(capsys.readouterr().out)
    assert found["mib"] >= 0 < found["seconds"]
    calls = []

    def measured(command, **keywords):
        calls.append(command[command.index("--turns") :])
        figures = {"mib": 8 / len(calls), "seconds": float(len(calls))}
        return argparse.Namespace(returncode=0, stdout=json.dumps(figures))

    monkeypatch.setattr(memory.subprocess, "run", measured)
    monkeypatch.setattr("sys.argv", ["memory.py", *options, "--chunks", "1", "4"])
    memory.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| 1 | 8 | 1.00 s | 1.00 |", "| 4 | 4 | 2.00 s | 2.00 |"]
    assert [call[-3:] for call in calls] == [["--chunks", chunks, "--in-process"] for chunks in ("1", "4")]


def test_the_peak_is_of_products_with_the_sums_of_their_precision(import_benchmark, monkeypatch, capsys):
    """However fast another is; each precision in a process of its own, here in this one. What torch lacks is left
    out."""
    peak, threads = import_benchmark("peak"), torch.get_num_threads()
    a, b = torch.randn(40, 64), torch.randn(64, 30)
    assert peak.is_exact(torch.mm(a, b), a, b)
    assert not peak.is_exact(torch.mm(a.bfloat16(), b.bfloat16()).float(), a, b)
    assert not peak.is_exact(torch.mm(a.bfloat16().float(), b), a, b), "the sums alone are those of float32"

    @functools.lru_cache(maxsize=None)  # by which tensors they are: it is the fastest, once it has been called
    def fast(a, b):
        return torch.mm(a.bfloat16(), b.bfloat16()).to(a.dtype)

    def lacking(a, b):
        raise RuntimeError("not in this build")

    def run(command, **_):
        monkeypatch.setattr("sys.argv", command[1:])
        peak.main()
        return SimpleNamespace(stdout=capsys.readouterr().out)

    assert "mm" in peak.ways(torch)
    monkeypatch.setattr(peak, "ways", lambda _: {"mm": torch.mm, "fast": fast, "lacking": lacking})
    monkeypatch.setattr(peak, "SHAPES", ((200, 96, 96), (8, 64, 9)))
    monkeypatch.setattr(peak, "subprocess", SimpleNamespace(run=run, PIPE=None))
    found = [peak.measure(precision, threads) for precision in peak.PRECISIONS]
    assert [best["by"] for best in found] == ["mm of float32", "fast of bfloat16"]
    assert found[1]["gflops"] > found[0]["gflops"] > 0


def test_the_peak_of_bf16_is_that_of_float32_where_this_is_faster(import_benchmark, monkeypatch):
    peak = import_benchmark("peak")

    def slow_in_bfloat16(a, b):
        time.sleep(0.02 * (a.dtype == torch.bfloat16))
        return torch.mm(a, b)

    monkeypatch.setattr(peak, "ways", lambda _: {"mm": slow_in_bfloat16})
    monkeypatch.setattr(peak, "SHAPES", ((8, 64, 9),))
    assert peak.peak("bf16", torch.get_num_threads())["by"] == "mm of float32"


def test_a_candidate_without_its_kernel_is_not_timed_in_its_place(import_benchmark, monkeypatch, tmp_path):
    contestants, worker = import_benchmark("contestants"), import_benchmark("training_worker")
    assert worker.has_loaded_extension("fairseq_hmrnn") == (cpu.kernel.compiled is not None)
    assert not worker.has_loaded_extension("omegaconf")
    (tmp_path / "worker.py").write_text('print(\'{"parameters": 1, "not_compiled": true}\')\n')
    monkeypatch.setattr(contestants, "WORKER", tmp_path / "worker.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    contestant = contestants.Contestant("old", "old", "float32", 1, [], tmp_path, environment)
    with contextlib.closing(contestant), pytest.raises(UserError, match="^old runs without a compiled kernel.* remove"):
        contestant.wait_for_model()
