"""Products of operands rounded to bfloat16: training with them, and generation from weights of any precision."""

import json
import math
import re

import pytest
import small_translation as translation
import torch
from running import run, run_groups
from small_language_model import DICTIONARY, PAD, make, tokens
from small_training import TASK, TRAIN

from fairseq_hmrnn.inference.sampler import Sampler, SamplingOptions
from fairseq_hmrnn.models import HMLSTMLanguageModel, decoding
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig, build_hm_lstm
from fairseq_hmrnn.ops import cpu

compiled = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
# In nats, of what rounding to 8 bits changes: .015 with this cell. A product that is left out or wrong changes .4.
TOLERANCE = 3e-2
ARCHITECTURES = ["hmlstm_lm", *translation.MODELS]


def model_and_loss(name, **options):
    """A float32 model and a function that returns its mean -log p of random symbols."""
    if name == "hmlstm_lm":
        model, x = make(**options).float(), tokens(3, 12)
        return model, lambda: torch.nn.functional.cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())
    model = translation.make(name, encoder_memory="all-layers", **options).float()
    source, target = translation.tokens(3, 9), translation.tokens(3, 7, translation.TARGET)

    def loss():
        logits, _ = model(source, torch.full((3,), 9), target[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())

    return model, loss


@compiled
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_differs_slightly_and_falls_in_training(name):
    (_, exact), (model, rounded) = (model_and_loss(name, bfloat16_products=low) for low in (False, True))
    first = float(rounded())
    assert 0 < abs(first - float(exact())) < TOLERANCE
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        rounded().backward()
        optimizer.step()
    assert float(rounded()) < first - 0.05
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@compiled
def test_fairseq_train_takes_the_option(data, trained, tmp_path):
    arguments = [data, *TASK, *TRAIN, "--max-update", 10, "--disable-validation", "--no-save", "--bfloat16-products"]
    run_groups([[("fairseq-train", arguments, tmp_path / "log.txt")]])
    found, exact = (
        [float(loss) for loss in re.findall(r"train_inner.*?\bloss=([\d.]+)", log.read_text())][:10]
        for log in (tmp_path / "log.txt", trained / "log.txt")
    )
    assert len(found) == 10 and found == pytest.approx(exact, abs=0.05) and found != exact


def log_probs(model, x):
    """Of the symbol after each of x (B, T), step by step: (B, T, V)."""
    state = {}
    with torch.no_grad():
        found = [model.decoder(x[:, : t + 1], incremental_state=state) for t in range(x.size(1))]
        return torch.cat([model.get_normalized_probs(output, log_probs=True) for output in found], dim=1).float()


@compiled
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"normalization": "none"}, {"adaptive_softmax_cutoff": "5"}], ids=str)
def test_generation_is_of_rounded_weights_whatever_they_were(monkeypatch, options, dtype, table):
    if dtype == torch.float16 and "adaptive_softmax_cutoff" in options and int(torch.__version__.split(".")[0]) < 2:
        pytest.skip("torch 1 does not multiply float16 on CPU, as the adaptive softmax does")
    if not table:
        monkeypatch.setattr(decoding, "TABLE_SYMBOLS", 0)
    options = {"output_dim": 8, **options}
    x = tokens(3, 30)
    model, widened, exact = (make(**options).to(dtype) for _ in range(3))
    decoding.generate_in([model, widened.float()], "bfloat16")
    found = log_probs(model, x)
    assert torch.equal(found, log_probs(widened, x)) or model.decoder.adaptive_softmax is not None
    expected = log_probs(exact.float(), x)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    if model.decoder.adaptive_softmax is None:  # whose steps round the recurrence alone
        with torch.no_grad():
            whole = make(bfloat16_products=True, **options).to(dtype).float()(x)[0].log_softmax(2)
        assert_same_but_for_rounding(found, whole)


@compiled
def test_whole_texts_are_read_alike_with_and_without_a_table_of_the_input(monkeypatch):
    """By a model of bfloat16 weights whose recurrence keeps its own in float32 or rounds them."""
    x = tokens(3, 30)
    for rounded in (False, True):
        model = make(bfloat16_products=rounded).bfloat16().eval()
        found = []
        for symbols in (decoding.TABLE_SYMBOLS, 0):
            monkeypatch.setattr(decoding, "TABLE_SYMBOLS", symbols)
            state = model.decoder.hm_lstm.zero_state(x.size(0))
            found.append(decoding.recurrence(model.decoder)(x, state)[0].hidden[-1])
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=TOLERANCE)
        monkeypatch.undo()


def assert_same_but_for_rounding(found, expected):
    """Of the same rounded operands: the order of sums moves some of them to the next number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)
    assert (found - expected).abs().median() < 1e-6


@compiled
def test_a_model_trained_with_rounded_products_generates_with_them():
    model, x = make(bfloat16_products=True).float(), tokens(2, 20)
    with torch.no_grad():
        whole = model(x)[0].log_softmax(2)
    assert_same_but_for_rounding(log_probs(model, x), whole)
    assert not torch.equal(whole, make().float()(x)[0].log_softmax(2))


@compiled
def test_what_cannot_be_is_one_line(monkeypatch):
    model, x = make(), tokens(2, 3)
    with pytest.raises(ValueError, match="unknown dtype 'half' of generation: choose from float32, bfloat16"):
        decoding.generate_in([model], "half")
    other = torch.nn.Module()
    other.decoder = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="requires HM-LSTM language models"):
        decoding.generate_in([model, other], "bfloat16")
    decoding.generate_in([other], "float32")
    decoding.generate_in([model], "bfloat16")
    with pytest.raises(ValueError, match="without gradients, dropout and hooks"):
        model.decoder(x, incremental_state={})
    model.decoder.hm_lstm.backend = "reference"
    with pytest.raises(ValueError, match="not backend reference on cpu"):
        log_probs(model, x)
    monkeypatch.setattr(cpu.kernel, "compiled", None)
    monkeypatch.setattr(cpu.kernel, "MISSING", "was not built")
    with pytest.raises(ValueError, match=r"the compiled CPU kernel, which was not built: leave") as error:
        decoding.generate_in([model], "bfloat16")
    assert "\n" not in str(error.value)


def test_without_the_kernel_training_says_that_products_stay_float32(monkeypatch, caplog):
    monkeypatch.setattr(cpu.kernel, "compiled", None)
    build_hm_lstm(HMLSTMLanguageModelConfig(bfloat16_products=True), 4)
    build_hm_lstm(HMLSTMLanguageModelConfig(), 4)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "products stay float32" in caplog.text


@compiled
def test_samples_are_of_the_rounded_distribution():
    """The log-probabilities that the sampler reports, against the whole forward pass with rounded products."""
    model, symbols = make().float(), []
    decoding.generate_in([model], "bfloat16")
    sampler, given = Sampler([model], SamplingOptions(seed=1), PAD, [PAD]), []
    for _, step in zip(range(40), sampler.run([[DICTIONARY.eos()]], scores=True)):
        symbols.append(step.tokens[0])
        given.append(step.log_probs[0])
    x, picked = torch.tensor([[DICTIONARY.eos(), *symbols[:-1]]]), torch.tensor(symbols).view(1, -1, 1)
    with torch.no_grad():
        rounded, exact = (make(bfloat16_products=low).float()(x)[0].log_softmax(2) for low in (True, False))
    given = torch.tensor([given])
    assert_same_but_for_rounding(given, rounded.gather(2, picked).squeeze(2))
    torch.testing.assert_close(given, exact.gather(2, picked).squeeze(2), rtol=0, atol=TOLERANCE)
    assert not torch.equal(given, exact.gather(2, picked).squeeze(2))


def differ_slightly(found, expected):
    assert len(found) == len(expected) > 5 and found != expected
    assert found == pytest.approx(expected, abs=TOLERANCE / math.log(2))


@compiled
def test_sampling_commands_and_the_hub_take_it(trained):
    options = [trained / "checkpoint_last.pt", "--prompt", "ka lumo tiri sen", "--length", 5, "--json"]
    rounded, exact = (
        json.loads(run("fairseq-hmrnn", "sample", *options, "--dtype", dtype).stdout)["prompt_bits"]
        for dtype in decoding.GENERATION_DTYPES[::-1]
    )
    differ_slightly(rounded, exact)
    models = [HMLSTMLanguageModel.from_pretrained(str(trained), dtype=dtype) for dtype in ("bfloat16", "float32")]
    low, high = ([float(-x) for x in beam(model)] for model in models)
    differ_slightly(low, high)
    assert [model.score("ka lumo").bits for model in models[:1]] == [models[1].score("ka lumo").bits]


def beam(model):
    """Log-probabilities of a prompt's symbols and of new ones, by fairseq's generator."""
    return model.generate([model.encode("ka lumo")], beam=1, max_len_b=2)[0][0]["positional_scores"][:7]


@compiled
def test_fairseqs_commands_take_it(data, trained, tmp_path):
    common = [data, *TASK, "--path", trained / "checkpoint_last.pt", "--beam", 1, "--max-len-b", 2, "--cpu"]
    generate = ["--gen-subset", "test", "--batch-size", 4, "--prefix-size", 10, "--tokens-per-sample", 40]
    jobs = [
        [("fairseq-generate", [*common, *generate, "--generation-dtype", dtype], tmp_path / f"{dtype}.txt")]
        for dtype in decoding.GENERATION_DTYPES
    ]
    run_groups(jobs)
    exact, rounded = (
        [float(x) for line in re.findall(r"^P-\d+\t(.*)", text, re.M) for x in line.split()[:10]]
        for text in ((tmp_path / f"{dtype}.txt").read_text() for dtype in decoding.GENERATION_DTYPES)
    )
    differ_slightly(rounded, exact)
    said = run("fairseq-interactive", *common, "--generation-dtype", "bfloat16", stdin="ka lumo\n").stdout
    assert re.search(r"^D-0\t", said, re.M)
    refused = run("fairseq-interactive", *common, "--generation-dtype", "half", stdin="ka\n", check=False)
    assert refused.returncode == 2 and "--generation-dtype: invalid choice" in refused.stdout
