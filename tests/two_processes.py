"""A training by two processes on one machine that keeps the weights of each."""

from command_results import weights
from running import rank_options, run_groups

RANK_WEIGHTS = """
import os, torch, fairseq_hmrnn
from fairseq.trainer import Trainer
consolidate = Trainer.consolidate_optimizer
def save_weights(self):  # called on every rank, just before the first one saves
    learned = {**self.get_model().state_dict(), **self.get_criterion().state_dict()}
    torch.save({"model": learned}, os.path.join(self.cfg.checkpoint.save_dir, f"rank{self.data_parallel_rank}.pt"))
    return consolidate(self)
Trainer.consolidate_optimizer = save_weights
"""


def train_two_processes(data, options, folder):
    """Train with two processes on one machine; the weights of each, as they were before the checkpoint was written."""
    (folder / "rank_weights").mkdir()
    (folder / "rank_weights" / "__init__.py").write_text(RANK_WEIGHTS)
    options = ["--user-dir", folder / "rank_weights", *options, "--save-dir", folder]
    ranks = enumerate(rank_options(folder))
    run_groups([[("fairseq-train", [data, *options, *own], folder / f"log{rank}") for rank, own in ranks]])
    ranks = [weights(folder, f"rank{rank}.pt") for rank in range(2)]
    # A number of fairseq 0.12.2 that nothing has set.
    return [{name: found for name, found in rank.items() if not name.endswith("._float_tensor")} for rank in ranks]
