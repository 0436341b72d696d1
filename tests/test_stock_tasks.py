"""Checkpoints of fairseq's own tasks, with every metric option, load again while this package is imported."""

import random

import fairseq
import pytest
from fairseq import checkpoint_utils
from running import ROOT, run_groups

import fairseq_hmrnn  # noqa: F401  (looks through checkpoints)

ENCODER = "--encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 2 --encoder-layers 1".split()
BOTH = [*ENCODER, *(option.replace("encoder", "decoder") for option in ENCODER)]
LSTM = "--encoder-embed-dim 8 --encoder-hidden-size 8 --decoder-embed-dim 8 --decoder-hidden-size 8".split()
ROBERTA = ["--arch", "roberta_base", *ENCODER, "--max-positions", 40]
BLEU = ["--eval-bleu", "--eval-bleu-detok", "space", "--eval-tokenized-bleu", "--eval-bleu-remove-bpe"]
BLEU += ["--eval-bleu-print-samples", "--eval-bleu-args", '{"beam":1,"max_len_b":4}']
BLEU += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--report-accuracy"]
CLASSES = ["--task", "sentence_prediction", *ROBERTA, "--criterion", "sentence_prediction", "--num-classes", 2]
CLASSES += ["--init-token", 0, "--separator-token", 2, "--maximize-best-checkpoint-metric"]
TRAININGS = {  # name: (folder of data, options)
    "translation": ("pairs", ["--task", "translation", "--arch", "lstm", *LSTM, *SMOOTHED, *BLEU]),
    "levenshtein": (
        "pairs",
        [
            "--task",
            "translation_lev",
            "--arch",
            "levenshtein_transformer",
            *BOTH,
            "--noise",
            "random_delete",
            "--criterion",
            "nat_loss",
            "--eval-bleu",
            "--eval-bleu-args",
            '{"iter_decode_max_iter":2}',
        ],
    ),
    "hmlstm": (
        "pairs",
        [
            "--task",
            "translation",
            "--arch",
            "hmlstm_lstm_tiny",
            *BLEU,
            "--boundary-rates",
            ".3",
            "--criterion",
            "boundary_regularized_cross_entropy",
        ],
    ),
    "language_modeling": (
        "text",
        [
            "--task",
            "language_modeling",
            "--arch",
            "lstm_lm",
            "--decoder-embed-dim",
            8,
            "--decoder-hidden-size",
            8,
            "--decoder-out-embed-dim",
            8,
            *SMOOTHED,
            "--store-ema",
            "--ema-fp32",
            "--tokens-per-sample",
            20,
        ],
    ),
    "masked_lm": ("text", ["--task", "masked_lm", *ROBERTA, "--criterion", "masked_lm", "--tokens-per-sample", 20]),
    "denoising": (
        "text",
        [
            "--task",
            "denoising",
            "--arch",
            "bart_base",
            *BOTH,
            "--tokens-per-sample",
            30,
            "--mask",
            0.3,
            "--max-source-positions",
            40,
            "--max-target-positions",
            40,
        ],
    ),
    "correlation": ("classes", [*CLASSES, "--report-mcc", "--best-checkpoint-metric", "mcc"]),
    "f1": ("classes", [*CLASSES, "--report-acc-and-f1", "--best-checkpoint-metric", "acc_and_f1"]),
}
if fairseq.__version__ == "0.12.2":  # its build lacks levenshtein's library, denoising's options contradict bart's, and
    for name in ("levenshtein", "denoising", "correlation", "f1"):  # there are no such metrics
        del TRAININGS[name]
TRAINED_ONCE = {"hmlstm", "f1"}  # of a task that goes on with another metric


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, choose = tmp_path_factory.mktemp("stock"), random.Random(0)
    for name, count in (("train", 60), ("valid", 12), ("test", 6)):
        lines = [choose.choices("ka lumo tiri sen poko a".split(), k=choose.randint(2, 8)) for _ in range(count)]
        for ending, order in (("de", 1), ("en", -1)):
            (folder / f"{name}.{ending}").write_text("".join(" ".join(line[::order]) + "\n" for line in lines))
        (folder / f"{name}.class").write_text("".join(f"{len(line) % 2}\n" for line in lines))

    def prepare(target, *options, ending=""):
        files = [f"--{name}pref={folder / name}{ending}" for name in ("train", "valid", "test")]
        return [("fairseq-preprocess", [*options, *files, "--destdir", folder / target], folder / "log")]

    jobs = [prepare("pairs", "--source-lang", "de", "--target-lang", "en")]
    jobs += [prepare("text", "--only-source", ending=".de"), prepare("classes/input0", "--only-source", ending=".de")]
    same = ["--srcdict", folder / "classes/input0/dict.txt"]
    jobs += [prepare("classes/input1", "--only-source", *same, ending=".en")]
    jobs += [prepare("classes/label", "--only-source", ending=".class")]
    run_groups(jobs)
    return folder


@pytest.mark.slow
def test_every_stock_task_resumes_and_is_used_with_every_metric(prepared, tmp_path):
    common = ["--user-dir", ROOT / "fairseq_hmrnn", "--cpu", "--num-workers", 0, "--required-batch-size-multiple", 1]
    train = [*common, "--optimizer", "adam", "--lr", 0.001, "--batch-size", 8, "--save-interval-updates", 2]
    jobs = []
    for name, (folder, options) in TRAININGS.items():
        arguments = [prepared / folder, *options, *train, "--save-dir", tmp_path / name]
        for updates in (6,) if name in TRAINED_ONCE else (4, 6):
            jobs.append([("fairseq-train", [*arguments, "--max-update", updates], tmp_path / f"{name}.log")])
    for name in ("translation", "hmlstm"):
        path = ["--path", tmp_path / name / "checkpoint_best.pt", "--beam", 1, "--max-len-b", 5, "--batch-size", 8]
        jobs.append([("fairseq-generate", [prepared / "pairs", *common, *path], tmp_path / f"{name}.out")])
    run_groups(jobs)
    for name in TRAININGS:
        for file in (tmp_path / name).glob("*.pt"):
            assert checkpoint_utils.load_checkpoint_to_cpu(str(file))["model"]
        log = (tmp_path / f"{name}.log").read_text()
        assert ("Loaded checkpoint" in log) == (name not in TRAINED_ONCE)
        assert "num_updates: 6 >= max_update: 6" in log
    for name in ("translation", "hmlstm"):
        assert (tmp_path / f"{name}.out").read_text().count("\nH-") == 6
