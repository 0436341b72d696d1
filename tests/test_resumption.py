"""Training that is started again without `--stateful` reads what an unbroken one reads, and knows when it is over."""

import re
from types import SimpleNamespace

import pytest
import torch
from command_results import checkpoint
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.configs import CheckpointConfig
from running import ROOT, rank_options, run, run_groups
from small_training import TASK, TRAIN

from fairseq_hmrnn.criterions import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.modules import HMLSTM

UPDATES = 36  # three epochs of 12 updates


def assert_same(one, other):
    """Weights, optimizer and position."""
    one, other = checkpoint(one), checkpoint(other)
    assert one["extra_state"]["train_iterator"] == other["extra_state"]["train_iterator"]
    assert one["optimizer_history"][-1]["num_updates"] == other["optimizer_history"][-1]["num_updates"]
    differing = [name for name, weight in one["model"].items() if not torch.equal(weight, other["model"][name])]
    assert not differing
    moments, others = (state["last_optimizer_state"]["state"] for state in (one, other))
    assert all(torch.equal(moments[key]["exp_avg"], others[key]["exp_avg"]) for key in moments) and moments


def trainings(options, log, *runs):
    """Groups for run_groups, one after the other: each of `runs` is (folder, further options)."""
    return [[("fairseq-train", [*options, *more, "--save-dir", folder], log)] for folder, more in runs]


@pytest.mark.slow
def test_batches_are_those_of_an_unbroken_training_whatever_the_epoch(data, tmp_path):
    options, log = [data, *TASK, *TRAIN, "--max-update", UPDATES, "--save-interval-updates", 2], tmp_path / "log"
    options += ["--disable-validation", "--dropout-growth-updates", 30]
    whole, parts, killed = tmp_path / "whole", tmp_path / "parts", tmp_path / "killed"
    stops = [(parts, ["--max-update", stop]) for stop in (15, 26)] + [(parts, ["--max-epoch", 2]), (parts, [])]
    groups = trainings(options, log, (whole, []), *stops, *[(killed, [])] * 4)
    # Killed in the middle of the first epoch, beyond its end, and in the second or third, which begins meanwhile.
    assert run_groups(groups, kill_after=[0] * 5 + [7, 9, 8, 0]) == 3
    assert checkpoint(whole)["extra_state"]["train_iterator"]["epoch"] == 4
    assert_same(whole, parts)
    assert_same(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("listening", ["uncertainty", "lexicon"])
def test_a_rate_that_is_found_goes_on(data, tmp_path, listening):
    """Its memory and the lexicon are in no weights. Two processes have one rate, the first one's, whatever it was found
    by: they train with a lexicon, which they have one of too."""
    options = [data, *TASK, *TRAIN, "--disable-validation", "--no-epoch-checkpoints", "--max-update", 106]
    options += ["--boundary-rates", "auto,.1", "--boundary-regularizers", f"rate+{listening},rate"]
    whole, parts, both, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "both", tmp_path / "log"
    stops = [(parts, ["--max-update", stop]) for stop in (97, 103)] + [(parts, [])]
    groups, trained = trainings(options, tmp_path / "whole.log", (whole, []), *stops), {whole: tmp_path / "whole.log"}
    if listening == "lexicon":
        groups.append(
            [("fairseq-train", [*options, *rank, "--save-dir", both], log) for rank in rank_options(tmp_path)]
        )
        trained[both] = log
    run_groups(groups)
    assert_same(whole, parts)
    for folder, said in trained.items():
        rate = checkpoint(folder)["extra_state"]["criterion"]["rate"]
        targets = re.findall(r"z1_target=([\d.]+)", said.read_text())
        assert rate != 0.25 and targets[:100] == ["0.25"] * 100
        assert {float(target) for target in targets[100:106]} == {round(rate, 3)}
        assert ("lexicon" in checkpoint(folder)["extra_state"]["criterion"]) == (listening == "lexicon")


def test_a_training_that_has_ended_makes_no_further_update(data, tmp_path):
    options, folder = [data, *TASK, *TRAIN], tmp_path / "save"
    limits = [9, 9, 5, 11]
    logs = [tmp_path / f"log{number}" for number in range(4)]
    run_groups([trainings(options, log, (folder, ["--max-update", limit]))[0] for log, limit in zip(logs, limits)])
    for log, limit in zip(logs[1:3], limits[1:3]):
        assert f"training has already ended: 9 updates of --max-update {limit} were made" in log.read_text()
        assert "train_inner" not in log.read_text() and "Saved checkpoint" not in log.read_text()
    assert re.findall(r"train_inner.*num_updates=(\d+)", logs[3].read_text()) == ["10", "11"]


def test_a_checkpoint_that_does_not_fit_is_one_line(data, tmp_path):
    """What differs is named, in a training that goes on and in one that starts from another's weights."""
    save, other = tmp_path / "save", tmp_path / "other"
    first = ("fairseq-train", [data, *TASK, *TRAIN, "--max-update", 2, "--save-dir", save], tmp_path / "first.log")
    (tmp_path / "text").write_text("xyz uvw\n" * 60)
    prepare = ("fairseq-hmrnn", ["prepare", "text", tmp_path / "text", "--dest", other], tmp_path / "prepare.log")
    run_groups([[first, prepare]])
    go_on, start = (
        [option, save / "checkpoint_last.pt", "--max-update", 4]
        for option in ("--restore-file", "--finetune-from-model")
    )
    advice = "; give those that it was trained with, or begin anew, in another --save-dir"
    misfits = {
        rf"its decoder\S+\.2 is of \[33, 8\], not \[37, 9\]{advice}": [data, *go_on, "--hidden-sizes", "16,12,9"],
        rf"its decoder\S+gain_recurrent\.0 has no place{advice}": [data, *go_on, "--normalization", "none"],
        rf"it has no decoder\S+detector\S+{advice}": [data, *go_on, "--detector-hidden", 4],
        r".*please reset the optimizer \(--reset-optimizer\).*": [data, *go_on, "--optimizer", "sgd"],
        ".*was trained with another dictionary than the .*, or begin anew, in another --save-dir": [other, *go_on],
        r"its decoder\S+ is of \[3, 36\], not \[2, 28\]; .*, or begin anew, without --finetune-from-model": [
            data, *start, "--boundary-rates", ".3", "--hidden-sizes", "16,12"
        ],
    }  # fmt: skip
    logs = [tmp_path / f"log{number}" for number in range(len(misfits))]
    runs = [  # with a folder each, for fairseq tries at first whether it can write there
        ("fairseq-train", [given[0], *TASK, *TRAIN, *given[1:], "--save-dir", f"{log}.save"], log)
        for given, log in zip(misfits.values(), logs)
    ]
    run_groups([runs], refused=True)
    for difference, log in zip(misfits, logs):
        line = log.read_text().splitlines()[-1]
        assert re.fullmatch(rf"fairseq-train: error: {save}/checkpoint_last.pt does not fit\b[^:]*: {difference}", line)
        assert "Traceback" not in log.read_text()


def test_a_damaged_checkpoint_is_not_called_unfit(data, tmp_path):
    (tmp_path / "checkpoint_last.pt").write_text("no checkpoint")
    log = run("fairseq-train", data, *TASK, *TRAIN, "--save-dir", tmp_path, check=False).stdout
    line = log.splitlines()[-1]
    assert line.endswith("use another checkpoint, such as the one before it")
    assert "does not fit" not in line and "Traceback" not in log


def test_patience_goes_on_counting(data, tmp_path):
    stuck = ["--lr", 0, "--patience", 3, "--max-epoch", 9]  # no epoch is better than the first
    options, folder = [data, *TASK, *TRAIN, *stuck], tmp_path / "save"
    runs = [["--max-epoch", 2], ["--max-epoch", 3], [], [], ["--patience", 4]]
    logs = [tmp_path / f"log{number}" for number in range(5)]
    run_groups([trainings(options, log, (folder, more))[0] for log, more in zip(logs, runs)])
    ends = [re.findall(r"end of epoch (\d+)", log.read_text()) for log in logs]
    assert ends == [["1", "2"], ["3"], ["4"], [], ["5"]]
    assert "validation had not improved for 3 times, --patience 3" in logs[3].read_text()
    assert checkpoint(folder)["extra_state"]["early_stopping"]["num_runs"] == 4


@pytest.mark.slow
def test_translation_reads_the_same_batches_too(tmp_path):
    lines = [f"{'a b c d'.split()[n % 4]} {'e f g'.split()[n % 3]} " + "h " * (n % 5) for n in range(120)]
    for name, some in (("train", lines), ("valid", lines[:8])):
        (tmp_path / f"{name}.de").write_text("\n".join(some) + "\n")
        (tmp_path / f"{name}.en").write_text("\n".join(line[::-1].strip() for line in some) + "\n")
    prefixes = [f"--{name}pref={tmp_path / name}" for name in ("train", "valid")]
    prepare = ["--source-lang", "de", "--target-lang", "en", *prefixes, "--destdir", tmp_path / "bin"]
    options = [tmp_path / "bin", "--user-dir", ROOT / "fairseq_hmrnn", "--task", "translation", "--arch", "hmlstm_tiny"]
    options += ["--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".4", "--optimizer", "adam"]
    options += ["--lr", 0.01, "--batch-size", 8, "--required-batch-size-multiple", 1, "--cpu", "--num-workers", 0]
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    stop = ["--max-update", 20, "--disable-validation"]
    groups = trainings([*options, "--max-update", 40], log, (whole, []), (parts, stop), (parts, []))
    run_groups([[("fairseq-preprocess", prepare, log)], *groups])
    assert_same(whole, parts)


def saved(folder, **extra_state):
    """A checkpoint, as far as fairseq looks at it."""
    history = {"criterion_name": "C", "optimizer_name": "O", "lr_scheduler_state": {}, "num_updates": 3}
    extra_state.update(train_iterator={"epoch": 1, "iterations_in_epoch": 1}, val_loss=1)
    state = {"model": {"w": torch.ones(2)}, "args": None, "cfg": {"model": {}}, "task_state": {}}
    torch.save({**state, "optimizer_history": [history], "extra_state": extra_state}, folder / "saved.pt")
    return folder / "saved.pt"


def loaded(path, store_ema=False, criterion=None, model=None, **dataset):
    """What fairseq's `load_checkpoint` returns, before training, to a trainer of stand-ins for model and task."""
    trainer = SimpleNamespace(checkpoint_suffix="", task=SimpleNamespace(), optimizer=None, save_checkpoint=print)
    cfg = CheckpointConfig(restore_file=str(path), reset_dataloader=True)
    optimization = SimpleNamespace(max_update=0, stop_time_hours=0)
    options = {"checkpoint": cfg, "optimization": optimization, "dataset": SimpleNamespace(**dataset)}
    trainer.cfg = SimpleNamespace(ema=SimpleNamespace(store_ema=store_ema), **options)
    trainer.task.get_batch_iterator = trainer.get_train_iterator = lambda **_: SimpleNamespace(epoch=1)
    trainer.get_model, trainer.get_criterion = lambda: model, lambda: criterion
    trainer.lr_step, trainer.get_num_updates = float, lambda: 3

    def load_checkpoint(path, *args, **kwargs):
        trainer.loaded = checkpoint_utils.load_checkpoint_to_cpu(path, load_on_all_ranks=False)
        trainer.average = trainer.loaded["extra_state"].get("ema")
        return trainer.loaded["extra_state"]

    trainer.load_checkpoint = load_checkpoint
    return trainer, checkpoint_utils.load_checkpoint(cfg, trainer)[0]


@pytest.mark.parametrize("no_save", [False, True])
def test_every_process_gathers_before_the_first_one_saves(tmp_path, monkeypatch, no_save):
    done = []
    task = SimpleNamespace(gather_carried=lambda: done.append("gather"))
    trainer = SimpleNamespace(task=task, consolidate_optimizer=lambda: done.append("save"), data_parallel_rank=1)
    trainer.should_save_checkpoint_on_current_rank = trainer.always_call_state_dict_during_save_checkpoint = False
    monkeypatch.setattr(checkpoint_utils.save_checkpoint, "best", 3.5, raising=False)
    cfg = CheckpointConfig(save_dir=str(tmp_path), no_save=no_save)
    checkpoint_utils.save_checkpoint(cfg, trainer, None, 2.5)
    assert done == ([] if no_save else ["gather", "save"])
    assert checkpoint_utils.save_checkpoint.best == 2.5  # where fairseq keeps it


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("store_ema", [False, True])
def test_no_second_copy_of_the_weights_outlives_their_loading(tmp_path, averaged, store_ema):
    """fairseq-train keeps what it loaded beside the weights until it ends."""
    average = {"ema": {"w": torch.zeros(2)}, "ema_fp32_params": {"w": torch.zeros(2)}} if averaged else {}
    trainer, extra_state = loaded(saved(tmp_path, **average), store_ema, model=HMLSTM(1, [1]))
    if store_ema:  # it begins with the weights where there is none
        assert trainer.average["w"].tolist() == ([0, 0] if averaged else [1, 1])
    assert "ema" not in extra_state and "ema_fp32_params" not in extra_state and extra_state["val_loss"] == 1


def test_averages_of_other_models_are_left_to_fairseq(tmp_path):
    average = {"ema": {"w": torch.zeros(2)}}
    assert loaded(saved(tmp_path, **average), store_ema=True, model=torch.nn.Linear(1, 1))[1]["ema"] is not None
    assert loaded(saved(tmp_path), store_ema=True, model=torch.nn.Linear(1, 1))[0].average is None


def test_a_criterion_goes_on_with_models_and_tasks_of_others(tmp_path):
    dictionary = Dictionary()
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    criterion = BoundaryRegularizedCrossEntropy(task, False, "auto,.05", "uncertainty")
    loaded(saved(tmp_path, criterion={"rate": 0.4, "of_all_steps": False}), criterion=criterion)
    assert criterion.targets.estimator.rate == 0.4
    options = {"update_ordered_indices_seed": True, "update_epoch_batch_itr": False}
    with pytest.raises(ValueError, match="give --update-epoch-batch-itr true too, or leave it out"):
        loaded(saved(tmp_path), criterion=criterion, **options)
    loaded(saved(tmp_path), criterion=criterion, **{**options, "update_epoch_batch_itr": True})


@pytest.mark.parametrize("epoch", [1, 3])
def test_another_order_of_epochs_is_another_order_of_batches(epoch):
    """keep_batches leaves alone what fairseq makes anew in every epoch."""
    from fairseq_hmrnn.resumption import keep_batches

    class Task:
        dataset_to_epoch_iter = {}

        def can_reuse_epoch_itr(self, dataset):
            return True

    asked = []

    class Made:
        def set_epoch(self, epoch):
            self.epoch = epoch

    def make(dataset, epoch, **options):
        asked.append(epoch)
        return Made()

    made = keep_batches(Task(), make, Made(), epoch=epoch, update_epoch_batch_itr=False)
    assert asked == [1] and made.epoch == epoch
    keep_batches(Task(), make, Made(), epoch=epoch, update_epoch_batch_itr=True)
    assert asked == [1, epoch]
