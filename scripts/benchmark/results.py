"""Results that a benchmark keeps so that it can go on where it was: they belong to the settings they were made with."""

import csv
import hashlib
import json
from pathlib import Path

from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.files import write_whole

DATA = (".bin", ".idx", ".txt", ".model", ".npz")  # of the files of a prepared folder that are trained on
NOTE = "settings.json"


def claim(folder, settings, option="--out"):
    """Make a folder of results, and note in it the settings that they depend on, {name: value}. UserError where it was
    made with others. option: that of the script which names another folder.

    What only adds results, such as more seeds or contestants, is not a setting. A folder without a note, of an earlier
    version of the script, is assumed to have these settings.
    """
    folder = Path(folder)
    note, settings = folder / NOTE, json.loads(json.dumps(settings))
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        for name in {**settings, **before}:
            if settings.get(name) != before.get(name):
                was, now = (_told(name, values.get(name)) for values in (before, settings))
                raise UserError(f"{folder} was trained with {was}, not {now}: give another {option}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(str(note), json.dumps(settings, indent=1) + "\n")


def _told(name, value):
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return f"no {name}" if value in (None, False, "") else name if value is True else f"{name} {value}"


def digest(*texts):
    """A short hash of the texts."""
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()[:12]


def data_digest(folder):
    """A short hash of the data, wherever the prepared folder is."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in DATA and path.is_file():
            found.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                for block in iter(lambda: file.read(2**20), b""):
                    found.update(block)
    return found.hexdigest()[:12]


def write_rows(path, rows, mode="w"):
    """Write lists of values as the rows of a CSV; with the mode "a" below those that it has."""
    with open(path, mode, newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_rows(path, columns):
    """The rows of a CSV, which is begun if it is not there; UserError if it has other columns."""
    if not path.exists():
        write_rows(path, [columns])
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != list(columns):
        raise UserError(f"{path} has other columns: give another --out")
    return rows
