"""Readers of UNIPEN and IAM-OnDB, normalisation, storage and batches, on made-up corpora."""

import re
import shutil

import numpy as np
import pytest
import torch
from running import run
from written_lines import strokes_of, texts, write, write_iam, write_marks, write_unipen

from fairseq_hmrnn.data.handwriting import HandwritingDataset, load_normalization, load_split, prepare
from fairseq_hmrnn.data.handwriting.iam import Corpus as Iam
from fairseq_hmrnn.data.handwriting.lines import BrokenLine, word_ends
from fairseq_hmrnn.data.handwriting.prepare import spread
from fairseq_hmrnn.data.handwriting.store import CHARACTER, WORD
from fairseq_hmrnn.data.handwriting.unipen import Corpus as Unipen

FRACTIONS = {"valid": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def unipen(tmp_path_factory):
    return write_unipen(tmp_path_factory.mktemp("unipen"))


@pytest.fixture(scope="module")
def iam(tmp_path_factory):
    return write_iam(tmp_path_factory.mktemp("iam"))


@pytest.fixture(scope="module")
def prepared(unipen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(str(unipen), str(folder), FRACTIONS, progress=False)
    return folder


def test_unipen_lines_have_points_strokes_and_marks(unipen):
    corpus = Unipen(unipen)
    assert len(corpus.names) == 36 and not corpus.broken
    line = corpus.read("apx/data/w3/l2.dat")
    text = texts(6, 3)[2]
    strokes, letters = strokes_of(text, 302)
    assert (line.text, line.writer, line.spacing) == (text, "w3", (0.01, 0.01))
    assert np.allclose(line.points, np.concatenate(strokes) / 100)
    last = np.cumsum([len(stroke) for stroke in strokes]) - 1
    assert np.flatnonzero(line.ends).tolist() == last.tolist()
    assert np.flatnonzero(line.characters).tolist() == [last[b] for _, _, b in letters]
    ends = np.cumsum([len(word) for word in text.split()]) - 1
    assert np.flatnonzero(line.words).tolist() == [last[letters[end][2]] for end in ends]
    cursive = corpus.read("apx/data/w0/l1.dat")
    assert cursive.characters is None and cursive.words.sum() == len(texts(6, 0)[1].split())


@pytest.mark.parametrize(
    "delineation, last",
    [("1", 6), ("0-1", 6), ("0:1-1:2", 5), ("0:2", 2), ("0-0,2", 8), ("0:0-0:1,1:0-1:3", 6)],
)
def test_every_form_of_a_unipen_range(tmp_path, delineation, last):
    """Components of 3, 4 and 2 points; a bare .PEN_UP is none."""
    pen = ".COORD Y X\n.PEN_DOWN\n1 2\n3 4\n5 6\n.PEN_UP\n.PEN_DOWN\n7 8\n9 9\n9 8\n9 7\n.PEN_UP\n.PEN_DOWN\n0 0\n1 1\n"
    write(tmp_path / "include" / "apx" / "a.dat", pen)
    write(tmp_path / "data" / "1a" / "a.dat", f'.INCLUDE apx/a.dat\n.SEGMENT CHARACTER {delineation} OK "\\"\\\\"\n')
    line = Unipen(tmp_path).read("apx/a.dat")
    assert np.flatnonzero(line.characters).tolist() == [last]
    assert line.points[:2].tolist() == [[2, 1], [4, 3]]  # X is the second column


def test_points_of_a_raised_pen_are_counted_but_not_drawn(tmp_path):
    pen = ".COORD X Y\n.PEN_DOWN\n1 2\n3 4\n.PEN_UP\n5 6\n7 8\n.PEN_DOWN\n9 9\n9 8\n9 7\n"
    write(tmp_path / "include" / "apx" / "a.dat", pen)
    marks = '.INCLUDE apx/a.dat\n.SEGMENT WORD 0 "a"\n.SEGMENT WORD 1, 2:0-2:2 "b c"\n'
    write(tmp_path / "data" / "6" / "a.dat", marks)
    line = Unipen(tmp_path).read("apx/a.dat")
    assert line.points.tolist() == [[1, 2], [3, 4], [9, 9], [9, 8], [9, 7]]
    assert np.flatnonzero(line.words).tolist() == [1, 4] and line.text == "a b c"


def test_words_end_where_the_characters_say():
    assert word_ends("ab c", ["a", "b", "c"], [3, 5, 9]) == [5, 9]
    assert word_ends("ab c", ["ab", "c"], [5, 9]) == [5, 9]
    assert word_ends("ab c", ["a", "bc"], [3, 9]) is None  # a label over two words
    assert word_ends("ab c", ["a", "b"], [3, 5]) is None
    assert word_ends("ab c", ["", "a", "b", "", "c"], [1, 3, 5, 6, 9]) == [6, 9]
    assert word_ends("a " * 50_000, ["a"] * 50_000, [*range(50_000)]) == [*range(50_000)]  # in no time


def test_tabs_and_unusual_bytes_of_unipen(tmp_path):
    """Keywords with a tab after them; in labels, bytes that some encodings take for the end of a line."""
    write_unipen(tmp_path, writers=4, lines=3)
    name = "apx/data/w3/l2.dat"
    line = Unipen(tmp_path).read(name)
    for path in [*tmp_path.rglob("l2.dat"), tmp_path / "include" / "apx" / "tablet.doc"]:
        lines = path.read_text(encoding="latin-1").split("\n")
        tabbed = [x.replace(" ", "\t", 1) if x.startswith(".") else x for x in lines]
        path.write_bytes("\r\n".join(tabbed).encode("latin-1"))
    label = "o\x85l\x0bt\x0ci\x1co"
    write_marks(tmp_path / "data" / "8" / name, name, [("TEXT", "0", label)])
    found = Unipen(tmp_path).read(name)
    assert (found.writer, found.spacing, found.text) == (line.writer, line.spacing, label)
    assert np.array_equal(found.points, line.points) and np.array_equal(found.characters, line.characters)


def test_unusual_bytes_in_the_texts_of_iam(tmp_path):
    write_iam(tmp_path)
    write(tmp_path / "ascii" / "a03" / "a03-000" / "a03-000u.txt", "OCR:\n\nCSR: \n\na\x85b\x0bc\x0cd\x1ce\n\nf\n")
    lines = [Iam(tmp_path).read(f"lineStrokes/a03/a03-000/a03-000u-0{number}.xml").text for number in (1, 2)]
    assert lines == ["a\x85b\x0bc\x0cd\x1ce", "f"]


def test_iam_lines_have_points_texts_and_writers(iam):
    line = Iam(iam).read("lineStrokes/a03/a03-000/a03-000u-02.xml")
    strokes, _ = strokes_of(texts(2, 3)[1], 32)
    assert (line.text, line.writer) == (texts(2, 3)[1], "103")
    assert np.allclose(np.diff(line.points, axis=0), np.diff(np.concatenate(strokes), axis=0))  # y upwards
    assert line.ends.sum() == len(strokes) and line.characters is None and line.words is None


def test_files_of_unknown_encodings_are_broken_lines(iam):
    path = iam / "lineStrokes" / "a03" / "a03-000" / "a03-000u-09.xml"
    for encoding in ("foo", "shift_jis"):
        path.write_text(f'<?xml version="1.0" encoding="{encoding}"?><a/>')
        with pytest.raises(BrokenLine, match="is empty or no XML"):
            Iam(iam).read(str(path.relative_to(iam)))
    path.unlink()


def test_what_fails_while_it_is_written_leaves_the_old_data(unipen, tmp_path, monkeypatch):
    """Normalisation and steps belong together."""
    prepare(str(unipen), str(tmp_path), FRACTIONS, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save, calls = np.savez, []

    def fail_at_the_second(*args, **arrays):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("No space left on device")
        save(*args, **arrays)

    monkeypatch.setattr(np, "savez", fail_at_the_second)
    with pytest.raises(OSError):
        prepare(str(unipen), str(tmp_path), FRACTIONS, seed=2, dequantize=True, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_iam_uses_the_published_lists(tmp_path):
    write_iam(tmp_path / "iam", original=False)
    lists = {"trainset.txt": "0 1 2 3", "testset_t.txt": "4", "testset_v.txt": "5", "testset_f.txt": "6 7"}
    for name, forms in lists.items():
        write(tmp_path / "iam" / name, "".join(f"a{int(form):02d}-000u\n" for form in forms.split()))
    prepare(str(tmp_path / "iam"), str(tmp_path / "bin"), FRACTIONS, progress=False)
    found = {
        name: {text[16:26] for text in load_split(str(tmp_path / "bin"), name).names}
        for name in ("train", "valid", "test")
    }
    assert len(found["train"]) == 5 and found["valid"] == {"a05-000/a0"} and len(found["test"]) == 2
    assert set(load_split(str(tmp_path / "bin"), "valid").writers) == {"a05-000u"}  # the form, where no file says


def test_splits_share_no_writer_and_held_out_lines_have_characters(prepared):
    splits = {name: load_split(str(prepared), name) for name in ("train", "valid", "test")}
    writers = [set(strokes.writers) for strokes in splits.values()]
    assert sum(map(len, writers)) == len(set.union(*writers)) == 6
    assert sum(len(strokes.names) for strokes in splits.values()) == 36
    assert "w0" in writers[0] and all((splits[name].known & CHARACTER).all() for name in ("valid", "test"))
    assert all((strokes.known & WORD).all() for strokes in splits.values())


def test_lines_without_characters_of_held_out_writers_are_left_out_and_told(tmp_path):
    write_unipen(tmp_path / "corpus", writers=4, cursive=0)
    for path in sorted((tmp_path / "corpus" / "data").glob("[12]*/apx/data/w*/l0.dat")):
        path.unlink()  # their characters: every writer now has a line without
    report = prepare(str(tmp_path / "corpus"), str(tmp_path / "bin"), FRACTIONS, progress=False)
    assert report.written[-1].startswith("left out: 2 lines")
    sizes = {name: len(load_split(str(tmp_path / "bin"), name).names) for name in ("train", "valid", "test")}
    assert sizes == {"train": 12, "valid": 5, "test": 5}


def test_training_offsets_have_mean_0_and_deviation_1_and_come_back(prepared, unipen):
    strokes, normalization = load_split(str(prepared), "train"), load_normalization(str(prepared))
    rest = np.delete(strokes.steps, strokes.starts[:-1], axis=0)
    assert np.allclose(rest[:, :2].mean(0), 0, atol=1e-5) and np.allclose(rest[:, :2].std(0), 1, atol=1e-5)
    assert not strokes.steps[strokes.starts[:-1], :2].any()
    line = Unipen(unipen).read(strokes.names[4])
    points = normalization.points(strokes.steps[strokes.line(4)])
    assert np.allclose(points, line.points - line.points[0], atol=1e-5)


def test_dequantized_points_stay_within_the_spacing(unipen, tmp_path):
    prepare(str(unipen), str(tmp_path), FRACTIONS, dequantize=True, progress=False)
    strokes, normalization = load_split(str(tmp_path), "test"), load_normalization(str(tmp_path))
    line = Unipen(unipen).read(strokes.names[0])
    moved = normalization.points(strokes.steps[strokes.line(0)]) - (line.points - line.points[0])
    assert 0.002 < np.abs(moved).max() <= 0.01 + 1e-6  # the first point's half spacing, and its own


def test_each_direction_has_its_spacing(unipen, tmp_path):
    """In the tablet's points, 400 an inch to the right and 100 upwards, noise is as large in both."""
    shutil.copytree(unipen, tmp_path / "unipen")
    for path in (tmp_path / "unipen" / "include").rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="latin-1")
            path.write_text(text.replace(".X_POINTS_PER_INCH 100", ".X_POINTS_PER_INCH 400"), encoding="latin-1")
    corpus = Unipen(tmp_path / "unipen")
    lines = [corpus.read(name) for name in corpus.names[:8]]
    assert lines[0].spacing == (1 / 400, 1 / 100)
    moved = np.concatenate([new.points - old.points for new, old in zip(spread(lines, 1), lines)]) * [400, 100]
    assert (np.abs(moved) <= 0.5 + 1e-9).all() and (np.abs(moved).max(0) > 0.45).all()


def test_a_batch_pads_and_marks_what_is_known(prepared):
    dataset = HandwritingDataset(load_split(str(prepared), "train"), shuffle=False)
    order = dataset.ordered_indices()
    assert (np.diff(dataset.sizes[order]) >= 0).all()
    batch = dataset.collater([dataset[index] for index in (order[0], order[-1])])
    steps, valid = batch["net_input"]["steps"], batch["net_input"]["valid"]
    assert batch["ntokens"] == valid.sum() == dataset.sizes[order[[0, -1]]].sum()
    assert torch.equal(steps[1, 1:].double(), batch["target"][1, :-1]) and batch["target"].dtype == torch.float64
    assert not steps[0, dataset.sizes[order[0]] :].any() and not batch["known"][~valid].any()
    assert torch.equal(batch["gold"][..., 0], steps[..., 2] > 0)
    assert len(HandwritingDataset(dataset.strokes, longest=dataset.sizes.min())) < len(dataset)
    with pytest.raises(ValueError, match="max-line-steps"):
        HandwritingDataset(dataset.strokes, longest=1)


BROKEN = {  # what is in the file of pen points -> what is said
    "": "has no pen points",
    ".PEN_DOWN\n1 1 0\n.PEN_UP\n": "has 1 pen point",
    ".PEN_DOWN\n1 1 0\n1e30 1 1\n": "has the coordinate 1e+30",
    ".PEN_DOWN\n1 1 0\n2 1 1\n2 2 2\n65535 3 3\n": "jumps from (2, 2) to (65535, 3)",
    ".PEN_DOWN\nnan 1 0\n2 2 0\n": "has the coordinate nan",
    ".PEN_DOWN\n1 1 0\n2 x 0\n": "rows of numbers, X Y T",
    ".PEN_DOWN\n1\n2\n": "rows of numbers, X Y T",
    ".COORD A B\n.PEN_DOWN\n1 1\n2 2\n": "has no X and Y",
    ".X_POINTS_PER_INCH 0\n.PEN_DOWN\n1 1 0\n2 2 0\n": "no positive number",
    ".INCLUDE apx/data/w3/l2.dat\n": "without end",
    ".INCLUDE apx/nowhere.doc\n": "include/apx/nowhere.doc: there is no such file",
    ".INCLUDE apx/w\0.doc\n": "include/'apx/w\\x00.doc': is not the name of a file",
    ".INCLUDE ../../../etc/passwd\n": "outside of the corpus",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_unipen_file_is_named(tmp_path, content):
    write_unipen(tmp_path, writers=4, lines=3)
    write(tmp_path / "include" / "apx" / "data" / "w3" / "l2.dat", content)
    with pytest.raises(BrokenLine) as raised:
        Unipen(tmp_path).read("apx/data/w3/l2.dat")
    assert BROKEN[content] in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("delineation, said", [("x", "no range"), ("0-99", "not among"), ("0:99", "does not have")])
def test_a_mark_of_nothing_is_named(tmp_path, delineation, said):
    write_unipen(tmp_path, writers=4, lines=3)
    name = "apx/data/w3/l2.dat"
    write_marks(tmp_path / "data" / "1c" / name, name, [("CHARACTER", delineation, "o")])
    with pytest.raises(BrokenLine, match=said):
        Unipen(tmp_path).read(name)


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "no XML"),
        ("<a/>", "no pen points"),
        ("<a><Stroke><Point x='1'/></Stroke></a>", "needs numbers"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", "entities"),
    ],
)
def test_a_broken_iam_file_is_named(tmp_path, content, said):
    write_iam(tmp_path)
    name = "lineStrokes/a03/a03-000/a03-000u-02.xml"
    write(tmp_path / name, content)
    with pytest.raises(BrokenLine, match=f"a03-000u-02.xml: .*{said}"):
        Iam(tmp_path).read(name)


def test_a_damaged_folder_is_refused(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare handwriting"):
        load_normalization(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="it has: test, train, valid"):
        load_split(str(prepared), "valid2")
    whole = (prepared / "test.npz").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.npz is cut off or damaged"):
            load_split(str(tmp_path), name)
    strokes = load_split(str(prepared), "test")
    strokes.steps[3, 0] = np.nan
    np.savez(str(tmp_path / "nan.npz"), **strokes._asdict())
    with pytest.raises(ValueError, match="damaged"):
        load_split(str(tmp_path), "nan")
    (tmp_path / "handwriting.json").write_text('{"version": 1, "mean": [0, 0], "std": [0, 1]}')
    with pytest.raises(ValueError, match="damaged"):
        load_normalization(str(tmp_path))


def test_the_command_names_skips_and_counts_broken_files(tmp_path):
    folder = write_unipen(tmp_path / "corpus")
    write(folder / "include" / "apx" / "data" / "w3" / "l2.dat", "")
    write(folder / "data" / "8" / "apx" / "data" / "w5" / "empty.dat", "")
    (folder / "include" / "apx" / "data" / "w4" / "l1.dat").unlink()
    command = ["fairseq-hmrnn", "prepare", "handwriting", folder, "--dest", tmp_path / "bin"]
    printed = run(*command).stdout
    assert "skipped: include/apx/data/w3/l2.dat: has no pen points" in printed
    assert "skipped: data/8/apx/data/w5/empty.dat: is empty" in printed
    assert "w4/l1.dat: there is no such file, which the marks of" in printed
    assert "3 files were skipped" in printed and re.search(r"^test: [56] lines of 1 writers, ", printed, re.MULTILINE)
    refused = run(*command, check=False)
    assert refused.returncode == 2 and "has data in it already: give" in refused.stdout
    (tmp_path / "nothing").mkdir()
    refused = run(*command[:3], tmp_path / "nothing", "--dest", tmp_path / "x", check=False)
    assert refused.returncode == 2 and "no layout that is known: UNIPEN" in refused.stdout
