"""Training on several datasets at once: their gradients are accumulated before each update, each loss with its weight.

    m3w   -> batch -> 1.0 * loss -.
    align -> batch -> 0.2 * loss -+-> one update          (round robin: an update for each dataset in turn)
    vtp   -> batch -> 0.03 * loss '

`MixtureDataset` puts the datasets into one order in which they take turns, micro-batch by micro-batch;
`MixtureTrainer` is `Trainer` with a weight for each, and counts each dataset's tokens apart. Everything else
(accumulation, processes, sharding, checkpoints, resuming) is `Trainer`'s own.

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), section 2.4, appendix B.1.1.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count, islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .loss_scaling import TaskTrainer
from .optimizer import NO_DECAY, decay_parameter_names


# Weights of the losses (the paper's lambda) of Flamingo's four datasets: interleaved web pages, two of image-text
# pairs, and one of video-text pairs.
FLAMINGO_LOSS_WEIGHTS = {"m3w": 1.0, "align": 0.2, "ltip": 0.2, "vtp": 0.03}


class MixtureItem(NamedTuple):
    """Rows of one dataset of a mixture, its name, and of each row how often its dataset was passed through before."""

    source: str
    rows: list
    passes: list[int]


@lru_cache(maxsize=16)
def _shuffled(seed: int, source: int, lap: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, source, lap]).permutation(size)


class _Turns:
    """Whose turn it is: which dataset each micro-batch comes from, equal on all processes.

    Args:
        datasets (`Mapping[str, Sequence]`): By name.
        rows_per_item (`Mapping[str, int]`, *optional*): Rows that an item holds; 1 where it is not said.
        shuffle (`bool`), seed (`int`): How each dataset is passed through.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        rows_per_item: Mapping[str, int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ):
        if not datasets:
            raise ValueError("A mixture needs datasets, by name; got none.")
        unknown = sorted(set(rows_per_item or {}) - set(datasets))
        if unknown:
            raise ValueError(f"rows_per_item names {unknown}, but the datasets are {list(datasets)}.")
        self.datasets = dict(datasets)
        self.names = list(datasets)
        self.rows_per_item = {name: (rows_per_item or {}).get(name, 1) for name in self.names}
        self.shuffle = shuffle
        self.seed = seed
        self.arrange(items=1, turn=1)

    def arrange(self, items: int, turn: int) -> None:
        """Set how the datasets take turns; `MixtureTrainer` does it.

        Args:
            items (`int`): Items in a micro-batch, of all processes together.
            turn (`int`): Micro-batches until it is the next dataset's turn.
        """
        self.items, self.turn = items, turn

    def _source(self, micro_batch: int) -> int:
        return micro_batch // self.turn % len(self.names)


class MixtureDataset(_Turns, Dataset):
    """Datasets of known length as one, in which they take turns.

    An epoch is one pass through the dataset that lasts longest; the others begin anew, in another order. The order is
    the mixture's own: a sampler must not change it.

    Args:
        datasets (`Mapping[str, Sequence]`):
            By name; of each, rows by index (a `datasets.Dataset`, a list, ...).
        rows_per_item (`Mapping[str, int]`, *optional*):
            Rows of each dataset in one item, 1 by default. With `per_device_train_batch_size=1` these are the batch
            sizes: the paper's ablations take 256 web pages, 512 and 512 images, 64 videos.
        shuffle (`bool`, defaults to `True`):
            Whether each pass through a dataset is in another random order.
        seed (`int`, defaults to 0):
            Of these orders.

    Raises:
        ValueError: no datasets were given, one is empty, or `rows_per_item` names another.
    """

    def __init__(
        self,
        datasets: Mapping[str, Sequence],
        rows_per_item: Mapping[str, int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ):
        super().__init__(datasets, rows_per_item, shuffle, seed)
        empty = [name for name, dataset in self.datasets.items() if len(dataset) == 0]
        if empty:
            raise ValueError(f"These datasets of the mixture are empty: {empty}. Leave them out.")
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # reaches workers that live on

    def set_epoch(self, epoch: int) -> None:
        """Go on where the last epoch ended, with the rows that come then."""
        self._epoch.fill_(epoch)

    @property
    def _items_of_each(self) -> int:
        """Items of each dataset in an epoch: a multiple of those in a turn."""
        most = max(-(-len(dataset) // self.rows_per_item[name]) for name, dataset in self.datasets.items())
        return most + -most % (self.items * self.turn)

    def __len__(self) -> int:
        return self._items_of_each * len(self.names)

    def __getitem__(self, index: int) -> MixtureItem:
        if not 0 <= index < len(self):
            raise IndexError(f"The mixture has {len(self)} items, there is no item {index}.")
        micro_batch, within = divmod(index, self.items)
        source = self._source(micro_batch)
        rounds, left = divmod(micro_batch, self.turn * len(self.names))
        turned = rounds * self.turn + left % self.turn  # micro-batches that this dataset has had
        item = int(self._epoch) * self._items_of_each + turned * self.items + within
        name = self.names[source]
        dataset, number = self.datasets[name], self.rows_per_item[name]
        drawn = [self._row(source, dataset, item * number + place) for place in range(number)]
        return MixtureItem(name, [row for _, row in drawn], [lap for lap, _ in drawn])

    def _row(self, source: int, dataset: Sequence, place: int) -> tuple[int, Any]:
        """The pass in which a place of the endless sequence of passes lies, and the row there."""
        lap, place = divmod(place, len(dataset))
        if self.shuffle:
            place = int(_shuffled(self.seed, source, lap, len(dataset))[place])
        return lap, dataset[place]


class StreamedMixture(_Turns, IterableDataset):
    """Streams (and datasets of known length) as one endless stream, in which they take turns.

    A stream that ends begins anew. With several processes each stream is read by each process, which keeps its share:
    set `accelerator_config={"dispatch_batches": False}`, as batches differ in shape. The workers of a loader divide
    the shards of a stream; where it has fewer, they divide its rows, and each of them reads it all. `shuffle` is for
    the streams to say (`IterableDataset.shuffle`).

    Args:
        datasets (`Mapping[str, Iterable]`): By name.
        rows_per_item (`Mapping[str, int]`, *optional*): As in `MixtureDataset`.

    Raises:
        ValueError: no datasets were given, or `rows_per_item` names another; while reading: a stream is empty.
    """

    def __init__(self, datasets: Mapping[str, Any], rows_per_item: Mapping[str, int] | None = None):
        super().__init__(datasets, rows_per_item)

    def _rows(self, name: str, dataset: Any) -> Iterator[tuple[int, Any]]:
        """The rows of a dataset, pass after pass without an end, each with the number of its pass."""
        is_stream = isinstance(dataset, datasets.IterableDataset)
        for lap in count():
            rows = 0
            if is_stream:
                dataset.set_epoch(lap)  # shuffles anew, where it shuffles
            # In batches, since of a stream that is read row by row a worker gets the share that `datasets` gives it
            for row in dataset.iter(batch_size=1) if is_stream else dataset:
                rows += 1
                yield lap, {column: values[0] for column, values in row.items()} if is_stream else row
            if rows == 0:
                raise ValueError(f"The stream {name!r} of the mixture gave no row in pass {lap}: leave it out.")

    def _share(self, name: str, worker: int, num_workers: int) -> Iterator[tuple[int, Any]]:
        """The rows of a dataset that fall to one of the workers whose micro-batches are of it."""
        period = range(math.lcm(num_workers, self.turn * len(self.names)))
        serving = sorted({turn % num_workers for turn in period if self.names[self._source(turn)] == name})
        if worker not in serving:
            return iter(())
        dataset, part, parts = self.datasets[name], serving.index(worker), len(serving)
        if isinstance(dataset, datasets.IterableDataset) and dataset.num_shards >= parts:
            return self._rows(name, dataset.shard(parts, part))
        return islice(self._rows(name, dataset), part, None, parts)

    def __iter__(self) -> Iterator[MixtureItem]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        streams = {name: self._share(name, first, step) for name in self.names}
        for micro_batch in count(first, step):  # the loader takes one of each worker in turn
            name = self.names[self._source(micro_batch)]
            for _ in range(self.items):
                drawn = list(islice(streams[name], self.rows_per_item[name]))
                yield MixtureItem(name, [row for _, row in drawn], [lap for lap, _ in drawn])


class MixtureCollator:
    """Items of a mixture -> a batch of its dataset's collator, with `source`, its name; other rows -> a plain batch.

    Args:
        collator (`Callable`): Rows to a batch. One with an argument `passes` (`InterleavedCollator`) learns how often
            the dataset of each row was passed through before.
        collators (`Mapping[str, Callable]`, *optional*): Those of datasets that need another.

    Raises:
        ValueError: the items are of several datasets.
    """

    def __init__(
        self, collator: Callable[[list], dict], collators: Mapping[str, Callable[[list], dict]] | None = None
    ):
        self.collator = collator
        self.collators = dict(collators or {})

    def __call__(self, items: list) -> dict[str, Any]:
        if not isinstance(items[0], MixtureItem):
            return self.collator(items)
        source = items[0].source
        others = {item.source for item in items} - {source}
        if others:
            raise ValueError(
                f"A micro-batch of a mixture is of one dataset, here of {sorted({source, *others})}: was the order "
                "changed? To evaluate, give the datasets by name instead of a mixture: eval_dataset={'name': dataset}."
            )
        collator = self.collators.get(source, self.collator)
        known = {}
        if "passes" in inspect.signature(collator).parameters:
            known["passes"] = [lap for item in items for lap in item.passes]
        return {**collator([row for item in items for row in item.rows], **known), "source": source}


class MixtureTrainer(TaskTrainer):
    """`TaskTrainer` on a mixture of datasets.

    The loss of a dataset is the mean over its own tokens in an update, of all processes and micro-batches, times its
    weight; an update descends their sum. A model whose loss takes no `num_items_in_batch`, or makes nothing of it, has
    the mean over micro-batches instead.

    Args:
        args:
            As of `TaskTrainer`, first of all `train_dataset`: a `MixtureDataset` or `StreamedMixture`. Of the
            `TrainingArguments`, `remove_unused_columns` must be off, and `gradient_accumulation_steps` counts
            micro-batches of all datasets together: a multiple of their number.
        loss_weights (`Mapping[str, float]`, *optional*):
            Weight of each dataset (`FLAMINGO_LOSS_WEIGHTS` for the paper's); 1 where it is not said.
        accumulate (`bool`, defaults to `True`):
            Whether each update has gradients of all datasets, as in the paper (by far the better in its ablations);
            otherwise updates take turns: all micro-batches of one are of one dataset.
        collators (`Mapping[str, Callable]`, *optional*):
            Collators of datasets that need another than `data_collator`, by name.
        no_decay (`Sequence[str]`, defaults to `NO_DECAY`):
            Patterns of parameters without weight decay, beside norms and biases: resampler, gates, token rows.
        kwargs:
            As of `TaskTrainer`.

    Raises:
        ValueError: the arguments do not fit a mixture; the message says which, and what fits.
    """

    def __init__(
        self,
        *args,
        loss_weights: Mapping[str, float] | None = None,
        accumulate: bool = True,
        collators: Mapping[str, Callable[[list], dict]] | None = None,
        no_decay: Sequence[str] = NO_DECAY,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        mixture, args = self.train_dataset, self.args
        if not isinstance(mixture, MixtureDataset | StreamedMixture):
            raise ValueError(
                f"MixtureTrainer trains on a MixtureDataset or a StreamedMixture, got {type(mixture).__name__}: "
                "a single dataset is for transformers.Trainer."
            )
        unknown = sorted((set(loss_weights or {}) | set(collators or {})) - set(mixture.names))
        if unknown:
            raise ValueError(f"There are weights or collators for {unknown}, but the datasets are {mixture.names}.")
        if args.remove_unused_columns:
            raise ValueError("The collator makes the columns of a batch: set remove_unused_columns=False.")
        if accumulate and args.gradient_accumulation_steps % len(mixture.names):
            raise ValueError(
                f"Each update has micro-batches of all {len(mixture.names)} datasets: gradient_accumulation_steps "
                f"must be a multiple of {len(mixture.names)}, got {args.gradient_accumulation_steps}."
            )
        is_stream = isinstance(mixture, StreamedMixture)
        if is_stream and args.world_size > 1 and args.accelerator_config.dispatch_batches is not False:
            raise ValueError(
                "Batches of a stream differ in shape and cannot be dispatched from one process: set "
                'accelerator_config={"dispatch_batches": False}.'
            )
        # The mixture shuffles by itself; its order keeps all processes on the same dataset
        args.train_sampling_strategy = "sequential"
        self.loss_weights = dict.fromkeys(mixture.names, 1.0) | dict(loss_weights or {})
        self.accumulate = accumulate
        self.no_decay = no_decay
        self.data_collator = MixtureCollator(self.data_collator, collators)
        self._source_losses: dict[str, torch.Tensor] = {}
        self._source_updates = dict.fromkeys(mixture.names, 0)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decay_parameter_names(model, self.no_decay)

    def get_train_dataloader(self) -> DataLoader:
        steps = self.args.gradient_accumulation_steps
        items = self.get_total_train_batch_size(self.args) // steps
        self.train_dataset.arrange(items, turn=1 if self.accumulate else steps)
        return super().get_train_dataloader()

    def _ask_for_scaling(self, model: nn.Module, batch: dict[str, Any]) -> None:
        super()._ask_for_scaling(model, {name: value for name, value in batch.items() if name != "source"})

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, dict[str, torch.Tensor | int | None] | None]:
        """The micro-batches of an update, and by dataset what its loss is divided by: its tokens in all of them."""
        batches = list(islice(epoch_iterator, num_batches))
        counts = {}
        for name in self.train_dataset.names:
            own = [batch for batch in batches if batch["source"] == name]
            if own:
                _, counts[name] = super().get_batch_samples(iter(own), len(own), device)
                self._source_updates[name] += 1
                for batch in own:
                    # A mean loss is divided by all micro-batches of the update later on
                    batch["loss_share"] = 1.0 if counts[name] is not None else len(batches) / len(own)
        return batches, counts if any(number is not None for number in counts.values()) else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, torch.Tensor | int] | torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted loss of a micro-batch of the mixture; of any other batch the plain loss."""
        if "source" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        source, share = inputs.pop("source"), inputs.pop("loss_share", None)
        if share is None:  # evaluated, no part of an update
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        number = None if num_items_in_batch is None else num_items_in_batch[source]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=number)
        loss = share * loss
        part = loss.detach() if number is not None else loss.detach() / self.current_gradient_accumulation_steps
        self._source_losses[source] = self._source_losses.get(source, 0.0) + part
        loss = self.loss_weights[source] * loss
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log, with the training loss the loss of each dataset before its weight: `loss_<name>`."""
        if "loss" in logs:
            for name in sorted(self._source_losses):
                total = self.accelerator.gather(self._source_losses.pop(name).reshape(1)).mean().item()
                logs[f"loss_{name}"] = total / self._source_updates[name]
            self._source_updates = dict.fromkeys(self._source_updates, 0)
        super().log(logs, *args, **kwargs)


class CollatorEpochCallback(TrainerCallback):
    """Tells a collator (`InterleavedCollator`) which epoch begins, so that it draws anew.

    Args:
        collator: Has `set_epoch`.
    """

    def __init__(self, collator):
        self.collator = collator

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.collator.set_epoch(int(state.epoch))


__all__ = [
    "FLAMINGO_LOSS_WEIGHTS",
    "CollatorEpochCallback",
    "MixtureCollator",
    "MixtureDataset",
    "MixtureItem",
    "MixtureTrainer",
    "StreamedMixture",
]
