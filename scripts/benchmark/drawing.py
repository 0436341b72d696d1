"""Figures of the benchmarks, for files; matplotlib logs nothing meanwhile."""

import logging

from fairseq_hmrnn.analysis.plots import new_figure


def subplots(rows=1, columns=1, figsize=(6.4, 4.8), layout=None, **options):
    """As matplotlib.pyplot.subplots, without pyplot. layout: the figure's engine. options: of Figure.subplots."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    figure = new_figure(*figsize)
    figure.set_layout_engine(layout)
    return figure, figure.subplots(rows, columns, **options)
