"""Print the package's folder, for fairseq commands run from anywhere: --user-dir "$(python -m fairseq_hmrnn)".

With --options, print instead every option that the package adds to fairseq's commands: `fairseq-train --help` stops
before it comes to those of models, tasks and criterions.
"""

import argparse
import os

from fairseq.dataclass.utils import gen_parser_from_dataclass

from .cli.arguments import Parser
from .cli.errors import run_command
from .criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropyConfig
from .criterions.handwriting import HandwritingLikelihoodConfig
from .models.config import HMLSTMLanguageModelConfig
from .models.handwriting import HMLSTMHandwritingConfig
from .models.translation.config import HMLSTMLSTMConfig, HMLSTMTransformerConfig, HMLSTMTranslationConfig
from .optim.lr_scheduler import ExactReduceLROnPlateauConfig
from .options import CheckingParser
from .tasks.handwriting import HMLSTMHandwritingTaskConfig
from .tasks.hmlstm_language_modeling import HMLSTMLanguageModelingConfig

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


def print_options() -> None:
    for choice, config in OPTIONS.items():
        style = argparse.ArgumentDefaultsHelpFormatter
        parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=style)
        group = CheckingParser(parser.add_argument_group(f"with {choice}"), config)
        gen_parser_from_dataclass(group, config())
        print(parser.format_help())


def main() -> None:
    parser = Parser(
        prog="python -m fairseq_hmrnn", description="Print the package's folder, for fairseq's --user-dir."
    )
    parser.add_argument("--options", action="store_true", help="print what it adds to fairseq's commands instead")
    if parser.parse_args().options:
        print_options()
    else:
        print(os.path.dirname(os.path.abspath(__file__)))


if __name__ == "__main__":
    run_command(main, "fairseq_hmrnn")
