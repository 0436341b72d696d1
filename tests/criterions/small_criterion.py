"""The criterion of a language model over some dictionary."""

from types import SimpleNamespace

from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy


def criterion_for(dictionary, rates="", weight=1.0, **options):
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return BoundaryRegularizedCrossEntropy(task, False, rates, boundary_weight=weight, **options)
