"""Options that criterions with regularisers on boundaries have in common."""

from dataclasses import dataclass

from fairseq.criterions.cross_entropy import CrossEntropyCriterionConfig

from ..options import WEIGHT, option
from .boundary_terms import parse_rates, parse_terms


@dataclass
class BoundaryConfig(CrossEntropyCriterionConfig):
    """Options of every criterion with regularisers. An option that regularisers read belongs here: each such criterion
    then has it, and refuses here what does not go together.

    A subclass also has boundary_rates and boundary_regularizers, as far as its criterion takes them.
    """

    boundary_weight: float = option(1.0, "factor on the weights of all boundary regularisers", WEIGHT)

    @staticmethod
    def check_together(cfg) -> None:
        parse_terms(cfg.boundary_regularizers, parse_rates(cfg.boundary_rates))
