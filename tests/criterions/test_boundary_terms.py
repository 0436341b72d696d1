"""The options of rates and regularisers as they are written, and what a checkpoint's say."""

from types import SimpleNamespace

import pytest

from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS
from fairseq_hmrnn.criterions.boundary_terms import Rate, Term, delays_of, parse_rates, parse_regularizers, parse_terms


@pytest.mark.parametrize("rates", ["0", "1", ".2,1.5", "-.1", "a,b", ".2,,.1", "nan"])
def test_rates_outside_the_open_interval_are_refused(rates):
    with pytest.raises(ValueError, match="boundary-rates must be numbers between 0 and 1"):
        parse_rates(rates)


def test_rates_as_they_are_written():
    found, above, last, of_all = parse_rates("auto, within:.2,.05,steps:.01")
    assert (found, above, last) == (Rate(None, True), Rate(0.2, True), Rate(0.05, True)) and of_all == Rate(0.01, False)


@pytest.mark.parametrize(
    "rates, regularizers, message",
    [
        (".2,auto", "rate+bidirectional", "auto in boundary-rates is for the first layer"),
        ("auto,.05", "rate,rate+uncertainty", "give layer 1 one of uncertainty, .* or give numbers alone"),
        (".2,.1", "rate,rate+lexicon", "lexicon in boundary-regularizers is for the first layer alone"),
        (".2,.1", "rate+lexicon", "is for the first layer alone, such as rate\\+lexicon,rate"),
        ("", "lexicon", "lexicon in boundary-regularizers requires --boundary-rates"),
        ("outside:.2,.1", "rate", "steps:.2, of all steps; or auto, to be found"),
    ],
)
def test_rates_without_meaning_say_what_has_one(rates, regularizers, message):
    with pytest.raises(ValueError, match=message):
        parse_terms(regularizers, parse_rates(rates))


@pytest.mark.parametrize(
    "options, delays",
    [
        ({}, (0,)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "rate"}, (0, 0)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "uncertainty+lexicon,rate"}, (1, 1)),
        ({"boundary_rates": "auto,.05", "boundary_regularizers": "rate+lexicon,rate"}, (1, 1)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "rate+lexicon,rate", "boundary_delay": 2}, (2, 2)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "rate+lexicon,unforeseen"}, (1, 0)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "rate+bidirectional", "boundary_delay": 0}, (0, 0)),
        ({"boundary_rates": ".2,.05", "boundary_regularizers": "rate,bidirectional", "boundary_delay": 2}, (0, 2)),
        (
            {"boundary_rates": ".2,.1,.1", "boundary_regularizers": "rate,uncertainty,rate", "boundary_delay": 3},
            (0, 3, 3),
        ),
    ],
)
def test_a_checkpoint_tells_the_delays(options, delays):
    """Of each layer; one that listens to nothing closes what it is made of, as late as the layer below."""
    assert delays_of(SimpleNamespace(**options)) == delays


def test_weights_are_annealed_in_a_straight_line():
    term = Term("rate", 0.0, 0.4, 100)
    assert [term.weight(update) for update in (0, 25, 100, 999)] == pytest.approx([0, 0.1, 0.4, 0.4])
    assert Term("rate", 2.0, 2.0).weight(0) == 2.0


def test_parsing():
    assert parse_regularizers("rate+uncertainty=.1, none,entropy=0:.5:200") == [
        [Term("rate"), Term("uncertainty", 0.1, 0.1)],
        [],
        [Term("entropy", 0.0, 0.5, 200)],
    ]


@pytest.mark.parametrize("text", ["", "rat", "rate+", "rate,", "Rate", "none+rate"])
def test_unknown_regularizers_are_refused_with_the_choices(text):
    with pytest.raises(ValueError, match=f"choose from {', '.join(REGULARIZERS)} or none"):
        parse_regularizers(text)


@pytest.mark.parametrize("weight", ["x", "-1", "nan", "inf", "0:1", "0:1:2:3", "0:1:-5", "0:1:2.5"])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="START:END:UPDATES"):
        parse_regularizers(f"rate={weight}")
