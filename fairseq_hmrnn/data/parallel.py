"""Parallel text for fairseq's translation task: pieces of sentencepiece on either side, binarised by fairseq."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..text import InputError
from .folders import replaced_whole

KINDS = ("unigram", "bpe", "char")
# What a split's files may be called, before .LANGUAGE; they are read under the first of these names that has a file.
NAMES = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
LEAST = 4  # size of a vocabulary: <unk>, <s>, </s> and a piece
# A large vocabulary of little text has many pieces that are hardly ever seen; at 29,000 lines it was the better one.
SMALL, LARGE, SMALL_TEXT = 4000, 8000, 20_000  # lines, below which it is small
SIZE_OPTIONS = ("--source-size", "--target-size")  # for messages
LINE = 4192  # bytes of the longest line that sentencepiece reads by default; it takes no limit below 10


class Side(NamedTuple):
    """language: the ending of its files. kind: of its pieces, one of KINDS. size: of its vocabulary, at most; None:
    of char all, else SMALL for fewer lines than SMALL_TEXT, and LARGE for more."""

    language: str
    kind: str = "unigram"
    size: Optional[int] = None


class Split(NamedTuple):
    """name: of its files, before .LANGUAGE. lines: of either. longest: bytes of the longest line, of source and
    target."""

    name: str
    lines: int
    longest: Tuple[int, int]


class Prepared(NamedTuple):
    """symbols: of the two sides. splits: those that there are, by what fairseq calls them."""

    symbols: Tuple[int, ...]
    splits: Dict[str, Split]


def prepare_parallel(folder: str, dest: str, source: Side, target: Side) -> Prepared:
    """Make a sentencepiece model of either side's train.LANGUAGE in `folder`, and with them fairseq's binarised splits
    and the models in `dest`.

    InputError for texts that cannot be used, or that a tool refuses; then `dest` has what it had before.
    """
    if source.language == target.language:
        raise InputError("SRC and TGT must differ: they are the endings of the two sides' files")
    texts, languages = Path(folder), (source.language, target.language)
    splits = {split: _find_split(texts, names, languages) for split, names in NAMES.items()}
    found = {split: files for split, files in splits.items() if files is not None}
    with replaced_whole(dest) as work:
        (work / "pieces").mkdir()
        symbols = tuple(_prepare_side(texts, work, side, found, place) for place, side in enumerate((source, target)))
        _binarise(work, languages, list(found))
    return Prepared(symbols, found)


def _find_split(folder: Path, names: Tuple[str, ...], languages: Tuple[str, str]) -> Optional[Split]:
    """The first of these names whose files have text, None if none has; InputError as of _measure_pairs."""
    return next(filter(None, (_measure_pairs(folder, name, languages) for name in names)), None)


def _measure_pairs(folder: Path, name: str, languages: Tuple[str, str]) -> Optional[Split]:
    """The split whose files have this name, None if neither has text; InputError for what cannot be used, and for a
    training split without."""
    paths = [folder / f"{name}.{language}" for language in languages]
    for path in paths:
        if name == "train" and not (path.is_file() and path.stat().st_size):
            raise InputError(f"no {path}, or it is empty: give the folder with the training text of both sides")
    lines, longest = zip(*(_measure(path) if path.is_file() else (0, 0) for path in paths))
    if not any(lines):
        return None
    if not all(lines):
        there, lacking = paths if lines[0] else paths[::-1]
        raise InputError(f"{there} has text, and {lacking} is missing or empty: give both sides, or neither")
    if lines[0] != lines[1]:
        raise InputError(f"{paths[0]} has {lines[0]:,} lines and {paths[1]} {lines[1]:,}: line by line they must match")
    return Split(name, lines[0], (longest[0], longest[1]))


def _measure(path: Path) -> Tuple[int, int]:
    """How many lines a text has, a last one without a newline too, and the bytes of the longest; InputError if it is
    not UTF-8."""
    count = longest = 0
    with open(path, "rb") as file:
        for count, line in enumerate(file, 1):
            longest = max(longest, len(line))
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not UTF-8 (line {count}): convert it first") from error
    return count, longest


def _prepare_side(folder: Path, work: Path, side: Side, splits: Dict[str, Split], place: int) -> int:
    """Train the model of one side, write its dictionary, cut every split into pieces; the number of its symbols.
    place: 0 of the source, 1 of the target."""
    import sentencepiece

    prefix, train = work / f"spm.{side.language}", splits["train"]
    size: Dict[str, Any] = {"use_all_vocab": True}
    if side.kind != "char" or side.size is not None:
        default = SMALL if train.lines < SMALL_TEXT else LARGE
        size = {"vocab_size": side.size or default, "hard_vocab_limit": False}
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(folder / f"{train.name}.{side.language}")],  # a name alone would be split at commas
            model_prefix=str(prefix),
            model_type=side.kind,
            character_coverage=1.0,
            max_sentence_length=max(train.longest[place], LINE),  # it leaves longer ones out
            minloglevel=2,
            **size,
        )
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if "required_chars" in reason:  # what it says then are options of its own
            reason = f"{reason.rstrip('. ')}: give a larger {SIZE_OPTIONS[place]}"
        raise InputError(f"sentencepiece makes no {side.kind} model of train.{side.language}: {reason}") from error
    model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    pieces = [model.id_to_piece(index) for index in range(3, model.get_piece_size())]  # <unk>, <s>, </s> are fairseq's
    dictionary = "".join(f"{piece} 1\n" for piece in pieces)
    (work / f"pieces.{side.language}.txt").write_text(dictionary, encoding="utf-8")
    for split, files in splits.items():
        with open(folder / f"{files.name}.{side.language}", encoding="utf-8", newline="\n") as given, \
                open(work / "pieces" / f"{split}.{side.language}", "w", encoding="utf-8") as cut:  # fmt: skip
            for line in given:
                cut.write(" ".join(model.encode(line.rstrip("\n"), out_type=str)) + "\n")
    return len(pieces)


def _binarise(work: Path, languages: Tuple[str, str], splits: List[str]) -> None:
    """By fairseq-preprocess, from within the folder: it splits names at commas."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--destdir", ".", "--workers", "1"]
    for side, dictionary, language in zip(("source", "target"), ("src", "tgt"), languages):
        command += [f"--{side}-lang", language, f"--{dictionary}dict", f"pieces.{language}.txt"]
    for split in splits:
        command += [f"--{split}pref", f"pieces/{split}"]
    done = subprocess.run(
        command, cwd=str(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        last = ([line for line in done.stdout.splitlines() if line.strip()] or ["it said nothing"])[-1]
        raise InputError(f"fairseq-preprocess ended with code {done.returncode}: {last}")
    (work / "preprocess.stdout").write_text(done.stdout, encoding="utf-8")
