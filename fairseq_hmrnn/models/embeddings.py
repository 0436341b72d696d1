"""Embeddings and softmax layers as fairseq's own models have them: pretrained, shared, adaptive."""

from __future__ import annotations

from typing import Dict, List, Optional

import torch
from fairseq import utils
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from ..options import LARGEST_COUNT

SHRINKING = 4  # each tail of an adaptive softmax has so many times fewer dimensions than the one before it


def load_embedding(embedding: nn.Embedding, dictionary, path: str) -> None:
    """Copy the vectors of a text file into an embedding: after a first line, which is not read, one line for each
    symbol, its name and its numbers. Symbols that are not there keep their vectors. ValueError if it has none of the
    dictionary's symbols, vectors of another size, or is no such file."""
    try:
        vectors = utils.parse_embedding(path)
    except (ValueError, StopIteration) as error:  # of float() and of decoding; of next() in an empty file
        raise ValueError(f"{path} has no embeddings, a symbol and its numbers in a line: {error}") from error
    found = [symbol for symbol in dictionary.symbols if symbol in vectors]
    if not found:
        raise ValueError(f"{path} has a vector for none of the {len(dictionary)} symbols of the dictionary")
    for symbol in found:
        if vectors[symbol].numel() != embedding.embedding_dim:
            raise ValueError(
                f"{path} has {vectors[symbol].numel()} numbers for {symbol!r}, the embedding has a size of "
                f"{embedding.embedding_dim}: give that size as the embedding's"
            )
    utils.print_embed_overlap(vectors, dictionary)
    utils.load_embedding(vectors, dictionary, embedding)


def check_criterion(cfg) -> None:
    """ValueError for a criterion that the model's softmax does not go with."""
    if str(cfg.criterion_name) == "adaptive_loss" and not cfg.adaptive_softmax_cutoff:
        raise ValueError(
            "--criterion adaptive_loss requires --adaptive-softmax-cutoff, such as 10000,50000: the numbers of most "
            "frequent symbols in the first parts of the softmax"
        )


def ties_output(cfg, sizes: Dict[str, int], one_dictionary: bool = True) -> bool:
    """Whether the softmax weights are the decoder's embedding. sizes: option -> of embedding and of softmax layer.
    ValueError where they cannot be."""
    shares_all = getattr(cfg, "share_all_embeddings", False)
    asked = cfg.share_decoder_input_output_embed or getattr(cfg, "tie_embeddings", False)
    if cfg.adaptive_softmax_cutoff:
        if asked:
            raise ValueError(
                "share-decoder-input-output-embed (tie-embeddings) does not go with adaptive-softmax-cutoff, whose "
                "weights are of several sizes: leave out one of them"
            )
        return False
    if not (asked or shares_all):
        return False
    if len(set(sizes.values())) > 1 or not one_dictionary:
        name = "share-all-embeddings" if shares_all else "share-decoder-input-output-embed (tie-embeddings)"
        given = " and ".join(f"{option} ({size})" for option, size in sizes.items())
        raise ValueError(f"{name} requires {given} to be equal, and one dictionary for input and output")
    return True


def check_shared_embeddings(cfg, task) -> None:
    """ValueError if share-all-embeddings is given and encoder and decoder cannot have one embedding."""
    if not cfg.share_all_embeddings:
        return
    if task.source_dictionary != task.target_dictionary:
        raise ValueError(
            "share-all-embeddings requires one dictionary for both languages: prepare the data with "
            "fairseq-preprocess --joined-dictionary"
        )
    if (cfg.decoder_embed_dim or cfg.embed_dim) != cfg.embed_dim:
        raise ValueError(
            f"share-all-embeddings requires decoder-embed-dim ({cfg.decoder_embed_dim}) equal to embed-dim "
            f"({cfg.embed_dim})"
        )
    if cfg.decoder_embed_path and cfg.decoder_embed_path != cfg.encoder_embed_path:
        raise ValueError("with share-all-embeddings give the file as encoder-embed-path alone: there is one embedding")


def split_cutoffs(text: str, largest: int = LARGEST_COUNT) -> List[int]:
    """ "1000,5000" to [1000, 5000], "" to []. ValueError for anything but rising numbers from 1 to `largest`."""
    if not text:
        return []
    try:
        cutoffs = [int(part) for part in text.split(",")]
    except ValueError:
        cutoffs = []
    if not cutoffs or sorted(set(cutoffs)) != cutoffs or not 1 <= cutoffs[0] or cutoffs[-1] > largest:
        raise ValueError(
            "adaptive-softmax-cutoff must be rising whole numbers, separated by commas, from 1 to the number of "
            f"symbols (at most {largest}), not {text[:200]!r}"
        )
    return cutoffs


def parse_cutoffs(text: str, num_symbols: int, dim: int) -> Optional[List[int]]:
    """As `split_cutoffs`, "" to None. ValueError with a remedy for what a softmax over num_symbols of an input of `dim`
    cannot be cut into."""
    cutoffs = split_cutoffs(text, num_symbols)
    if not cutoffs:
        return None
    tails = len(cutoffs) - (cutoffs[-1] == num_symbols)
    if not tails or dim < SHRINKING**tails:
        raise ValueError(
            f"adaptive-softmax-cutoff {text} leaves {tails} parts after the first one; with an output of {dim} "
            f"dimensions there can be 1 to {max(0, int(dim).bit_length() - 1) // 2}: give other cutoffs"
        )
    return cutoffs


class DifferentiableAdaptiveSoftmax(AdaptiveSoftmax):
    """fairseq's, whose log-probabilities of all symbols have no backward pass, for they are written in place."""

    def get_log_prob(self, input: Tensor, target: Optional[Tensor]) -> Tensor:
        """(B, T, symbols) for features (B, T, dim)."""
        if not torch.is_grad_enabled():
            return super().get_log_prob(input, target)
        features, first = input.flatten(0, 1), self.cutoff[0]
        head = self.lsm(self.head(features))
        tails = [self.lsm(tail(features)) + head[:, first + i, None] for i, tail in enumerate(self.tail)]
        return torch.cat([head[:, :first], *tails], 1).view(*input.shape[:-1], -1)


def make_differentiable(decoder: nn.Module) -> None:
    """Give the adaptive softmax that a decoder of fairseq's has built, if it has, its backward pass."""
    if decoder.adaptive_softmax is not None:
        decoder.adaptive_softmax.__class__ = DifferentiableAdaptiveSoftmax


def build_adaptive_softmax(text: str, num_symbols: int, dim: int) -> Optional[AdaptiveSoftmax]:
    """The adaptive softmax (arXiv 1609.04309) over num_symbols that `adaptive-softmax-cutoff` describes, None for "".
    Dropout on its input of `dim` dimensions is left to the decoder."""
    cutoffs = parse_cutoffs(text, num_symbols, dim)
    if cutoffs is None:
        return None
    return DifferentiableAdaptiveSoftmax(num_symbols, dim, cutoffs, dropout=0.0, factor=SHRINKING)
