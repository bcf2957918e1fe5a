"""What there is to do with a model, and which architecture does it: the Auto class, script and metric of each task.

The table of README.md is `task_table()`; `hf-mmunify tasks` prints it. A script takes every model that the Auto class
of its task knows, native ones included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from . import auto
from .registry import ARCHITECTURES, config_class_of


@dataclass(frozen=True)
class Task:
    """Something to do with a model.

    Attributes:
        name (`str`): as users call it.
        auto_class (`str`): the name of the Auto class, of transformers or of `hf_mmunify.auto`, that finds its models.
        script (`str`): the file in `examples/` that trains and evaluates any of them.
        metric (`str`): what the script reports.
        native (`tuple[str, ...]`): some public configs of transformers whose models the Auto class knows besides.
    """

    name: str
    auto_class: str
    script: str
    metric: str
    native: tuple[str, ...] = ()

    @property
    def models(self) -> Mapping[type[PreTrainedConfig], type[PreTrainedModel]]:
        """The models that do this task, by their config class."""
        home = auto if self.auto_class in auto.__all__ else transformers
        return getattr(home, self.auto_class)._model_mapping

    def model_of(self, model_type: str) -> str | None:
        """The name of the class that does this task for an architecture of the registry, or `None`."""
        config_class = config_class_of(model_type)
        return self.models[config_class].__name__ if config_class in self.models else None


TASKS: tuple[Task, ...] = (
    Task(
        "image-text retrieval",
        "AutoModelForImageTextRetrieval",
        "image_text_retrieval.py",
        "recall at 1, 5 and 10, both ways",
        ("AlignConfig", "AltCLIPConfig", "BridgeTowerConfig", "ChineseCLIPConfig", "SiglipConfig"),
    ),
    Task(
        "captioning",
        "AutoModelForImageTextToText",
        "captioning.py",
        "CIDEr-D, exact match",
        ("GitConfig", "Kosmos2Config", "PaliGemmaConfig"),
    ),
    Task(
        "visual question answering",
        "AutoModelForVisualQuestionAnswering",
        "visual_question_answering.py",
        "VQA accuracy",
    ),
    Task(
        "visual reasoning on image pairs",
        "AutoModelForVisualReasoning",
        "visual_reasoning.py",
        "accuracy, confusion",
    ),
    Task("visual entailment", "AutoModelForVisualEntailment", "visual_entailment.py", "accuracy, confusion"),
    Task(
        "video action recognition",
        "AutoModelForVideoClassification",
        "video_classification.py",
        "top-1 and top-5 over clips",
        ("TimesformerConfig", "VideoMAEConfig", "VivitConfig"),
    ),
    Task(
        "zero-shot classification",
        "AutoModelForZeroShotImageClassification",
        "zero_shot_classification.py",
        "top-1 and top-5, prompt templates",
        ("AlignConfig", "AltCLIPConfig", "ChineseCLIPConfig", "SiglipConfig"),
    ),
)


def _rows() -> Iterator[list[str]]:
    found = {x: [task.model_of(x) is not None for task in TASKS] for x in sorted(ARCHITECTURES)}
    columns = [x for x, does in found.items() if any(does)]
    yield ["task", *(f"`{x}`" for x in columns), "natively also", "script", "metric"]
    yield ["---", *([":-:"] * len(columns)), "---", "---", "---"]
    for number, task in enumerate(TASKS):
        native = ", ".join(name.removesuffix("Config") for name in task.native)
        marks = ("✓" if found[x][number] else "" for x in columns)
        yield [task.name, *marks, native, f"`{task.script}`", task.metric]


def task_table() -> str:
    """Tasks times architectures of the registry, in Markdown; an architecture with none of the tasks has no column."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in _rows())
