"""What `plot` refuses before it loads a model: too long a text, of a page less than of a picture; one file for two."""

import os

import pytest
from running import ROOT

from fairseq_hmrnn.cli.main import run as run_here

CHECKPOINT = str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt")


@pytest.fixture
def plot(tmp_path):
    """Draws a text of so many bytes."""

    def plotted(size, *options):
        (tmp_path / "text").write_text(("to be or not " * (size // 13 + 1))[:size], encoding="utf-8")
        run_here(["plot", CHECKPOINT, "--text", str(tmp_path / "text"), *options])

    return plotted


def test_a_page_takes_100000_bytes_and_a_picture_20000(plot, tmp_path, capsys):
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    plot(30_000, "--html", str(page))
    assert page.read_text(encoding="utf-8").count("to be or not") == 30_000 // 13
    page.unlink()
    refused = [(100_001, ["--html", page], "100,000"), (30_000, ["--html", page, "--out", picture], "20,000")]
    for size, options, limit in [*refused, (20_001, ["--out", picture], "20,000")]:
        with pytest.raises(SystemExit):
            plot(size, *map(str, options))
        assert f"has more than {limit} bytes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    "options",
    [
        "--out a.png --norms a.png",
        "--out a.png b.png ./a.png",
        "--out a.png --norms link.png",
        "--norms boundaries.png",  # the default of --out
        "--log log --out rates.png",  # that of --rates
        "--log log --rates a.png --out a.png",
        "--html link.html --out a.png",
    ],
)
def test_one_file_for_two_pictures_is_refused(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").touch()
    (tmp_path / "text").write_text("to be")
    for link in ("link.png", "link.html"):
        os.symlink("a.png", link)
    with pytest.raises(SystemExit):
        run_here(["plot", "no-checkpoint", "--text", "text", *options.split()])
    assert "is named for two files: give each a name of its own" in capsys.readouterr().err
