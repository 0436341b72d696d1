"""Pictures of a text. Arrays in, figures out; matplotlib is imported only when a picture is drawn."""

from __future__ import annotations

import os
import unicodedata
from typing import List, Optional, Tuple

import numpy as np

# Okabe and Ito's palette, distinguishable under every common form of colour blindness; layer 1 first.
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
EMPTY_COLOR = "#EEF0F2"
TEXT_COLOR = "#1A1A1A"
FAINT_COLOR = "#A0A6AD"  # stand-ins for what is invisible, less prominent than text
SUFFIXES = (".png", ".svg", ".pdf")
DPI = 160  # of a PNG

_STAND_INS = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u2190", "\u00a0": "\u237d"}

_CELL_INCHES = 0.108  # width of one character
_CHARACTER_HEIGHT = 2.0  # in cells: the line of text,
_LAYER_HEIGHT = 1.0  # one layer's row under it,
_BLOCK_GAP = 1.1  # and the space before the next line of text
_GAP = 0.12  # between neighbouring cells of a row


def wrap(text: str, width: int) -> List[Tuple[int, int]]:
    """Lines [start, stop) of at most `width` characters that cover `text`: they end at a newline, else after the last
    space that leaves a line at least two thirds full, else anywhere."""
    lines, start = [], 0
    while start < len(text):
        newline = text.find("\n", start, start + width)
        stop = min(start + width, len(text))
        if newline >= 0:
            stop = newline + 1
        elif stop < len(text):
            space = text.rfind(" ", start + (2 * width) // 3, stop)
            stop = space + 1 if space >= 0 else stop
        lines.append((start, stop))
        start = stop
    return lines


def glyph(character: str) -> str:
    """The text drawn for a character: itself, or a visible stand-in for what is invisible."""
    if character in _STAND_INS:
        return _STAND_INS[character]
    invisible = character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn")
    return "\u25a1" if invisible else character


def plot_boundaries(text: str, boundaries, path: Optional[str] = None, width: int = 80, title: Optional[str] = None):
    """The paper's figure: under each character of a text one row per layer, a filled cell where a segment ends.

    Args:
        text: T characters. A space is drawn as a middle dot, a newline as a return sign (and it ends the line).
        boundaries: (T, L) array or nested list, z in [0, 1]; a value between (a soft boundary, a probability) is drawn
            paler. Column 0 is the lowest layer and is drawn nearest to the text.
        path: where to save, .png, .svg or .pdf; None: do not save.
        width: the most characters in a line.
        title: a heading, left-aligned.
    Returns:
        The matplotlib `Figure`.
    Raises:
        ValueError: sizes or values that do not fit, another suffix.
        ImportError: matplotlib is missing.
    """
    values = _checked("boundaries", text, boundaries, path, width, largest=1)
    colors = [LAYER_COLORS[layer % len(LAYER_COLORS)] for layer in range(values.shape[1])]
    empty, full = np.array(_rgb(EMPTY_COLOR)), np.array([_rgb(color) for color in colors])
    # Mixed with the empty colour rather than transparent: the same in every format.
    faces = empty + values[..., None] * (full - empty)
    labels = [(f"layer {layer}", color) for layer, color in enumerate(colors, 1)]
    return _picture(text, faces, labels, path, width, title)


def plot_norms(text: str, norms, path: Optional[str] = None, width: int = 80, title: Optional[str] = None):
    """A heat map under a text: one row per layer, from light to dark as the norm of its hidden state h grows.

    Args as `plot_boundaries`, but norms: (T, L), not negative. Each layer has a scale of its own, from its smallest to
    its largest norm in this text, as its label says. Where a layer's colour does not change, it copies its state.
    """
    values = _checked("norms", text, norms, path, width)
    smallest, largest = values.min(0), values.max(0)
    shades = (values - smallest) / np.where(largest > smallest, largest - smallest, 1)
    light, dark = np.array(_rgb("#F3F0E7")), np.array(_rgb("#08306B"))  # also ordered in grey
    faces = light + shades[..., None] * (dark - light)
    ranges = enumerate(zip(smallest, largest), 1)
    labels = [(f"layer {layer}, {low:.1f} to {high:.1f}", TEXT_COLOR) for layer, (low, high) in ranges]
    return _picture(text, faces, labels, path, width, title)


def check_path(path: Optional[str]) -> None:
    """ValueError if no picture can be saved under this name."""
    if path is not None and os.path.splitext(path)[1].lower() not in SUFFIXES:
        raise ValueError(f"cannot save a picture as {path!r}: the suffix must be one of {', '.join(SUFFIXES)}")


def new_figure(width: float, height: float):
    """A matplotlib Figure of a size in inches; ImportError with a remedy if there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing requires matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height))


def save(figure, path: Optional[str]) -> None:
    """Write a figure in the format of the suffix; None: do not."""
    if path is not None:
        figure.savefig(path, dpi=DPI, facecolor="white")


def _rgb(color: str) -> Tuple[float, ...]:
    """ "#RRGGBB" to three numbers in [0, 1]."""
    return tuple(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))


def _picture(text: str, faces: np.ndarray, labels, path: Optional[str], width: int, title: Optional[str]):
    """Text in lines, each with a row of cells per layer. faces: (T, L, 3) colours; labels: (text, colour) of rows."""
    lines = wrap(text, width)
    block = _CHARACTER_HEIGHT + len(labels) * _LAYER_HEIGHT + _BLOCK_GAP
    columns = max([stop - start for start, stop in lines] + [len(title or "")])  # a title's letters need a cell each
    figure, axes = _canvas(columns, len(lines) * block - _BLOCK_GAP, max(len(name) for name, _ in labels), title)
    for row, (start, stop) in enumerate(lines):
        _draw_line(axes, text[start:stop], faces[start:stop], labels, top=row * block)
    save(figure, path)
    return figure


def _checked(name: str, text: str, array, path: Optional[str], width: int, largest: float = np.inf) -> np.ndarray:
    """`array` as a (T, L) float array; raises ValueError if anything cannot be drawn."""
    values = np.asarray(array, dtype=float)
    if not text or width < 1:
        raise ValueError("nothing to draw: text must not be empty and width must be at least 1")
    if values.ndim != 2 or values.shape[0] != len(text) or values.shape[1] < 1:
        raise ValueError(f"{name} must be ({len(text)}, layers) for this text, not {values.shape}")
    if not ((values >= 0) & (values <= largest)).all():
        raise ValueError(f"{name} must lie in [0, {largest:g}]")
    check_path(path)
    return values


def _canvas(columns: int, height: float, label_length: int, title: Optional[str]):
    """A figure whose axes count in cells, y downwards, with room for the labels at the left and the title."""
    left, right, bottom, top = 0.6 * label_length + 1.8, 1.2, 1.0, 3.4 if title else 0.6
    total_width, total_height = left + columns + right, top + height + bottom
    figure = new_figure(total_width * _CELL_INCHES, total_height * _CELL_INCHES)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set_xlim(-left, columns + right)
    axes.set_ylim(height + bottom, -top)
    axes.axis("off")
    if title:
        style = {"color": TEXT_COLOR, "fontsize": 10.5, "fontweight": "bold", "parse_math": False}
        axes.text(0, -1.5, title, ha="left", va="center", **style)
    return figure, axes


def _draw_line(axes, text: str, faces: np.ndarray, labels, top: float) -> None:
    """One line of text with its layers' rows; `faces` is (len(text), L, 3)."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    for column, character in enumerate(text):
        symbol = glyph(character)
        axes.text(
            column + 0.5,
            top + _CHARACTER_HEIGHT / 2,
            symbol,
            ha="center",
            va="center_baseline",
            fontsize=10,
            family="monospace",
            color=TEXT_COLOR if symbol == character else FAINT_COLOR,
            parse_math=False,
        )
    for layer, (name, color) in enumerate(labels):
        y = top + _CHARACTER_HEIGHT + layer * _LAYER_HEIGHT
        cells = [Rectangle((column + _GAP / 2, y), 1 - _GAP, _LAYER_HEIGHT - _GAP) for column in range(len(text))]
        axes.add_collection(PatchCollection(cells, facecolors=faces[:, layer], edgecolors="none"))
        axes.text(
            -0.7, y + (_LAYER_HEIGHT - _GAP) / 2, name, ha="right", va="center_baseline", fontsize=6.8, color=color
        )
