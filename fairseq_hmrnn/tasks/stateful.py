"""Language modelling whose state goes from one window of text to the next (`--stateful`)."""

from dataclasses import dataclass
from typing import Optional

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import II

from ..data.indexed import check_split
from ..data.output_dictionary import SeparateTargets
from ..data.streams import (
    JITTER,
    LENGTH,
    CarriedRows,
    StreamBatches,
    StreamBatchIterator,
    StreamDataset,
    WindowOptions,
    load_stream,
    refuse_streams,
)
from ..options import PROBABILITY, SEED, CheckedOptions, inherited, option, unlisted, whole
from ..resumption import keep_batches
from .mixin import trained_split

COUNT_OR_NONE = whole(1, optional=True)
SPECIAL_SYMBOLS = Dictionary().nspecial  # of every dictionary of fairseq


@dataclass
class StatefulLanguageModelingConfig(LanguageModelingConfig):
    tokens_per_sample: int = inherited(LanguageModelingConfig, "tokens_per_sample", LENGTH)
    output_dictionary_size: int = inherited(
        LanguageModelingConfig, "output_dictionary_size", whole(SPECIAL_SYMBOLS + 1, also=(-1,))
    )
    max_target_positions: Optional[int] = inherited(LanguageModelingConfig, "max_target_positions", COUNT_OR_NONE)
    seed: int = inherited(LanguageModelingConfig, "seed", SEED)
    batch_size: Optional[int] = inherited(LanguageModelingConfig, "batch_size", COUNT_OR_NONE)
    batch_size_valid: Optional[int] = inherited(LanguageModelingConfig, "batch_size_valid", COUNT_OR_NONE)
    data_buffer_size: int = inherited(LanguageModelingConfig, "data_buffer_size", whole())
    stateful: bool = option(
        False,
        "read the text as batch-size contiguous streams in windows of --tokens-per-sample and start every "
        "window with the state that the one before it reached; without it, windows are shuffled and start from "
        "zeros. eval-lm then reads a split as one stream",
    )
    window_jitter: float = option(
        0.0,
        "with --stateful: share by which window lengths vary at random, anew in every epoch",
        JITTER,
    )
    state_reset_prob: float = option(
        0.0, "with --stateful: probability that a stream starts a window of training from zeros", PROBABILITY
    )
    max_tokens_valid: Optional[int] = option(II("dataset.max_tokens_valid"), None, COUNT_OR_NONE)
    train_subset: str = II("dataset.train_subset")
    self_target: bool = unlisted(LanguageModelingConfig, "self_target")
    past_target: bool = unlisted(LanguageModelingConfig, "past_target")
    future_target: bool = unlisted(LanguageModelingConfig, "future_target")

    @staticmethod
    def check_together(cfg) -> None:
        """ValueError for targets other than the next symbol, for which there is no model."""
        if getattr(cfg, "self_target", False) or getattr(cfg, "past_target", False):
            raise ValueError("leave out --self-target and --past-target: models here predict the next symbol")


class StatefulLanguageModelingTask(CheckedOptions, LanguageModelingTask):
    """fairseq's language modelling task with `--stateful`. Training, validation and evaluation each have a state of
    their own; that of training is in every checkpoint, for all processes."""

    def __init__(self, args, *arguments, **kwargs):
        super().__init__(args, *arguments, **kwargs)
        self.windows = WindowOptions(args.tokens_per_sample, args.window_jitter, args.state_reset_prob).check()
        self._carried, self._training_state = CarriedRows(), None
        if args.stateful:
            self._check_options()
        elif args.window_jitter or args.state_reset_prob:
            raise ValueError("--window-jitter and --state-reset-prob require --stateful")

    def _check_options(self) -> None:
        meaningless = {
            "sample-break-mode": str(self.args.sample_break_mode or "none") != "none",
            "shorten-method": str(self.args.shorten_method) != "none",
            "add-bos-token": self.args.add_bos_token,
            "pad-to-fixed-length": self.args.pad_to_fixed_length,
            "pad-to-fixed-bsz": self.args.pad_to_fixed_bsz,
        }
        for name, given in meaningless.items():
            if given:
                raise ValueError(f"--{name} has no meaning with --stateful, which reads text as it is: leave it out")

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if self.args.stateful and not hasattr(model, "carried_in_training"):
            raise ValueError("--stateful requires a model that carries state from window to window, such as hmlstm_lm")
        return model

    def data_folder(self, epoch: int) -> str:
        """The one of the folders of --data that an epoch reads: fairseq takes them in turn."""
        folders = utils.split_paths(self.args.data)
        return folders[(epoch - 1) % len(folders)]

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """With --stateful the split becomes one sequence of symbols. ValueError for files that are not whole."""
        folder = self.data_folder(epoch)
        check_split(f"{folder}/{split}", self.dictionary, combine)
        if not self.args.stateful:
            super().load_dataset(split, epoch, combine, **kwargs)
            if len(self.output_dictionary) < len(self.dictionary):
                self.datasets[split].dataset = SeparateTargets(self.datasets[split].dataset)
            return
        dictionaries = self.dictionary, self.output_dictionary
        options = self.windows, self.args.dataset_impl, combine
        self.datasets[split] = load_stream(folder, split, *dictionaries, *options)

    def get_batch_iterator(
        self, dataset, max_tokens=None, max_sentences=None, seed=1, num_shards=1, shard_id=0, epoch=1, **kwargs
    ):
        """For streams: max_sentences of them, or as many windows as max_tokens hold, for every one of num_shards."""
        if not isinstance(dataset, StreamDataset):
            shard = {"seed": seed, "num_shards": num_shards, "shard_id": shard_id, "epoch": epoch}
            options = {"max_tokens": max_tokens, "max_sentences": max_sentences, **shard, **kwargs}
            iterator = keep_batches(self, super().get_batch_iterator, dataset, **options)
            if dataset not in self.dataset_to_epoch_iter:  # it serves one epoch: workers would be waited for at its end
                iterator.num_workers, iterator.persistent_workers = 0, False
            return refuse_streams(iterator)
        streams = self._count_streams(max_sentences, max_tokens)
        rows = range(shard_id * streams, (shard_id + 1) * streams)
        return StreamBatchIterator(
            StreamBatches(dataset, streams * num_shards, rows, seed, epoch),
            self._carried,
            epoch=epoch,
            skip_remainder_batch=kwargs.get("skip_remainder_batch", False),
        )

    def _count_streams(self, max_sentences, max_tokens) -> int:
        """As many as batch-size allows and max-tokens have room for; 1 if neither is given."""
        longest = self.windows.longest
        if max_tokens and max_tokens < longest:
            jitter = " and --window-jitter" if self.windows.jitter else ""
            raise ValueError(
                f"--max-tokens {max_tokens} is less than one window: with --stateful give at least {longest}, the "
                f"longest by --tokens-per-sample{jitter}"
            )
        return self.windows.count_streams(max_sentences, max_tokens)

    def eval_lm_dataloader(self, dataset, max_tokens=None, batch_size=None, context_window=0, **kwargs):
        """With --stateful one stream, whatever the batch size: every symbol is predicted from all before it. Several
        shards or processes have one each, a part of the text that begins with a state of zeros."""
        if not isinstance(dataset, StreamDataset):
            kwargs.update(batch_size=batch_size, context_window=context_window)
            return super().eval_lm_dataloader(dataset, max_tokens, **kwargs)
        if context_window:
            raise ValueError("leave out --context-window: with --stateful the context is all text before a symbol")
        return self.get_batch_iterator(dataset, max_sentences=1, **kwargs).next_epoch_itr(shuffle=False)

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        if self.args.stateful:
            self._check_valid_splits()
            self._training_state = model.carried_in_training
            if self._carried.loaded is not None:
                self._training_state.restore(self._carried.loaded)
                self._carried.loaded = None

    def _check_valid_splits(self) -> None:
        """Before training: official fairseq makes the batches of validation only when it first validates."""
        streams = self._count_streams(self.args.batch_size_valid, self.args.max_tokens_valid)
        trained = trained_split(self.args)
        for dataset in (dataset for split, dataset in self.datasets.items() if split != trained):
            dataset.check_holds(streams * distributed_utils.get_data_parallel_world_size())

    def gather_carried(self) -> None:
        """Bring together every process's rows for a checkpoint, which the first process writes alone. Called
        in every process just before saving, since an update that overflowed has advanced in the text too."""
        saved = self._training_state.save() if self._training_state is not None else None
        if saved is not None and distributed_utils.get_data_parallel_world_size() > 1:
            group = distributed_utils.get_data_parallel_group()
            saved["rows"] = distributed_utils.all_gather(saved["rows"], group, return_tensor=True).flatten(0, 1)
        self._carried.to_save = saved
