"""Groups of hypotheses that avoid each other's symbols, after a prompt that all of them share."""

import inspect

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.search import DiverseBeamSearch

from fairseq_hmrnn.inference.search import DiverseAfterPrompt

STRENGTH, FORCED = 0.5, 4
NEW = torch.tensor([0.02, 0.02, 0.02, 0.02, 0.5, 0.32, 0.1]).log()


def new_symbols(search, prompt_length):
    """What two groups of one hypothesis choose after a prompt, and the score of the choice, from NEW, step by step."""
    search.prompt_length = prompt_length
    scores, chosen = torch.zeros(1, 2, prompt_length + 2), []
    for step in range(prompt_length + 2):
        log_probs = NEW.expand(1, 2, -1).clone()
        if step < prompt_length:
            log_probs = torch.full_like(log_probs, -float("inf"))
            log_probs[..., FORCED] = 0.0
        found, symbols, _ = search.step(step, log_probs, scores[..., :step], None, torch.tensor([0]))
        scores[..., step] = found
        if step >= prompt_length:
            chosen.append([symbols.flatten().tolist(), [round(score, 4) for score in found.flatten().tolist()]])
    return chosen


# That of 0.12.2 looks at the other groups within one step alone, and returns twice as many candidates.
cumulative = pytest.mark.skipif(
    "diversity_discount" not in inspect.signature(DiverseBeamSearch.__init__).parameters, reason="fairseq 0.12.2"
)


@pytest.fixture
def search():
    dictionary = Dictionary()
    for symbol in "abc":
        dictionary.add_symbol(symbol)
    return DiverseAfterPrompt(DiverseBeamSearch(dictionary, 2, STRENGTH), dictionary)


@cumulative
def test_what_is_penalised_does_not_depend_on_the_prompt(search):
    expected = new_symbols(search, 0)
    assert expected[0][0] == [4, 5], "the penalty of .5 is more than what parts the first two: exp(-.5) .5 < .32"
    for length in (1, 7, 50):
        assert new_symbols(search, length) == expected
    assert search.diversity_strength == -STRENGTH and search.num_groups == 2


def test_a_step_that_fails_leaves_the_penalty_as_it_was(search):
    search.prompt_length = 3
    with pytest.raises(AttributeError):  # of None
        search.step(0, None, None)
    assert search.diversity_strength == -STRENGTH


@cumulative
def test_shared_symbols_after_the_prompt_count(search):
    """With a weak penalty both take the first symbol; the second time it weighs twice as much."""
    search.diversity_strength = -0.3
    (first, first_scores), (second, second_scores) = new_symbols(search, 3)
    assert first == [4, 4] and first_scores[0] - first_scores[1] == pytest.approx(0.3, abs=1e-3)
    assert second == [4, 5] and second_scores[1] == pytest.approx(first_scores[1] + float(NEW[5]), abs=1e-3)
