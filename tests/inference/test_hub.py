"""The hub interface, with a checkpoint of the repository."""

import copy
import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from omegaconf import open_dict
from pairs import pairs
from running import ROOT, run

from fairseq_hmrnn.checkpoints import UnsafeCheckpointError
from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.inference.sampler import SamplingOptions
from fairseq_hmrnn.models import HMLSTMLanguageModel

TEXT = "der baum ist und das haus\n"
CHECKPOINTS = ROOT / "tests" / "checkpoints"


@pytest.fixture(scope="module")
def lm():
    return HMLSTMLanguageModel.from_pretrained(str(CHECKPOINTS / "hmlstm_lm.pt"))


def test_each_checkpoint_of_an_ensemble_is_loaded_once(tmp_path, monkeypatch):
    paths, loaded = [str(CHECKPOINTS / "hmlstm_lm.pt"), str(tmp_path / "b.pt"), str(tmp_path / "c.pt")], []
    state = checkpoint_utils.load_checkpoint_to_cpu(paths[0])
    for path in paths[1:]:
        for tensor in state["model"].values():
            if tensor.is_floating_point():
                tensor *= 0.8
        torch.save(state, path)
    load = checkpoint_utils.load_checkpoint_to_cpu
    monkeypatch.setattr(
        checkpoint_utils, "load_checkpoint_to_cpu", lambda path, *args: loaded.append(path) or load(path, *args)
    )
    ensemble = loading.load(paths)
    assert loaded == paths
    alone = [torch.tensor(loading.load([path]).score(TEXT).bits) for path in paths]
    mean = torch.stack([2**-bits for bits in alone]).mean(0)
    torch.testing.assert_close(torch.tensor(ensemble.score(TEXT).bits), -mean.log2())
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_an_ensemble_is_of_language_models():
    paths = [str(CHECKPOINTS / "hmlstm_lm.pt"), str(CHECKPOINTS / "hmlstm_lstm.pt")]
    for order in (paths, paths[::-1]):
        with pytest.raises(ValueError, match="hmlstm_lstm.pt is a translation model, not a language model"):
            loading.load(order)


def write_dictionary(folder, entries):
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"{symbol} {count}\n" for symbol, count in entries), encoding="utf-8")
    return str(folder)


@pytest.fixture
def entries():
    """Of the checkpoint's dictionary."""
    return checkpoint_utils.load_checkpoint_to_cpu(str(CHECKPOINTS / "hmlstm_lm.pt"))["task_state"]["dictionary"]


def test_a_folder_has_the_dictionary_of_every_checkpoint(lm, entries, tmp_path):
    path = str(CHECKPOINTS / "hmlstm_lm.pt")
    same, other = write_dictionary(tmp_path / "same", entries), write_dictionary(tmp_path / "other", entries[::-1])
    assert loading.load([path, path], data=same).score(TEXT).bits == pytest.approx(lm.score(TEXT).bits)
    for paths in ([path], [path, path]):
        with pytest.raises(ValueError, match=re.escape(f"{path} has another dictionary than {other}/dict.txt: give")):
            loading.load(paths, data=other)


def test_a_folder_is_the_one_that_is_seen_from_here(data, entries, tmp_path):
    """Not that of the same name seen from the checkpoint, where another dictionary may be."""
    folder = write_dictionary(tmp_path / "other", entries)
    shutil.copy(CHECKPOINTS / "hmlstm_lm.pt", folder)
    refused = run("fairseq-hmrnn", "evaluate", f"{folder}/hmlstm_lm.pt", ".", cwd=data, check=False)
    assert refused.returncode == 2 and f"has another dictionary than {data}/dict.txt" in refused.stdout


def test_a_checkpoint_without_a_dictionary_has_that_of_its_folder(lm, entries, tmp_path):
    """Wherever it stands among others."""
    first = str(CHECKPOINTS / "hmlstm_lm.pt")
    state = checkpoint_utils.load_checkpoint_to_cpu(first)
    del state["task_state"]["dictionary"]
    state["cfg"]["task"]["data"] = str(tmp_path / "none")
    same, other = write_dictionary(tmp_path / "same", entries), write_dictionary(tmp_path / "other", entries[::-1])
    for folder in (tmp_path, tmp_path / "same", tmp_path / "other"):
        torch.save(state, folder / "model.pt")
    for paths in ([first, f"{same}/model.pt"], [f"{same}/model.pt", first], [f"{same}/model.pt"] * 2):
        assert loading.load(paths).score(TEXT).bits == pytest.approx(lm.score(TEXT).bits)
    for before in (first, f"{same}/model.pt"):
        with pytest.raises(ValueError, match=re.escape(f"{other}/model.pt has another dictionary than {before}: ")):
            loading.load([before, f"{other}/model.pt"])
        with pytest.raises(FileNotFoundError, match="model.pt does not carry its dictionary: give the folder"):
            loading.load([before, str(tmp_path / "model.pt")])
    given = loading.load([first, str(tmp_path / "model.pt")], data=same)
    assert given.score(TEXT).bits == pytest.approx(lm.score(TEXT).bits)


@pytest.mark.parametrize(
    "regularizers, delay, expected",
    [
        ("rate+lexicon,rate", None, (1, 1)),
        ("rate+lexicon,rate", 2, (2, 2)),
        ("rate,unforeseen", 2, (0, 2)),
        ("rate", 2, (0, 0)),
    ],
)
def test_boundaries_are_put_back_by_what_each_layer_was_taught(lm, monkeypatch, regularizers, delay, expected):
    criterion = copy.deepcopy(lm.cfg.criterion)
    with open_dict(criterion):
        criterion.boundary_regularizers, criterion.boundary_delay = regularizers, delay
    monkeypatch.setattr(lm, "criterions", [criterion])
    assert lm.delays == [expected]
    found, late = lm.boundaries(TEXT), lm.boundaries(TEXT, lookahead=0)
    for layer, steps in enumerate(expected):
        assert torch.equal(found[: len(TEXT) - steps, layer], late[steps:, layer]) and late[:, layer].any()
        assert not found[len(TEXT) - steps :, layer].any()
    assert lm.segment(TEXT) == lm.segment(TEXT, lookahead=expected) == lm.segment(TEXT, lookahead=np.array(expected))
    with pytest.raises(ValueError, match="lookahead has 3 numbers: give one, or one for each of 2 layers"):
        lm.segment(TEXT, lookahead=(0, 1, 2))
    with pytest.raises(ValueError, match="lookahead must be whole numbers of symbols from 0, got 1.5"):
        lm.segment(TEXT, lookahead=1.5)
    assert lm.segment(TEXT, lookahead=1.0) == lm.segment(TEXT, lookahead=1)


def test_several_texts_are_segmented_each_by_itself(lm):
    texts = [TEXT, "", TEXT[:5]]
    assert lm.segment(texts) == [lm.segment(text) for text in texts]
    for found, text in pairs(lm.boundaries(texts, lookahead=1), texts):
        assert torch.equal(found, lm.boundaries(text, lookahead=1))


def test_no_prompt_gives_no_text(lm):
    assert lm.sample([]) == lm.sample([], beam=2) == lm.generate([]) == []


def test_soft_boundaries_end_segments_above_one_half():
    """In what is read and in what is sampled, as where segments are printed."""
    soft = loading.load([str(CHECKPOINTS / "hmlstm_lm.pt")], boundary="soft")
    tokens = torch.tensor([[soft.begin, *soft.encode(TEXT).tolist()]])
    with torch.no_grad():
        z = soft.models[0](tokens)[1]["trace"].boundaries[0, 1:]
    ends = z > 0.5  # of all layers; the top one has no detector
    assert (z[~ends] > 0).any()
    assert torch.equal(soft.boundaries(TEXT), ends[:, :2].float())
    assert (next(soft.reader().closings([TEXT])).boundaries == ends[:, :2].numpy()).all()
    cuts = [0, *(ends[:-1, 0].nonzero().squeeze(1) + 1).tolist(), len(TEXT)]
    assert soft.segment(TEXT)[0] == [TEXT[a:b] for a, b in zip(cuts, cuts[1:])]
    sampler = soft.sampler(SamplingOptions(seed=1))
    _, found = sampler.read([soft.begin, *soft.encode(TEXT).tolist(), soft.begin])
    assert found[1:] == ends.float().tolist()
    sampled = itertools.islice(sampler.run([[soft.begin]]), 20)
    assert {float(closes) for step in sampled for closes in step.boundaries[0]} <= {0.0, 1.0}


def test_an_option_that_nothing_has_is_named():
    path = str(CHECKPOINTS / "hmlstm_lm.pt")
    with pytest.raises(TypeError, match="^unknown option boundry: did you mean boundary"):
        loading.load([path], boundry="soft")
    with pytest.raises(TypeError, match="hmlstm_lm.pt was trained before there was an option detector_hidden, and has"):
        loading.load([path], detector_hidden=3)
    assert (
        loading.load([path], boundary="soft", sentencepiece_model="none").models[0].decoder.hm_lstm.boundary == "soft"
    )


def test_options_that_change_sizes_are_not_called_damage():
    with pytest.raises(
        UnsafeCheckpointError, match=r"hmlstm_lm.pt does not fit the options .* is of \[\d+.*\], not \[\d+.*\];"
    ):
        loading.load([str(CHECKPOINTS / "hmlstm_lm.pt")], hidden_sizes="7,6,5")


def test_an_ensemble_shares_an_output_dictionary(tmp_path):
    path, other = str(CHECKPOINTS / "hmlstm_lm.pt"), str(tmp_path / "fewer.pt")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    with open_dict(state["cfg"]):
        state["cfg"]["task"]["output_dictionary_size"] = 9
    torch.save(state, other)
    with pytest.raises(
        ValueError, match=r"fewer.pt predicts 9 symbols, .*hmlstm_lm.pt \d+ \(--output-dictionary-size\)"
    ):
        loading.load([path, other])


def test_allowed_symbols_are_asked_of_each_prompt_behind_it(lm):
    """Prompts of different lengths, which are searched apart; the end by length alone is none of the symbols."""
    letters, asked = [lm.src_dict.index(letter) for letter in "ade"], []

    def allowed(row, symbols):
        asked.append((row, len(symbols)))
        return letters[row : row + 1]

    prompts = ["und", "der baum", "ist"]
    texts = lm.sample(prompts, beam=2, length=4, prefix_allowed_tokens_fn=allowed)
    assert texts == [prompt + 4 * letter for prompt, letter in zip(prompts, "ade")]
    assert {row for row, _ in asked} == {0, 1, 2}
    assert all(length > len(prompts[row]) for row, length in asked), "with the begin symbol"
    assert lm.sample(prompts, beam=2, length=4, batch_size=2, prefix_allowed_tokens_fn=allowed) == texts
    letters.append(lm.src_dict.eos())
    either = lambda row, symbols: letters  # noqa: E731
    for prompt in ("und", "und\nder"):  # with a stop symbol inside, another one stands for it
        new = lm.sample(prompt, beam=2, length=5, end="newline", prefix_allowed_tokens_fn=either)[len(prompt) :]
        assert len(new) <= 5 and set(new) <= set("ade")
    ends = []  # of the task while another text is sampled: no thread changes it for others
    watched = lambda *_: ends.append(lm.task.args.end_of_sample) or letters  # noqa: E731
    lm.sample("der", beam=2, length=3, end="newline", prefix_allowed_tokens_fn=watched)
    assert set(ends) == {"auto"}
    with pytest.raises(ValueError, match="^the search found no text: prefix_allowed_tokens_fn"):
        lm.sample("der", beam=2, length=3, end="newline", prefix_allowed_tokens_fn=lambda *_: [])
