from .plots import plot_boundaries, plot_norms
from .training import plot_training, read_log

__all__ = ["plot_boundaries", "plot_norms", "plot_training", "read_log"]
