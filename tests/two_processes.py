"""Two processes that talk to each other through gloo, forked from the test that compares them with one."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed


WORLD, PATIENCE = 2, 60  # seconds until a process counts as stuck


def _measure(function: Callable[[], dict], folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
        torch.save(function(), folder / f"rank{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
        os._exit(1)


def on_two_processes(function: Callable[[], dict], folder: Path) -> list[dict]:
    """Call `function` in two processes of one group at the same time.

    Args:
        function (`Callable`):
            Without arguments; returns what `torch.save` can write and `weights_only` reading can read.
        folder (`Path`):
            An empty one, for the processes to meet and to leave their results.

    Returns:
        `list[dict]`: what it returned, by rank.
    """
    processes = [get_context("fork").Process(target=_measure, args=(function, folder, rank)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
    error = folder / "error.txt"
    if error.exists() or any(process.exitcode for process in processes):
        raise RuntimeError(error.read_text() if error.exists() else "the processes wait for each other")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def share(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's half of the rows; all of them for a process alone."""
    if not distributed.is_initialized():
        return tensor
    return tensor.chunk(WORLD)[distributed.get_rank()]
