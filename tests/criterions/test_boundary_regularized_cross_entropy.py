"""The criterion against direct computation."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics
from pairs import same_bits
from small_criterion import criterion_for
from small_texts import dictionary_of

from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, LayerSteps
from fairseq_hmrnn.criterions.boundary_statistics import boundary_counts, gold_counts, log_boundary_metrics


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
    assert same_bits(grads, (p.grad for p in model.parameters()))


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


def test_a_wrong_number_of_rates_is_refused(dictionary, model, sample):
    with pytest.raises(ValueError, match="has 1 rates, the model has 2 boundary"):
        criterion_for(dictionary, ".2")(model, sample)


def total(extra, layer, name, rate, signals=None):
    return float(REGULARIZERS[name](LayerSteps.of(extra["trace"], layer, rate, signals)))


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
    steps = LayerSteps.of(output[1]["trace"], 1, 0.05, signals, right_to_left)
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
    dictionary = dictionary_of("ab\u2581d")
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
