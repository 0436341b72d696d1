"""A setting of fairseq's configuration as an option of its commands."""

from __future__ import annotations

from typing import Any, List

from omegaconf import ListConfig


def as_option(name: str, value: Any) -> List[str]:
    """The option and its value, if it takes one; empty for a value that is the option's absence."""
    if value is None or value is False:
        return []
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    return [option, ",".join(map(str, value)) if isinstance(value, (list, ListConfig)) else str(value)]
