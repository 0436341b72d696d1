"""Handwriting through the real commands: prepare, train, resume, two processes, bfloat16, validate, sample, draw."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from running import ROOT, rank_options, run, run_groups
from written_lines import write_unipen

from fairseq_hmrnn.checkpoints import UnsafeCheckpointError
from fairseq_hmrnn.cli import plot_handwriting, sample_handwriting
from fairseq_hmrnn.cli.arguments import Parser
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.data.folders import DESCRIPTION
from fairseq_hmrnn.data.handwriting import load_split, prepare
from fairseq_hmrnn.inference.handwriting import Writer
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.handwriting import HMLSTMHandwritingConfig, HMLSTMHandwritingModel
from fairseq_hmrnn.tasks.handwriting import HMLSTMHandwritingTask, HMLSTMHandwritingTaskConfig

TASK = ["--user-dir", "fairseq_hmrnn", "--task", "hmlstm_handwriting"]
TRAIN = ["--arch", "hmlstm_handwriting", "--embed-dim", 6, "--hidden-sizes", "12,10,8", "--output-dim", 10]
TRAIN += ["--mixtures", 3, "--criterion", "handwriting_likelihood", "--boundary-rates", ".2,.1"]
TRAIN += ["--boundary-regularizers", "rate+uncertainty,rate", "--slope-per-update", 0.01]
OPTIMIZE = ["--optimizer", "adam", "--lr", 0.01, "--clip-norm", 1, "--batch-size", 4, "--cpu", "--seed", 1]
OPTIMIZE += ["--log-format", "simple", "--log-interval", 1, "--num-workers", 0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handwriting")
    prepare(str(write_unipen(folder / "corpus")), str(folder / "bin"), {"valid": 0.2, "test": 0.2}, progress=False)
    return folder / "bin"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Folders of models after 20 updates, whole, in two parts and by two processes; logs beside them."""
    base = tmp_path_factory.mktemp("trained")

    def job(name, log, updates, *options):
        found = [data, *TASK, *TRAIN, *OPTIMIZE, "--max-update", updates, "--save-dir", base / name, *options]
        return "fairseq-train", found, base / f"{log}.log"

    two = [job("two", f"two{rank}", 10, *options, "--batch-size", 2) for rank, options in enumerate(rank_options(base))]
    one = job("one", "one", 10, "--batch-size", 2, "--update-freq", 2)
    average = ["--store-ema", "--ema-decay", 0.8]
    parts = [[job("parts", "parts", updates, *average)] for updates in (9, 20)]
    run_groups([[job("whole", "whole", 20, *average)], *parts, two, [one]])
    return base


def mean_log_likelihood(data, writer):
    """Of a line of the test split, as the writer reads it."""
    strokes = load_split(str(data), "test")
    lines = [strokes.steps[strokes.line(index)] for index in range(len(strokes.names))]
    return sum(writer.read(line).log_probs.sum() for line in lines) / len(lines)


def weights(folder, *place):
    found = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt"))
    for name in place or ["model"]:
        found = found[name]
    return found


def test_training_learns_and_logs(trained):
    log = (trained / "whole.log").read_text(encoding="utf-8")
    losses = [float(value) for value in re.findall(r"train_inner .*? nll_loss=([-\d.]+)", log)]
    assert len(losses) == 20 and sum(losses[-4:]) < sum(losses[:4]) - 1
    valid = [line for line in log.splitlines() if "valid on 'valid' subset" in line][-1]
    for name in ("log_likelihood", "z1", "flush2", "pen_up_f1_1", "character_f1_2", "word_f1_1"):
        assert re.search(rf"\| {name} -?[\d.]+", valid), name


def test_interrupted_training_ends_with_the_same_weights(trained):
    whole, parts = weights(trained / "whole"), weights(trained / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    averages = [weights(trained / name, "extra_state", "ema") for name in ("whole", "parts")]
    assert all(torch.equal(weight, averages[1][name]) for name, weight in averages[0].items())
    assert not torch.equal(averages[0]["embed_step.weight"], whole["embed_step.weight"])


def test_two_processes_train_as_one_that_gathers_two_batches(trained):
    logs = [(trained / f"{name}.log").read_text(encoding="utf-8") for name in ("one", "two0")]
    values = re.compile(r"train_inner .*? nll_loss=([-\d.]+), log_likelihood=([-\d.]+), z1=([\d.]+)")
    found = [values.findall(log) for log in logs]
    assert len(found[0]) == len(found[1]) == 10
    one, two = (torch.tensor([list(map(float, values)) for values in rows[:6]]) for rows in found)
    assert torch.allclose(one, two, rtol=1e-3, atol=2e-3)


def test_fairseq_validate_scores_a_split_as_the_writer_reads_it(trained, data):
    path = trained / "whole" / "checkpoint_last.pt"
    log = run(
        "fairseq-validate",
        data,
        *TASK,
        "--path",
        path,
        "--valid-subset",
        "test",
        "--batch-size",
        3,
        "--cpu",
        "--num-workers",
        0,
    ).stdout
    printed = float(re.search(r"log_likelihood ([-\d.]+)", log).group(1))
    strokes, writer = load_split(str(data), "test"), Writer.load(str(path))
    lines = [writer.read(strokes.steps[strokes.line(index)]) for index in range(len(strokes.names))]
    assert printed == pytest.approx(mean_log_likelihood(data, writer), abs=0.02)
    rates = [sum(line.boundaries[:-1, layer].sum() for line in lines) for layer in (0, 1)]
    steps = sum(len(line.steps) - 1 for line in lines)
    assert [float(re.search(rf"\| z{layer} ([\d.]+)", log).group(1)) for layer in (1, 2)] == pytest.approx(
        [rate / steps for rate in rates], abs=6e-4
    )


def command(module, *arguments):
    """Run a command in this process."""
    parser = Parser()
    module.add_arguments(parser)
    module.run(parser.parse_args(list(map(str, arguments))))


def test_commands_write_and_draw(trained, data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    sample = [trained / "whole", "--steps", 40, "--bias", 1]
    run("fairseq-hmrnn", "sample-handwriting", *sample, "--out", tmp_path / "a.svg")
    command(sample_handwriting, *sample, "--out", tmp_path / "again.svg")
    line = ["--data", data, "--line", 1]
    command(sample_handwriting, *sample, *line, "--out", tmp_path / "b.png", "--beginning", 7, "--boundaries")
    command(plot_handwriting, trained / "whole", *line, "--marks", "--out", tmp_path / "c.png")
    assert re.search(r"log-likelihood -?[\d.]+ nats over \d+ steps", capsys.readouterr().out)
    paths = [re.findall(r' d="([^"]+)"', (tmp_path / name).read_text()) for name in ("a.svg", "again.svg")]
    assert paths[0] == paths[1] and len(paths[0]) > 5
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("b.png", "c.png"))
    with pytest.raises(UserError, match="lines, numbered from 0"):
        command(plot_handwriting, trained / "whole", "--data", data, "--line", 999, "--out", tmp_path / "d.png")
    for module in (sample_handwriting, plot_handwriting):
        with pytest.raises(UserError, match="suffix"):
            command(module, tmp_path / "none", "--data", data, "--out", tmp_path / "a.txt")


def test_samples_go_on_from_a_beginning(trained, data):
    writer, strokes = Writer.load(str(trained / "whole")), load_split(str(data), "test")
    beginning = strokes.steps[strokes.line(0)][:9]
    torch.manual_seed(3)
    written = writer.write(6, 0.5, beginning)
    assert written.steps.shape == (15, 3) and (written.steps[:9] == beginning).all()
    read = writer.read(written.steps)
    assert (read.boundaries == written.boundaries).all()
    assert read.log_probs == pytest.approx(written.log_probs, abs=1e-4)
    for nothing in (lambda: writer.read(beginning[:0]), lambda: writer.write(3, beginning=beginning[:0])):
        with pytest.raises(ValueError, match=r"steps must be of shape \(N, 3\) with N from 1, not \(0, 3\)"):
            nothing()
    with pytest.raises(ValueError, match="new steps must not be negative, got -1"):
        writer.write(-1)


def test_the_recipe_trains_in_bfloat16_and_scores_the_test_split(data, tmp_path):
    settings = ["common.cpu=true", "dataset.batch_size=4", "dataset.num_workers=0", "optimization.max_update=12"]
    settings += ["model.hidden_sizes='12,10,8'", "model.embed_dim=6", "optimization.lr=[0.01]", "common.log_interval=1"]
    settings += ["common.bf16=true"]
    printed = run(
        "fairseq-hmrnn", "train", "handwriting", data, "--save-dir", tmp_path / "save", "--", *settings
    ).stdout
    log = (tmp_path / "save" / "hydra_train.log").read_text(encoding="utf-8")
    losses = [float(value) for value in re.findall(r"\[train_inner\].*? nll_loss=([-\d.]+)", log)]
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3]) - 0.5
    score = re.fullmatch(r"Evaluated the test split, .*: (\S+) nats a line", printed.splitlines()[-1])
    assert float(score.group(1)) == pytest.approx(
        mean_log_likelihood(data, Writer.load(str(tmp_path / "save"))), abs=0.02
    )
    assert "| test |" in (tmp_path / "save" / "eval.log").read_text(encoding="utf-8")


def test_the_recipe_is_the_published_one():
    recipe = OmegaConf.load(str(ROOT / "fairseq_hmrnn" / "configs" / "handwriting.yaml"))
    model = recipe.model
    assert (model.hidden_sizes, model.mixtures, recipe.dataset.batch_size) == ("400,400,400", 20, 32)
    assert (model.slope, model.slope_per_epoch, model.slope_max) == (1, 0.004, 3)
    assert recipe.optimization.lr == [0.0003]


def test_training_goes_on_with_strokes_of_one_unit(trained, data, tmp_path):
    """Another corpus has another, with which only a new training may begin from a model's weights."""
    save, other, last = tmp_path / "save", tmp_path / "other", "checkpoint_last.pt"
    shutil.copytree(trained / "whole", save)
    shutil.copytree(data, other)
    described = json.loads((other / DESCRIPTION).read_text())
    described["std"] = [2 * value for value in described["std"]]
    (other / DESCRIPTION).write_text(json.dumps(described))
    options = [other, *TASK, *TRAIN, *OPTIMIZE, "--max-update", 22]
    refused = run("fairseq-train", *options, "--save-dir", save, check=False)
    assert "normalised in another way" in refused.stdout.splitlines()[-1] and "Traceback" not in refused.stdout
    assert weights(save, "optimizer_history")[-1]["num_updates"] == 20
    begun = ["--save-dir", tmp_path / "new", "--finetune-from-model", save / last, "--max-update", 2]
    run("fairseq-train", *options, *begun)
    assert weights(tmp_path / "new", "task_state", "normalization")[1] == described["std"]


def test_a_checkpoint_belongs_to_the_folder_it_was_trained_on(trained, data, tmp_path):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(trained / "whole" / "checkpoint_last.pt"))
    task = HMLSTMHandwritingTask.setup_task(HMLSTMHandwritingTaskConfig(data=str(data)))
    task.load_state_dict(state["task_state"])
    mean, std = task.state_dict()["normalization"]
    for other in ([mean, [1.0, 1.0]], [mean], None, "somewhere"):
        with pytest.raises(ValueError, match="normalised in another way|no mean and standard deviation"):
            task.load_state_dict({"normalization": other})
    with pytest.raises(ValueError, match="normalised in another way"):
        task.load_state_dict({})
    state["task_state"]["normalization"] = None
    torch.save(state, tmp_path / "without.pt")
    with pytest.raises(UnsafeCheckpointError, match="without.pt is of no use: it holds no mean and .*: use another"):
        Writer.load(str(tmp_path / "without.pt"))
    assert HMLSTMHandwritingTask.setup_task(task.cfg, {"normalization": [mean, std]}).normalization.mean == tuple(mean)


def test_only_the_split_that_is_trained_is_shuffled_and_without_long_lines(data):
    longest = int(max(load_split(str(data), split).lengths.min() for split in ("train", "valid")))
    chosen = HMLSTMHandwritingTaskConfig(data=str(data), max_line_steps=longest, train_subset="valid")
    alone = HMLSTMHandwritingTaskConfig(data=str(data), max_line_steps=longest)  # outside of a whole configuration
    for cfg, split, others in (
        (chosen, "valid", "train"), (alone, "train", "valid"), (OmegaConf.structured(alone), "train", "valid"),
    ):  # fmt: skip
        task = HMLSTMHandwritingTask.setup_task(cfg)
        for name in (split, others):
            task.load_dataset(name)
        trained, other = task.datasets[split], task.datasets[others]
        assert trained.shuffle and trained.sizes.max() <= longest
        assert not other.shuffle and other.sizes.max() > longest


def test_models_of_the_other_kind_of_task_are_refused(data):
    task = HMLSTMHandwritingTask.setup_task(HMLSTMHandwritingTaskConfig(data=str(data)))
    for name in ("hmlstm_lm", "hmlstm", "lstm_lm"):
        with pytest.raises(ValueError, match="requires a model of it, such as --arch hmlstm_handwriting"):
            task.build_model(HMLSTMLanguageModelConfig(_name=name))
    with pytest.raises(ValueError, match="reads pen strokes, not symbols: give --task hmlstm_handwriting"):
        HMLSTMHandwritingModel.build_model(HMLSTMHandwritingConfig(), SimpleNamespace(source_dictionary=Dictionary()))


def test_errors_are_one_line_before_training(data, tmp_path):
    log = run("fairseq-train", data, *TASK, *TRAIN[:10], *OPTIMIZE, "--criterion", "cross_entropy", check=False)
    assert log.returncode != 0
    assert "requires --criterion handwriting_likelihood" in log.stdout.splitlines()[-1]
    (tmp_path / "my pens").mkdir()
    log = run("fairseq-train", tmp_path / "my pens", *TASK, *TRAIN, *OPTIMIZE, check=False).stdout.splitlines()
    how = f"fairseq-hmrnn prepare handwriting FOLDER --dest '{tmp_path}/my pens'"
    assert f"prepare a corpus with {how}" in log[-1]
