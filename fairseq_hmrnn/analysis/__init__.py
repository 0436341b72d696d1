from .page import boundary_page
from .plots import plot_boundaries, plot_norms
from .training import plot_training, read_log

__all__ = ["boundary_page", "plot_boundaries", "plot_norms", "plot_training", "read_log"]
