"""Options of the translation models, and what registers their architectures."""

from dataclasses import dataclass, field
from typing import Optional, Tuple

from .config import DecoderEmbeddingConfig, HMLSTMConfig, HMLSTMLanguageModelConfig

# Settings of the architectures `_tiny` and `_iwslt_de_en`.
TINY_ENCODER = {"embed_dim": 64, "hidden_sizes": "64,64", "bidirectional": True}
IWSLT_ENCODER = {"embed_dim": 256, "hidden_sizes": "256,256", "bidirectional": True}

MEMORY_KINDS = ("steps", "segments:LAYER", "all-layers")


@dataclass
class HMLSTMEncoderConfig(HMLSTMConfig):
    """Options of every model with an HM-LSTM encoder; embed_dim and hidden_sizes are the encoder's."""

    bidirectional: bool = field(
        default=False, metadata={"help": "read the source in both directions; hidden-sizes are those of each"}
    )
    encoder_memory: str = field(
        default="steps",  # the best measured (README.md, Translate)
        metadata={
            "help": "what the decoder attends to: steps (all source steps, the states of all layers side by side), "
            "all-layers (all source steps, a gated sum of all layers), segments:LAYER (as steps, but only those at "
            "which that layer, counted from 1 at the bottom, closed a segment, and the last)"
        },
    )
    memory_dim: int = field(
        default=0, metadata={"help": "width of the gated sum with encoder-memory all-layers; 0: the widest layer's"}
    )
    dropout_memory: float = field(default=0.1, metadata={"help": "dropout on what the decoder attends to"})
    encoder_embed_path: str = field(
        default="", metadata={"help": "text file with vectors that the encoder's embedding starts from"}
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={
            "help": "one embedding for encoder, decoder and, unless it is adaptive, softmax weights; requires one "
            "dictionary and equal sizes"
        },
    )
    load_pretrained_encoder_from: str = field(
        default="",
        metadata={
            "help": "checkpoint to start the encoder from: an hmlstm_lm of the source language (it becomes the "
            "left-to-right direction) or a translation model with the same encoder"
        },
    )


@dataclass
class HMLSTMTranslationConfig(HMLSTMEncoderConfig, HMLSTMLanguageModelConfig):
    """Options of `hmlstm`; the decoder's are those of the language model."""

    decoder_embed_dim: int = field(
        default=0, metadata={"help": "size of the decoder's embedding; 0: embed-dim, as the encoder's"}
    )
    decoder_hidden_sizes: str = field(
        default="", metadata={"help": "sizes of the decoder's layers, bottom to top, by comma; empty: the encoder's"}
    )
    no_input_feeding: bool = field(
        default=False,
        metadata={
            "help": "the decoder's steps do not read what the step before attended to (arXiv 1508.04025, 3.3); "
            "training then runs over whole targets, not step by step, which is faster"
        },
    )
    load_pretrained_decoder_from: str = field(
        default="",
        metadata={"help": "checkpoint to start the decoder from: an hmlstm_lm of the target language, or an hmlstm"},
    )


@dataclass
class HMLSTMTransformerConfig(HMLSTMEncoderConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_transformer`; names of the decoder's are those of fairseq's transformer."""

    decoder_embed_dim: int = field(default=256, metadata={"help": "size of the decoder's embedding and layers"})
    decoder_ffn_embed_dim: int = field(default=1024, metadata={"help": "size of the decoder's feed-forward layers"})
    decoder_layers: int = field(default=3, metadata={"help": "number of layers of the decoder"})
    decoder_attention_heads: int = field(default=4, metadata={"help": "number of the decoder's attention heads"})
    decoder_normalize_before: bool = field(
        default=False, metadata={"help": "layer normalisation before each block of the decoder, not after it"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout in the decoder"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout on the decoder's attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward layers"})
    max_target_positions: int = field(default=1024, metadata={"help": "longest target, in symbols"})


@dataclass
class HMLSTMLSTMConfig(HMLSTMEncoderConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_lstm`; names and defaults of the decoder's are those of fairseq's lstm."""

    decoder_embed_dim: int = field(default=256, metadata={"help": "size of the decoder's embedding"})
    decoder_hidden_size: int = field(default=256, metadata={"help": "size of each layer of the decoder"})
    decoder_layers: int = field(default=1, metadata={"help": "number of layers of the decoder"})
    decoder_out_embed_dim: int = field(default=256, metadata={"help": "size of the decoder's output embedding"})
    decoder_dropout_in: float = field(default=0.1, metadata={"help": "dropout on the decoder's embedding"})
    decoder_dropout_out: float = field(default=0.1, metadata={"help": "dropout on the decoder's output"})


def parse_encoder_memory(text: str, num_detectors: int) -> Tuple[str, Optional[int]]:
    """ "steps", "all-layers" or "segments:2" to its kind and layer, counted from 0; ValueError with a remedy."""
    kind, _, layer = text.partition(":")
    if text in ("steps", "all-layers"):
        return kind, None
    if kind != "segments" or not layer.isdecimal():
        raise ValueError(f"unknown encoder-memory {text!r}: choose from {', '.join(MEMORY_KINDS)}")
    if not 1 <= int(layer) <= num_detectors:
        raise ValueError(
            f"encoder-memory {text} wants a layer with a boundary detector, and this encoder has {num_detectors} from "
            "the bottom: the top layer has none without top-boundary"
        )
    return kind, int(layer) - 1
