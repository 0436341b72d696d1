"""Boundaries, segments, and how well they agree with gold ones. Arrays in, numbers out.

Conventions. A boundary at step t closes a segment that includes the symbol read at t. Gold word boundaries in text
with separators are the steps that read a word's separator; `word_gold` has the word's last letter as well, since a
model may foresee the separator. A model may also cut one symbol late, having read the first symbol of the next
segment: `late` says so, and what was found is then moved back before it is scored. Steps that end an utterance, a line
of the text, are `edge`s: they are given. One alignment is chosen for a layer as a whole, never word by word.

The scores are those of word segmentation (Brent 1999, Machine Learning 34; Goldwater, Griffiths and Johnson 2009,
Cognition 112, section 5.1), counted over the whole text, never averaged over lines. A word is a segment that is more
than whitespace; edges close segments in what was found and in gold alike.

    boundaries   `boundary_scores`: of those within utterances. With edges (`edge_scores`) the begin and the end of
                 every utterance count too, which are right by themselves
    tokens       `token_scores`: words at their place. Right: begin and end are, and no boundary lies between
    types        `type_scores`: the lexicons, each word once, without the whitespace around it, wherever it stands
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Dict, List, NamedTuple, Set, Tuple

import numpy as np

from ..text import code_points, split_segments


class Scores(NamedTuple):
    """Precision, recall and F1, each in [0, 1]; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, hits: int, found: int, gold: int) -> Scores:
        """From the number of hits, of what was found, and of what there is to find."""
        return cls(hits / max(found, 1), hits / max(gold, 1), 2 * hits / max(found + gold, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Gold:
    """Gold boundaries of a text of T symbols.

    boundary: (T,) bool. edge: (T,) bool, where boundaries are given. text: its symbols, one character each, for scores
    of words. late: how many steps after a gold boundary a found one stands that is the same.
    """

    boundary: np.ndarray
    edge: np.ndarray
    text: str = ""
    late: int = 0

    @functools.cached_property
    def letters_before(self) -> np.ndarray:
        """(T + 1,), how many of the symbols before each place are no whitespace."""
        return np.append(0, np.cumsum(~_spaces(self.text)))

    @functools.cached_property
    def words(self) -> np.ndarray:
        """(N, 2), its words, as of `_words`."""
        return _words(self.boundary, self)

    @functools.cached_property
    def lexicon(self) -> Set[str]:
        return _lexicon(self.words, self.text)


def word_gold(text: str) -> Dict[str, Gold]:
    """Word boundaries of a text with separators under both alignments, "separator" and "last letter".

    Of several whitespace characters in a row the first one ends the word. Line ends are edges.
    """
    space, newline = _spaces(text), _line_ends(text)
    separator = space & ~_shifted(space, 1, True)
    letter = ~space & _shifted(space, -1, True)
    before_newline = _shifted(newline, -1, True)
    return {
        "separator": Gold(separator & ~newline, newline, text),
        "last letter": Gold(letter & ~before_newline, newline | (letter & before_newline), text),
    }


def line_gold(text: str) -> Gold:
    """Sentence ends of a text with one sentence on a line: the steps that read a newline. The text's end is an edge."""
    newline = _newlines(text)
    edge = np.zeros_like(newline)
    edge[-1:] = True
    return Gold(newline & ~edge, edge, text)


def segmented_gold(text: str, segmented: str, separator: str = "|") -> Gold:
    """Boundaries of `segmented`, the same text with `separator` after each segment. Line ends are edges.

    Raises:
        ValueError: it is another text, or has no separator, or the text itself has some.
    """
    if not separator or separator not in segmented:
        raise ValueError(f"the gold text has no separator {separator!r}: write one after each segment, or name its own")
    if separator in text:
        raise ValueError(f"the text itself holds the separator {separator!r}: choose another for the gold text")
    plain, boundary = split_segments(segmented, separator)
    if plain != text:
        if len(plain) != len(text):
            raise ValueError(
                f"the gold text has {len(plain)} characters without its separators, the text has {len(text)}: it must "
                "be the same text with separators added and nothing else changed"
            )
        place = next(index for index, pair in enumerate(zip(plain, text)) if pair[0] != pair[1])
        raise ValueError(
            f"the gold text differs from the text at character {place + 1}: {plain[place]!r}, not {text[place]!r}"
        )
    ends = _line_ends(text)
    edge = ends | _shifted(ends, -1, True)
    return Gold(boundary & ~edge, edge, text)


def late(gold: Gold) -> Gold:
    """The same for boundaries found one step later: at the first symbol of the next segment."""
    return dataclasses.replace(gold, late=gold.late + 1)


def boundary_scores(found, gold: Gold, tolerance: int = 0) -> Scores:
    """Scores of the boundaries found, (T,) bool, away from edges. A boundary within `tolerance` steps of a gold one is
    a hit; each counts once at most. ValueError for another length, as in the other scores."""
    return Scores.of(*_boundary_counts(found, gold, tolerance))


def edge_scores(found, gold: Gold) -> Scores:
    """Scores of boundaries together with the edges: each utterance that is more than whitespace has two more, found and
    right."""
    given = 2 * len(_words(np.zeros_like(gold.edge), gold))
    return Scores.of(*(count + given for count in _boundary_counts(found, gold)))


def token_scores(found, gold: Gold) -> Scores:
    """Scores of words at their place: a hit has both ends right and no boundary within."""
    ours, theirs = (_codes(words, len(gold.text)) for words in (_words(_aligned(found, gold), gold), gold.words))
    return Scores.of(np.intersect1d(ours, theirs, assume_unique=True).size, ours.size, theirs.size)


def type_scores(found, gold: Gold) -> Scores:
    """Scores of the lexicon: the different words found, of which those are hits that are words of gold anywhere."""
    ours, theirs = _lexicon(_words(_aligned(found, gold), gold), gold.text), gold.lexicon
    return Scores.of(len(ours & theirs), len(ours), len(theirs))


def segments(boundaries) -> np.ndarray:
    """Boundaries (T,) to segments (N, 2), rows [start, stop); the last one may be open."""
    boundaries = np.asarray(boundaries, dtype=bool)
    stops = np.flatnonzero(boundaries) + 1
    if boundaries.size and not boundaries[-1]:
        stops = np.append(stops, boundaries.size)
    return np.stack([np.append(0, stops[:-1]), stops], axis=1) if stops.size else np.zeros((0, 2), dtype=int)


def mean_length(boundaries) -> float:
    """Mean number of steps in a segment of boundaries (T,), the open one at the end included."""
    found = segments(boundaries)
    return float((found[:, 1] - found[:, 0]).mean()) if len(found) else 0.0


def nestedness(below, above) -> float:
    """Share of the boundaries of `above`, (T,), that are boundaries of `below` too; 1 if there are none."""
    below, above = np.asarray(below, dtype=bool), np.asarray(above, dtype=bool)
    return float((below & above).sum() / above.sum()) if above.any() else 1.0


def agreement(first, second) -> float:
    """Cohen's kappa of two layers' decisions, (T,) each: 1 for equal ones, 0 for what chance gives at these rates."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    observed = (first == second).mean()
    expected = first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean())
    return float((observed - expected) / (1 - expected)) if expected < 1 else 1.0


def random_boundaries(length: int, count: int, seed: int = 0) -> np.ndarray:
    """(T,) bool with `count` boundaries anywhere."""
    boundaries = np.zeros(length, dtype=bool)
    boundaries[np.random.default_rng(seed).choice(length, min(count, length), replace=False)] = True
    return boundaries


def regular_boundaries(length: int, count: int) -> np.ndarray:
    """(T,) bool with `count` boundaries at equal distances: every k-th symbol, k rounded where it must."""
    boundaries = np.zeros(length, dtype=bool)
    boundaries[(np.arange(1, count + 1) * length // max(count, 1) - 1)[:length]] = count > 0
    return boundaries


def peak_boundaries(signal, count: int) -> np.ndarray:
    """(T,) bool at the `count` highest local maxima of a signal (T,), such as the next symbol's entropy at each step.
    Where it has fewer maxima than that, all of them."""
    signal = np.asarray(signal, dtype=float)
    padded = np.concatenate([[-np.inf], signal, [-np.inf]])
    peaks = np.flatnonzero((signal > padded[:-2]) & (signal >= padded[2:]))
    boundaries = np.zeros(signal.size, dtype=bool)
    boundaries[peaks[np.argsort(-signal[peaks], kind="stable")[:count]]] = True
    return boundaries


def baselines(boundaries, surprisal=None, entropy=None, seed: int = 0) -> Dict[str, np.ndarray]:
    """The baselines of a table, beside the boundaries (T,) that a layer found: as many, placed without its detector.

    surprisal, entropy: (T,), of the next symbol at each step.
    """
    length, count = len(boundaries), int(np.asarray(boundaries, dtype=bool).sum())
    named = {"random": random_boundaries(length, count, seed), "every k-th": regular_boundaries(length, count)}
    for name, signal in (("surprisal peaks", surprisal), ("entropy peaks", entropy)):
        if signal is not None:
            named[name] = peak_boundaries(signal, count)
    return named


def _shifted(marks: np.ndarray, by: int, fill: bool) -> np.ndarray:
    """Marks moved `by` steps later (1) or earlier (-1)."""
    moved = np.full_like(marks, fill)
    if by > 0:
        moved[by:] = marks[:-by]
    else:
        moved[:by] = marks[-by:]
    return moved


def _aligned(found, gold: Gold) -> np.ndarray:
    """Found boundaries where gold ones stand if they are the same. ValueError if they are of another text."""
    found = np.asarray(found, dtype=bool)
    if found.shape != gold.boundary.shape:
        raise ValueError(f"boundaries {found.shape} and gold boundaries {gold.boundary.shape} are of different texts")
    return _shifted(found, -gold.late, False) if gold.late else found


def _boundary_counts(found, gold: Gold, tolerance: int = 0) -> Tuple[int, int, int]:
    """Hits, boundaries found and gold ones, away from edges."""
    ours, theirs = (np.flatnonzero(marks & ~gold.edge) for marks in (_aligned(found, gold), gold.boundary))
    if tolerance:
        return _matches(ours.tolist(), theirs.tolist(), tolerance), ours.size, theirs.size
    return np.intersect1d(ours, theirs, assume_unique=True).size, ours.size, theirs.size


def _words(marks: np.ndarray, gold: Gold) -> np.ndarray:
    """Segments (N, 2) between marks and edges that are more than whitespace."""
    spans = segments(marks | gold.edge)
    return spans[gold.letters_before[spans[:, 1]] > gold.letters_before[spans[:, 0]]]


def _lexicon(words: np.ndarray, text: str) -> Set[str]:
    """The different words as text, without the whitespace around them."""
    starts, stops = words.T.tolist()  # not a list for each word, which the garbage collector would follow
    return {word.strip() for word in {text[start:stop] for start, stop in zip(starts, stops)}}


def _newlines(text: str) -> np.ndarray:
    return code_points(text) == ord("\n")


def _line_ends(text: str) -> np.ndarray:
    """(T,) bool: newlines, and the carriage return before one."""
    newline = _newlines(text)
    return newline | ((code_points(text) == ord("\r")) & _shifted(newline, -1, False))


def _spaces(text: str) -> np.ndarray:
    """(T,) bool: whitespace of any kind."""
    points = code_points(text)
    kinds = np.flatnonzero(np.bincount(points, minlength=1))
    return np.isin(points, [point for point in kinds.tolist() if chr(point).isspace()])


def _codes(pairs: np.ndarray, length: int) -> np.ndarray:
    """One number for each (start, stop)."""
    return pairs[:, 0].astype(np.int64) * (length + 1) + pairs[:, 1]


def _matches(ours: List[int], theirs: List[int], tolerance: int) -> int:
    """The most pairs that can be made of two sorted lists, the places of a pair at most `tolerance` apart."""
    hits = i = j = 0
    while i < len(ours) and j < len(theirs):
        if abs(ours[i] - theirs[j]) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return hits
