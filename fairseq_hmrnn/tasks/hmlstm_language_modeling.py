"""Language modelling with raw text in and raw text out."""

import os
from dataclasses import dataclass, field

from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

from ..compat import keep_prompt_spaces
from ..data.characters import CharacterCodec, CharacterDictionary, is_character_dictionary
from ..generation import PromptedGenerator

END_CHOICES = ChoiceEnum(["auto", "length", "newline"])


@dataclass
class HMLSTMLanguageModelingConfig(LanguageModelingConfig):
    end_of_sample: END_CHOICES = field(
        default="auto",
        metadata={
            "help": "what ends a generated sample: length (--max-len-b new symbols, over any number of lines), newline "
            "(the end of the line, </s>), or auto: length for a dictionary of characters, newline for any other"
        },
    )


@register_task("hmlstm_language_modeling", dataclass=HMLSTMLanguageModelingConfig)
class HMLSTMLanguageModelingTask(LanguageModelingTask):
    """fairseq's language modelling task, for prepared folders of `scripts/prepare_text.py` and any other.

    A dictionary whose symbols are all single characters is recognised: prompts are then read and samples written as
    raw text, every character, space and newline as it is. No batch is dropped for its size; `--max-len-b` counts new
    symbols; the model is told the epoch, which slope annealing wants.
    """

    @classmethod
    def setup_dictionary(cls, args, **kwargs):
        if args.data:
            path = os.path.join(utils.split_paths(args.data)[0], "dict.txt")
            if not os.path.exists(path):
                raise FileNotFoundError(f"no {path}: prepare a text with scripts/prepare_text.py TEXT --dest DIR")
        dictionary, output_dictionary = super().setup_dictionary(args, **kwargs)
        if dictionary is None or not is_character_dictionary(dictionary):
            return dictionary, output_dictionary
        characters = CharacterDictionary.load(path)
        keep_prompt_spaces()
        return characters, characters if output_dictionary is dictionary else output_dictionary

    @property
    def has_characters(self) -> bool:
        return isinstance(self.source_dictionary, CharacterDictionary)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load a split; the error for a missing one names the folder."""
        folders = utils.split_paths(self.args.data)
        folder = folders[(epoch - 1) % len(folders)]
        if not os.path.exists(os.path.join(folder, f"{split}.idx")):
            found = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".idx"))
            raise FileNotFoundError(f"no {split}.idx in {folder}; it has: {', '.join(found) or 'no prepared text'}")
        super().load_dataset(split, epoch, combine, **kwargs)

    def get_batch_iterator(self, *args, **kwargs):
        """fairseq's, keeping batches whose size is no multiple of 8: ve-fairseq would drop them."""
        kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(*args, **kwargs)

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        if hasattr(model, "set_epoch"):  # not every model of official fairseq has it
            model.set_epoch(epoch)

    def build_bpe(self, args):
        """The codec that was asked for with --bpe, else that of characters if the dictionary is one of characters."""
        codec = super().build_bpe(args)
        return CharacterCodec() if codec is None and self.has_characters else codec

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        end = str(self.args.end_of_sample)
        by_length = end == "length" or (end == "auto" and self.has_characters)
        if seq_gen_cls is None and not getattr(args, "score_reference", False):
            seq_gen_cls = PromptedGenerator
            stop = None if by_length else self.target_dictionary.eos()
            extra_gen_cls_kwargs = {**(extra_gen_cls_kwargs or {}), "stop": stop}
        return super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, **kwargs)
