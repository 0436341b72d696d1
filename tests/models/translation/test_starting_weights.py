"""Translation models that start from the weights of others."""

import pytest
import torch
from small_translation import SOURCE, TARGET, build_plain, dictionary_of, tokens


def save_model(model, path):
    history = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 1}]
    extra = {"train_iterator": {"epoch": 1}}
    torch.save({"model": model.state_dict(), "cfg": None, "optimizer_history": history, "extra_state": extra}, path)
    return str(path)


def test_starting_from_a_language_model(tmp_path):
    from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
    from fairseq_hmrnn.models.decoder import HMLSTMDecoder
    from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel

    cfg = HMLSTMLanguageModelConfig(embed_dim=6, hidden_sizes="8,5,7", output_dim=9)
    source = HMLSTMLanguageModel(HMLSTMDecoder(cfg, SOURCE))
    target = HMLSTMLanguageModel(HMLSTMDecoder(cfg, TARGET))
    paths = [save_model(model, tmp_path / f"{i}.pt") for i, model in enumerate((source, target))]
    build = build_plain("hmlstm", load_pretrained_encoder_from=paths[0], load_pretrained_decoder_from=paths[1])
    for part, model in ((build.encoder, source), (build.decoder, target)):
        assert torch.equal(part.embed_tokens.weight, model.decoder.embed_tokens.weight)
        assert torch.equal(part.hm_lstm.weight_top_down[1], model.decoder.hm_lstm.weight_top_down[1])
    assert torch.equal(build.decoder.output_projection.weight, target.decoder.output_projection.weight)
    again = build_plain("hmlstm_lstm", load_pretrained_encoder_from=save_model(build, tmp_path / "translation.pt"))
    assert torch.equal(again.encoder.embed_tokens.weight, source.decoder.embed_tokens.weight)
    with pytest.raises(ValueError, match="another source dictionary"):
        build_plain("hmlstm", load_pretrained_encoder_from=paths[1])
    with pytest.raises(ValueError, match="does not fit"):
        build_plain("hmlstm", hidden_sizes="8,5,6", load_pretrained_encoder_from=paths[0])
    missing = build_plain("hmlstm", load_pretrained_encoder_from=str(tmp_path / "nowhere.pt"))
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        missing(tokens(1, 3), None, tokens(1, 3, TARGET))
    missing.load_state_dict(build_plain("hmlstm").state_dict())  # a trained model does without
    missing(tokens(1, 3), None, tokens(1, 3, TARGET))


def test_two_values_for_one_parameter_are_refused(tmp_path):
    """And what a checkpoint replaces would not be seen to be lost."""
    from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
    from fairseq_hmrnn.models.decoder import HMLSTMDecoder
    from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel

    def save_lm(name, **options):
        cfg = HMLSTMLanguageModelConfig(embed_dim=6, hidden_sizes="8,5,7", **{"output_dim": 6, **options})
        return save_model(HMLSTMLanguageModel(HMLSTMDecoder(cfg, SOURCE)), tmp_path / name)

    untied, tied = save_lm("untied.pt"), save_lm("tied.pt", share_decoder_input_output_embed=True)
    tie = {"target": SOURCE, "output_dim": 6, "share_decoder_input_output_embed": True}
    with pytest.raises(ValueError, match="output_projection.weight of .*untied.pt is not embed_tokens.weight of .*"):
        build_plain("hmlstm", load_pretrained_decoder_from=untied, **tie)
    build_plain("hmlstm", load_pretrained_decoder_from=tied, **tie)
    share = {"target": SOURCE, "output_dim": 6, "share_all_embeddings": True}
    with pytest.raises(ValueError, match="embed_tokens.weight of .*tied.pt is not embed_tokens.weight of .*untied.pt"):
        build_plain("hmlstm", load_pretrained_encoder_from=untied, load_pretrained_decoder_from=tied, **share)
    apart = save_model(build_plain("hmlstm", target=SOURCE, output_dim=6), tmp_path / "apart.pt")
    with pytest.raises(ValueError, match="apart.pt is not embed_tokens.weight of .*apart.pt"):
        build_plain("hmlstm", load_pretrained_encoder_from=apart, load_pretrained_decoder_from=apart, **share)
    build = build_plain("hmlstm", load_pretrained_encoder_from=tied, load_pretrained_decoder_from=tied, **share)
    assert torch.equal(build.encoder.embed_tokens.weight, torch.load(tied)["model"]["decoder.embed_tokens.weight"])
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("1 6\na " + "1 " * 6 + "\n")
    with pytest.raises(ValueError, match="load-pretrained-decoder-from would replace .* encoder-embed-path gives"):
        build_plain("hmlstm", encoder_embed_path=str(vectors), load_pretrained_decoder_from=tied, **share)


def test_a_softmax_that_does_not_fit_names_its_options(tmp_path):
    cut = {"target": dictionary_of("abcdefghijklmnopqrstuvwxyz"), "output_dim": 16}
    path = save_model(build_plain("hmlstm", adaptive_softmax_cutoff="9,20", **cut), tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="adaptive_softmax.* give the output-dim and adaptive-softmax-cutoff"):
        build_plain("hmlstm", load_pretrained_decoder_from=path, **cut)
