"""The table of `segment --gold`, of a text whose scores all differ, counted by hand."""

import re

import numpy as np

from fairseq_hmrnn.analysis.comparison import comparison
from fairseq_hmrnn.analysis.segments import late, segmented_gold

TEXT = "thedog\nadogs\nadogs\nadog\n"
GOLD = "the|dog|\na|dog|s|\na|dog|s|\na|dog|\n"
BELOW, ABOVE = "the|dog\na|do|gs\na|do|gs\na|d|og\n", "th|edog\na|dogs\nadogs\nad|og\n"


def boundaries_of(segmented):
    """(T,) bool, after which characters `|` stands."""
    return np.array([end == "|" for end in re.findall(r"[^|](\||)", segmented)])


def table(**more):
    """Its lines, and the numbers of every row by layer, name and alignment."""
    gold = segmented_gold(TEXT, GOLD)
    boundaries = np.stack([boundaries_of(BELOW), boundaries_of(ABOVE)], axis=1)
    lines = list(comparison(boundaries, {"words": gold, "one later": late(gold)}, **more))
    rows = [re.fullmatch(r" (\d) (.{15}) (.{11}) (.*)", line) for line in lines]
    return lines, {(int(row[1]), row[2].rstrip(), row[3].rstrip()): row[4] for row in rows if row}


def test_every_column_is_the_score_it_is_named_for():
    lines, rows = table()
    assert lines[0] == "24 characters"
    columns = [
        7 / 24,  # rate
        *(4 / 7, 4 / 6, 8 / 13),  # boundaries: of 7 found and 6 of gold these are alike: the|, a|, a|, a|
        12 / 13,  # +-1: do| twice too, one before dog|; not ad|, for a| is taken
        *(12 / 15, 12 / 14, 24 / 29),  # with the 8 edges of 4 lines
        *(5 / 11, 5 / 10, 10 / 21),  # tokens: the, dog, a, a, a
        *(3 / 7, 3 / 4, 6 / 11),  # types: the, dog, a of {the, dog, a, do, gs, d, og} and {the, dog, a, s}
    ]
    found = rows[1, "detector", "words"]
    assert found.split() == [f"{score:.3f}" for score in columns] and len(set(found.split())) == len(columns)
    (line,) = [line for line in lines if line.endswith(found)]
    scores = ["P", "R", "F1"]
    assert lines[2].split() == ["layer", "gold", "rate", *scores, "+-1", *scores * 3]
    places = [lines[1].index(part) for part in ("boundaries", "with edges", "tokens", "types")]
    assert places == [line.index(f"{score:.3f}") for score in (4 / 7, 12 / 15, 5 / 11, 3 / 7)]
    assert [lines[2][place + 14 : place + 16] for place in places] == ["F1"] * 4  # above the middle of their numbers


def test_rows_are_layers_names_and_alignments():
    """Of the first layer there is what a lexicon found; other rows are made without the detector, and as many."""
    signal = np.arange(24) % 3 * 1.0
    lexicon, peaks = boundaries_of(GOLD), {"surprisal": signal, "entropy": -signal}
    _, rows = table(lexicon=lexicon, **peaks)
    made = ["random", "every k-th", "surprisal peaks", "entropy peaks"]
    names = [(1, name) for name in ("detector", "with lexicon", *made)] + [(2, name) for name in ("detector", *made)]
    assert [*rows] == [(*name, alignment) for name in names for alignment in ("words", "one later")]
    assert rows[1, "with lexicon", "words"].split()[1:] == ["1.000"] * 13
    assert rows[1, "detector", "one later"] != rows[1, "detector", "words"] != rows[2, "detector", "words"]
    for name in made:
        rates = [rows[layer, name, "words"].split()[0] for layer in (1, 2)]
        assert rates == ["0.292", "0.125"]


def test_what_is_told_below_the_table():
    lines, rows = table()
    expected = [
        "layer 1: 3.0 characters in a segment",  # 8 segments, the last one open
        "layer 2: 6.0 characters in a segment",
        # Of layer 2's three, a| and ad| are layer 1's too. 18 of 24 steps are alike, by chance 7 3 / 24 + 17 21 / 24.
        f"layers 1 and 2: nested {2 / 3:.3f}, agreement (kappa) {(18 - 15.75) / (24 - 15.75):.3f}",
        "gold boundaries, words: 0.250 of all characters, 0.583 with edges",  # 6, and 2 for each of 4 lines
        "gold boundaries, one later: 0.250 of all characters, 0.583 with edges",
    ]
    assert lines[3 + len(rows) :] == expected
