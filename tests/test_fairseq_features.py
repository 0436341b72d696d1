"""fairseq's features through its own commands: workers, averages, adaptive softmax, dropout, hub, a language model."""

import gc
import os
import re
import shutil
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from command_results import base2_loss, checkpoint, lines_of, same, values
from fairseq import checkpoint_utils
from running import ROOT, run, run_groups
from small_texts import dictionary_of, write_pairs
from small_training import TASK, TRAIN

from fairseq_hmrnn.cli.main import run as run_here
from fairseq_hmrnn.models import HMLSTMLanguageModel, HMLSTMModel
from fairseq_hmrnn.models.fingerprint import DictionaryFingerprint
from fairseq_hmrnn.tasks.hmlstm_language_modeling import HMLSTMLanguageModelingConfig, HMLSTMLanguageModelingTask

COMMON = ["--user-dir", "fairseq_hmrnn", "--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--cpu"]
COMMON += ["--batch-size", "16", "--seed", "1", "--log-format", "simple", "--log-interval", "1"]
COMMON += ["--num-workers", "0", "--no-epoch-checkpoints", "--required-batch-size-multiple", "1"]
LINES = ["--task", "hmlstm_language_modeling", "--sample-break-mode", "eos", "--tokens-per-sample", "50"]
LINES += ["--arch", "hmlstm_lm", "--embed-dim", "16", "--hidden-sizes", "24,16", "--output-dim", "32"]
ADAPTIVE = ["--adaptive-softmax-cutoff", "5,8"]
OURS = ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".3"]
FAIRSEQS = ["--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp"]
EMA = [*TRAIN, "--stateful", "--embed-dim", "12", "--tie-embeddings", "--slope-per-update", "0.01"]
EMA += ["--num-workers", "2", "--store-ema", "--ema-decay", "0.8", "--ema-update-freq", "3"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders `bin` (translation) and `lm` (the target language alone, with its dictionary), texts beside them."""
    folder = tmp_path_factory.mktemp("words")
    write_pairs(folder, train=300)
    both = [value for split in ("train", "valid", "test") for value in (f"--{split}pref", folder / split)]
    one = [f"{value}.en" if isinstance(value, Path) else value for value in both]
    only = ["--only-source", "--srcdict", folder / "bin" / "dict.en.txt", "--destdir", folder / "lm"]
    run_groups(
        [
            [
                (
                    "fairseq-preprocess",
                    ["-s", "de", "-t", "en", *both, "--destdir", folder / "bin"],
                    folder / "pairs.log",
                )
            ],
            [("fairseq-preprocess", [*one, *only], folder / "lm.log")],
        ]
    )
    return folder


@pytest.fixture(scope="module")
def models(pairs, data, tmp_path_factory):
    """Folder with trained models and what commands printed about them."""
    folder = tmp_path_factory.mktemp("models")
    words, both = pairs / "lm", pairs / "bin"

    def train(name, source, *options, log="log"):
        save = ["--save-dir", folder / name]
        return ("fairseq-train", [source, *options, *save], folder / f"{name}.{log}")

    def generate(name, model, source, *options):
        command = [source, "--user-dir", "fairseq_hmrnn", "--gen-subset", "test", "--cpu", "--beam", "2", "--path"]
        return ("fairseq-generate", [*command, folder / model / "checkpoint_last.pt", *options], folder / f"{name}.log")

    translate = ["--task", "translation", "--required-batch-size-multiple", 1]
    lines = [*COMMON, *LINES, *ADAPTIVE]
    ema = [*TASK, *EMA, "--no-epoch-checkpoints"]
    retained = ["--retain-dropout", "--prefix-size", "1", *LINES[:4]]
    run_groups([[job] for job in (
        train("words", words, *lines, *OURS, "--max-epoch", 6),
        train("words_adaptive_loss", words, *lines, *FAIRSEQS, "--max-update", 4),
        train("translator", both, *COMMON, "--task", "translation", "--arch", "hmlstm_tiny", *ADAPTIVE, *FAIRSEQS,
              "--max-update", 60),
        train("whole", data, *ema, "--max-update", 14),
        train("parts", data, *ema, "--max-update", 5),
        train("parts", data, *ema, "--max-update", 14, log="again"),
        train("later", data, *TASK, *TRAIN, "--no-epoch-checkpoints", "--max-update", 2),
        train("later", data, *TASK, *TRAIN, "--no-epoch-checkpoints", "--store-ema", "--max-update", 3, log="again"),
        ("fairseq-eval-lm", [words, "--user-dir", "fairseq_hmrnn", *LINES[:6], "--cpu", "--gen-subset", "valid",
                             "--path", folder / "words" / "checkpoint_last.pt"], folder / "eval.log"),
        *(generate(f"retained{seed}", "words", words, *retained, "--seed", seed) for seed in (1, 2)),
        generate("alone", "translator", both, *translate),
        generate("fused", "translator", both, *translate, "--lm-weight", 2, "--lm-path",
                 folder / "words" / "checkpoint_last.pt"),
    )])  # fmt: skip
    return folder


@pytest.mark.parametrize("stateful", [True, False])
def test_no_data_worker_outlives_its_epoch(data, stateful, monkeypatch):
    """Of data in parts, whose iterators serve for one epoch. A worker that is left does not end when it is told to, and
    is ended after a while."""
    ended = []
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 30)  # seconds, also on a busy machine
    monkeypatch.setattr(BaseProcess, "terminate", lambda process: ended.append(process) or process.kill())
    folders = os.pathsep.join([str(data), str(data)])
    cfg = HMLSTMLanguageModelingConfig(data=folders, stateful=stateful, tokens_per_sample=30, dataset_impl="mmap")
    cfg.use_plasma_view = cfg.tpu = False
    task = HMLSTMLanguageModelingTask.setup_task(cfg)
    task.load_dataset("train")
    options = {"num_workers": 2, "data_buffer_size": 10, "disable_iterator_cache": True}
    iterator = None
    for epoch in (1, 2, 3):
        iterator = task.get_batch_iterator(task.dataset("train"), max_sentences=8, epoch=epoch, **options)
        gc.collect()  # the one before
        assert len(list(iterator.next_epoch_itr(shuffle=False))) > 10
    assert not ended


def test_the_moving_average_goes_on_bit_for_bit(models):
    whole, parts = checkpoint(models / "whole"), checkpoint(models / "parts")
    averages = [state["extra_state"]["ema"] for state in (whole, parts)]
    assert same(*averages) and same(whole["model"], parts["model"])
    average, weights = averages[0], whole["model"]
    assert torch.equal(average["decoder.embed_tokens.weight"], average["decoder.output_projection.weight"])
    assert not torch.equal(average["decoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"])
    name = "decoder.dictionary_fingerprint.fingerprint"
    assert torch.equal(average[name], weights[name])
    assert average["decoder.slope_progress.progress"].tolist()[1] == 11  # as the model's at the last third update


def test_a_moving_average_may_begin_at_a_restart(models):
    state = checkpoint(models / "later")
    average, weights = (part["decoder.embed_tokens.weight"] for part in (state["extra_state"]["ema"], state["model"]))
    assert 0 < (average - weights).abs().max() < 0.1


def test_the_moving_average_can_be_evaluated(models, tmp_path, capsys):
    options = ["--ema", "--out", str(tmp_path / "ema.pt")]
    run_here(["average", str(models / "whole" / "checkpoint_last.pt"), *options])
    assert "ema.pt: moving averages of checkpoint_last.pt" in capsys.readouterr().out
    average, weights = checkpoint(models / "whole")["extra_state"]["ema"], checkpoint(models / "whole")["model"]
    lm = HMLSTMLanguageModel.from_pretrained(str(tmp_path / "ema.pt"))
    found = lm.models[0].state_dict()
    name = "decoder.slope_progress.progress"
    assert torch.equal(found.pop(name), weights[name])
    assert all(torch.equal(tensor, average[name]) for name, tensor in found.items())
    assert lm.score("ka lumo").bits_per_character > 0
    with pytest.raises(SystemExit):
        run_here(["average", str(models / "words" / "checkpoint_last.pt"), *options])
    assert "train with --store-ema" in capsys.readouterr().err


def test_adaptive_softmax_trains_and_scores(models, pairs):
    log = (models / "words.log").read_text(encoding="utf-8")
    validated = values("\n".join(line for line in log.splitlines() if "valid on" in line), "loss")
    assert validated[-1] < 2.95  # words drawn at random: log2 7 and the ends of lines
    evaluated = base2_loss((models / "eval.log").read_text(encoding="utf-8"))
    assert evaluated == pytest.approx(validated[-1], abs=2e-3)
    lm = HMLSTMLanguageModel.from_pretrained(str(models / "words" / "checkpoint_last.pt"))
    text = (pairs / "valid.en").read_text(encoding="utf-8")
    scores = lm.score([line + "\n" for line in text.splitlines()], replace_newline_with_eos=True)
    bits = [bit for score in scores for bit in score.bits]
    assert sum(bits) / len(bits) == pytest.approx(validated[-1], abs=2e-3)


def test_adaptive_loss_without_cutoffs_says_what_to_give(pairs, tmp_path):
    options = [*COMMON, *LINES, *FAIRSEQS, "--save-dir", tmp_path]
    output = run("fairseq-train", pairs / "lm", *options, check=False).stdout
    assert "--criterion adaptive_loss requires --adaptive-softmax-cutoff" in output.splitlines()[-1]


def test_seeds_of_retained_dropout_differ_in_every_line(models):
    first, second = ((models / f"retained{seed}.log").read_text(encoding="utf-8") for seed in (1, 2))
    scores = [re.findall(r"^H-(\d+)\t(\S+)", log, re.MULTILINE) for log in (first, second)]
    assert len(scores[0]) == len(scores[1]) == 13 and not set(scores[0]) & set(scores[1])


def test_a_language_model_joins_the_search_with_the_dictionary_of_its_checkpoint(models, pairs, tmp_path):
    alone, fused = (
        dict(re.findall(r"^H-(\d+)\t(\S+)\t", (models / f"{name}.log").read_text("utf-8"), re.MULTILINE))
        for name in ("alone", "fused")
    )
    assert len(alone) == len(fused) == 13 and all(alone[number] != fused[number] for number in alone)
    state = checkpoint(models / "words")
    entries = state["task_state"]["dictionary"]
    entries[:2] = entries[1::-1]  # of equal size, as a model of the source language can be
    swapped = DictionaryFingerprint(dictionary_of([symbol for symbol, _ in entries]))
    state["model"]["decoder.dictionary_fingerprint.fingerprint"] = swapped.fingerprint
    torch.save(state, tmp_path / "other.pt")
    command = ["--user-dir", "fairseq_hmrnn", "--task", "translation", "--gen-subset", "test", "--cpu", "--path"]
    command += [models / "translator" / "checkpoint_last.pt", "--lm-path", tmp_path / "other.pt"]
    output = run("fairseq-generate", pairs / "bin", *command, check=False).stdout
    assert "of --lm-path is not that of the target language" in output.splitlines()[-1]
    del state["task_state"]["dictionary"]
    torch.save(state, tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="does not carry its dictionary: copy its dict.txt"):
        checkpoint_utils.load_model_ensemble([str(tmp_path / "none.pt")], {"data": str(pairs / "bin")})


@pytest.fixture(scope="module")
def lm(models):
    return HMLSTMLanguageModel.from_pretrained(str(models / "words" / "checkpoint_last.pt"))


def test_fairseqs_calls_of_the_hub(lm):
    text = "the house is"
    torch.manual_seed(1)
    sampled = lm.sample(text, beam=1, sampling=True, sampling_topk=10)
    torch.manual_seed(1)
    assert lm.sample([text], beam=1, sampling=True, sampling_topk=10) == [sampled]
    assert sampled.startswith(text)
    best = lm.generate([lm.encode(text)], beam=4, max_len_b=200)[0][0]["tokens"]
    assert lm.sample(text, beam=4) == lm.translate(text, beam=4) == lm.decode(best)
    assert lm.translate([text, "the"], 4) == lm.sample([text, "the"], beam=4, batch_size=1)
    longer = lm.sample(text, beam=2, length=3, end="length")
    assert len(longer.split()) + longer.count("\n") == 6
    score = lm.score(text)
    expected = lm.generate([lm.encode(text)], score_reference=True)[0][0]
    torch.testing.assert_close(score["positional_scores"], expected["positional_scores"])
    torch.testing.assert_close(score["score"], expected["score"])
    assert torch.equal(score["tokens"], expected["tokens"]) and score["alignment"] is None
    assert sum(score.bits) / len(text) == pytest.approx(score.bits_per_character) == score[0]
    bits, of_symbols, symbols = score  # our own form
    assert symbols == text.split() and len(of_symbols) == 3 and bits == score.bits_per_character
    assert [len(score.bits) for score in lm.score([text, "the"], verbose=False)] == [3, 1]


def test_temperature_divides_the_log_probabilities_of_an_adaptive_softmax(lm):
    text = torch.tensor([lm.begin, *lm.encode("the house is").tolist()])
    with torch.no_grad():
        log_probs = lm.models[0].get_normalized_probs(lm.models[0](text.unsqueeze(0)), log_probs=True)[0]
    expected = (log_probs / 0.5).log_softmax(1)[:3].gather(1, text[1:].unsqueeze(1)).squeeze(1)
    found = lm.generate([text[1:]], beam=1, temperature=0.5, max_len_b=1)[0][0]["positional_scores"]
    torch.testing.assert_close(found[:3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options, name", [({"beem": 3}, "beem"), ({"beam": 3, "top_k": 4}, "top_k")])
def test_options_that_nobody_has_are_refused(lm, options, name):
    with pytest.raises(TypeError, match=name):
        lm.sample("the", **options)
    with pytest.raises(TypeError, match=name):
        lm.score("the", **options)


def test_a_model_of_words_stops_at_the_end_of_a_line(lm, models):
    samples = lm.sample(["the"] * 20, length=40, batch_size=7, seed=3)
    assert len({len(text.split()) for text in samples}) > 3 and not any("\n" in text for text in samples)
    assert max(len(text.split()) for text in samples) < 41
    longer = lm.sample("the", length=40, seed=3, end="length")
    assert longer.count("\n") + len(longer.split()) == 41 and "\n" in longer  # nothing is invisible
    assert lm.sample("the", length=40, beam=3) == lm.sample("the", length=40, beam=3, end="newline")
    assert "\n" in lm.sample("the", length=40, beam=3, end="length")
    with pytest.raises(ValueError, match="unknown end"):
        lm.sample("the", end="never")
    command = ["fairseq-hmrnn", "sample", models / "words" / "checkpoint_last.pt", "--length", 60, "--seed", 3]
    assert run(*command).stdout.count("\n") == 1


@pytest.mark.parametrize("name, hub", [("words", HMLSTMLanguageModel), ("translator", HMLSTMModel)])
def test_checkpoints_older_than_an_option_load(models, tmp_path, name, hub):
    state = checkpoint(models / name)
    for option in ("criterion_name", "decoder_embed_path", "encoder_embed_path", "share_all_embeddings"):
        state["cfg"]["model"].pop(option, None)
    torch.save(state, tmp_path / "older.pt")
    weights = hub.from_pretrained(str(tmp_path / "older.pt")).models[0].state_dict()
    assert same(weights, state["model"])
    shutil.copy(models / name / "checkpoint_last.pt", tmp_path / "new.pt")
    with pytest.raises(TypeError, match="older.pt was trained before there was an option decoder_embed_path"):
        hub.from_pretrained(str(tmp_path), "new.pt:older.pt", decoder_embed_path="")


def test_translation_models_load_from_their_folder(models, pairs):
    hub = HMLSTMModel.from_pretrained(str(models / "translator"))
    source = (pairs / "test.de").read_text(encoding="utf-8").splitlines()[:3]
    log = (models / "alone.log").read_text(encoding="utf-8")
    last = HMLSTMModel.from_pretrained(str(models / "translator" / "checkpoint_last.pt"), None, str(pairs / "bin"))
    numbered = {line.split("\t")[1]: number for number, line in re.findall(r"^(?:S-)(\d+)(\t.*)$", log, re.MULTILINE)}
    found = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", log, re.MULTILINE))
    assert last.translate(source, beam=2) == [found[numbered[line]] for line in source]
    assert isinstance(hub.translate("der baum"), str) and len(lines_of(log, "H")) == 13
    both = HMLSTMModel.from_pretrained(str(models / "translator"), "checkpoint_best.pt:checkpoint_last.pt")
    assert len(both.models) == 2
    with pytest.raises(FileNotFoundError, match="no folder"):
        HMLSTMModel.from_pretrained(str(models / "translator"), data_name_or_path=str(pairs / "nowhere"))
    with pytest.raises(TypeError, match="^unknown option sentencpiece_model: did you mean sentencepiece_model"):
        HMLSTMModel.from_pretrained(str(models / "translator"), bpe="sentencepiece", sentencpiece_model="spm.de.model")
    given = {"max_len_b": 3, "retain_dropout": True}  # the second is read where the hub is made
    other = HMLSTMModel.from_pretrained(str(models / "translator"), generation_args=given)
    assert len(other.generate(other.encode("der baum ist"))[0]["tokens"]) <= 3 + 1
    assert any(getattr(module, "apply_during_inference", False) for module in other.models[0].modules())
    with pytest.raises(TypeError, match="^beam in generation_args is not read: give it to translate"):
        HMLSTMModel.from_pretrained(str(models / "translator"), generation_args={"beam": 7})
    with pytest.raises(ValueError, match="hmlstm_lm.pt is not a model of translation"):
        HMLSTMModel.from_pretrained(str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt"))
    with pytest.raises(TypeError, match="^unknown option bean in generation_args: did you mean beam"):
        HMLSTMModel.from_pretrained(str(models / "translator"), generation_args={"bean": 7})
