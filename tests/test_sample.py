"""The command `sample`, the hub interface, and export, far from the training data."""

import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from fairseq.data import data_utils
from running import PATIENCE, environment, run, run_groups
from small_training import TASK, TRAIN

from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.inference.reader import Reader, output_symbols
from fairseq_hmrnn.inference.sampler import SamplingOptions
from fairseq_hmrnn.inference.samples import SEPARATOR, Layout, SampleWriter
from fairseq_hmrnn.models import HMLSTMLanguageModel


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """A checkpoint alone, without the data beside it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    state = loading.checkpoint_utils.load_checkpoint_to_cpu(str(trained / "checkpoint_last.pt"))
    state["cfg"]["task"]["data"] = "/nowhere"
    torch.save(state, folder / "checkpoint_best.pt")
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return HMLSTMLanguageModel.from_pretrained(str(checkpoint))


@pytest.fixture(scope="module")
def word_model(data, tmp_path_factory):
    """Folder of a model whose symbols are words, and which predicts four of them."""
    folder = tmp_path_factory.mktemp("words")
    texts = ["--trainpref", data.parent / "train.txt", "--validpref", data.parent / "valid.txt"]
    prepare = ["--only-source", *texts, "--destdir", folder / "bin", "--workers", 1]
    train = [folder / "bin", *TASK, *TRAIN, "--max-update", 20, "--disable-validation", "--save-dir", folder]
    train += ["--output-dictionary-size", 8]  # four specials
    jobs = [("fairseq-preprocess", prepare), ("fairseq-train", train)]
    run_groups([[(name, arguments, folder / f"{name}.txt")] for name, arguments in jobs])
    return folder


def test_prompts_are_kept_and_seeds_repeat(checkpoint, model, tmp_path):
    prompt = " ka\n\tlu\0\u00e9\n"
    options = [checkpoint, "--prompt", "-", "--length", 60, "--seed", 5]
    both = run("fairseq-hmrnn", "sample", *options, cwd=tmp_path, stdin=prompt).stdout
    warning, _, text = both.partition("\n")
    assert "'\\x00' '\\xe9'" in warning and "<unk>" in warning
    assert text.startswith(prompt) and len(text) == len(prompt) + 60 and "\n" in text[len(prompt) :]
    assert model.sample(prompt, length=60, seed=5, batch_size=1) == text  # the same sampler, the same numbers


def test_json_scores_with_and_without_the_prompt(checkpoint, model):
    options = ["--prompt", "ka lu", "--prompt", "", "--samples", 2, "--batch-size", 3, "--length", 25, "--greedy"]
    printed = run("fairseq-hmrnn", "sample", checkpoint, *options, "--json").stdout
    records = [json.loads(line) for line in printed.splitlines()]
    assert [record["prompt"] for record in records] == ["ka lu", "ka lu", "", ""]
    assert [record["text"] for record in records[::2]] == [record["text"] for record in records[1::2]]
    for record in records:
        scored = model.score(record["prompt"] + record["text"])
        assert record["prompt_bits"] + record["bits"] == pytest.approx(scored.bits, abs=1e-4)
        assert record["bits_per_character_with_prompt"] == pytest.approx(scored.bits_per_character, abs=1e-4)
        assert record["bits_per_character"] == pytest.approx(sum(record["bits"]) / 25)
        boundaries = model.boundaries(record["prompt"] + record["text"])
        expected = [(column.nonzero().squeeze(1) + 1).tolist() for column in boundaries.unbind(1)]
        assert record["segment_ends"] == expected


def test_a_prompt_keeps_its_text_between_marks(checkpoint, word_model):
    """Characters that the model has not, and white space between words, are shown as they were given."""
    for model, prompt in ((checkpoint, "ka \u00dflu"), (word_model, "ka  lumo\nka")):
        options = ["fairseq-hmrnn", "sample", model, "--prompt", prompt, "--length", 3, "--seed", 1]
        plain, marked = (run(*options, *more).stdout for more in ([], ["--show-boundaries"]))
        shown = re.sub("[|\u2016\u2980]", "", marked)
        assert prompt in plain and shown[shown.index("ka") :] == plain[plain.index("ka") :]


def test_a_codec_whose_symbols_have_no_text_writes_whole_samples(word_model):
    options = [word_model, "--bpe", "bytes", "--length", 5, "--seed", 3]
    refused = run("fairseq-hmrnn", "sample", *options, check=False)
    assert refused.returncode == 2 and "sample it with --json" in refused.stdout.splitlines()[-1]
    assert len(json.loads(run("fairseq-hmrnn", "sample", *options, "--json").stdout)["bits"]) == 5


def test_new_words_do_not_stick_to_the_prompt(word_model):
    prompts = ["ka lumo", "ka ", ""]
    options = [word_model, "--length", 12, "--seed", 3, *(part for prompt in prompts for part in ("--prompt", prompt))]
    options += ["--end", "length"]
    plain = run("fairseq-hmrnn", "sample", *options).stdout.split("\n----------\n")
    assert len(plain) == len(prompts)
    for begin, text in zip(["ka lumo ", "ka ", ""], plain):
        assert re.fullmatch(rf"{begin}(\S+ |\n){{12}}", text)
    records = [json.loads(line) for line in run("fairseq-hmrnn", "sample", *options, "--json").stdout.splitlines()]
    assert len(records) == len(plain)
    for record, text in zip(records, plain):
        both = (re.sub(" *\n *", "\n", found).rstrip(" ") for found in (text, record["prompt"] + record["text"]))
        assert len(set(both)) == 1
    ending = ["--length", 5, "--end", "length"]
    beams = run("fairseq-hmrnn", "sample", word_model, "--prompt", "ka lumo", "--beam", 2, "--nbest", 2, *ending).stdout
    texts = beams.split("\n----------\n")
    assert len(texts) == 2 and all(re.fullmatch(r"ka lumo (\S+ |\n){5}", text) for text in texts)
    lm = HMLSTMLanguageModel.from_pretrained(str(word_model), "checkpoint_last.pt")
    text = lm.sample("ka lumo", length=12, seed=3)
    assert text.startswith("ka lumo ") and set(text.split()) <= set(lm.tgt_dict.symbols)
    words = lm.src_dict.symbols[lm.src_dict.nspecial :]
    assert len(words) > 4 and len(lm.tgt_dict) == lm.src_dict.nspecial + 4  # the rest is scored as unknown
    assert all(bits > 0 for bits in lm.score(" ".join(words)).bits)
    assert lm.sample("ka lumo ", length=12, seed=3) == text  # the space is there already
    tokens = lm.encode(" ".join(words))
    found, *_ = lm.generate([tokens], beam=2, max_len_b=3)[0]
    (scored, *_), expected = lm.generate([tokens], score_reference=True)[0], lm.score(" ".join(words)).bits
    assert found["tokens"][: len(tokens)].tolist() == tokens.tolist()  # read as they are, scored as unknown
    for hypothesis in (found, scored):
        bits = (-hypothesis["positional_scores"] / math.log(2)).tolist()
        assert bits[: len(expected)] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="has no symbols but whitespace.*: give at least one word"):
        lm.score("  \n")
    assert lm.segment("  \n") == [["  \n"]] * lm.models[0].decoder.hm_lstm.num_detectors and not any(lm.segment(""))


ATTEMPTS = """
import json, sys
from fairseq_hmrnn.cli.main import run
for arguments in json.load(sys.stdin):
    try:
        run(["sample", *arguments])
    except SystemExit as error:
        assert error.code == 2
"""


def test_mistakes_are_told_in_one_line(checkpoint, tmp_path):
    state = loading.checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint / "checkpoint_best.pt"))
    state["model"] = {name.replace("decoder.", "encoder."): value for name, value in state["model"].items()}
    torch.save(state, tmp_path / "translation.pt")
    messages = {
        "--threads: must be a whole number from 1": ["--threads", "-1"],
        "there is no --bpe nothing: choose from": ["--bpe", "nothing"],
        "--bpe sentencepiece and --sentencepiece-model FILE": ["--bpe", "sentencepiece"],
        "--bpe subword_nmt requires more": ["--bpe", "subword_nmt"],
        "translation.pt is a translation model": [str(tmp_path / "translation.pt")],
    }
    attempts = [[str(checkpoint), *options] for options in messages.values()]
    lines = run("-c", ATTEMPTS, stdin=json.dumps(attempts)).stdout.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages):
        assert line.startswith("fairseq-hmrnn sample: error: ") and message in line


def test_boundaries_are_shown_behind_the_symbols_that_close_segments(checkpoint, model):
    options = [checkpoint, "--prompt", "ka lumo", "--length", 40, "--seed", 2]
    shown = run("fairseq-hmrnn", "sample", *options, "--show-boundaries").stdout
    text = re.sub("[|\u2016]", "", shown)
    assert text == run("fairseq-hmrnn", "sample", *options).stdout
    boundaries, position, found = model.boundaries(text), 0, torch.zeros(len(text), 2)
    for character in shown:
        if character in "|\u2016":
            found[position - 1, "|\u2016".index(character)] = 1
        else:
            position += 1
    assert torch.equal(found, boundaries.float()) and found.any()


@pytest.mark.parametrize("ended", [False, True])
def test_boundaries_are_shown_alike_one_by_one_and_together(model, ended):
    """Ended by length, or by a symbol, here the fifth new one."""
    texts = []
    for batch_size in (1, 2):
        out, options = io.StringIO(), SamplingOptions(greedy=True)
        writer = SampleWriter(model, options, 40, "newline" if ended else "length", Layout(True, False, False), out)
        if ended:
            start = [model.begin, *model.encode("ka lumo").tolist()]
            writer.stop = [step.tokens[0] for step, _ in zip(model.sampler(options).run([start]), range(5))][-1]
        writer.draw(["ka lumo"], 2, batch_size)
        texts.append(out.getvalue())
    assert texts[0] == texts[1] and "|" in texts[0]
    first = re.sub("[|\u2016]", "", texts[0].split(SEPARATOR)[0])
    assert len(first) - len("ka lumo") in (range(1, 6) if ended else [40])


def test_fairseqs_own_models_are_searched_to_the_end_of_a_line(data, tmp_path):
    options = [data, "--task", "language_modeling", "--arch", "lstm_lm", "--decoder-embed-dim", 8]
    options += ["--decoder-hidden-size", 8, "--decoder-out-embed-dim", 8, "--decoder-layers", 1, "--optimizer", "adam"]
    options += ["--batch-size", 8, "--tokens-per-sample", 20, "--max-update", 2, "--cpu", "--save-dir", tmp_path]
    run("fairseq-train", *options, "--disable-validation", "--sample-break-mode", "eos")
    search = ["fairseq-hmrnn", "sample", tmp_path / "checkpoint_last.pt", "--data", data, "--length", 5, "--beam", 2]
    told, text = run(*search, "--prompt", "ka").stdout.splitlines()
    assert text.startswith("ka")
    assert told == "sample: not in the dictionary, read as <unk>: 'ka'"  # which is of characters, the task of words
    refused = run(*search, "--end", "length", check=False)
    assert refused.returncode == 2 and "ends samples with </s>: leave the end length out" in refused.stdout


@pytest.mark.parametrize("end", ["reader", "interrupt"])
def test_no_traceback_when_it_is_cut_short(checkpoint, end):
    command = [sys.executable, "-m", "fairseq_hmrnn", "sample", str(checkpoint)]
    command += ["--length", "100000000", "--prompt", "ka"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout.read(20000).startswith(b"ka")
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=PATIENCE)
    assert errors == b"" and process.returncode in (130, -signal.SIGPIPE, -signal.SIGINT)


def test_beam_search_and_user_errors(checkpoint, model, tmp_path):
    options = [checkpoint, "--prompt", "ka", "--beam", 4, "--nbest", 2, "--length", 8]
    texts = run("fairseq-hmrnn", "sample", *options).stdout.split("\n----------\n")
    hypos = model.generate([model.encode("ka")], beam=4, max_len_b=8)[0]
    assert texts == [model.decode(hypo["tokens"]) for hypo in hypos[:2]]
    for options, message in (([tmp_path], "checkpoint_best.pt"), ([checkpoint, "--top-p", 2], "top-p must be")):
        failed = run("fairseq-hmrnn", "sample", *options, check=False)
        assert failed.returncode == 2 and message in failed.stdout and "Traceback" not in failed.stdout


def test_the_hub_reads_and_writes_text_exactly(model):
    text = "\n ka  lu\n\n"
    assert model.decode(model.encode(text)) == text
    together = model.sample(["ka lu", "", "\n"], length=30, greedy=True)
    assert together == [model.sample(prompt, length=30, greedy=True) for prompt in ["ka lu", "", "\n"]]
    for layer in model.segment(text + together[0]):
        assert "".join(layer) == text + together[0] and all(layer)
    z = model.boundaries(text + together[0])
    assert torch.equal(model.boundaries(text + together[0], lookahead=2), torch.cat([z[2:], torch.zeros(2, 2)]))
    assert model.segment("ka", lookahead=9) == [["ka"], ["ka"]]
    with pytest.raises(ValueError, match="lookahead"):
        model.segment("ka", lookahead=-1)
    hypos = model.generate([model.encode("\nka\n")], beam=3, max_len_b=4)
    assert model.decode(hypos[0][0]["tokens"]).startswith("\nka\n") and hypos[0][0]["tokens"].numel() == 8


def test_scores_are_those_of_one_forward_pass(model, monkeypatch):
    text = "ka lumo\ntiri sen"
    symbols = model.encode(text)
    logits = model.models[0](torch.cat([torch.tensor([model.begin]), symbols[:-1]]).unsqueeze(0))[0][0]
    expected = -logits.log_softmax(1).gather(1, symbols.unsqueeze(1)).squeeze(1) / torch.tensor(2.0).log()
    monkeypatch.setattr(Reader.__init__, "__defaults__", (3,))  # symbols of a window
    score = model.score(text)
    assert score.bits == pytest.approx(expected.tolist(), abs=1e-4)
    assert score.bits_per_character == pytest.approx(float(expected.mean()), abs=1e-5)
    with pytest.raises(ValueError, match="empty"):
        model.score("")


def test_a_checkpoint_without_dictionary(checkpoint, data, tmp_path):
    state = loading.checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint / "checkpoint_best.pt"))
    del state["task_state"]["dictionary"]
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(FileNotFoundError, match="give the folder that has its dict.txt"):
        loading.load([str(tmp_path / "old.pt")])
    assert len(loading.load([str(tmp_path / "old.pt")], str(data)).src_dict) > 4
    shutil.copy(data / "dict.txt", tmp_path)
    assert loading.load([str(tmp_path / "old.pt")] * 2).sample("ka", length=5, seed=1)


def test_interactive_scores_new_text_and_keeps_spaces_with_m(data, trained):
    options = ["--path", trained / "checkpoint_last.pt", "--cpu", "--max-len-b", 6, "--scored-text", "new"]
    options += ["--beam", 4, "--nbest", 2, "--diverse-beam-groups", 2]
    output = run("-m fairseq_cli.interactive", data, *TASK, *options, stdin=" ka \n").stdout
    assert re.findall(r"^S-0\t(.*)$", output, re.MULTILINE) == ["▁ k a ▁"]
    scores = [float(score) for score in re.findall(r"^H-0\t(\S+)\t▁ k a ▁ ", output, re.MULTILINE)]
    found = re.findall(r"^P-0\t(.*)$", output, re.MULTILINE)
    assert len(scores) == len(found) == 2
    for score, bits in zip(scores, found):
        bits = [float(number) for number in bits.split()]
        assert len(bits) == 10 and score == pytest.approx(sum(bits[4:]) / 6, abs=1e-3)


@torch.no_grad()
def test_an_exported_step_needs_nothing_of_this_package(checkpoint, model, tmp_path):
    run("fairseq-hmrnn", "export", checkpoint, "--out", tmp_path / "step.ts")
    code = (
        "import json, sys, torch\n"
        "step, about = torch.jit.load('step.ts'), json.load(open('step.ts.json'))\n"
        "state, token, text = torch.zeros(1, about['state_size']), about['begin'], ''\n"
        "for _ in range(20):\n"
        "    log_probs, boundaries, state = step(torch.tensor([token]), state)\n"
        "    log_probs[0, about['never']] = float('-inf')\n"
        "    token = int(log_probs[0].argmax())\n"
        "    text += about['symbols'][token]\n"
        "assert 'fairseq' not in sys.modules\n"
        "print(text)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    expected, state = [], torch.tensor([[model.begin]])
    for _ in range(20):
        logits = model.models[0](state)[0][0, -1]
        logits[[0, 1, 3]] = -float("inf")  # <s>, <pad>, <unk>
        token = int(logits.argmax())
        state = torch.cat([state, torch.tensor([[token]])], dim=1)
        expected.append(token)
    assert printed.stdout.decode() == model.decode(torch.tensor(expected)) + "\n"


def test_segments_are_slices_of_the_text_and_unseen_characters_are_told_once(checkpoint, word_model, caplog):
    text = "ka \u00fclumo\ufffd\n ti\u2603 ka\n\t\u00fc"
    model = HMLSTMLanguageModel.from_pretrained(str(checkpoint))
    caplog.clear()
    for layer in model.segment(text):
        assert "".join(layer) == text and all(layer)
    assert [len(model.score(part).bits) for part in (text, "ka \u00fc")] == [len(text), 4]
    (record,) = caplog.records
    assert record.getMessage() == r"not in the dictionary, read as <unk>: '\xfc' '\ufffd' '\u2603'"
    model.score(["ka", "\u00e9", "\u00e9\u00e8"])
    assert [r.getMessage().count("'") for r in caplog.records[1:]] == [4]  # of two more, in one line

    words = HMLSTMLanguageModel.from_pretrained(str(word_model))
    caplog.clear()
    text = " ka  lumo nowhere\ttiri ka sen\n"
    for layer in words.segment(text):
        assert "".join(layer) == text
        assert all(segment.split() for segment in layer)
    assert [r.getMessage() for r in caplog.records] == ["not in the dictionary, read as <unk>: 'nowhere'"]
    words.sample(["ka elsewhere", "nowhere"], length=1)
    assert caplog.records[-1].getMessage() == "not in the dictionary, read as <unk>: 'elsewhere'"
    told = run("fairseq-hmrnn", "sample", word_model, "--prompt", "ka elsewhere", "--length", 1).stdout
    assert "sample: not in the dictionary, read as <unk>: 'elsewhere'\n" in told


def test_fairseqs_commands_read_words_that_are_not_predicted(word_model):
    """With --output-dictionary-size fairseq has <unk> for them in targets, and a number for their names."""
    lm = HMLSTMLanguageModel.from_pretrained(str(word_model), "checkpoint_last.pt")
    options = [word_model / "bin", *TASK, "--path", word_model / "checkpoint_last.pt", "--output-dictionary-size", 8]
    options += ["--cpu", "--beam", 2, "--max-len-b", 3]
    lines = ["--gen-subset", "valid", "--prefix-size", 4, "--sample-break-mode", "eos", "--batch-size", 3]
    interactive = run("fairseq-interactive", *options, stdin="ka lumo poko\nlumo\nsen a\n").stdout
    both = [interactive, run("fairseq-generate", *options, *lines).stdout]
    found = [dict(re.findall(r"^([SHP]-\d+)\t(?:-[\d.]+\t)?(.*)$", printed, re.MULTILINE)) for printed in both]
    assert [found[0][f"S-{row}"] for row in range(3)] == ["ka lumo poko", "lumo", "sen a"]
    unpredicted = 0
    for rows in found:
        for name, prompt in rows.items():
            words = prompt.split()
            if name[0] == "S" and "<unk>" not in words and (rows is found[0] or len(words) == 4):
                unpredicted += sum(lm.src_dict.index(word) >= 8 for word in words)
                assert rows[f"H{name[1:]}"].startswith(prompt)
                scores = [-float(score) for score in rows[f"P{name[1:]}"].split()[: len(words)]]
                assert scores == pytest.approx(lm.score(prompt).bits, abs=1e-4)
    assert unpredicted > 10


def test_words_that_are_not_predicted_are_read_in_training_too(word_model):
    """Also where a block begins within a line, whose source and target fairseq cuts from one buffer."""
    task = HMLSTMLanguageModel.from_pretrained(str(word_model), "checkpoint_last.pt").task
    text = torch.cat([*data_utils.load_indexed_dataset(str(word_model / "bin" / "train"), task.dictionary)])
    task.load_dataset("train")
    blocks = [task.dataset("train")[index] for index in range(len(task.dataset("train")))]
    source, target = (torch.cat([block[name] for block in blocks]) for name in ("source", "target"))
    assert torch.equal(source[1:], text[:-1])
    assert torch.equal(target, output_symbols(text, task.target_dictionary)) and not torch.equal(target, text)


def test_prompts_of_a_split_are_what_its_rows_read(word_model):
    """All but the last symbol of a row; with --add-bos-token both begin with <s>."""
    task = HMLSTMLanguageModel.from_pretrained(str(word_model), "checkpoint_last.pt").task
    bos, pad, eos, unk = (getattr(task.source_dictionary, name)() for name in ("bos", "pad", "eos", "unk"))
    source = torch.tensor([[eos, 9, 5, 8], [eos, 8, pad, pad]])
    target = torch.tensor([[unk, 5, unk, unk], [unk, 4, pad, pad]])
    expected = torch.tensor([[9, 5, 8, unk], [8, 4, pad, pad]])
    assert torch.equal(task._as_read({"net_input": {"src_tokens": source}, "target": target}), expected)
    source, target, expected = (torch.nn.functional.pad(rows, (1, 0), value=bos) for rows in (source, target, expected))
    assert torch.equal(task._as_read({"net_input": {"src_tokens": source}, "target": target}), expected)
