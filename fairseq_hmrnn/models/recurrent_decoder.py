"""What every decoder over an HM-LSTM has: embedding, recurrence and softmax."""

from __future__ import annotations

from typing import Optional

from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from ..modules.hooks import apply_linear
from .config import UNLIMITED, HMLSTMLanguageModelConfig, build_hm_lstm
from .embeddings import build_adaptive_softmax, ties_output
from .fingerprint import DictionaryFingerprint
from .recurrent import Recurrent


class RecurrentDecoder(Recurrent, FairseqIncrementalDecoder):
    """Embedding, HM-LSTM and softmax; subclasses make features (..., output_dim) of the layers' states between them.

    cfg: sizes and options. dictionary: of the input symbols. output_dictionary: of the predicted ones, if smaller.
    embed_tokens: of somebody else, to be shared. side: of the dictionary, as in DictionaryFingerprint. With an adaptive
    softmax `output_projection` is None, and what fairseq calls logits are the features that `get_normalized_probs` and
    fairseq's adaptive_loss take.
    """

    def __init__(
        self,
        cfg: HMLSTMLanguageModelConfig,
        dictionary,
        output_dictionary=None,
        embed_tokens: Optional[nn.Embedding] = None,
        side: str = "",
    ):
        output_dictionary = output_dictionary or dictionary
        super().__init__(output_dictionary)
        symbols, sizes = len(output_dictionary), {"embed-dim": cfg.embed_dim, "output-dim": cfg.output_dim}
        tied = ties_output(cfg, sizes, symbols == len(dictionary))
        self.padding_idx = dictionary.pad()
        self.embed_tokens = embed_tokens or nn.Embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.hm_lstm = build_hm_lstm(cfg, cfg.embed_dim)
        self.add_output_module(cfg)
        self.adaptive_softmax = build_adaptive_softmax(cfg.adaptive_softmax_cutoff, symbols, cfg.output_dim)
        self.output_projection = nn.Linear(cfg.output_dim, symbols) if self.adaptive_softmax is None else None
        if tied and self.output_projection is not None:
            self.output_projection.weight = self.embed_tokens.weight
        self.add_dropout_and_slope(cfg, self.hm_lstm)
        self.dropout_output = FairseqDropout(cfg.dropout_output, type(self).__name__)
        self.dictionary_fingerprint = DictionaryFingerprint(dictionary, side)

    def add_output_module(self, cfg: HMLSTMLanguageModelConfig) -> None:
        """Add what stands between recurrence and softmax, if a checkpoint's optimizer counts its weights there: their
        order is that in which they are added."""

    def embed(self, tokens: Tensor) -> Tensor:
        """The recurrence's input for tokens of any shape: (..., embed_dim)."""
        return self.dropout_input(self.embed_without_dropout(tokens))

    def embed_without_dropout(self, tokens: Tensor) -> Tensor:
        """As `embed`; what it does must also be in `input_table`."""
        return self.embed_tokens(tokens)

    @property
    def input_table(self) -> Tensor:
        """What `embed_without_dropout` gives for every symbol, (V, embed_dim): where layer 1's products are made for
        all symbols at once."""
        return self.embed_tokens.weight

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., output_dim); with an adaptive softmax the features."""
        if self.output_projection is None:
            return features
        return apply_linear(self.output_projection, features, self.hm_lstm.bfloat16_products)

    def max_positions(self) -> int:
        return UNLIMITED
