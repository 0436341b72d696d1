"""scripts/quickstart.sh, without the environment that it makes: what it prints while it trains, and what it leaves."""

import re
import shutil

import pytest
from running import ROOT, forked_python, script

LINE = "2026-01-01 00:00:00 | INFO | train_inner | epoch 001:    {0} / 257 loss=3.2, nll_loss=3.1, bpc=3.1001, {1}, "
LINE += "update1=0.5, copy1=0, ppl=9, wps=2160.7, ups=1.73, wpb=1259.8, bsz=16, num_updates={0}, lr=0.002, wall=30\n"
TRAINING = LINE.format(25, "z1=0.234, z2=0.05") + LINE.format(50, "z1=0.2, z1_within=0.25, z2=1e-05, z2_within=2e-05")
TRAINING += "2026-01-01 00:00:00 | INFO | train | epoch 001 | loss 3 | bpc 3.0 | z1 0.2 | num_updates 50\n"
TRAINING += "2026-01-01 00:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 3 | bpc 2.9 | ppl 7\n"
TRAINING += "Evaluated 9 tokens, Loss (base 2): 2.8, Perplexity: 7\n"
SETUP = """hmrnn_root={root} hmrnn_venv={root}/.venv
export PYTHONPATH={root}
fairseq-hmrnn() {{ {command}; }}
"""


def quickstart(folder, command, **variables):
    """What it prints where `command` is run for fairseq-hmrnn: a copy of it beside a setup that makes nothing."""
    (folder / "scripts").mkdir()
    shutil.copy(str(ROOT / "scripts" / "quickstart.sh"), str(folder / "scripts"))
    (folder / "scripts" / "setup_venv.sh").write_text(SETUP.format(root=ROOT, command=command))
    return script("quickstart.sh", folder / "out", root=folder, **variables)


def test_progress_is_told_from_the_log(tmp_path):
    (tmp_path / "training").write_text(TRAINING)
    printed = quickstart(tmp_path, f'if [ "$1" = train ]; then cat {tmp_path}/training; fi')
    told = printed.partition("== 2.")[2].partition("\n\n")[0].splitlines()[1:]
    assert told == [
        "  update 25: bpc=3.1001 z1=0.234 z2=0.05",
        "  update 50: bpc=3.1001 z1=0.2 z2=1e-05",
        "  validation: bpc 2.9",
        "Evaluated 9 tokens, Loss (base 2): 2.8, Perplexity: 7",
    ]
    assert "\n== Done. Everything is in " in printed


@pytest.mark.slow
def test_quickstart_trains_samples_and_draws(tmp_path):
    """With small layers."""
    small = 'if [ "$1" = train ]; then set -- "$@" --hidden-sizes 16,12,8 --embed-dim 8 --output-dim 12; fi'
    (tmp_path / "bin").mkdir()
    with forked_python(tmp_path / "bin") as python:
        printed = quickstart(tmp_path, f'{small}; {python} -m fairseq_hmrnn "$@"', UPDATES="25")
    assert re.search(r"^  update 25: bpc=\S+ z1=\S+ z2=\S+$", printed, re.MULTILINE)
    assert re.search(r"^  validation: bpc \S+$", printed, re.MULTILINE) and "\nEvaluated " in printed
    out = tmp_path / "out"
    assert (out / "sample.txt").read_text(encoding="utf-8").startswith("The following")
    assert (out / "boundaries.png").read_bytes().startswith(b"\x89PNG") and (out / "segments.txt").stat().st_size
