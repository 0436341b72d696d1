"""The mean of checkpoints, with one of the repository."""

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from running import ROOT

from fairseq_hmrnn.checkpoints import UnsafeCheckpointError
from fairseq_hmrnn.inference.averaging import average

NAME = "decoder.dictionary_fingerprint.fingerprint"


@pytest.fixture
def checkpoint():
    return load_checkpoint_to_cpu(str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt"))


@pytest.mark.parametrize(
    "extra_state, epoch",
    [
        ({"train_iterator": {"epoch": 3}}, 3),
        ({"train_iterator": {}}, 1),
        ({"train_iterator": None}, 1),
        ({"train_iterator": {"epoch": None}}, 1),
        ({}, 1),
    ],
)
def test_a_mean_has_an_epoch_whether_its_checkpoint_tells_or_not(checkpoint, tmp_path, extra_state, epoch):
    checkpoint["extra_state"] = extra_state
    torch.save(checkpoint, tmp_path / "a.pt")
    mean = average([tmp_path / "a.pt"])
    assert mean["extra_state"] == {"train_iterator": {"epoch": epoch, "iterations_in_epoch": 0}}
    assert mean["last_optimizer_state"] is None
    assert all(torch.equal(tensor, mean["model"][name]) for name, tensor in checkpoint["model"].items())


def test_what_has_no_extra_state_is_no_whole_checkpoint(checkpoint, tmp_path):
    del checkpoint["extra_state"]
    torch.save(checkpoint, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpointError, match="a.pt is not a whole fairseq checkpoint"):
        average([tmp_path / "a.pt"])


def test_a_moving_average_that_lacks_a_weight_is_named(checkpoint, tmp_path):
    name, *rest = [key for key, tensor in checkpoint["model"].items() if tensor.is_floating_point()]
    checkpoint["extra_state"] = {"train_iterator": {}, "ema": {key: checkpoint["model"][key] for key in rest}}
    torch.save(checkpoint, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt: its moving average lacks {name}: leave --ema out"):
        average([tmp_path / "a.pt"], moving=True)


def test_models_of_other_dictionaries_have_no_mean(checkpoint, tmp_path):
    """Of as many symbols, so that every weight has the same shape; a checkpoint from before fingerprints is taken."""
    (name,) = [key for key in checkpoint["model"] if key.endswith("dictionary_fingerprint.fingerprint")] or [NAME]
    for file, fingerprint in (("a.pt", 1), ("b.pt", 2), ("old.pt", None)):
        model = {key: tensor for key, tensor in checkpoint["model"].items() if key != name}
        if fingerprint is not None:
            model[name] = torch.tensor(fingerprint)
        torch.save({**checkpoint, "model": model}, tmp_path / file)
    with pytest.raises(ValueError, match="b.pt was trained with another dictionary than .*a.pt"):
        average([tmp_path / "a.pt", tmp_path / "b.pt"])
    with pytest.raises(ValueError, match="another dictionary"):
        average([tmp_path / file for file in ("old.pt", "a.pt", "b.pt")])
    mean = average([tmp_path / "a.pt", tmp_path / "old.pt"])["model"]
    assert all(torch.equal(tensor, mean[key]) for key, tensor in checkpoint["model"].items() if key != name)


def test_models_of_other_strokes_have_no_mean(checkpoint, tmp_path):
    for file, scale in (("a.pt", 1.0), ("b.pt", 2.0)):
        normalization = [[0.0, 0.0], [scale, scale]]
        torch.save({**checkpoint, "task_state": {"normalization": normalization}}, tmp_path / file)
    average([tmp_path / "a.pt", tmp_path / "a.pt"])
    with pytest.raises(ValueError, match="b.pt was trained on strokes normalised in another way than those of .*a.pt"):
        average([tmp_path / "a.pt", tmp_path / "b.pt"])
