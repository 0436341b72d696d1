"""Checkpoints of earlier versions load for ever: those in tests/checkpoints, see the README there."""

import random
import re
import shutil

import pytest
import torch
from running import ROOT, run
from small_training import TASK

from fairseq_hmrnn.inference.averaging import average
from fairseq_hmrnn.models import HMLSTMLanguageModel, HMLSTMLSTMModel

OLD = ROOT / "tests" / "checkpoints"
WORDS = {"haus": "house", "baum": "tree", "der": "the", "ist": "is", "und": "and"}
TRAIN = ["--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--batch-size", "4", "--cpu", "--seed", "1"]
TRAIN += ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", "steps:.3,steps:.1"]
TRAIN += ["--no-epoch-checkpoints", "--disable-validation", "--num-workers", "0"]
TRAIN += ["--log-format", "simple", "--log-interval", "1"]
CHARACTERS = [*TASK, "--stateful", "--tokens-per-sample", "20", "--arch", "hmlstm_lm", "--embed-dim", "3"]
CHARACTERS += ["--hidden-sizes", "5,4,3", "--output-dim", "4", "--normalization", "layer", *TRAIN]
CHARACTERS += ["--boundary-regularizers", "rate+uncertainty=.1,rate"]


def source_lines(count):
    """Lines of 1 to 5 words of WORDS, each time the same ones."""
    choose = random.Random(0)
    return [" ".join(choose.choices(list(WORDS), k=choose.randint(1, 5))) for _ in range(count)]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_language_model_scores_as_it_did():
    hub = HMLSTMLanguageModel.from_pretrained(str(OLD / "hmlstm_lm.pt"))
    assert hub.score("der baum ist\n").bits_per_character == pytest.approx(3.912459, abs=1e-5)
    lower, upper = hub.boundaries("der baum ist\n").t().tolist()
    assert lower == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert upper == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1]


def test_a_language_model_goes_on_training(tmp_path):
    """From the state of recurrence and optimizer in the middle of an epoch: the next updates' losses are those of the
    training that was not interrupted, where dropout draws the same numbers."""
    state = torch.load(OLD / "hmlstm_lm.pt", map_location="cpu")
    write(tmp_path / "dict.txt", [f"{symbol} {count}" for symbol, count in state["task_state"]["dictionary"]])
    write(tmp_path / "train.txt", source_lines(60))
    texts = [tmp_path / "train.txt"] * 3
    run("fairseq-hmrnn", "prepare", "text", *texts, "--dest", tmp_path / "bin", "--dict", tmp_path / "dict.txt")
    folder = tmp_path / "save"
    folder.mkdir()
    shutil.copy(OLD / "hmlstm_lm.pt", folder / "checkpoint_last.pt")
    said = run("fairseq-train", tmp_path / "bin", *CHARACTERS, "--max-update", 28, "--save-dir", folder).stdout
    losses, updates = zip(*re.findall(r"train_inner.* loss=([\d.]+),.* num_updates=(\d+)", said))
    assert updates == ("26", "27", "28")
    if not torch.__version__.startswith("1."):  # which draws others
        assert list(map(float, losses)) == pytest.approx([4.246, 4.346, 3.914], abs=0.002)
    later = torch.load(folder / "checkpoint_last.pt", map_location="cpu")
    assert later["model"].keys() == state["model"].keys()


def test_a_translation_model_translates_as_it_did():
    hub = HMLSTMLSTMModel.from_pretrained(str(OLD), "hmlstm_lstm.pt", str(OLD))
    assert hub.translate("und haus der baum") == "and house the tree"
    found = hub.generate([hub.encode("und haus der baum")], beam=3)[0]
    scores = [float(hypothesis["score"]) for hypothesis in found]
    assert scores == pytest.approx([-0.007129, -0.927567, -0.985358], abs=1e-4)


def test_a_translation_model_is_averaged_with_what_became_of_it(tmp_path):
    """By now its decoder has a fingerprint of its dictionary."""
    state = torch.load(OLD / "hmlstm_lstm.pt", map_location="cpu")
    hub = HMLSTMLSTMModel.from_pretrained(str(OLD), "hmlstm_lstm.pt", str(OLD))
    later = tmp_path / "later.pt"
    torch.save({**state, "model": hub.models[0].state_dict()}, later)
    assert state["model"].keys() < hub.models[0].state_dict().keys()
    assert average([OLD / "hmlstm_lstm.pt", later])["model"].keys() == hub.models[0].state_dict().keys()
