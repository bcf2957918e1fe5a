"""The command line of the demo: what can be asked for, checked before any work begins."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


STEPS, BATCH_SIZE, TEST_EXAMPLES = 750, 32, 400
LEARNING_RATE, REAL_LEARNING_RATE = 3e-3, 2e-4  # for adapters of small parts, and of real ones
WRITTEN = ("parts", "model", "results.json")  # by any of these an earlier run is known


class DemoError(Exception):
    """What was asked for cannot be done; the message says in one line what to do instead."""


@dataclass(frozen=True)
class Options:
    """What one run of the demo is to do.

    Args:
        language_model (`str`, *optional*), vision_model (`str`, *optional*):
            Repositories or folders of the frozen parts; a part that is not named is trained on digit scenes.
        dataset (`str`, *optional*):
            Name or folder of images with texts; digit scenes without.
        output (`Path`):
            Folder that everything is written to.
        steps (`int`):
            Optimizer steps of the adapters.
        batch_size (`int`):
            Documents in a step.
        learning_rate (`float`):
            Highest learning rate of the adapters.
        shots (`tuple[int, ...]`):
            Numbers of solved examples to evaluate with; documents have up to the largest of them before their last.
        test_examples (`int`):
            Held-out examples for each score.
        seed (`int`):
            Of everything that is drawn.
        quick (`bool`):
            A few steps of each stage: shows that all of it runs, and learns nothing.
    """

    language_model: str | None
    vision_model: str | None
    dataset: str | None
    output: Path
    steps: int
    batch_size: int
    learning_rate: float
    shots: tuple[int, ...]
    test_examples: int
    seed: int
    quick: bool


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DemoError(f"{message}. See `{self.prog} --help`.")


def _number(kind: type, least: float) -> object:
    """A type of argument: numbers of `least` or more."""

    def parse(text: str) -> float:
        number = kind(text)
        if not number >= least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return number

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # argparse names it in its message
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        "hf-mmunify demo",
        description=(
            "Flamingo from end to end: frozen parts, adapters trained on few-shot documents, evaluation beside blind "
            "baselines, saving, loading in a new process, LoRA. Without options it trains small parts on real "
            "handwriting, offline, within five minutes on two CPU cores."
        ),
    )
    parts = parser.add_argument_group("parts and data")
    parts.add_argument("--language-model", metavar="NAME", help="causal language model: Hub repository or folder")
    parts.add_argument(
        "--vision-model", metavar="NAME", help="vision tower, or a CLIP-like pair: Hub repository or folder"
    )
    parts.add_argument(
        "--dataset",
        metavar="NAME",
        help="dataset of the Hub, or a folder: images with captions, with questions and answers, or in a subfolder "
        "for each class",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--steps", type=_number(int, 1), help=f"optimizer steps of the adapters (default: {STEPS})")
    parser.add_argument("--batch-size", type=_number(int, 1), help=f"documents in a step (default: {BATCH_SIZE})")
    parser.add_argument(
        "--learning-rate",
        type=_number(float, 0.0),
        help=f"of the adapters (default: {LEARNING_RATE:g}; with --language-model {REAL_LEARNING_RATE:g})",
    )
    parser.add_argument(
        "--shots",
        type=_number(int, 0),
        nargs="+",
        default=[0, 1, 2, 4],
        help="numbers of solved examples to evaluate with (default: 0 1 2 4)",
    )
    parser.add_argument(
        "--test-examples", type=_number(int, 1), help=f"held-out examples for each score (default: {TEST_EXAMPLES})"
    )
    parser.add_argument("--seed", type=_number(int, 0), default=0, help="of everything drawn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: runs, but learns nothing")
    return parser


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read and check the command line.

    Raises:
        DemoError: an argument is unknown, of the wrong kind, or does not go with another one.
        SystemExit: of `--help`, after it was shown.
    """
    given = vars(_parser().parse_args(argv))
    quick, real = given["quick"], given["language_model"] is not None
    defaults = {
        "steps": 4 if quick else STEPS,
        "batch_size": 4 if quick else BATCH_SIZE,
        "learning_rate": REAL_LEARNING_RATE if real else LEARNING_RATE,
        "test_examples": 8 if quick else TEST_EXAMPLES,
    }
    given.update({name: value for name, value in defaults.items() if given[name] is None})
    given["shots"] = tuple(sorted(set(given["shots"])))
    options = Options(**given)
    if options.dataset is not None and options.language_model is None:
        raise DemoError(
            "The small language model knows the words of digit scenes only: with --dataset, name a --language-model "
            "too, for instance facebook/opt-125m."
        )
    if options.dataset is not None and options.vision_model is None:
        raise DemoError(
            "The small vision tower knows digit scenes only: with --dataset, name a --vision-model too, for instance "
            "openai/clip-vit-base-patch32."
        )
    _check_output(options.output)
    return options


def _check_output(output: Path) -> None:
    """Nothing of the user's may be overwritten: the folder is new, empty, or of an earlier run."""
    if output.exists() and not output.is_dir():
        raise DemoError(f"{output} is a file. Name a folder with --output.")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).exists() for name in WRITTEN):
        raise DemoError(f"{output} is not empty, and not of an earlier run. Name another folder with --output.")
