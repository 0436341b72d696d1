"""Print every option that the package adds to fairseq's commands, with the values it may have.

    fairseq-hmrnn options | less

`fairseq-train --help` stops before it comes to the options of models, tasks and criterions.
"""

from __future__ import annotations

import argparse

from fairseq.dataclass.utils import gen_parser_from_dataclass

from ..criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropyConfig
from ..criterions.handwriting import HandwritingLikelihoodConfig
from ..models.config import HMLSTMLanguageModelConfig
from ..models.handwriting import HMLSTMHandwritingConfig
from ..models.translation.config import HMLSTMLSTMConfig, HMLSTMTransformerConfig, HMLSTMTranslationConfig
from ..optim.lr_scheduler import ExactReduceLROnPlateauConfig
from ..options import CheckingParser
from ..tasks.handwriting import HMLSTMHandwritingTaskConfig
from ..tasks.hmlstm_language_modeling import HMLSTMLanguageModelingConfig
from .arguments import Parser

OPTIONS = {
    "--task hmlstm_language_modeling": HMLSTMLanguageModelingConfig,
    "--criterion boundary_regularized_cross_entropy": BoundaryRegularizedCrossEntropyConfig,
    "--arch hmlstm_lm": HMLSTMLanguageModelConfig,
    "--arch hmlstm": HMLSTMTranslationConfig,
    "--arch hmlstm_lstm": HMLSTMLSTMConfig,
    "--arch hmlstm_transformer": HMLSTMTransformerConfig,
    "--task hmlstm_handwriting": HMLSTMHandwritingTaskConfig,
    "--criterion handwriting_likelihood": HandwritingLikelihoodConfig,
    "--arch hmlstm_handwriting": HMLSTMHandwritingConfig,
    "--lr-scheduler exact_reduce_lr_on_plateau": ExactReduceLROnPlateauConfig,
}


def add_arguments(parser: Parser) -> None:
    """It has none."""


def run(args: argparse.Namespace) -> None:
    for choice, config in OPTIONS.items():
        style = argparse.ArgumentDefaultsHelpFormatter
        parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=style)
        group = CheckingParser(parser.add_argument_group(f"with {choice}"), config)
        gen_parser_from_dataclass(group, config())
        print(parser.format_help())
