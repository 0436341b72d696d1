"""The benchmark of timescales: its texts are what they are said to be, and the lengths of segments are those that the
model's own reader finds."""

import argparse
import csv
import random

import numpy as np
import pytest
import torch
from running import run
from small_training import small_text

from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.inference import loading


def lines(count, seed=0):
    """Text of words of one to seven letters."""
    letters = random.Random(seed)
    words = ["".join(letters.choices("abcde", k=letters.randint(1, 7))) for _ in range(6 * count)]
    return "".join(" ".join(words[start : start + 6]) + ".\n" for start in range(0, len(words), 6))


def test_words_of_every_kind_of_text(import_benchmark):
    texts = import_benchmark("timescales_texts")

    def words(text):
        return [word.group() for word in texts.WORD.finditer(text)]

    assert words("it's  so: self.first_name = 3\n") == ["it's", "so", "self", "first_name", "3"]
    assert np.flatnonzero(texts.word_ends("it's  so: x")).tolist() == [4, 8], "the last word has not ended"
    far = texts.stretched("so, it's\n", 2)
    assert far == "s~~o~~,~~ i~~t~~'~~s~~\n" and words(far) == ["s~~o~~", "i~~t~~'~~s~~"]
    assert texts.stretched("so it\n", 1, filler=None) == "ssoo iitt\n"
    assert texts.word_rate("ab cd\n") == pytest.approx(2 / 6)
    assert texts.fold("Öl, 12 [x]\n", set("oelNx \n")) == "oel NN x\n"


def test_kinds_of_text_share_nothing_and_a_mixture_loses_nothing(import_benchmark, tmp_path):
    texts = import_benchmark("timescales_texts")
    (tmp_path / "a.txt").write_text(lines(3000), encoding="utf-8")
    kinds = texts.read_kinds({"a": str(tmp_path / "a.txt")}, 50_000)
    assert list(kinds) == ["a", texts.CODE, texts.STRETCHED]
    assert all(40_000 < len(text) <= 50_000 for text in kinds.values())
    parts = kinds["a"], kinds[texts.STRETCHED].replace(texts.FILLER, "")
    assert lines(3000).find(parts[0]) == 0 and lines(3000).find(parts[1]) >= len(parts[0]), "no line is in both"
    trained, held_out = texts.split(kinds["a"])
    assert trained + held_out == kinds["a"] and trained.endswith("\n") and 4500 < len(held_out) < 5500
    mixed = texts.mixture([trained, held_out], 1)
    found = texts.blocks(trained) + texts.blocks(held_out)
    assert sorted(mixed) == sorted("".join(found)) and mixed != "".join(found)
    assert all(block in mixed and block.endswith("\n") and len(block) >= texts.BLOCK for block in found)


@pytest.mark.parametrize(
    "count, options, message",
    [
        (1000, [], r"^a has \d+ characters to measure on, the last tenth of it, and 4400 are required: give longer"),
        (3000, [], r"^stretched has \d+ characters .*, a of one and a half times --size$"),
        (3000, ["stretched=a.txt"], "^give every file a name of its own, and none of source code, .*: stretched "),
        (3000, ["a=a.txt"], "^give every file a name of its own, .*: a "),
        (
            3000,
            ["--checkpoint", "1", "8"],
            "^argument --checkpoint: no 8: give a checkpoint file, or a folder with",
        ),
        (3000, ["--plot", "a.png", "--checkpoint", *"1234567"], "^--plot draws at most 6 models: give fewer"),
    ],
)
def test_what_could_not_be_measured_is_not_trained(import_benchmark, monkeypatch, tmp_path, count, options, message):
    timescales = import_benchmark("timescales")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(lines(count), encoding="utf-8")
    for name in "1234567":
        (tmp_path / name).touch()
    monkeypatch.setattr("sys.argv", ["timescales.py", "a=a.txt", *options, "--size", "80000"])
    with pytest.raises(UserError, match=message):
        timescales.main()
    assert not (tmp_path / "runs").exists()


def test_models_are_told_apart_by_name(import_benchmark, tmp_path):
    paths = [str(tmp_path / name) for name in ("x/ptb/best.pt", "y/ptb/best.pt", "z/text8/best.pt", "x/ptb/best.pt")]
    assert import_benchmark("timescales").names_of(paths) == {paths[0]: paths[0], paths[1]: paths[1], "text8": paths[2]}


def test_elasticity_is_1_where_segments_grow_as_words_do(import_benchmark):
    rows = [{"word": word, "segment": 3 * word} for word in (4, 6, 13)]
    assert import_benchmark("timescales").elasticity(rows) == pytest.approx(1)
    assert import_benchmark("timescales").elasticity([{**row, "segment": 7} for row in rows]) == pytest.approx(0)


def test_a_training_of_other_options_or_texts_is_not_taken(import_benchmark, monkeypatch, tmp_path):
    timescales, made = import_benchmark("timescales"), []
    monkeypatch.setattr(timescales, "command", lambda *arguments, log: made.append(log))
    monkeypatch.setattr(timescales, "prepare", lambda sources, folder, shares: made.append(folder))
    args, texts = argparse.Namespace(out=str(tmp_path), updates=5, size=60_000), {"a": lines(500), "b": lines(500, 1)}
    timescales.prepared(texts, args)
    assert made.pop() == str(tmp_path / "data")
    paths = {timescales.trained("rate", seed, 0.2, args) for seed in (1, 1, 2)}
    assert len(paths) == 2 and made == [tmp_path / f"rate.{seed}" / "train.log" for seed in (1, 2)]
    timescales.prepared(texts, args)
    with pytest.raises(UserError, match=r" was trained with the text b \w+, not the text b \w+: give another --out$"):
        timescales.prepared({**texts, "b": lines(500, 2)}, args)
    args.updates = 6
    with pytest.raises(UserError, match=f"^{tmp_path} was trained with --updates 5, not --updates 6: give another"):
        timescales.prepared(texts, args)


def test_a_table_of_before_is_there_until_all_is_measured(import_benchmark, monkeypatch, tmp_path):
    timescales, table, found = import_benchmark("timescales"), tmp_path / "rows.csv", []
    (tmp_path / "a.txt").write_text(lines(6000), encoding="utf-8")
    table.write_text("of before")
    for name in "12":
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_best.pt").touch()

    def rows_of(name, *rest):
        yield [name, 0, "a", "", 1, 4.0, 0.1, 5.0, 0.1, 0.5]
        if name == "2" and not found:
            raise ValueError("it cannot be read")

    monkeypatch.setattr(timescales, "rows_of", rows_of)
    monkeypatch.setattr(timescales, "report", found.extend)
    options = [f"a={tmp_path / 'a.txt'}", "--size", "80000", "--csv", str(table)]
    monkeypatch.setattr("sys.argv", ["timescales.py", *options, "--checkpoint", *(str(tmp_path / n) for n in "12")])
    with pytest.raises(ValueError, match="^it cannot be read$"):
        timescales.main()
    assert table.read_text() == "of before"
    found.append("it can now")
    timescales.main()
    assert [row["model"] for row in found[1:]] == ["1", "2"] and table.read_text().count("\n") == 3


@pytest.mark.slow
def test_timescales_of_a_trained_model(import_benchmark, trained, tmp_path):
    """Against the boundaries that the model's reader finds in the same pieces."""
    (tmp_path / "a.txt").write_text(small_text(20_000, 3), encoding="utf-8")
    table, picture = tmp_path / "rows.csv", tmp_path / "picture.png"
    options = ["--checkpoint", trained, "--size", 60_000, "--csv", table, "--plot", picture]
    printed = run("scripts/benchmark/timescales.py", f"a={tmp_path / 'a.txt'}", *options).stdout
    assert "layer 1: elasticity" in printed and picture.stat().st_size > 1000
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    timescales, texts = import_benchmark("timescales"), import_benchmark("timescales_texts")
    model = loading.load([str(trained)])
    alphabet = {*model.src_dict.symbols, " ", "\n"}
    kinds = texts.read_kinds({"a": str(tmp_path / "a.txt")}, 60_000)
    known = timescales.Texts.of(kinds, "a", alphabet)
    assert not set("".join(known.changing)) - alphabet
    steps = slice(timescales.LEAD, None)
    for kind, pieces in known.by_kind.items():
        row = next(row for row in rows if (row["text"], row["layer"]) == (kind, "2"))
        found = [model.reader().boundaries(piece)[steps, 1].sum() for piece in pieces]
        expected = np.mean([timescales.COUNTED / max(1, count) for count in found])
        assert float(row["segment"]) == pytest.approx(expected, rel=0.01)
    change = [row for row in rows if row["text"] == timescales.CHANGE and row["layer"] == "1"]
    assert [int(row["position"]) for row in change] == list(range(0, 3 * timescales.PART, timescales.BIN))
    found = torch.from_numpy(np.stack([model.reader().boundaries(text) for text in known.changing]))
    third = found[:, 2 * timescales.BIN : 3 * timescales.BIN, 0]
    assert float(change[2]["segment"]) == pytest.approx(third.numel() / max(1, third.sum().item()), rel=0.02)
