"""A published experiment as a configuration of its own, with the names of its folders as plain values.

Given as overrides on a command line they would be read by hydra's grammar, in which quotes, brackets and the like mean
something; a value in a YAML file means itself.

    python -m fairseq_hmrnn.cli.recipe NAME DATA SAVE_DIR DEST     # then fairseq-hydra-train --config-dir DEST
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict

from omegaconf import OmegaConf

from .arguments import Parser, path
from .errors import UserError, run_command

PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = sorted(file.stem for file in (PACKAGE / "configs").glob("*.yaml"))
HEADER = "# @package _group_\n"
# What no quoting helps with, and who reads it: OmegaConf, and fairseq, which takes such a name as several.
MEANINGFUL = {"${": "an interpolation", os.pathsep: "a list of folders", "\n": "two lines"}


def write_recipe(name: str, data: str, save_dir: str, dest: str, user_dir: str = str(PACKAGE)) -> None:
    """Write configs/NAME.yaml with the folders of data and checkpoints to the folder `dest`, under the same name.
    user_dir: the package that fairseq is to load.

    UserError for a folder whose name would be read as something else.
    """
    config = OmegaConf.load(str(PACKAGE / "configs" / f"{name}.yaml"))
    folders = {"data": os.path.abspath(data), "save_dir": os.path.abspath(save_dir), "user_dir": user_dir}
    for folder in folders.values():
        for part, meaning in MEANINGFUL.items():
            if part in folder:
                raise UserError(f"{folder!r} would be read as {meaning}: give the folder a name without {part!r}")
    values: Dict[str, Any] = {"common": {"user_dir": folders["user_dir"]}, "task": {"data": folders["data"]}}
    values["checkpoint"] = {"save_dir": folders["save_dir"]}
    values["hydra"] = {"run": {"dir": folders["save_dir"]}}
    text = HEADER + OmegaConf.to_yaml(OmegaConf.merge(config, values))
    target = Path(dest)
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.yaml").write_text(text, encoding="utf-8")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    for folder in ("data", "save_dir", "dest"):
        parser.add_argument(folder, type=path)
    arguments = parser.parse_args()
    write_recipe(arguments.name, arguments.data, arguments.save_dir, arguments.dest)


if __name__ == "__main__":
    run_command(main, "recipe")
