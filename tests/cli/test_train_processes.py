"""The command `train` beside others: processes of one training, and another training in the same folder."""

import math
import shlex
import types

import pytest
import torch
from command_results import value_of
from running import run

from fairseq_hmrnn.cli import processes, scoring, train
from fairseq_hmrnn.cli.given import Given
from fairseq_hmrnn.cli.main import run as run_here


def test_of_several_processes_the_first_alone_holds_the_folder_and_scores(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "call", lambda command, arguments: None)
    scored, args = [], types.SimpleNamespace(what=str(data), data=None, dry_run=False, no_score=False, passed_on=[])
    monkeypatch.setattr(scoring, "score", lambda *_: scored.append(1))
    args.save_dir = str(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with train._held(str(tmp_path)):  # by the first
        train.run(args)
    assert not scored
    monkeypatch.setenv("RANK", "0")
    train.run(args)
    assert scored


@pytest.mark.parametrize(
    "settings, environment, rank",
    [
        ([], {}, 0),
        ([], {"RANK": "2"}, 2),
        (["--distributed-rank", "1"], {"RANK": "2"}, 1),
        (["distributed_training.distributed_rank=3"], {}, 3),
        (["++distributed_training.distributed_rank=3"], {}, 3),
        ([], {"SLURM_PROCID": "1"}, 0),
        (["--distributed-world-size", "4"], {"SLURM_PROCID": "1"}, 1),
        (["distributed_training.distributed_world_size=4"], {"SLURM_PROCID": "1"}, 1),
    ],
)
def test_a_process_knows_its_number_as_fairseq_does(monkeypatch, settings, environment, rank):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.rank(Given(settings)) == rank


LAUNCHER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0"}


@pytest.mark.parametrize(
    "settings, environment, gpus, processes",
    [
        ("", {}, 1, 1),
        ("", {}, 2, 2),
        ("--cpu", {}, 2, 1),
        ("--distributed-world-size 4", {}, 2, 4),
        ("--cpu --distributed-world-size=4 --distributed-init-method file:///m", {}, 0, 4),
        ("--distributed-world-size 4", {"WORLD_SIZE": "8"}, 2, 4),  # of no launcher
        ("", {**LAUNCHER, "WORLD_SIZE": "4"}, 2, 4),
        ("--distributed-world-size 2", {**LAUNCHER, "WORLD_SIZE": "4"}, 2, 4),
        ("", {**LAUNCHER, "WORLD_SIZE": "4"}, 1, 1),  # docs/distributed.md: each trains alone
        ("--distributed-world-size 1", {**LAUNCHER, "WORLD_SIZE": "4"}, 2, 1),
        ("--distributed-world-size 2 --distributed-init-method file:///m", {**LAUNCHER, "WORLD_SIZE": "4"}, 2, 2),
        ("--distributed-world-size many", {}, 2, 1),
    ],
)
def test_a_schedule_is_as_long_as_the_processes_need(data, monkeypatch, capsys, settings, environment, gpus, processes):
    """A batch of each makes one update; how many there are is what fairseq makes of the same options."""
    for name in (*LAUNCHER, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(train, "has_gpu", lambda: gpus > 0)
    size = ["--tokens-per-sample", "10", "--batch-size", "1", "--max-epoch", "1"]
    lengths = []
    for given in ([*size, *settings.split()], [*size, "--distributed-world-size", "1"]):
        run_here(["train", str(data), "--dry-run", "--", *given])
        printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
        lengths.append(int(value_of("--total-num-update", printed)))
    assert lengths[0] == math.ceil(lengths[1] / processes)


def test_two_trainings_cannot_write_to_one_folder(data, tmp_path):
    """Nor may the second one put its recipe in place of the first one's, not even as a dry run."""
    for command in (["train", data], ["train", "ptb_small", data, "--dry-run"]):
        with train._held(str(tmp_path)):
            refused = run("fairseq-hmrnn", *command, "--save-dir", tmp_path, "--no-score", check=False)
        assert refused.returncode == 2 and "another training writes to" in refused.stdout
    assert not (tmp_path / "recipe").exists()
    with train._held(str(tmp_path)):  # it was given back
        pass
