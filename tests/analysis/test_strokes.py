"""Pictures of strokes: what is drawn in which colour, and what is refused."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from fairseq_hmrnn.analysis.plots import LAYER_COLORS, TEXT_COLOR  # noqa: E402  (after the check for matplotlib)
from fairseq_hmrnn.analysis.strokes import plot_strokes  # noqa: E402

POINTS = [(0, 0), (1, 1), (2, 0), (4, 0), (5, 1), (6, 3)]
ENDS = [0, 0, 1, 0, 1, 1]  # the last stroke is a dot


def colors_of(axes):
    return [matplotlib.colors.to_hex(color).upper() for color in axes.collections[0].get_colors()]


def test_strokes_are_drawn_and_what_lies_between_them_is_not():
    axes = plot_strokes(POINTS, ENDS).axes
    assert len(axes) == 1
    lines, dots = axes[0].collections
    assert np.array(lines.get_segments()).tolist() == [[[0, 0], [1, 1]], [[1, 1], [2, 0]], [[4, 0], [5, 1]]]
    assert colors_of(axes[0]) == [TEXT_COLOR.upper()] * 3
    assert dots.get_offsets().tolist() == [[6, 3]]


def test_colours_change_where_a_segment_ends(tmp_path):
    boundaries = {"layer 1": [0, 1, 0, 0, 1, 0], "layer 2": np.zeros(6)}
    figure = plot_strokes(POINTS, ENDS, boundaries, str(tmp_path / "a.svg"))
    first, second = figure.axes
    assert colors_of(first) == [color.upper() for color in (LAYER_COLORS[0], LAYER_COLORS[1], LAYER_COLORS[1])]
    assert matplotlib.colors.to_hex(first.collections[1].get_facecolor()[0]).upper() == LAYER_COLORS[2].upper()
    assert len(set(colors_of(second))) == 1
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("flatness", [0.01, 1, 50])
def test_a_line_fills_its_frame_in_equal_scales(flatness, tmp_path, caplog):
    figure = plot_strokes(np.array(POINTS) * [flatness, 1], ENDS, path=str(tmp_path / "a.png"))
    (axes,) = figure.axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_window_extent()
    assert (right - left) / box.width == pytest.approx((top - bottom) / box.height, rel=0.01)
    assert left < 0 and right > 6 * flatness and bottom < 0 and top > 3
    assert not caplog.records  # matplotlib logs that it changes limits


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="finite numbers"):
        plot_strokes([(0, np.nan)], [0])
    with pytest.raises(ValueError, match="finite numbers"):
        plot_strokes(np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="have 6 values"):
        plot_strokes(POINTS, ENDS, {"layer 1": [0, 1]})
    with pytest.raises(ValueError, match="suffix"):
        plot_strokes(POINTS, ENDS, path="a.txt")
