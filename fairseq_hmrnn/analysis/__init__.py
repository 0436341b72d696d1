from .plots import plot_boundaries

__all__ = ["plot_boundaries"]
