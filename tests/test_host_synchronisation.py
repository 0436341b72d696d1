"""Training on a GPU does not wait for it: nothing in a model, a criterion or the kernels' host code reads a value.

The GPU is torch's meta device: tensors without values, which are not on the host, so that the code goes where it goes
on a GPU. A mode names the operation that would have waited.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from small_texts import dictionary_of

from fairseq_hmrnn.criterions import BoundaryRegularizedCrossEntropy, HandwritingLikelihood, boundary_criterion
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS
from fairseq_hmrnn.criterions.boundary_statistics import numbers
from fairseq_hmrnn.criterions.handwriting import FILLED
from fairseq_hmrnn.data.characters import CharacterDictionary
from fairseq_hmrnn.models import HMLSTMLanguageModel, HMLSTMLSTMModel, HMLSTMModel
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.handwriting import HMLSTMHandwritingConfig, HMLSTMHandwritingModel
from fairseq_hmrnn.models.translation import encoder
from fairseq_hmrnn.models.translation.config import HMLSTMLSTMConfig, HMLSTMTranslationConfig
from fairseq_hmrnn.modules import HMLSTM

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 1), reason="torch's meta device lacks operations"
)

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")


@contextlib.contextmanager
def no_waiting():
    """Refuses what makes the host wait: values read, sizes that depend on values, copies between host and device."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoNumbersSent(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if getattr(function, "__name__", "") in ("tensor", "as_tensor", "new_tensor"):
                assert found.device.type == "cpu", "a tensor made of the host's numbers makes the host wait"
            return found

    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            assert name not in WAITING, f"{name} makes the host wait"
            found = function(*args, **(kwargs or {}))
            if name in ("copy_", "_to_copy"):
                source = args[1] if name == "copy_" else args[0]
                assert source.device == found.device, f"a copy from {source.device} makes the host wait"
            if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
                raise AssertionError("indexing by a bool tensor makes the host wait")
            return found

    with NoNumbersSent(), NoWaiting():
        yield


CHARACTERS = dictionary_of("abcd\u2581", CharacterDictionary)
SOURCE, TARGET = dictionary_of("abcdefg"), dictionary_of("uvwxyz")
SIZES = {"embed_dim": 6, "hidden_sizes": "8,5,7", "dropout_recurrent": 0.1}


def batch(source, target, translation, device="meta"):
    random = torch.Generator().manual_seed(1)
    src = torch.randint(4, len(source), (3, 6), generator=random)
    tgt = torch.randint(4, len(target), (3, 5 if translation else 6), generator=random)
    src[1, 4:] = source.pad()
    tgt[1, 4:] = target.pad()
    inputs = {"src_tokens": src.to(device)}
    if translation:
        inputs.update(src_lengths=torch.tensor([6, 4, 6]).to(device), prev_output_tokens=tgt.roll(1, 1).to(device))
    return {"net_input": inputs, "target": tgt.to(device), "ntokens": 14}


def train_steps(model, criterion, sample):
    """One step as it is, which may set things up, and one that must not wait."""
    model.to("meta").train(), criterion.train()
    if any(True for _ in criterion.parameters()):  # as fairseq does with several GPUs
        criterion.to("meta")
    with torch.no_grad():
        criterion(model, sample)
    with no_waiting():
        loss, _, logged = criterion(model, sample)
        loss.backward()
    assert loss.device.type == "meta" and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return logged


def task_of(source, target):
    text = {"train": range(700)}  # what a stream is of
    return SimpleNamespace(
        source_dictionary=source, target_dictionary=target, passes_epoch=True, dataset=text.__getitem__
    )


@pytest.mark.parametrize(
    "boundary, normalization, rates", [("step", "layer", ".3,.1"), ("bernoulli", "none", "auto,.1")]
)
def test_language_model(boundary, normalization, rates, monkeypatch):
    """With every regulariser on both layers."""
    task = task_of(CHARACTERS, CHARACTERS)
    cfg = HMLSTMLanguageModelConfig(**SIZES, output_dim=9, boundary=boundary, normalization=normalization)
    model = HMLSTMLanguageModel.build_model(cfg, task)
    # A lexicon segments a batch on the host.
    terms = "+".join(name for name, found in REGULARIZERS.items() if "lexicon" not in found.needs)
    criterion = BoundaryRegularizedCrossEntropy(
        task, False, rates, terms, boundary_supervision="whitespace", boundary_supervision_layer=2
    )
    # Under the mode below the model takes itself for recorded, and has no number of updates.
    monkeypatch.setattr(boundary_criterion, "_num_updates", lambda *_: 7)
    sample = batch(CHARACTERS, CHARACTERS, False)
    sample["net_input"].update(stream="train", window=1, reset=torch.zeros(3, dtype=torch.bool, device="meta"))
    model.carried_in_training.reach("train", 0, model.decoder.hm_lstm.zero_state(3).to("meta"))
    logged = train_steps(model, criterion, sample)
    assert "hits1:word_f1" in logged, "the dictionary has whitespace"


def test_handwriting():
    """With every regulariser that needs no symbols."""
    model = HMLSTMHandwritingModel(HMLSTMHandwritingConfig(**SIZES, output_dim=9, mixtures=3))
    terms = "+".join(name for name, found in REGULARIZERS.items() if found.needs <= FILLED)
    criterion = HandwritingLikelihood(task_of(None, None), False, ".3,.1", terms)
    valid, steps = torch.ones(3, 6, dtype=torch.bool, device="meta"), torch.zeros(3, 6, 3, device="meta")
    marks = {"gold": valid.unsqueeze(-1).expand(3, 6, 3), "known": valid.unsqueeze(-1).expand(3, 6, 3)}
    sample = {"net_input": {"steps": steps, "valid": valid}, "target": steps.double(), "ntokens": 18, "nsentences": 3}
    assert "hits2:character_f1" in train_steps(model, criterion, {**sample, **marks})


# Without hmlstm_transformer: fairseq's Transformer decoder itself asks whether a target is padded.
TRANSLATION = {
    "hmlstm": (HMLSTMModel, HMLSTMTranslationConfig, {"output_dim": 9, "bidirectional": True}),
    "unfed": (HMLSTMModel, HMLSTMTranslationConfig, {"output_dim": 9, "no_input_feeding": True}),
    "segments": (HMLSTMModel, HMLSTMTranslationConfig, {"output_dim": 9, "encoder_memory": "segments:1"}),
    "means": (HMLSTMModel, HMLSTMTranslationConfig, {"output_dim": 9, "encoder_memory": "means:1"}),
    "lstm": (HMLSTMLSTMModel, HMLSTMLSTMConfig, {"decoder_hidden_size": 9, "encoder_memory": "all-layers"}),
}


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation(name):
    task = task_of(SOURCE, TARGET)
    model_class, config, options = TRANSLATION[name]
    model = model_class.build_model(config(**SIZES, **options), task)
    criterion = BoundaryRegularizedCrossEntropy(task, False, ".3,.1", label_smoothing=0.1)
    train_steps(model, criterion, batch(SOURCE, TARGET, True))


def test_memory_of_segments_is_the_same_at_any_length(monkeypatch):
    """On a GPU it is as long as the source, on the host as long as it has to be."""
    torch.manual_seed(1)
    model_class, config, options = TRANSLATION["segments"]
    model = model_class.build_model(config(**SIZES, **options), task_of(SOURCE, TARGET)).double().eval()
    sample = batch(SOURCE, TARGET, True, device="cpu")["net_input"]
    short = model.encoder(sample["src_tokens"])
    expected, extra = model(**sample)
    monkeypatch.setattr(encoder, "is_on_host", lambda tensor: False)
    found, found_extra = model(**sample)
    assert short["encoder_out"][0].size(0) < 6 == model.encoder(sample["src_tokens"])["encoder_out"][0].size(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_extra["attn"], extra["attn"], rtol=0, atol=1e-12)


def test_totals_come_over_together():
    totals = {"loss": torch.tensor(2.5), "ntokens": 7, "steps": torch.tensor(3), "z1:steps": torch.tensor(0.1).double()}
    expected = {"loss": 2.5, "ntokens": 7, "steps": 3.0, "z1:steps": totals["z1:steps"].item()}
    with no_waiting():
        found = numbers(totals)
    assert found == expected and list(found) == list(totals)


class Kernel:
    """Stands in for a kernel that runs on a GPU while the host goes on."""

    def __init__(self, kernel):
        self.arg_names, self.launches = kernel.arg_names, 0

    def __getitem__(self, grid):
        return self.launch

    def launch(self, **arguments):
        self.launches += 1


@pytest.mark.parametrize("layer_norm", [False, True])
def test_host_code_of_the_triton_kernels(layer_norm, monkeypatch):
    """A call of a new shape, so that the buffers are made too."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from fairseq_hmrnn.ops.triton import hm_lstm_triton, launch

    kernels = {}
    for name in ("forward_products", "forward_cell", "backward_products", "backward_cell"):
        kernels[name] = Kernel(getattr(launch, name))
        monkeypatch.setattr(launch, name, kernels[name])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which meta does not have
    module = HMLSTM(6, [8, 5, 7], layer_norm=layer_norm).to("meta")
    x = torch.empty(4, 3, 6, device="meta", requires_grad=True)
    valid = torch.empty(4, 3, dtype=torch.bool, device="meta")
    with no_waiting():
        output = hm_lstm_triton(x, module.layers(), module.zero_state(3), module.options(1.5), valid)
        sum(h.sum() for h in output.hidden).backward()
    # cells of equal 2 step + layer side by side; the backward pass ends with the two phases before the first step
    assert [kernel.launches for kernel in kernels.values()] == [9, 9, 9, 11]
    assert x.grad.shape == x.shape and all(p.grad.shape == p.shape for p in module.parameters())
