"""Options of the models. Every default is either the paper's or explained in its help."""

from dataclasses import dataclass, field
from typing import Tuple

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ..annealing import SlopeSchedule
from ..modules import HMLSTM
from ..ops import BACKENDS, BOUNDARY_MODES

BOUNDARY_CHOICES = ChoiceEnum(list(BOUNDARY_MODES))
BACKEND_CHOICES = ChoiceEnum(list(BACKENDS))
NORMALIZATION_CHOICES = ChoiceEnum(["layer", "none"])


@dataclass
class HMLSTMConfig(FairseqDataclass):
    """What every HM-LSTM needs, whatever it is used for."""

    embed_dim: int = field(default=128, metadata={"help": "size of the symbol embedding (paper: 128)"})
    hidden_sizes: str = field(
        default="256,256,256",
        metadata={"help": "sizes of the layers, bottom to top, by comma (paper: 512,512,512 for PTB)"},
    )
    normalization: NORMALIZATION_CHOICES = field(
        default="layer",
        metadata={"help": "layer normalisation of each of a cell's three products, or none (paper's best: layer)"},
    )
    boundary: BOUNDARY_CHOICES = field(
        default="step",
        metadata={"help": "boundary detector: step (z~ > .5, the paper's best), bernoulli (sampled), soft (z = z~)"},
    )
    nested_boundaries: bool = field(
        default=False,
        metadata={"help": "a layer may end a segment only where the layer below ends one (paper's equations: not)"},
    )
    top_boundary: bool = field(
        default=False, metadata={"help": "give the top layer a boundary detector too (paper: it has none)"}
    )
    detector_grad_scale: float = field(
        default=0.0,
        metadata={
            "help": "factor on the gradient that a boundary detector sends back into the states it reads; its own "
            "weights always get all of it. 1: the exact straight-through gradient, which can explode; 0: it cannot"
        },
    )
    forget_bias: float = field(default=1.0, metadata={"help": "initial bias of the forget gates"})
    detector_bias: float = field(
        default=0.0, metadata={"help": "initial bias of the boundary detectors; 0 decides at the threshold"}
    )
    slope: float = field(default=1.0, metadata={"help": "slope of the detectors' hard sigmoid at the start"})
    slope_max: float = field(default=5.0, metadata={"help": "the slope grows no further (paper: 5 for PTB)"})
    slope_per_epoch: float = field(
        default=0.0,
        metadata={"help": "growth of the slope by completed epoch (paper: 0.04 for PTB); needs a task that tells it"},
    )
    slope_per_update: float = field(default=0.0, metadata={"help": "growth of the slope by update"})
    dropout_input: float = field(default=0.1, metadata={"help": "dropout on the embedded input"})
    dropout_recurrent: float = field(
        default=0.1, metadata={"help": "variational dropout on the recurrent product: one mask for all steps"}
    )
    backend: BACKEND_CHOICES = field(
        default="auto", metadata={"help": "who computes the recurrence; auto takes the fastest that runs here"}
    )
    recompute_chunks: int = field(
        default=1,
        metadata={
            "help": "cut sequences into this many pieces that the backward pass computes again: less memory for "
            "long windows, more time; 1: none. A decoder with input feeding goes step by step and does without"
        },
    )


@dataclass
class DecoderEmbeddingConfig(FairseqDataclass):
    """Of the embedding and softmax layer of every decoder; the names are fairseq's."""

    decoder_embed_path: str = field(
        default="", metadata={"help": "text file with vectors that the decoder's embedding starts from"}
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "softmax weights are the decoder's embedding"}
    )
    adaptive_softmax_cutoff: str = field(
        default="",
        metadata={
            "help": "for large dictionaries, an adaptive softmax (arXiv 1609.04309): numbers of most frequent symbols "
            "in its first parts, rising, by comma, such as 10000,50000; with any criterion; empty: a plain softmax"
        },
    )
    criterion_name: str = II("criterion._name")


@dataclass
class HMLSTMLanguageModelConfig(HMLSTMConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_lm`."""

    output_dim: int = field(
        default=256, metadata={"help": "size of the output module's embedding h_e (paper: 512 for PTB)"}
    )
    dropout_output: float = field(default=0.1, metadata={"help": "dropout on the output module's embedding"})
    tie_embeddings: bool = field(
        default=False,
        metadata={"help": "as share-decoder-input-output-embed, which requires output-dim equal to embed-dim"},
    )


UNLIMITED = 2**31 - 1  # positions: a recurrent network has no longest input


def parse_sizes(text: str) -> Tuple[int, ...]:
    """ "512,512,256" to (512, 512, 256); ValueError with a remedy otherwise."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"hidden-sizes must be positive integers separated by commas, bottom to top, not {text!r}")
    return sizes


def build_hm_lstm(cfg: HMLSTMConfig, input_size: int) -> HMLSTM:
    """The recurrence that the options describe."""
    return HMLSTM(
        input_size,
        parse_sizes(cfg.hidden_sizes),
        layer_norm=str(cfg.normalization) == "layer",
        boundary=str(cfg.boundary),
        nested_boundaries=cfg.nested_boundaries,
        top_boundary=cfg.top_boundary,
        detector_grad_scale=cfg.detector_grad_scale,
        forget_bias=cfg.forget_bias,
        detector_bias=cfg.detector_bias,
        recurrent_dropout=cfg.dropout_recurrent,
        backend=str(cfg.backend),
        recompute_chunks=cfg.recompute_chunks,
    )


def build_slope_schedule(cfg: HMLSTMConfig) -> SlopeSchedule:
    """The slope schedule that the options describe."""
    return SlopeSchedule(cfg.slope, cfg.slope_max, cfg.slope_per_epoch, cfg.slope_per_update).check()
