"""The command `train` beside others: processes of one training, and another training in the same folder."""

import types

import pytest
from running import run

from fairseq_hmrnn.cli import scoring, train


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
    assert train._rank(settings) == rank


def test_two_trainings_cannot_write_to_one_folder(data, tmp_path):
    """Nor may the second one put its recipe in place of the first one's, not even as a dry run."""
    for command in (["train", data], ["train", "ptb_small", data, "--dry-run"]):
        with train._held(str(tmp_path)):
            refused = run("fairseq-hmrnn", *command, "--save-dir", tmp_path, "--no-score", check=False)
        assert refused.returncode == 2 and "another training writes to" in refused.stdout
    assert not (tmp_path / "recipe").exists()
    with train._held(str(tmp_path)):  # it was given back
        pass
