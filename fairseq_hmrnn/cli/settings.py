"""Settings of a recipe, its own and those that are given on the command line, section.name=value as hydra reads them.

Hydra takes a setting only if the recipe has it, or with a + before it if it has not (only from 1.1 on is there a ++ for
either), and shows a traceback for a name that nobody knows. Here a name is looked up among the fields of the section's
dataclass and added to the recipe where it is missing, so that any of them can be given alike, and a wrong name or value
ends in one line before anything is built, whether it was given or stands in the recipe's file.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..options import nearest
from .errors import UserError
from .named_files import absolute
from .sections import CHOOSING, NAME, SECTIONS, choices, defaults_of, drop_tied, is_older, settings_of

# Anything else is an option of hydra's, and passed on.
OF_A_SECTION = re.compile(r"[~+]{0,2}(?!hydra\.)[a-z_]+\.[a-zA-Z_]")
EXAMPLE = "write section.name=value, as in model.slope=2"
NO_SECTIONS = ("defaults", "hydra")  # what hydra itself reads in a recipe


def check_recipe(recipe: DictConfig, file: str) -> None:
    """UserError, which names the recipe's file, for a section, a name or a value in it that cannot be."""
    for section in map(str, recipe):
        if section in NO_SECTIONS:
            continue
        _check_section(section, f"{file}: {section}")
        try:
            _fields(recipe, section)
        except (UserError, OmegaConfBaseException) as error:
            raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
        for name, value in recipe[section].items_ex(resolve=False) if recipe[section] else ():
            _check_setting(recipe, section, str(name), value, f"{file}: {section}.{name}")


def settle(recipe: DictConfig, given: List[str]) -> List[str]:
    """The settings `given` as hydra is to be given them; `recipe` gets those that it lacks. Where one of them names
    another model, optimizer and so on than the recipe, the settings of the old one alone are removed from the recipe.

    UserError for a section, a name or a value that cannot be.
    """
    for text in standing_alone(given):
        if not OF_A_SECTION.match(text):
            _check_other(recipe, text)
    settings = {text: _parse(text) for text in given if OF_A_SECTION.match(text)}
    for setting in settings.values():
        section, name = _key(setting)
        if name == NAME and section in CHOOSING and not setting.is_delete():
            _choose(recipe, section, setting.value())
    for section in CHOOSING:
        _complete(recipe, section)
    return [_checked(recipe, settings[text]) if text in settings else text for text in given]


def standing_alone(given: Sequence[str]) -> List[str]:
    """Those of the arguments that follow no option, whose value they might be."""
    return [text for before, text in zip(["", *given], given) if not before.startswith("-")]


def _choose(recipe: DictConfig, section: str, name: Any) -> None:
    """Have a section choose another model, optimizer and so on, without the old one's settings."""
    _check_choice(section, name)
    if name != _values(recipe, section).get(NAME):
        drop_tied(recipe, section)
    _add(recipe, section, {NAME: name})
    fields = _fields(recipe, section)
    for key in [key for key in recipe[section] if fields is not None and key not in (*fields, NAME)]:
        del recipe[section][key]


def _complete(recipe: DictConfig, section: str) -> None:
    """Give what a section chose its defaults, where hydra does not know them."""
    name, settings = _values(recipe, section).get(NAME), _settings(recipe, section)
    if settings is not None and is_older(section, name):
        given = dict(_values(recipe, section))
        _add(recipe, section, {key: value for key, value in defaults_of(settings).items() if key not in given})


def _parse(text: str) -> Override:
    """A setting; UserError for what is none. A value with commas, or that hydra's grammar has no place for, is text."""
    name, equals, value = text.partition("=")
    parse, reason = OverridesParser.create().parse_override, ""
    for written in (text, f"{name}={_quoted(value)}") if equals else (text,):
        try:
            setting = parse(written.lstrip("+"))
            if not setting.is_sweep_override():
                return setting
        except HydraException as error:
            reason = reason or f" ({str(error).splitlines()[0]})"
    raise UserError(f"{text} is not a setting: {EXAMPLE}{reason}")


def _quoted(value: str) -> str:
    """A value as text of hydra's grammar."""
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _check_other(recipe: DictConfig, text: str) -> None:
    """UserError for a name without its section; hydra's options, its own settings and groups are left to it."""
    name = text.partition("=")[0]
    if name.startswith(("-", "+", "~", "hydra")):
        return
    if name in CHOOSING:
        raise UserError(f"{text}: write {name}.{text.replace(name, NAME, 1)}")
    places = [f"{section}.{name}" for section in SECTIONS if name in (_fields(recipe, section) or ())]
    remedy = f"did you mean {' or '.join(places)}?" if places else EXAMPLE
    raise UserError(f"{text!r} is not a setting: {remedy}")


def _key(setting: Override) -> Tuple[str, str]:
    """The section and the name."""
    section, _, name = setting.key_or_group.partition(".")
    return section, name


def _checked(recipe: DictConfig, setting: Override) -> str:
    """A setting as hydra takes it, a file by its absolute name; the recipe has it, or gets it."""
    text, (section, name) = str(setting.input_line), _key(setting)
    if setting.is_delete():
        return text
    value = setting.value()
    _check_section(section, text)
    _check_setting(recipe, section, name, value, text)
    if name not in _values(recipe, section):
        _add(recipe, section, {name: value})
    seen = absolute(name, value)
    if seen != value:
        return f"{section}.{name}={_quoted(seen)}"
    return text


def _add(recipe: DictConfig, section: str, values: Mapping[str, Any]) -> None:
    """To a section, which may be missing or empty."""
    if not recipe.get(section):
        recipe[section] = {}
    recipe[section].update(values)


def _check_section(section: str, text: str) -> None:
    """UserError, which begins with `text`, for a section that fairseq has not."""
    if section not in SECTIONS:
        raise UserError(f"{text}: there is no section {section}: {nearest(section, SECTIONS)}")


def _check_setting(recipe: DictConfig, section: str, name: str, value: Any, text: str) -> None:
    """UserError, which begins with `text`, for a name that the section has not, or a value not of the field's type."""
    fields = _fields(recipe, section)
    if fields is None or name == NAME:
        return
    if name not in fields:
        raise UserError(f"{text}: {_described(recipe, section)} has no {name}: {nearest(name, fields)}")
    structured = OmegaConf.structured(_settings(recipe, section))
    try:
        structured[name] = value
    except OmegaConfBaseException as error:
        if "ListConfig" in str(error):
            raise UserError(f"{text}: a list is written with brackets, such as [1,2]") from error
        raise UserError(f"{text}: {str(error).splitlines()[0]}") from error


def _fields(recipe: DictConfig, section: str) -> Optional[List[str]]:
    """Names that a section may have; None if that is not known, as for parts of fairseq that have no dataclass."""
    kind = _settings(recipe, section)
    return None if kind is None else [field.name for field in dataclasses.fields(kind)]


def _settings(recipe: DictConfig, section: str) -> Optional[type]:
    """The dataclass of the model, task, criterion and so on that the recipe names, or of a section of fairseq's own."""
    name = _values(recipe, section).get(NAME)
    if section in CHOOSING and name is not None:
        _check_choice(section, name)
    return settings_of(section, name)


def _check_choice(section: str, name: Any) -> None:
    """UserError for what is not registered: a section that has a class requires one."""
    if name is None:
        raise UserError(f"{section}.{NAME} cannot be null: choose one of {', '.join(sorted(choices(section)))}")
    if name not in choices(section):
        near = nearest(str(name), choices(section), f"{section}.{NAME}=null lists all")
        raise UserError(f"there is no {section} {name}: {near}")


def _values(recipe: DictConfig, section: str) -> Mapping[str, Any]:
    """A recipe's values of a section; empty if it has none."""
    return recipe.get(section) or {}


def _described(recipe: DictConfig, section: str) -> str:
    name = _values(recipe, section).get(NAME)
    return f"{section} {name}" if name else f"section {section}"
