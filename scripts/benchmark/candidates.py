"""The models that the benchmarks train beside one another: the recipe's own, LSTM language models of as many
parameters, and earlier states of this project.

Dropout is not the same in all. All have the recipe's dropout_input on the embedding. hmlstm_lm has dropout_output once,
on h_e, after the output module, and dropout_recurrent, which the LSTMs have not. The LSTMs have the probability of
dropout_output, or another that is given, at more places: nn_lstm_lm between layers and after the last one, lstm_lm
there and once more after its linear layer before the softmax.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from arithmetic import equal_hidden_size
from commands import ROOT, environment, reason, recipe_options
from omegaconf import OmegaConf

from fairseq_hmrnn.cli.as_option import as_option
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.recipe import load_recipe
from fairseq_hmrnn.cli.settings import settle
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig

LSTM_USER_DIR = Path(__file__).resolve().parent / "nn_lstm_lm"
HMLSTM = "hmlstm_lm"
LSTMS = ("nn_lstm_lm", "lstm_lm")
# Given otherwise, or a number that only the recipe's criterion logs.
NOT_OF_LSTMS = {"common.user_dir", "task.data", "checkpoint.best_checkpoint_metric"}
STATEFUL = {"task.stateful", "task.window_jitter", "task.state_reset_prob"}  # not of lstm_lm, which carries no state


class Recipe:
    """A recipe with settings of the user's over it, `section.name=value`."""

    def __init__(self, name: str, settings: Sequence[str] = ()):
        self.recipe = load_recipe(name)
        self.settings = settle(self.recipe, list(settings))
        self.values = OmegaConf.to_container(OmegaConf.merge(self.recipe, OmegaConf.from_dotlist(self.settings)))

    def hmlstm_command(self, data: Path, folder: Path, root: Path = ROOT) -> List[str]:
        """That trains the recipe's model into `folder`, with the package of `root`."""
        options = recipe_options(self.recipe, self.settings, data, folder, root / "fairseq_hmrnn")
        return ["fairseq-hydra-train", *options]

    def lstm_command(
        self,
        model: str,
        hidden_size: int,
        data: Path,
        folder: Path,
        dropout: Optional[float] = None,
        init_range: Optional[float] = None,
    ) -> List[str]:
        """That trains one of LSTMS, everything but model and criterion as in the recipe. dropout: after every layer;
        None: the recipe's dropout_output. init_range: of the LSTM of nn_lstm_lm; None: PyTorch's."""
        command = ["fairseq-train", str(Path(data).resolve()), "--user-dir", str(LSTM_USER_DIR)]
        command += ["--save-dir", str(folder)]
        left_out = NOT_OF_LSTMS | STATEFUL if model == "lstm_lm" else NOT_OF_LSTMS
        for section, values in self.values.items():
            if section not in ("model", "criterion") and isinstance(values, dict):
                for name, value in values.items():
                    if f"{section}.{name}" not in left_out:
                        command += as_option(section.replace("_", "-") if name == "_name" else name, value)
        sizes = {"hidden_size": hidden_size, "embed_dim": self.embed_dim}
        dropout = self.dropout("output") if dropout is None else dropout
        if model == "nn_lstm_lm":
            sizes["num_layers"] = self.num_layers
            dropouts = {"dropout_input": self.dropout("input"), "dropout_output": dropout, "init_range": init_range}
        else:
            sizes["layers"], sizes["out_embed_dim"] = self.num_layers, self.output_size(model)
            sizes = {f"decoder_{name}": size for name, size in sizes.items()}
            dropouts = {"decoder_dropout_in": self.dropout("input"), "decoder_dropout_out": dropout}
        for name, value in {"arch": model, "criterion": "cross_entropy", **dropouts, **sizes}.items():
            command += as_option(name, value)
        return command

    @property
    def embed_dim(self) -> int:
        return int(self.values["model"]["embed_dim"])

    @property
    def num_layers(self) -> int:
        return len(str(self.values["model"]["hidden_sizes"]).split(","))

    def dropout(self, place: str) -> float:
        """place: input, of the embedding, or output, on h_e."""
        name = f"dropout_{place}"
        return float(self.values["model"].get(name, getattr(HMLSTMLanguageModelConfig(), name)))

    def output_size(self, model: str) -> Optional[int]:
        """Between LSTM and softmax layer; None for none."""
        return int(self.values["model"]["output_dim"]) if model == "lstm_lm" else None

    def lstm_sizes(self, model: str, parameters: int, num_symbols: int) -> Dict[str, Optional[int]]:
        """Of an LSTM language model of as many parameters, as `arithmetic.lstm_multiply_adds` takes them."""
        sizes = {"input_size": self.embed_dim, "num_layers": self.num_layers, "output_size": self.output_size(model)}
        sizes["num_symbols"] = num_symbols
        return {**sizes, "hidden_size": equal_hidden_size(parameters, **sizes)}


def check_settings(settings: Sequence[str], refused: Dict[str, str], options: Sequence[str]) -> None:
    """ValueError for what is no `section.name=value`, or sets what the benchmark decides. refused: why, by name.
    options: settings that the benchmark gives after the user's."""
    refused = {**{option.partition("=")[0]: f"it is always {option}" for option in options}, **refused}
    for setting in settings:
        name, equals, value = setting.lstrip("+").partition("=")
        if not equals or not value or "." not in name:
            raise ValueError(f"{setting!r} is no setting: give SECTION.NAME=VALUE, such as model.output_dim=256")
        if name in refused:
            raise ValueError(f"{name} cannot be set here: {refused[name]}")


class EarlierState(NamedTuple):
    """A commit of this project, checked out and built in a folder of its own."""

    commit: str  # abbreviated
    root: Path

    @classmethod
    def prepare(cls, commit: str, folder: Path) -> EarlierState:
        """In folder/COMMIT; what is there already is taken. UserError where it cannot be built."""
        root = folder.resolve() / commit
        if not root.exists():
            part = folder.resolve() / f"{commit}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", str(part)], input=archive.stdout, check=True)
            script = "setup_extension.py" if (part / "setup_extension.py").exists() else "setup.py"  # before 1.0
            build = [sys.executable, script, "build_ext", "--inplace"]
            built = subprocess.run(
                build, cwd=part, env=environment(part, threads=1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if built.returncode or not list(part.glob("fairseq_hmrnn/ops/**/*.so")):
                why = reason(built.stdout.decode(errors="replace"))
                raise UserError(f"the extension of {commit} could not be built in {part}: {why}")
            part.rename(root)
        return cls(commit, root)


def commit_named(name: str) -> str:
    """The abbreviated hash of a commit; ValueError where there is none of that name."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--short=9", f"{name}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, encoding="utf-8")
    if found.returncode or not re.fullmatch("[0-9a-f]+", found.stdout.strip()):
        raise ValueError(f"there is no commit {name!r} here: give a hash, a branch or a tag of this repository")
    return found.stdout.strip()
