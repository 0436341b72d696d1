"""A small text, and the options of fairseq-train for a small model of it."""

import random

TASK = ["--user-dir", "fairseq_hmrnn", "--task", "hmlstm_language_modeling"]
SMALL = ["--arch", "hmlstm_lm", "--embed-dim", "8", "--hidden-sizes", "16,12,8", "--output-dim", "12"]
TRAIN = [*SMALL, "--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".3,.1"]
TRAIN += ["--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--batch-size", "8"]
TRAIN += ["--tokens-per-sample", "30", "--cpu", "--seed", "1"]
TRAIN += ["--log-format", "simple", "--log-interval", "1", "--num-workers", "0"]


def small_text(lines=150, seed=0):
    """Lines of words of a tiny language, with what is easily lost: tabs, runs of spaces, empty lines, U+3000."""
    choose = random.Random(seed)
    words = ["ka", "lumo", "tiri", "sen", "poko", "a"]
    text = [" ".join(choose.choices(words, k=choose.randint(1, 9))) for _ in range(lines)]
    text[3], text[4], text[10], text[-5] = "\tka  lumo ", "", "sen\u3000a", " a"
    return "\n".join(text) + "\n"
