"""The real fairseq commands on a small text."""

import os
import re

import pytest
import torch
from command_results import base2_loss, lines_of, same, values, weights
from running import ROOT, run
from small_training import TASK, TRAIN
from two_processes import train_two_processes


def test_training_learns_and_logs_boundaries(trained):
    log = (trained / "log.txt").read_text(encoding="utf-8")
    bpc = values(log, "bpc")
    assert min(bpc[-3:]) < bpc[0] - 1
    for layer in (1, 2):
        assert 0 < values(log, f"z{layer}")[-1] < 1
    for layer in (1, 2, 3):
        shares = [values(log, f"{name}{layer}")[-1] for name in ("update", "copy", "flush")]
        assert sum(shares) == pytest.approx(1, abs=0.003)
    assert values(log, "copy1")[-1] == 0 and values(log, "flush3")[-1] == 0


def test_validate_and_eval_lm_count_every_character_and_agree(data, trained):
    checkpoint = trained / "checkpoint_last.pt"
    options = ["--path", checkpoint, "--batch-size", 7, "--cpu"]
    validated = run("fairseq-validate", data, *TASK, *options, "--valid-subset", "valid").stdout
    evaluated = run("fairseq-eval-lm", data, *TASK, *options, "--gen-subset", "valid", "--tokens-per-sample", 30).stdout
    characters = len((data.parent / "valid.txt").read_bytes().decode())
    assert int(re.search(r"Evaluated ([0-9,]+) tokens", evaluated).group(1).replace(",", "")) == characters
    assert base2_loss(evaluated) == pytest.approx(values(validated, "bpc")[-1], abs=2e-3)
    trained_loss = values((trained / "log.txt").read_text(encoding="utf-8"), "bpc")
    assert any(base2_loss(evaluated) == pytest.approx(loss, abs=2e-3) for loss in trained_loss)


def test_generate_continues_the_test_text(data, trained):
    options = ["--path", trained / "checkpoint_last.pt", "--gen-subset", "test", "--tokens-per-sample", 30]
    options += ["--batch-size", 5, "--prefix-size", 10, "--max-len-b", 25, "--sampling", "--beam", 1, "--cpu"]
    first = run("fairseq-generate", data, *TASK, *options, "--seed", 3).stdout
    again = run("fairseq-generate", data, *TASK, *options, "--seed", 3).stdout
    assert lines_of(first, "H") == lines_of(again, "H")
    text = (data.parent / "test.txt").read_bytes().decode()
    hypotheses = [line.split("\t")[1].split() for line in lines_of(first, "H")]
    assert len(hypotheses) == -(-len(text) // 30)  # no batch was dropped
    sources = {int(n): s for n, s in re.findall(r"^H-(\d+)\t\S+\t(.*)$", first, re.MULTILINE)}
    assert sources[0].split()[:10] == [{" ": "▁", "\n": "</s>"}.get(c, c) for c in text[:10]]
    full = [symbols for symbols in hypotheses if len(symbols) == 35]
    assert len(full) >= len(hypotheses) - 1  # 10 of the text and 25 new ones; only the last block is shorter
    assert any("</s>" in symbols[10:] for symbols in full)  # samples run over line ends
    assert all("<s>" not in symbols and "<pad>" not in symbols for symbols in hypotheses)


def test_generate_without_prefix_continues_whole_blocks_whatever_the_batch(data, trained):
    options = ["--path", trained / "checkpoint_last.pt", "--gen-subset", "test", "--tokens-per-sample", 20]
    options += ["--beam", 1, "--max-len-b", 3, "--cpu"]
    outputs = [run("fairseq-generate", data, *TASK, *options, "--batch-size", size).stdout for size in (1, 4)]
    found = [dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE)) for output in outputs]
    text = (data.parent / "test.txt").read_bytes().decode()
    assert found[0] == found[1] and len(found[0]) == -(-len(text) // 20)
    symbols = [{" ": "▁", "\n": "</s>", "\t": "<U+0009>", "\u3000": "<U+3000>"}.get(c, c) for c in text]
    for number, hypothesis in found[0].items():
        block = symbols[20 * int(number) : 20 * int(number) + 20]
        assert hypothesis.split()[: len(block)] == block
        assert len(hypothesis.split()) == len(block) + 3


def test_score_reference_and_samples_that_end_with_their_line(data, trained):
    options = ["--path", trained / "checkpoint_last.pt", "--gen-subset", "test", "--tokens-per-sample", 20, "--cpu"]
    scored = run("fairseq-generate", data, *TASK, *options, "--score-reference").stdout
    hypotheses, scores = lines_of(scored, "H"), lines_of(scored, "P")
    blocks = -(-len((data.parent / "test.txt").read_bytes().decode()) // 20)
    assert len(hypotheses) == len(scores) == blocks
    for hypothesis, score in zip(hypotheses, scores):
        assert len(hypothesis.split("\t")[1].split()) == len(score.split())
    checkpoint = ["--path", trained / "checkpoint_last.pt", "--cpu", "--end-of-sample", "newline"]
    checkpoint += ["--beam", 1, "--sampling", "--seed", 1]
    ended = run("fairseq-interactive", data, *TASK, *checkpoint, "--max-len-b", 200, stdin="ka lu\n").stdout
    (hypothesis,) = lines_of(ended, "H")
    assert len(hypothesis.split("\t")[1].split()) < 205
    options += ["--end-of-sample", "newline", "--max-len-b", 100, "--beam", 1]
    output = run("fairseq-generate", data, *TASK, *options).stdout  # whole blocks, newlines inside, are prompts here
    hypotheses = [line.split("\t")[1].split() for line in lines_of(output, "H")]
    assert len(hypotheses) == blocks and any(len(symbols) > 21 for symbols in hypotheses)
    assert all("</s>" not in symbols[20:-1] for symbols in hypotheses)


def test_begin_of_sentence_symbols_and_prefixes(data, tmp_path):
    options = ["--add-bos-token", "--max-update", 2, "--disable-validation", "--save-dir", tmp_path]
    run("fairseq-train", data, *TASK, *TRAIN, *options)
    options = ["--path", tmp_path / "checkpoint_last.pt", "--gen-subset", "test", "--tokens-per-sample", 20, "--cpu"]
    options += ["--add-bos-token", "--prefix-size", 7, "--max-len-b", 8, "--beam", 2]
    output = run("fairseq-generate", data, *TASK, *options).stdout
    assert len(lines_of(output, "H")[0].split("\t")[1].split()) == 6 + 8


def test_interactive_takes_raw_prompts_and_prints_raw_text(data, trained):
    prompts = [" ka  lu", "tiri", "", "\tka"]
    options = ["--path", trained / "checkpoint_last.pt", "--max-len-b", 12, "--beam", 1, "--cpu"]
    stdin = "".join(prompt + "\n" for prompt in prompts)
    together = run("fairseq-interactive", data, *TASK, *options, "--buffer-size", 4, "--batch-size", 4, stdin=stdin)
    alone = run("fairseq-interactive", data, *TASK, *options, stdin=stdin)
    texts = dict(re.findall(r"^D-(\d+)\t\S+\t((?:.|\n)*?)\nP-", together.stdout, re.MULTILINE))
    for number, prompt in enumerate(prompts):
        assert texts[str(number)].startswith(prompt)
        assert len(texts[str(number)]) == len(prompt) + 12
    assert lines_of(together.stdout, "H") == lines_of(alone.stdout, "H")  # a batch is what each would be alone


def test_beam_search_returns_its_n_best_in_order(data, trained):
    for beam in (1, 4):
        options = ["--path", trained / "checkpoint_last.pt", "--max-len-b", 15, "--beam", beam, "--cpu"]
        output = run("fairseq-interactive", data, *TASK, *options, "--nbest", beam, stdin="ka lu\n").stdout
        found = [float(line.split("\t")[0]) for line in lines_of(output, "H")]
        assert len(found) == beam and found == sorted(found, reverse=True)


@pytest.mark.parametrize("where", ["user_dir", "elsewhere"])
def test_other_ways_to_name_the_plugin(data, tmp_path, where):
    """Elsewhere in a process that starts and ends as every user's does."""
    user_dir, command, cwd = "user_dir", ["fairseq-train"], ROOT
    if where == "elsewhere":
        (user_dir,) = run("fairseq-hmrnn", "path", cwd=tmp_path).stdout.splitlines()
        assert user_dir == str(ROOT / "fairseq_hmrnn")
        command, cwd = ["-m", "fairseq_cli.train"], tmp_path
    options = ["--user-dir", user_dir, *TASK[2:], *TRAIN, "--max-update", 2, "--save-dir", tmp_path / "out"]
    run(*command, data, *options, "--disable-validation", cwd=cwd)
    progress = weights(tmp_path / "out")["decoder.slope_progress.progress"]
    assert progress.tolist() == [0, 1]  # completed epochs, and updates as they were before the second


def test_hydra(data, tmp_path):
    config = ["--config-dir", ROOT / "fairseq_hmrnn" / "configs", "--config-name", "character_lm"]
    overrides = [f"common.user_dir={ROOT / 'fairseq_hmrnn'}", f"task.data={data}", f"checkpoint.save_dir={tmp_path}"]
    overrides += ["model.embed_dim=8", "model.hidden_sizes='12,12,12'", "model.output_dim=8", "common.cpu=true"]
    overrides += ["optimization.max_update=3", "dataset.batch_size=4", "model.slope_per_epoch=0.04"]
    run("fairseq-hydra-train", *config, *overrides, f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert weights(tmp_path)["decoder.hm_lstm.bias.2"].numel() == 49
    evaluated = run(
        "fairseq-eval-lm", data, *TASK, "--path", tmp_path / "checkpoint_last.pt", "--gen-subset", "test", "--cpu"
    )
    assert base2_loss(evaluated.stdout) > 0


def test_two_processes_end_with_equal_weights(data, tmp_path):
    options = [*TRAIN, "--boundary-regularizers", "rate+bidirectional", "--max-update", 4]
    ranks = train_two_processes(data, [*TASK[2:], *options], tmp_path)
    assert same(*ranks) and "right_to_left.lstm.bias_hh_l0" in ranks[0]


def first_error(command, *arguments):
    """All that a command prints which must fail before it trains."""
    result = run(command, *arguments, check=False)
    assert result.returncode != 0, result.stdout[-2000:]
    assert "train_inner" not in result.stdout
    return result.stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (["--boundary", "hard"], "invalid choice"),
        (["--boundary-rates", "0.2,1.5"], "boundary-rates must be numbers between 0 and 1"),
        (["--boundary-rates", "0.2"], "give one for each"),
        (["--hidden-sizes", "16,x"], "hidden-sizes must be positive integers"),
        (["--slope", "9"], "at most slope-max"),
    ],
)
def test_bad_options_stop_at_once_and_say_what_to_do(data, tmp_path, options, message):
    output = first_error("fairseq-train", data, *TASK, *TRAIN, "--max-update", 1, "--save-dir", tmp_path, *options)
    assert message in output
    assert not list(tmp_path.glob("checkpoint*.pt"))


def test_missing_data_is_named(data, trained, tmp_path):
    assert "fairseq-hmrnn prepare text" in first_error("fairseq-train", tmp_path, *TASK, *TRAIN)
    options = ["--path", trained / "checkpoint_last.pt", "--gen-subset", "tset", "--cpu"]
    output = first_error("fairseq-eval-lm", data, *TASK, *options)
    assert "no tset.idx" in output and "test, train, valid" in output


def test_a_dictionary_that_does_not_fit_the_checkpoint(data, trained, tmp_path):
    text = (data.parent / "train.txt").read_text(encoding="utf-8").replace("k", "z")
    (tmp_path / "other.txt").write_bytes(text.encode())
    run("fairseq-hmrnn", "prepare", "text", tmp_path / "other.txt", "--dest", tmp_path / "bin")
    options = ["--path", trained / "checkpoint_last.pt", "--gen-subset", "test", "--cpu"]
    assert "trained with another dictionary" in first_error("fairseq-eval-lm", tmp_path / "bin", *TASK, *options)


class Bomb:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(data, trained, tmp_path):
    state = torch.load(trained / "checkpoint_last.pt", map_location="cpu")
    state["extra_state"]["note"] = Bomb(str(tmp_path / "bombed"))
    torch.save(state, tmp_path / "bomb.pt")
    options = ["--path", tmp_path / "bomb.pt", "--gen-subset", "test", "--cpu"]
    output = first_error("fairseq-eval-lm", data, *TASK, *options)
    assert "posix.mkdir" in output and "was not loaded" in output
    assert not (tmp_path / "bombed").exists()


def test_a_criterion_that_learns_can_be_added_to_a_training(data, trained, tmp_path):
    """The checkpoint has nothing for it: its network starts untrained, the model goes on."""
    options = [*TASK, *TRAIN, "--boundary-regularizers", "rate+bidirectional,rate", "--save-dir", tmp_path]
    options += ["--restore-file", trained / "checkpoint_last.pt", "--reset-optimizer", "--max-update", 41]
    log = run("fairseq-train", data, *options, "--disable-validation").stdout
    assert "has no right-to-left network: it starts untrained" in log
    assert torch.load(tmp_path / "checkpoint_last.pt", map_location="cpu")["criterion"]
