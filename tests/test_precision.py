"""fairseq's 16-bit modes through the real commands: they learn as float32 does, and go on where they stopped."""

import importlib
import os
import sys
from unittest import mock

import pytest
import torch
from command_results import losses
from running import ROOT, run, run_groups
from small_training import TASK, TRAIN

MODES = {
    "float32": [],
    "fp16": ["--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4],
    "memory-efficient-fp16": ["--memory-efficient-fp16", "--fp16-init-scale", 4],
    "amp": ["--amp"],
}
RATES = ["--boundary-rates", "steps:.3,steps:.1"]
# fairseq-train --cpu --bf16 turns --tpu on; hydra does not
BF16 = [
    *("--config-dir", ROOT / "fairseq_hmrnn" / "configs", "--config-name", "ptb_small", "common.bf16=true"),
    *(f"common.user_dir={ROOT / 'fairseq_hmrnn'}", "common.cpu=true", "common.log_interval=1"),
    *("task.tokens_per_sample=30", "dataset.batch_size=8", "dataset.num_workers=0", "optimization.lr=[0.01]"),
    *("model.embed_dim=8", 'model.hidden_sizes="16,12,8"', "model.output_dim=12"),
    *('criterion.boundary_rates="steps:.3,steps:.1"', 'criterion.boundary_regularizers="rate"'),
]
HALVED = {"fp16": torch.float16, "memory-efficient-fp16": torch.float16, "bf16": torch.bfloat16}
UPDATES, HALF = 26, 8  # both within an epoch, where the state of the streams is in the checkpoint
requires_half_on_cpu = pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.12 has no dropout in Half on CPU")


def at_the_end(loss_by_update):
    """Mean of the last five."""
    return sum([*loss_by_update.values()][-5:]) / 5


def carried(found):
    """The state of the streams, wherever it is in a checkpoint's extra_state."""
    if not isinstance(found, dict):
        return None
    return found.get("rows", next(filter(torch.is_tensor, map(carried, found.values())), None))


def job(mode, data, folder, updates, log):
    if mode == "bf16":
        options = [*BF16, f"task.data={data}", f"checkpoint.save_dir={folder}", f"hydra.run.dir={folder}"]
        return [("fairseq-hydra-train", [*options, f"optimization.max_update={updates}"], log)]
    options = [data, *TASK, *TRAIN, *RATES, "--stateful", *MODES[mode], "--disable-validation"]
    return [("fairseq-train", [*options, "--max-update", updates, "--save-dir", folder], log)]


@requires_half_on_cpu
def test_every_precision_learns_alike_and_resumes(data, tmp_path):
    modes = [*MODES, "bf16"]
    groups = []
    for mode in modes:
        groups.append(job(mode, data, tmp_path / mode, UPDATES, tmp_path / f"{mode}.log"))
        for updates in (HALF, UPDATES) if mode in HALVED else ():
            groups.append(job(mode, data, tmp_path / f"{mode}-parts", updates, tmp_path / f"{mode}-parts.log"))
    run_groups(groups)
    expected = losses(tmp_path / "float32.log")
    assert expected[UPDATES] < expected[1] - 1
    for mode in modes:
        whole = losses(tmp_path / f"{mode}.log")
        assert len(whole) == UPDATES and at_the_end(whole) == pytest.approx(at_the_end(expected), abs=0.08), mode
    for mode, dtype in HALVED.items():
        whole, parts = losses(tmp_path / f"{mode}.log"), losses(tmp_path / f"{mode}-parts.log")
        assert parts == whole, mode
        folders = [tmp_path / name / "checkpoint_last.pt" for name in (mode, f"{mode}-parts")]
        checkpoint, other = (torch.load(path, map_location="cpu") for path in folders)
        assert all(torch.equal(x, other["model"][name]) for name, x in checkpoint["model"].items()), mode
        weights, rows = checkpoint["model"]["decoder.hm_lstm.weight_recurrent.0"], carried(checkpoint["extra_state"])
        assert torch.equal(weights.to(dtype).float(), weights.float()), "the weights were 16-bit"
        assert not torch.equal(rows.to(dtype).float(), rows), "the carried state was not"


@requires_half_on_cpu
def test_a_checkpoint_after_an_overflow_has_the_state_of_its_position(data, tmp_path, monkeypatch):
    """An update that overflowed has read its window; fairseq then writes the checkpoint of the one before once more."""
    options = [data, *TASK, *TRAIN, "--stateful", *MODES["fp16"][:2], "--disable-validation", "--max-update", 5]
    options += ["--fp16-init-scale", 2**12, "--fp16-scale-window", 1, "--save-interval-updates", 1]
    monkeypatch.setattr(sys, "argv", ["fairseq-train", *map(str, options), "--save-dir", str(tmp_path)])
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # fairseq calls it after an overflow, on CPU too
    with mock.patch.dict(os.environ):  # torch writes to it
        importlib.import_module("fairseq_cli.train").cli_main()
    states = [torch.load(tmp_path / f"checkpoint_1_{update}.pt", map_location="cpu") for update in range(1, 6)]
    positions = [state["extra_state"]["train_iterator"] for state in states]
    windows = [position["streams"]["carried"]["window"] for position in positions]
    assert windows == [position["iterations_in_epoch"] - 1 for position in positions]
    assert windows[-1] - windows[0] > 4  # some overflowed


@pytest.mark.parametrize("kind", ["fp16", pytest.param("bf16", id="bf16, which fairseq-train takes for a TPU's")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="--fp16 is for a GPU, and there is one")
def test_a_precision_that_the_machine_lacks_is_refused_in_a_line(kind, data, tmp_path):
    result = run(
        "fairseq-train", data, *TASK, *TRAIN, f"--{kind}", "--max-update", 2, "--save-dir", tmp_path, check=False
    )
    assert result.returncode == 1 and "Traceback" not in result.stdout
    advice = {"fp16": "--fp16-no-flatten-grads", "bf16": "common.bf16=true"}[kind]
    assert advice in result.stdout.splitlines()[-1] and not list(tmp_path.iterdir())
