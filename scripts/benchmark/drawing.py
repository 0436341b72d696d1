"""Figures for files, by matplotlib, which requires no screen for them and logs nothing."""

import logging

from fairseq_hmrnn.cli.errors import UserError


def subplots(*args, **options):
    """matplotlib.pyplot.subplots; UserError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("drawing requires matplotlib: pip install matplotlib") from error
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(*args, **options)
