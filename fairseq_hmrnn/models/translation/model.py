"""The common part of the translation models."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import os
from typing import Dict, Type

from fairseq import hub_utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from torch import nn

from ...checkpoints import check_overrides, data_folder, find_checkpoint, load_for_use, settings, split_checkpoints
from ...options import CheckedOptions, check_config, nearest
from ..dropout import let_dropout_grow
from ..embeddings import check_criterion, check_shared_embeddings, load_embedding
from ..start_files import StartsFromFiles
from . import scripting
from .config import HMLSTMEncoderConfig
from .encoder import HMLSTMEncoder
from .pretrained import DECODER_PARTS, ENCODER_PARTS, Given, load_pretrained


class TranslationModel(CheckedOptions, StartsFromFiles, FairseqEncoderDecoderModel):
    """An HM-LSTM encoder and, by subclass, a decoder, `decoder_class(cfg, dictionary, encoder)`, of `config_class`, and
    what torch.jit.script reads in its place, `scripted_decoder(decoder)`."""

    config_class: Type[HMLSTMEncoderConfig]
    decoder_class: Type[FairseqIncrementalDecoder]
    scripted_decoder: Type[nn.Module]

    @classmethod
    def build_model(cls, cfg, task):
        check_config(cfg, cls.config_class)
        if cfg.slope_per_epoch:
            raise ValueError("translation tasks do not pass the epoch to a model: anneal with slope-per-update instead")
        check_criterion(cfg)
        check_shared_embeddings(cfg, task)
        encoder = HMLSTMEncoder(cfg, task.source_dictionary)
        model = cls(encoder, cls.decoder_class(cfg, task.target_dictionary, encoder))
        sides = (
            ("encoder", encoder, task.source_dictionary, ENCODER_PARTS),
            ("decoder", model.decoder, task.target_dictionary, DECODER_PARTS),
        )
        model._start(cfg, sides)
        let_dropout_grow(model, cfg)
        return model

    def _start(self, cfg, sides) -> None:
        """Give both sides, (name, module, dictionary, names of parts), what the options name to start from."""
        vectors: Dict[int, str] = {}
        for name, part, dictionary, _ in sides:
            option = f"{name}-embed-path"
            load = functools.partial(load_embedding, part.embed_tokens, dictionary)
            self.start_from(option, getattr(cfg, f"{name}_embed_path"), load)
            if getattr(cfg, f"{name}_embed_path"):
                vectors[id(part.embed_tokens)] = option
        given: Given = {}
        for name, part, _, parts in sides:
            path = getattr(cfg, f"load_pretrained_{name}_from", "")
            if path and id(part.embed_tokens) in vectors:
                raise ValueError(
                    f"load-pretrained-{name}-from would replace the vectors that {vectors[id(part.embed_tokens)]} "
                    "gives: leave out one of them"
                )
            load = functools.partial(load_pretrained, part, parts=parts, given=given)
            self.start_from(f"load-pretrained-{name}-from", path, load)

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file=None, data_name_or_path=None, **kwargs):
        """fairseq's hub interface of a trained model: translate, encode, decode, generate.

        model_name_or_path: a checkpoint, or a folder with checkpoint_best.pt. checkpoint_file: its name there, several
        with ":" between them for an ensemble. data_name_or_path: the folder with the dictionaries; None: that of the
        checkpoint if it has them, else the one it was trained on. kwargs: options to change, such as
        `bpe="sentencepiece", sentencepiece_model=PATH`; user_dir; generation_args: a dictionary of options of
        generation, such as `{"max_len_b": 50}`; `beam` is an argument of translate and generate. TypeError for what is
        no option of a checkpoint, or of generation, ValueError for a model of another kind.
        """
        generation = kwargs.pop("generation_args", None) or {}
        known = [field.name for field in dataclasses.fields(GenerationConfig)]
        if "beam" in generation:
            raise TypeError("beam in generation_args is not read: give it to translate or generate")
        for name in sorted(generation.keys() - set(known)):
            raise TypeError(f"unknown option {name} in generation_args: {nearest(name, known)}")
        paths = [find_checkpoint(path) for path in split_checkpoints(model_name_or_path, checkpoint_file)]
        trained = settings(load_for_use(paths[0]))
        task = trained.task
        if "target_lang" not in (vars(task) if isinstance(task, argparse.Namespace) else task):
            raise ValueError(f"{paths[0]} is not a model of translation: it was trained with another task")
        overrides = {name: kwargs[name] for name in kwargs.keys() - {"user_dir"}}
        check_overrides(paths[0], trained, overrides)
        for path in paths[1:] if overrides else ():
            check_overrides(path, settings(load_for_use(path)), overrides)
        folder = os.path.dirname(os.path.abspath(paths[0]))
        names = os.pathsep.join(os.path.relpath(path, folder) for path in paths)
        if data_name_or_path is None and glob.glob(os.path.join(glob.escape(folder), "dict.*.txt")):
            data_name_or_path = "."
        elif data_name_or_path is None:
            data_name_or_path = str(trained.task.data).split(os.pathsep)[0]
        data_name_or_path = data_folder(data_name_or_path, paths[0])
        if not os.path.isdir(data_name_or_path):
            raise FileNotFoundError(f"no folder {data_name_or_path}: name the one with the dictionaries as data")
        archives = cls.hub_models()
        loaded = hub_utils.from_pretrained(folder, names, os.path.abspath(data_name_or_path), archives, **kwargs)
        for name, value in generation.items():  # before the hub reads them; fairseq 0.12.2 leaves them out
            setattr(loaded["args"].generation, name, value)
        return hub_utils.GeneratorHubInterface(loaded["args"], loaded["task"], loaded["models"])

    def make_generation_fast_(self, need_attn=False, **kwargs):
        """As fairseq's, whose hub hands on the None of an option that nobody gave: torch.jit.script requires a bool."""
        super().make_generation_fast_(need_attn=bool(need_attn), **kwargs)

    def __prepare_scriptable__(self):
        """Called by torch.jit.script for what it is to read. For inference alone: see scripting.py."""
        return scripting.Translation(scripting.Encoder(self.encoder), self.scripted_decoder(self.decoder))

    def forward(self, *args, **kwargs):
        """As every encoder-decoder model of fairseq: src_tokens, src_lengths, prev_output_tokens. ValueError where it
        is called as a language model."""
        self.check_files()
        if len(args) + len(kwargs) == 1:
            raise ValueError("a translation model is no language model: give one of those as --lm-path")
        return super().forward(*args, **kwargs)
