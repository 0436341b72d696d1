"""Which splits of parallel text are used, before anything is prepared, and how many pieces a side has."""

import random

import pytest

from fairseq_hmrnn.data import parallel
from fairseq_hmrnn.data.parallel import Side, prepare_parallel
from fairseq_hmrnn.text import InputError


def prepare(folder, **files):
    """With a training split, files named SPLIT_LANGUAGE, and a vocabulary that sentencepiece refuses."""
    for name, text in {"train_de": "der baum\n", "train_en": "the tree\n", **files}.items():
        (folder / name.replace("_", ".")).write_text(text)
    prepare_parallel(str(folder), str(folder / "bin"), Side("de", "unigram", 3), Side("en"))


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
    monkeypatch.setattr(parallel, "_prepare_side", lambda folder, work, side, names: made.append(names) or 4)
    monkeypatch.setattr(parallel, "_binarise", lambda work, languages, splits: made.append(splits))
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("x\n")
    prepared = prepare_parallel(str(tmp_path), str(tmp_path / "bin"), Side("de"), Side("en"))
    expected = {"train": "train", **({"valid": taken} if taken else {})}
    assert made == [expected, expected, list(expected)]
    assert prepared.splits == {split: (name, 2 if split == "valid" else 1) for split, name in expected.items()}


def test_a_training_split_has_both_sides(tmp_path):
    with pytest.raises(InputError, match="no .*train.en, or it is empty"):
        prepare(tmp_path, train_en="")


@pytest.mark.parametrize("lines, given, size", [(99, None, 4000), (100, None, 8000), (99, 5000, 5000)])
def test_small_text_has_fewer_pieces_unless_told_otherwise(tmp_path, monkeypatch, lines, given, size):
    """Small is what has fewer than 100,000 lines, here 100. Of its pieces 3 are fairseq's own symbols."""
    pytest.importorskip("sentencepiece")
    assert parallel.SMALL_TEXT == 100_000
    monkeypatch.setattr(parallel, "SMALL_TEXT", 100)
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghijklmnopqrst", k=choose.randint(4, 8))) for _ in range(11_000)]
    text = [" ".join(choose.sample(words, 300)) + "\n" for _ in range(lines)]
    (tmp_path / "train.en").write_text("".join(text))
    (tmp_path / "pieces").mkdir()
    assert parallel._prepare_side(tmp_path, tmp_path, Side("en", "bpe", given), {"train": "train"}) == size - 3


@pytest.mark.parametrize(
    "kind, size, symbols", [("char", None, "▁abcdß"), ("char", 6, "▁aß"), ("unigram", None, "▁abcdß")]
)
def test_no_line_is_too_long_and_characters_may_be_fewer(tmp_path, kind, size, symbols):
    """sentencepiece leaves lines above 4,192 bytes out unless told otherwise. Of a size 3 are fairseq's own symbols."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "train.de").write_text("ab abc abcd\n" * 50 + "a ß " * 1500 + "\n", encoding="utf-8")
    (tmp_path / "pieces").mkdir()
    count = parallel._prepare_side(tmp_path, tmp_path, Side("de", kind, size), {"train": "train"})
    pieces = [line.split(" ")[0] for line in (tmp_path / "pieces.de.txt").read_text(encoding="utf-8").splitlines()]
    assert len(pieces) == count and set("".join(pieces)) == set(symbols)
    if kind == "char":
        assert count == len(symbols)


def test_lines_may_be_short(tmp_path):
    """sentencepiece takes no limit of lines below 10 bytes."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "train.de").write_text("ab\nba\n" * 20)
    (tmp_path / "pieces").mkdir()
    assert parallel._prepare_side(tmp_path, tmp_path, Side("de", "char"), {"train": "train"}) == 3
