"""What every comparison here does: contenders take turns, ratios are taken within a round, medians are shown."""

import importlib
import importlib.machinery
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process, which other work on the machine disturbs little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(tasks: Mapping[str, Mapping[str, Callable[[], object]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every contender of every task, round by round; each has worked once before.

    Args:
        tasks: name of a task -> name of a contender -> what it does.
        rounds: how often every contender does every task; who begins changes from round to round.
    """
    found = {}
    for task, contenders in tasks.items():
        for work in contenders.values():
            work()  # the first time allocates
        found[task] = {name: [] for name in contenders}
        names = list(contenders)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[task][name].append(seconds(contenders[name]))
    return found


def table(found: Mapping[str, Mapping[str, list[float]]], ours: str = "here") -> str:
    """A row a task: median of each contender, and its ratio to `ours` with the lowest and the highest round."""
    names = list(dict.fromkeys(name for times in found.values() for name in times if name != ours))
    rows = [["", ours, *names, *(f"{name} / {ours}" for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for task, times in found.items():
        cells = [f"{1000 * statistics.median(times[name]):.1f} ms" if name in times else "" for name in (ours, *names)]
        for name in names:
            ratios = sorted(a / b for a, b in zip(times.get(name, []), times[ours]))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""
            cells.append(spread)
        rows.append([task, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Absent(types.ModuleType):
    """Stands in for a package that is imported and never used: every name in it exists and does nothing."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs) -> "Absent":
        return self

    def __mro_entries__(self, bases: tuple) -> tuple[type]:
        return (object,)


def open_clip(checkout: str, module: str) -> types.ModuleType:
    """A module of open_clip, from a checkout of mlfoundations/open_clip, without torchvision and timm.

    open_clip imports both for image files and for towers that nothing here builds, and neither can be imported beside
    a torch for the CPU alone.
    """
    package = types.ModuleType("open_clip")  # its own __init__ imports everything
    package.__path__ = [str(Path(checkout) / "src" / "open_clip")]
    sys.modules["open_clip"] = package
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")
    names += ("torchvision.transforms.functional", "timm", "timm.layers", "timm.models", "timm.models.layers", "ftfy")
    for name in names:
        sys.modules.setdefault(name, Absent(name))
    return importlib.import_module(f"open_clip.{module}")
