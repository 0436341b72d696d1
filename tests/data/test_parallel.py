"""Which splits of parallel text are used, before anything is prepared, and how many pieces a side has."""

import random

import pytest

from fairseq_hmrnn.cli.main import run as run_here
from fairseq_hmrnn.data import parallel
from fairseq_hmrnn.data.parallel import Side, Split, prepare_parallel
from fairseq_hmrnn.text import InputError


def prepare(folder, **files):
    """With a training split, files named SPLIT_LANGUAGE, and a vocabulary that sentencepiece refuses."""
    for name, text in {"train_de": "der baum\n", "train_en": "the tree\n", **files}.items():
        (folder / name.replace("_", ".")).write_text(text)
    prepare_parallel(str(folder), str(folder / "bin"), Side("de", "unigram", 3), Side("en"))


def prepare_side(folder, side):
    """The number of symbols of the source side, of a training split alone."""
    lines, longest = parallel._measure(folder / f"train.{side.language}")
    return parallel._prepare_side(folder, folder, side, {"train": Split("train", lines, (longest, 0))}, 0)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("there, lacking", [("de", "en"), ("en", "de")])
@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_a_split_with_text_on_one_side_is_refused(tmp_path, split, there, lacking, empty):
    files = {f"{split}_{there}": "x\n", **({f"{split}_{lacking}": ""} if empty else {})}
    with pytest.raises(InputError) as raised:
        prepare(tmp_path, **files)
    found = f"{tmp_path}/{split}.{there} has text, and {tmp_path}/{split}.{lacking} is missing or empty: "
    assert str(raised.value) == f"{found}give both sides, or neither"


@pytest.mark.parametrize("files", [{}, {"test_de": "", "test_en": ""}, {"valid_en": ""}])
def test_a_split_without_text_is_left_out(tmp_path, files):
    pytest.importorskip("sentencepiece")
    with pytest.raises(InputError, match="sentencepiece makes no unigram model"):  # the next step
        prepare(tmp_path, **files)


@pytest.mark.parametrize(
    "names, taken", [("val dev", "val"), ("dev", "dev"), ("valid val", "valid"), ("validation", None)]
)
def test_validation_text_has_one_of_its_usual_names(tmp_path, monkeypatch, names, taken):
    """Which file each split of the data is made from, and how many lines it has."""
    for name in names.split():
        for language in ("de", "en"):
            (tmp_path / f"{name}.{language}").write_text(f"{name}\n" * 2)
    made = []

    def prepare_side(folder, work, side, splits, place):
        made.append({split: files.name for split, files in splits.items()})
        return 4

    monkeypatch.setattr(parallel, "_prepare_side", prepare_side)
    monkeypatch.setattr(parallel, "_binarise", lambda work, languages, splits: made.append(splits))
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("x\n")
    prepared = prepare_parallel(str(tmp_path), str(tmp_path / "bin"), Side("de"), Side("en"))
    expected = {"train": "train", **({"valid": taken} if taken else {})}
    assert made == [expected, expected, list(expected)]
    found = {split: (files.name, files.lines) for split, files in prepared.splits.items()}
    assert found == {split: (name, 2 if split == "valid" else 1) for split, name in expected.items()}


def test_a_text_is_measured_once(tmp_path, monkeypatch):
    measured, measure = [], parallel._measure
    monkeypatch.setattr(parallel, "_measure", lambda path: measured.append(path.name) or measure(path))
    with pytest.raises(InputError):
        prepare(tmp_path, test_de="eins\n", test_en="one\n")
    assert sorted(measured) == ["test.de", "test.en", "train.de", "train.en"]


@pytest.mark.parametrize("of_source, of_target, remedy", [("9", "30", "--source-size"), ("30", "9", "--target-size")])
def test_a_vocabulary_without_room_for_the_characters_says_which_size(tmp_path, capsys, of_source, of_target, remedy):
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("der baum und der hund\n" * 50)
    sizes = ["--source-size", of_source, "--target-size", of_target]
    with pytest.raises(SystemExit):
        run_here(["prepare", "translation", "de", "en", str(tmp_path), *sizes])
    assert capsys.readouterr().err.endswith(f"option: give a larger {remedy}\n")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["de/", "en"], "SRC: must be the ending of the files of a language, such as de, not 'de/'"),
        (["de", "a/en"], "TGT: must be the ending of the files of a language, such as de, not 'a/en'"),
        (["", "en"], "SRC: must be the ending of the files of a language, such as de, not ''"),
        (["de", "en", "--source-size", "3"], "--source-size: must be a whole number from 4 to"),
        (["de", "en", "--target-size", "1"], "--target-size: must be a whole number from 4 to"),
    ],
)
def test_arguments_are_looked_at_before_any_text(tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit):
        run_here(["prepare", "translation", *arguments, str(tmp_path)])
    assert f"argument {told}" in capsys.readouterr().err


def test_a_training_split_has_both_sides(tmp_path):
    with pytest.raises(InputError, match="no .*train.en, or it is empty"):
        prepare(tmp_path, train_en="")


@pytest.mark.parametrize("lines, given, size", [(99, None, 4000), (100, None, 8000), (99, 5000, 5000)])
def test_small_text_has_fewer_pieces_unless_told_otherwise(tmp_path, monkeypatch, lines, given, size):
    """Small is what has fewer than 20,000 lines, here 100. Of its pieces 3 are fairseq's own symbols."""
    pytest.importorskip("sentencepiece")
    assert parallel.SMALL_TEXT == 20_000
    monkeypatch.setattr(parallel, "SMALL_TEXT", 100)
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnopqrst", k=choose.randint(4, 8))) for _ in range(11_000)]
    text = [" ".join(choose.sample(words, 300)) + "\n" for _ in range(lines)]
    (tmp_path / "train.en").write_text("".join(text))
    (tmp_path / "pieces").mkdir()
    assert prepare_side(tmp_path, Side("en", "bpe", given)) == size - 3


@pytest.mark.parametrize(
    "kind, size, symbols", [("char", None, "▁abcdß"), ("char", 6, "▁aß"), ("unigram", None, "▁abcdß")]
)
def test_no_line_is_too_long_and_characters_may_be_fewer(tmp_path, kind, size, symbols):
    """sentencepiece leaves lines above 4,192 bytes out unless told otherwise. Of a size 3 are fairseq's own symbols."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "train.de").write_text("ab abc abcd\n" * 50 + "a ß " * 1500 + "\n", encoding="utf-8")
    (tmp_path / "pieces").mkdir()
    count = prepare_side(tmp_path, Side("de", kind, size))
    pieces = [line.split(" ")[0] for line in (tmp_path / "pieces.de.txt").read_text(encoding="utf-8").splitlines()]
    assert len(pieces) == count and set("".join(pieces)) == set(symbols)
    if kind == "char":
        assert count == len(symbols)


def test_lines_may_be_short(tmp_path):
    """sentencepiece takes no limit of lines below 10 bytes."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "train.de").write_text("ab\nba\n" * 20)
    (tmp_path / "pieces").mkdir()
    assert prepare_side(tmp_path, Side("de", "char")) == 3
