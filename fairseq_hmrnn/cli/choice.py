"""A model and a training for a prepared folder, as options of fairseq-train: those of a recipe, by the size of its
text, with the boundary regularisers that docs/boundaries.md recommends."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import DictConfig

from ..data.batches import block_lengths, count_batches
from ..data.characters import SPACE_SYMBOL, is_character_dictionary
from ..data.dictionaries import read_dictionary
from ..data.folders import DESCRIPTION, DICTIONARY, how_to_prepare, matching
from ..data.indexed import count_symbols, line_lengths
from ..data.streams import JITTER, WindowOptions
from .as_option import as_option
from .errors import UserError
from .given import Given, Options
from .processes import world_size
from .recipe import PACKAGE, check_folder, load_recipe
from .sections import TIED, drop_tied

# The symbols of the training split below which a recipe is chosen.
SIZES = ((1_000_000, "character_lm"), (20_000_000, "ptb_small"), (math.inf, "ptb"))


class Length(NamedTuple):
    """How the length of a training is chosen, below the largest size; the learning rate falls to zero over it (what
    that is worth: docs/results.md).

    fewest: updates; little data gets as many epochs as these take. decay: options of the learning rate.
    """

    fewest: int
    decay: Dict[str, str]


OF_TEXT = Length(1000, {"--lr-scheduler": "polynomial_decay", "--warmup-updates": "50", "--lr": "0.004"})
OF_TRANSLATION = Length(3000, {"--lr-scheduler": "polynomial_decay", "--warmup-updates": "200", "--lr": "0.002"})
# Options of the recipes' schedules, which one that falls to zero does not have.
OF_RECIPE_SCHEDULES = {"--lr-shrink", "--lr-patience", "--lr-threshold"}
END_OF_RECIPE_SCHEDULES = "--stop-min-lr"  # with which a rate that begins at zero would end training at once
SPACES = 0.05  # the share of spaces from which on a text has separators
WITH_SPACES = {  # words, and above them sentences, which take more text and updates than the smallest recipe has
    "--boundary-rates": "steps:.18,steps:.0085",
    "--boundary-regularizers": "rate+uncertainty=.1,rate=50+unforeseen=0:1:500",
}
WITHOUT_SPACES = {"--boundary-rates": "auto,steps:.05", "--boundary-regularizers": "rate+lexicon,rate"}
FOR_WORDS_WITHOUT_SPACES = {"--detector-hidden": "32"}  # where a lexicon teaches layer 1
FOR_OTHER_LAYERS = "which are for other layers: give --boundary-rates"
DELAYED = {"--boundary-delay": "2"}  # not for the smallest recipe, whose layers do not learn it (docs/boundaries.md)
# The option that chooses the class of a recipe's section. Who gives another class, or any architecture, gives that
# class's options too.
CLASSES = {
    "task": "--task",
    "model": "--arch",
    "criterion": "--criterion",
    "optimizer": "--optimizer",
    "lr_scheduler": "--lr-scheduler",
}
SECTIONS = (*CLASSES, "optimization", "dataset", "checkpoint", "common")
GIVEN_OTHERWISE = {"data", "user_dir", "save_dir"}
ENDINGS = {"--max-epoch", "--max-update"}

TRANSLATION = {
    "--task": "translation", "--required-batch-size-multiple": "1", "--arch": "hmlstm_lstm_iwslt_de_en",
    "--criterion": "boundary_regularized_cross_entropy", "--boundary-rates": "steps:.4", "--label-smoothing": "0.1",
    "--optimizer": "adam", "--lr": "0.001", "--clip-norm": "1", "--max-tokens": "4000", "--max-epoch": "10",
}  # fmt: skip
OF_CRITERION = {"--boundary-rates", "--label-smoothing"}  # of these
# For fewer symbols than these on the longer side (some 150,000 sentences); measured: docs/translation.md.
SMALL_TRANSLATION = 3_000_000
FOR_SMALL_TRANSLATION = {
    **TRANSLATION, "--arch": "hmlstm_small", "--max-tokens": "1500", "--max-epoch": "27", "--patience": "5",
}  # fmt: skip
# Learning rates that were best there, for hmlstm_lstm_small those of hmlstm_lstm; OF_TRANSLATION's suits any other.
RATES_OF_SMALL = {"hmlstm_small": "0.016", "hmlstm_lstm_small": "0.016", "hmlstm_transformer_small": "0.004"}


class Choice(NamedTuple):
    """arguments: of fairseq-train. reason: what they were chosen for, in one line."""

    arguments: List[str]
    reason: str


class Text(NamedTuple):
    """symbols: of its training split. spaces: whether they stand between its words; None where symbols are no
    characters."""

    symbols: int
    spaces: Optional[bool]


def choose(data: str, save_dir: str, given: Sequence[str], cpu: bool) -> Choice:
    """Arguments of fairseq-train for a prepared folder. given: the user's options, which stand last, in place of those
    that they contradict. cpu: that there is no GPU. UserError for a folder that was not prepared."""
    own = Given(given)
    options, reason = (_for_translation if is_translation(data) else _for_text)(data, own, cpu or "--cpu" in own.names)
    options.update({"--no-epoch-checkpoints": None, "--save-dir": check_folder(save_dir)})
    if cpu:
        options["--cpu"] = None
    kept = {name: value for name, value in options.items() if name not in _replaced(own.names)}
    begin = [check_folder(data), "--user-dir", str(PACKAGE)]
    return Choice([*begin, *(part for option in kept.items() for part in option if part is not None), *given], reason)


def is_translation(data: str) -> bool:
    """Whether a folder was prepared for translation."""
    return _has(data, "dict.*.txt") and _has(data, "spm.*.model")


def _has(folder: str, pattern: str) -> bool:
    return bool(matching(folder, pattern))


def _for_translation(data: str, given: Given, cpu: bool) -> Tuple[Options, str]:
    if not _has(data, "valid.*.idx"):
        raise UserError(f"no valid split in {data}: add valid.SRC and valid.TGT to the texts and prepare them again")
    sides = [path[: -len(".idx")] for path in matching(data, "train.*.idx")]
    lengths = [line_lengths(side) for side in _source_first(sides, given)]
    symbols = max((int(lines.sum()) for lines in lengths), default=0)
    options: Options = {**TRANSLATION}
    size = "large"
    if symbols < SMALL_TRANSLATION:
        options, size = {**FOR_SMALL_TRANSLATION}, "small"
        architecture = str(given.value_of("--arch", options))
        decay = {**OF_TRANSLATION.decay, "--lr": RATES_OF_SMALL.get(architecture, OF_TRANSLATION.decay["--lr"])}
        length = OF_TRANSLATION._replace(decay=decay)
        _set_length(options, length, _batches_of_pairs(lengths, given, options), given, cpu)
    if _chooses("criterion", given, TRANSLATION["--criterion"]):
        for name in OF_CRITERION:
            options.pop(name)
    reason = f"two languages, {symbols:,} symbols: a {size} translation model"
    is_other = "--top-boundary" in given.names or _num_layers(given) not in (None, 2)
    if is_other and options.pop("--boundary-rates", None):
        if "--boundary-rates" not in given.names:
            reason += f", without its boundary rates, {FOR_OTHER_LAYERS}"
    options.update(_languages(data, sides, given))
    return options, reason


def _batches_of_pairs(lengths: Sequence[np.ndarray], given: Given, options: Options) -> int:
    """The batches of an epoch: those that fairseq makes of two sides, or about as many of several pairs of languages,
    of which it takes one. lengths: of the lines of each file, the source's first."""
    tokens, sentences = (given.number(name, options, math.inf) for name in ("--max-tokens", "--batch-size"))
    if len(lengths) == 2 and len(lengths[0]) == len(lengths[1]):
        multiple = int(given.number("--required-batch-size-multiple", options))
        return count_batches(lengths, tokens, sentences, multiple)
    return math.ceil(max((int(lines.sum()) for lines in lengths), default=0) / tokens)


def _source_first(sides: Sequence[str], given: Given) -> List[str]:
    """The files of a split, train.SRC-TGT.LANGUAGE, those of the language that is translated before the other's."""
    is_given = given.value_of("--target-lang") is not None  # fairseq infers both otherwise
    source = given.value_of("--source-lang") if is_given else None

    def is_target(side: str) -> bool:
        name = os.path.basename(side)[len("train.") :]
        endings = [name[dot + 1 :] for dot, letter in enumerate(name) if letter == "."]  # names may have dots
        return source not in endings if source else not any(name.startswith(f"{ending}-") for ending in endings)

    return sorted(sides, key=is_target)


def _languages(data: str, sides: Sequence[str], given: Given) -> Options:
    """--source-lang and --target-lang where fairseq could not tell them from the files' names: zh-CN, tok.de."""
    ends = [os.path.basename(side)[len("train.") :] for side in sides]
    languages = [os.path.basename(path)[len("dict.") : -len(".txt")] for path in matching(data, "dict.*.txt")]
    pairs = [(a, b) for a in languages for b in languages if a != b and f"{a}-{b}.{a}" in ends]
    is_given = given.names & {"--source-lang", "--target-lang"}
    if is_given or len(pairs) != 1 or not set("-.").intersection("".join(pairs[0])):
        return {}
    return {"--source-lang": pairs[0][0], "--target-lang": pairs[0][1]}


def _num_layers(given: Given) -> Optional[int]:
    """The number of layers that a user's options choose, by sizes or an architecture: 0 for one without layers, None
    where they choose neither."""
    sizes, name = given.value_of("--hidden-sizes"), given.value_of("--arch")
    if sizes is None and name is not None:
        architecture = argparse.Namespace()
        if name in ARCH_CONFIG_REGISTRY:
            ARCH_CONFIG_REGISTRY[name](architecture)
        of_model = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(name))
        sizes = getattr(architecture, "hidden_sizes", getattr(of_model, "hidden_sizes", ""))
    return None if sizes is None else len(sizes.split(",")) if sizes else 0


def _for_text(data: str, given: Given, cpu: bool) -> Tuple[Options, str]:
    text = look_at(data)
    recipe_name = next(name for limit, name in SIZES if text.symbols < limit)
    recipe = load_recipe(recipe_name)
    for section in TIED:
        if _chooses(section, given, recipe[section]._name):
            drop_tied(recipe, section)
    options = dict(_options_of(recipe, given))
    if recipe_name != SIZES[-1][1]:
        batches = _batches_of_text(data, text.symbols, given, options)
        _set_length(options, OF_TEXT, batches, given, cpu)
    kind = "symbols"
    if text.spaces is not None:
        kind = "characters, with spaces between words" if text.spaces else "characters, without spaces"
        if not _chooses("criterion", given, recipe.criterion._name):
            if not text.spaces:
                options.update(WITHOUT_SPACES if recipe_name == SIZES[0][1] else {**WITHOUT_SPACES, **DELAYED})
            elif recipe_name != SIZES[0][1]:
                options.update(WITH_SPACES)
    reason = f"{text.symbols:,} {kind}: as the recipe {recipe_name}"
    if given.names & {"--arch", "--top-boundary"} or _num_layers(given) not in (None, 3):
        dropped = [options.pop(name, None) for name in (*WITHOUT_SPACES, *DELAYED)]
        if any(dropped) and "--boundary-rates" not in given.names:
            reason += f", without its boundary regularisers, {FOR_OTHER_LAYERS}"
    if "--boundary-regularizers" in given.names:
        options.pop("--boundary-delay", None)  # chosen for others
    if text.spaces is False and CLASSES["model"] not in given.names and _learns_a_lexicon(given, options):
        options.update(FOR_WORDS_WITHOUT_SPACES)
    return options, reason


def _batches_of_text(data: str, symbols: int, given: Given, options: Options) -> int:
    """The batches of an epoch: of so many windows, or of a window of so many streams, as --batch-size allows and
    --max-tokens have room for."""
    length = int(given.number("--tokens-per-sample", options))
    rows, room = given.number("--batch-size", options), given.number("--max-tokens", options, math.inf)
    if "--stateful" not in given.names and "--stateful" not in options:
        mode = given.value_of("--sample-break-mode")
        return count_batches([block_lengths(line_lengths(os.path.join(data, "train")), length, mode)], room, rows)
    windows = WindowOptions(length)
    with contextlib.suppress(argparse.ArgumentTypeError):  # which fairseq refuses later
        jitter = given.value_of("--window-jitter", options) or "0"
        windows = windows._replace(jitter=JITTER(jitter))
    return math.ceil(symbols / (length * windows.count_streams(rows, None if math.isinf(room) else room)))


def _learns_a_lexicon(given: Given, options: Options) -> bool:
    """Whether the regularisers of layer 1, the user's or those that are chosen, have a lexicon. Text that cannot be
    read as regularisers is left to who refuses it."""
    text = given.value_of("--boundary-regularizers", options) or ""
    terms = text.partition(",")[0].split("+")
    return any(term.partition("=")[0].strip() == "lexicon" for term in terms)


def _set_length(options: Options, length: Length, batches: int, given: Given, cpu: bool) -> None:
    """Choose how many updates a training makes, unless the user says when it ends, and a learning rate that falls to
    zero with them; the recipe's rate stays where the user chooses a schedule, or that there is no end. batches: of an
    epoch."""
    batches_of_update = given.number("--update-freq", options) * world_size(given, cpu)
    per_epoch = max(math.ceil(batches / batches_of_update), 1)
    if given.names & ENDINGS:
        updates = min(given.limit("--max-update"), given.limit("--max-epoch") * per_epoch)
    else:
        epochs = max(int(options.pop("--max-epoch") or 1), math.ceil(length.fewest / per_epoch))
        updates = epochs * per_epoch
        options["--max-update"] = str(updates)
    if updates < math.inf and not given.names & {CLASSES["lr_scheduler"], *OF_RECIPE_SCHEDULES}:
        for name in (*OF_RECIPE_SCHEDULES, END_OF_RECIPE_SCHEDULES):
            options.pop(name, None)
        warmup = min(int(length.decay["--warmup-updates"]), updates // 10)
        options.update({**length.decay, "--warmup-updates": str(warmup), "--total-num-update": str(updates)})


def look_at(data: str) -> Text:
    """The training split of a prepared folder; UserError where there is none."""
    again = how_to_prepare(data)
    if os.path.isfile(os.path.join(data, DESCRIPTION)):
        raise UserError(f"{data} has handwriting: fairseq-hmrnn train handwriting {shlex.quote(data)}")
    if _has(data, "dict.*.txt") and not _has(data, DICTIONARY):
        raise UserError(
            f"{data} has two languages, prepared by another command than this package's: prepare them by fairseq-hmrnn "
            "prepare translation, or train by fairseq-train --task translation"
        )
    for name in (DICTIONARY, "train.idx"):
        if not os.path.isfile(os.path.join(data, name)):
            raise UserError(f"no {data}/{name}: {again}")
    symbols = count_symbols(os.path.join(data, "train"))
    dictionary = read_dictionary(Dictionary, os.path.join(data, DICTIONARY))
    if not symbols:
        raise UserError(f"the training split in {data} is empty: {again}")
    if not is_character_dictionary(dictionary):
        return Text(symbols, None)
    spaces = dictionary.count[dictionary.index(SPACE_SYMBOL)] if SPACE_SYMBOL in dictionary else 0
    return Text(symbols, spaces >= SPACES * sum(dictionary.count))  # of the text that the dictionary was made from


def _chooses(section: str, given: Given, own: Optional[str]) -> bool:
    """Whether the user's options choose a class for a section other than `own`; if that is None, any class."""
    return given.value_of(CLASSES[section]) not in (None, own)


def _options_of(recipe: DictConfig, given: Given) -> Iterator[Tuple[str, Optional[str]]]:
    """A recipe's settings as options, except those of classes that the user's options replace."""
    for section in SECTIONS:
        if section not in recipe:
            continue
        if section in CLASSES and _chooses(section, given, None if section == "model" else recipe[section]._name):
            continue
        for key in (key for key in recipe[section] if key not in GIVEN_OTHERWISE):
            value = recipe[section][key]
            written = [CLASSES[section], str(value)] if key == "_name" else as_option(key, value)
            if written:
                yield written[0], written[1] if len(written) > 1 else None


def _replaced(names: Set[str]) -> Set[str]:
    """The options that the user's options, of these names, replace: the same ones, and any other end of training."""
    return names | (ENDINGS if names & ENDINGS else set())
