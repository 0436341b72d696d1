"""Tiny made-up corpora in the layouts of UNIPEN and IAM-OnDB: letters of one or two strokes, in words."""

import math
import random

LETTERS = {  # strokes of (x, y) within a unit square, y upwards
    "o": [[(0.5 + 0.4 * math.sin(a), 0.5 + 0.4 * math.cos(a)) for a in (0, 1.2, 2.4, 3.6, 4.8, 6.0)]],
    "l": [[(0.2, 1.0), (0.2, 0.7), (0.2, 0.4), (0.2, 0.0)]],
    "t": [[(0.4, 1.0), (0.4, 0.6), (0.4, 0.0)], [(0.0, 0.7), (0.4, 0.7), (0.8, 0.7)]],
    "i": [[(0.3, 0.6), (0.3, 0.3), (0.3, 0.0)], [(0.3, 0.9)]],  # with a dot
}


def strokes_of(text, seed, size=40):
    """Strokes of whole numbers, and for each letter the numbers of its first and last stroke."""
    draw, strokes, letters, left = random.Random(seed), [], [], 100.0
    for letter in text:
        if letter == " ":
            left += size
            continue
        first = len(strokes)
        for stroke in LETTERS[letter]:
            strokes.append(
                [(round(left + size * x + draw.random()), round(300 + size * y + draw.random())) for x, y in stroke]
            )
        letters.append((letter, first, len(strokes) - 1))
        left += size
    return strokes, letters


def texts(count, seed=0):
    draw = random.Random(seed)
    return [
        " ".join("".join(draw.choices("olti", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3)))
        for _ in range(count)
    ]


def write_unipen(folder, writers=6, lines=6, cursive=1):
    """A corpus of so many writers and lines each. The first `cursive` writers have words marked, not characters."""
    (folder / "include" / "apx").mkdir(parents=True)
    (folder / "include" / "apx" / "tablet.doc").write_text(
        ".VERSION 1.0\n.COMMENT .a full stop begins no statement here\n   more of the comment\n.COORD X Y T\n"
        ".X_POINTS_PER_INCH 100\n.Y_POINTS_PER_INCH 100\n"
    )
    for writer in range(writers):
        for number, text in enumerate(texts(lines, writer)):
            name = f"apx/data/w{writer}/l{number}.dat"
            strokes, letters = strokes_of(text, writer * 100 + number)
            pen = [f".WRITER_ID w{writer}"]
            for stroke in strokes:
                pen += [".PEN_DOWN", *(f"  {x}\t{y} {index}" for index, (x, y) in enumerate(stroke)), ".PEN_UP"]
            write(folder / "include" / name, "\n".join(pen) + "\n")
            write_marks(folder / "data" / "8" / name, name, [("TEXT", f"0-{len(strokes) - 1}", text)])
            if writer >= cursive:
                marks = [("CHARACTER", str(a) if a == b else f"{a}-{b}", letter) for letter, a, b in letters]
                write_marks(folder / "data" / "1c" / name, name, marks)
                write_marks(folder / "data" / "2" / name, name, marks)  # the corpus says it twice
            else:
                write_marks(folder / "data" / "7" / name, name, words_of(text, letters))
    return folder


def words_of(text, letters):
    marks, place = [], 0
    for word in text.split():
        part = letters[place : place + len(word)]
        marks.append(("WORD", f"{part[0][1]}-{part[-1][2]}", word))
        place += len(word)
    return marks


def write_marks(path, name, marks):
    segments = "".join(f'.SEGMENT {level} {place} ? "{label}"\n' for level, place, label in marks)
    write(path, f".VERSION 1.0\n.INCLUDE apx/tablet.doc\n.INCLUDE {name}\n{segments}")


def write_iam(folder, forms=8, lines=2, original=True):
    """A corpus of so many forms, each of a writer of its own."""
    for form in range(forms):
        name = f"a{form:02d}-000"
        found = texts(lines, form)
        for number, text in enumerate(found, 1):
            strokes, _ = strokes_of(text, form * 10 + number)
            drawn = ["".join(f"<Point x='{x}' y='{1000 - y}' time='0'/>" for x, y in stroke) for stroke in strokes]
            xml = "".join(f"<Stroke colour='black'>{points}</Stroke>" for points in drawn)
            xml = f"<?xml version='1.0'?>\n<WhiteboardCaptureSession><StrokeSet>{xml}</StrokeSet>"
            xml += "</WhiteboardCaptureSession>"
            write(folder / "lineStrokes" / name[:3] / name / f"{name}u-{number:02d}.xml", xml)
        write(folder / "ascii" / name[:3] / name / f"{name}u.txt", "OCR:\n\nx\n\nCSR: \n\n" + "\n".join(found) + "\n")
        if original:
            write(folder / "original" / name[:3] / name / "strokesu.xml", f'<Form writerID="{100 + form}"/>')
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="latin-1")
