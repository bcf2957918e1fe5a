"""Rows from wherever they are: digit scenes, a dataset on the Hub, or a folder."""

from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from .digit_scenes import DigitScenes, load_digit_scenes


DIGIT_SCENES = "digit-scenes"
SHARDS = 16  # of a saved folder that is streamed: what the workers of a loader divide among themselves


class DigitSceneRows(torch.utils.data.Dataset):
    """Digit scenes that are drawn when they are first asked for, and kept, with images as arrays: none is encoded.

    Args:
        task (`str`): Which (`hf_mmunify.data.digit_scenes.TASKS`).
        size (`int`): How many.
        split (`str`, defaults to "train"), settings: As of [`DigitScenes`].
    """

    def __init__(self, task: str, size: int, split: str = "train", **settings):
        self.task, self.size, self.scenes = task, size, DigitScenes(split, **settings)
        self._drawn: dict[int, dict] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:  # which also ends a loop over all rows
            raise IndexError(f"There are {self.size} rows, no row {index}.")
        if index not in self._drawn:
            self._drawn[index] = self.scenes.example(self.task, index)
        return self._drawn[index]


def load_rows(
    source: str, task: str, split: str = "train", size: int | None = None, streaming: bool = False, **options
) -> Dataset | IterableDataset:
    """A `datasets` object by name, as the examples and the demo take it on the command line.

    Args:
        source (`str`): "digit-scenes"; a repository of the Hub, "owner/name" or "owner/name:config"; a folder that
            `save_to_disk` wrote; or a folder of files that `load_dataset` reads (images, Parquet, JSON, WebDataset).
        task (`str`): Which digit scenes (`hf_mmunify.data.digit_scenes.TASKS`); other sources have one task.
        split (`str`, defaults to "train"): Digit scenes have "train", "validation" and "test".
        size (`int`, *optional*): The first so many rows; by default all, and 1,000 digit scenes.
        streaming (`bool`, defaults to `False`): Whether rows are read when they are asked for.
        options: For `load_digit_scenes`, other sources take none of them.

    Raises:
        ValueError: when a saved folder has no such split.
    """
    if source == DIGIT_SCENES:
        return load_digit_scenes(task, split, 1000 if size is None else size, streaming=streaming, **options)
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        rows = load_from_disk(source)
        if isinstance(rows, DatasetDict):
            if split not in rows:
                raise ValueError(f"{source} has the splits {list(rows)}, not {split!r}: name one of them.")
            rows = rows[split]
        rows = rows.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(rows)))) if streaming else rows
    else:
        name, _, config = (source, "", "") if folder.is_dir() else source.partition(":")
        rows = load_dataset(name, config or None, split=split, streaming=streaming)
    return rows if size is None else rows.take(size)


__all__ = ["DIGIT_SCENES", "DigitSceneRows", "load_rows"]
