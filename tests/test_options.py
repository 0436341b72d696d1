"""The range of every option of this package: other values are refused before anything is built, whoever gives it."""

import dataclasses
import math
import re
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from fairseq import criterions, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, interpret_dc_type
from fairseq.models import MODEL_DATACLASS_REGISTRY

from fairseq_hmrnn.optim.lr_scheduler import ExactReduceLROnPlateau, ExactReduceLROnPlateauConfig
from fairseq_hmrnn.options import OptionError, Parsed, Range, allowed_of, check_config, number, option, whole
from fairseq_hmrnn.tasks.handwriting import HMLSTMHandwritingTask, HMLSTMHandwritingTaskConfig
from fairseq_hmrnn.tasks.hmlstm_language_modeling import HMLSTMLanguageModelingConfig, HMLSTMLanguageModelingTask

REGISTRIES = (MODEL_DATACLASS_REGISTRY, tasks.TASK_DATACLASS_REGISTRY, criterions.CRITERION_DATACLASS_REGISTRY)
CONFIGS = {config for registry in REGISTRIES for config in registry.values()} | {ExactReduceLROnPlateauConfig}
CONFIGS = sorted((c for c in CONFIGS if c.__module__.startswith("fairseq_hmrnn.")), key=lambda config: config.__name__)
NONSENSE = (math.nan, math.inf, -math.inf, -1, 0, 1e30, 10**400)
# Where 0 is a value like any other: none of it, off, the first.
ZERO = {"seed", "data-buffer-size", "lr-patience", "warmup-updates", "warmup-init-lr", "lr-threshold"}
ZERO |= {"label-smoothing", "state-reset-prob", "window-jitter", "boundary-weight", "boundary-supervision-weight"}
ZERO |= {"boundary-delay", "detector-hidden"}
ZERO |= {"detector-grad-scale", "slope-per-epoch", "slope-per-update", "detector-bias", "forget-bias", "memory-dim"}
MINUS_ONE = {"output-dictionary-size", "warmup-init-lr", "detector-bias", "forget-bias"}
# Names of files, what fairseq alone looks at, and what another part was given.
TEXTS = {"boundary-supervision", "load-pretrained-encoder-from", "load-pretrained-decoder-from", "criterion-name"}
TEXTS |= {"decoder-embed-path", "encoder-embed-path", "train-subset"}
TEXTS |= {"data", "plasma-path", "shorten-data-split-list"}
WRONG_TEXTS = ("nan", "inf", "-1", "0", "1e30", "1,,2", ",", "x", "9" * 400)
FIELDS = [(config, field) for config in CONFIGS for field in dataclasses.fields(config) if field.name != "_name"]


def has_meaning(config, name, value):
    if value == 0:
        of_hmlstm = name == "decoder-embed-dim" and config.__name__ == "HMLSTMTranslationConfig"  # the encoder's
        return name in ZERO or "dropout" in name or of_hmlstm
    return value == -1 and name in MINUS_ONE


def given(config, field, value):
    values = config()
    if field.name == "boundary_delay":  # of what a detector listens to
        values.boundary_rates, values.boundary_regularizers = ".3,.1", "rate+uncertainty"
    setattr(values, field.name, value)
    return values


def must_refuse(config, values, message, remedy):
    """A failure that says what to do for a configuration that is not refused."""
    try:
        check_config(values, config)
    except OptionError as error:
        assert re.search(message, str(error)), f"{config.__name__} refuses it, but says {str(error)!r}"
    else:
        pytest.fail(f"{config.__name__}: {remedy}", pytrace=False)


def test_the_walk_meets_every_configuration():
    assert len(CONFIGS) == 10 and len(FIELDS) > 150


@dataclasses.dataclass
class Careless:
    shift: float = option(1.0, "a number", number())
    size: int = option(1, "a size", whole())
    name: str = option("x", "a text", Parsed(len))
    where: str = option("", "a file")


@pytest.mark.parametrize(
    "index, message",
    [
        (0, "Careless: shift may be -1: narrow its range, or add it to MINUS_ONE above"),
        (1, "Careless: size may be 0: narrow its range, or add it to ZERO above"),
        (2, "Careless: name may be 'nan': let its parser refuse it"),
        (3, "where has no range: give its option one, or add a file's name to TEXTS"),
    ],
)
def test_an_option_that_takes_nonsense_is_named_with_what_to_do(index, message):
    field = dataclasses.fields(Careless)[index]
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(message)):
        test_nonsense_is_refused_or_has_a_meaning(Careless, field)


@pytest.mark.parametrize("config, field", FIELDS, ids=lambda value: getattr(value, "__name__", None) or value.name)
def test_nonsense_is_refused_or_has_a_meaning(config, field):
    name, allowed, kind = field.name.replace("_", "-"), allowed_of(field), interpret_dc_type(field.type)
    check_config(config(), config)
    if kind is bool or (isinstance(kind, type) and issubclass(kind, Enum)):
        return  # OmegaConf and argparse take nothing else
    if allowed is None:
        assert kind is str and name in TEXTS, f"{name} has no range: give its option one, or add a file's name to TEXTS"
    elif not isinstance(allowed, Range):
        for text in [""] if name == "boundary-supervision-separator" else WRONG_TEXTS:
            message = "must be|unknown|must not be empty|a number from 0"
            must_refuse(
                config, given(config, field, text), message, f"{name} may be {text!r}: let its parser refuse it"
            )
    else:
        for value in NONSENSE:
            values = given(config, field, [value] if allowed.many else value)
            if has_meaning(config, name, value):
                check_config(values, config)
                continue
            listed = {0: ", or add it to ZERO above", -1: ", or add it to MINUS_ONE above"}.get(value, "")
            must_refuse(config, values, f"^{name} must be a", f"{name} may be {value}: narrow its range{listed}")


@pytest.mark.parametrize(
    "allowed, told",
    [
        (number(0, open_below=True), "a number above 0"),
        (number(0), "a number at least 0"),
        (number(0, 1), "a number from 0 to 1"),
        (number(0, 1, open_below=True), "a number above 0 and at most 1"),
        (number(0, 1, open_above=True), "a number at least 0 and below 1"),
        (number(0, 1, open_below=True, open_above=True), "a number above 0 and below 1"),
        (whole(2, 8, also=(0,)), "a whole number from 2 to 8, or 0"),
    ],
)
def test_a_range_says_what_is_in_it(allowed, told):
    with pytest.raises(OptionError, match=f"^size must be {told}, not -7$"):
        allowed.check("size", -7)


def train_arguments(*arguments):
    parser = options.get_training_parser()
    return options.parse_args_and_arch(parser, ["nowhere", *arguments])


HERE = ["--task", "hmlstm_language_modeling", "--arch", "hmlstm_lm", "--lr-scheduler", "exact_reduce_lr_on_plateau"]
HERE += ["--criterion", "boundary_regularized_cross_entropy", "--optimizer", "adam"]


@pytest.mark.parametrize(
    "arguments",
    ["--detector-bias nan", "--slope-per-update inf", "--output-dim 0", "--dropout-input 1", "--lr-shrink nan",
     "--embed-dim -1", "--hidden-sizes 4,,4", "--boundary-rates .2,nan", "--tokens-per-sample 0", "--lr-threshold nan",
     "--output-dictionary-size 0", "--window-jitter 1e30", "--label-smoothing nan", "--boundary-regularizers rat"],
)  # fmt: skip
def test_fairseq_train_refuses_it_as_it_reads_its_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_arguments(*HERE, *arguments.split())
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and f"error: argument {arguments.split()[0]}:" in last


def test_what_may_be_goes_through_fairseqs_own_parser():
    given = ["--detector-bias", "-1.5", "--hidden-sizes", "4,3", "--boundary-rates", ".25", "--lr-shrink", "0.5"]
    cfg = convert_namespace_to_omegaconf(train_arguments(*HERE, *given, "--seed", "3", "--batch-size", "2"))
    assert (cfg.model.detector_bias, cfg.model.hidden_sizes, cfg.lr_scheduler.lr_shrink) == (-1.5, "4,3", 0.5)
    assert (cfg.criterion.boundary_rates, cfg.task.seed, cfg.task.batch_size) == (".25", 3, 2)
    published = convert_namespace_to_omegaconf(train_arguments(*HERE[:3], "hmlstm_lm_ptb", *HERE[4:]))
    assert (published.model.hidden_sizes, published.model.output_dim) == ("512,512,512", 512)


@pytest.mark.parametrize("section, name", [("model", "dropout_input"), ("task", "tokens_per_sample")])
def test_a_configuration_that_no_parser_saw_is_refused_before_anything_is_built(section, name, monkeypatch):
    """As hydra's come, and those of checkpoints."""
    cfg = convert_namespace_to_omegaconf(train_arguments(*HERE))
    cfg[section][name] = -3
    built = []
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *arguments, **keywords: built.append(arguments))
    task = SimpleNamespace(source_dictionary=None, target_dictionary=None)
    build = {"task": lambda: tasks.setup_task(cfg.task)}
    build["model"] = lambda: tasks.FairseqTask.build_model(task, cfg.model)
    with pytest.raises(OptionError, match=f"^{name.replace('_', '-')} must be"):
        build[section]()
    assert not built


@pytest.mark.parametrize("lr", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("strokes", [False, True])
def test_no_update_is_made_with_a_learning_rate_that_is_none(lr, strokes):
    """As other schedules of fairseq may arrive at."""
    task = HMLSTMLanguageModelingTask(HMLSTMLanguageModelingConfig(tokens_per_sample=5), None)
    if strokes:
        task = HMLSTMHandwritingTask(HMLSTMHandwritingTaskConfig())
    with pytest.raises(ValueError, match="the learning rate is"):
        task.optimizer_step(SimpleNamespace(get_lr=lambda: lr), None, 0)


@pytest.mark.parametrize("name, value", [("lr", [math.nan]), ("lr", []), ("lr_shrink", math.nan), ("lr_patience", -1)])
def test_the_schedule_refuses_what_would_train_in_silence(name, value):
    cfg = ExactReduceLROnPlateauConfig(lr=[0.1])
    setattr(cfg, name, value)
    with pytest.raises(OptionError, match=f"^{name.replace('_', '-')} must be"):
        ExactReduceLROnPlateau(cfg, None)
