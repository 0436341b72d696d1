"""A training by two processes on one machine that keeps the weights of each."""

import subprocess

from command_results import weights
from running import BIN, NO_GPU, PATIENCE, ROOT, environment, rank_options

RANK_WEIGHTS = """
import os, torch, fairseq_hmrnn
from fairseq.trainer import Trainer
consolidate = Trainer.consolidate_optimizer
def save_weights(self):  # called on every rank, just before the first one saves
    learned = {**self.get_model().state_dict(), **self.get_criterion().state_dict()}
    torch.save({"model": learned}, os.environ["RANK_WEIGHTS"])
    return consolidate(self)
Trainer.consolidate_optimizer = save_weights
"""


def train_two_processes(data, options, folder):
    """Train with two processes on one machine; the weights of each, as they were before the checkpoint was written."""
    (folder / "rank_weights").mkdir()
    (folder / "rank_weights" / "__init__.py").write_text(RANK_WEIGHTS)
    options = ["--user-dir", folder / "rank_weights", *options, "--save-dir", folder]
    processes = []
    for rank, distributed in enumerate(rank_options(folder)):
        variables = environment(**NO_GPU, RANK_WEIGHTS=str(folder / f"rank{rank}.pt"))
        command = [BIN / "fairseq-train", data, *options, *distributed]
        with open(folder / f"log{rank}", "w") as log:
            processes.append(subprocess.Popen(list(map(str, command)), cwd=ROOT, env=variables, stdout=log, stderr=log))
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0, 0], (folder / "log0").read_text()[-4000:]
    return [weights(folder, f"rank{rank}.pt") for rank in range(2)]
