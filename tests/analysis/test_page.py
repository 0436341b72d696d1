"""The page carries all of its data, whatever the text is, and loads nothing."""

import json
import re

import numpy as np
import pytest

from fairseq_hmrnn.analysis import boundary_page
from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.analysis.segments import segmented_gold

ODD = "a</script><!--<b>&amp;\t\u2028\u6211e\u0301\U0001f600\\n'\"@DATA@\n"


def parts(page):
    """The page without its data, and its data."""
    found = re.fullmatch(r'(.*<script type="application/json" id="data">)([^<>&]*)(</script>.*)', page, re.DOTALL)
    return found[1] + found[3], json.loads(found[2])


def test_any_text_and_title_come_back():
    zeros = np.zeros((len(ODD), 2))
    frame, data = parts(boundary_page(ODD, zeros, zeros, title="</title>" + ODD))
    assert data["text"] == ODD and data["title"] == "</title>" + ODD
    other, named = parts(boundary_page("ab", zeros[:2], zeros[:2]))
    assert frame == other and named["title"] == "Boundaries"
    assert data["stand_ins"]["\n"] == "\u21b5" and "a" not in data["stand_ins"]
    assert not re.search(r"https?:|src=|href=|@import|url\(", frame) and "default-src 'none'" in frame


def test_rows_are_layers_and_gold():
    z, probs = np.array([[0, 0], [1, 0], [0, 0.4], [1, 1]]), np.array([[0, 1 / 3], [1, 0.2], [0.1, 0.4], [0.9996, 1]])
    gold = segmented_gold("abcd", "a|b|cd|")
    _, data = parts(boundary_page("abcd", z, probs, gold))
    first, second, last = data["rows"]
    assert (first["marks"], second["marks"], last["marks"]) == ("0101", "0001", "1100")
    assert second["probs"] == [333, 200, 400, 1000] and first["probs"][3] == 1000 and last["probs"] is None
    assert [row["key"] for row in data["rows"]] == ["1", "2", "g"]
    assert first["note"] == "every 2.0 characters; P 1.00, R 0.50, F1 0.67" and last["note"] == "every 2.0 characters"


def test_colours_are_those_of_the_pictures():
    frame, _ = parts(boundary_page("a", [[1]], [[1]]))
    assert [f"--layer-{place}: {color};" in frame for place, color in enumerate(LAYER_COLORS)] == [True] * 6
    assert "prefers-color-scheme: dark" in frame


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", np.zeros((0, 1)), np.zeros((0, 1))), "layers"),
        (("ab", np.zeros((1, 1)), np.zeros((1, 1))), r"must be \(2, layers\)"),
        (("ab", np.zeros((2, 1)), np.zeros((2, 2))), r"must be \(2, layers\)"),
        (("a", [[1]], [[1.5]]), r"\[0, 1\]"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        boundary_page(*arguments)
