"""The command `train`: what it refuses, what it hands on, and how it ends."""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import types

import pytest
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from hydra.core.override_parser.overrides_parser import OverridesParser
from running import run

from fairseq_hmrnn.checkpoints import UnsafeCheckpointError, check_checkpoint
from fairseq_hmrnn.cli import fairseq_command, recipe, scoring, train
from fairseq_hmrnn.cli.arguments import Parser, split_rest
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.named_files import make_absolute
from fairseq_hmrnn.cli.prepare import destination
from fairseq_hmrnn.cli.settings import check_recipe, settle

TINY = ["--embed-dim", "8", "--hidden-sizes", "16,12,8", "--output-dim", "12", "--tokens-per-sample", "30"]
NO_RECIPE = f"nor a recipe of that name: recipes are {', '.join(recipe.RECIPES)}"


@pytest.mark.parametrize(
    "what, message",
    [
        (["ptb_small"], "is a recipe: give its folder of data too"),
        (["ptb_small", "{tmp}"], "no {tmp}/dict.txt: run fairseq-hmrnn prepare ptb first"),
        (["ptb_small", "{tmp}/none"], "there is no folder {tmp}/none: run fairseq-hmrnn prepare ptb first"),
        (["nothing"], f"there is no folder nothing, {NO_RECIPE}"),
        (["nothing.yaml"], f"there is no file nothing.yaml, {NO_RECIPE}"),
        (["nothing.yml", "{data}"], f"there is no file nothing.yml, {NO_RECIPE}"),
        (["{data}", "{data}"], "give one folder, and fairseq-train's options after --"),
        (["ptb", "{data}", "--", "checkpoint.save_dir=a"], "give the folder of checkpoints as --save-dir, before --"),
        (["ptb", "{data}", "--", "+task.data=a"], "give the folder of data as DATA, before --"),
        (["{data}", "ptb_small"], "the recipe goes first: fairseq-hmrnn train ptb_small {data}"),
        (["handwriting", "{data}"], "no {data}/handwriting.json: run fairseq-hmrnn prepare handwriting first"),
        (["{tmp}/pen"], "{tmp}/pen has handwriting: fairseq-hmrnn train handwriting {tmp}/pen"),
        (["{data}/dict.txt"], "is a file: prepare it first: fairseq-hmrnn prepare text {data}/dict.txt --dest DIR"),
        (["{tmp}/my text"], "prepare it first: fairseq-hmrnn prepare text '{tmp}/my text' --dest DIR"),
        (["{data}", "--save-dir", "{tmp}/a:b"], "a list of folders"),
        (["character_lm", "{data}", "--save-dir", "{tmp}/a:b"], "a list of folders"),
        (["{tmp}/task.yaml", "{data}"], "task.yaml is not a recipe: it has no section task"),
        (["{data}", "--save-dir", "{data}/dict.txt/save"], "dict.txt cannot be written to (Not a directory)"),
        (["{data}", "--save-dir", "a", "--", "--save-dir", "b"], "--save-dir is given before and after --"),
        (["{tmp}/flat.yaml", "{data}"], "flat.yaml: model is 'hmlstm_lm', where a section has settings"),
        (["{tmp}/nameless.yaml", "{data}"], "nameless.yaml is not a recipe: its section task has no _name"),
        (["{tmp}/wrong.yaml", "{data}"], "wrong.yaml is not a recipe: it has no section task"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(data, tmp_path, monkeypatch, what, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("model: {}\n")
    (tmp_path / "task.yaml").write_text("task: 5\n")
    (tmp_path / "flat.yaml").write_text("task: {_name: x}\nmodel: hmlstm_lm\n")
    (tmp_path / "nameless.yaml").write_text("task: {data: x}\n")
    (tmp_path / "my text").touch()
    before = {path.name for path in tmp_path.iterdir()} | {"pen"}
    (tmp_path / "pen").mkdir()
    (tmp_path / "pen" / "handwriting.json").write_text("{}")
    parser = Parser()
    train.add_arguments(parser)
    given = [part.format(tmp=tmp_path, data=data) for part in what]
    own, rest = split_rest(given)
    with pytest.raises(UserError) as error:
        args = parser.parse_args(own)
        args.passed_on = rest
        train.run(args)
    assert message.format(tmp=tmp_path, data=data) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "recipe_first, setting, taken, instead",
    [
        (True, "--max-update", "--config-dir=more", "optimization.max_update=100"),
        (False, "optimization.max_update=3", "--optimizer", "--max-update 100"),
    ],
)
def test_settings_are_written_as_the_command_takes_them(data, tmp_path, recipe_first, setting, taken, instead):
    what = ["character_lm", str(data)] if recipe_first else [str(data)]
    parser = Parser()
    train.add_arguments(parser)
    args = parser.parse_args([*what, "--save-dir", str(tmp_path / "save"), "--dry-run"])
    args.passed_on = [taken, "x"]
    train.run(args)
    args.passed_on.append(setting)
    with pytest.raises(UserError) as error:
        train.run(args)
    assert f"{setting} cannot be used here: " in str(error.value) and instead in str(error.value)


@pytest.mark.parametrize("error", [UnsafeCheckpointError, ValueError, RuntimeError])
def test_errors_of_this_package_are_told_and_others_end_as_fairseqs(monkeypatch, error):
    """RuntimeError and what this test raises itself are no errors of the package's for users."""

    def cli_main():
        if error is UnsafeCheckpointError:
            check_checkpoint(__file__)  # no checkpoint
        raise error("of somebody else")

    module = types.ModuleType("pretended_command")
    module.cli_main = cli_main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(fairseq_command.MODULES, "fairseq-train", module.__name__)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(logging.root, "handlers", [])
    with pytest.raises(error if error is UnsafeCheckpointError else SystemExit):
        fairseq_command.call("fairseq-train", [])


def test_a_file_in_configs_is_a_recipe():
    assert set(recipe.RECIPES) == {path.stem for path in (recipe.PACKAGE / "configs").iterdir()}
    assert all(recipe.load_recipe(name).task._name for name in recipe.RECIPES)


@pytest.mark.parametrize("name", recipe.RECIPES)
def test_every_recipe_has_sections_and_names_that_there_are(name):
    check_recipe(recipe.load_recipe(name), name)


@pytest.mark.parametrize(
    "section, message",
    [
        ("model: {_name: hmlstm_lm, hiden_sizes: '8,8'}", "model hmlstm_lm has no hiden_sizes: did you mean hidden_s"),
        ("modl: {_name: hmlstm_lm}", "there is no section modl: did you mean model?"),
        ("model: {_name: hmlstm_l}", "there is no model hmlstm_l: did you mean hmlstm_lm or"),
        ("optimization: {max_updates: 3}", "section optimization has no max_updates: did you mean max_update"),
        ("optimization: {lr: 0.1}", "optimization.lr: a list is written with brackets"),
        ("optimizer: {_name: sgd, momentum: much}", "optimizer.momentum: Value 'much'"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_one_line_before_anything_is_made(data, tmp_path, section, message):
    file, parser = tmp_path / "mine.yaml", Parser()
    file.write_text(f"task: {{_name: hmlstm_language_modeling}}\n{section}\n")
    train.add_arguments(parser)
    args = parser.parse_args([str(file), str(data), "--save-dir", str(tmp_path / "save")])
    args.passed_on = ["optimization.max_update=1"]
    with pytest.raises(UserError) as error:
        train.run(args)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["mine.yaml"]


def test_what_hydra_reads_and_what_is_filled_in_later_may_stand_in_a_recipe(tmp_path):
    """Settings of hydra's own, values that are missing or refer to others, and sections without a value."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults: [base]\nhydra: {run: {dir: here}}\ntask: {_name: hmlstm_language_modeling, data: '???'}\n"
        "common:\nmodel: {_name: hmlstm_lm, embed_dim: '${task.tokens_per_sample}'}\nlr_scheduler: {warmup: 3}\n"
    )
    check_recipe(recipe.load_recipe(str(file)), str(file))


@pytest.mark.slow
def test_a_folder_is_trained_and_scored_from_anywhere_and_the_printed_command_is_fairseqs(data, tmp_path):
    """A folder with an odd name, in another one than the package's; the command again goes on. The model predicts
    a part of the symbols, and is scored as such a one."""
    folder = tmp_path / "it's [odd], {a=b} $(x)"
    shutil.copytree(str(data), str(folder / "bin"))
    tiny = [*TINY, "--output-dictionary-size", 12, "--num-workers", 0, "--max-update"]
    first = run("fairseq-hmrnn", "train", folder / "bin", "--no-score", "--", *tiny, 3, cwd=folder).stdout
    command = shlex.split(first.splitlines()[1])
    assert command[:2] == ["fairseq-train", str(folder / "bin")] and command[-1] == "3"
    assert " | INFO | fairseq_cli.train | done training" in first and "Evaluated" not in first
    log = run("fairseq-hmrnn", "train", folder / "bin", "--", *tiny, 5, cwd=folder).stdout
    assert re.search(r"Loaded checkpoint .* \(epoch \d @ 3 updates\)", log)
    characters = len((data.parent / "test.txt").read_bytes().decode())
    assert f"Evaluated {characters:,} tokens\n" in log
    assert (folder / "checkpoints" / folder.name / "eval.log").is_file()


def test_a_model_without_a_carried_state_is_scored_in_its_own_windows(data, tmp_path):
    options = "--arch lstm_lm --criterion cross_entropy --tokens-per-sample 50 --max-update 2 --num-workers 0"
    options += " --decoder-embed-dim 8 --decoder-hidden-size 8 --decoder-out-embed-dim 8 --cpu"
    log = run("fairseq-hmrnn", "train", data, "--save-dir", tmp_path, "--", *options.split()).stdout
    characters = len((data.parent / "test.txt").read_bytes().decode())
    assert f"Evaluated {characters:,} tokens\n" in log and re.search(r"Loss \(base 2\): \d", log)


def test_a_command_that_prints_no_score_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_run", lambda *_: "")
    missing_of = {"translation": "BLEU", "hmlstm_handwriting": "log-likelihood"}
    for task, missing in {**missing_of, "hmlstm_language_modeling": "number of tokens"}.items():
        with pytest.raises(UserError, match=f"the test split was not scored: fairseq printed no {missing}, see .*"):
            scoring.SCORES[task]([], str(tmp_path), str(tmp_path))
    monkeypatch.setattr(scoring, "_run", lambda *_: "Evaluated 2,000 tokens in 0.1s\n")
    with pytest.raises(UserError, match="fairseq printed no loss, see .*eval.log"):
        scoring.SCORES["hmlstm_language_modeling"]([], str(tmp_path), str(tmp_path))


@pytest.mark.thorough
def test_the_score_takes_nothing_in_the_current_folder_for_a_package(tmp_path, monkeypatch):
    (tmp_path / "fairseq.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the test split was not scored, see .*--nothing"):
        scoring._run("fairseq_cli.eval_lm", ["data", "--path", "none.pt", "--nothing"], str(tmp_path / "log"))


def test_what_training_finds_wrong_ends_it_as_it_ends_fairseqs_command(data, tmp_path):
    failed = run("fairseq-hmrnn", "train", data, "--save-dir", tmp_path, "--", "--slope", 9, check=False)
    (line,) = [line for line in failed.stdout.splitlines() if "error" in line]
    assert failed.returncode == 2 and "at most slope-max" in line and "Traceback" not in failed.stdout
    assert not list(tmp_path.glob("checkpoint*"))


def test_a_yaml_of_ones_own_is_a_recipe(data, tmp_path):
    settings = {"task": {"_name": "hmlstm_language_modeling"}, "model": {"_name": "hmlstm_lm"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(settings))  # JSON is YAML
    command = ["train", tmp_path / "mine.yaml", data, "--dry-run", "--", "optimization.max_update=1"]
    printed = run("fairseq-hmrnn", *command, cwd=tmp_path).stdout
    folder = tmp_path / "checkpoints" / "mine" / "recipe"
    assert shlex.split(printed) == ["fairseq-hydra-train", "--config-dir", str(folder), "--config-name", "recipe",
                                    "optimization.max_update=1"]  # fmt: skip
    assert recipe.load_recipe(str(folder / "recipe.yaml")).task.data == str(data)


def settled(*given, name="ptb_small"):
    """The settings as hydra gets them, and the recipe."""
    config = recipe.load_recipe(name)
    return settle(config, list(given)), config


def test_a_setting_may_be_one_that_the_recipe_leaves_at_its_default():
    given = ["model.dropout_recurrent=.2", "optimization.lr=[0.003]", "+task.window_jitter=.1", "~model.slope",
             "hydra.verbose=true"]  # fmt: skip
    settings, config = settled(*given)
    # No prefixes: of those for settings that a configuration may have or not, hydra 1.0 knows none.
    assert settings == [setting.lstrip("+") for setting in given]
    assert config.model.dropout_recurrent == 0.2 and config.task.window_jitter == 0.1


def test_what_no_other_criterion_logs_chooses_no_checkpoint_of_a_recipe():
    for name, metric in (("boundary_regularized_cross_entropy", "bpc"), ("cross_entropy", None)):
        _, config = settled(f"criterion._name={name}")
        assert config.checkpoint.get("best_checkpoint_metric") == metric
    _, config = settled("criterion._name=cross_entropy", "checkpoint.best_checkpoint_metric=ppl")
    assert config.checkpoint.best_checkpoint_metric == "ppl"


def test_a_value_is_text_where_hydra_would_take_it_for_something_else():
    given = {"criterion.boundary_regularizers": "rate+uncertainty=.1,rate", "optimizer.adam_betas": "(0.9, 0.98)",
             "model.hidden_sizes": "8,8,8", "++scoring._name": "bleu"}  # fmt: skip
    settings, config = settled(*(f"{name}={value}" for name, value in given.items()))
    *written, last = (f"{name}='{value}'" for name, value in given.items())
    assert settings == [*written, "scoring._name=bleu"] and config.scoring._name == "bleu"


def test_files_that_settings_name_are_seen_from_the_current_folder(tmp_path, monkeypatch):
    """And not from the folder of checkpoints, where hydra runs the training."""
    folder = tmp_path / "it's [odd], {a=b}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("marked.txt", "bpe.model", "vectors.txt", "whitespace", "checkpoint_last.pt"):
        (folder / name).write_text("")
    given = {
        "criterion.boundary_supervision": ("marked.txt", f"{folder}/marked.txt"),
        "bpe.bpe_codes": ("marked.txt", f"{folder}/marked.txt"),
        "common.log_file": ("marked.txt", "marked.txt"),
        "+criterion.boundary_supervision": ("sentencepiece:bpe.model", f"sentencepiece:{folder}/bpe.model"),
        "++criterion.boundary_supervision": ("whitespace", "whitespace"),
        "model.decoder_embed_path": ("vectors.txt", f"{folder}/vectors.txt"),
        "checkpoint.finetune_from_model": ("it's.pt", "it's.pt"),
        "checkpoint.restore_file": ("checkpoint_last.pt", "checkpoint_last.pt"),
        "criterion.boundary_rates": (".2", 0.2),
        "common.log_format": ("simple", "simple"),
    }
    settings, _ = settled(*(f"{name}={value}" for name, (value, _) in given.items()))
    parse = OverridesParser.create().parse_override
    assert [parse(setting).value() for setting in settings] == [expected for _, expected in given.values()]
    own = {"task": {"_name": "hmlstm_language_modeling"}, "model": {"decoder_embed_path": "vectors.txt"}}
    (folder / "mine.yaml").write_text(json.dumps(own))
    config = recipe.load_recipe("mine.yaml")
    make_absolute(config)
    assert config.model.decoder_embed_path == f"{folder}/vectors.txt" and config.task == own["task"]


def test_another_scheduler_leaves_the_settings_of_the_old_one_behind():
    settings, config = settled("lr_scheduler._name=polynomial_decay", "lr_scheduler.total_num_update=9")
    assert dict(config.lr_scheduler) == {"_name": "polynomial_decay", "total_num_update": 9}
    assert settings[1] == "lr_scheduler.total_num_update=9"
    assert config.optimizer.adam_betas and config.optimization.max_epoch  # of other sections no more is taken than
    assert "stop_min_lr" not in config.optimization  # what would end training where a schedule begins at zero
    _, config = settled("lr_scheduler._name=cosine", "optimization.stop_min_lr=1e-5")
    assert config.optimization.stop_min_lr == 1e-5
    _, config = settled("lr_scheduler._name=exact_reduce_lr_on_plateau")
    assert config.optimization.stop_min_lr == 1e-6
    _, config = settled("model._name=hmlstm_lm_ptb", "task._name=language_modeling")  # an architecture is a model's
    assert config.model.hidden_sizes and "stateful" not in config.task and config.task.tokens_per_sample


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adadelta", "adamax", "adafactor", "lamb"])
def test_an_older_optimizer_has_its_defaults_and_the_learning_rate(name):
    """Those that fairseq made for options, without a dataclass."""
    settings, config = settled("optimizer.weight_decay=0.5", f"optimizer._name={name}", "lr_scheduler._name=manual")
    assert config.optimizer.lr == config.lr_scheduler.lr == [0.002] and config.optimizer.weight_decay == 0
    assert settings[0] == "optimizer.weight_decay=0.5"  # hydra puts it above the recipe's
    assert "adam_betas" not in config.optimizer and config.lr_scheduler.update2lr == "{}"
    with pytest.raises(UserError, match=f"optimizer {name} has no adam_betas"):
        settled(f"optimizer._name={name}", "optimizer.adam_betas='(0, 0)'")
    with pytest.raises(UserError, match="optimizer.weight_decay=much: .*'much'"):
        settled(f"optimizer._name={name}", "optimizer.weight_decay=much")


@pytest.mark.parametrize(
    "given, message",
    [
        ("model.hiden_sizes=3", "hmlstm_lm has no hiden_sizes: did you mean hidden_sizes"),
        ("modle.slope=2", "no section modle: did you mean model"),
        ("optimization.max_updates=3", "section optimization has no max_updates: did you mean max_update"),
        ("optimization.max_update=soon", "optimization.max_update=soon: .*'soon'"),
        ("lr_scheduler._name=cosin", "no lr_scheduler cosin: did you mean cosine"),
        ("model.slope", "model.slope is not a setting"),
        ("model.slope=[", "could not be converted"),
        ("model.embed_dim='", "could not be converted"),
        ("scoring._name=blue", "no scoring blue: did you mean bleu"),  # of a section that the recipe has not
        ("max_update=3", "'max_update=3' is not a setting: did you mean optimization.max_update?"),
        ("Model.slope=3", "'Model.slope=3' is not a setting: write section.name=value"),
        ("'model.slope=3'", "is not a setting: write section.name=value"),
        ("", "'' is not a setting: write section.name=value"),
        ("optimizer=sgd", "optimizer=sgd: write optimizer._name=sgd"),
        ("model._name=wrong", r"there is no model wrong: there are 1\d\d, such as .* \(model._name=null lists all\)"),
        ("model._name=null", "model._name cannot be null: choose one of .*, hmlstm_lm, .*, xlm"),
        ("model.quux=1", r"hmlstm_lm has no quux: there are .* \(fairseq-hmrnn options lists"),
        ("quux.slope=1", "no section quux: choose one of .*, model, "),
        ("task._name=legacy_masked_lm", "there is no task legacy_masked_lm"),
        ("lr_scheduler._name=null", "lr_scheduler._name cannot be null: choose one of"),
        ("tokenizer._name=mose", "there is no tokenizer mose: did you mean moses"),
        ("optimization.lr=.1", r"optimization.lr=.1: a list is written with brackets, such as \[1,2\]"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(given, message):
    with pytest.raises(UserError, match=message) as failed:
        settled(given)
    assert "\n" not in str(failed.value)


def test_settings_of_a_recipe_reach_training(data, tmp_path):
    settings = ["model.hidden_sizes='8,8'", "model.embed_dim=4", "model.output_dim=4", "model.dropout_recurrent=.25",
                "lr_scheduler._name=polynomial_decay", "lr_scheduler.total_num_update=2", "criterion.boundary_rates=.2",
                "optimizer._name=sgd", "optimizer.momentum=.5",
                "criterion.boundary_regularizers=rate", "optimization.max_update=1", "task.tokens_per_sample=10",
                "dataset.batch_size=4", "dataset.disable_validation=true"]  # fmt: skip
    command = ["train", "ptb_small", data, "--save-dir", tmp_path, "--no-score", "--"]
    run("fairseq-hmrnn", *command, *settings)
    config = load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))["cfg"]
    assert config.model.dropout_recurrent == 0.25 and config.lr_scheduler.total_num_update == 2
    assert config.optimizer._name == "sgd" and config.optimizer.momentum == 0.5
    wrong = run("fairseq-hmrnn", *command, "model.hiden_sizes='8,8'", check=False)
    assert wrong.returncode == 2 and "did you mean hidden_sizes" in wrong.stdout
    assert "Traceback" not in wrong.stdout
    wrong = run("fairseq-hmrnn", *command, "~model.nothing", check=False)  # what hydra refuses
    assert wrong.returncode == 2 and "error: Could not delete from config. 'model.nothing'" in wrong.stdout
    assert "Traceback" not in wrong.stdout
    wrong = run("fairseq-hmrnn", *command, "--resolve", check=False)  # of hydra's options, beside another
    assert wrong.returncode == 2 and re.search(r"error: .*--resolve", wrong.stdout) and "Traceback" not in wrong.stdout


def test_checkpoints_are_named_after_what_is_trained(tmp_path, monkeypatch):
    """Two folders of pairs are both called bin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    names = {
        "ptb": "ptb",
        "data/mytext/": "mytext",
        "mine.yaml": "mine",
        "data/pairs/bin": "pairs",
        "other/bin": "other",
    }
    assert {what: train.default_save_dir(what) for what in names} == {
        what: f"checkpoints/{name}" for what, name in names.items()
    }


@pytest.mark.parametrize("name, told", [("mytext", "mytext"), ("ptb", "./ptb"), ("a.yaml", "a.yaml"), ("a b", "'a b'")])
def test_the_command_that_is_printed_trains_the_folder(name, told, tmp_path, monkeypatch, capsys):
    """Also where its name alone would be a recipe's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    destination.print_written(name)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["fairseq-hmrnn", "train", shlex.split(told)[0]]
    assert not recipe.is_recipe(command[-1])
    destination.print_written(name, "ptb_small")
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2:] == ["ptb_small", name]
