"""One candidate of training.py: a process that runs fairseq's command and makes updates when it is told to.

The command is the real one. Only `Trainer.train_step` waits, before an update, for a line on standard input,
{"updates": N, "profile": false}, and after N updates, when the next is about to begin, answers with a line on standard
output: seconds, symbols and sums of the criterion's logs. A process that waits uses no processor. End of input ends it.

    python training_worker.py LOG fairseq-train ARGUMENTS...
"""

import importlib
import importlib.machinery
import json
import os
import sys
import time
from collections import defaultdict

import torch
from breakdown import REST, Breakdown


def now():
    """Seconds, when all that was launched on a GPU has been done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Turns:
    """The set-up between the command and its updates."""

    def __init__(self, commands, replies):
        self.commands, self.replies = commands, replies
        self.left, self.asked, self.began, self.logs = None, 0, 0.0, []
        self.breakdown = None

    def before_update(self, trainer):
        """Wait for the next turn where one is at its end."""
        if self.left is None:
            self.watch_logs(trainer.task)
            self.reply(describe(trainer))
        elif self.left == 0:
            self.reply(self.finish())
        if not self.left:
            self.wait(trainer)
        self.left -= 1

    def watch_logs(self, task):
        """Keep every batch's logging output, whose sums are not rounded as fairseq's metrics are."""
        train_step = task.train_step

        def watched(*args, **kwargs):
            loss, sample_size, logs = train_step(*args, **kwargs)
            self.logs.append(logs)
            return loss, sample_size, logs

        task.train_step = watched

    def wait(self, trainer):
        line = self.commands.readline()
        if not line:
            raise SystemExit(0)
        command = json.loads(line)
        self.left, self.asked, self.logs = command["updates"], command["updates"], []
        self.breakdown = Breakdown(trainer) if command["profile"] else None
        if self.breakdown:
            self.breakdown.__enter__()
        self.began = now()

    def finish(self):
        seconds = now() - self.began
        found = {"seconds": seconds / self.asked, "sums": self.sum_logs()}
        if self.breakdown:
            self.breakdown.__exit__()
            parts = {name: value / self.asked for name, value in self.breakdown.seconds.items()}
            whole = sum(value for name, value in parts.items() if ", of it " not in name)
            found["parts"] = {**parts, REST: seconds / self.asked - whole}
        return found

    def sum_logs(self):
        sums = defaultdict(float)
        for logs in self.logs:
            for name, value in logs.items():
                sums[name] += float(value)
        return sums

    def reply(self, found):
        self.replies.write(json.dumps(found) + "\n")
        self.replies.flush()


def has_loaded_extension(package):
    """Whether a compiled module of this package, of whatever name in whatever state, runs in this process."""
    endings = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{package}.")]
    return any(str(getattr(module, "__file__", None)).endswith(endings) for module in modules)


def describe(trainer):
    """Facts about the model for the parent process: its parameters, and of an hmlstm_lm the sizes, where it is from and
    whether it runs on a CPU without a compiled kernel."""
    model = trainer.get_model()
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    hm_lstm = getattr(model.decoder, "hm_lstm", None)
    if hm_lstm is not None:
        import fairseq_hmrnn

        softmax = model.decoder.output_projection
        found.update(
            package=os.path.dirname(os.path.dirname(os.path.abspath(fairseq_hmrnn.__file__))),
            not_compiled=trainer.device.type == "cpu" and not has_loaded_extension(fairseq_hmrnn.__name__),
            input_size=hm_lstm.input_size,
            hidden_sizes=list(hm_lstm.hidden_sizes),
            output_size=softmax.in_features,
            num_symbols=softmax.out_features,
            soft=hm_lstm.boundary == "soft",
            detector_hidden=getattr(hm_lstm, "detector_hidden", 0),  # which an earlier state may not know
        )
    return found


def main():
    log, command, *arguments = sys.argv[1:]
    turns = Turns(os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w"))
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(stream, 1), os.dup2(stream, 2)
    module = importlib.import_module({"fairseq-train": "fairseq_cli.train"}.get(command, "fairseq_cli.hydra_train"))
    from fairseq.trainer import Trainer
    from fairseq_train import without_tpu

    without_tpu()
    train_step = Trainer.train_step

    def train_step_in_turn(trainer, samples, raise_oom=False):
        turns.before_update(trainer)
        return train_step(trainer, samples, raise_oom)

    Trainer.train_step = train_step_in_turn
    sys.argv = [command, *arguments]
    module.cli_main()


if __name__ == "__main__":
    main()
