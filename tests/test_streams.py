"""`--stateful` through the real commands: exact resume, processes, evaluation, and what stops with an error."""

import random
import re
import shutil

import pytest
import torch
from command_results import base2_losses, checkpoint, losses
from running import rank_options, run, run_groups
from small_training import SMALL, TASK

STATEFUL = [*TASK, "--stateful", "--tokens-per-sample", 30, "--cpu", "--num-workers", 0]
TRAIN = [*SMALL, "--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".3,.1", "--seed", 1]
TRAIN += ["--optimizer", "adam", "--lr", 0.01, "--clip-norm", 1, "--log-format", "simple", "--log-interval", 1]
TRAIN += [*STATEFUL, "--best-checkpoint-metric", "bpc", "--no-epoch-checkpoints"]
NO_DROPOUT = ["--dropout-input", 0, "--dropout-recurrent", 0, "--dropout-output", 0]


def tensors(value, name=""):
    """All tensors inside a checkpoint's dicts and lists, by their path."""
    if torch.is_tensor(value):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {path: tensor for key, inner in items for path, tensor in tensors(inner, f"{name}/{key}").items()}


def exactly_resumable(folder):
    """All that must be equal after a resumed run: weights, optimizer, carried state, position and learning rate; the
    criterion's weights, if it has any."""
    state = checkpoint(folder)
    kept = {key: state[key] for key in ("model", "criterion", "last_optimizer_state")}
    kept["iterator"] = state["extra_state"]["train_iterator"]
    position = {key: value for key, value in kept["iterator"].items() if key != "streams"}
    lr = [group["lr"] for group in state["last_optimizer_state"]["param_groups"]]
    return tensors(kept), (position, lr, state["optimizer_history"][-1]["num_updates"])


def assert_same(one, other):
    (tensors_one, rest_one), (tensors_other, rest_other) = exactly_resumable(one), exactly_resumable(other)
    assert rest_one == rest_other and tensors_one.keys() == tensors_other.keys()
    assert any("carried" in name for name in tensors_one)
    differing = [name for name in tensors_one if not torch.equal(tensors_one[name], tensors_other[name])]
    assert not differing


def test_resuming_within_an_epoch_and_at_its_end_is_exact(data, tmp_path):
    # The threshold lets no later epoch count as better than the first, so that the learning rate falls at the end of
    # the second: just where training stops.
    options = [data, *TRAIN, "--batch-size", 8, "--update-freq", 2, "--window-jitter", 0.5, "--state-reset-prob", 0.2]
    options += ["--lr-scheduler", "exact_reduce_lr_on_plateau", "--lr-shrink", 0.5, "--lr-threshold", 0.9]
    options += ["--boundary-regularizers", "rate+bidirectional"]  # so that the criterion learns too
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stops = [["--max-epoch", 2], ["--max-update", 15], ["--max-update", 30]]
    jobs = [[("fairseq-train", [*options, "--max-update", 30, "--save-dir", whole], tmp_path / "whole.log")]]
    jobs += [[("fairseq-train", [*options, *stop, "--save-dir", parts], tmp_path / "parts.log")] for stop in stops]
    run_groups(jobs)
    assert_same(whole, parts)
    assert losses(tmp_path / "whole.log") == losses(tmp_path / "parts.log")
    assert exactly_resumable(whole)[1][1][0] < 0.01 and checkpoint(whole)["criterion"]


def test_processes_and_validation_change_nothing(data, tmp_path):
    # Without the penalty on rates, which is not the same over two halves of a batch as over the whole of it.
    options = [data, *TRAIN, *NO_DROPOUT, "--boundary-weight", 0, "--state-reset-prob", 0.1]
    quiet = ["--max-update", 20, "--disable-validation"]
    one = ["--batch-size", 16, "--distributed-world-size", 1]  # on the CPU, where several processes always are

    def job(name, *more, log=None):
        return ("fairseq-train", [*options, *more, "--save-dir", tmp_path / name], tmp_path / (log or f"{name}.log"))

    def two(name, *more):
        return [job(name, "--batch-size", 8, *distributed, *more) for distributed in rank_options(tmp_path)]

    def four(name, *more):
        return [job(name, "--batch-size", 4, *distributed, *more) for distributed in rank_options(tmp_path, 4)]

    run_groups([[job("one", *one, *quiet), job("validated", *one, "--max-update", 20, "--save-interval-updates", 3)]])
    assert_same(tmp_path / "one", tmp_path / "validated")

    run_groups([two("two", *quiet), two("parts", "--max-update", 10, "--disable-validation")])
    shutil.copytree(tmp_path / "parts", tmp_path / "joined")
    to_the_end_of_an_epoch = ["--max-epoch", 2, "--disable-validation"]
    run_groups([two("parts", *to_the_end_of_an_epoch), two("parts", *quiet), [job("joined", *one, *quiet)]])
    run_groups([four("four", *quiet)])
    assert losses(tmp_path / "four.log") == pytest.approx(losses(tmp_path / "one.log"), abs=2e-3)
    assert_same(tmp_path / "two", tmp_path / "parts")
    for name in ("two", "joined", "four"):
        alone, others = (tensors(checkpoint(tmp_path / folder)["model"]) for folder in ("one", name))
        for key in alone:
            torch.testing.assert_close(others[key], alone[key], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def stateful(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stateful")
    options = [data, *TRAIN, "--batch-size", 8, "--max-update", 15, "--save-dir", folder]
    run("fairseq-train", *options)
    return folder


def test_eval_lm_is_one_unbroken_pass_whatever_the_window(data, stateful, tmp_path):
    def scored(*options):
        options = [data, *TASK, "--path", stateful / "checkpoint_last.pt", "--gen-subset", "test", "--cpu", *options]
        return [("fairseq-eval-lm", options, tmp_path / "log")]

    jobs = [scored("--stateful", "--tokens-per-sample", window, "--batch-size", 9) for window in (7, 50, 1000)]
    jobs += [scored("--tokens-per-sample", 100000), scored("--tokens-per-sample", 7)]
    validate = [data, *TASK, "--path", stateful / "checkpoint_last.pt", "--cpu"]  # stateful, as it was trained
    jobs += [[("fairseq-validate", [*validate, "--valid-subset", "test", "--batch-size", 1], tmp_path / "validated")]]
    run_groups(jobs)
    log = (tmp_path / "log").read_text()
    *carried, unbroken, cut = base2_losses(log)
    assert carried == [unbroken] * 3 and cut > unbroken + 0.005
    counts = {int(count.replace(",", "")) for count in re.findall(r"Evaluated ([0-9,]+) tokens", log)}
    assert counts == {len((data.parent / "test.txt").read_bytes().decode())}
    validated = re.findall(r"bpc ([0-9.]+)", (tmp_path / "validated").read_text())
    assert float(validated[-1]) == pytest.approx(unbroken, abs=1e-3)


def test_windows_of_a_text_are_not_continued(data, stateful):
    options = [data, *STATEFUL, "--path", stateful / "checkpoint_last.pt", "--batch-size", 2, "--prefix-size", 5]
    refused = run("fairseq-generate", *options, check=False)
    line = refused.stdout.splitlines()[-1]
    assert refused.returncode == 1 and "Traceback" not in refused.stdout
    assert line == "fairseq-generate: error: --stateful is for training and scoring: leave it out to generate"


def test_what_cannot_be_right_is_refused(data, stateful, tmp_path):
    """More of it, without the commands, in data/test_stream_windows.py."""
    train = [data, *TRAIN, "--max-update", 20, "--save-dir", tmp_path]
    (tmp_path / "other.txt").write_bytes((data.parent / "train.txt").read_bytes().replace(b"k", b"z"))
    run("fairseq-hmrnn", "prepare", "text", tmp_path / "other.txt", "--dest", tmp_path / "other")
    from_checkpoint = ["--batch-size", 8, "--restore-file", stateful / "checkpoint_last.pt"]
    shuffled = [option for option in train if option != "--stateful"]
    unfit = [data, *STATEFUL, "--arch", "lstm_lm", "--batch-size", 8, "--save-dir", tmp_path]
    cases = [
        ([*train, "--batch-size", 8, "--batch-size-valid", 4000], "too few for 4000 streams"),
        ([*train, "--max-tokens", 90, "--max-tokens-valid", 20], "--max-tokens 20 is less than one window"),
        ([*train, "--batch-size", 8, "--add-bos-token"], "--add-bos-token has no meaning with --stateful"),
        ([*train, "--batch-size", 8, "--valid-subset", "valid,dev"], "no dev.idx"),
        ([*train, *from_checkpoint, "--batch-size", 16], "batch size times processes 8 (now 16)"),
        ([tmp_path / "other", *train[1:], *from_checkpoint], "trained with another dictionary"),
        ([*shuffled, *from_checkpoint], "within an epoch of training with --stateful"),
        (unfit, "--stateful requires a model that carries state"),
    ]
    logs = [tmp_path / f"log{number}" for number in range(len(cases))]
    run_groups([[("fairseq-train", arguments, log)] for (arguments, _), log in zip(cases, logs)], refused=True)
    for (_, message), log in zip(cases, logs):
        assert message in log.read_text() and "train_inner" not in log.read_text()


def test_killed_and_started_again_ends_at_the_same_weights(data, tmp_path, request):
    """Some kills here; `pytest tests/test_streams.py -k killed --kills 20` does it twenty times."""
    options = [data, *TRAIN, "--batch-size", 8, "--max-update", 30, "--save-interval-updates", 2]
    options += ["--lr-scheduler", "exact_reduce_lr_on_plateau", "--lr-shrink", 0.5]
    choose, needed = random.Random(5), request.config.getoption("--kills")
    jobs, kill_after = [[("fairseq-train", [*options, "--save-dir", tmp_path / "whole"], tmp_path / "whole.log")]], [0]
    folders = [tmp_path / f"killed{number}" for number in range(-(-needed // 3))]
    for number, folder in enumerate(folders):
        kills = min(3, needed - 3 * number)
        jobs += [[("fairseq-train", [*options, "--save-dir", folder], tmp_path / "killed.log")]] * (kills + 1)
        kill_after += [choose.randint(1, 9) for _ in range(kills)] + [0]
    assert run_groups(jobs, kill_after) == needed
    for folder in folders:
        assert_same(tmp_path / "whole", folder)
