"""Print every option that the package adds to fairseq's commands, with the values it may have.

    fairseq-hmrnn options | less

`fairseq-train --help` stops before it comes to the options of models, tasks and criterions.
"""

from __future__ import annotations

import argparse
from typing import Dict

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from ..options import CheckingParser
from ..resumption import is_of_this_package
from .arguments import Parser


def registered_options() -> Dict[str, type]:
    """What this package has registered with fairseq, such as "--arch hmlstm_lm", and the dataclass of its options."""
    registries = {"task": TASK_DATACLASS_REGISTRY, "arch": MODEL_DATACLASS_REGISTRY}
    registries.update({kind: registry["dataclass_registry"] for kind, registry in REGISTRIES.items()})
    return {
        f"--{kind.replace('_', '-')} {name}": config
        for kind, registry in registries.items()
        for name, config in registry.items()
        if is_of_this_package(config)
    }


def add_arguments(parser: Parser) -> None:
    """Adds no arguments."""


def run(args: argparse.Namespace) -> None:
    for choice, config in registered_options().items():
        style = argparse.ArgumentDefaultsHelpFormatter
        parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, formatter_class=style)
        group = CheckingParser(parser.add_argument_group(f"with {choice}"), config)
        gen_parser_from_dataclass(group, config())
        print(parser.format_help())
