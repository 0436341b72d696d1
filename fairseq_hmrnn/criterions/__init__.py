from .boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy
from .handwriting import HandwritingLikelihood

__all__ = ["BoundaryRegularizedCrossEntropy", "HandwritingLikelihood"]
