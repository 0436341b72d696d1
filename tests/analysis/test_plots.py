"""The picture has a cell for every character and layer, in the right place and colour."""

import subprocess
import sys

import numpy as np
import pytest

from fairseq_hmrnn.analysis import plots
from fairseq_hmrnn.analysis.plots import EMPTY_COLOR, LAYER_COLORS, glyph, plot_boundaries, wrap

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb  # noqa: E402

TEXT = "To be,\nor not $2 to\tbe.\n"


def boundaries(text=TEXT, layers=2):
    return (np.arange(len(text) * layers).reshape(len(text), layers) % 3 == 0).astype(float)


def cells(figure):
    """[(line of text, layer) in drawing order] -> (characters, 3) colours."""
    return [collection.get_facecolor()[:, :3] for collection in figure.axes[0].collections]


@pytest.mark.parametrize("suffix, magic", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_saves_by_suffix(tmp_path, suffix, magic):
    path = tmp_path / f"picture.{suffix}"
    plot_boundaries(TEXT, boundaries(), str(path), title="$a$ title $\\frac$")  # no formula
    assert path.read_bytes().startswith(magic)


def test_cells_are_filled_where_z_is_one():
    values = boundaries()
    rows = cells(plot_boundaries(TEXT, values))
    start = 0
    for line, text in enumerate(TEXT.splitlines(keepends=True)):
        for layer in range(2):
            filled = values[start : start + len(text), layer] == 1
            expected = np.where(filled[:, None], to_rgb(LAYER_COLORS[layer]), to_rgb(EMPTY_COLOR))
            assert rows[2 * line + layer] == pytest.approx(expected)
        start += len(text)
    assert start == len(TEXT) and len(rows) == 4


def test_soft_boundaries_are_between():
    row = cells(plot_boundaries("a", [[0.5]]))[0]
    assert row[0] == pytest.approx((np.array(to_rgb(EMPTY_COLOR)) + to_rgb(LAYER_COLORS[0])) / 2)


def test_characters_and_layer_names_are_written():
    written = [text.get_text() for text in plot_boundaries("a b\n", np.zeros((4, 2)), title="T").axes[0].texts]
    assert written == ["T", "a", "\u00b7", "b", "\u21b5", "layer 1", "layer 2"]


@pytest.mark.parametrize(
    "text, width, lines",
    [
        ("abc", 80, ["abc"]),
        ("a\n\nb\n", 80, ["a\n", "\n", "b\n"]),
        ("the quick fox", 10, ["the quick ", "fox"]),
        ("a longlonglongword", 8, ["a longlo", "nglongwo", "rd"]),
        ("abcd\n", 4, ["abcd", "\n"]),
    ],
)
def test_wrap(text, width, lines):
    assert [text[start:stop] for start, stop in wrap(text, width)] == lines


def test_invisible_characters_have_stand_ins():
    assert [glyph(character) for character in "a\u00e9 \n\t\u3000\x00"] == [
        "a",
        "\u00e9",
        "\u00b7",
        "\u21b5",
        "\u21e5",
        "\u25a1",
        "\u25a1",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", np.zeros((0, 2))), "must not be empty"),
        (("abc", np.zeros((2, 2))), r"must be \(3, layers\)"),
        (("abc", np.zeros(3)), r"must be \(3, layers\)"),
        (("a", [[2.0]]), r"\[0, 1\]"),
        (("a", [[np.nan]]), r"\[0, 1\]"),
        (("a", [[1]], "picture.gif"), "suffix"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_boundaries(*arguments)


def test_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"requires matplotlib: pip install matplotlib"):
        plot_boundaries("a", [[1]])


def test_import_loads_neither_torch_nor_matplotlib():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('plots', {plots.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_norms_have_a_scale_for_each_layer():
    figure = plots.plot_norms("abc", [[2, 7], [4, 7], [3, 7]])
    first, second = cells(figure)
    assert first[0].sum() > first[2].sum() > first[1].sum()  # darker as the norm grows
    assert first[2] == pytest.approx((first[0] + first[1]) / 2)
    assert second == pytest.approx(np.stack([first[0]] * 3))
    assert [text.get_text() for text in figure.axes[0].texts][3:] == ["layer 1, 2.0 to 4.0", "layer 2, 7.0 to 7.0"]
    with pytest.raises(ValueError, match="norms must lie in"):
        plots.plot_norms("a", [[-1.0]])
