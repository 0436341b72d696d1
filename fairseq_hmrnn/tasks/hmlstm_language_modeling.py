"""Language modelling with raw text in and raw text out."""

import os
from dataclasses import dataclass
from typing import List, Optional, Tuple, Type, Union

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import register_task
from torch import Tensor

from ..checkpoints import is_dictionary, is_loading_model
from ..data.characters import CharacterCodec, CharacterDictionary, is_character_dictionary
from ..data.dictionaries import read_dictionary
from ..data.folders import DICTIONARY, how_to_prepare
from ..data.output_dictionary import OutputDictionary
from ..fairseq_hooks import keep_prompt_spaces
from ..inference.reader import output_symbols
from ..inference.search import ENDS, PromptedGenerator, stop_symbol
from ..models.decoding import GENERATION_DTYPES, generate_in
from ..options import check_config, option
from .mixin import TaskMixin
from .stateful import StatefulLanguageModelingConfig, StatefulLanguageModelingTask

END_CHOICES = ChoiceEnum(list(ENDS))
SCORE_CHOICES = ChoiceEnum(["all", "new"])
DTYPE_CHOICES = ChoiceEnum(list(GENERATION_DTYPES))


@dataclass
class HMLSTMLanguageModelingConfig(StatefulLanguageModelingConfig):
    end_of_sample: END_CHOICES = option(
        "auto",
        "what ends a generated sample: length (--max-len-b new symbols, over any number of lines), newline "
        "(the end of the line, </s>), or auto: length for a dictionary of characters, newline for any other",
    )
    scored_text: SCORE_CHOICES = option(
        "all", "what the score in H- and D- is the mean of: all symbols, prompt included, or the new ones"
    )
    generation_dtype: DTYPE_CHOICES = option(
        "float32",
        "precision of fairseq-generate and fairseq-interactive on CPU. bfloat16: weights of products are rounded to "
        "it, for half the memory traffic and less time; sums and states stay float32, so that it works with "
        "any checkpoint. fairseq's own --fp16 and --bf16 convert the whole model instead, which is for GPUs. float32: "
        "as the weights are",
    )


@register_task("hmlstm_language_modeling", dataclass=HMLSTMLanguageModelingConfig)
class HMLSTMLanguageModelingTask(TaskMixin, StatefulLanguageModelingTask):
    """fairseq's language modelling task, for prepared folders of `fairseq-hmrnn prepare text` and any other.

    A dictionary whose symbols are all single characters is recognised: prompts are then read and samples written as
    raw text, every character, space and newline as it is. No batch is dropped for its size; `--max-len-b` counts new
    symbols; the epoch is passed to the model, which slope annealing requires.
    """

    @classmethod
    def setup_task(cls, args, **kwargs):
        """Check the options, then as fairseq's."""
        check_config(args, HMLSTMLanguageModelingConfig)
        return super().setup_task(args, **kwargs)

    @classmethod
    def setup_dictionary(cls, args, task_state=None, **kwargs):
        """The dictionaries of the data folder, or of a checkpoint whose `task_state` is given. None where the folder
        has none and fairseq loads a checkpoint, the language model of --lm-path: `load_state_dict` follows."""
        if task_state and "dictionary" in task_state:
            source = task_state["dictionary"]
            if not is_dictionary(source):  # a name of a file, for instance, is never opened
                raise ValueError("the dictionary in a checkpoint must be a list of symbols and counts")
        elif args.data:
            source = os.path.join(utils.split_paths(args.data)[0], DICTIONARY)
            if not os.path.isfile(source):
                if is_loading_model():
                    return None, None
                raise FileNotFoundError(f"no {source}: {how_to_prepare(os.path.dirname(source))}")
        else:
            return None, None
        dictionary = _read(Dictionary, source)
        if is_character_dictionary(dictionary):
            dictionary = _read(CharacterDictionary, source)
            keep_prompt_spaces()
        if args.output_dictionary_size < 0:
            return dictionary, dictionary
        return dictionary, OutputDictionary(dictionary, args.output_dictionary_size)

    def state_dict(self):
        """With the dictionary: a checkpoint can then be used without the data folder."""
        dictionary = self.source_dictionary
        entries = [list(entry) for entry in zip(dictionary.symbols, dictionary.count)][dictionary.nspecial :]
        return {**super().state_dict(), "dictionary": entries}

    def load_state_dict(self, state_dict):
        """Load a checkpoint's state, the dictionary too, if there was none in the data folder; FileNotFoundError if the
        checkpoint has none either."""
        super().load_state_dict(state_dict)
        if self.dictionary is not None:
            return
        folder = utils.split_paths(self.args.data)[0]
        if "dictionary" not in state_dict:
            raise FileNotFoundError(
                f"the language model's checkpoint does not carry its dictionary: copy its dict.txt to {folder}"
            )
        self.dictionary, self.output_dictionary = self.setup_dictionary(self.args, state_dict)

    @property
    def has_characters(self) -> bool:
        return isinstance(self.source_dictionary, CharacterDictionary)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load a split; the error for a missing one names the folder."""
        try:
            super().load_dataset(split, epoch, combine, **kwargs)
        except FileNotFoundError as error:
            folder = self.data_folder(epoch)
            if os.path.exists(f"{folder}/{split}.idx"):
                raise
            found = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".idx"))
            found = ", ".join(found) or "no prepared text"
            raise FileNotFoundError(f"no {split}.idx in {folder}; it has: {found}") from error

    def build_bpe(self, args):
        """The codec that was asked for with --bpe, else that of characters if the dictionary is one of characters."""
        codec = super().build_bpe(args)
        return CharacterCodec() if codec is None and self.has_characters else codec

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        for name in ("constraints", "match_source_len"):
            if getattr(args, name, False):
                raise ValueError(f"--{name.replace('_', '-')} has no meaning for a language model: leave it out")
        if not getattr(args, "score_reference", False):
            generate_in(models, str(self.args.generation_dtype))
        if seq_gen_cls is None and not getattr(args, "score_reference", False):
            seq_gen_cls = PromptedGenerator
            end = getattr(args, "end_of_sample", None)  # of one call, by the hub interface
            end = str(self.args.end_of_sample if end is None else end)
            stop = stop_symbol(end, self.has_characters, self.target_dictionary)
            new_only = str(self.args.scored_text) == "new"
            extra_gen_cls_kwargs = {**(extra_gen_cls_kwargs or {}), "stop": stop, "score_new_only": new_only}
        generator = super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, **kwargs)
        if isinstance(generator, SequenceScorer) and self.has_characters:
            generator.symbols_to_strip_from_output = {self.dictionary.bos()}  # not </s>: newlines are text
        return generator

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Continue, or score, a batch. Without prefix_tokens the prompt is the whole block or line."""
        if "stream" in sample["net_input"]:
            raise ValueError("--stateful is for training and scoring: leave it out to generate")
        begin = self.source_dictionary.bos() if self.args.add_bos_token else self.source_dictionary.eos()
        if isinstance(generator, SequenceScorer) and "target" not in sample:
            raise ValueError("--score-reference scores a split: use it with fairseq-generate")
        prefix_tokens = self._prompts(sample, prefix_tokens)
        if self.args.add_bos_token and prefix_tokens.size(1) and prefix_tokens[:, 0].eq(begin).all():
            prefix_tokens = prefix_tokens[:, 1:]
        if isinstance(generator, SequenceScorer):
            sample = {**sample, "target": output_symbols(sample["target"], self.target_dictionary)}
        with torch.no_grad():
            found = generator.generate(models, sample, prefix_tokens=prefix_tokens, bos_token=begin)
        self._show_prompts(sample["net_input"], prefix_tokens)
        return found

    def _prompts(self, sample, prefix_tokens: Optional[Tensor]) -> Tensor:
        """What a batch is to continue: prefix_tokens as they are read, or all of it."""
        source, target = sample["net_input"]["src_tokens"], sample.get("target")
        if prefix_tokens is None:
            # A block's source is its target, one symbol later; a line's source is the line after the begin symbol.
            prefix_tokens = source[:, 1:] if target is None else target
        if target is None or len(self.target_dictionary) == len(self.source_dictionary):
            return prefix_tokens
        length = prefix_tokens.size(1)
        is_of_target = torch.equal(prefix_tokens, target[:, :length])  # from Python there may be another
        return self._as_read(sample)[:, :length] if is_of_target else prefix_tokens

    def _as_read(self, sample) -> Tensor:
        """The target (B, T) of a batch with the symbols that are not predicted, which fairseq has made unknown; but for
        the last one of each row, which no source has. A `<s>` in front, of --add-bos-token, stays."""
        source, target = sample["net_input"]["src_tokens"], sample["target"]
        following = torch.cat([source[:, 1:], target[:, -1:]], dim=1)
        stays = following.eq(self.source_dictionary.pad()) | target.eq(self.source_dictionary.bos())
        return torch.where(stays, target, following)

    def _show_prompts(self, net_input, prompts) -> None:
        """fairseq prints what it finds here as S-: let it be the prompt, without the begin symbol. Its commands hold
        the tensor in different ways, so both the tensor and what the batch names are changed."""
        net_input["src_tokens"][:, 0] = self.source_dictionary.pad()
        net_input["src_tokens"] = prompts


def _read(kind: Type[Dictionary], source: Union[str, List[Tuple[str, int]]]) -> Dictionary:
    """A dictionary from its dict.txt, or from the symbols and counts of one."""
    if isinstance(source, str):
        return read_dictionary(kind, source)
    dictionary = kind()
    for symbol, count in source:
        dictionary.add_symbol(symbol, n=count, overwrite=True)  # a dictionary may have a symbol twice
    return dictionary
