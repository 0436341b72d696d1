"""A published experiment as a configuration of its own, with the names of its folders as plain values.

Given as overrides on a command line they would be read by hydra's grammar, in which quotes, brackets and the like mean
something; a value in a YAML file means itself. Every file of configs/ is a recipe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict

import yaml
from omegaconf import DictConfig, OmegaConf

from .errors import UserError
from .files import write_whole

PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = {file.stem: file for file in sorted((PACKAGE / "configs").glob("*.yaml"))}
HEADER = "# @package _global_\n"
# What no quoting protects in a name, and how it is read: by OmegaConf, or by fairseq, which splits the name there.
MEANINGFUL = {"${": "an interpolation", os.pathsep: "a list of folders", "\n": "two lines"}


def is_recipe(name: str) -> bool:
    """Whether `train` takes it for a recipe's name or file, not for a folder of data."""
    return name in RECIPES or (name.endswith((".yaml", ".yml")) and not os.path.isdir(name))


def load_recipe(name: str) -> DictConfig:
    """A recipe by its name, or of a YAML file; UserError if it is none."""
    path = RECIPES.get(name, name)
    try:
        config = OmegaConf.load(str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("task"), DictConfig):
        raise UserError(f"{path} is not a recipe: it has no section task (copy one of {PACKAGE / 'configs'})")
    for section, values in config.items_ex(resolve=False):
        if section != "defaults" and values is not None and not isinstance(values, DictConfig):
            raise UserError(f"{path}: {section!s} is {values!r}, where a section has settings, a line for each")
    return config


def check_folder(name: str) -> str:
    """The absolute name of a folder; UserError if fairseq would read it as something else."""
    folder = os.path.abspath(name)
    for part, meaning in MEANINGFUL.items():
        if part in folder:
            raise UserError(f"{folder!r} would be read as {meaning}: give the folder a name without {part!r}")
    return folder


def recipe_stem(name: str) -> str:
    """The name, without .yaml, under which a recipe is written to a folder of checkpoints."""
    return name if name in RECIPES else "recipe"


def with_folders(
    recipe: DictConfig, data: str, save_dir: str, user_dir: str = str(PACKAGE), **common: Any
) -> DictConfig:
    """A recipe, see `load_recipe`, with the folders of data and checkpoints. user_dir: the package that fairseq is to
    load. common: settings of that section.

    UserError for a folder whose name would be read as something else.
    """
    folders = {"data": check_folder(data), "save_dir": check_folder(save_dir), "user_dir": check_folder(user_dir)}
    values: Dict[str, Any] = {"common": {"user_dir": folders["user_dir"], **common}, "task": {"data": folders["data"]}}
    values["checkpoint"] = {"save_dir": folders["save_dir"]}
    values["hydra"] = {"run": {"dir": folders["save_dir"]}}
    merged = OmegaConf.merge(recipe, values)
    assert isinstance(merged, DictConfig)
    return merged


def write_recipe(recipe: DictConfig, path: str) -> None:
    """Write a recipe as the YAML file `path`, whose folder is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_whole(path, HEADER + OmegaConf.to_yaml(recipe))
