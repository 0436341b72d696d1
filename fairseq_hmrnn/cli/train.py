"""Train a recipe, or a model that suits a folder of data, and score the test split.

    fairseq-hmrnn train ptb_small data/ptb -- optimization.max_update=1000
    fairseq-hmrnn train my.yaml data/mytext --save-dir checkpoints/mine
    fairseq-hmrnn train data/mytext -- --max-update 2000 --lr 0.001

--dry-run prints fairseq's command; with a recipe it writes the file that the command reads to SAVE_DIR/recipe.
The same command again resumes an interrupted training. What follows -- goes to fairseq-train, or with a recipe to
fairseq-hydra-train, and wins: any setting of its sections, also one that the recipe leaves at its default.

For a folder of prepared text the model is chosen by the number of symbols in its training split, and the command is
printed before it runs:
  below a million     as the recipe character_lm: 3 layers of 256; at least 1,000 updates
  below 20 million    as the recipe ptb_small: layers of 464, 144 and 144
  else                as the recipe ptb: 3 layers of 512
Boundary regularisers (docs/boundaries.md): from a million symbols on those that find words and sentences, uncertainty
and unforeseen, where spaces stand between words; for less text the rates of the recipe; lexicon where there are no
spaces. A folder of `prepare translation` gets a translation model:
  below 3 million     hmlstm_small: 27 epochs, at least 3,000 updates, the learning rate falling to 0, or until
                      validation has not improved for 5 epochs
  else                hmlstm_lstm_iwslt_de_en: 10 epochs
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import re
import shlex
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Pattern

from ..data.folders import DESCRIPTION, DICTIONARY, how_to_prepare
from . import scoring
from .arguments import Parser, folder_to_write, path
from .choice import choose
from .errors import UserError
from .fairseq_command import call, has_gpu
from .given import Given
from .named_files import make_absolute
from .prepare import KINDS
from .processes import rank
from .recipe import RECIPES, is_recipe, load_recipe, recipe_stem, with_folders, write_recipe
from .settings import check_recipe, settle, standing_alone

LANGUAGE_MODELING, HANDWRITING = "hmlstm_language_modeling", "hmlstm_handwriting"
LOCK = ".lock"  # of a folder of checkpoints, held by the training that writes to it
# Settings with which other data or another model would be scored than was trained.
GIVEN_BEFORE = {"checkpoint.save_dir": "checkpoints as --save-dir", "task.data": "data as DATA"}
# Settings after --, as hydra takes them, and as fairseq-train does, except for hydra's own options.
OF_HYDRA = re.compile(r"\+{0,2}[a-z_]+\.[a-z_.]+=")
OF_FAIRSEQ_TRAIN = re.compile(
    r"--(?!(help|hydra-help|version|cfg|resolve|package|run|multirun|shell-completion|config-|experimental-rerun|info))"
)
# Of a folder that was prepared for a task: a file in it.
PREPARED = {LANGUAGE_MODELING: DICTIONARY, HANDWRITING: DESCRIPTION}


def add_arguments(parser: Parser) -> None:
    parser.usage = "fairseq-hmrnn train [-h] [--save-dir DIR] [--dry-run] [--no-score] WHAT [DATA] [-- OPTIONS]"
    parser.add_argument(
        "what",
        metavar="WHAT",
        type=path,
        help=f"a recipe ({', '.join(RECIPES)}), a YAML file of one, or a folder of prepared data",
    )
    parser.add_argument("data", metavar="DATA", nargs="?", type=path, help="the recipe's folder of prepared data")
    parser.add_argument(
        "--save-dir",
        metavar="DIR",
        type=folder_to_write,
        help="where checkpoints, scores and a recipe's log are kept (default: checkpoints/NAME, of the recipe or the "
        "folder; for FOLDER/bin checkpoints/FOLDER)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print fairseq's command, do not run it")
    parser.add_argument("--no-score", action="store_true", help="leave the test split alone")


def run(args: argparse.Namespace) -> None:
    by_recipe = _check(args)
    data = os.path.abspath(args.data if by_recipe else args.what)
    given = Given(args.passed_on)
    save_dir = os.path.abspath(args.save_dir or given.value_of("--save-dir") or default_save_dir(args.what))
    training = _by_recipe(args, data, save_dir) if by_recipe else _for_folder(args, data, save_dir)
    if args.dry_run and training.write is None:
        print(shlex.join([training.command, *training.arguments]))
        return
    folder_to_write(save_dir)  # argparse has not seen the default, nor what stands after --
    os.makedirs(save_dir, exist_ok=True)
    is_first = rank(given) == 0
    with _held(save_dir) if is_first else contextlib.nullcontext():
        if training.write is not None:
            training.write()
        print(shlex.join([training.command, *training.arguments]), flush=True)
        if args.dry_run:
            return
        call(training.command, training.arguments)
        if is_first and not args.no_score:
            on_cpu = {"--cpu", "common.cpu=true"} & {setting.lstrip("+").lower() for setting in args.passed_on}
            scoring.score(training.task, data, save_dir, bool(on_cpu) or not has_gpu())


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """Keep other trainings out of a folder of checkpoints meanwhile: two would overwrite each other's files.
    UserError if one is there. The lock ends with the process, however it ends; an empty file stays."""
    with open(os.path.join(folder, LOCK), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another training writes to {folder}: wait for its end, or give another --save-dir"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


class Training(NamedTuple):
    """A command of fairseq's, its arguments, the task that it trains, and what writes the file that it reads, if it
    reads one."""

    command: str
    arguments: List[str]
    task: str
    write: Optional[Callable[[], None]] = None


def _check(args: argparse.Namespace) -> bool:
    """Whether WHAT is a recipe; UserError if it is no folder either, and if DATA is missing or superfluous."""
    what = args.what
    recipes = f"nor a recipe of that name: recipes are {', '.join(RECIPES)}"
    if is_recipe(what):
        if what not in RECIPES and not os.path.exists(what):
            raise UserError(f"there is no file {what}, {recipes}")
        for name, remedy in GIVEN_BEFORE.items():
            if any(setting.lstrip("+").startswith(f"{name}=") for setting in args.passed_on):
                raise UserError(f"give the folder of {remedy}, before --")
        if args.data is None:
            raise UserError(f"{what} is a recipe: give its folder of data too (a folder of that name is ./{what})")
        if not os.path.isdir(args.data):
            raise UserError(f"there is no folder {args.data}: {_how_to_prepare(what, args.data)}")
        _refuse(args.passed_on, OF_FAIRSEQ_TRAIN, "with a recipe it is written as in optimization.max_update=100")
        return True
    if os.path.isfile(what):
        how = f"fairseq-hmrnn prepare text {shlex.quote(what)} --dest DIR"
        raise UserError(f"{what} is a file: prepare it first: {how}")
    if not os.path.isdir(what):
        raise UserError(f"there is no folder {what}, {recipes}")
    if args.data in RECIPES:
        raise UserError(f"the recipe goes first: fairseq-hmrnn train {args.data} {shlex.quote(what)}")
    if args.data is not None:
        raise UserError(f"{what} is not a recipe: give one folder, and fairseq-train's options after --")
    _refuse(args.passed_on, OF_HYDRA, "with a folder it is written as in --max-update 100")
    if args.save_dir and Given(args.passed_on).value_of("--save-dir"):
        raise UserError("--save-dir is given before and after --: give it once")
    return False


def _refuse(settings: List[str], kind: Pattern[str], how: str) -> None:
    """UserError for settings, of those after --, that are written in the other command's way."""
    wrong = [setting for setting in standing_alone(settings) if kind.match(setting)]
    if wrong:
        raise UserError(f"{wrong[0]} cannot be used here: {how}")


def default_save_dir(what: str) -> str:
    """For a recipe, a YAML file or a folder of data; for FOLDER/bin, where pairs are prepared, by FOLDER's name."""
    above, name = os.path.split(os.path.abspath(what))
    name = os.path.basename(above) or name if name == "bin" else name
    return os.path.join("checkpoints", os.path.splitext(name)[0] if os.path.isfile(what) else name)


def _how_to_prepare(recipe: str, data: str) -> str:
    kind = recipe.split("_")[0]
    return f"run fairseq-hmrnn prepare {kind} first" if kind in KINDS else how_to_prepare(data)


def _by_recipe(args: argparse.Namespace, data: str, save_dir: str) -> Training:
    recipe = load_recipe(args.what)
    check_recipe(recipe, str(RECIPES.get(args.what, args.what)))
    make_absolute(recipe)
    settings = settle(recipe, args.passed_on)
    task = recipe.task.get("_name")
    if task is None:
        raise UserError(f"{args.what} is not a recipe: its section task has no _name, such as {LANGUAGE_MODELING}")
    if task in PREPARED and not os.path.isfile(os.path.join(data, PREPARED[task])):
        how = _how_to_prepare("handwriting" if task == HANDWRITING else args.what, data)
        raise UserError(f"no {data}/{PREPARED[task]}: {how}")
    folder, stem = os.path.join(save_dir, "recipe"), recipe_stem(args.what)
    common: Dict[str, Any] = {} if has_gpu() else {"cpu": True}
    placed = with_folders(recipe, data, save_dir, **common)
    write = functools.partial(write_recipe, placed, os.path.join(folder, f"{stem}.yaml"))
    return Training("fairseq-hydra-train", ["--config-dir", folder, "--config-name", stem, *settings], task, write)


def _for_folder(args: argparse.Namespace, data: str, save_dir: str) -> Training:
    choice = choose(data, save_dir, args.passed_on, cpu=not has_gpu())
    print(choice.reason)
    return Training("fairseq-train", choice.arguments, Given(choice.arguments).value_of("--task") or LANGUAGE_MODELING)
