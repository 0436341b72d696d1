"""The boundaries over training, from fairseq's log."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Optional, Pattern, Tuple

from .plots import LAYER_COLORS, TEXT_COLOR, check_path, new_figure, save


def logged(names: str) -> Pattern[str]:
    """What finds (name, number) in a line of fairseq's log, as --log-format simple, tqdm and json write it.
    names: a regular expression without groups that are captured."""
    return re.compile(rf'\b({names})"?(?:=|: ?"?|\s+)(\d[\d.]*(?:e[+-]?\d+)?)')


_VALUE = logged(r"z\d+(?:_within)?|word_f1_\d+|num_updates")


def read_log(lines: Iterable[str]) -> Dict[str, List[Tuple[int, float]]]:
    """From the lines of a training's log: z1, z2, ..., z1_within, ..., word_f1_1, ... -> [(update, value)], in training
    and sorted. Of updates that were made again after an interruption the last ones count.

    Raises:
        ValueError: there is no boundary rate in it.
    """
    curves: Dict[str, Dict[int, float]] = {}
    for line in lines:
        if "train_inner" not in line:
            continue
        values = dict(_VALUE.findall(line))
        update = values.pop("num_updates", None)
        for name, value in values.items():
            if update is not None:
                curves.setdefault(name, {})[int(float(update))] = float(value)
    if not any(name.startswith("z") for name in curves):
        raise ValueError(
            "the log has no boundary rates: it must be what fairseq-train printed with --log-format simple or json and "
            "the criterion boundary_regularized_cross_entropy, at least one --log-interval long"
        )
    return {name: sorted(values.items()) for name, values in curves.items()}


def plot_training(curves: Dict[str, List[Tuple[int, float]]], path: Optional[str] = None):
    """Boundary rates over updates by layer, dashed those of the steps within lines, and, where the log has it, F1
    against whitespace below.

    curves: of `read_log`. path: .png, .svg or .pdf, else ValueError; None: do not save. Returns the Figure.
    """
    check_path(path)
    rates = sorted(name for name in curves if name.startswith("z"))
    scores = sorted(name for name in curves if name.startswith("word_f1_"))
    panels = [("boundary rate", rates, None)] + ([("F1 against whitespace", scores, 1.02)] if scores else [])
    figure = new_figure(7.2, 2.5 * len(panels) + 0.4)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names, top) in zip(grid, panels):
        for name in names:
            _plot_curve(axes, name, curves[name])
        axes.set_ylabel(label, color=TEXT_COLOR)
        axes.set_ylim(0, top)
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    grid[-1].set_xlabel("updates", color=TEXT_COLOR)
    figure.tight_layout()
    save(figure, path)
    return figure


def _plot_curve(axes, name: str, curve: List[Tuple[int, float]]) -> None:
    layer, within = int(re.findall(r"\d+", name)[-1]), name.endswith("_within")  # z1, z1_within, word_f1_1
    color = LAYER_COLORS[(layer - 1) % len(LAYER_COLORS)]
    style = dict(linestyle="--", linewidth=1.1) if within else dict(linewidth=1.6, marker="o", markersize=2.2)
    label = f"layer {layer}" + (", within lines" if within else "")
    axes.plot(*zip(*curve), color=color, label=label, **style)
