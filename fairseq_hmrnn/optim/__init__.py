from .lr_scheduler import ExactReduceLROnPlateau

__all__ = ["ExactReduceLROnPlateau"]
