"""A text cut into streams and windows: what is read, in which order, and what depends on chance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairs
from small_texts import dictionary_of

from fairseq_hmrnn.data.streams import (
    CarriedRows,
    StreamBatches,
    StreamBatchIterator,
    StreamDataset,
    WindowOptions,
    read_tokens,
)
from fairseq_hmrnn.tasks.hmlstm_language_modeling import HMLSTMLanguageModelingConfig, HMLSTMLanguageModelingTask

DICTIONARY = dictionary_of("abcdefgh")
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()


def text(size, output_dictionary=DICTIONARY, **windows):
    tokens = np.random.RandomState(size).randint(4, len(DICTIONARY), size=size).astype(np.uint8)
    return StreamDataset(tokens, "train", DICTIONARY, output_dictionary, WindowOptions(**{"length": 5, **windows}))


def reordered(dataset):
    dataset.tokens = dataset.tokens[::-1].copy()
    return dataset


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 30), st.sampled_from([0, 0.5]))
def test_every_symbol_is_predicted_once_after_the_one_before_it(length, streams, window, jitter):
    if length < streams:
        return
    dataset = text(length, length=window, jitter=jitter)
    batches = StreamBatches(dataset, streams, range(streams), seed=3, epoch=2)
    samples = [batches[index] for index in range(len(batches))]
    rows = [torch.cat([sample["target"][row] for sample in samples]) for row in range(streams)]
    target = torch.cat([row[row != PAD] for row in rows])
    assert target.tolist() == dataset.tokens.tolist()
    inputs = [torch.cat([sample["net_input"]["src_tokens"][row] for sample in samples]) for row in range(streams)]
    assert torch.cat([row[row != PAD] for row in inputs]).tolist() == [EOS, *dataset.tokens.tolist()[:-1]]
    assert sum(sample["ntokens"] for sample in samples) == length
    assert all(row.eq(PAD).sum() <= 1 for row in rows)
    widths = [sample["target"].size(1) for sample in samples[:-1]]
    assert all(width == window if jitter == 0 else window // 2 <= width <= window * 1.5 + 0.5 for width in widths)


def test_no_window_is_longer_than_the_longest():
    for length, jitter in ((5, 0.5), (7, 0.3), (4, 0), (1, 0.1)):
        batches = StreamBatches(text(4000, length=length, jitter=jitter), 1, range(1))
        widths = [batches[index]["target"].size(1) for index in range(len(batches))]
        assert max(widths) == batches.text.windows.longest


@pytest.mark.parametrize(
    "length, jitter, shortest, longest",
    [(100, 0.1, 90, 110), (200, 0.1, 180, 220), (50, 0.1, 45, 55), (100, 0.8, 20, 180), (100, 0.2, 80, 120)],
)
def test_lengths_of_windows_have_no_rounding_error(length, jitter, shortest, longest):
    """In floating point 100 * (1 + .1) is above 110, and 100 * (1 - .8) is below 20."""
    widths = np.diff(WindowOptions(length, jitter).borders(1_000_000, seed=1, epoch=1)[:-1])
    assert (widths.min(), widths.max()) == (shortest, longest)


@pytest.mark.parametrize("jitter, streams", [(0, 3), (0.5, 2), (0.9, 1)])
def test_max_tokens_hold_the_longest_windows(data, jitter, streams):
    cfg = HMLSTMLanguageModelingConfig(data=str(data), stateful=True, tokens_per_sample=30, window_jitter=jitter)
    cfg.dataset_impl, cfg.use_plasma_view, cfg.tpu = "mmap", False, False
    task = HMLSTMLanguageModelingTask.setup_task(cfg)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_tokens=90).dataset
    assert batches.num_streams == streams
    assert all(batches[index]["target"].numel() <= 90 for index in range(len(batches)))
    with pytest.raises(
        ValueError, match=f"--max-tokens 29 is less than one window: .* at least {30 + 30 * jitter:.0f}"
    ):
        task.get_batch_iterator(task.dataset("train"), max_tokens=29)


def test_processes_share_the_rows_and_chance_is_the_same_for_them():
    dataset = text(300, jitter=0.4, reset_prob=0.3)
    whole = StreamBatches(dataset, 6, range(6), seed=5, epoch=3)
    halves = [StreamBatches(dataset, 6, rows, seed=5, epoch=3) for rows in (range(3), range(3, 6))]
    assert [len(half) for half in halves] == [len(whole)] * 2
    for window in range(len(whole)):
        for read in (lambda sample: sample["target"], lambda sample: sample["net_input"]["reset"]):
            assert torch.equal(torch.cat([read(half[window]) for half in halves]), read(whole[window]))
    other_epoch = StreamBatches(dataset, 6, range(6), seed=5, epoch=4)
    assert other_epoch.borders.tolist() != whole.borders.tolist()
    other_epoch.set_epoch(3)
    assert other_epoch.borders.tolist() == whole.borders.tolist()
    resets = torch.cat([whole[window]["net_input"]["reset"] for window in range(len(whole))]).float()
    assert 0.1 < resets.mean() < 0.5 and not text(300).windows.resets(6, 1, 1, 1).any()


def test_a_text_too_short_for_its_streams_is_refused():
    with pytest.raises(ValueError, match="train has 5 symbols, too few for 9 streams"):
        StreamBatches(text(5), 9, range(9))


def test_targets_outside_a_smaller_output_dictionary_become_unk():
    batch = StreamBatches(text(40, dictionary_of("a")), 2, range(2))[0]
    assert set(batch["target"].flatten().tolist()) == {DICTIONARY.unk(), 4}
    assert batch["net_input"]["src_tokens"].max() > 4


def iterator(dataset, streams=4, rows=None, epoch=1):
    rows = rows or range(streams)
    return StreamBatchIterator(StreamBatches(dataset, streams, rows, 1, epoch), CarriedRows(), epoch=epoch)


def test_position_and_rows_go_into_a_checkpoint_and_back_to_the_processes_that_want_them():
    dataset = text(200, jitter=0.5)
    first = iterator(dataset)
    windows = first.next_epoch_itr()
    for _ in range(3):
        next(windows)
    first.carried.to_save = {"stream": "train", "window": 2, "rows": torch.arange(8.0).view(4, 2)}
    saved = first.state_dict()
    rest = [batch["target"] for batch in windows]
    resumed = iterator(dataset, rows=range(2, 4))
    resumed.load_state_dict(saved)
    assert resumed.carried.loaded["rows"].tolist() == [[4, 5], [6, 7]] and resumed.carried.loaded["window"] == 2
    followed = [batch["target"] for batch in resumed.next_epoch_itr()]
    assert all(torch.equal(a, b[2:]) for a, b in pairs(followed, rest))
    assert "streams" not in first.state_dict()  # the epoch is over: the next one starts from zeros
    iterator(dataset, streams=5).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda: iterator(text(200), streams=5), r"batch size times processes 4 \(now 5\)"),
        (lambda: iterator(text(210)), r"symbols of the text 200 \(now 210\)"),
        (lambda: iterator(reordered(text(200))), r"with checksum of the text \d+ \(now \d+\), "),
        (lambda: iterator(text(200, length=6)), r"tokens-per-sample 5 \(now 6\)"),
        (lambda: iterator(text(200, jitter=0.1)), r"window-jitter 0.0 \(now 0.1\), seed None \(now 1\)"),
    ],
)
def test_a_position_in_other_streams_is_refused(other, message):
    first = iterator(text(200))
    next(first.next_epoch_itr())
    with pytest.raises(ValueError, match=message):
        other().load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="without --stateful"):
        other().load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 3, "shuffle": True})


def test_a_position_of_before_there_was_a_checksum_is_taken():
    first, other = iterator(text(200)), iterator(reordered(text(200)))
    next(first.next_epoch_itr())
    state = first.state_dict()
    del state["streams"]["layout"]["checksum of the text"]
    other.load_state_dict(state)
    assert other.iterations_in_epoch == 1


def test_the_dummy_batch_belongs_to_no_stream():
    assert set(iterator(text(50)).first_batch["net_input"]) == {"src_tokens", "src_lengths"}


def test_bad_options_are_named():
    for options, message in (
        ({"length": 0}, "tokens-per-sample"),
        ({"jitter": 1}, "window-jitter"),
        ({"reset_prob": 2}, "state-reset-prob"),
    ):
        with pytest.raises(ValueError, match=message):
            WindowOptions(**{"length": 5, **options}).check()
    with pytest.raises(ValueError, match="train has 3 symbols, too few for 4 streams"):
        StreamBatches(text(3), 4, range(4))


def test_any_kind_of_indexed_dataset_is_read():
    assert read_tokens([torch.tensor([4, 5]), torch.tensor([6])]).tolist() == [4, 5, 6]
    assert read_tokens([]).tolist() == []
