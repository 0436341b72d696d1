"""Pictures of pen strokes. Arrays in, figures out; matplotlib is imported only when a picture is drawn."""

from __future__ import annotations

from typing import Mapping, Optional, Tuple

import numpy as np

from .plots import LAYER_COLORS, TEXT_COLOR, check_path, new_figure, save

_WIDTH = 9.0  # of a picture, in inches
_SMALLEST_HEIGHT, _LARGEST_HEIGHT = 0.5, 8.0  # of one drawing of a line, and of all drawings together
_MARGIN = 0.01  # around it, as a share of its larger side
_LABEL = 0.22  # height of its label
_TOP, _BOTTOM = 0.05, 0.1  # above and below all drawings


def plot_strokes(points, ends, boundaries: Optional[Mapping[str, np.ndarray]] = None, path: Optional[str] = None):
    """A written line; with boundaries once for each kind of them, its strokes changing colour where a segment ends.

    Args:
        points: (N, 2), x to the right and y upwards.
        ends: (N,), not 0 where a stroke ends.
        boundaries: label -> (N,) numbers, a segment ends at those above .5; None: the line in one colour.
        path: where to save, .png, .svg or .pdf; None: do not save.
    Returns:
        The matplotlib `Figure`.
    Raises:
        ValueError: sizes that do not fit, points that are not finite, another suffix.
        ImportError: matplotlib is missing.
    """
    points, ends = np.asarray(points, dtype=float), np.asarray(ends, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"points must be (N, 2) finite numbers, not {points.shape}")
    given = boundaries or {"": np.zeros(len(points))}
    drawings = {label: np.asarray(marks, dtype=float) for label, marks in given.items()}
    if any(len(marks) != len(points) for marks in (ends, *drawings.values())):
        raise ValueError(f"ends and boundaries must have {len(points)} values, one for each point")
    check_path(path)
    margin = _MARGIN * max(np.ptp(points, axis=0).max(), 1e-9)
    low, high = points.min(0) - margin, points.max(0) + margin
    height = _WIDTH * (high - low)[1] / (high - low)[0]
    height = float(np.clip(height, _SMALLEST_HEIGHT, max(_SMALLEST_HEIGHT, _LARGEST_HEIGHT / len(drawings))))
    frame = np.array([_WIDTH, height])
    spare = (frame * ((high - low) / frame).max() - (high - low)) / 2  # where the frame is less flat than the line
    low, high = low - spare, high + spare
    block = height + _LABEL * bool(boundaries)
    total = len(drawings) * block + _TOP + _BOTTOM
    figure = new_figure(_WIDTH + 0.3, total)
    for row, (label, marks) in enumerate(drawings.items()):
        bottom = total - _TOP - (row + 1) * block
        axes = figure.add_axes([0.15 / (_WIDTH + 0.3), bottom / total, _WIDTH / (_WIDTH + 0.3), height / total])
        _draw(axes, points, ends > 0.5, marks > 0.5, (low, high))
        if label:
            axes.text(0, 1, label, transform=axes.transAxes, ha="left", va="bottom", fontsize=8, color=TEXT_COLOR)
    save(figure, path)
    return figure


def _draw(axes, points: np.ndarray, ends: np.ndarray, closes: np.ndarray, box: Tuple[np.ndarray, np.ndarray]) -> None:
    """One line. closes: (N,) bool; a segment's last point belongs to it, and what leads to the next point does not."""
    from matplotlib.collections import LineCollection

    palette = np.array(LAYER_COLORS if closes.any() else [TEXT_COLOR])
    segment = np.append(0, closes.cumsum()[:-1])
    colors = palette[segment % len(palette)]
    drawn = np.flatnonzero(~ends[:-1])
    strokes = np.stack([points[drawn], points[drawn + 1]], axis=1)
    axes.add_collection(LineCollection(strokes, colors=colors[drawn + 1].tolist(), linewidths=1.2, capstyle="round"))
    dots = np.append(True, ends[:-1]) & ends
    axes.scatter(*points[dots].T, s=3, c=colors[dots].tolist())
    axes.set_xlim(box[0][0], box[1][0])
    axes.set_ylim(box[0][1], box[1][1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.axis("off")
