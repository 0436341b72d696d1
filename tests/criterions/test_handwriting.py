"""The likelihood of handwriting: padding, regularisers, what is logged."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.logging import metrics
from pairs import pairs

from fairseq_hmrnn.criterions import BoundaryRegularizedCrossEntropy, HandwritingLikelihood
from fairseq_hmrnn.criterions.boundary_criterion import BoundaryCriterion
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, Regularizer
from fairseq_hmrnn.criterions.config import BoundaryConfig
from fairseq_hmrnn.data.handwriting import HandwritingDataset
from fairseq_hmrnn.data.handwriting.store import CHARACTER, WORD, Strokes
from fairseq_hmrnn.models.handwriting import HandwritingModel, HMLSTMHandwritingConfig, HMLSTMHandwritingModel
from fairseq_hmrnn.trace import trace_of

TASK = SimpleNamespace(target_dictionary=None, source_dictionary=None)


@pytest.fixture
def dataset():
    torch.manual_seed(0)
    lengths = [9, 14, 6]
    steps = torch.randn(sum(lengths), 3)
    steps[:, 2] = (torch.rand(len(steps)) < 0.3).float()
    marks = (torch.rand(len(steps)) < 0.4).byte() * CHARACTER + (torch.rand(len(steps)) < 0.2).byte() * WORD
    starts = torch.tensor([0, *lengths]).cumsum(0)
    known = torch.tensor([CHARACTER | WORD, WORD, 0])
    names = torch.zeros(3).numpy().astype(str)
    strokes = Strokes(steps.numpy(), starts.numpy(), marks.numpy(), known.numpy(), names, names, names)
    return HandwritingDataset(strokes, shuffle=False)


@pytest.fixture
def model():
    torch.manual_seed(1)
    config = HMLSTMHandwritingConfig(embed_dim=6, hidden_sizes="8,7,5", output_dim=9, mixtures=3)
    return HMLSTMHandwritingModel(config)


def batch_of(dataset, *indices):
    return dataset.collater([dataset[index] for index in indices])


def test_padding_changes_neither_likelihood_nor_gradient(model, dataset):
    criterion = HandwritingLikelihood(TASK, False)
    model.train()
    loss, size, _ = criterion(model, batch_of(dataset, 0, 1, 2))
    loss.backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    alone = [criterion(model, batch_of(dataset, index)) for index in range(3)]
    assert size == sum(found[1] for found in alone) == 26
    assert loss.item() == pytest.approx(sum(found[0].item() for found in alone), rel=1e-5)
    sum(found[0] for found in alone).backward()
    for parameter, expected in pairs(model.parameters(), together):
        assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-4)


def test_every_step_but_the_first_is_predicted_from_those_before(model, dataset):
    criterion = HandwritingLikelihood(TASK, False)
    model.eval()
    batch = batch_of(dataset, 1)
    steps = torch.from_numpy(dataset.strokes.steps[9:23])
    expected, state = 0, None
    for before, step in zip(steps[:-1], steps[1:]):
        parameters, extra = model(before.view(1, 1, 3), state=state)
        state = extra["state"]
        expected += model.distribution(parameters).log_prob(step.view(1, 1, 3)).item()
    loss, _, log = criterion(model, batch)
    assert loss.item() == pytest.approx(-expected, rel=1e-5)
    with metrics.aggregate() as aggregator:
        criterion.reduce_metrics([log, criterion(model, batch_of(dataset, 0, 2))[2]])
    values = aggregator.get_smoothed_values()
    whole = criterion(model, batch_of(dataset, 0, 1, 2))[0].item()
    assert values["log_likelihood"] == pytest.approx(-whole / 3, abs=0.01)
    assert values["nll_loss"] == pytest.approx(whole / 26, abs=1e-4)


def test_regularisers_are_for_training_alone(model, dataset):
    batch = batch_of(dataset, 0, 1)
    plain = HandwritingLikelihood(TASK, False)
    regularised = HandwritingLikelihood(TASK, False, ".3,.1", "rate=2+uncertainty,rate+rise=.5+surprisal")
    model.eval()
    assert regularised(model, batch)[0].item() == plain(model, batch)[0].item()
    model.train()
    loss, size, log = regularised(model, batch)
    assert log["nll"].item() == plain(model, batch)[0].item()
    trace = trace_of(model(**batch["net_input"]))
    rates = [(trace.boundaries[..., layer] * trace.valid).sum() / trace.valid.sum() for layer in (0, 1)]
    other = HandwritingLikelihood(TASK, False, ".3,.1", "uncertainty,rise=.5+surprisal")(model, batch)[0]
    expected = 2 * (rates[0] - 0.3) ** 2 + (rates[1] - 0.1) ** 2
    assert (loss - other).item() == pytest.approx(size * expected.item(), rel=1e-3, abs=1e-3)


def test_uncertainty_teaches_the_detector_where_the_density_is_wide(model, dataset):
    """With a density whose width is the pen's bit, the detector learns the ends of strokes without being shown them."""
    criterion = HandwritingLikelihood(TASK, False, ".3,.1", "uncertainty,none")
    batch = batch_of(dataset, 0, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    pen = batch["net_input"]["steps"][..., 2]

    def widths(found):
        parameters = torch.zeros_like(found)
        parameters[..., 9:15] = pen.unsqueeze(-1) * 4 - 2
        return parameters + 0 * found

    whole, model.train = type(model).forward, lambda mode=True: model
    model.training = True
    model.forward = lambda *args, **kwargs: (lambda found: (widths(found[0]), found[1]))(whole(model, *args, **kwargs))
    for _ in range(150):
        loss, size, log = criterion(model, batch)
        optimizer.zero_grad()
        (loss / size).backward()
        optimizer.step()
    hits, closed, gold = (log[f"{name}:pen_up_f1"].item() for name in ("hits1", "closed1", "gold"))
    assert 2 * hits / (closed + gold) > 0.9


def test_gold_counts_are_of_lines_whose_marks_are_known(model, dataset):
    model.eval()
    batch = batch_of(dataset, 0, 1, 2)
    log = HandwritingLikelihood(TASK, False)(model, batch)[2]
    assert (log["pen_up_f1"], log["character_f1"], log["word_f1"]) == (26, 8, 21)
    marks = dataset.strokes.marks
    assert log["gold:character_f1"] == (marks[:8] & CHARACTER > 0).sum()
    assert log["gold:word_f1"] == (marks[:8] & WORD > 0).sum() + (marks[9:22] & WORD > 0).sum()


class WithoutBoundaries(HandwritingModel):
    def recur(self, x, valid, state):
        return x, {}


@pytest.mark.parametrize("rates, regularizers", [(".3,.1", "rate"), ("", "entropy")])
def test_regularisers_require_boundaries(dataset, rates, regularizers):
    model, batch = WithoutBoundaries(5, 5, 3), batch_of(dataset, 0, 1)
    assert HandwritingLikelihood(TASK, False)(model, batch)[0].isfinite()
    with pytest.raises(ValueError, match="a boundary regularizer requires a model with boundaries"):
        HandwritingLikelihood(TASK, False, rates, regularizers)(model, batch)


def test_a_criterion_of_the_other_kind_of_task_is_refused():
    with pytest.raises(ValueError, match="give --task hmlstm_handwriting"):
        HandwritingLikelihood(SimpleNamespace(target_dictionary=Dictionary(), source_dictionary=Dictionary()), False)
    with pytest.raises(ValueError, match="requires a task with symbols; .*--criterion handwriting_likelihood"):
        BoundaryRegularizedCrossEntropy(TASK, False, ".3,.1", "rate+bidirectional,rate")


def test_every_criterion_with_regularisers_has_their_options():
    criterions = [found for found in CRITERION_REGISTRY.values() if issubclass(found, BoundaryCriterion)]
    assert {BoundaryRegularizedCrossEntropy, HandwritingLikelihood} <= set(criterions)
    assert all(issubclass(vars(criterion)["__dataclass"], BoundaryConfig) for criterion in criterions)


def test_a_regulariser_that_needs_more_than_strokes_have_is_refused(monkeypatch):
    """Whatever it is: what nobody fills for strokes would end in the first step."""
    monkeypatch.setitem(REGULARIZERS, "calm", Regularizer(torch.sum, frozenset({"rate"})))
    HandwritingLikelihood(TASK, False, ".3,.1", "rate+calm,rate")
    monkeypatch.setitem(REGULARIZERS, "calm", Regularizer(torch.sum, frozenset({"rate", "something new"})))
    with pytest.raises(ValueError, match="calm in boundary-regularizers requires symbols"):
        HandwritingLikelihood(TASK, False, ".3,.1", "rate+calm,rate")


def test_options_without_meaning_are_refused():
    with pytest.raises(ValueError, match="bidirectional in boundary-regularizers requires symbols"):
        HandwritingLikelihood(TASK, False, ".3,.1", "rate+bidirectional,rate")
    with pytest.raises(ValueError, match="boundary-rates"):
        HandwritingLikelihood(TASK, False, "", "uncertainty")
    for rates in ("auto,.1", ".3,steps:.1"):
        with pytest.raises(ValueError, match="auto, steps: and within: in boundary-rates require symbols"):
            HandwritingLikelihood(TASK, False, rates, "rate+uncertainty,rate")
