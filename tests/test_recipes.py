"""Published experiments: the recipes, `train` that runs them, and `prepare` that makes their data."""

import os
import random
import re
import runpy
import shutil
import string

import numpy as np
import pytest
import torch
from command_results import base2_loss
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from running import ROOT, forked_python, run, script
from small_training import TASK, TRAIN

from fairseq_hmrnn.data import corpora
from fairseq_hmrnn.data.corpora import penn_treebank
from fairseq_hmrnn.models.hmlstm_lm import ARCHITECTURES
from fairseq_hmrnn.text import InputError

ODD_NAME = 'it\'s "odd" $(touch x) `touch y`; [z],{a=b} ~#% \\'  # each part means something to a shell or a grammar


@pytest.mark.parametrize("name, batch, lr", [("ptb", 64, 0.002), ("text8", 128, 0.001), ("enwik8", 128, 0.001)])
def test_recipes_are_the_published_ones(name, batch, lr):
    recipe = OmegaConf.load(str(ROOT / "fairseq_hmrnn" / "configs" / f"{name}.yaml"))
    settings = {"slope_per_epoch": 0.0, "embed_dim": 128, "slope": 1.0, **ARCHITECTURES[f"hmlstm_lm_{name}"]}
    assert {key: recipe.model[key] for key in settings} == settings
    assert (recipe.dataset.batch_size, recipe.task.tokens_per_sample, recipe.task.stateful) == (batch, 100, True)
    assert (recipe.optimization.lr, recipe.optimization.clip_norm) == ([lr], 1.0)
    assert (recipe.lr_scheduler.lr_shrink, recipe.lr_scheduler.lr_patience) == (0.02, 0)


@pytest.mark.slow
def test_a_recipe_trains_goes_on_and_scores_the_test_split(data, tmp_path):
    tiny = ["common.cpu=true", "model.embed_dim=8", "model.hidden_sizes='12,8'", "model.output_dim=8"]
    tiny += ["dataset.batch_size=8", "criterion.boundary_rates='.2'", "task.tokens_per_sample=30"]
    tiny += ["dataset.num_workers=0"]
    folder = tmp_path / ODD_NAME
    shutil.copytree(str(data), str(folder / "data"))
    arguments = ["train", "ptb_small", folder / "data", "--save-dir", folder / "save"]
    run("fairseq-hmrnn", *arguments, "--no-score", "--", *tiny, "optimization.max_update=8")
    log = run("fairseq-hmrnn", *arguments, "--", *tiny, "optimization.max_update=20").stdout
    assert (folder / "save" / "hydra_train.log").is_file()
    assert "(epoch 1 @ 8 updates)" in log and not re.search("Hydra|ConfigStore", log)  # its warnings are of fairseq
    characters = len((data.parent / "test.txt").read_bytes().decode())
    assert int(re.search(r"Evaluated ([0-9,]+) tokens", log).group(1).replace(",", "")) == characters
    assert 0 < base2_loss(log) < 5


# Answers the small calls of scripts/gpu_check.sh by itself.
GPU_CHECK_PYTHON = """#!/bin/sh
case $1 in
  -c) echo "$2" > "$(dirname "$0")/question.py"; echo 0 ;;
  -) cat > "$(dirname "$0")/program.py" ;;
  *) exec {python} "$@" ;;
esac
"""


def test_gpu_check_trains_and_leaves_weights(data, tmp_path):
    """On CPU: the checkpoint's folder stays, the other gets the log, the best weights in float16, and a line on the
    best validation. That a second call goes on is tested with a stand-in, in test_packaging.py."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "python"
    settings = {"SAVE": str(tmp_path / "save"), "LIMIT": "200", "RECIPE": "ptb_small", "SAVE_EVERY": "4"}
    tiny = ["model.embed_dim=8", "model.hidden_sizes='12,8'", "model.output_dim=8", "criterion.boundary_rates='.2'"]
    tiny += ["dataset.batch_size=8", "task.tokens_per_sample=30", "dataset.num_workers=0", "optimization.max_update=8"]
    with forked_python(tmp_path / "bin") as python:
        stand_in.write_text(GPU_CHECK_PYTHON.format(python=python))
        stand_in.chmod(0o755)
        table = script("gpu_check.sh", "train", tmp_path / "out", data, *tiny, **settings, PYTHON=str(stand_in))
    for program in ("question.py", "program.py"):  # here, where torch is imported already
        runpy.run_path(str(tmp_path / program))
    assert re.search(r"train +ok +\d+ s +\d\.\d+ bpc at update 8 \(ended\)", table), table
    log = (tmp_path / "out" / "hydra_train.log").read_text()
    assert re.findall(r"valid on 'valid'.*num_updates (\d+)", log) == ["4", "8"]
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
    run("fairseq-hmrnn", "average", save, "--last", 2, "--out", tmp_path / "mean.pt")
    parts = [checkpoint_utils.load_checkpoint_to_cpu(str(save / f"checkpoint_1_{u}.pt"))["model"] for u in (4, 6)]
    found = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "mean.pt"))["model"]
    for key, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (parts[0][key] + parts[1][key]) / 2)
        else:
            assert torch.equal(tensor, parts[1][key]), "whole numbers are the newest's"
    scored = ["--path", tmp_path / "mean.pt", "--gen-subset", "test", "--cpu", "--tokens-per-sample", 100]
    assert "Loss (base 2)" in run("fairseq-eval-lm", data, *TASK, *scored).stdout
    missing = run("fairseq-hmrnn", "average", tmp_path, "--out", tmp_path / "none.pt", check=False).stdout
    assert "no checkpoint_EPOCH_UPDATE.pt" in missing and "Traceback" not in missing
    wrongs = {"--last: must be a whole number from 1": ["--last", 0], "no folder": ["--out", tmp_path / "no" / "o.pt"]}
    for message, wrong in wrongs.items():
        refused = run("fairseq-hmrnn", "average", save, "--out", tmp_path / "o.pt", *wrong, check=False).stdout
        assert message in refused and "Traceback" not in refused
    other = [trained / "checkpoint_last.pt", tmp_path / "none.pt"]
    missing = run("fairseq-hmrnn", "average", *other, "--out", tmp_path / "none.pt", check=False).stdout
    assert "no such file" in missing and "Traceback" not in missing
    several = run("fairseq-hmrnn", "average", save, other[0], "--out", tmp_path / "none.pt", check=False).stdout
    assert f"{save} is a folder: give it alone" in several and "Traceback" not in several


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
    printed = run("fairseq-hmrnn", "prepare", "ptb", source, "--dest", tmp_path / "bin").stdout
    for split, count in texts.items():
        assert f"{split:5} {count:>13,} characters" in printed
    assert "dictionary: 53 symbols (4 of them special)" in printed  # 49, and the newline is one of the four
    with open(source / "ptb.valid.txt", "a") as stream:
        stream.write("more\n")
    with pytest.raises(InputError, match="the valid split has 393,047 symbols, the published one 393,042"):
        penn_treebank(str(source))
    os.remove(source / "ptb.char.test.txt")
    with pytest.raises(InputError, match=r"there is no ptb.test.txt \(nor ptb.char.test.txt\)"):
        penn_treebank(str(source))


@pytest.mark.parametrize("name, load", [("text8", corpora.text8), ("enwik8", corpora.enwik8)])
def test_a_hundred_million_bytes_are_cut_where_published(tmp_path, monkeypatch, name, load):
    """With smaller sizes: 14 bytes of four types in place of 100,000,000."""
    monkeypatch.setattr(corpora, "HUNDRED_MILLION", {"train": 9, "valid": 3, "test": 2})
    monkeypatch.setattr(corpora, f"{name.upper()}_TYPES", 4)
    text = b"ab ba\xe9ab a\xe9bba" if name == "enwik8" else b"ab bacab acbb "
    (tmp_path / name).write_bytes(text)
    sources = load(str(tmp_path / name))
    found = {split: "".join(map(chr, np.concatenate(list(source.code_points())))) for split, source in sources.items()}
    assert list(found.items()) == [("train", text[:9].decode("latin-1")), ("valid", text[9:12].decode("latin-1")),
                                   ("test", text[12:].decode("latin-1"))]  # fmt: skip
    (tmp_path / name).write_bytes(b"abc")
    with pytest.raises(InputError, match="has 3 symbols, the published one 14: give the unchanged file"):
        load(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"a" * 14)
    with pytest.raises(InputError, match="has 1 different symbols, the published one 4: give the unchanged file"):
        load(str(tmp_path / name))
