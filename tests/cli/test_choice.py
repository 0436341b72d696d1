"""What the command `train` chooses for a folder."""

import shutil

import numpy as np
import pytest
from command_results import value_of
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_hmrnn.cli import choice, processes
from fairseq_hmrnn.cli.choice import Text, choose, look_at
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.given import Given
from fairseq_hmrnn.tasks import HMLSTMLanguageModelingTask


def chosen(data, monkeypatch, symbols=500_000, spaces=True, given=()):
    """Arguments for a text of this size."""
    monkeypatch.setattr(choice, "look_at", lambda data: Text(symbols, spaces))
    monkeypatch.setattr(choice, "line_lengths", lambda path: np.array([symbols]))
    return choose(str(data), "save", list(given), cpu=True).arguments


@pytest.mark.parametrize(
    "symbols, sizes, batch, stateful",
    [
        (999_999, "256,256,256", "32", False),
        (1_000_000, "464,144,144", "32", True),
        (20_000_000, "512,512,512", "64", True),
    ],
)
def test_a_folder_gets_the_recipe_of_its_size(data, monkeypatch, symbols, sizes, batch, stateful):
    arguments = chosen(data, monkeypatch, symbols)
    assert value_of("--hidden-sizes", arguments) == sizes and value_of("--batch-size", arguments) == batch
    assert ("--stateful" in arguments) == stateful and "--cpu" in arguments
    assert value_of("--task", arguments) == "hmlstm_language_modeling"
    assert "--cpu" not in choose(str(data), "save", [], cpu=False).arguments


def test_boundaries_suit_the_text(data, monkeypatch):
    found = {spaces: chosen(data, monkeypatch, spaces=spaces) for spaces in (True, False, None)}
    assert value_of("--boundary-rates", found[True]) == "steps:.2,steps:.05"  # a small text: as in the recipe
    assert value_of("--boundary-regularizers", found[True]) is None
    sentences = chosen(data, monkeypatch, symbols=5_000_000)
    assert value_of("--boundary-rates", sentences) == "steps:.18,steps:.0085"
    assert "unforeseen" in value_of("--boundary-regularizers", sentences)
    assert value_of("--boundary-regularizers", found[False]) == "rate+lexicon,rate"
    larger = chosen(data, monkeypatch, symbols=5_000_000, spaces=False)
    assert [value_of("--boundary-delay", each) for each in (found[False], larger, found[True])] == [None, "2", None]
    assert value_of("--boundary-rates", found[False]) == "auto,steps:.05"
    hidden = [value_of("--detector-hidden", each) for each in (found[False], larger, found[True], sentences)]
    assert hidden == ["32", "32", None, None]
    own = chosen(data, monkeypatch, spaces=False, given=["--boundary-regularizers", "rate+uncertainty,rate"])
    assert value_of("--boundary-delay", own) is None  # it was chosen for lexicon
    assert value_of("--boundary-regularizers", found[None]) is None  # words: as in the recipe


@pytest.mark.parametrize(
    "given, units",
    [
        ("--boundary-regularizers rate+uncertainty,rate", None),
        ("--boundary-regularizers=rate+lexicon=.5,none", "32"),
        ("--boundary-regularizers rate,rate+lexicon", None),
        ("--hidden-sizes 9,9", None),
        ("--hidden-sizes 9,9 --boundary-rates .2 --boundary-regularizers lexicon", "32"),
        ("--criterion cross_entropy", None),
        ("--arch hmlstm_lm_ptb --boundary-regularizers rate+lexicon,rate", None),
        ("--boundary-regularizers rate+lexicon,rate --detector-hidden 7", "7"),
    ],
)
def test_detectors_get_a_hidden_layer_where_a_lexicon_teaches_layer_1(data, monkeypatch, given, units):
    """In a text without spaces, whoever chose the regularisers."""
    arguments = chosen(data, monkeypatch, spaces=False, given=given.split())
    assert value_of("--detector-hidden", arguments) == units
    assert value_of("--detector-hidden", chosen(data, monkeypatch, given=given.split())) in (None, "7")


def test_what_the_user_gives_wins_and_nothing_contradicts_it(data, monkeypatch):
    arguments = chosen(data, monkeypatch, given=["--lr", "0.1", "--max-update=7", "--hidden-sizes", "9,9"])
    assert arguments[-5:] == ["--lr", "0.1", "--max-update=7", "--hidden-sizes", "9,9"]
    assert arguments.count("--lr") == 1 and not {"--max-epoch", "--boundary-rates"} & set(arguments)
    arguments = chosen(data, monkeypatch, given=["--arch", "hmlstm_lm_ptb"])
    assert not {"--hidden-sizes", "--embed-dim", "--boundary-rates"} & set(arguments[:-2])
    arguments = chosen(data, monkeypatch, given=["--criterion", "cross_entropy"])
    assert not {"--boundary-rates", "--boundary-regularizers", "--boundary-weight"} & set(arguments)


@pytest.mark.parametrize("updates, warmup", [("30", "3"), ("7", "0"), ("5000", "50")])
def test_the_learning_rate_falls_however_few_updates_there_are(data, monkeypatch, updates, warmup):
    arguments = chosen(data, monkeypatch, given=["--max-update", updates])
    assert value_of("--warmup-updates", arguments) == warmup and value_of("--total-num-update", arguments) == updates


def length_and_schedule(arguments):
    """How the learning rate falls, until when, and when training ends."""
    names = ("--lr-scheduler", "--total-num-update", "--max-update", "--max-epoch")
    return tuple(value_of(name, arguments) for name in names)


@pytest.mark.parametrize(
    "symbols, given, expected",
    [
        (32_000, [], ("polynomial_decay", "1000", "1000", None)),  # ten updates an epoch: enough of them
        (2_000_000, [], ("polynomial_decay", "1875", "1875", None)),  # three epochs
        (2_000_000, ["--batch-size", "16"], ("polynomial_decay", "3750", "3750", None)),
        (2_000_000, ["--max-update", "70"], ("polynomial_decay", "70", "70", None)),
        (2_000_000, ["--max-epoch", "2"], ("polynomial_decay", "1250", None, "2")),
        (2_000_000, ["--update-freq", "3"], ("polynomial_decay", "1045", "1045", None)),  # five epochs of 209
        (2_000_000, ["--max-epoch", "2", "--max-update", "70"], ("polynomial_decay", "70", "70", "2")),
        (2_000_000, ["--max-epoch", "2", "--max-update", "0"], ("polynomial_decay", "1250", "0", "2")),
        (2_000_000, ["--max-epoch", "0"], ("exact_reduce_lr_on_plateau", None, None, "0")),
        (2_000_000, ["--lr-patience", "3"], ("exact_reduce_lr_on_plateau", None, "1875", None)),
        (2_000_000, ["--lr-scheduler", "fixed"], ("fixed", None, "1875", None)),
        (20_000_000, [], ("exact_reduce_lr_on_plateau", None, None, "200")),
    ],
)
def test_the_learning_rate_falls_to_zero_where_the_end_is_known(data, monkeypatch, symbols, given, expected):
    arguments = chosen(data, monkeypatch, symbols, given=given)
    assert length_and_schedule(arguments) == expected
    assert ("--lr-patience" in arguments) == (expected[0] == "exact_reduce_lr_on_plateau")
    assert value_of("--lr", arguments) == ("0.004" if expected[0] == "polynomial_decay" else "0.002")
    # A rate that begins at zero would end training at once.
    assert value_of("--stop-min-lr", arguments) == ("1e-06" if expected[0].startswith("exact") else None)


def test_several_gpus_make_fewer_updates_an_epoch(data, monkeypatch):
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    chosen(data, monkeypatch, 4_000_000)  # as if there were that many symbols, from here on
    updates = [
        value_of("--max-update", choose(str(data), "save", given, cpu=False).arguments) for given in ([], ["--cpu"])
    ]
    assert updates == ["1875", "3750"]


def test_texts_are_looked_at(data, tmp_path):
    characters = (data.parent / "train.txt").read_bytes().decode()
    assert look_at(str(data)) == Text(len(characters), True)
    shutil.copytree(str(data), str(tmp_path / "unspaced"))
    dictionary = Dictionary.load(str(data / "dict.txt"))
    dictionary.count = [count // 50 for count in dictionary.count]  # as of a shorter text
    dictionary.save(str(tmp_path / "unspaced" / "dict.txt"))
    assert look_at(str(tmp_path / "unspaced")).spaces is True
    dictionary.count[dictionary.index("\u2581")] = 1
    dictionary.save(str(tmp_path / "unspaced" / "dict.txt"))
    assert look_at(str(tmp_path / "unspaced")).spaces is False
    dictionary.add_symbol("word")
    dictionary.save(str(tmp_path / "unspaced" / "dict.txt"))
    assert look_at(str(tmp_path / "unspaced")).spaces is None
    with pytest.raises(UserError, match="prepare a text first: fairseq-hmrnn prepare text"):
        look_at(str(tmp_path))
    for language in ("de", "en"):  # as fairseq-preprocess alone writes them
        (tmp_path / f"dict.{language}.txt").write_text("a 1\n")
    with pytest.raises(UserError, match="has two languages, .* or train by fairseq-train --task translation$"):
        look_at(str(tmp_path))


def test_an_alias_of_fairseqs_is_the_option_that_it_stands_for(data, monkeypatch):
    """A quarter of the usual batch makes four times as many updates."""
    usual, small = (chosen(data, monkeypatch, given=given) for given in ([], ["--max-sentences", "8"]))
    assert value_of("--batch-size", small) == "8" and "--batch-size" not in small
    assert int(value_of("--max-update", small)) > 3 * int(value_of("--max-update", usual))


@pytest.mark.parametrize("most, windows", [(100, 1), (450, 4), (10**6, 32)])
def test_max_tokens_make_batches_smaller(data, monkeypatch, most, windows):
    given = ["--tokens-per-sample", "100"]
    limited, small = (
        chosen(data, monkeypatch, given=[*given, *more])
        for more in (["--max-tokens", str(most)], ["--batch-size", str(windows)])
    )
    updates, expected = (int(value_of("--max-update", arguments)) for arguments in (limited, small))
    assert updates == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "given",
    ["", "--max-tokens 95", "--sample-break-mode eos", "--sample-break-mode complete --max-tokens 95", "--stateful"]
    + ["--max-tokens 95 --stateful --window-jitter .2"],
)
def test_updates_are_counted_as_fairseq_makes_batches(data, given):
    """So that the learning rate falls to zero at the end, and not before."""
    lengths = ["--tokens-per-sample", "20", "--max-epoch", "1"]
    arguments = choose(str(data), "save", [*lengths, *given.split()], cpu=True).arguments
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = HMLSTMLanguageModelingTask.setup_task(cfg.task)
    task.load_dataset("train")
    limits = {"max_tokens": cfg.dataset.max_tokens, "max_sentences": cfg.dataset.batch_size}
    made = len(task.get_batch_iterator(task.dataset("train"), **limits).next_epoch_itr(shuffle=False))
    found = int(value_of("--total-num-update", arguments))
    assert found == made if "jitter" not in given else abs(found - made) < 0.1 * made


@pytest.mark.parametrize(
    "given, told",
    [("--hidden-sizes 9,9", True), ("--arch hmlstm_lm_ptb", True), ("--hidden-sizes 9,9,9", False), ("", False)]
    + [("--top-boundary", True)]
    + [("--hidden-sizes 9,9 --boundary-rates .2", False), ("--criterion cross_entropy --arch hmlstm_lm_ptb", False)],
)
def test_a_model_without_the_chosen_regularizers_is_told_of(data, monkeypatch, given, told):
    monkeypatch.setattr(choice, "look_at", lambda data: Text(500_000, True))
    arguments, reason = choose(str(data), "save", given.split(), cpu=True)
    assert ("without its boundary regularisers, which are for other layers" in reason) is told
    assert not told or value_of("--boundary-rates", arguments) is None


def test_what_no_other_criterion_logs_chooses_no_checkpoint(data, monkeypatch):
    own = "boundary_regularized_cross_entropy"
    given = {None: [], own: ["--criterion", own], "cross_entropy": ["--criterion", "cross_entropy"]}
    found = [value_of("--best-checkpoint-metric", chosen(data, monkeypatch, given=each)) for each in given.values()]
    assert found == ["bpc", "bpc", None]


def test_a_dictionary_that_is_not_utf8_is_named(data, tmp_path):
    shutil.copytree(str(data), str(tmp_path / "bin"))
    (tmp_path / "bin" / "dict.txt").write_bytes(b"\xe4 3\n")
    with pytest.raises(ValueError, match="bin/dict.txt is not a fairseq dictionary .*utf-8"):
        look_at(str(tmp_path / "bin"))


@pytest.mark.parametrize("symbols", [500_000, 5_000_000, 50_000_000])
def test_a_class_that_is_chosen_anyway_changes_nothing(data, monkeypatch, symbols):
    """Its options would be lost otherwise, such as the length of a window, by which updates are counted."""
    expected, options = chosen(data, monkeypatch, symbols), ("--task", "--criterion", "--optimizer")
    for option in options:
        given = [option, value_of(option, expected)]
        found = chosen(data, monkeypatch, symbols, given=given)
        assert found[-2:] == given and sorted(found) == sorted(expected)
    other = chosen(data, monkeypatch, symbols, given=["--task", "language_modeling"])
    assert value_of("--tokens-per-sample", other) is None and "--stateful" not in other


@pytest.mark.parametrize("languages", [("tok.de", "tok.en"), ("zh-CN", "en")])
def test_languages_that_fairseq_could_not_tell_are_given(languages, tmp_path):
    source, target = languages
    sides = [str(tmp_path / f"train.{source}-{target}.{language}") for language in languages]
    for language in languages:
        (tmp_path / f"dict.{language}.txt").touch()
    assert choice._languages(str(tmp_path), sides, Given([])) == {"--source-lang": source, "--target-lang": target}
