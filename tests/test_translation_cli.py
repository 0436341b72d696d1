"""Translation through the real fairseq commands on a small language."""

import os
import re
import shutil

import numpy as np
import pytest
import sacrebleu
import torch
from command_results import lines_of, same, value_of, values, weights
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from running import run, run_groups
from small_texts import write_pairs
from two_processes import train_two_processes

from fairseq_hmrnn.cli import choice
from fairseq_hmrnn.cli.choice import choose
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.data.parallel import Side, prepare_parallel
from fairseq_hmrnn.text import InputError

SMALL, OTHER_SMALL = "hmlstm_small", "hmlstm_transformer_small"
TASK = ["--user-dir", "fairseq_hmrnn", "--task", "translation", "--required-batch-size-multiple", "1"]
TRAIN = ["--optimizer", "adam", "--lr", "0.02", "--clip-norm", "1", "--batch-size", "32", "--cpu", "--seed", "1"]
TRAIN += ["--log-format", "simple", "--log-interval", "1", "--num-workers", "0", "--no-epoch-checkpoints"]
REGULARISED = ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", "steps:.4"]
HMLSTM = ["--arch", "hmlstm", "--embed-dim", "32", "--hidden-sizes", "32,24", "--output-dim", "32", "--bidirectional"]
HMLSTM += ["--encoder-memory", "segments:1", "--slope-per-update", "0.01", *REGULARISED, "--label-smoothing", "0.1"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Folder prepared by the script, from characters of the source to pieces of the target; texts are beside it."""
    folder = tmp_path_factory.mktemp("pairs") / "it's, $(odd)"  # no name of a folder is read by a grammar
    folder.mkdir()
    write_pairs(folder, train=400)
    options = ["--source-type", "char", "--target-size", 30]
    run("fairseq-hmrnn", "prepare", "translation", "de", "en", folder, *options)
    return folder / "bin"


@pytest.fixture(scope="session")
def translator(pairs, tmp_path_factory):
    """Folder with two trained models: `parts`, an `hmlstm` trained for 7 updates and then up to 60 (log.txt is of this
    second part), the same in one go as `whole`; and `other`, an `hmlstm_lstm` with another memory."""
    folder = tmp_path_factory.mktemp("translator")

    def training(name, *options):
        path = folder / name
        path.mkdir(exist_ok=True)
        return ("fairseq-train", [pairs, *TASK, *TRAIN, *options, "--save-dir", path], path / "log.txt")

    start = (*training("parts", *HMLSTM, "--max-update", 7)[:2], folder / "start.txt")
    rest, whole = (training(name, *HMLSTM, "--max-update", 60) for name in ("parts", "whole"))
    other = training("other", "--arch", "hmlstm_lstm_tiny", *REGULARISED, "--max-update", 60, "--disable-validation")
    run_groups([[start], [rest], [whole], [other]])
    return folder


@pytest.fixture(scope="session")
def translations(pairs, translator):
    """The output of fairseq-generate: `alone` and `together`, in batches of 1 and 7; `reference`, the scores of the
    references of valid; `ensemble`, of both models."""
    models = [translator / name / "checkpoint_last.pt" for name in ("parts", "other")]
    spm = ["--bpe", "sentencepiece", "--sentencepiece-model", pairs / "spm.de.model", "--scoring", "sacrebleu"]
    options = {
        "alone": [*spm, "--beam", 3, "--batch-size", 1, "--print-alignment"],
        "together": [*spm, "--beam", 3, "--batch-size", 7, "--print-alignment"],
        "reference": ["--score-reference", "--batch-size", 5],
        "ensemble": ["--beam", 3, "--print-alignment"],
    }
    jobs = []
    for name, arguments in options.items():
        paths = os.pathsep.join(map(str, models if name == "ensemble" else models[:1]))
        split = "valid" if name == "reference" else "test"
        command = [pairs, *TASK, "--path", paths, "--gen-subset", split, "--cpu", *arguments]
        jobs.append([("fairseq-generate", command, translator / f"{name}.txt")])
    run_groups(jobs)
    return {name: (translator / f"{name}.txt").read_text(encoding="utf-8") for name in options}


def test_preparation_refuses_what_it_cannot_use_and_leaves_nothing(pairs, tmp_path):
    for language in ("de", "en"):
        shutil.copy(pairs.parent / f"train.{language}", tmp_path)
    source, target = Side("de", "unigram", 3), Side("en")
    with pytest.raises(InputError, match="sentencepiece makes no unigram model of train.de: "):
        prepare_parallel(str(tmp_path), str(tmp_path / "bin"), source, target)
    with pytest.raises(InputError, match="SRC and TGT must differ"):
        prepare_parallel(str(tmp_path), str(tmp_path / "bin"), source, source)
    (tmp_path / "valid.de").write_text("der baum\n" * 3)
    (tmp_path / "valid.en").write_text("the tree\n" * 2)
    with pytest.raises(InputError, match="valid.de has 3 lines and .*valid.en 2"):
        prepare_parallel(str(tmp_path), str(tmp_path / "bin"), source, target)
    (tmp_path / "train.de").write_bytes("gr\u00fcn\n".encode("latin-1") * 400)
    refused = run("fairseq-hmrnn", "prepare", "translation", "de", "en", tmp_path, check=False)
    assert (refused.returncode, refused.stdout) == (
        2,
        f"fairseq-hmrnn prepare: error: {tmp_path}/train.de is not UTF-8 (line 1): convert it first\n",
    )
    assert not list(tmp_path.glob("bin/*"))
    again = run("fairseq-hmrnn", "prepare", "translation", "de", "en", pairs.parent, check=False)
    assert again.returncode == 2 and "--overwrite" in again.stdout


def test_training_requires_a_valid_split_and_does_without_test(pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "bin", ignore=shutil.ignore_patterns("valid.*", "test.*"))
    with pytest.raises(UserError, match="no valid split"):
        choose(str(tmp_path / "bin"), str(tmp_path / "save"), [], cpu=True)
    for path in pairs.glob("valid.*"):
        shutil.copy(path, tmp_path / "bin")
    found = choose(str(tmp_path / "bin"), "save", ["--arch", "hmlstm", "--lr", "1"], cpu=True).arguments
    assert found.count("--arch") == found.count("--lr") == 1
    for given, rate in (("", "steps:.4"), ("--arch hmlstm", None), ("--hidden-sizes 9,9,9", None),
                        ("--arch hmlstm --hidden-sizes 9,9", "steps:.4"), ("--top-boundary", None),
                        ("-a hmlstm_lstm_tiny", "steps:.4"), ("--arch transformer", None)):  # fmt: skip
        assert value_of("--boundary-rates", choose(str(tmp_path / "bin"), "save", given.split(), cpu=True)[0]) == rate
    own = choose(str(tmp_path / "bin"), "save", ["--criterion", "cross_entropy"], cpu=True).arguments
    assert not {"--boundary-rates", "--label-smoothing"} & set(own)
    command = ["train", tmp_path / "bin", "--save-dir", tmp_path / "save", "--"]
    printed = run("fairseq-hmrnn", *command, "--max-update", 2, "--cpu", "--num-workers", 0).stdout
    assert SMALL in printed and printed.endswith("has no test split; done\n")
    assert (tmp_path / "save" / "checkpoint_best.pt").exists()


def test_languages_whose_names_have_a_hyphen_are_named_in_the_command(pairs, tmp_path):
    """fairseq would look for the language zh."""
    for path in pairs.parent.glob("*.??"):
        shutil.copy(path, tmp_path / f"{path.stem}{'.zh-CN' if path.suffix == '.de' else path.suffix}")
    run(
        "fairseq-hmrnn", "prepare", "translation", "zh-CN", "en", tmp_path, "--source-type", "char", "--target-size", 30
    )
    found = choose(str(tmp_path / "bin"), "save", [], cpu=True).arguments
    assert [value_of(f"--{side}-lang", found) for side in ("source", "target")] == ["zh-CN", "en"]
    own = choose(str(tmp_path / "bin"), "save", ["-s", "en"], cpu=True).arguments
    assert not {"--source-lang", "--target-lang"} & set(own)
    assert value_of("--source-lang", choose(str(pairs), "save", [], cpu=True).arguments) is None
    command = ["train", tmp_path / "bin", "--save-dir", tmp_path / "save", "--", "--arch", "hmlstm_transformer_tiny"]
    printed = run("fairseq-hmrnn", *command, "--max-update", 1, "--cpu", "--num-workers", 0).stdout
    assert "BLEU" in printed.splitlines()[-1]


def test_the_test_split_is_scored_in_the_direction_that_was_trained(pairs, tmp_path):
    given = ["--source-lang", "en", "--target-lang", "de", "--arch", "hmlstm_transformer_tiny", "--max-update", 1]
    command = ["train", pairs, "--save-dir", tmp_path, "--", *given, "--cpu", "--num-workers", 0]
    assert "BLEU" in run("fairseq-hmrnn", *command).stdout.splitlines()[-1]
    found = lines_by_number((tmp_path / "translations.txt").read_text(encoding="utf-8"), "T")
    references = (pairs.parent / "test.de").read_text(encoding="utf-8").split("\n")
    assert {number: references[int(number)] for number in found} == found and len(found) == 13


@pytest.mark.parametrize(
    "symbols, given, expected",
    [
        (450_000, [], (SMALL, "0.016", "polynomial_decay", "8100", "8100", None, "5")),  # 27 of 300 updates
        (30_000, [], (SMALL, "0.016", "polynomial_decay", "3000", "3000", None, "5")),
        (450_000, ["--max-tokens", "3000"], (SMALL, "0.016", "polynomial_decay", "4050", "4050", None, "5")),
        (450_000, ["--max-update", "9"], (SMALL, "0.016", "polynomial_decay", "9", "9", None, "5")),
        (450_000, ["--arch=" + OTHER_SMALL], (OTHER_SMALL, "0.004", "polynomial_decay", "8100", "8100", None, "5")),
        (450_000, ["-a", "hmlstm"], ("hmlstm", "0.002", "polynomial_decay", "8100", "8100", None, "5")),
        (450_000, ["--max-epoch", "2"], (SMALL, "0.016", "polynomial_decay", "600", None, "2", "5")),
        (450_000, ["--max-epoch", "0"], (SMALL, "0.001", None, None, None, "0", "5")),
        (3_000_000, [], ("hmlstm_lstm_iwslt_de_en", "0.001", None, None, None, "10", None)),
    ],
)
def test_the_size_of_the_data_chooses_model_and_length(pairs, monkeypatch, symbols, given, expected):
    lengths = {"de": 15, "en": 14}  # of every line
    monkeypatch.setattr(choice, "line_lengths", lambda path: np.full(symbols // 15, lengths[path[-2:]]))
    arguments = choose(str(pairs), "save", given, cpu=True).arguments
    names = ("--arch", "--lr", "--lr-scheduler", "--total-num-update", "--max-update", "--max-epoch", "--patience")
    assert tuple(value_of(name, arguments) for name in names) == expected


@pytest.mark.parametrize("source, target", [("de", "en"), ("en", "de")])
def test_updates_are_counted_as_fairseq_makes_batches(pairs, source, target):
    """So that the learning rate falls to zero at the end, and not before."""
    config = TranslationConfig(data=str(pairs), source_lang=source, target_lang=target, dataset_impl="mmap")
    config.required_seq_len_multiple, config.train_subset = 1, "train"
    task = TranslationTask.setup_task(config)
    task.load_dataset("train")
    for name, size in (("--max-tokens", 200), ("--batch-size", 7)):
        limits = {"max_tokens": 200, "max_sentences": size if name == "--batch-size" else None}
        batches = task.get_batch_iterator(task.dataset("train"), disable_iterator_cache=True, **limits).frozen_batches
        given = ["--source-lang", source, "--target-lang", target, "--max-tokens", "200", "--max-epoch", "3"]
        arguments = choose(str(pairs), "save", [*given, name, str(size)], cpu=True).arguments
        assert value_of("--total-num-update", arguments) == str(3 * len(batches))


def lines_by_number(output, letter):
    """The last field of the lines `LETTER-NUMBER`."""
    return dict(re.findall(rf"^{letter}-(\d+)\t(?:.*\t)?(.*)$", output, re.MULTILINE))


def test_resuming_continues_bit_for_bit(translator):
    assert same(weights(translator / "parts"), weights(translator / "whole"))
    assert weights(translator / "parts")["encoder.slope_progress.progress"].tolist() == [0, 59]


def test_training_learns_and_regularises_the_source(translator):
    log = (translator / "parts" / "log.txt").read_text(encoding="utf-8")
    losses = values("\n".join(line for line in log.splitlines() if "train_inner" in line), "nll_loss")
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.4  # of single batches, which differ by more than that
    assert values(log, "z1")[-1] == pytest.approx(0.4, abs=0.15)  # of source symbols, in both directions


def test_translations_do_not_depend_on_batches(pairs, translations):
    alone, together = translations["alone"], translations["together"]
    assert len(lines_by_number(alone, "H")) == 13
    for letter in "HA":
        assert lines_by_number(alone, letter) == lines_by_number(together, letter)
    references = (pairs.parent / "test.en").read_text(encoding="utf-8").split("\n")
    assert lines_by_number(alone, "T")["4"] == references[4]
    found = [lines_by_number(alone, "D")[str(number)] for number in range(13)]
    expected = sacrebleu.corpus_bleu(found, [references[:13]]).score
    assert float(re.search(r"BLEU = ([0-9.]+)", alone).group(1)) == pytest.approx(expected, abs=0.01)


def test_score_reference_is_the_validation_loss(translator, translations):
    scores = [float(score) for line in lines_of(translations["reference"], "P") for score in line.split()]
    log = (translator / "parts" / "log.txt").read_text(encoding="utf-8")
    validated = [line for line in log.splitlines() if "valid" in line and "nll_loss" in line]
    assert -sum(scores) / len(scores) == pytest.approx(values(validated[-1], "nll_loss")[-1], abs=2e-3)


@pytest.mark.parametrize("name", ["alone", "ensemble"])
def test_alignments_name_source_symbols(translations, name):
    found, alignments, sources = (lines_by_number(translations[name], letter) for letter in "HAS")
    assert len(found) == len(alignments) == 13
    for number, alignment in alignments.items():
        links = [tuple(map(int, link.split("-"))) for link in alignment.split()]
        assert [target for _, target in links] == list(range(len(found[number].split())))
        raw = name == "alone"  # S- is then text again: a symbol for each character, and the ▁ before the first
        symbols = len(sources[number]) + 1 if raw else len(sources[number].split())
        assert all(source < symbols for source, _ in links)
    if raw:
        assert len(set(re.findall(r"(\d+)-", " ".join(alignments.values())))) > 9


def test_every_model_of_an_ensemble_counts(translations):
    alone, ensemble = (
        dict(re.findall(r"^H-(\d+)\t(\S+)\t", translations[name], re.MULTILINE)) for name in ("alone", "ensemble")
    )
    assert len(alone) == len(ensemble) == 13 and alone != ensemble


def test_interactive_translates_raw_text(pairs, translator):
    options = ["--path", translator / "parts" / "checkpoint_last.pt", "--cpu", "--beam", 2, "--bpe", "sentencepiece"]
    options += ["--sentencepiece-model", pairs / "spm.de.model", "--buffer-size", 3]
    output = run("fairseq-interactive", pairs, *TASK, *options, stdin="der baum ist grün\nx\n\n").stdout
    translations = [line.split("\t")[1] for line in lines_of(output, "D")]
    assert len(translations) == 3 and "▁" not in "".join(translations)
    assert set(translations[0].split()) & {"the", "tree", "is", "green"}


def test_two_processes_end_with_equal_weights(pairs, tmp_path):
    options = [*TASK[2:], *TRAIN, "--arch", "hmlstm_transformer_tiny", *REGULARISED, "--max-update", 3]
    ranks = train_two_processes(pairs, options, tmp_path)
    assert same(*ranks)
    assert torch.isfinite(ranks[0]["encoder.hm_lstm.bias.0"]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--encoder-memory", "segments:2"], "requires a layer with a boundary detector"),
        (["--load-pretrained-encoder-from", "nowhere.pt"], "nowhere.pt is not there"),
    ],
)
def test_bad_options_stop_at_once_and_say_what_to_do(pairs, tmp_path, options, message):
    output = run("fairseq-train", pairs, *TASK, *TRAIN, *HMLSTM, *options, "--save-dir", tmp_path, check=False)
    assert output.returncode != 0 and message in output.stdout and "train_inner" not in output.stdout
