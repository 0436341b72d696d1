"""Trained language models for use from Python: sample, score, segment."""

from __future__ import annotations

import dataclasses
import logging
import operator
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from ..criterions.boundary_terms import delays_of
from ..data.characters import is_character_dictionary
from .boundary_ensemble import EnsembleReader, check_ensemble, ensemble_boundaries
from .lines import LineReader
from .reader import (
    CharacterReader,
    Lookahead,
    Reader,
    TextReader,
    closed_earlier,
    lookahead_by_layer,
    mean_log_probs,
    output_symbols,
    with_symbols,
)
from .sampler import Sampler, SamplingOptions
from .score import Score
from .search import stop_symbol
from .surface import symbol_ends, unknown_message

logger = logging.getLogger(__name__)

# Options that fairseq's hub interface takes beside the options of fairseq-generate.
HUB_OPTIONS = ("verbose", "inference_step_args", "prefix_allowed_tokens_fn")
GENERATION_OPTIONS = {*HUB_OPTIONS, *(field.name for field in dataclasses.fields(GenerationConfig))}


class LanguageModelHub(GeneratorHubInterface):
    """fairseq's hub interface for an ensemble of language models, exact about text: no symbol is added to a prompt, and
    every character of a character model comes back. `generate`, with all of fairseq-generate's options, is its
    parent's.

    Models of fairseq's own are searched too, and sampled from where their steps read one symbol each, as lstm_lm's do;
    scores, segments and boundaries are HM-LSTM's."""

    def __init__(self, cfg, task, models, criterions: Sequence[Any]):
        super().__init__(cfg, task, models)
        self.criterions = list(criterions)
        self.bpe, self.tokenizer = task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)
        self.warned_of_unknown: Set[str] = set()
        self.begin = self.src_dict.bos() if getattr(cfg.task, "add_bos_token", False) else self.src_dict.eos()

    def binarize(self, sentence: str) -> Tensor:
        """Indices of symbols in one string, without the `</s>` that fairseq would add."""
        return self.src_dict.encode_line(sentence, append_eos=False, add_if_not_exist=False).long()

    def string(self, tokens: Tensor) -> str:
        """Symbols by name: of the input dictionary, which has those of prompts too."""
        return self.src_dict.string(tokens)

    def unknown_symbols(self, texts: Sequence[str]) -> List[str]:
        """Symbols of these texts that the dictionary does not have, each once, except `<unk>` itself."""
        unknown, unk = [], self.src_dict.unk()
        for text in texts:
            indices = self.encode(text).tolist()
            if unk in indices:
                unknown += [symbol for symbol, index in zip(self._symbols(text), indices) if index == unk]
        return [symbol for symbol in dict.fromkeys(unknown) if symbol != self.src_dict.unk_word]

    def _build_batches(self, tokens, skip_invalid_size_inputs):
        """One batch of prompts after the begin symbol, spaces and newlines at their ends included, if there are any."""
        if not tokens:
            return
        pad, longest = self.src_dict.pad(), max((t.numel() for t in tokens), default=0)
        rows = [[self.begin, *t.tolist(), *[pad] * (longest - t.numel())] for t in tokens]
        lengths = torch.tensor([t.numel() + 1 for t in tokens])
        targets = [row[1:] + [pad] for row in rows]
        net_input = {"src_tokens": torch.tensor(rows), "src_lengths": lengths}
        yield {"id": torch.arange(len(rows)), "net_input": net_input, "target": torch.tensor(targets)}

    def sampler(self, options: SamplingOptions) -> Sampler:
        """Chooses neither padding nor unknown symbols, nor `<s>`."""
        return Sampler(self.models, options, self.src_dict.pad(), self.never)

    @property
    def never(self) -> List[int]:
        """Symbols that are never sampled."""
        return [self.tgt_dict.pad(), self.tgt_dict.unk(), self.tgt_dict.bos()]

    def sample(
        self,
        sentences: Union[str, Sequence[str]],
        length: int = 200,
        batch_size: int = 16,
        end: Optional[str] = None,
        **options,
    ) -> Union[str, List[str]]:
        """Continue each text by at most `length` symbols. Returns texts, prompts included.

        options: those of SamplingOptions, or fairseq's, such as `beam=5` or `beam=1, sampling=True, sampling_topk=10`:
        then fairseq's generator chooses. end: see `stop`. TypeError for an option that neither has, ValueError where
        the options are those of SamplingOptions and a model has positional embeddings.
        """
        length, batch_size = operator.index(length), operator.index(batch_size)
        if length < 0 or batch_size < 1:
            raise ValueError(f"length must not be negative and batch_size positive, got {length} and {batch_size}")
        if isinstance(sentences, str):
            return self.sample([sentences], length, batch_size, end, **options)[0]
        self._warn_of_unknown(sentences)
        ours = not options.keys() - set(SamplingOptions._fields)
        if ours:
            sampler = self.sampler(SamplingOptions(**options))
        else:
            _check_generation(options)
            options = {"beam": 1, "max_len_b": length, **options}
        stop, texts = self.stop(end), []
        for start in range(0, len(sentences), batch_size):
            prompts = sentences[start : start + batch_size]
            found = self._draw(sampler, prompts, length, stop) if ours else self._search(prompts, end, options, start)
            texts += [self.continued(prompt, _until(new, stop)) for prompt, new in zip(prompts, found)]
        return texts

    def translate(self, sentences, beam: int = 5, verbose: bool = False, **options):
        """fairseq's name for `sample` with beam search."""
        return self.sample(sentences, beam=beam, verbose=verbose, **options)

    def stop(self, end: Optional[str] = None) -> Optional[int]:
        """`stop_symbol` of a sample. end: one of ENDS; None: the task's end_of_sample. ValueError for anything else."""
        end = str(getattr(self.task.args, "end_of_sample", "auto")) if end is None else end
        return stop_symbol(end, getattr(self.task, "has_characters", False), self.tgt_dict)

    def _draw(self, sampler: Sampler, prompts: Sequence[str], length: int, stop: Optional[int]) -> List[List[int]]:
        """New symbols of each prompt, `length` of them or until all have come to `stop`."""
        steps = sampler.run([[self.begin, *self.encode(prompt).tolist()] for prompt in prompts])
        going = set(range(len(prompts)))
        drawn: List[Sequence[int]] = []
        while len(drawn) < length and going:
            drawn.append(next(steps).tokens)
            going -= {row for row in going if drawn[-1][row] == stop}
        return list(map(list, zip(*drawn))) if drawn else [[] for _ in prompts]

    def _search(self, prompts: Sequence[str], end: Optional[str], options: Dict[str, Any], start: int):
        """New symbols of each prompt, found by fairseq's generator with its options. start: prompts before these."""
        allowed, symbols = options.get("prefix_allowed_tokens_fn"), [self.encode(prompt) for prompt in prompts]
        if allowed is not None:
            options = {**options, "prefix_allowed_tokens_fn": lambda row, before: allowed(start + row, before)}
        found = self.generate(symbols, **options, **self.ending(end))
        return [hypos[0]["tokens"][before.numel() :].tolist() for before, hypos in zip(symbols, found)]

    def ending(self, end: Optional[str]) -> Dict[str, str]:
        """Options of `generate` with which samples end so, see `stop`. ValueError for samples that length is to end
        and a task of fairseq's, whose generators end them with `</s>`."""
        args = self.task.args
        if getattr(args, "end_of_sample", None) is not None:
            return {} if end is None else {"end_of_sample": end}  # which the task's build_generator reads
        if self.stop(end) is None:
            raise ValueError(f"beam search of the task {args._name} ends samples with </s>: leave the end {end} out")
        return {}

    def continued(self, prompt: str, new: Sequence[int]) -> str:
        """The prompt as it is, then the text of the new symbols, `</s>` as a newline: that of words and pieces depends
        on what comes before."""
        words = not getattr(self.task, "has_characters", False)
        first, *lines = _lines(new, self.src_dict.eos()) if words else [new]
        before = self.encode(prompt)
        together = self.decode(torch.cat([before, before.new_tensor(first)]))
        behind = together[len(self.decode(before)) :]
        if words and prompt[-1:].isspace():
            behind = behind.lstrip(" ")  # the space that is there already
        texts = [prompt + behind, *(self.decode(before.new_tensor(x)) for x in lines)]
        return "\n".join(texts)

    def score(
        self, sentences: Union[str, Sequence[str]], replace_newline_with_eos: bool = False, **options
    ) -> Union[Score, List[Score]]:
        """Bits of each text, by symbol, the first one predicted from nothing. ValueError for a text without symbols.

        replace_newline_with_eos: a newline is `</s>`, as it always is for characters, not white space between words.
        options: fairseq's, none of which changes a score.
        """
        _check_generation(options)
        if isinstance(sentences, str):
            self._warn_of_unknown([sentences])
            return self._score(sentences, replace_newline_with_eos)
        self._warn_of_unknown(sentences)
        return [self._score(text, replace_newline_with_eos) for text in sentences]

    def _score(self, text: str, newline_is_eos: bool) -> Score:
        if not text:
            raise ValueError("the text to score is empty: give at least one symbol")
        symbols = self.encode(text)
        if newline_is_eos and not getattr(self.task, "has_characters", False):
            first, *lines = map(self.encode, text.split("\n"))
            eos = first.new_tensor([self.src_dict.eos()])
            symbols = torch.cat([first, *(part for line in lines for part in (eos, line))])
        if not symbols.numel():
            raise ValueError(f"the text to score has no symbols but whitespace, {text[:40]!r}: give at least one word")
        log_probs = torch.cat(list(self._log_probs(symbols)))
        return Score.of(symbols, log_probs, [self.src_dict[index] for index in symbols], len(text))

    def reader(self, independent_lines: bool = False) -> TextReader:
        """Reads a text of any length, piece by piece; several models decide together. ValueError for a model of words
        or pieces, for another one than HM-LSTM, and by `check_ensemble`. independent_lines: each line as if it were a
        text of its own, in batches. The models must not change while it reads."""
        if not is_character_dictionary(self.src_dict):
            raise ValueError("the model was not trained on characters: give one of a text of `fairseq-hmrnn prepare`")
        kind = LineReader if independent_lines else CharacterReader
        readers = [kind(model.decoder, self.src_dict, self.begin) for model in self.models]
        check_ensemble([reader.reader for reader in readers], self.delays)
        return readers[0] if len(readers) == 1 else EnsembleReader(readers)

    @property
    def delays(self) -> List[Tuple[int, ...]]:
        """For every model, how many symbols after a segment's last one its layers were taught to close it, as
        `delays_of` says."""
        return [delays_of(criterion) for criterion in self.criterions]

    def boundaries(
        self, text: Union[str, Sequence[str]], lookahead: Optional[Lookahead] = None
    ) -> Union[Tensor, List[Tensor]]:
        """(T, L) 0 or 1 of each text for the layers with a detector: whether a segment ends with each symbol. Several
        models decide together, by the mean of their z~; ValueError by `check_ensemble`.

        lookahead: how many symbols of the next segment a layer reads before it closes one; boundaries are put that far
        back, and the last symbols have none; one number for all layers, or one for each. None: what each was taught,
        the first of `delays`, as the commands do.
        """
        if isinstance(text, str):
            return self._boundaries(text, lookahead)
        return [self._boundaries(each, lookahead) for each in text]

    def _boundaries(self, text: str, lookahead: Optional[Lookahead]) -> Tensor:
        lookahead = self.delays[0] if lookahead is None else lookahead
        lookahead_by_layer(lookahead, self.models[0].decoder.hm_lstm.num_detectors)  # before anything is read
        self._warn_of_unknown([text])
        readers = [Reader(model.decoder, self.begin) for model in self.models]
        check_ensemble(readers, self.delays)
        return torch.from_numpy(closed_earlier(ensemble_boundaries(readers, self.encode(text)), lookahead))

    def segment(
        self, text: Union[str, Sequence[str]], lookahead: Optional[Lookahead] = None
    ) -> Union[List[List[str]], List[List[List[str]]]]:
        """For every layer that has a detector, from the bottom: the segments into which it cuts a text, slices of it
        that together are the text; where a tokenizer changes the text, of the text as it then reads. Of several texts
        a list of these. lookahead: as in `boundaries`."""
        if isinstance(text, str):
            return self._segments(text, lookahead)
        return [self._segments(each, lookahead) for each in text]

    def _segments(self, text: str, lookahead: Optional[Lookahead]) -> List[List[str]]:
        symbols = self._symbols(text)
        if not symbols:
            return [[text] if text else [] for _ in range(self.models[0].decoder.hm_lstm.num_detectors)]
        segments = []
        for column in self._boundaries(text, lookahead).unbind(1):
            ends = [end for end in (column.nonzero().squeeze(1) + 1).tolist() if end < len(symbols)]
            segments.append(self._slices(text, symbols, [0, *ends, len(symbols)]))
        return segments

    def _slices(self, text: str, symbols: Sequence[str], borders: Sequence[int]) -> List[str]:
        """The parts of a text between borders that count its symbols."""
        cuts = self._cuts(text, symbols, borders)
        if cuts is None:
            return [self.remove_bpe(" ".join(symbols[a:b])) for a, b in zip(borders, borders[1:])]
        return [text[a:b] for a, b in zip(cuts, cuts[1:])]

    def _cuts(self, text: str, symbols: Sequence[str], borders: Sequence[int]) -> Optional[List[int]]:
        """Where borders that count symbols are in the text; None where a tokenizer has changed it."""
        if getattr(self.task, "has_characters", False):
            return list(borders)
        ends = symbol_ends(text, symbols)
        return None if ends is None else [0, *(ends[border - 1] for border in borders[1:-1]), len(text)]

    def symbol_slices(self, text: str) -> Optional[List[str]]:
        """The text by symbol: slices that together are the text; None where a tokenizer has changed it."""
        symbols = self._symbols(text)
        cuts = self._cuts(text, symbols, range(len(symbols) + 1)) if symbols else [0]
        return None if cuts is None else [text[a:b] for a, b in zip(cuts, cuts[1:])]

    def _symbols(self, text: str) -> List[str]:
        """The text's symbols by name, unknown ones too; of characters themselves."""
        if getattr(self.task, "has_characters", False):
            return list(text)
        return self.apply_bpe(self.tokenize(text)).split()

    def _warn_of_unknown(self, texts: Sequence[str]) -> None:
        """Warn of what the model has never seen, once of each symbol."""
        new = [symbol for symbol in self.unknown_symbols(texts) if symbol not in self.warned_of_unknown]
        if new:
            self.warned_of_unknown.update(new)
            logger.warning(unknown_message(new))

    def _log_probs(self, symbols: Tensor) -> Iterator[Tensor]:
        """The logarithm of the models' mean probability of each symbol, by windows."""
        readers = [Reader(model.decoder, self.begin) for model in self.models]
        for windows in zip(*(reader.read(symbols) for reader in readers)):
            parts = zip(*(reader.log_probs(window) for reader, window in zip(readers, windows)))
            means = map(mean_log_probs, parts)
            for _, of_symbols in with_symbols(means, output_symbols(windows[0].tokens, self.tgt_dict)):
                yield of_symbols.squeeze(1)


def _check_generation(options: Dict[str, Any]) -> None:
    """TypeError for what is no option of fairseq's hub interface."""
    unknown = sorted(options.keys() - GENERATION_OPTIONS)
    if unknown:
        raise TypeError(
            f"unknown option {', '.join(unknown)}: give those of sampling ({', '.join(SamplingOptions._fields)}), or "
            "those of fairseq-generate, not both"
        )


def _until(symbols: Sequence[int], stop: Optional[int]) -> Sequence[int]:
    """Those before the first `stop`."""
    return symbols[: symbols.index(stop)] if stop in symbols else symbols


def _lines(symbols: Sequence[int], eos: int) -> List[List[int]]:
    """The parts between `eos`."""
    lines: List[List[int]] = [[]]
    for symbol in symbols:
        if symbol == eos:
            lines.append([])
        else:
            lines[-1].append(symbol)
    return lines
