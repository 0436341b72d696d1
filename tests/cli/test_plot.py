"""How long a text `plot` draws: of a page more than of a picture."""

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
