"""Trained language models for use from Python: load, sample, score, segment."""

from __future__ import annotations

import math
import os
from typing import Iterator, List, NamedTuple, Optional, Sequence, Union

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from .sampler import Sampler, SamplingOptions
from .windows import WINDOW, check_lookahead, output_symbols, read_windows

CHECKPOINT_NAMES = ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt")


class Score(NamedTuple):
    """bits_per_character: over the text's characters. bits: of every symbol. symbols: as in the dictionary."""

    bits_per_character: float
    bits: List[float]
    symbols: List[str]


def find_checkpoint(path: str) -> str:
    """The checkpoint itself, or the best one of a folder."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"no {path}: give a checkpoint file, or a folder with one")
        if not os.path.isfile(path):
            raise ValueError(f"{path} is not a regular file: give a checkpoint file, or a folder with one")
        return path
    for name in CHECKPOINT_NAMES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(f"no {', '.join(CHECKPOINT_NAMES)} in {path}: name the checkpoint file")


def load(paths: Sequence[str], data: Optional[str] = None, **overrides) -> LanguageModelHub:
    """Load one checkpoint, or several as an ensemble.

    data: a folder with the dict.txt; not wanted where the checkpoint carries its dictionary, as those of the task
    hmlstm_language_modeling do, or has dict.txt beside it. overrides: options to change, for instance
    `bpe="sentencepiece", sentencepiece_model=PATH`.
    """
    paths = [find_checkpoint(path) for path in paths]
    state = checkpoint_utils.load_checkpoint_to_cpu(paths[0], overrides)
    if any(name.startswith("encoder.") for name in state["model"]):
        raise ValueError(f"{paths[0]} is a translation model, not a language model: fairseq-generate runs it")
    cfg = state["cfg"] if state.get("cfg") is not None else convert_namespace_to_omegaconf(state["args"])
    task_state = state.get("task_state") or {}
    if data is None and "dictionary" not in task_state:
        folders = [os.path.dirname(os.path.abspath(paths[0])), *str(cfg.task.data).split(os.pathsep)[:1]]
        data = next((folder for folder in folders if os.path.exists(os.path.join(folder, "dict.txt"))), None)
        if data is None:
            raise FileNotFoundError(
                f"{paths[0]} does not carry its dictionary: give the folder that has its dict.txt as data"
            )
    if data is not None:
        task_state, overrides, cfg.task.data = {}, {**overrides, "data": data}, data
    task = tasks.setup_task(cfg.task, task_state=task_state)
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        paths, overrides, task=task, state=state if len(paths) == 1 else None
    )
    return LanguageModelHub(cfg, task, models)


class LanguageModelHub(GeneratorHubInterface):
    """fairseq's hub interface for an ensemble of language models, exact about text: no symbol is added to a prompt, and
    every character of a character model comes back. `generate`, with all of fairseq-generate's options, is its
    parent's."""

    def __init__(self, cfg, task, models):
        super().__init__(cfg, task, models)
        self.bpe, self.tokenizer = task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)
        self.begin = self.src_dict.bos() if getattr(cfg.task, "add_bos_token", False) else self.src_dict.eos()

    def binarize(self, sentence: str) -> Tensor:
        """Indices of symbols in one string, without the `</s>` that fairseq would add."""
        return self.src_dict.encode_line(sentence, append_eos=False, add_if_not_exist=False).long()

    def string(self, tokens: Tensor) -> str:
        """Symbols by name: of the input dictionary, which has those of prompts too."""
        return self.src_dict.string(tokens)

    def unknown_characters(self, text: str) -> List[str]:
        """Characters of `text` that the model has no symbol for, each once. Of a dictionary of characters."""
        return [c for c in dict.fromkeys(text) if self.src_dict.unk() in self.encode(c).tolist()]

    def _build_batches(self, tokens, skip_invalid_size_inputs):
        """One batch of prompts behind the begin symbol, spaces and newlines at their ends included."""
        pad, longest = self.src_dict.pad(), max((t.numel() for t in tokens), default=0)
        rows = [[self.begin, *t.tolist(), *[pad] * (longest - t.numel())] for t in tokens]
        lengths = torch.tensor([t.numel() + 1 for t in tokens])
        targets = [row[1:] + [pad] for row in rows]
        net_input = {"src_tokens": torch.tensor(rows), "src_lengths": lengths}
        yield {"id": torch.arange(len(rows)), "net_input": net_input, "target": torch.tensor(targets)}

    def sampler(self, options: SamplingOptions) -> Sampler:
        """Chooses neither padding nor unknown symbols, nor `<s>`."""
        dictionary = self.tgt_dict
        never = [dictionary.pad(), dictionary.unk(), dictionary.bos()]
        return Sampler(self.models, options, self.src_dict.pad(), never)

    def sample(
        self, sentences: Union[str, Sequence[str]], length: int = 200, batch_size: int = 16, **options
    ) -> Union[str, List[str]]:
        """Continue each text by `length` symbols. options: those of SamplingOptions. Returns texts, prompts included.

        For beam search and what else fairseq-generate can do: `generate([hub.encode(text)], beam=5, max_len_b=200)`.
        """
        if length < 0 or batch_size < 1:
            raise ValueError(f"length must not be negative and batch_size positive, got {length} and {batch_size}")
        if isinstance(sentences, str):
            return self.sample([sentences], length, batch_size, **options)[0]
        sampler, texts = self.sampler(SamplingOptions(**options)), []
        for start in range(0, len(sentences), batch_size):
            prompts = sentences[start : start + batch_size]
            steps = sampler.run([[self.begin, *self.encode(prompt).tolist()] for prompt in prompts])
            symbols = [next(steps).tokens for _ in range(length)]
            texts += map(self.continued, prompts, zip(*symbols) if length else [()] * len(prompts))
        return texts

    def continued(self, prompt: str, new: Sequence[int]) -> str:
        """The prompt as it is, and new symbols as they read behind it: words and pieces want to know what is before."""
        before = self.encode(prompt)
        together = self.decode(torch.cat([before, before.new_tensor(new)]))
        return prompt + together[len(self.decode(before)) :]

    def score(self, sentences: Union[str, Sequence[str]]) -> Union[Score, List[Score]]:
        """Bits of each text, character by character: of exactly its symbols, the first one predicted from nothing."""
        if isinstance(sentences, str):
            return self.score([sentences])[0]
        return [self._score(text) for text in sentences]

    def _score(self, text: str) -> Score:
        if not text:
            raise ValueError("the text to score is empty")
        symbols = self.encode(text)
        targets = output_symbols(symbols.to(self.device), self.tgt_dict)
        nats = []
        for window, found in zip(targets.split(WINDOW), self._windows(symbols)):
            log_probs = torch.stack([logits.float().log_softmax(-1) for logits, _ in found])
            mean = log_probs.logsumexp(0) - math.log(len(self.models))
            nats.append(-mean.gather(1, window.unsqueeze(1)).squeeze(1))
        bits = (torch.cat(nats) / math.log(2)).tolist()
        return Score(sum(bits) / len(text), bits, [self.src_dict[index] for index in symbols])

    def boundaries(self, text: str, lookahead: int = 0) -> Tensor:
        """(T, L) 0 or 1 for the layers with a detector: whether a segment ends with each symbol. First model's.

        lookahead: how many symbols of the next segment a layer reads before it closes one; boundaries are put that far
        back, and the last symbols have none. 1 for layers trained with `bidirectional`.
        """
        check_lookahead(lookahead)
        symbols = torch.cat([self.encode(text), torch.tensor([self.begin])])  # read once more, to see what the last did
        found = torch.cat([output.boundaries[:, 0] for (_, output), *_ in self._windows(symbols)])
        found = found[1:, : self.models[0].decoder.hm_lstm.num_detectors].cpu()
        missing = min(lookahead, len(found))
        return torch.cat([found[missing:], found.new_zeros(missing, found.size(1))])

    def segment(self, text: str, lookahead: int = 0) -> List[List[str]]:
        """For every layer that has a detector, from the bottom: the segments into which it cuts the text. lookahead: as
        in `boundaries`."""
        symbols = self.encode(text)
        if not symbols.numel():
            return [[] for _ in range(self.models[0].decoder.hm_lstm.num_detectors)]
        segments = []
        for column in self.boundaries(text, lookahead).unbind(1):
            ends = [end for end in (column.nonzero().squeeze(1) + 1).tolist() if end < symbols.numel()]
            borders = [0, *ends, symbols.numel()]
            segments.append([self.decode(symbols[a:b]) for a, b in zip(borders, borders[1:])])
        return segments

    def _windows(self, symbols: Tensor) -> Iterator:
        """Of every window of the symbols: what each model says before each of them, as `read_windows`."""
        if not all(hasattr(model.decoder, "hm_lstm") for model in self.models):
            raise ValueError("scoring and segmenting want HM-LSTM language models")
        inputs = torch.cat([torch.tensor([self.begin]), symbols[:-1]]).to(self.device)
        return zip(*[read_windows(model.decoder, inputs, size=WINDOW) for model in self.models])
