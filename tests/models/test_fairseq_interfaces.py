"""Features of fairseq's own models, tried on the models themselves: embeddings, softmax, dropout, averages."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.dataclass.configs import EMAConfig
from pairs import pairs
from small_translation import (
    ADAPTIVE,
    CUTOFFS,
    LANGUAGE_MODEL,
    MODELS,
    OFF,
    PAD,
    SIZES,
    SOURCE,
    TARGET,
    WORDS,
    dictionary_of,
    language_model,
    make,
    tokens,
)

from fairseq_hmrnn.criterions import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.inference.export import StepFunction
from fairseq_hmrnn.inference.reader import Reader
from fairseq_hmrnn.inference.sampler import Sampler, SamplingOptions
from fairseq_hmrnn.models import HMLSTMLanguageModel
from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.moving_average import MovingAverage


def adaptive(name):
    if name == "hmlstm_lm":
        return language_model(adaptive_softmax_cutoff=CUTOFFS)
    return make(name, target=WORDS, adaptive_softmax_cutoff=CUTOFFS, **ADAPTIVE[name])


def sample_for(name, batch=3, steps=8, seed=2):
    """Inputs and targets, every target once and some padding."""
    target = (torch.arange(batch * steps).view(batch, steps) * 7 + 4) % len(WORDS)
    target[target == PAD] = 4
    target[0, -2:] = PAD
    prev = tokens(batch, steps, WORDS, seed)
    net_input = {"src_tokens": prev, "src_lengths": None}
    if name != "hmlstm_lm":
        source = tokens(batch, 6)
        net_input = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": prev}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


# Embeddings from files, and shared ones


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    lines = [f"{symbol} " + " ".join(str(i + j) for j in range(6)) for i, symbol in enumerate("abuvelsewhere")]
    path.write_text("13 6\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def build(name, **options):
    model_class, config, own = MODELS[name]
    dictionaries = {"source_dictionary": SOURCE, "target_dictionary": options.pop("target", TARGET)}
    return model_class.build_model(config(**{**SIZES, **OFF, **own, **options}), SimpleNamespace(**dictionaries))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_start_from_files(vectors, tmp_path, name):
    sizes = {} if name.startswith("hmlstm_u") or name == "hmlstm" else {"decoder_embed_dim": 6}
    model = build(name, encoder_embed_path=str(vectors), decoder_embed_path=str(vectors), **sizes)
    row = torch.arange(6.0)
    assert torch.equal(model.encoder.embed_tokens.weight[SOURCE.index("b")], row + 1)
    assert torch.equal(model.decoder.embed_tokens.weight[TARGET.index("v")], row + 3)
    assert model.encoder.embed_tokens.weight[SOURCE.index("c")].abs().max() < 1  # not in the file
    missing = build(name, decoder_embed_path=str(tmp_path / "nowhere.txt"), **sizes)
    inputs = tokens(1, 3), None, tokens(1, 3, TARGET)
    with pytest.raises(FileNotFoundError, match="--decoder-embed-path: .*nowhere.txt is not there"):
        missing(*inputs)
    missing.load_state_dict(model.state_dict())  # a trained model does without
    missing(*inputs)


def test_the_language_models_embedding_starts_from_a_file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("1 6\nw5 1 2 3 4 5 6\n", encoding="utf-8")
    task = SimpleNamespace(source_dictionary=WORDS, target_dictionary=WORDS)
    cfg = HMLSTMLanguageModelConfig(**LANGUAGE_MODEL, decoder_embed_path=str(path))
    weight = HMLSTMLanguageModel.build_model(cfg, task).decoder.embed_tokens.weight
    assert weight[WORDS.index("w5")].tolist() == [1, 2, 3, 4, 5, 6]
    cfg.decoder_embed_path = str(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="decoder-embed-path"):
        HMLSTMLanguageModel.build_model(cfg, task)(tokens(1, 3, WORDS))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no embeddings"),
        ("2 6\na b c\n", "has no embeddings"),
        ("1 6\nzebra 1 2 3 4 5 6\n", "a vector for none of"),
        ("1 5\na 1 2 3 4 5\n", "has 5 numbers for 'a'"),
        ("\xff\xfe", "has no embeddings"),
    ],
)
def test_files_that_are_no_embeddings_are_refused(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        build("hmlstm", encoder_embed_path=str(path))


@pytest.mark.parametrize("name", MODELS)
def test_all_embeddings_are_shared(name):
    own = {"hmlstm_lstm": {"decoder_embed_dim": 6, "decoder_out_embed_dim": 6}}
    own["hmlstm_transformer"] = {"decoder_embed_dim": 6, "decoder_attention_heads": 2}
    model = build(name, target=dictionary_of("abcdefg"), share_all_embeddings=True, **own.get(name, {"output_dim": 6}))
    weight = model.encoder.embed_tokens.weight
    assert model.decoder.embed_tokens.weight is weight
    model(tokens(2, 4), None, tokens(2, 4))[0].logsumexp(-1).sum().backward()
    assert (weight.grad.abs().sum(1) > 0).all()  # by the softmax every symbol
    if name != "hmlstm_lstm":
        assert model.decoder.output_projection.weight is weight
    with pytest.raises(ValueError, match="--joined-dictionary"):
        build(name, share_all_embeddings=True)
    with pytest.raises(ValueError, match="equal to embed-dim"):
        build(name, target=dictionary_of("abcdefg"), share_all_embeddings=True, decoder_embed_dim=4)


@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_sharing_that_cannot_be_is_refused(name):
    def make_it(decoder_embed_dim=0, **options):
        if name == "hmlstm_lm":
            return language_model(**options)
        return make(name, **options, decoder_embed_dim=decoder_embed_dim or 6)

    if name != "hmlstm_transformer":  # has one size for both
        with pytest.raises(ValueError, match="to be equal"):
            make_it(share_decoder_input_output_embed=True, decoder_embed_dim=5)
    with pytest.raises(ValueError, match="adaptive-softmax-cutoff.*leave out one"):
        make_it(share_decoder_input_output_embed=True, adaptive_softmax_cutoff="6")
    with pytest.raises(ValueError, match="adaptive_loss requires --adaptive-softmax-cutoff"):
        make_it(criterion_name="adaptive_loss")


def test_fairseqs_name_of_tied_embeddings():
    decoder = language_model(share_decoder_input_output_embed=True, output_dim=6).decoder
    assert decoder.output_projection.weight is decoder.embed_tokens.weight


# The adaptive softmax


@pytest.mark.parametrize("cutoffs", ["0,5", "5,5", "9,5", "5,45", "x", "-3", "44", "5,9,20,30", "5.5"])
def test_cutoffs_without_meaning_are_refused(cutoffs):
    with pytest.raises(ValueError, match="adaptive-softmax-cutoff"):
        language_model(adaptive_softmax_cutoff=cutoffs)


@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_the_criterion_takes_the_adaptive_softmax(name):
    model, sample = adaptive(name), sample_for(name)
    net_output, target = model(**sample["net_input"]), sample["target"]
    log_probs = model.get_normalized_probs(net_output, log_probs=True)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones_like(log_probs[..., 0]))
    expected = -log_probs.gather(2, target.unsqueeze(2)).squeeze(2).masked_fill(target.eq(PAD), 0)
    task = SimpleNamespace(source_dictionary=WORDS, target_dictionary=WORDS)
    criterion = BoundaryRegularizedCrossEntropy(task, False, "")
    criterion.padding_idx = PAD
    loss, sample_size, _ = criterion(model, sample)
    torch.testing.assert_close(loss, expected.sum())
    torch.testing.assert_close(criterion(model, sample, reduce=False)[0], expected.view(-1))
    smoothed = BoundaryRegularizedCrossEntropy(task, False, "", label_smoothing=0.1)
    uniform = -(log_probs * target.ne(PAD).unsqueeze(2)).sum() * 0.1 / (len(WORDS) - 1)
    weight = 0.9 - 0.1 / (len(WORDS) - 1)
    torch.testing.assert_close(smoothed(model.train(), sample)[0], weight * expected.sum() + uniform)
    target[target.eq(9 + PAD) | target.eq(20 + PAD)] = 5  # fairseq's criterion takes these for padding
    fairseqs = AdaptiveLoss(Namespace(target_dictionary=WORDS), False)
    torch.testing.assert_close(fairseqs(model.eval(), sample)[0][0], criterion(model, sample)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])  # which takes the log-probabilities of all symbols
@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_every_parameter_of_an_adaptive_model_gets_a_gradient(name, smoothing):
    model, sample = adaptive(name).train(), sample_for(name)
    sample["target"][:] = 5  # in the first part of the softmax: the others have nothing to learn
    task = SimpleNamespace(source_dictionary=WORDS, target_dictionary=WORDS)
    BoundaryRegularizedCrossEntropy(task, False, "", label_smoothing=smoothing)(model, sample)[0].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_fairseqs_cross_entropy_trains_an_adaptive_softmax_as_ours_does(name):
    """By the log-probabilities of all symbols, without dropout."""
    model, sample, found = adaptive(name).eval(), sample_for(name), []
    task = SimpleNamespace(source_dictionary=WORDS, target_dictionary=WORDS)
    for criterion in (CrossEntropyCriterion(task, False), BoundaryRegularizedCrossEntropy(task, False, "")):
        criterion.padding_idx = PAD
        model.zero_grad()
        criterion(model, sample)[0].backward()
        found.append([None if p.grad is None else p.grad.clone() for p in model.decoder.adaptive_softmax.parameters()])
    for fairseqs, ours in pairs(*found):
        torch.testing.assert_close(fairseqs, ours, rtol=1e-4, atol=1e-5)
        assert fairseqs.abs().max() > 1e-3
    with torch.no_grad():
        without = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    torch.testing.assert_close(model.get_normalized_probs(model(**sample["net_input"]), log_probs=True), without)


@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_single_steps_of_an_adaptive_model_are_those_of_the_whole(name):
    model, sample = adaptive(name), sample_for(name)
    net_input, cache = sample["net_input"], {}
    prev = net_input.get("prev_output_tokens", net_input["src_tokens"])
    with torch.no_grad():
        whole = model.get_normalized_probs(model(**net_input), log_probs=True)
        encoder_out = None if name == "hmlstm_lm" else model.encoder(net_input["src_tokens"])
        for t in range(prev.size(1)):
            step = model.decoder(prev[:, : t + 1], encoder_out=encoder_out, incremental_state=cache)
            step[0].div_(1.0)  # as fairseq's generator does
            log_probs = model.get_normalized_probs(step, log_probs=True)[:, 0]
            torch.testing.assert_close(log_probs, whole[:, t], rtol=0, atol=1e-5)  # a softmax in single precision


def test_sampling_scoring_and_export_take_the_adaptive_softmax():
    model = adaptive("hmlstm_lm")
    text = tokens(1, 9, WORDS)
    with torch.no_grad():
        log_probs = model.get_normalized_probs(model(text), log_probs=True)[0]
        reader = Reader(model.decoder, begin=int(text[0, 0]))
        predicted = torch.cat(list(reader.log_probs(next(reader.read(text[0, 1:])))))
        torch.testing.assert_close(predicted[:, 0], log_probs.float())
        function = StepFunction(model.decoder)
        found, _, _ = function(text[:, 0], torch.zeros(1, function.state_size).double())
        torch.testing.assert_close(found[0], log_probs[0])
    sampler = Sampler([model], SamplingOptions(greedy=True), PAD)
    step = next(sampler.run(text.tolist(), scores=True))
    assert step.tokens == [int(log_probs[-1].argmax())]
    assert step.log_probs[0] == pytest.approx(float(log_probs[-1].max()), abs=1e-5)
    expected = log_probs[:-1].gather(1, text[0, 1:].unsqueeze(1)).squeeze(1).tolist()
    assert sampler.read(text[0].tolist())[0] == pytest.approx(expected, abs=1e-5)


# Averages of weights


@pytest.mark.parametrize("half, fp32", [(False, False), (False, True), (True, True)])
def test_the_moving_average_is_one(half, fp32):
    model = language_model(share_decoder_input_output_embed=True, output_dim=6).float()
    model = model.half() if half else model
    average = MovingAverage(model, EMAConfig(store_ema=True, ema_decay=0.75, ema_fp32=fp32))
    expected = {name: tensor.float().clone() for name, tensor in model.state_dict().items()}
    for update in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        model.set_num_updates(update)
        average.step(model, update)
        for name, tensor in model.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor if tensor.is_floating_point() else tensor
    found = average.get_model().state_dict()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name].float(), tensor, rtol=1e-3 if half else 1e-5, atol=1e-6)
        else:
            assert torch.equal(found[name], tensor)
    if fp32:
        weight = average.fp32_params["decoder.embed_tokens.weight"]
        torch.testing.assert_close(weight, expected["decoder.embed_tokens.weight"])
    assert average.get_model().decoder.slope_progress.num_updates == 3


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_of_both_sides_decays_once_an_update(name):
    width = {**ADAPTIVE[name], "embed_dim": 16, "decoder_embed_dim": 16}
    if name == "hmlstm_lstm":
        width["decoder_out_embed_dim"] = 16
    model = make(name, target=SOURCE, share_all_embeddings=True, **width)
    average = MovingAverage(model, EMAConfig(store_ema=True, ema_decay=0.75))
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    average.step(model, 1)
    found = average.get_model().state_dict()
    for key, tensor in expected.items():
        if "version" not in key and "_float_tensor" not in key:  # the latter is never set
            torch.testing.assert_close(found[key], 0.75 * tensor + 0.25 * 1.5 * tensor)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens  # those that train stay one


@pytest.mark.parametrize("name", ["hmlstm_lm", *MODELS])
def test_adaptive_models_are_averaged(name):
    model = adaptive(name)
    average = MovingAverage(model, EMAConfig(store_ema=True, ema_decay=0.5))
    first = model.decoder.adaptive_softmax.head.weight.detach().clone()
    with torch.no_grad():
        model.decoder.adaptive_softmax.head.weight.add_(1)
    average.step(model, 1)
    torch.testing.assert_close(average.get_model().decoder.adaptive_softmax.head.weight.detach(), first + 0.5)


def test_the_average_counts_on_after_a_restart():
    config = EMAConfig(store_ema=True, ema_decay=0.5, ema_update_freq=3)
    averages = [MovingAverage(language_model(), config) for _ in range(2)]
    models = [language_model() for _ in range(2)]
    taken = []
    for update in range(1, 8):
        if update == 5:  # a new process, which fairseq gives the weights of the one before
            averages[1], before = MovingAverage(models[1], config), averages[1]
            averages[1].restore(before.get_model().state_dict())
        for model, average in zip(models, averages):
            with torch.no_grad():
                model.decoder.embed_tokens.weight.add_(1)
            average.step(model, update)
        weights = [average.get_model().decoder.embed_tokens.weight for average in averages]
        assert torch.equal(*weights)
        taken.append(float(weights[0][5, 0].detach()))
    assert [b != a for a, b in zip(taken, taken[1:])] == [False, True, False, False, True, False]


# Features


@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_softmax_layers_input(name):
    model, inputs = make(name), (tokens(2, 6), None, tokens(2, 5, TARGET))
    features, extra = model.extract_features(*inputs)
    logits, other = model(*inputs)
    torch.testing.assert_close(model.output_layer(features), logits)
    assert torch.equal(extra["trace"].boundaries, other["trace"].boundaries)
