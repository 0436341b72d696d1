from .boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy

__all__ = ["BoundaryRegularizedCrossEntropy"]
