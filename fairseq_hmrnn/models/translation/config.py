"""Options of the translation models, and what registers their architectures."""

from dataclasses import dataclass
from typing import Optional, Tuple

from ...ops import count_detectors
from ...options import DROPOUT, LARGEST_SIZE, SIZE, SIZE_OR_DEFAULT, Parsed, option, whole
from ..config import DecoderEmbeddingConfig, HMLSTMConfig, HMLSTMLanguageModelConfig, parse_sizes

# Settings of the architectures `_tiny`, `_small`, for some 30,000 sentences, and `_iwslt_de_en`.
TINY_ENCODER = {"embed_dim": 64, "hidden_sizes": "64,64", "bidirectional": True}
SMALL_ENCODER = {"embed_dim": 128, "hidden_sizes": "96,96", "bidirectional": True}
IWSLT_ENCODER = {"embed_dim": 256, "hidden_sizes": "256,256", "bidirectional": True}

MEMORY_KINDS = ("steps", "segments:LAYER", "means:LAYER", "all-layers")


def parse_encoder_memory(text: str) -> Tuple[str, Optional[int]]:
    """ "steps", "all-layers", "segments:2" or "means:2" to its kind and layer, from 0; ValueError with a remedy."""
    kind, _, layer = text.partition(":")
    if text in ("steps", "all-layers"):
        return kind, None
    if kind not in ("segments", "means") or not (layer.isascii() and layer.isdecimal() and int(layer)):
        raise ValueError(f"unknown encoder-memory {text!r}: choose from {', '.join(MEMORY_KINDS)}")
    return kind, int(layer) - 1


def check_memory_layer(layer: Optional[int], num_detectors: int) -> None:
    """ValueError if the memory is of the segments of a layer, from 0, that has no boundary detector."""
    if layer is not None and layer >= num_detectors:
        raise ValueError(
            f"encoder-memory of layer {layer + 1} requires a layer with a boundary detector, and this encoder has "
            f"{num_detectors} from the bottom: the top layer has none without top-boundary"
        )


def _parse_decoder_sizes(text: str) -> None:
    """Empty, or sizes; ValueError with a remedy otherwise."""
    if text:
        try:
            parse_sizes(text)
        except ValueError as error:
            raise ValueError(f"decoder-{error}") from error


LAYERS = whole(1, 1000)


@dataclass
class HMLSTMEncoderConfig(HMLSTMConfig):
    """Options of every model with an HM-LSTM encoder; embed_dim and hidden_sizes are the encoder's."""

    bidirectional: bool = option(False, "read the source in both directions; hidden-sizes are those of each")
    encoder_memory: str = option(
        "steps",  # the best measured (docs/translation.md)
        "what the decoder attends to: steps (all source steps, the states of all layers side by side), "
        "all-layers (all source steps, a gated sum of all layers), segments:LAYER (as steps, but only those at "
        "which that layer, counted from 1 at the bottom, closed a segment, and the last), means:LAYER (as segments, "
        "each slot the mean of its step and of those since the slot before)",
        Parsed(parse_encoder_memory),
    )
    memory_dim: int = option(
        0, "width of the gated sum with encoder-memory all-layers; 0: the widest layer's", SIZE_OR_DEFAULT
    )
    dropout_memory: float = option(0.1, "dropout on what the decoder attends to", DROPOUT)
    encoder_embed_path: str = option("", "text file with vectors that the encoder's embedding starts from")
    share_all_embeddings: bool = option(
        False,
        "one embedding for encoder, decoder and, unless it is adaptive, softmax weights; requires one "
        "dictionary and equal sizes",
    )
    load_pretrained_encoder_from: str = option(
        "",
        "checkpoint to start the encoder from: an hmlstm_lm of the source language (it becomes the "
        "left-to-right direction) or a translation model with the same encoder",
    )

    @staticmethod
    def check_together(cfg) -> None:
        num_detectors = count_detectors(len(parse_sizes(cfg.hidden_sizes)), cfg.top_boundary)
        check_memory_layer(parse_encoder_memory(cfg.encoder_memory)[1], num_detectors)


@dataclass
class HMLSTMTranslationConfig(HMLSTMEncoderConfig, HMLSTMLanguageModelConfig):
    """Options of `hmlstm`; the decoder's are those of the language model."""

    decoder_embed_dim: int = option(
        0, "size of the decoder's embedding; 0: embed-dim, as the encoder's", SIZE_OR_DEFAULT
    )
    decoder_hidden_sizes: str = option(
        "",
        "sizes of the decoder's layers, bottom to top, separated by commas; empty: the encoder's",
        Parsed(_parse_decoder_sizes),
    )
    no_input_feeding: bool = option(
        False,
        "the decoder's steps do not read what the step before attended to (arXiv 1508.04025, 3.3); "
        "training then runs over whole targets, not step by step, which is faster",
    )
    load_pretrained_decoder_from: str = option(
        "", "checkpoint to start the decoder from: an hmlstm_lm of the target language, or an hmlstm"
    )


@dataclass
class HMLSTMTransformerConfig(HMLSTMEncoderConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_transformer`; names of the decoder's are those of fairseq's transformer."""

    decoder_embed_dim: int = option(256, "size of the decoder's embedding and layers", SIZE)
    decoder_ffn_embed_dim: int = option(1024, "size of the decoder's feed-forward layers", SIZE)
    decoder_layers: int = option(3, "number of layers of the decoder", LAYERS)
    decoder_attention_heads: int = option(
        4, "number of the decoder's attention heads, which divides decoder-embed-dim", SIZE
    )
    decoder_normalize_before: bool = option(False, "layer normalisation before each block of the decoder, not after it")
    dropout: float = option(0.1, "dropout in the decoder", DROPOUT)
    attention_dropout: float = option(0.0, "dropout on the decoder's attention weights", DROPOUT)
    activation_dropout: float = option(0.0, "dropout inside the feed-forward layers", DROPOUT)
    max_target_positions: int = option(1024, "longest target, in symbols", whole(1, LARGEST_SIZE))

    @staticmethod
    def check_together(cfg) -> None:
        if cfg.decoder_embed_dim % cfg.decoder_attention_heads:
            raise ValueError(
                f"decoder-attention-heads ({cfg.decoder_attention_heads}) must divide decoder-embed-dim "
                f"({cfg.decoder_embed_dim})"
            )


@dataclass
class HMLSTMLSTMConfig(HMLSTMEncoderConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_lstm`; names and defaults of the decoder's are those of fairseq's lstm."""

    decoder_embed_dim: int = option(256, "size of the decoder's embedding", SIZE)
    decoder_hidden_size: int = option(256, "size of each layer of the decoder", SIZE)
    decoder_layers: int = option(1, "number of layers of the decoder", LAYERS)
    decoder_out_embed_dim: int = option(256, "size of the decoder's output embedding", SIZE)
    decoder_dropout_in: float = option(0.1, "dropout on the decoder's embedding", DROPOUT)
    decoder_dropout_out: float = option(0.1, "dropout on the decoder's output", DROPOUT)
