"""Published experiments: the recipes, the script that runs them, and the scripts that prepare their data."""

import os
import random
import re
import string
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from fairseq_hmrnn.models.hmlstm_lm import PUBLISHED

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
ENVIRONMENT["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"


def script(name, *arguments, check=True):
    """Output of one of scripts/*.sh."""
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )
    assert (result.returncode == 0) == check, result.stdout[-4000:]
    return result.stdout


@pytest.mark.parametrize(
    "name, batch, lr", [("ptb", 64, 0.002), ("text8", 128, 0.001), ("enwik8", 128, 0.001)]
)
def test_recipes_are_the_published_ones(name, batch, lr):
    recipe = OmegaConf.load(str(ROOT / "fairseq_hmrnn" / "configs" / f"{name}.yaml"))
    settings = {"slope_per_epoch": 0.0, "embed_dim": 128, "slope": 1.0, **PUBLISHED[f"hmlstm_lm_{name}"]}
    assert {key: recipe.model[key] for key in settings} == settings
    assert (recipe.dataset.batch_size, recipe.task.tokens_per_sample, recipe.task.stateful) == (batch, 100, True)
    assert (recipe.optimization.lr, recipe.optimization.clip_norm) == ([lr], 1.0)
    assert (recipe.lr_scheduler.lr_shrink, recipe.lr_scheduler.lr_patience) == (0.02, 0)


def test_a_recipe_trains_goes_on_and_scores_the_test_split(data, tmp_path):
    tiny = ["common.cpu=true", "model.embed_dim=8", "model.hidden_sizes='12,8'", "model.output_dim=8"]
    tiny += ["dataset.batch_size=8", "criterion.boundary_rates='.2'", "task.tokens_per_sample=30"]
    tiny += ["dataset.num_workers=0"]
    script("train_recipe.sh", "ptb_small", data, tmp_path, *tiny, "optimization.max_update=8")
    log = script("train_recipe.sh", "ptb_small", data, tmp_path, *tiny, "optimization.max_update=20")
    assert "(epoch 1 @ 8 updates)" in log
    characters = len((data.parent / "test.txt").read_bytes().decode())
    assert int(re.search(r"Evaluated ([0-9,]+) tokens", log).group(1).replace(",", "")) == characters
    assert 0 < float(re.search(r"Loss \(base 2\): ([0-9.]+)", log).group(1)) < 5
    assert "give ptb, text8, enwik8 or ptb_small" in script("train_recipe.sh", "ptbs", data, tmp_path, check=False)
    assert "run scripts/prepare_ptb.sh" in script("train_recipe.sh", "ptb_small", tmp_path, tmp_path, check=False)


def treebank(num_symbols, seed):
    """Lines with num_symbols of 50 types: the newlines, the spaces, and 48 others."""
    types = string.ascii_lowercase + string.digits + "#$&'*-./\\<>N"
    assert len(set(types)) == 48
    text = types + "".join(random.Random(seed).choices(types, k=num_symbols - len(types)))
    lines = [text[start : start + 99] for start in range(0, num_symbols, 100)]
    lines[-1] = lines[-1][: num_symbols - 100 * (len(lines) - 1) - 1]
    return [lines[0][:60] + " " + lines[0][61:], *lines[1:]]


def test_penn_treebank_is_stripped_counted_and_binarised(tmp_path):
    source = tmp_path / "ptb"
    source.mkdir()
    texts = {"train": 5_017_482, "valid": 393_042, "test": 442_423}
    for seed, (split, count) in enumerate(texts.items()):
        lines = treebank(count, seed)
        assert sum(map(len, lines)) + len(lines) == count
        if split == "test":  # as one symbol each, with underscores for spaces
            symbols = (" ".join("_" if c == " " else c for c in f" {line} ") for line in lines)
            (source / "ptb.char.test.txt").write_text("".join(f"{line}\n" for line in symbols))
        else:
            (source / f"ptb.{split}.txt").write_text("".join(f" {line} \n" for line in lines))
    printed = script("prepare_ptb.sh", source, tmp_path / "bin")
    for split, count in texts.items():
        assert f"{split:5} {count:>13,} characters" in printed
    assert "dictionary: 53 symbols (4 of them special)" in printed  # 49, and the newline is one of the four
    with open(source / "ptb.valid.txt", "a") as stream:
        stream.write("more\n")
    message = script("prepare_ptb.sh", source, tmp_path / "other", check=False)
    assert "the valid split has 393047 symbols, the published one 393042" in message


@pytest.mark.parametrize("name", ["text8", "enwik8"])
def test_another_file_than_the_published_one_is_refused(tmp_path, name):
    assert f"give the unpacked file {name}" in script(f"prepare_{name}.sh", tmp_path / "none", check=False)
    (tmp_path / name).write_text("abc")
    assert "has 3 symbols, the published one 100000000" in script(f"prepare_{name}.sh", tmp_path / name, check=False)
