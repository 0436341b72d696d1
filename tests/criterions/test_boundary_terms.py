"""The options of rates and regularisers as they are written, and what a checkpoint's say."""

from types import SimpleNamespace

import pytest

from fairseq_hmrnn.criterions.boundary_terms import Rate, delays_of, parse_rates, parse_terms


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
