"""Arguments of the recurrence that do not fit are named."""

from __future__ import annotations

import importlib

import pytest
import torch
from small_module import SIZES, given, make

from fairseq_hmrnn.ops import (
    LayerParameters,
    RecurrenceOptions,
    hm_lstm,
    pack_layers,
)

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function


def mixed(**changes):
    """Layers of which one tensor is another."""
    first, *others = make().layers()
    return [first, others[0]._replace(**changes), *others[1:]]


X, STATE = given()
REFUSED = {
    "a tuple as state": (dict(state=(STATE.h, STATE.c, STATE.z)), r"state must be an HMLSTMState\(h, c, z\).* a tuple"),
    "nn.LSTM's state": (dict(state=(STATE.h[0], STATE.c[0])), "state must be an HMLSTMState"),
    "no state": (dict(state=None), "state must be an HMLSTMState"),
    "a list in the state": (dict(state=STATE._replace(z=[0.0])), "state.z must be a tensor"),
    "no layers": (dict(layers=[]), "at least one LayerParameters"),
    "a list of tensors": (dict(layers=[[torch.zeros(2)]]), "at least one LayerParameters, got .'list'"),
    "mixed dtypes": (dict(layers=mixed(bias=torch.zeros(21).double())), "bias of layer 1 is torch.float64.*one dtype"),
    "mixed devices": (dict(layers=mixed(bias=torch.zeros(21, device="meta"))), "bias of layer 1 is .* on meta"),
    "gains in one layer alone": (dict(layers=mixed(gain_recurrent=torch.ones(21))), "gain_recurrent of layer 1 .*None"),
    "gains in the first layer alone": (dict(layers=[make(layer_norm=True).layers()[0], *make().layers()[1:]]),
                                       r"gain_recurrent of layer 1 has shape None, expected \(21,\)"),
    "a hidden layer without output": (dict(layers=[make(detector_hidden=3).layers()[0]._replace(detector_output=None),
                                                   *make().layers()[1:]]), "detector_output of layer 0 has shape None"),
    "a hidden layer that reads too little": (
        dict(layers=mixed(detector_hidden_weight=torch.ones(2, 9), detector_hidden_bias=torch.ones(2),
                          detector_output=torch.ones(2))),
        r"detector_hidden_weight of layer 1 has shape \(2, 9\), expected \(2, 14\)"),
    "a hidden layer in one detector alone": (dict(layers=[*make(detector_hidden=3).layers()[:1], *make().layers()[1:]]),
                                             "every detector has a hidden layer or none"),
    "a hidden layer and no detector": (dict(layers=make(detector_hidden=3, top_boundary=True).layers()),
                                       "top layer has no detector without top_boundary"),
    "integers": (dict(layers=[LayerParameters(*[None if t is None else t.long() for t in p]) for p in make().layers()]),
                 "floating-point"),
    "x of numpy": (dict(x=X.detach().numpy()), "x must be a tensor .T, B, 4., got ndarray"),
    "x of another dtype": (dict(x=X.double()), "x is torch.float64"),
    "x on another device": (dict(x=X.to("meta")), "x is torch.float32 on meta"),
    "x without a batch": (dict(x=X[:, 0]), r"x must be \(T, B, 4\)"),
    "valid as a list": (dict(valid=[True]), "valid must be a bool tensor"),
    "an infinite slope": (dict(options=RecurrenceOptions(float("inf"))), "positive and finite"),
    "no number as slope": (dict(options=RecurrenceOptions(float("nan"))), "positive and finite"),
    "such a slope as a tensor": (dict(options=RecurrenceOptions(torch.tensor(float("nan")))), "positive and finite"),
}  # fmt: skip


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name, autocast):
    change, message = REFUSED[name]
    arguments = {"x": X, "layers": make().layers(), "state": STATE, "options": RecurrenceOptions(), **change}
    if autocast and name == "x of another dtype":
        pytest.skip("autocast makes it fit")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match=message):
        hm_lstm(**arguments)


def test_packed_steps_do_not_drop_out():
    module = make(recurrent_dropout=0.5)
    module.step(X[0], STATE, packed=module.eval().pack())
    masks = tuple(torch.ones(2, size) for size in SIZES)
    retaining = make(recurrent_dropout=0.5).eval()
    retaining.retain_dropout = True
    for one, drawn in ((module, masks), (make(recurrent_dropout=0.5), None), (retaining, None)):
        with pytest.raises(ValueError, match="packed weights have no recurrent dropout"):
            one.step(X[0], STATE, packed=one.pack(), recurrent_masks=drawn)


def test_the_module_and_packed_weights_name_them_too():
    module = make()
    for x in (X[:, 0], X[0, 0], X.detach().numpy(), None):
        with pytest.raises(ValueError, match="x must be"):
            module(x)
    for run_it in (lambda: module(X, tuple(STATE)), lambda: module.step(X[0], tuple(STATE), packed=module.pack())):
        with pytest.raises(ValueError, match="state must be an HMLSTMState"):
            run_it()
    with pytest.raises(ValueError, match="at least one LayerParameters"):
        pack_layers([])
    with pytest.raises(ValueError, match="projected input requires packed weights"):
        module.step(X[0], STATE, projected=True)
    module.bias[1].data = module.bias[1].data.double()
    for run_it in (lambda: module(X), module.pack):
        with pytest.raises(ValueError, match="a model has one dtype"):
            run_it()
