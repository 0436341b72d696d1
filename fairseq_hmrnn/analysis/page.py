"""A page to look at in a browser: a text with each layer's boundaries under it. One file that loads nothing.

What it looks like and does stands in page.html; here it is given its data.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional

import numpy as np

from . import segments
from .plots import glyph

TEMPLATE = os.path.join(os.path.dirname(__file__), "page.html")
PLACE = "@DATA@"
TITLE = "Boundaries"
# In JSON they stand within strings alone; so written they end no script and begin no markup.
ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def boundary_page(
    text: str, boundaries, boundary_probs, gold: Optional[segments.Gold] = None, title: Optional[str] = None
) -> str:
    """HTML of a page that shows boundaries as colours under their characters, and z and z~ of the one pointed at.

    Args:
        text: T characters.
        boundaries: (T, L), z, a boundary above .5. Column 0 is the lowest layer and is drawn nearest to the text.
        boundary_probs: (T, L), z~ in [0, 1].
        gold: its boundaries get a row of their own, and each layer says how well it agrees.
        title: a heading.
    Raises:
        ValueError: sizes or values that do not fit.
    """
    marks, probs = np.asarray(boundaries) > 0.5, np.asarray(boundary_probs, dtype=float)
    if not text or marks.ndim != 2 or len(marks) != len(text) or probs.shape != marks.shape:
        raise ValueError(f"boundaries {marks.shape} and probabilities {probs.shape} must be ({len(text)}, layers)")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("boundary_probs must lie in [0, 1]")
    rows = [_layer(number, z, p, gold) for number, (z, p) in enumerate(zip(marks.T, probs.T), 1)]
    if gold is not None:
        rows.append(_row("gold", _length(gold.boundary), "g", gold.boundary, None))
    stand_ins = {character: glyph(character) for character in sorted(set(text)) if glyph(character) != character}
    data = {"title": title or TITLE, "text": text, "rows": rows, "stand_ins": stand_ins}
    with open(TEMPLATE, encoding="utf-8") as file:
        before, after = file.read().split(PLACE)
    return before + json.dumps(data, separators=(",", ":")).translate(ESCAPES) + after


def _layer(number: int, marks: np.ndarray, probs: np.ndarray, gold: Optional[segments.Gold]) -> Dict[str, Any]:
    note = _length(marks)
    if gold is not None:
        scores = segments.boundary_scores(marks, gold)
        note += f"; P {scores.precision:.2f}, R {scores.recall:.2f}, F1 {scores.f1:.2f}"
    return _row(f"layer {number}", note, str(number), marks, np.rint(probs * 1000).astype(int).tolist())


def _row(name: str, note: str, key: str, marks: np.ndarray, probs: Optional[List[int]]) -> Dict[str, Any]:
    """A row under the text, as the page's script takes it. key: of the keyboard, which switches it."""
    return {"name": name, "note": note, "key": key, "marks": "".join(np.where(marks, "1", "0")), "probs": probs}


def _length(marks: np.ndarray) -> str:
    return f"every {1 / marks.mean():.1f} characters" if marks.any() else "none"
