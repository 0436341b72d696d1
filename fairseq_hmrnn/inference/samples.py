"""Samples of a language model written to a stream: as they come, or complete, as text or JSON."""

from __future__ import annotations

import json
import math
from itertools import chain, islice, repeat
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .hub import LanguageModelHub
from .sampler import SamplingOptions
from .transcript import Plain, WithBoundaries, symbol_texts

SEPARATOR = "\n----------\n"  # between samples


class Layout(NamedTuple):
    """show_boundaries: mark where segments end. json: a line of JSON for each sample, with scores and boundaries.
    hide_prompt: the new text only."""

    show_boundaries: bool = False
    json: bool = False
    hide_prompt: bool = False


class Sample(NamedTuple):
    """A complete sample: new symbols after a prompt, bits of each, and by symbol what layers closed with the one
    before it, empty after a search and for models without detectors."""

    prompt: str
    symbols: List[int]
    bits: List[float]
    boundaries: List[Sequence[float]]


class _ReadPrompt(NamedTuple):
    """A prompt as the models read it: its symbols, bits of each, and what layers closed with the one before it, None
    for models without detectors."""

    symbols: List[int]
    bits: List[float]
    boundaries: List[Optional[List[float]]]


class SampleWriter:
    """Draws samples and writes them. length: of each, in new symbols, at most; end: see `LanguageModelHub.stop`.
    new_symbols counts what was drawn."""

    def __init__(
        self, model: LanguageModelHub, options: SamplingOptions, length: int, end: str, layout: Layout, out: IO[str]
    ):
        self.model, self.length, self.end, self.layout, self.out = model, length, end, layout, out
        self.sampler = model.sampler(options)
        self.texts = [] if layout.json else symbol_texts(model.task, model.bpe)
        self.has_characters = getattr(model.task, "has_characters", False)
        self.stop = model.stop(end)
        self.interactive = out.isatty()
        self.written = self.new_symbols = 0
        self._read: Optional[Tuple[str, _ReadPrompt]] = None  # the last prompt

    def draw(self, prompts: Sequence[str], samples: int, batch_size: int) -> None:
        """`samples` of each prompt: one by one as they come, or complete ones of `batch_size` drawn together."""
        queue = chain.from_iterable(repeat(prompt, samples) for prompt in prompts)
        if batch_size == 1 and not self.layout.json:
            for prompt in queue:
                self._stream(prompt)
            return
        for batch in iter(lambda: list(islice(queue, batch_size)), []):
            for sample in self._batch(batch):
                self._write(sample)

    def search(self, prompts: Sequence[str], nbest: int, **options: Any) -> None:
        """The `nbest` most probable texts that fairseq's beam search finds for each prompt. options: of
        fairseq-generate."""
        own_scores = options.get("temperature", 1) == 1 and options.get("diverse_beam_groups", 0) <= 0
        for prompt in prompts:
            before = self.model.encode(prompt)
            found = self.model.generate([before], max_len_b=self.length, **options, **self.model.ending(self.end))[0]
            for hypothesis in found[:nbest]:
                new = hypothesis["tokens"][before.numel() :].tolist()
                log_probs = hypothesis["positional_scores"].tolist()
                if self.layout.json and not own_scores:  # they are of another temperature, or have a penalty in them
                    log_probs, _ = self.sampler.read([*self._symbols(prompt), *new])
                bits = [-x / math.log(2) for x in log_probs[before.numel() :]]
                self.new_symbols += len(new)
                self._write(Sample(prompt, new, bits, []))

    def _symbols(self, prompt: str) -> List[int]:
        return [self.model.begin, *self.model.encode(prompt).tolist()]

    def _shown(self, prompt: str) -> str:
        """The prompt as new text follows it: a space goes before a new word."""
        words = self.model.bpe is None and not self.has_characters
        return prompt + " " if words and prompt and not prompt[-1].isspace() else prompt

    def _transcript(self) -> Plain:
        return WithBoundaries(self.texts, self.interactive) if self.layout.show_boundaries else Plain(self.texts)

    def _separate(self) -> None:
        if self.written and not self.layout.json:
            self.out.write(SEPARATOR)
        self.written += 1

    def _stream(self, prompt: str) -> None:
        """One sample, written symbol by symbol."""
        steps = self.sampler.run([self._symbols(prompt)])  # refuses models before anything is written
        self._separate()
        transcript, write = self._transcript(), self.out.write
        for part in self._prompt_parts(prompt, transcript):
            write(part)
        last = -1  # no symbol
        for count, step in enumerate(steps):
            closed = step.boundaries[0] if step.boundaries else None
            if count == self.length or last == self.stop:
                write(transcript.end(closed))
                break
            last = step.tokens[0]
            write(transcript.add(last, closed))
            self.new_symbols += 1
            if self.interactive:
                self.out.flush()

    def _prompt_parts(self, prompt: str, transcript: Plain) -> Iterator[str]:
        if self.layout.hide_prompt:
            return
        if not self.layout.show_boundaries:
            yield self._shown(prompt)
            return
        reading, parts = self._reading(prompt), self.model.symbol_slices(self._shown(prompt))
        if parts is None or len(parts) != len(reading.symbols):  # the prompt as it reads, then
            parts = [self.texts[symbol] for symbol in reading.symbols]
        for part, closed in zip(parts, reading.boundaries):
            yield transcript.add_text(part, closed)

    def _reading(self, prompt: str) -> _ReadPrompt:
        """The reading of a prompt, made once: samples of a prompt follow each other."""
        if self._read is None or self._read[0] != prompt:
            symbols = self._symbols(prompt)
            log_probs, boundaries = self.sampler.read(symbols)
            self._read = prompt, _ReadPrompt(symbols[1:], [-x / math.log(2) for x in log_probs], boundaries)
        return self._read[1]

    def _batch(self, prompts: Sequence[str]) -> List[Sample]:
        """Samples drawn together."""
        found = [Sample(prompt, [], [], []) for prompt in prompts]
        ended = [False] * len(found)
        steps = self.sampler.run([self._symbols(prompt) for prompt in prompts], scores=self.layout.json)
        for count, step in enumerate(steps):
            for row, sample in enumerate(found):
                if ended[row]:
                    continue
                if step.boundaries is not None:
                    sample.boundaries.append(step.boundaries[row])
                if count == self.length or (sample.symbols and sample.symbols[-1] == self.stop):
                    ended[row] = True
                    continue
                sample.symbols.append(step.tokens[row])
                sample.bits.append(0.0 if step.log_probs is None else -step.log_probs[row] / math.log(2))
            if all(ended):
                break
        self.new_symbols += sum(len(sample.symbols) for sample in found)
        return found

    def _write(self, sample: Sample) -> None:
        self._separate()
        if self.layout.json:
            self.out.write(json.dumps(self._record(sample)) + "\n")
            return
        transcript = self._transcript()
        for part in self._prompt_parts(sample.prompt, transcript):
            self.out.write(part)
        for symbol, closed in zip(sample.symbols, sample.boundaries or repeat(None)):
            self.out.write(transcript.add(symbol, closed))
        self.out.write(transcript.end(sample.boundaries[-1] if sample.boundaries else None))

    def _record(self, sample: Sample) -> Dict[str, Any]:
        """A sample for JSON."""
        reading, text = self._reading(sample.prompt), self._continuation(sample)
        record: Dict[str, Any] = {"prompt": sample.prompt, "text": text}
        record.update(prompt_bits=reading.bits, bits=sample.bits)
        record["bits_per_character"] = _mean(sample.bits, len(text))
        record["bits_per_character_with_prompt"] = _mean([*sample.bits, *reading.bits], len(sample.prompt) + len(text))
        if sample.boundaries:
            # With a symbol it is known whether the one before it closed a segment, the begin symbol first.
            ends = [*reading.boundaries, *sample.boundaries][1:]
            detectors = self.model.models[0].decoder.hm_lstm.num_detectors
            record["segment_ends"] = [
                [position + 1 for position, closed in enumerate(ends) if closed and closed[layer]]
                for layer in range(detectors)
            ]
        return record

    def _continuation(self, sample: Sample) -> str:
        """New symbols as they read after the prompt."""
        return self.model.continued(sample.prompt, sample.symbols)[len(sample.prompt) :]


def _mean(bits: Sequence[float], length: int) -> Optional[float]:
    return sum(bits) / length if length else None
