"""Benchmarks train in the precision and with the options that they say."""

import argparse
import re

import pytest
from omegaconf import OmegaConf

OF_LSTMS = {"lstm_dropout": None, "lstm_lr": None, "lstm_init_range": None}  # of language_model.py


@pytest.mark.parametrize("recipe", ["ptb_small", "ptb_3h"])
def test_a_precision_is_the_only_one_of_its_training(import_benchmark, monkeypatch, tmp_path, recipe):
    """Whatever the recipe's own is."""
    precision, composed = import_benchmark("precision"), {}
    monkeypatch.setattr(precision, "command", lambda name, *arguments, log: composed.update(values=arguments))
    args = argparse.Namespace(recipe=recipe, cpu=True, data=tmp_path)
    for name, settings in precision.PRECISIONS.items():
        precision.train(args, settings, tmp_path, 2)
        _, folder, _, config, *given = composed["values"]
        found = OmegaConf.load(f"{folder}/{config}.yaml").common
        found = OmegaConf.merge(
            found, OmegaConf.from_dotlist([text[len("common.") :] for text in given if "common." in text])
        )
        kinds = [kind for kind in ("bf16", "fp16", "amp") if found[kind]]
        assert kinds == ([] if name == "float32" else [name.split()[-1]])
        assert found.memory_efficient_fp16 == (name == "memory-efficient fp16")


def test_an_lstm_is_trained_in_bfloat16(import_benchmark, forked_commands, data, tmp_path):
    """fairseq-train's own --bf16 takes the machine for a TPU."""
    language_model = import_benchmark("language_model")
    args = argparse.Namespace(recipe="ptb_small", to_the_end=True, data=data, settings=[], **OF_LSTMS)
    options = {"common.bf16": "true", "optimization.max_update": 2, "dataset.batch_size": 4}
    options.update({"model.hidden_sizes": "'16,12,8'", "model.output_dim": 12, "task.tokens_per_sample": 30})
    options.update({"dataset.max_valid_steps": 1, "common.log_interval": 1, "checkpoint.no_save": "true"})
    for model in language_model.LSTMS:
        log = tmp_path / f"{model}.log"
        language_model.train(model, (5000, 30), tmp_path, log, options, args)
        (score,) = language_model.validations(log).items()
        assert score[0] == 2 and 1 < score[1] < 8
        assert "'bf16': True" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "dropout, lr, init_range, given",
    [("0.1", "0.002", None, {}), ("0.3", "0.01", "0.2", {"dropout": 0.3, "lr": 0.01, "init_range": 0.2})],
)
def test_lstms_get_their_dropout_and_learning_rate_and_all_models_the_settings(
    import_benchmark, dropout, lr, init_range, given, monkeypatch, tmp_path
):
    language_model, made = import_benchmark("language_model"), {}
    monkeypatch.setattr(language_model, "command", lambda name, *arguments, log: made.update({name: arguments}))
    args = argparse.Namespace(recipe="ptb_small", to_the_end=False, data=tmp_path, **OF_LSTMS)
    args.settings = ["task.tokens_per_sample=30", "model.output_dim=20"]
    vars(args).update({f"lstm_{name}": value for name, value in given.items()})
    for model in ("hmlstm_lm", "nn_lstm_lm"):
        language_model.train(model, (100_000, 50), tmp_path, tmp_path / "log", {"optimization.max_update": 7}, args)
    flags, settings = made["fairseq-train"], made["fairseq-hydra-train"]
    values = [flags[flags.index(f"--{name}") + 1] for name in ("dropout-output", "lr", "tokens-per-sample")]
    assert dict(zip(flags, flags[1:])).get("--init-range") == init_range
    assert values == [dropout, lr, "30"] and flags[flags.index("--max-update") + 1] == "7"
    assert {*args.settings, "optimization.max_update=7"} <= set(settings)
    assert not any(re.match(r"model\.dropout|optimization\.lr", str(setting)) for setting in settings)
