"""The criterion in translation, where boundaries are those of the source, read in one direction or in both."""

import pytest
import torch
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from small_translation import PAD, SOURCE, TARGET, make, tokens

from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, LayerSteps, detector_cross_entropy, later
from fairseq_hmrnn.criterions.right_to_left import followers, left_to_right


class SeveralLanguages(TranslationMultiSimpleEpochTask):
    source_dictionary, target_dictionary = SOURCE, TARGET

    def __init__(self):
        """Without the data of several languages."""


TASKS = {"translation": TranslationTask(TranslationConfig(), SOURCE, TARGET), "several": SeveralLanguages()}


def criterion_for(rates="", task="translation", **options):
    return BoundaryRegularizedCrossEntropy(TASKS[task], False, rates, **options)


def steps_of(output, signals):
    """Layer 1's of a source read both ways, in its order. signals: of the source."""
    trace = output[1]["trace"]
    found = {}
    for name in ("boundaries", "boundary_probs", "valid"):
        ahead, back = getattr(trace, name).chunk(2)
        found[name] = torch.cat([ahead, back.flip(1)])
    twice = [type(one)(*(torch.cat([values, values]) for values in one)) for one in signals]
    return LayerSteps.of(trace._replace(**found), 0, 0.2, *twice)


@pytest.fixture
def translation():
    source, target = tokens(2, 19), tokens(2, 5, TARGET)
    source[0, :2] = PAD
    net_input = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": target}
    return {"net_input": net_input, "target": target, "ntokens": 10}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_both_directions_of_a_source_learn_the_same_steps(translation, bidirectional):
    source = translation["net_input"]["src_tokens"]
    gold = source == source[0, 2]
    assert not torch.equal(gold, gold.flip(1))
    criterion = criterion_for()
    model = make("hmlstm", bidirectional=bidirectional).train()
    output = model(**translation["net_input"])
    criterion.supervision = lambda tokens: (tokens == source[0, 2], tokens > 0)
    (penalty,) = criterion.penalties(model, output, translation)
    trace = output[1]["trace"]
    p = trace.boundary_probs[..., 0].clamp(0.02, 0.98)
    wanted = torch.cat([gold, gold.flip(1)]) if bidirectional else gold  # in the order in which each reads
    expected = -torch.where(wanted, p, 1 - p).log()[trace.valid].mean()
    torch.testing.assert_close(penalty, expected.to(penalty))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("listening", ["uncertainty", "bidirectional"])
def test_a_source_is_predicted_beside_the_model(translation, listening, task):
    source = translation["net_input"]["src_tokens"]
    criterion = criterion_for(".2,.05", task, boundary_regularizers=f"{listening},none")
    model = make("hmlstm", bidirectional=True).train()
    output = model(**translation["net_input"])
    nll, ahead = left_to_right(criterion.left_to_right, source)
    expected, signals = [nll], [ahead]
    if listening == "bidirectional":
        nll, back = criterion.right_to_left(source, followers(source, PAD))
        expected.append(nll)
        signals.append(back)
    expected.append(REGULARIZERS[listening](steps_of(output, signals)))
    penalties = criterion.penalties(model, output, translation)
    torch.testing.assert_close(penalties, expected)
    sum(penalties).backward()
    assert all(parameter.grad.any() for parameter in criterion.parameters())


@pytest.mark.parametrize("weights", ["0:.1:2", ".1:0:2"])
def test_every_network_has_gradients_in_every_update(translation, weights):
    """Also one that nothing listens to yet, or any more, beside one that something listens to: torch's distributed
    wrapper stops training otherwise."""
    criterion = criterion_for(".2,.05", boundary_regularizers=f"uncertainty+bidirectional={weights},none")
    model = make("hmlstm").train()
    for update in range(4):
        criterion.zero_grad(set_to_none=True)
        model.set_num_updates(update)
        criterion(model, translation)[0].backward()
        assert all(parameter.grad is not None for parameter in criterion.parameters())


@pytest.mark.parametrize("delay", [None, 0, 2])
def test_a_lexicon_of_a_source_teaches_both_directions_the_same_steps(translation, delay, monkeypatch):
    source = translation["net_input"]["src_tokens"]
    criterion = criterion_for(".2,.05", boundary_regularizers="lexicon,none", boundary_delay=delay)
    monkeypatch.setattr(criterion.targets.estimator, "begins", lambda tokens, signal, known: known & (tokens % 2 == 0))
    model = make("hmlstm", bidirectional=True).train()
    model.set_num_updates(7)
    output = model(**translation["net_input"])
    ahead = left_to_right(criterion.left_to_right, source)
    back = criterion.right_to_left(source, followers(source, PAD))
    steps = steps_of(output, [ahead[1], back[1]])
    known = REGULARIZERS["bidirectional"].signal(steps).known
    moved = (1 if delay is None else delay) - 1
    target, where = (later(x, moved) for x in (known & (source.repeat(2, 1) % 2 == 0), known))
    assert where.any() and not torch.equal(target[:2], target[:2].flip(1))
    expected = [ahead[0], back[0], detector_cross_entropy(steps.z_tilde, target, where & steps.valid)]
    torch.testing.assert_close(criterion.penalties(model, output, translation), expected)


def test_translation_sums_over_targets_and_regularises_source_steps():
    model = make("hmlstm", bidirectional=True).train()
    source, target = tokens(4, 11), tokens(4, 5, TARGET)
    source[0, :6] = PAD
    target[2, 3:] = PAD
    batch = {"net_input": {"src_tokens": source, "src_lengths": None, "prev_output_tokens": target}}
    batch.update(target=target, ntokens=18)
    loss, size, log = criterion_for(".2,.05", boundary_weight=3.0)(model, batch)
    out = model.encoder(source)
    closed = [torch.cat([t.boundaries[t.valid] for t in out["traces"]])[:, layer].mean() for layer in (0, 1)]
    expected = (closed[0] - 0.2) ** 2 + (closed[1] - 0.05) ** 2
    assert (loss - log["nll"]).item() == pytest.approx(3 * 18 * expected.item(), rel=1e-6)
    assert size == 18 and int(log["steps"]) == 2 * (44 - 6)
    loss.backward()
    assert model.encoder.hm_lstm_backward.bias[0].grad[-1].abs() > 0
