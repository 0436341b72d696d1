"""Candidates of training.py and gpu_update.py as processes that make updates in turns, and the figures of each."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional

from arithmetic import PASSES, LayerShares, dense, hmlstm_multiply_adds, lstm_multiply_adds
from commands import reason

from fairseq_hmrnn.cli.errors import UserError

WORKER = Path(__file__).resolve().parent / "training_worker.py"


class Contestant:
    """A candidate in one precision and batch size.

    title: of the candidate. precision: its name in tables. batch: rows of a batch. label: in tables, title and whatever
    else tells it from the others. command: of fairseq, with its arguments. folder: of `train.log`, what it prints; made
    if needed. environment: of the process. lstm: the sizes of an LSTM's language model, as `lstm_multiply_adds` takes
    them; None for an hmlstm_lm.

    The process starts at once; `wait_for_model` until it stands before its first update.
    """

    def __init__(self, title, label, precision, batch, command: List[str], folder: Path, environment, lstm=None):
        self.title, self.label, self.precision, self.batch, self.lstm = title, label, precision, batch, lstm
        self.log, self.environment = folder / "train.log", environment
        folder.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")  # that of an earlier run would be taken for the reason of a failure
        self.seconds: List[float] = []  # an update, of every turn
        self.sums: Dict[str, float] = defaultdict(float)  # of the criterion's logs, over all turns
        self.updates, self.parts = 0, {}
        worker = [sys.executable, str(WORKER), str(self.log), *command]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(worker, stdin=pipe, stdout=pipe, env=environment, encoding="utf-8")
        self.model: Dict[str, Any] = {}  # what `training_worker.describe` says of it

    def wait_for_model(self) -> None:
        self.model = self.model or self._reply()
        root = self.environment["PYTHONPATH"].split(os.pathsep)[0]
        if self.model.get("package", root) != root:
            raise UserError(f"{self.label} took the package from {self.model['package']}, not from {root}")
        if self.model.get("not_compiled"):
            raise UserError(
                f"{self.label} runs without a compiled kernel, which would be measured in its place ({self.log} says "
                f"why): build it in {root}, or, of an earlier state, remove that folder"
            )

    def make(self, updates: int, profiled: bool = False) -> dict:
        """Have it make so many updates; what the worker answers."""
        try:
            self._process.stdin.write(json.dumps({"updates": updates, "profile": profiled}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing too, and its reason is in the log
        return self._reply()

    def take_turn(self, updates: int) -> None:
        found = self.make(updates)
        self.seconds.append(found["seconds"])
        self.updates += updates
        for name, value in found["sums"].items():
            self.sums[name] += value

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # of what a process that has ended did not read
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _reply(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        why = reason(self.log.read_text(errors="replace"))
        raise UserError(f"{self.label} does not train (all of it: {self.log}): {why}")

    @property
    def symbols(self) -> float:
        """Of an update, on average."""
        return self.sums["ntokens"] / self.updates

    @property
    def update_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def speed(self) -> float:
        """Symbols a second, by the median turn."""
        return self.symbols / self.update_seconds

    @property
    def shares(self) -> Optional[List[LayerShares]]:
        """Of every layer, over all turns; None for an LSTM."""
        if self.lstm:
            return None
        layers = len(self.model["hidden_sizes"])
        if self.model["soft"]:
            return dense(layers)
        found, sums = [], self.sums
        for layer in range(1, layers + 1):
            operations = [sums[f"{name}{layer}:pairs"] / sums["pairs"] for name in ("update", "copy", "flush")]
            below = sums[f"z{layer - 1}:steps"] / sums["steps"] if layer > 1 else 1.0
            found.append(LayerShares(*operations, below))
        return found

    @property
    def multiply_adds(self) -> Dict[str, float]:
        """A symbol, forward, by part."""
        if self.lstm:
            return lstm_multiply_adds(**self.lstm)
        sizes = [self.model[name] for name in ("input_size", "hidden_sizes", "output_size", "num_symbols")]
        return hmlstm_multiply_adds(*sizes, self.shares, self.model["detector_hidden"])

    @property
    def update_gflop(self) -> float:
        """Of an update, all passes."""
        return 2e-9 * PASSES * self.symbols * sum(self.multiply_adds.values())

    def ratios(self, other: Contestant) -> List[float]:
        """How many times as many symbols a second as another, turn by turn."""
        per_second = self.symbols / other.symbols
        return [per_second * theirs / own for own, theirs in zip(self.seconds, other.seconds)]
