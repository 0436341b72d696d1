"""Rates that are found or within lines, delays, and a lexicon as teacher, in the whole criterion."""

import math

import pytest
import torch
from fairseq.logging import metrics
from small_criterion import criterion_for

from fairseq_hmrnn.criterions import rate_estimator
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, LayerSteps, detector_cross_entropy, later


def test_a_delay_of_nothing_is_refused(dictionary):
    with pytest.raises(ValueError, match="boundary-delay requires one of uncertainty, .* give one, or no delay"):
        criterion_for(dictionary, ".2,.1", boundary_delay=2)
    assert criterion_for(dictionary, ".2,.1", boundary_regularizers="rate,uncertainty", boundary_delay=2).targets


@pytest.mark.parametrize(
    "listening, edge", [("bidirectional", 1), ("lexicon", 1), ("uncertainty", -1), ("entropy", -1)]
)
def test_a_rate_within_lines_leaves_out_where_they_end(dictionary, model, sample, listening, edge):
    """A late detector closes a line's last segment at `</s>` and `</s>` itself a step later; others, a step earlier."""
    tokens = sample["net_input"]["src_tokens"]
    tokens[0, 4] = tokens[2, 0] = tokens[2, 8] = dictionary.eos()
    sample["target"][1, 5] = dictionary.eos()  # after the last step of a row
    counted = tokens.ne(dictionary.pad())
    assert counted[1].sum() == 6
    counted[1, 5] = edge == 1
    for row, column in ((0, 4), (2, 0), (2, 8)):
        for left_out in (column, column + edge):
            if 0 <= left_out < 9:
                counted[row, left_out] = False
    criterion = criterion_for(dictionary, ".2,steps:.05", boundary_regularizers=f"rate=2+{listening}=0,none")
    loss, size, log = criterion(model, sample)
    z = model(**sample["net_input"])[1]["trace"].boundaries
    mean = z[..., 0][counted].mean().item()
    assert (loss - log["nll"]).item() == pytest.approx(2 * size * (mean - 0.2) ** 2, rel=1e-3)
    with metrics.aggregate(f"within {listening}") as aggregator:
        criterion.reduce_metrics([log])
    values = aggregator.get_smoothed_values()
    assert values["z1_within"] == pytest.approx(mean, abs=1e-3) and "z2_within" not in values


@pytest.mark.parametrize("rates", ["auto,steps:.05", ".2,steps:.05"])
@pytest.mark.parametrize("regularizers", ["rate+uncertainty,rate", "rate+lexicon,rate"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_that_is_shorter_than_the_delay_teaches_its_rate(dictionary, model, sample, steps, regularizers, rates):
    """Such as the last window of a stream: no detector hears anything in it."""
    source, target = sample["net_input"]["src_tokens"][:, :steps].clone(), sample["target"][:, :steps].clone()
    source[0, 0] = dictionary.eos()
    short = {"net_input": {"src_tokens": source}, "target": target, "ntokens": target.numel()}
    criterion = criterion_for(dictionary, rates, boundary_regularizers=regularizers, boundary_delay=3)
    loss, size, log = criterion(model, short)
    loss.backward()
    z = model(**short["net_input"])[1]["trace"].boundaries.detach()
    rate = rate_estimator.START if rates.startswith("auto") else 0.2
    expected = sum((z[..., layer].mean() - share) ** 2 for layer, share in enumerate((rate, 0.05)))
    back = criterion.right_to_left(source, target)[0].item() if "lexicon" in regularizers else 0
    assert (loss - log["nll"]).item() == pytest.approx(float(size * (expected + back)), rel=1e-3)


@pytest.mark.parametrize("regularizer", [name for name, found in REGULARIZERS.items() if "rate" in found.needs])
def test_a_batch_of_line_ends_alone_teaches_no_rate(dictionary, model, sample, regularizer):
    """Such as a window of empty lines: there is no step whose share could be taken."""
    tokens = sample["net_input"]["src_tokens"].fill_(dictionary.eos())
    model.set_num_updates(1)
    above = "none" if regularizer == "lexicon" else regularizer
    criterion = criterion_for(dictionary, ".2,.05", boundary_regularizers=f"{regularizer},{above}")
    loss, size, log = criterion(model, sample)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert tokens.eq(dictionary.eos()).all() and log["steps1"] == 0


def test_within_lines_of_a_batch_that_is_shorter_than_the_delay(dictionary, model, sample):
    """A delay of 2 leaves out the steps 1 and 2 after `</s>`; a batch of 1 step has neither."""
    for steps, counted in ((1, [True]), (2, [True, False])):
        source = sample["net_input"]["src_tokens"][:1, :steps].clone()
        source[0, 0] = dictionary.eos()
        short = {"net_input": {"src_tokens": source}, "target": source, "ntokens": steps}
        options = {"boundary_regularizers": "rate+uncertainty=0,none", "boundary_delay": 2}
        loss, size, log = criterion_for(dictionary, ".2,steps:.05", **options)(model, short)
        mean = model(**short["net_input"])[1]["trace"].boundaries[0, :, 0].detach()[torch.tensor(counted)].mean()
        assert (loss - log["nll"]).item() == pytest.approx(float(size * (mean - 0.2) ** 2), rel=1e-3)


@pytest.mark.parametrize("listening, late", [("bidirectional", True), ("surprisal", False)])
def test_a_rate_that_is_found_is_of_the_places_before_symbols(dictionary, model, sample, listening, late, monkeypatch):
    criterion = criterion_for(dictionary, "auto,.05", boundary_regularizers=f"{listening}+rate,none")
    found, remembered = criterion.targets.estimator, []
    monkeypatch.setattr(found, "remember", lambda *batch: remembered.append(batch))
    model.set_num_updates(7)
    loss, size, log = criterion(model, sample)
    assert criterion(model.eval(), sample)[0].isfinite() and len(remembered) == 1  # validation has no rate
    output, tokens = model.train()(**sample["net_input"]), sample["net_input"]["src_tokens"]
    signals = criterion.signals(model, output, sample, listening)
    nll, back = criterion.right_to_left(tokens, sample["target"]) if late else (0, None)
    steps = LayerSteps.of(output[1]["trace"], 0, found.rate, signals, back)
    expected = nll + REGULARIZERS[listening](steps) + REGULARIZERS["rate"](steps)
    assert (loss - log["nll"]).item() == pytest.approx(size * expected.item(), rel=1e-4)
    values, known = REGULARIZERS[listening].signal(steps)
    (ours, signal, where) = remembered[0]
    assert torch.equal(ours, tokens) and where.any()
    for row, column in where.nonzero().tolist():
        assert signal[row, column] == values[row, column if late else column - 1]
    assert int(where.sum()) == int((known & steps.valid if late else (known & steps.valid)[:, :-1]).sum())


def test_as_many_places_are_searched_as_a_stream_has(dictionary, model, sample):
    """Whose windows may be cut anew in every epoch."""
    criterion = criterion_for(dictionary, "auto,.05", boundary_regularizers="rate+uncertainty,none")
    criterion.task.dataset = {"train": range(700)}.__getitem__
    model.set_num_updates(7)
    criterion(model, sample)
    assert criterion.targets.estimator.newest == rate_estimator.MEMORY
    sample["net_input"].update(stream="train", window=0, reset=torch.zeros(3, dtype=torch.bool))
    criterion(model, sample)
    assert criterion.targets.estimator.newest == 700


@pytest.mark.parametrize("delay", [None, 0, 3])
@pytest.mark.parametrize("rates", ["auto,.05", ".4,.05"])
def test_what_a_lexicon_says_is_learned(dictionary, model, sample, rates, delay, monkeypatch):
    """Of the text and signal of every batch, which it remembers; the detector closes segments `delay` steps late."""
    options = {"boundary_regularizers": "lexicon,none", "boundary_delay": delay}
    criterion, asked = criterion_for(dictionary, rates, **options), []
    found = criterion.targets.estimator
    sample["net_input"]["src_tokens"][2, 2] = sample["target"][2, 1] = dictionary.eos()

    def begins(tokens, signal, known):
        asked.append((tokens, signal, known))
        return known & (tokens % 2 == 0)

    monkeypatch.setattr(found, "begins", begins)
    model.set_num_updates(7)
    loss, size, log = criterion(model, sample)
    output, tokens = model(**sample["net_input"]), sample["net_input"]["src_tokens"]
    nll, back = criterion.right_to_left(tokens, sample["target"])
    steps = LayerSteps.of(output[1]["trace"], 0, 0.4, criterion.signals(model, output, sample, "lexicon"), back)
    values, known = REGULARIZERS["bidirectional"].signal(steps)
    (given,) = asked
    values[2, 2:4] = math.inf  # where a line ends, which is learned too
    assert known[2, 2:4].all()
    assert given[0] is tokens and torch.allclose(given[1], values) and torch.equal(given[2], known)
    moved = (1 if delay is None else delay) - 1
    target, where = (later(x, moved) for x in (known & (tokens % 2 == 0), known))
    expected = nll + detector_cross_entropy(steps.z_tilde, target, where & steps.valid)
    assert (loss - log["nll"]).item() == pytest.approx(size * expected.item(), rel=1e-4)
    assert int((found.symbols >= 0).sum()) == int((known & steps.valid).sum())


@pytest.mark.parametrize("rates", ["auto,.05", ".2,.05"])
@pytest.mark.parametrize("beside", ["uncertainty=.1+lexicon", "lexicon+bidirectional"])
def test_a_lexicon_teaches_beside_others(dictionary, model, sample, beside, rates, monkeypatch):
    criterion, asked = criterion_for(dictionary, rates, boundary_regularizers=f"{beside},rate"), []
    found = criterion.targets.estimator
    monkeypatch.setattr(found, "begins", lambda tokens, signal, known: asked.append(signal) or known)
    model.set_num_updates(7)
    assert criterion(model, sample)[0].isfinite() and len(asked) == 1
    where = found.symbols >= 0
    assert where.any() and torch.isin(found.signal[where], asked[0].float()).all()  # what it hears is remembered


@pytest.mark.parametrize("delay", [None, 0, 3])
@pytest.mark.parametrize(
    "listening, rates", [("lexicon", "auto"), ("lexicon", ".2"), ("bidirectional", "auto"), ("uncertainty", "auto")]
)
def test_segments_begin_for_certain_where_lines_do(dictionary, model, sample, listening, rates, delay, monkeypatch):
    """Whatever the delay of what is taught: before and after `</s>`, in what is remembered and in what a lexicon is
    asked."""
    tokens = sample["net_input"]["src_tokens"] = torch.randint(4, 8, (2, 30))
    sample["target"], ends = tokens.roll(-1, 1), tokens.new_tensor([8, 15])
    tokens[:, ends] = dictionary.eos()
    options = {"boundary_regularizers": f"{listening},none", "boundary_delay": delay}
    criterion, asked = criterion_for(dictionary, f"{rates},steps:.05", **options), []
    found = criterion.targets.estimator
    monkeypatch.setattr(found, "begins", lambda _, signal, known: asked.append((signal, known)) or known, raising=False)
    model.set_num_updates(7)
    criterion(model, sample)
    remembered, signal = (x[: 2 * 31].view(2, 31)[:, :30] for x in (found.symbols, found.signal))
    known, certain = remembered >= 0, torch.zeros(30, dtype=torch.bool)
    certain[torch.cat([ends, ends + 1])] = True
    assert torch.equal(remembered[known], tokens[known].int()) and known[:, 3:24].all()
    assert torch.equal(signal.isinf() & known, certain & known) and not signal.isnan().any()
    assert len(asked) == (listening == "lexicon")
    for values, where in asked:
        assert torch.equal(values.isinf() & where, certain & where) and torch.equal(where, known)


def test_a_rate_that_is_found_is_logged_and_held(dictionary, model, sample, monkeypatch, caplog):
    caplog.set_level("INFO", "fairseq_hmrnn")
    monkeypatch.setattr(rate_estimator, "find_rate", lambda symbols, signal: 0.4)
    criterion = criterion_for(dictionary, "auto,.05", boundary_regularizers="rate+uncertainty=0,none")
    tokens = sample["net_input"]["src_tokens"]
    tokens[0, 4] = dictionary.eos()
    within = tokens.ne(dictionary.pad())
    within[0, 3:5] = False
    for updates, rate in ((99, rate_estimator.START), (100, 0.4)):
        model.set_num_updates(updates)
        loss, size, log = criterion(model, sample)
        z = model(**sample["net_input"])[1]["trace"].boundaries[..., 0]
        mean = z[within].mean().item()
        assert (loss - log["nll"]).item() == pytest.approx(size * (mean - rate) ** 2, rel=1e-3, abs=1e-5)
        with metrics.aggregate(f"found after {updates}") as aggregator:
            criterion.reduce_metrics([log])
        assert aggregator.get_smoothed_values()["z1_target"] == rate
        assert aggregator.get_smoothed_values()["z1_within"] == pytest.approx(mean, abs=1e-3)
    criterion_for(dictionary, ".4,.05").load_training_state(criterion.training_state())  # has no use for it
    other = criterion_for(dictionary, "auto,.05", boundary_regularizers="rate+uncertainty=0,none")
    other.load_training_state({})
    assert other.targets.estimator.rate == rate_estimator.START
    other.load_training_state(criterion.training_state())
    assert other.targets.estimator.rate == 0.4
    assert caplog.text.count("the rate of layer 1 is") == 1  # once, before the first update
    assert "the rate of layer 1 is 0.25 and is searched from update 100 on" in caplog.text
    other(model, sample)
    assert "the rate of layer 1 is 0.4 and was found before training stopped" in caplog.text
