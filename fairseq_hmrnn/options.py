"""Options that know what they may be: a field of a configuration carries its range or kind beside its help.

`option` makes such a field, `inherited` repeats one of fairseq's with a range added, and `check_config` holds a whole
configuration against its class: whoever is given a configuration calls it before building anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from typing import Any, Callable, Collection, List, Optional, Tuple, Type, Union

from omegaconf.errors import OmegaConfBaseException

LARGEST_SIZE = 1_000_000  # of a layer or an embedding: beyond it no matrix fits into any memory
LARGEST_COUNT = 2**31 - 1  # of symbols, updates and the like
LARGEST_SEED = 2**32 - 1  # as numpy takes it

FEW = 20  # names are all listed where none is like the one that was given

_ALLOWED = "allowed"  # the key of a field's metadata


class OptionError(ValueError):
    """An option has a value without meaning; the message is one line that says what it may be."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `minimum` to `maximum`, whole ones if `kind` is int; open: without these two themselves.

    also: single values outside that have a meaning of their own. optional: None is allowed. many: it is a list.
    """

    kind: Union[Type[int], Type[float]]
    minimum: float
    maximum: float
    open_below: bool = False
    open_above: bool = False
    also: Tuple[float, ...] = ()
    optional: bool = False
    many: bool = False

    def __contains__(self, value: Any) -> bool:
        if self.many:
            return bool(value) and all(map(self._holds, value))
        return self._holds(value) or (self.optional and value is None)

    def _holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value > self.minimum if self.open_below else value >= self.minimum
        below = value < self.maximum if self.open_above else value <= self.maximum
        return (above and below) or value in self.also

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        low = "above" if self.open_below else "from" if self._is_closed() else "at least"
        high = "" if math.isinf(self.maximum) else f" to {self.maximum:.10g}"
        if high and not self._is_closed():
            high = f" and {'below' if self.open_above else 'at most'} {self.maximum:.10g}"
        also = "".join(f", or {value:g}" for value in self.also)
        return f"{noun} {low} {self.minimum:.10g}{high}{also}"

    def _is_closed(self) -> bool:
        return not (self.open_below or self.open_above or math.isinf(self.maximum))

    def __call__(self, text: str):
        """The value that a command line gives, as argparse's `type`; ArgumentTypeError for any other."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self._holds(value):
            raise argparse.ArgumentTypeError(f"must be {self}, not {text}")
        return value

    def check(self, name: str, value: Any) -> None:
        """OptionError unless the value is one of these."""
        if value not in self:
            raise OptionError(f"{name} must be {self}, not {value}")


@dataclasses.dataclass(frozen=True)
class Parsed:
    """Text that `parse` accepts, which raises ValueError with a remedy for any other."""

    parse: Callable[[str], Any]

    def __call__(self, text: str) -> str:
        try:
            self.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    def check(self, name: str, value: Any) -> None:
        """OptionError unless the text can be parsed."""
        try:
            self.parse(value)
        except ValueError as error:
            raise OptionError(str(error)) from error


def whole(minimum: float = 0, maximum: float = LARGEST_COUNT, also: Tuple[float, ...] = (), optional=False) -> Range:
    """Whole numbers from minimum to maximum."""
    return Range(int, minimum, maximum, also=also, optional=optional)


def number(minimum: float = -math.inf, maximum: float = math.inf, **kinds: Any) -> Range:
    """Numbers from minimum to maximum; kinds: further fields of Range. NaN and infinity never are."""
    return Range(float, minimum, maximum, **kinds)


Allowed = Union[Range, Parsed]  # what an option may be

SIZE = whole(1, LARGEST_SIZE)
SIZE_OR_DEFAULT = whole(0, LARGEST_SIZE)  # 0: that of something else
SEED = whole(0, LARGEST_SEED)
PROBABILITY = number(0, 1)
DROPOUT = number(0, 1, open_above=True)
BIAS = number(-100, 100)  # beyond it a sigmoid is 0 or 1 to the last digit
WEIGHT = number(0, 1e6)  # of a term of the loss


def option(default: Any, help: Optional[str], allowed: Optional[Allowed] = None) -> Any:
    """A dataclass field with a default, its help, and what it may be; None for bools, choices and names of files."""
    return dataclasses.field(default=default, metadata={"help": help, _ALLOWED: allowed})


def inherited(config: Type, name: str, allowed: Allowed) -> Any:
    """A field of the base class `config` once more, with what it may be."""
    field = config.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, _ALLOWED: allowed})


def unlisted(config: Type, name: str) -> Any:
    """A field of the base class `config` once more, which no help lists: it has no use here."""
    return dataclasses.field(default=config.__dataclass_fields__[name].default, metadata={"help": argparse.SUPPRESS})


def allowed_of(field: dataclasses.Field) -> Optional[Allowed]:
    """The range or kind of a field made by `option` or `inherited`; None for any other."""
    return field.metadata.get(_ALLOWED)


def check_config(cfg: Any, config: Type) -> None:
    """OptionError, a ValueError, unless every option of cfg may be what it is, alone and together.

    cfg: an instance of the dataclass `config`, or anything with its attributes. A class whose options depend on each
    other has `check_together(cfg)`, a static method that raises ValueError.
    """
    for field in dataclasses.fields(config):
        allowed, value = allowed_of(field), _value(cfg, field.name)
        if allowed is not None and value is not dataclasses.MISSING:
            allowed.check(field.name.replace("_", "-"), value)
    bases: List[Any] = [base for base in reversed(config.__mro__) if "check_together" in vars(base)]
    for base in bases:
        try:
            base.check_together(cfg)
        except ValueError as error:
            raise OptionError(str(error)) from error


def _value(cfg: Any, name: str) -> Any:
    """MISSING where there is none, or where it is an option of another part that cfg does not know."""
    try:
        value = getattr(cfg, name, dataclasses.MISSING)
    except OmegaConfBaseException:
        return dataclasses.MISSING
    return dataclasses.MISSING if isinstance(value, str) and value.startswith("${") else value


class CheckedOptions:
    """Mixed into what fairseq registers with a dataclass: fairseq's commands then refuse a value without meaning as
    they read their arguments."""

    @classmethod
    def add_args(cls, parser):
        super().add_args(CheckingParser(parser, getattr(cls, "__dataclass")))


class CheckingParser:
    """Passes arguments on to a parser, with what each may be as its type, and numbers' ranges in their help. For
    fairseq's `gen_parser_from_dataclass`."""

    def __init__(self, parser, config: Type):
        self.parser = parser
        fields = {field.name.replace("_", "-"): allowed_of(field) for field in dataclasses.fields(config)}
        self.allowed = {f"--{name}": allowed for name, allowed in fields.items() if allowed is not None}

    def add_argument(self, *names, **kwargs):
        allowed = self.allowed.get(names[0])
        if allowed is not None and not getattr(allowed, "many", False):
            kwargs["type"] = allowed
        if isinstance(allowed, Range) and kwargs.get("help"):
            kwargs["help"] += f"; {allowed}"
        return self.parser.add_argument(*names, **kwargs)


def nearest(name: str, known: Collection[str], all_by: str = "fairseq-hmrnn options lists this package's") -> str:
    """The known names that are like this one; else all if they are few, or some and `all_by`, which says where to see
    the others."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(known) <= FEW:
        return f"choose one of {', '.join(sorted(known))}"
    some = difflib.get_close_matches(name, list(known), n=5, cutoff=0)
    return f"there are {len(known)}, such as {', '.join(some)} ({all_by})"
