"""Published experiments: the recipes, the script that runs them, and the scripts that prepare their data."""

import os
import random
import re
import shutil
import string
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TASK, TRAIN, run
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from fairseq_hmrnn.models.hmlstm_lm import PUBLISHED

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ENVIRONMENT["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"


ODD_NAME = "it's \"odd\" $(touch x) `touch y`; [z],{a=b} ~#% \\"  # each part means something to a shell or a grammar


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
    folder = tmp_path / ODD_NAME
    shutil.copytree(str(data), str(folder / "data"))
    arguments = ["ptb_small", folder / "data", folder / "save", *tiny]
    script("train_recipe.sh", *arguments, "optimization.max_update=8")
    log = script("train_recipe.sh", *arguments, "optimization.max_update=20")
    assert (folder / "save" / "hydra_train.log").is_file()
    assert "(epoch 1 @ 8 updates)" in log
    characters = len((data.parent / "test.txt").read_bytes().decode())
    assert int(re.search(r"Evaluated ([0-9,]+) tokens", log).group(1).replace(",", "")) == characters
    assert 0 < float(re.search(r"Loss \(base 2\): ([0-9.]+)", log).group(1)) < 5


def test_train_recipe_checks_before_it_makes_anything(data, tmp_path, monkeypatch):
    save, nowhere = tmp_path / "save", tmp_path / "no" / "where"
    for name in ("ptbs", "character_lm"):
        message = script("train_recipe.sh", name, data, save, check=False)
        assert "give ptb, text8, enwik8, ptb_small or ptb_beyond" in message
    message = script("train_recipe.sh", "ptb_small", nowhere, save, check=False)
    assert message == f"train_recipe: error: no {nowhere}/dict.txt: run scripts/prepare_ptb.sh first\n"
    assert not save.exists()
    # An active environment of something else: this project's own is wanted, which cannot be made here.
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    settings = {"VIRTUAL_ENV": tmp_path, "VENV": nowhere, "PYTHON": nowhere}
    settings["PATH"] = f"{python.parent}{os.pathsep}{ENVIRONMENT['PATH']}"
    for name, value in settings.items():
        monkeypatch.setitem(ENVIRONMENT, name, str(value))
    assert f"setup: error: {nowhere} does not run" in script("train_recipe.sh", "ptb_small", data, save, check=False)


def test_gpu_check_trains_goes_on_and_leaves_weights(data, tmp_path, monkeypatch):
    """On CPU: the checkpoint's folder stays, the other gets the log, the best weights in float16, and a line."""
    settings = {"SAVE": tmp_path / "save", "LIMIT": 200, "PYTHON": sys.executable, "RECIPE": "ptb_small"}
    for name, value in settings.items():
        monkeypatch.setitem(ENVIRONMENT, name, str(value))
    tiny = ["model.embed_dim=8", "model.hidden_sizes='12,8'", "model.output_dim=8", "criterion.boundary_rates='.2'"]
    tiny += ["dataset.batch_size=8", "task.tokens_per_sample=30", "dataset.num_workers=0"]
    for updates in (8, 12):
        table = script("gpu_check.sh", "train", tmp_path / "out", data, *tiny, f"optimization.max_update={updates}")
        assert re.search(rf"train +ok +\d+ s +\d\.\d+ bpc at update {updates} \(ended\)", table), table
    assert "(epoch 1 @ 8 updates)" in (tmp_path / "out" / "hydra_train.log").read_text()
    best = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "out" / "best.pt"))
    last = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "save" / "ptb_small" / "checkpoint_best.pt"))
    name = "decoder.hm_lstm.weight_recurrent.0"
    assert best["model"][name].dtype == torch.float16 and best["last_optimizer_state"] is None
    assert torch.equal(best["model"][name], last["model"][name].half())
    assert "gpu_check.sh train OUT DATA" in script("gpu_check.sh", "train", tmp_path / "out", check=False)


def test_averaged_checkpoints_are_the_mean_of_their_weights(data, trained, tmp_path):
    """Of two checkpoints of one training, found in its folder by their updates, and scored like any other."""
    save = tmp_path / "save"
    options = [*TASK, *TRAIN, "--save-interval-updates", 2, "--keep-interval-updates", 5, "--disable-validation"]
    run("fairseq-train", data, *options, "--max-update", 6, "--save-dir", save)
    run("scripts/average_checkpoints.py", save, "--last", 2, "--out", tmp_path / "mean.pt")
    parts = [checkpoint_utils.load_checkpoint_to_cpu(str(save / f"checkpoint_1_{u}.pt"))["model"] for u in (4, 6)]
    found = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "mean.pt"))["model"]
    for key, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (parts[0][key] + parts[1][key]) / 2)
        else:
            assert torch.equal(tensor, parts[1][key]), "whole numbers are the newest's"
    scored = ["--path", tmp_path / "mean.pt", "--gen-subset", "test", "--cpu", "--tokens-per-sample", 100]
    assert "Loss (base 2)" in run("fairseq-eval-lm", data, *TASK, *scored).stdout
    missing = run("scripts/average_checkpoints.py", tmp_path, "--out", tmp_path / "none.pt", check=False).stdout
    assert "no checkpoint_EPOCH_UPDATE.pt" in missing and "Traceback" not in missing
    wrongs = {"--last: must be a whole number from 1": ["--last", 0], "no folder": ["--out", tmp_path / "no" / "o.pt"]}
    for message, wrong in wrongs.items():
        refused = run("scripts/average_checkpoints.py", save, "--out", tmp_path / "o.pt", *wrong, check=False).stdout
        assert message in refused and "Traceback" not in refused
    other = [trained / "checkpoint_last.pt", tmp_path / "none.pt"]
    missing = run("scripts/average_checkpoints.py", *other, "--out", tmp_path / "none.pt", check=False).stdout
    assert "no such file" in missing and "Traceback" not in missing


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
