"""Samples written as JSON, with a checkpoint of the repository."""

import io
import json

import pytest
from running import ROOT

from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.inference.sampler import SamplingOptions
from fairseq_hmrnn.inference.samples import Layout, SampleWriter

PROMPTS = ["der baum ", "das"]


def written(monkeypatch, draw):
    """The lines of JSON that `draw` has a SampleWriter write, and the prompts that it read, by their length."""
    model, out, read = loading.load([str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt")]), io.StringIO(), []
    writer = SampleWriter(model, SamplingOptions(seed=1), 6, "length", Layout(json=True), out)
    original = writer.sampler.read
    monkeypatch.setattr(writer.sampler, "read", lambda symbols: read.append(len(symbols) - 1) or original(symbols))
    draw(writer)
    return [json.loads(line) for line in out.getvalue().splitlines()], read, writer


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_prompt_is_read_once_for_all_its_samples(monkeypatch, batch_size):
    records, read, writer = written(monkeypatch, lambda writer: writer.draw(PROMPTS, 3, batch_size))
    assert read == [len(prompt) for prompt in PROMPTS] and len(records) == 6
    for record in records:
        score = writer.model.score(record["prompt"] + record["text"])
        assert record["prompt_bits"] + record["bits"] == pytest.approx(score.bits, abs=1e-4)
        ends = writer.model.boundaries(record["prompt"] + record["text"], lookahead=0).nonzero().tolist()
        found = [[position, layer] for layer, places in enumerate(record["segment_ends"]) for position in places]
        assert sorted(found) == sorted([position + 1, layer] for position, layer in ends)


def test_a_prompt_is_read_once_for_all_that_a_search_finds(monkeypatch):
    records, read, _ = written(monkeypatch, lambda writer: writer.search(PROMPTS, 3, beam=3))
    assert read == [len(prompt) for prompt in PROMPTS]
    assert [record["prompt"] for record in records] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert records[0]["prompt_bits"] == records[2]["prompt_bits"] != records[3]["prompt_bits"]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"diverse_beam_groups": 3, "diverse_beam_strength": 0.5}], ids=str
)
def test_bits_after_a_search_are_the_models_own(monkeypatch, options):
    """Whatever the search adds to them or scales them by to choose."""
    records, _, writer = written(monkeypatch, lambda writer: writer.search(PROMPTS, 3, beam=3, **options))
    assert len(records) == 3 * len(PROMPTS)
    for record in records:
        score = writer.model.score(record["prompt"] + record["text"])
        assert record["prompt_bits"] + record["bits"] == pytest.approx(score.bits, abs=1e-4)
