"""Options of fairseq-train that cannot be: one line says so before any update, and a run that could have gone on goes
on."""

import re
from types import SimpleNamespace

import pytest
from running import run_groups
from small_training import TASK, TRAIN

from fairseq_hmrnn.training_options import require_metric

# What is refused, by the options that are given and the line that ends the command.
REFUSED = {
    ("--best-checkpoint-metric", "word_f1_9"): "--best-checkpoint-metric: a validation has no word_f1_9: .*word_f1_1.*",
    ("--decoder-embed-path", "nowhere.txt"): r"--decoder-embed-path: nowhere.txt is not there: .*",
    ("--decoder-embed-path", "fairseq_hmrnn"): r"--decoder-embed-path: fairseq_hmrnn is a folder, not a file: .*",
    ("--self-target",): "leave out --self-target and --past-target: .*",
}
# After a training of two updates.
REFUSED_TO_GO_ON = {
    ("--lr-scheduler", "cosine"): r".*checkpoint_last.pt was trained with another --lr-scheduler: .*",
    ("--batch-size", "400"): r"the checkpoint lies within an epoch of smaller batches .*--reset-dataloader .*",
}
# By `fairseq-hmrnn train`, which hides no traceback of its own but says in a line what fairseq refuses.
REFUSED_BY_FAIRSEQ = {
    ("--seed", "-4"): ".*Seed must be between 0 and .*",
    ("--finetune-from-model", "nowhere.pt"): ".*nowhere.pt does not exist.*",
}


def trained(data, folder, log, *options):
    return ("fairseq-train", [data, *TASK, *TRAIN, "--max-update", 2, "--save-dir", folder, *options], log)


def assert_refused(log, line):
    said = log.read_text(encoding="utf-8")
    assert re.fullmatch(rf"fairseq-(train|hmrnn train): error: {line}", said.splitlines()[-1])
    assert "Traceback" not in said and "train_inner" not in said


def test_what_would_fail_later_is_refused_in_a_line_before_any_update(data, tmp_path):
    """A training that goes on does so with the remedy that its line names."""
    run_groups([[trained(data, tmp_path / "save", tmp_path / "first.log")]])
    go_on = ["--restore-file", tmp_path / "save" / "checkpoint_last.pt", "--max-update", 3]
    given = [*REFUSED, *((*go_on, *options) for options in REFUSED_TO_GO_ON)]
    lines = [*REFUSED.values(), *REFUSED_TO_GO_ON.values()]
    logs = [tmp_path / f"log{number}" for number in range(len(given))]
    # A folder each, for fairseq tries at first whether it can write there.
    runs = [trained(data, f"{log}.save", log, *options) for log, options in zip(logs, given)]
    run_groups([runs], refused=True)
    for line, log in zip(lines, logs):
        assert_refused(log, line)
    remedies = ["--reset-lr-scheduler"], ["--reset-dataloader"]
    pairs = zip(given[len(REFUSED) :], remedies)
    again = [trained(data, tmp_path / f"{i}", tmp_path / f"{i}.log", *a, *b) for i, (a, b) in enumerate(pairs)]
    run_groups([again])


def test_what_fairseq_refuses_is_a_line_of_train(data, tmp_path):
    logs = {line: tmp_path / f"log{number}" for number, line in enumerate(REFUSED_BY_FAIRSEQ.values())}
    commands = [
        ("fairseq-hmrnn", ["train", data, "--save-dir", tmp_path / str(number), "--", "--cpu", *given], logs[line])
        for number, (given, line) in enumerate(REFUSED_BY_FAIRSEQ.items())
    ]
    run_groups([commands], refused=True)
    for line, log in logs.items():
        assert_refused(log, line)


def trainer(metric, **task):
    checkpoint = SimpleNamespace(best_checkpoint_metric=metric)
    return SimpleNamespace(cfg=SimpleNamespace(checkpoint=checkpoint), task=SimpleNamespace(**task))


def test_translations_that_are_all_empty_have_a_bleu_of_zero():
    """fairseq logs none for them, and would end with a KeyError after the first epoch."""
    stats = {"loss": 3.0}
    require_metric(trainer("bleu", cfg=SimpleNamespace(eval_bleu=True)), stats)
    assert stats == {"loss": 3.0, "bleu": 0.0}
    require_metric(trainer("bleu", cfg=SimpleNamespace(eval_bleu=True)), scored := {"loss": 3.0, "bleu": 7.5})
    assert scored["bleu"] == 7.5
    for task in ({"cfg": SimpleNamespace(eval_bleu=False)}, {}):
        with pytest.raises(ValueError, match="a validation has no bleu: choose one of loss"):
            require_metric(trainer("bleu", **task), {"loss": 3.0})
