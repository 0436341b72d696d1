"""The criterion against direct computation."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.logging import metrics

from fairseq_hmrnn.criterions import found_rate
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import (
    BoundaryRegularizedCrossEntropy,
    layer_steps,
)
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, detector_cross_entropy, later
from fairseq_hmrnn.criterions.boundary_statistics import boundary_counts, gold_counts, log_boundary_metrics
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel


@pytest.fixture
def dictionary():
    dictionary = Dictionary()
    for symbol in "abcd":
        dictionary.add_symbol(symbol)
    return dictionary


@pytest.fixture
def model(dictionary):
    torch.manual_seed(2)
    cfg = HMLSTMLanguageModelConfig(embed_dim=4, hidden_sizes="6,5,4", output_dim=5)
    cfg.dropout_input = cfg.dropout_output = cfg.dropout_recurrent = 0.0  # so that losses can be compared
    return HMLSTMLanguageModel(HMLSTMDecoder(cfg, dictionary)).train()


@pytest.fixture
def sample(dictionary):
    source = torch.randint(4, 8, (3, 9), generator=torch.Generator().manual_seed(0))
    target = source.roll(-1, 1)
    source[1, 6:] = target[1, 6:] = dictionary.pad()
    return {"net_input": {"src_tokens": source}, "target": target, "ntokens": int(target.ne(dictionary.pad()).sum())}


def criterion_for(dictionary, rates="", weight=1.0, **options):
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return BoundaryRegularizedCrossEntropy(task, False, rates, boundary_weight=weight, **options)


@pytest.mark.parametrize("rates, weight", [("", 1.0), (".2,.05", 0.0)])
def test_without_penalty_it_is_fairseqs_cross_entropy_to_the_last_digit(dictionary, model, sample, rates, weight):
    theirs = CrossEntropyCriterion(SimpleNamespace(target_dictionary=dictionary), False)
    ours = criterion_for(dictionary, rates, weight)
    loss, size, _ = ours(model, sample)
    expected, expected_size, _ = theirs(model, sample)
    assert torch.equal(loss, expected) and size == expected_size
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters()))


def test_penalty_equals_its_formula_and_leaves_padding_out(dictionary, model, sample):
    loss, size, log = criterion_for(dictionary, ".2,.05", weight=3.0)(model, sample)
    _, extra = model(**sample["net_input"])
    valid = sample["target"].ne(dictionary.pad())
    rates = [extra["trace"].boundaries[..., layer][valid].mean().item() for layer in range(2)]
    expected = (rates[0] - 0.2) ** 2 + (rates[1] - 0.05) ** 2
    assert (loss - log["nll"]).item() == pytest.approx(3 * size * expected, rel=1e-4)
    plain, _, _ = criterion_for(dictionary)(model, sample)
    plain.backward()
    before = model.decoder.hm_lstm.bias[1].grad[-1].clone()
    model.zero_grad()
    loss.backward()
    assert not torch.equal(before, model.decoder.hm_lstm.bias[1].grad[-1])


def test_validation_loss_is_the_plain_cross_entropy(dictionary, model, sample):
    loss, _, log = criterion_for(dictionary, ".2,.05")(model.eval(), sample)
    assert torch.equal(loss, log["nll"])


def test_counts_equal_counting_by_hand():
    z = torch.tensor([[[1, 0], [0, 0], [1, 1], [0, 0]], [[0, 0], [1, 1], [0, 0], [0, 0]]], dtype=torch.float)
    z = torch.cat([z, torch.zeros(2, 4, 1)], dim=2)
    valid = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    counts = {key: float(value) for key, value in boundary_counts(z, valid, 2).items()}
    assert counts["steps"] == 6 and counts["pairs"] == 4
    assert counts["z1:steps"] == 3 and counts["z2:steps"] == 2 and "z3:steps" not in counts
    # Layer 1 at the second step of each pair: z_prev = 1, 0, 1, 1 (its z_below is always 1).
    assert [counts[f"{name}1:pairs"] for name in ("update", "copy", "flush")] == [1, 0, 3]
    # Layer 2: z_prev = 0, 0, 1, 1 and z_below = 0, 1, 0, 0.
    assert [counts[f"{name}2:pairs"] for name in ("update", "copy", "flush")] == [1, 1, 2]
    # Layer 3 never FLUSHes; z_below = 0, 1, 0, 0.
    assert [counts[f"{name}3:pairs"] for name in ("update", "copy", "flush")] == [1, 3, 0]


def test_metrics_of_two_ranks_are_those_of_one(dictionary, model, sample):
    criterion = criterion_for(dictionary, ".2,.05")
    halves = []
    for rows in (slice(0, 1), slice(1, 3)):
        target = sample["target"][rows]
        part = {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][rows]}, "target": target}
        halves.append({**part, "ntokens": int(target.ne(dictionary.pad()).sum())})
    model.eval()
    results = []
    for samples in ([sample], halves):
        logs = [criterion(model, part)[2] for part in samples]
        with metrics.aggregate("test") as aggregator:
            criterion.reduce_metrics(logs)
        results.append(aggregator.get_smoothed_values())
    assert set(results[0]) == set(results[1])
    assert {"loss", "nll_loss", "bpc", "z1", "z2", "update3", "copy2", "flush1"} <= set(results[0])
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, abs=2e-3), key
    assert results[0]["bpc"] == pytest.approx(criterion(model, sample)[0].item() / 24 / math.log(2), abs=1e-3)


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
    counted = tokens.ne(dictionary.pad())
    for row, column in ((0, 4), (2, 0), (2, 8)):
        for left_out in (column, column + edge):
            if 0 <= left_out < 9:
                counted[row, left_out] = False
    criterion = criterion_for(dictionary, "within:.2,.05", boundary_regularizers=f"rate=2+{listening}=0,none")
    loss, size, log = criterion(model, sample)
    z = model(**sample["net_input"])[1]["trace"].boundaries
    mean = z[..., 0][counted].mean().item()
    assert (loss - log["nll"]).item() == pytest.approx(2 * size * (mean - 0.2) ** 2, rel=1e-3)
    with metrics.aggregate(f"within {listening}") as aggregator:
        criterion.reduce_metrics([log])
    values = aggregator.get_smoothed_values()
    assert values["z1_within"] == pytest.approx(mean, abs=1e-3) and "z2_within" not in values


@pytest.mark.parametrize("rates", ["auto,.05", "within:.2,.05"])
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
    rate = found_rate.START if rates.startswith("auto") else 0.2
    expected = sum((z[..., layer].mean() - share) ** 2 for layer, share in enumerate((rate, 0.05)))
    back = criterion.right_to_left(source, target)[0].item() if "lexicon" in regularizers else 0
    assert (loss - log["nll"]).item() == pytest.approx(float(size * (expected + back)), rel=1e-3)


def test_within_lines_of_a_batch_that_is_shorter_than_the_delay(dictionary, model, sample):
    """A delay of 2 leaves out the steps 1 and 2 behind `</s>`; a batch of 1 step has neither."""
    for steps, counted in ((1, [True]), (2, [True, False])):
        source = sample["net_input"]["src_tokens"][:1, :steps].clone()
        source[0, 0] = dictionary.eos()
        short = {"net_input": {"src_tokens": source}, "target": source, "ntokens": steps}
        options = {"boundary_regularizers": "rate+uncertainty=0,none", "boundary_delay": 2}
        loss, size, log = criterion_for(dictionary, "within:.2,.05", **options)(model, short)
        mean = model(**short["net_input"])[1]["trace"].boundaries[0, :, 0].detach()[torch.tensor(counted)].mean()
        assert (loss - log["nll"]).item() == pytest.approx(float(size * (mean - 0.2) ** 2), rel=1e-3)


@pytest.mark.parametrize("listening, late", [("bidirectional", True), ("surprisal", False)])
def test_a_rate_that_is_found_is_of_the_places_before_symbols(dictionary, model, sample, listening, late, monkeypatch):
    criterion = criterion_for(dictionary, "auto,.05", boundary_regularizers=f"{listening}+rate,none")
    found, remembered = criterion.targets.found, []
    monkeypatch.setattr(found, "remember", lambda *batch: remembered.append(batch))
    model.set_num_updates(7)
    loss, size, log = criterion(model, sample)
    assert criterion(model.eval(), sample)[0].isfinite() and len(remembered) == 1  # validation has no rate
    output, tokens = model.train()(**sample["net_input"]), sample["net_input"]["src_tokens"]
    signals = criterion.signals(model, output, sample, listening)
    nll, back = criterion.right_to_left(tokens, sample["target"]) if late else (0, None)
    steps = layer_steps(output[1]["trace"], 0, found.rate, signals, back)
    expected = nll + REGULARIZERS[listening](steps) + REGULARIZERS["rate"](steps)
    assert (loss - log["nll"]).item() == pytest.approx(size * expected.item(), rel=1e-4)
    values, known = REGULARIZERS[listening].signal(steps)
    (ours, signal, where) = remembered[0]
    assert torch.equal(ours, tokens) and where.any()
    for row, column in where.nonzero().tolist():
        assert signal[row, column] == values[row, column if late else column - 1]
    assert int(where.sum()) == int((known & steps.valid if late else (known & steps.valid)[:, :-1]).sum())


@pytest.mark.parametrize("delay", [None, 0, 3])
@pytest.mark.parametrize("rates", ["auto,.05", ".4,.05"])
def test_what_a_lexicon_says_is_learned(dictionary, model, sample, rates, delay, monkeypatch):
    """Of the text and signal of every batch, which it remembers; the detector closes segments `delay` steps late."""
    options = {"boundary_regularizers": "lexicon,none", "boundary_delay": delay}
    criterion, asked = criterion_for(dictionary, rates, **options), []
    found = criterion.targets.found

    def begins(tokens, signal, known):
        asked.append((tokens, signal, known))
        return known & (tokens % 2 == 0)

    monkeypatch.setattr(found, "begins", begins)
    model.set_num_updates(7)
    loss, size, log = criterion(model, sample)
    output, tokens = model(**sample["net_input"]), sample["net_input"]["src_tokens"]
    nll, back = criterion.right_to_left(tokens, sample["target"])
    steps = layer_steps(output[1]["trace"], 0, 0.4, criterion.signals(model, output, sample, "lexicon"), back)
    values, known = REGULARIZERS["bidirectional"].signal(steps)
    (given,) = asked
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
    found = criterion.targets.found
    monkeypatch.setattr(found, "begins", lambda tokens, signal, known: asked.append(signal) or known)
    model.set_num_updates(7)
    assert criterion(model, sample)[0].isfinite() and len(asked) == 1
    where = found.symbols >= 0
    assert where.any() and torch.isin(found.signal[where], asked[0].float()).all()  # what it hears is remembered


@pytest.mark.parametrize("delay", [None, 0, 3])
def test_a_lexicon_is_of_the_text_within_lines(dictionary, model, sample, delay, monkeypatch):
    """Whatever the delay of what is taught: neither `</s>` nor what stands behind it is remembered."""
    tokens = sample["net_input"]["src_tokens"] = torch.randint(4, 8, (2, 30))
    sample["target"], ends = tokens.roll(-1, 1), tokens.new_tensor([8, 15])
    tokens[:, ends] = dictionary.eos()
    options = {"boundary_regularizers": "lexicon,none", "boundary_delay": delay}
    criterion = criterion_for(dictionary, "within:.2,.05", **options)
    model.set_num_updates(7)
    criterion(model, sample)
    remembered = criterion.targets.found.symbols[: 2 * 31].view(2, 31)[:, :30]
    known = remembered >= 0
    assert torch.equal(remembered[known], tokens[known].int()) and not known[:, torch.cat([ends, ends + 1])].any()
    assert known[:, ends - 1].all() and known[:, ends + 2].all()


def test_a_rate_that_is_found_is_logged_and_held(dictionary, model, sample, monkeypatch, caplog):
    caplog.set_level("INFO", "fairseq_hmrnn")
    monkeypatch.setattr(found_rate, "find_rate", lambda symbols, signal: 0.4)
    criterion = criterion_for(dictionary, "auto,.05", boundary_regularizers="rate+uncertainty=0,none")
    for updates, rate in ((99, found_rate.START), (100, 0.4)):
        model.set_num_updates(updates)
        loss, size, log = criterion(model, sample)
        mean = (log["z1:steps"] / log["steps"]).item()
        assert (loss - log["nll"]).item() == pytest.approx(size * (mean - rate) ** 2, rel=1e-3, abs=1e-5)
        with metrics.aggregate(f"found after {updates}") as aggregator:
            criterion.reduce_metrics([log])
        assert aggregator.get_smoothed_values()["z1_target"] == rate
    criterion_for(dictionary, ".4,.05").load_training_state(criterion.training_state())  # has no use for it
    other = criterion_for(dictionary, "auto,.05", boundary_regularizers="rate+uncertainty=0,none")
    other.load_training_state({})
    assert other.targets.found.rate == found_rate.START
    other.load_training_state(criterion.training_state())
    assert other.targets.found.rate == 0.4
    assert caplog.text.count("the rate of layer 1 is") == 1  # once, before the first update
    assert "the rate of layer 1 is 0.25 and from update 100 on the one that is found" in caplog.text
    other(model, sample)
    assert "the rate of layer 1 is 0.4 and what the next search makes of it" in caplog.text


def test_a_wrong_number_of_rates_is_refused(dictionary, model, sample):
    with pytest.raises(ValueError, match="has 1 rates, the model has 2 boundary"):
        criterion_for(dictionary, ".2")(model, sample)


def total(extra, layer, name, rate, signals=None):
    return float(REGULARIZERS[name](layer_steps(extra["trace"], layer, rate, signals)))


def test_terms_of_all_layers_are_added_by_symbol(dictionary, model, sample):
    criterion = criterion_for(dictionary, ".2,.05", weight=3.0, boundary_regularizers="binomial+entropy=.5,ratio=2")
    loss, size, log = criterion(model, sample)
    _, extra = model(**sample["net_input"])
    expected = total(extra, 0, "binomial", 0.2) + 0.5 * total(extra, 0, "entropy", 0.2)
    expected += 2 * total(extra, 1, "ratio", 0.05)
    assert (loss - log["nll"]).item() == pytest.approx(3 * size * expected, rel=1e-4)


def test_signals_are_the_entropy_and_surprisal_of_the_models_predictions(dictionary, model, sample):
    output = model(**sample["net_input"])
    signals = criterion_for(dictionary).signals(model, output, sample, "uncertainty")
    p = output[0].detach().softmax(-1)
    torch.testing.assert_close(signals.entropy, -(p * p.log()).sum(-1))
    right = p.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(signals.surprisal, -right.log())
    assert torch.equal(signals.predicted, sample["target"].ne(dictionary.pad()))


def test_uncertainty_moves_the_detector_alone(dictionary, model, sample):
    """Its own row and bias; neither states nor predictions learn to please it (detector_grad_scale 0)."""
    criterion = criterion_for(dictionary, ".3,.1", boundary_regularizers="uncertainty")
    (penalty, _) = criterion.penalties(model, model(**sample["net_input"]), sample)
    penalty.backward()
    bias = model.decoder.hm_lstm.bias[0].grad
    assert bias[-1] != 0 and not bias[:-1].any()
    assert model.decoder.output_projection.weight.grad is None


def test_reading_from_right_to_left_is_learned_beside_the_model(dictionary, model, sample):
    assert not list(criterion_for(dictionary, ".2,.05", boundary_regularizers="rate+uncertainty").parameters())
    criterion = criterion_for(dictionary, ".2,.05", boundary_regularizers="bidirectional=0,bidirectional+unforeseen=.5")
    assert any("lstm" in name for name in criterion.state_dict())
    loss, size, log = criterion(model, sample)
    output = model(**sample["net_input"])
    nll, right_to_left = criterion.right_to_left(sample["net_input"]["src_tokens"], sample["target"])
    signals = criterion.signals(model, output, sample, "unforeseen")
    steps = layer_steps(output[1]["trace"], 1, 0.05, signals, right_to_left)
    expected = nll + REGULARIZERS["bidirectional"](steps) + 0.5 * REGULARIZERS["unforeseen"](steps)
    assert (loss - log["nll"]).item() == pytest.approx(size * expected.item(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad.any() for parameter in criterion.parameters())
    assert torch.equal(criterion(model.eval(), sample)[0], log["nll"])


def test_weights_follow_the_models_updates(dictionary, model, sample):
    criterion = criterion_for(dictionary, ".2,.05", boundary_regularizers="rate=0:1:10")
    added = []
    for updates in (0, 5, 20):
        model.set_num_updates(updates)
        loss, _, log = criterion(model, sample)
        added.append((loss - log["nll"]).item())
    assert added[0] == 0 and added[1] == pytest.approx(added[2] / 2, rel=1e-4) and added[2] > 0
    logits, extra = model(**sample["net_input"])
    with pytest.raises(ValueError, match="requires a model that knows its updates"):
        criterion.penalties(model, (logits, {"trace": extra["trace"]._replace(num_updates=None)}), sample)


@pytest.mark.parametrize("regularizers", ["uncertainty+bidirectional=0:.1:1000", "bidirectional=0:.1:1000"])
def test_a_network_has_gradients_from_the_first_update_on(dictionary, model, sample, regularizers):
    """Of zeros where no term with a weight listens to it, however many processes there are."""
    criterion = criterion_for(dictionary, ".2,.05", boundary_regularizers=regularizers)
    loss, size, log = criterion(model, sample)
    expected = criterion_for(dictionary, ".2,.05", boundary_regularizers=regularizers.split("+bi")[0])
    expected.right_to_left = None
    assert torch.equal(loss, expected(model, sample)[0])
    loss.backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in criterion.parameters())
    model.set_num_updates(1)
    criterion(model, sample)[0].backward()
    assert all(x.grad.any() for x in criterion.parameters())


def test_supervision_is_a_cross_entropy_on_one_layer(model, sample):
    dictionary = Dictionary()
    for symbol in "ab\u2581d":
        dictionary.add_symbol(symbol)
    options = dict(boundary_supervision="whitespace", boundary_supervision_layer=2, boundary_supervision_weight=0.5)
    loss, size, log = criterion_for(dictionary, **options)(model, sample)
    _, extra = model(**sample["net_input"])
    p = extra["trace"].boundary_probs[..., 1].clamp(0.02, 0.98)
    gold = sample["net_input"]["src_tokens"] == 6
    cross_entropy = -torch.where(gold, p, 1 - p).log()[extra["trace"].valid].mean().item()
    assert (loss - log["nll"]).item() == pytest.approx(0.5 * size * cross_entropy, rel=1e-4)
    with pytest.raises(ValueError, match="layer 3 does not exist: the model has 2"):
        criterion_for(dictionary, **{**options, "boundary_supervision_layer": 3})(model, sample)


def test_f1_against_whitespace_is_that_of_all_steps_together():
    gold = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]).bool()
    z = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).float().unsqueeze(-1)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    with metrics.aggregate("f1") as aggregator:
        for row in range(2):  # as batches of validation come
            log_boundary_metrics(gold_counts(z[row : row + 1], gold[row : row + 1], valid[row : row + 1], 1))
    # Hits 3, boundaries 4 (one is on padding), gold 4.
    assert aggregator.get_smoothed_values()["word_f1_1"] == 0.75


def test_translation_has_its_boundaries_at_source_steps(dictionary, model, sample):
    net_input = {**sample["net_input"], "prev_output_tokens": sample["target"]}
    criterion = criterion_for(dictionary, ".2,.05", boundary_regularizers="rate+uncertainty")
    with pytest.raises(ValueError, match="uncertainty listens to predictions at the steps of the boundaries"):
        criterion.penalties(model, model(**sample["net_input"]), {**sample, "net_input": net_input})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(boundary_regularizers="rate,rate,rate", rates=".2,.05"), "has 3 entries, the model has 2"),
        (dict(boundary_regularizers="binomial"), "requires --boundary-rates"),
        (dict(weight=-1.0), "boundary-weight must be a number from 0"),
        (dict(boundary_supervision_weight=float("nan")), "boundary-supervision-weight must be a number"),
        (dict(boundary_supervision="nowhere.txt"), "there is no file nowhere.txt"),
        (dict(boundary_supervision="whitespace"), "no whitespace but the newline"),
    ],
)
def test_bad_options_say_what_to_do(dictionary, model, sample, options, message):
    with pytest.raises(ValueError, match=message):
        criterion_for(dictionary, **options)(model, sample)


def test_label_smoothing_is_fairseqs_and_for_training_alone(dictionary, model, sample):
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    task = SimpleNamespace(target_dictionary=dictionary)
    ours = BoundaryRegularizedCrossEntropy(task, False, "", label_smoothing=0.2)
    expected, _, theirs = LabelSmoothedCrossEntropyCriterion(task, False, 0.2)(model, sample)
    loss, _, log = ours(model, sample)
    assert torch.equal(loss, expected) and torch.equal(log["nll"], theirs["nll_loss"])
    model.eval()
    loss, _, log = ours(model, sample)
    assert torch.equal(loss, log["nll"])
    with pytest.raises(ValueError, match="label-smoothing"):
        BoundaryRegularizedCrossEntropy(task, False, "", label_smoothing=1.0)
