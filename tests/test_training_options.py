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
    logs = {
        line: tmp_path / f"log{number}" for number, line in enumerate([*REFUSED.values(), *REFUSED_TO_GO_ON.values()])
    }
    save = tmp_path / "save"
    run_groups([[trained(data, save, tmp_path / "first.log")]])
    fresh = [trained(data, tmp_path / "new", logs[line], *given) for given, line in REFUSED.items()]
    going_on = [trained(data, save, logs[line], "--max-update", 4, *given) for given, line in REFUSED_TO_GO_ON.items()]
    run_groups([[*fresh, *going_on]], refused=True)
    for line, log in logs.items():
        assert_refused(log, line)
    remedies = ["--reset-lr-scheduler"], ["--reset-dataloader"]
    pairs = list(zip(REFUSED_TO_GO_ON, remedies))
    run_groups(
        [
            [trained(data, save, tmp_path / f"{i}.log", "--max-update", 3, "--no-save", *given, *remedy)]
            for i, (given, remedy) in enumerate(pairs)
        ]
    )


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
