"""HM-LSTM as a fairseq encoder, and what decoders of any kind need of it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from fairseq.models import FairseqEncoder
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ...modules import LayerOutput
from ...ops import HMLSTMOutput, is_on_host, valid_or_none
from ...trace import KEY, BoundaryTrace
from ..config import UNLIMITED, build_hm_lstm
from ..fingerprint import DictionaryFingerprint
from ..recurrent import Recurrent
from .config import HMLSTMEncoderConfig, parse_encoder_memory

EncoderOut = Dict[str, Any]


class HMLSTMEncoder(Recurrent, FairseqEncoder):
    """Embedding, HM-LSTM over the source in one or both directions, and the memory that a decoder attends to.

    Pad symbols, on either side, change nothing: the state is frozen there. `output_units` is the width of the memory,
    `final_units` that of the final states of all layers and directions side by side.
    """

    def __init__(self, cfg: HMLSTMEncoderConfig, dictionary):
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.embed_tokens = source_embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.hm_lstm = build_hm_lstm(cfg, cfg.embed_dim)
        self.hm_lstm_backward = build_hm_lstm(cfg, cfg.embed_dim) if cfg.bidirectional else None
        self.memory_kind, self.memory_layer = parse_encoder_memory(cfg.encoder_memory)
        sizes = self.hm_lstm.hidden_sizes * (2 if cfg.bidirectional else 1)
        self.output_units = self.final_units = sum(sizes)
        self.layer_output = None
        if self.memory_kind == "all-layers":
            self.output_units = cfg.memory_dim or max(self.hm_lstm.hidden_sizes)
            self.layer_output = LayerOutput(sizes, self.output_units, self.hm_lstm.bfloat16_products)
        self.add_dropout_and_slope(cfg, *filter(None, (self.hm_lstm, self.hm_lstm_backward)))
        self.dropout_memory = FairseqDropout(cfg.dropout_memory, type(self).__name__)
        self.dictionary_fingerprint = DictionaryFingerprint(dictionary, "source")

    def forward(self, src_tokens: Tensor, src_lengths: Optional[Tensor] = None, **unused) -> EncoderOut:
        """Read src_tokens (B, S), padded on either side. src_lengths is not needed: pad symbols show them.

        Returns fairseq's dictionary of lists, as its Transformer decoder takes it: `encoder_out` [(M, B, output_units)]
        and `encoder_padding_mask` [(B, M)], and beside these
        memory_positions: [(B, M)], the source position after each slot of the memory; empty if M is S.
        final_hidden: [(B, final_units)].
        traces: the BoundaryTrace of each direction, steps in the order in which that direction reads them.
        samples: [(B,)], the row of src_tokens that each row is of.
        """
        valid = src_tokens.ne(self.padding_idx)
        directions = self._read(src_tokens, valid)
        aligned = [directions[0], *(_reverse(output) for output in directions[1:])]
        memory = self._features([h for output in aligned for h in output.hidden])
        memory = self.dropout_memory(memory)
        padding_mask, positions = ~valid, []
        if self.memory_layer is not None:
            closed = torch.stack([output.boundaries[..., self.memory_layer] > 0.5 for output in aligned]).any(0)
            shorten = mean_segments if self.memory_kind == "means" else keep_segments
            memory, padding_mask, slots = shorten(memory, closed, valid.t())
            positions = [slots.t()]
        return {
            "encoder_out": [memory],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
            "memory_positions": positions,
            "final_hidden": [torch.cat([h for output in directions for h in output.state.h], dim=1).type_as(memory)],
            "traces": [self.trace_of_output(output, mask) for output, mask in zip(directions, (valid, valid.flip(1)))],
            "samples": [torch.arange(src_tokens.size(0), device=src_tokens.device)],
        }

    def _read(self, src_tokens: Tensor, valid: Tensor) -> List[HMLSTMOutput]:
        """The output of every direction, in its own order of steps."""
        x = self.dropout_input(self.embed_tokens(src_tokens)).transpose(0, 1)
        valid_steps, slope = valid_or_none(valid.t()), self.slope_progress.slope
        outputs = [self.hm_lstm(x, None, valid_steps, slope)]
        if self.hm_lstm_backward is not None:
            backwards = None if valid_steps is None else valid_steps.flip(0)
            outputs.append(self.hm_lstm_backward(x.flip(0), None, backwards, slope))
        return outputs

    def _features(self, hidden: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(hidden), dim=-1) if self.layer_output is None else self.layer_output(hidden)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Row i becomes what was row new_order[i], as in beam search. Where hypotheses only change places among those
        of their source, all stays as it is, at no cost; to find out would on a GPU cost more."""
        before = encoder_out["samples"][0]
        if is_on_host(before) and torch.equal(before, before[new_order]):
            return encoder_out

        def select(name, value):
            if isinstance(value, BoundaryTrace):
                return value.reorder(new_order)
            return value.index_select(1 if name == "encoder_out" else 0, new_order)

        return {name: [select(name, value) for value in values] for name, values in encoder_out.items()}

    def max_positions(self) -> int:
        return UNLIMITED


def source_embedding(symbols: int, dim: int, padding_idx: int) -> nn.Embedding:
    """U(+-0.1), as fairseq's lstm: with N(0, 1) rare symbols keep their random directions for thousands of updates, and
    a decoder learns later to attend to them."""
    embedding = nn.Embedding(symbols, dim, padding_idx)
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    nn.init.zeros_(embedding.weight[padding_idx].detach())
    return embedding


def _reverse(output: HMLSTMOutput) -> HMLSTMOutput:
    """Steps in the other order; the state stays."""
    hidden = tuple(h.flip(0) for h in output.hidden)
    return output._replace(
        hidden=hidden, boundaries=output.boundaries.flip(0), boundary_probs=output.boundary_probs.flip(0)
    )


def keep_segments(memory: Tensor, closed: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Only the steps that closed a segment, and the last valid one of each sample.

    memory (S, B, C); closed, valid (S, B) bool, closed only where valid. Returns the memory (M, B, C), its padding mask
    (B, M), True where there is nothing, and the steps kept (M, B), in order, arbitrary at padding. M is the batch's
    longest, on a GPU S, so that the host need not wait for the length.
    """
    padding_mask, steps = kept_steps(closed, valid)
    return memory.gather(0, steps.unsqueeze(-1).expand(-1, -1, memory.size(-1))), padding_mask, steps


def mean_segments(memory: Tensor, closed: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """As `keep_segments`, each slot the mean of its step and of the valid ones since the slot before."""
    padding_mask, steps = kept_steps(closed, valid)
    last = steps.t().masked_fill(padding_mask, -1).unsqueeze(2)  # (B, M, 1), of each slot
    first = torch.cat([last.new_zeros(last.size(0), 1, 1), last[:, :-1] + 1], dim=1)
    step = torch.arange(memory.size(0), device=memory.device)
    inside = (step >= first) & (step <= last) & valid.t().unsqueeze(1)  # (B, M, S)
    weights = inside.to(memory.dtype) / inside.sum(2, keepdim=True).clamp(min=1)
    return torch.bmm(weights, memory.transpose(0, 1)).transpose(0, 1), padding_mask, steps


def kept_steps(closed: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor]:
    """The padding mask (B, M) and the steps (M, B) of `keep_segments`."""
    valid_from_here = valid.flip(0).cumsum(0).flip(0)
    keep = closed | (valid & (valid_from_here == 1))
    lengths = keep.sum(0)
    longest = keep.size(0)
    if is_on_host(lengths):
        longest = int(lengths.max()) if lengths.numel() else 0
    steps = keep.to(torch.uint8).sort(dim=0, descending=True, stable=True)[1][:longest]
    slots = torch.arange(longest, device=closed.device)
    return slots.unsqueeze(0) >= lengths.unsqueeze(1), steps


def attention_over_source(attention: Tensor, positions: Tensor, source_length: int) -> Tensor:
    """Attention (B, T, M) over the memory, whose slots are of the source positions (B, M), as attention (B, T, S) over
    the source: so alignments name source symbols, and models that keep different steps can be averaged in an
    ensemble."""
    over_source = attention.new_zeros([attention.size(0), attention.size(1), source_length])
    return over_source.scatter_add(2, positions.unsqueeze(1).expand_as(attention), attention)


def encoder_extra(encoder_out: EncoderOut, attention: Optional[Tensor]) -> Dict[str, Any]:
    """A decoder's second output: as `attn` attention [(B, T, S)] over the source, and as `trace` what the criterion
    regularises, the source's boundaries: the D directions of the encoder count as samples of their own, D * B of them.
    """
    positions, source = encoder_out["memory_positions"], encoder_out["traces"][0].valid
    if attention is not None and positions:
        attention = attention_over_source(attention, positions[0], source.size(1))
    return {
        "attn": None if attention is None else [attention],
        KEY: BoundaryTrace.concatenate(encoder_out["traces"]),
    }


class InitialState(nn.Module):
    """A decoder's state before its first step, from the encoder's final states: c = W h + b, h = tanh(c).

    final_units: of the encoder. hidden_sizes: of the decoder's layers.
    """

    def __init__(self, final_units: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.hidden_sizes = list(hidden_sizes)
        self.projection = nn.Linear(final_units, sum(hidden_sizes))

    def forward(self, encoder_out: EncoderOut) -> Tuple[Tuple[Tensor, ...], Tuple[Tensor, ...]]:
        """h and c, each a tuple over layers of (B, H_l)."""
        c = self.projection(encoder_out["final_hidden"][0]).split(self.hidden_sizes, dim=1)
        return tuple(torch.tanh(cell) for cell in c), c
