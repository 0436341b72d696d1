"""Options of the models. Every default is either the paper's or explained in its help."""

import logging
from dataclasses import dataclass
from typing import Tuple

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ..modules import HMLSTM
from ..ops import BACKENDS, BOUNDARY_MODES, count_detectors
from ..ops.cpu import kernel
from ..options import BIAS, DROPOUT, LARGEST_COUNT, LARGEST_SIZE, PROBABILITY, SIZE, Parsed, number, option, whole
from .embeddings import split_cutoffs
from .slope import SlopeSchedule

logger = logging.getLogger(__name__)

BOUNDARY_CHOICES = ChoiceEnum(list(BOUNDARY_MODES))
BACKEND_CHOICES = ChoiceEnum(list(BACKENDS))
NORMALIZATION_CHOICES = ChoiceEnum(["layer", "none"])


def parse_sizes(text: str) -> Tuple[int, ...]:
    """ "512,512,256" to (512, 512, 256); ValueError with a remedy otherwise."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"hidden-sizes must be positive integers separated by commas, bottom to top, not {text!r}")
    if max(sizes) > LARGEST_SIZE:
        raise ValueError(f"hidden-sizes must be at most {LARGEST_SIZE}, not {text!r}")
    return sizes


SLOPE = number(0, 1e4, open_below=True)
GROWTH = number(0, 1e4)  # of the slope


MOST_DETECTOR_UNITS = 1024  # a GPU holds those of one detector at once


@dataclass
class HMLSTMConfig(FairseqDataclass):
    """Options of every HM-LSTM, whatever it is used for."""

    embed_dim: int = option(128, "size of the symbol embedding (paper: 128)", SIZE)
    hidden_sizes: str = option(
        "256,256,256",
        "sizes of the layers, bottom to top, separated by commas (paper: 512,512,512 for PTB)",
        Parsed(parse_sizes),
    )
    normalization: NORMALIZATION_CHOICES = option(
        "layer", "layer normalisation of each of a cell's three products, or none (paper's best: layer)"
    )
    boundary: BOUNDARY_CHOICES = option(
        "step", "boundary detector: step (z~ > .5, the paper's best), bernoulli (sampled), soft (z = z~)"
    )
    nested_boundaries: bool = option(
        False, "a layer may end a segment only where the layer below ends one (not in the paper)"
    )
    top_boundary: bool = option(False, "give the top layer a boundary detector too (paper: it has none)")
    detector_grad_scale: float = option(
        0.0,
        "factor on the gradient that a boundary detector sends back into the states it reads; its own weights "
        "always get all of it. 1: the exact straight-through gradient, which can grow exponentially from detector to "
        "detector; 0: that path is cut",
        PROBABILITY,
    )
    detector_hidden: int = option(
        0,
        "units of a hidden layer in every boundary detector, which then finds more than a linear one (32 for words "
        "without spaces); 0: none, as in the paper",
        whole(0, MOST_DETECTOR_UNITS),
    )
    forget_bias: float = option(1.0, "initial bias of the forget gates", BIAS)
    detector_bias: float = option(0.0, "initial bias of the boundary detectors; 0 decides at the threshold", BIAS)
    slope: float = option(1.0, "slope of the detectors' hard sigmoid at the start", SLOPE)
    slope_max: float = option(5.0, "largest slope (paper: 5 for PTB)", SLOPE)
    slope_per_epoch: float = option(
        0.0, "growth of the slope by completed epoch (paper: 0.04 for PTB); requires a task that passes it on", GROWTH
    )
    slope_per_update: float = option(0.0, "growth of the slope by update", GROWTH)
    dropout_input: float = option(0.1, "dropout on the embedded input", DROPOUT)
    dropout_recurrent: float = option(
        0.1, "variational dropout on the recurrent product: one mask for all steps", DROPOUT
    )
    dropout_growth_updates: int = option(
        0,
        "let every dropout of the model grow linearly to its value over this many updates; 0: whole from the first on",
        whole(),
    )
    dropout_growth_start: float = option(
        0.4, "with dropout-growth-updates: the share of its value that a dropout starts with", PROBABILITY
    )
    backend: BACKEND_CHOICES = option("auto", "implementation of the recurrence; auto: the fastest that runs here")
    recompute_chunks: int = option(
        1,
        "cut sequences into this many pieces that the backward pass computes again: less memory for "
        "long windows, more time; 1: none. Decoders with input feeding ignore it",
        whole(1),
    )
    bfloat16_products: bool = option(
        False,
        "round the operands of products to bfloat16 although weights are float32, as autocast does on a GPU; "
        "sums and states stay float32. Faster where the processor multiplies bfloat16",
    )

    @staticmethod
    def check_together(cfg) -> None:
        build_slope_schedule(cfg)
        if cfg.detector_hidden and not count_detectors(len(parse_sizes(cfg.hidden_sizes)), cfg.top_boundary):
            raise ValueError("detector-hidden requires a detector: the only layer has none without top-boundary")


@dataclass
class DecoderEmbeddingConfig(FairseqDataclass):
    """Options of the embedding and softmax layer of every decoder; the names are fairseq's."""

    decoder_embed_path: str = option("", "text file with vectors that the decoder's embedding starts from")
    share_decoder_input_output_embed: bool = option(False, "softmax weights are the decoder's embedding")
    adaptive_softmax_cutoff: str = option(
        "",
        "for large dictionaries, an adaptive softmax (arXiv 1609.04309): numbers of most frequent symbols "
        "in its first parts, rising, such as 10000,50000; with any criterion; empty: a plain softmax",
        Parsed(split_cutoffs),
    )
    criterion_name: str = II("criterion._name")


@dataclass
class HMLSTMLanguageModelConfig(HMLSTMConfig, DecoderEmbeddingConfig):
    """Options of `hmlstm_lm`."""

    output_dim: int = option(256, "size of the output module's embedding h_e (paper: 512 for PTB)", SIZE)
    dropout_output: float = option(0.1, "dropout on the output module's embedding", DROPOUT)
    tie_embeddings: bool = option(
        False, "as share-decoder-input-output-embed, which requires output-dim equal to embed-dim"
    )


UNLIMITED = LARGEST_COUNT  # positions: a recurrent network has no longest input


def build_hm_lstm(cfg: HMLSTMConfig, input_size: int) -> HMLSTM:
    """The recurrence that the options describe."""
    if cfg.bfloat16_products and kernel.compiled is None:
        missing = f"the compiled kernel, which {kernel.MISSING}"
        logger.warning(f"on CPU the recurrence's products stay float32: bfloat16-products requires {missing}")
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
        bfloat16_products=cfg.bfloat16_products,
        detector_hidden=cfg.detector_hidden,
    )


def build_slope_schedule(cfg: HMLSTMConfig) -> SlopeSchedule:
    """The slope schedule that the options describe."""
    return SlopeSchedule(cfg.slope, cfg.slope_max, cfg.slope_per_epoch, cfg.slope_per_update).check()
