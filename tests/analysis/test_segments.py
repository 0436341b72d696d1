"""Segments and scores on texts small enough to count by hand."""

import numpy as np
import pytest

from fairseq_hmrnn.analysis import segments as segments_module
from fairseq_hmrnn.analysis.segments import (
    Gold,
    agreement,
    baselines,
    boundary_scores,
    edge_scores,
    late,
    line_gold,
    mean_length,
    nestedness,
    peak_boundaries,
    random_boundaries,
    regular_boundaries,
    segmented_gold,
    segments,
    token_scores,
    type_scores,
    word_gold,
)


def test_whitespace_is_found_once_for_all_scores(monkeypatch):
    text, looked_at, spaces = "to be or not\n", [], segments_module._spaces
    gold = word_gold(text)["separator"]
    monkeypatch.setattr(segments_module, "_spaces", lambda text: looked_at.append(text) or spaces(text))
    scores = [score(gold.boundary, gold) for score in (edge_scores, token_scores, type_scores) * 2]
    assert all(score.f1 == 1 for score in scores) and looked_at == [text]
    assert token_scores(late_by_one(gold.boundary), late(gold)).f1 == 1


def late_by_one(boundary):
    return np.append(False, boundary[:-1])


def marks(text):
    return np.array([character == "X" for character in text])


def written(array):
    return "".join("X" if value else "." for value in array)


TEXT = "to be  or\nnot\n"


def test_word_gold_under_both_alignments():
    golds = word_gold(TEXT)
    assert written(golds["separator"].boundary) == "..X..X........"
    assert written(golds["separator"].edge) == ".........X...X"
    assert written(golds["last letter"].boundary) == ".X..X........."
    assert written(golds["last letter"].edge) == "........XX..XX"
    unfinished = word_gold("ab cd")
    assert written(unfinished["separator"].boundary) == "..X.."
    assert written(unfinished["last letter"].boundary) == ".X..." and written(unfinished["last letter"].edge) == "....X"


def test_line_gold():
    gold = line_gold(TEXT)
    assert written(gold.boundary) == ".........X...." and written(gold.edge) == ".............X"


def test_segmented_gold():
    gold = segmented_gold("tobeor\nnot\n", "to|be|or|\nnot|\n")
    assert written(gold.boundary) == ".X.X......." and written(gold.edge) == ".....XX..XX"


def test_late_boundaries_are_those_one_symbol_later():
    """At the first symbol of the next segment; every score is that of the same boundaries at their place."""
    gold = segmented_gold("tobeor\nnot\n", "to|be|or|\nnot|\n")
    found = marks("..X..X..X.X")
    for scores in (boundary_scores, edge_scores, token_scores, type_scores):
        assert scores(found, late(gold)) == scores(marks(".X..X..X.X."), gold)
    assert boundary_scores(marks("..X.X......"), late(gold)).f1 == 1
    assert type_scores(marks("..X.X......"), late(gold)).f1 == 1  # whole words, not shifted ones


@pytest.mark.parametrize(
    "segmented, message",
    [
        ("to|be", "has 4 characters without its separators, the text has 6"),
        ("to|be|ox", "differs from the text at character 6: 'x', not 'r'"),
        ("tobeor", "has no separator"),
    ],
)
def test_another_gold_text_is_refused(segmented, message):
    with pytest.raises(ValueError, match=message):
        segmented_gold("tobeor", segmented)


def test_a_text_that_holds_the_separator_is_refused():
    with pytest.raises(ValueError, match="the text itself holds the separator '|'"):
        segmented_gold("a|b", "a||b")


def test_boundary_scores_leave_edges_out():
    gold = Gold(marks(".X..X..X."), marks("........X"))
    scores = boundary_scores(marks(".XX..X..X"), gold)
    assert scores == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    near = boundary_scores(marks(".XX..X..X"), gold, tolerance=1)
    assert near == pytest.approx((2 / 3, 2 / 3, 2 / 3))  # the second X is near to nothing that is not taken


def test_tolerance_matches_each_boundary_once():
    gold = Gold(marks("..X.X..."), marks("........"))
    assert boundary_scores(marks("...X...."), gold, 1) == pytest.approx((1, 0.5, 2 / 3))
    assert boundary_scores(marks(".X.X...."), gold, 1).f1 == 1
    assert boundary_scores(marks("........"), gold, 1) == (0, 0, 0)


# gold:  the dog | s  /  a dog      found:  thed og s  /  adog
UTTERANCES, WORDS, FOUND = "thedogs\nadog\n", "the|dog|s|\na|dog|\n", "thed|og|s\nadog\n"


def found_in(segmented):
    """(T,) bool, after which characters `|` stands."""
    plain = [place for place, character in enumerate(segmented) if character != "|"]
    return np.array([segmented[place + 1 : place + 2] == "|" for place in plain])


def test_scores_of_word_segmentation_by_hand():
    gold = segmented_gold(UTTERANCES, WORDS)
    # Within utterances gold has the|, dog|, a|; found thed|, og|: the second is right.
    assert boundary_scores(found_in(FOUND), gold) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    # Two utterances have four edges.
    assert edge_scores(found_in(FOUND), gold) == pytest.approx((5 / 6, 5 / 7, 10 / 13))
    # Tokens: of thed, og, s, adog only s; gold the, dog, s, a, dog. A newline is no word.
    assert token_scores(found_in(FOUND), gold) == pytest.approx((1 / 4, 1 / 5, 2 / 9))
    # Types: s of {thed, og, s, adog} and {the, dog, s, a}.
    assert type_scores(found_in(FOUND), gold) == pytest.approx((1 / 4, 1 / 4, 1 / 4))
    assert type_scores(found_in("the|dogs\na|do|g\n"), gold) == pytest.approx((2 / 5, 2 / 4, 4 / 9))
    everything = [scores(gold.boundary, gold) for scores in (boundary_scores, edge_scores, token_scores, type_scores)]
    assert everything == [(1, 1, 1)] * 4


def test_a_type_counts_once_wherever_it_stands():
    gold = segmented_gold("aabab\n", "a|ab|ab|\n")
    assert type_scores(found_in("a|a|b|a|b\n"), gold) == pytest.approx((1 / 2, 1 / 2, 1 / 2))  # a of {a, b}, {a, ab}
    assert token_scores(found_in("a|a|b|a|b\n"), gold) == pytest.approx((1 / 5, 1 / 3, 2 / 8))


def test_words_do_not_have_the_whitespace_around_them():
    """So that alignments have one lexicon, and spaces that are left over are no words."""
    golds = word_gold("to be  or\n\nnot be\n")
    found = {"separator": "to |be | or\n\nnot |be\n", "last letter": "to| be|  or\n\nnot| be\n"}
    for name in golds:
        marked = found_in(found[name])
        assert token_scores(marked, golds[name]) == type_scores(marked, golds[name]) == (1, 1, 1)
    assert edge_scores(np.zeros(18, dtype=bool), golds["separator"]) == pytest.approx((1, 4 / 7, 8 / 11))  # 2 lines


def test_the_two_characters_of_a_line_end_are_one_edge():
    unix, windows = "to be\nor not\n", "to be\r\nor not\r\n"
    kept = [index for index, character in enumerate(windows) if character != "\r"]
    for name, gold in word_gold(windows).items():
        expected = word_gold(unix)[name]
        assert (gold.boundary[kept] == expected.boundary).all() and not gold.boundary[[5, 13]].any()
        assert (gold.edge[kept] == expected.edge).all() and gold.edge[[5, 13]].all()
    split = segmented_gold(windows, "to| be|\r\n|or| not|\r\n")
    same = segmented_gold(unix, "to| be|\n|or| not|\n")
    assert (split.boundary[kept] == same.boundary).all() and (split.edge[kept] == same.edge).all()


def test_tokens_take_both_ends():
    gold = Gold(marks("..X..X...."), marks(".........X"), "abcdefghij")
    # ours: [0,3) right, [3,5) and [5,6) wrong, [6,10) right
    assert token_scores(marks("..X.XX...."), gold) == pytest.approx((2 / 4, 2 / 3, 4 / 7))


def test_segments_cover_the_text():
    assert segments(marks("..X.X..")).tolist() == [[0, 3], [3, 5], [5, 7]]
    assert segments(marks("..X")).tolist() == [[0, 3]] and segments(marks("")).shape == (0, 2)
    assert mean_length(marks("..X.X..")) == pytest.approx(7 / 3) and mean_length(marks("....")) == 4


def test_nestedness_and_agreement():
    below, above = marks("X.X.X..X"), marks("X..XX...")
    assert nestedness(below, above) == pytest.approx(2 / 3) and nestedness(below, marks("........")) == 1
    # 5 of 8 alike; by chance 1/2 * 3/8 + 1/2 * 5/8 = 1/2.
    assert agreement(below, above) == pytest.approx((5 / 8 - 1 / 2) / (1 / 2))
    assert agreement(below, below) == 1 and agreement(marks(".."), marks("..")) == 1


def test_baselines_have_as_many_boundaries():
    signal = np.array([0, 3, 1, 2, 2, 0, 5, 0.5, 1, 0])
    assert written(peak_boundaries(signal, 2)) == ".X....X..."
    assert written(peak_boundaries(signal, 9)) == ".X.X..X.X."
    assert written(regular_boundaries(10, 3)) == "..X..X...X" and not regular_boundaries(10, 0).any()
    assert random_boundaries(50, 7, seed=3).sum() == 7
    assert (random_boundaries(50, 7, seed=3) == random_boundaries(50, 7, seed=3)).all()
    found = baselines(marks(".X...X...."), surprisal=signal, entropy=-signal)
    assert set(found) == {"random", "every k-th", "surprisal peaks", "entropy peaks"}
    assert all(boundaries.sum() == 2 for boundaries in found.values())


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="different texts"):
        boundary_scores(marks("..X"), word_gold("a b c")["separator"])
