"""The options that a user gives for fairseq, read from their list."""

from __future__ import annotations

import math
from typing import Dict, Mapping, Optional, Sequence

ALIASES = {"--max-sentences": "--batch-size", "-a": "--arch", "-s": "--source-lang", "-t": "--target-lang"}  # fairseq's
Options = Dict[str, Optional[str]]  # None: it takes no value


class Given:
    """Arguments of fairseq-train, --name value or --name=value, or settings as hydra takes them, section.name=value.
    Aliases stand for the options that they mean; of an option that is given twice the last one counts.

    names: of the options.
    """

    def __init__(self, arguments: Sequence[str]):
        self._values: Dict[str, str] = {}
        for argument, following in zip(arguments, [*arguments[1:], ""]):
            name, equals, text = argument.lstrip("+").partition("=")
            self._values[ALIASES.get(name, name)] = text if equals else following
        self.names = {name for name in self._values if name.startswith("-")}

    def value_of(self, option: str, otherwise: Mapping[str, Optional[str]] = {}) -> Optional[str]:
        """The value of an option, that in `otherwise` if the user gives none; None if neither has it."""
        return self._values.get(option, otherwise.get(option))

    def number(self, option: str, otherwise: Mapping[str, Optional[str]] = {}, default: float = 1) -> float:
        """The same as a number, at least 1; `default` for what fairseq would not take as one, too."""
        text = self.value_of(option, otherwise) or ""
        return max(int(text), 1) if text.isdecimal() else default

    def limit(self, option: str) -> float:
        """The value of an option that limits training; infinite for none, 0, and what fairseq would not take."""
        text = self.value_of(option) or ""
        return int(text) if text.isdecimal() and int(text) else math.inf

    def distributed(self, name: str) -> Optional[str]:
        """A setting of processes that train together, such as world_size, however it is written."""
        option = f"--distributed-{name.replace('_', '-')}"
        return self.value_of(option) or self.value_of(f"distributed_training.distributed_{name}")
