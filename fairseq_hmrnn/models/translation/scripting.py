"""The translation models for torch.jit.script, which reads source text and cannot read theirs.

Recurrences, gated output and attention are traced, a step or a call at a time, from the very modules that train, and
the loops around them scripted. The recurrence is the reference's, as in inference/export.py. The result is for
inference: it has no recurrent dropout, and no gradient goes through the boundaries.

Shapes: B sentences; S source symbols; M slots of the memory, S unless encoder-memory is of segments; T target symbols,
1 with a cache; L layers; D directions of the encoder, 1 or 2; V target symbols of the dictionary.
"""

from __future__ import annotations

import copy
from typing import Dict, List, Optional, Tuple

import torch
from fairseq.models import lstm as fairseq_lstm
from torch import Tensor, nn

from ...modules import HMLSTM
from ...ops import HMLSTMState, hm_lstm, state_dtype
from .encoder import attention_over_source, keep_segments, mean_segments

Extra = Dict[str, List[Tensor]]


class _Step(nn.Module):
    """x (B, input_size), state (B, P) as HMLSTMState.pack, valid (B,) to the layers' h side by side, boundaries and
    their probabilities (B, L), and the state."""

    def __init__(self, recurrence: HMLSTM, slope: float):
        super().__init__()
        self.recurrence, self.options = recurrence, recurrence.options(slope)

    def forward(self, x: Tensor, state: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        before = HMLSTMState.unpack(state, self.recurrence.hidden_sizes)
        layers = self.recurrence.layers()
        output = hm_lstm(x.unsqueeze(0), layers, before, self.options, valid.unsqueeze(0), backend="reference")
        hidden = torch.cat(output.hidden, dim=2).squeeze(0)
        return hidden, output.boundaries[0], output.boundary_probs[0], output.state.pack()


class _Gated(nn.Module):
    """The gated output module of h of all layers side by side."""

    def __init__(self, layer_output: nn.Module, sizes: List[int]):
        super().__init__()
        self.layer_output, self.sizes = layer_output, sizes

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer_output(hidden.split(self.sizes, dim=-1))


class _FirstState(nn.Module):
    """The encoder's final states (B, F) to h and c of the decoder's layers, side by side."""

    def __init__(self, initial_state: nn.Module):
        super().__init__()
        self.initial_state = initial_state

    def forward(self, final_hidden: Tensor) -> Tuple[Tensor, Tensor]:
        h, c = self.initial_state({"final_hidden": [final_hidden]})
        return torch.cat(h, dim=1), torch.cat(c, dim=1)


def trace_step(recurrence: HMLSTM, slope: float) -> torch.jit.ScriptModule:
    """A `_Step`, recorded for batches of any size."""
    like = recurrence.bias[0].detach()
    columns = 2 * sum(recurrence.hidden_sizes) + recurrence.num_layers
    state = like.new_zeros(2, columns, dtype=state_dtype(like.dtype))
    example = like.new_zeros(2, recurrence.input_size), state, like.new_ones(2).bool()
    return _trace(_Step(recurrence, slope), *example)


@torch.no_grad()
def _trace(module: nn.Module, *example: Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(module, example, check_trace=False)


class Recurrence(nn.Module):
    """Steps over a sequence."""

    def __init__(self, recurrence: HMLSTM, slope: float):
        super().__init__()
        self.step = trace_step(recurrence, slope)
        self.hidden_size, self.num_layers = sum(recurrence.hidden_sizes), recurrence.num_layers

    def forward(self, x: Tensor, state: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (T, B, input_size), state (B, P), valid (T, B) to h of all layers (T, B, H), boundaries and probabilities
        (T, B, L), and the state at the end."""
        hidden = [x.new_zeros(0, x.size(1), self.hidden_size)]  # T may be 0
        boundaries = [x.new_zeros(0, x.size(1), self.num_layers)]
        probs = [x.new_zeros(0, x.size(1), self.num_layers)]
        for t in range(x.size(0)):
            h, z, z_tilde, state = self.step(x[t], state, valid[t])
            hidden.append(h.unsqueeze(0))
            boundaries.append(z.unsqueeze(0))
            probs.append(z_tilde.unsqueeze(0))
        return torch.cat(hidden), torch.cat(boundaries), torch.cat(probs), state


class Encoder(nn.Module):
    """An HMLSTMEncoder; returns the tensors of its dictionary."""

    def __init__(self, encoder):
        super().__init__()
        slope, sizes = encoder.slope_progress.slope, list(encoder.hm_lstm.hidden_sizes)
        directions = [encoder.hm_lstm] + ([] if encoder.hm_lstm_backward is None else [encoder.hm_lstm_backward])
        self.embed_tokens, self.padding_idx = encoder.embed_tokens, int(encoder.padding_idx)
        self.dropout_input, self.dropout_memory = encoder.dropout_input, encoder.dropout_memory
        self.directions = nn.ModuleList([Recurrence(recurrence, slope) for recurrence in directions])
        self.state_size, self.hidden_size = 2 * sum(sizes) + len(sizes), sum(sizes)
        self.state_dtype = state_dtype(encoder.embed_tokens.weight.dtype)
        self.keeps_segments, self.means_segments = (encoder.memory_kind == kind for kind in ("segments", "means"))
        self.memory_layer = encoder.memory_layer or 0
        self.layer_output: nn.Module = nn.Identity()
        if encoder.layer_output is not None:
            example = encoder.embed_tokens.weight.new_zeros(3, 2, self.hidden_size * len(directions))
            self.layer_output = _trace(_Gated(encoder.layer_output, sizes * len(directions)), example)

    def forward(self, src_tokens: Tensor) -> Extra:
        """Read src_tokens (B, S) int64, padded on either side.

        Returns lists of tensors: `encoder_out` [(M, B, C)], the memory; `encoder_padding_mask` [(B, M)] bool, True
        where it has nothing; `memory_positions` [(B, M)], the source position after each slot, empty if M is S;
        `final_hidden` [(B, F)], h of all layers and directions; `boundaries`, `boundary_probs` (B, S, L) and `valid`
        (B, S) of each direction, in the order in which it reads; `encoder_embedding` and `encoder_states`, which
        fairseq's decoders ask for, are empty.
        """
        valid = src_tokens.ne(self.padding_idx)
        x = self.dropout_input(self.embed_tokens(src_tokens)).transpose(0, 1)
        state, steps = torch.zeros(x.size(1), self.state_size, dtype=self.state_dtype, device=x.device), valid.t()
        hidden: List[Tensor] = []
        final: List[Tensor] = []
        boundaries: List[Tensor] = []
        probs: List[Tensor] = []
        closed = torch.zeros_like(steps)
        for index, direction in enumerate(self.directions):
            if index == 1:
                x, steps = x.flip(0), steps.flip(0)
            h, z, z_tilde, reached = direction(x, state, steps)
            here = z[:, :, self.memory_layer] > 0.5
            hidden.append(h.flip(0) if index == 1 else h)
            closed = closed | (here.flip(0) if index == 1 else here)
            final.append(reached[:, : self.hidden_size].to(h.dtype))
            boundaries.append(z.transpose(0, 1))
            probs.append(z_tilde.transpose(0, 1))
        memory = self.dropout_memory(self.layer_output(torch.cat(hidden, dim=2)))
        padding_mask = ~valid
        positions: List[Tensor] = []
        if self.keeps_segments:
            memory, padding_mask, slots = keep_segments(memory, closed, valid.t())
            positions.append(slots.t())
        elif self.means_segments:
            memory, padding_mask, slots = mean_segments(memory, closed, valid.t())
            positions.append(slots.t())
        empty: List[Tensor] = []
        return {
            "encoder_out": [memory],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": empty,
            "encoder_states": empty,
            "memory_positions": positions,
            "final_hidden": [torch.cat(final, dim=1)],
            "boundaries": boundaries,
            "boundary_probs": probs,
            "valid": [valid, valid.flip(1)][: len(boundaries)],
        }


def extra_of(encoder_out: Extra, attention: Optional[Tensor]) -> Extra:
    """As `encoder_extra`, every value in a list: `attn` [(B, T, S)], empty without attention; `boundaries` and
    `boundary_probs` [(D B, S, L)], `valid` [(D B, S)]. attention: (B, T, M)."""
    attn: List[Tensor] = []
    if attention is not None:
        if len(encoder_out["memory_positions"]) > 0:
            positions, source = encoder_out["memory_positions"][0], encoder_out["valid"][0]
            attention = attention_over_source(attention, positions, source.size(1))
        attn.append(attention)
    return {
        "attn": attn,
        "boundaries": [torch.cat(encoder_out["boundaries"])],
        "boundary_probs": [torch.cat(encoder_out["boundary_probs"])],
        "valid": [torch.cat(encoder_out["valid"])],
    }


class AttentionDecoder(nn.Module):
    """An HMLSTMAttentionDecoder, step by step with and without input feeding."""

    def __init__(self, decoder):
        super().__init__()
        weight = decoder.embed_tokens.weight
        self.embed_tokens, self.padding_idx = decoder.embed_tokens, int(decoder.padding_idx)
        self.dropout_input, self.dropout_output = decoder.dropout_input, decoder.dropout_output
        self.step = trace_step(decoder.hm_lstm, decoder.slope_progress.slope)
        query, memory = sum(decoder.hm_lstm.hidden_sizes), decoder.attention.query.out_features
        mask = weight.new_zeros(2, 4).bool()
        self.attention = _trace(decoder.attention, weight.new_zeros(2, 3, query), weight.new_zeros(2, 4, memory), mask)
        final = weight.new_zeros(2, decoder.initial_state.projection.in_features)
        self.first_state = _trace(_FirstState(decoder.initial_state), final)
        self.num_layers, self.output_size = decoder.hm_lstm.num_layers, decoder.attention.output.out_features
        self.feed: nn.Module = nn.Identity() if decoder.feed is None else decoder.feed
        self.feeds = decoder.feed is not None
        self.state_dtype = state_dtype(weight.dtype)
        self.output: nn.Module = nn.Identity() if decoder.output_projection is None else decoder.output_projection

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Dict[str, List[Tensor]],
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
    ) -> Tuple[Tensor, Dict[str, List[Tensor]]]:
        """Logits (B, T, V) after each of prev_output_tokens (B, T), or features (B, T, output_dim) with an adaptive
        softmax, and what `extra_of` returns. encoder_out: of Encoder.

        incremental_state: a cache, {} before the first step; with it only the last symbol is read. It holds under
        "hmlstm" `state` (B, P), that of the recurrence, and `attended` (B, output_dim), what was attended to last: a
        search that reorders its hypotheses selects rows of both.
        """
        h, c = self.first_state(encoder_out["final_hidden"][0])
        state = torch.cat([h, c, h.new_zeros(h.size(0), self.num_layers)], dim=1).to(self.state_dtype)
        attended = h.new_zeros(h.size(0), self.output_size)
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            if "hmlstm" in incremental_state:
                cached = incremental_state["hmlstm"]
                held_state, held_attended = cached["state"], cached["attended"]
                assert held_state is not None and held_attended is not None
                state, attended = held_state, held_attended
        valid = prev_output_tokens.ne(self.padding_idx)
        x = self.dropout_input(self.embed_tokens(prev_output_tokens))
        memory, mask = encoder_out["encoder_out"][0].transpose(0, 1), encoder_out["encoder_padding_mask"][0]
        features = [x.new_zeros(x.size(0), 0, self.output_size)]  # T may be 0
        attentions = [x.new_zeros(x.size(0), 0, memory.size(1))]
        for t in range(x.size(1)):
            fed = x[:, t]
            if self.feeds:
                fed = fed + self.feed(attended)
            hidden, _, _, state = self.step(fed, state, valid[:, t])
            found, attention = self.attention(hidden.unsqueeze(1), memory, mask)
            found = self.dropout_output(found)
            attended = torch.where(valid[:, t].unsqueeze(1), found.squeeze(1), attended)
            features.append(found)
            attentions.append(attention)
        if incremental_state is not None:
            held: Dict[str, Optional[Tensor]] = {"state": state, "attended": attended}
            incremental_state["hmlstm"] = held
        return self.output(torch.cat(features, dim=1)), extra_of(encoder_out, torch.cat(attentions, dim=1))


class LSTMDecoder(nn.Module):
    """An HMLSTMLSTMDecoder."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = as_parent(decoder)
        final = decoder.embed_tokens.weight.new_zeros(2, decoder.initial_state.projection.in_features)
        self.first_state = _trace(_FirstState(decoder.initial_state), final)
        self.num_layers = int(decoder.num_layers)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Dict[str, List[Tensor]],
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
    ) -> Tuple[Tensor, Dict[str, List[Tensor]]]:
        """Logits (B, T, V) after each of prev_output_tokens (B, T), or features (B, T, decoder_hidden_size) with an
        adaptive softmax, and what `extra_of` returns. encoder_out: of Encoder.

        incremental_state: a cache, {} before the first step; with it only the last symbol is read. It is of fairseq's
        LSTM decoder: under a key that ends in "cached_state" `prev_hiddens` and `prev_cells` (layers, B, H) and
        `input_feed` (B, H), of which a search that reorders its hypotheses selects samples.
        """
        h, c = self.first_state(encoder_out["final_hidden"][0])
        hidden, cells = torch.stack(h.chunk(self.num_layers, 1)), torch.stack(c.chunk(self.num_layers, 1))
        encoded = encoder_out["encoder_out"][0], hidden, cells, encoder_out["encoder_padding_mask"][0].t()
        logits, attention = self.decoder(prev_output_tokens, encoded, incremental_state)
        return logits, extra_of(encoder_out, attention)


class TransformerDecoder(nn.Module):
    """An HMLSTMTransformerDecoder."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = as_parent(decoder)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Dict[str, List[Tensor]],
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
    ) -> Tuple[Tensor, Dict[str, List[Tensor]]]:
        """Logits (B, T, V) after each of prev_output_tokens (B, T), or features (B, T, decoder_embed_dim) with an
        adaptive softmax, and what `extra_of` returns. encoder_out: of Encoder.

        incremental_state: a cache, {} before the first step; with it the last symbol's logits alone are computed, but
        prev_output_tokens are still all symbols, of which positions are counted. It is of fairseq's Transformer
        decoder: keys that end in "attn_state", tensors with samples in their first dimension.
        """
        logits, extra = self.decoder(prev_output_tokens, encoder_out, incremental_state)
        attention: Optional[Tensor] = None
        if extra is not None:
            attention = extra["attn"][0]
        return logits, extra_of(encoder_out, attention)


ADDED = ("initial_state", "dictionary_fingerprint")


def as_parent(decoder: nn.Module) -> nn.Module:
    """The decoder as fairseq's class, which torch.jit.script can read, with the same weights and without what this
    package added to it."""
    plain = copy.copy(decoder)
    plain.__class__ = type(decoder).__bases__[0]
    plain._modules = {name: module for name, module in decoder._modules.items() if name not in ADDED}
    if plain._modules.get("adaptive_softmax") is not None:  # which fairseq asks only whether it is there
        plain._modules["adaptive_softmax"] = nn.Identity()
    elif isinstance(plain, fairseq_lstm.LSTMDecoder) and plain.share_input_output_embed:  # both branches are compiled
        plain.share_input_output_embed, plain._modules["fc_out"] = False, nn.Linear(1, 1, bias=False)
        plain.fc_out.weight = plain.embed_tokens.weight
    return plain


class Translation(nn.Module):
    """A TranslationModel: logits (B, T, V), or features with an adaptive softmax, and the lists of `extra_of`."""

    def __init__(self, encoder: Encoder, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor],
        prev_output_tokens: Tensor,
        incremental_state: Optional[Dict[str, Dict[str, Optional[Tensor]]]] = None,
    ) -> Tuple[Tensor, Dict[str, List[Tensor]]]:
        """What the decoder returns for src_tokens (B, S) and prev_output_tokens (B, T); src_lengths is not needed.
        incremental_state: of the decoder; a search calls `encoder` once and then `decoder`, not this."""
        return self.decoder(prev_output_tokens, self.encoder(src_tokens), incremental_state)
