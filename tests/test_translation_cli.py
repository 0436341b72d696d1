"""Translation through the real fairseq commands, in processes of their own, on a small language."""

import os
import random
import re
import subprocess

import pytest
import torch
from conftest import BIN, ROOT, run
from test_cli import lines_of, same, train_two_processes, values, weights

WORDS = {"haus": "house", "baum": "tree", "der": "the", "grün": "green", "ist": "is", "und": "and", "groß": "big"}
TASK = ["--user-dir", "fairseq_hmrnn", "--task", "translation", "--required-batch-size-multiple", "1"]
TRAIN = ["--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--batch-size", "32", "--cpu", "--seed", "1"]
TRAIN += ["--log-format", "simple", "--log-interval", "1", "--num-workers", "0", "--no-epoch-checkpoints"]
REGULARISED = ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".4"]
HMLSTM = ["--arch", "hmlstm", "--embed-dim", "16", "--hidden-sizes", "24,16", "--output-dim", "24", "--bidirectional"]
HMLSTM += ["--encoder-memory", "segments:1", "--slope-per-update", "0.01", *REGULARISED, "--label-smoothing", "0.1"]


def sentences(count, seed):
    choose = random.Random(seed)
    source = [choose.choices(list(WORDS), k=choose.randint(1, 7)) for _ in range(count)]
    return [" ".join(line) for line in source], [" ".join(WORDS[word] for word in line) for line in source]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Folder prepared by the script, from characters of the source to pieces of the target; texts are beside it."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, count, seed in (("train", 400, 0), ("valid", 21, 1), ("test", 13, 2)):
        for language, lines in zip(("de", "en"), sentences(count, seed)):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", ROOT / "scripts" / "prepare_translation.sh", "de", "en", folder]
    options = ["--source-type", "char", "--target-size", "30"]
    subprocess.run([*map(str, script), *options], env=environment, check=True)
    return folder / "bin"


@pytest.fixture(scope="session")
def translator(pairs, tmp_path_factory):
    """Folder of an `hmlstm` trained for 60 updates, in two parts; `log.txt` is what fairseq-train printed last."""
    folder = tmp_path_factory.mktemp("translator")
    for updates in (7, 60):  # in the first epoch: fairseq's own resumption pairs other sentences in a later one
        log = run("fairseq-train", pairs, *TASK, *TRAIN, *HMLSTM, "--max-update", updates, "--save-dir", folder).stdout
    (folder / "log.txt").write_text(log, encoding="utf-8")
    return folder


def hypotheses(output):
    return dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE))


def generate(pairs, path, *options):
    paths = os.pathsep.join(str(p) for p in (path if isinstance(path, list) else [path]))
    return run("fairseq-generate", pairs, *TASK, "--path", paths, "--gen-subset", "test", "--cpu", *options).stdout


def test_resuming_continues_bit_for_bit(pairs, translator, tmp_path):
    run("fairseq-train", pairs, *TASK, *TRAIN, *HMLSTM, "--max-update", 60, "--save-dir", tmp_path)
    assert same(weights(tmp_path), weights(translator))
    assert weights(tmp_path)["encoder.slope_progress.progress"].tolist() == [0, 59]


def test_training_learns_and_regularises_the_source(pairs, translator):
    log = (translator / "log.txt").read_text(encoding="utf-8")
    assert values(log, "nll_loss")[-1] < 2.5
    assert values(log, "z1")[-1] == pytest.approx(0.4, abs=0.15)  # of source symbols, in both directions


def test_translations_do_not_depend_on_batches(pairs, translator):
    spm = ["--bpe", "sentencepiece", "--sentencepiece-model", pairs / "spm.de.model", "--scoring", "sacrebleu"]
    checkpoint = translator / "checkpoint_last.pt"
    alone = generate(pairs, checkpoint, "--beam", 3, "--batch-size", 1, *spm)
    together = generate(pairs, checkpoint, "--beam", 3, "--batch-size", 7, *spm)
    assert len(hypotheses(alone)) == 13 and hypotheses(alone) == hypotheses(together)
    references = (pairs.parent / "test.en").read_text(encoding="utf-8").split("\n")
    assert dict(re.findall(r"^T-(\d+)\t(.*)$", alone, re.MULTILINE))["4"] == references[4]
    assert float(re.search(r"BLEU = ([0-9.]+)", alone).group(1)) > 10


def test_score_reference_is_the_validation_loss(pairs, translator):
    options = ["--path", translator / "checkpoint_last.pt", "--gen-subset", "valid", "--batch-size", 5, "--cpu"]
    scored = run("fairseq-generate", pairs, *TASK, *options, "--score-reference").stdout
    scores = [float(score) for line in lines_of(scored, "P") for score in line.split()]
    log = (translator / "log.txt").read_text(encoding="utf-8")
    validated = [line for line in log.splitlines() if "valid" in line and "nll_loss" in line]
    assert -sum(scores) / len(scores) == pytest.approx(values(validated[-1], "nll_loss")[-1], abs=2e-3)


def test_ensembles_of_different_memories_align_to_the_source(pairs, translator, tmp_path):
    other = ["--arch", "hmlstm_lstm_tiny", *REGULARISED, "--max-update", 20, "--save-dir", tmp_path]
    run("fairseq-train", pairs, *TASK, *TRAIN, *other)
    both = [translator / "checkpoint_last.pt", tmp_path / "checkpoint_last.pt"]
    output = generate(pairs, both, "--beam", 2, "--print-alignment")
    found = hypotheses(output)
    alignments = dict(re.findall(r"^A-(\d+)\t(.*)$", output, re.MULTILINE))
    sources = dict(re.findall(r"^S-(\d+)\t(.*)$", output, re.MULTILINE))
    assert len(found) == len(alignments) == 13
    for number, alignment in alignments.items():
        links = [tuple(map(int, link.split("-"))) for link in alignment.split()]
        assert len(links) == len(found[number].split())
        assert all(source < len(sources[number].split()) for source, _ in links)
    assert len({source for source, _ in links}) > 1
    alone = generate(pairs, both[0], "--beam", 2)
    assert lines_of(alone, "H") != lines_of(output, "H")  # the second model counts


def test_interactive_translates_raw_text(pairs, translator):
    options = ["--path", translator / "checkpoint_last.pt", "--cpu", "--beam", 2, "--bpe", "sentencepiece"]
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
        (["--encoder-memory", "segments:2"], "wants a layer with a boundary detector"),
        (["--slope-per-epoch", "0.04"], "slope-per-update"),
        (["--load-pretrained-encoder-from", "nowhere.pt"], "no nowhere.pt"),
    ],
)
def test_bad_options_stop_at_once_and_say_what_to_do(pairs, tmp_path, options, message):
    output = run("fairseq-train", pairs, *TASK, *TRAIN, *HMLSTM, *options, "--save-dir", tmp_path, check=False)
    assert output.returncode != 0 and message in output.stdout and "train_inner" not in output.stdout
