"""The page that a run leaves: one html file with everything in it, readable without a server or a network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation import FewShotPrompt
from .charts import line_chart


@dataclass
class Answered:
    """A held-out example with what the model wrote.

    Args:
        prompt (`FewShotPrompt`): What it read.
        answer (`str`), blind (`str`): What it wrote, and what it wrote with all images zeroed.
        truth (`str`): What was right.
    """

    prompt: FewShotPrompt
    answer: str
    blind: str
    truth: str


@dataclass
class Result:
    """How a task went.

    Args:
        name (`str`): Of the task.
        metric (`str`): What its scores are.
        scores (`dict[int, dict[str, float]]`): "score" and "blind" for each number of shots.
        examples (`dict[int, list[Answered]]`): A few examples for each number of shots.
    """

    name: str
    metric: str
    scores: dict[int, dict[str, float]]
    examples: dict[int, list[Answered]] = field(repr=False)


@dataclass
class Story:
    """Everything that the page tells.

    Args:
        results (`list[Result]`): Of each task.
        curves (`dict[str, list[tuple[int, float]]]`): Loss over steps of everything that was trained, by its name.
        gate_steps (`list[int]`), attention_gates (`dict[str, list[float]]`), feed_forward_gates (`dict`): As
            `GateRecorder` keeps them.
        facts (`dict[str, str]`): Short facts for the head of the page: name and value.
        parts (`dict[str, str]`): A sentence on each part of the model, "vision", "language" and "adapter".
        checks (`dict[str, float]`): Largest difference of a score after loading, by what was loaded.
        command (`str`): What was run.
        folder (`str`): Where everything was written.
    """

    results: list[Result]
    curves: dict[str, list[tuple[int, float]]]
    gate_steps: list[int]
    attention_gates: dict[str, list[float]]
    feed_forward_gates: dict[str, list[float]]
    facts: dict[str, str]
    parts: dict[str, str]
    checks: dict[str, float]
    command: str
    folder: str


TITLES = {"caption": "Captions", "vqa": "Questions", "label": "Labels by an unsaid rule"}
ABOUT = {
    "caption": "The model describes the picture; a caption counts when every word of it is right.",
    "vqa": "What color, what digit, how many: each question has one word, or a few, for an answer.",
    "label": (
        "Every picture shows one digit, and its label is either its name or its color. Which of the two is never "
        "said: only the solved examples before it show the rule, so that without shots half is all one can expect."
    ),
}
CHECKS = {
    "model": "<code>model/</code>, by <code>AutoModelForImageTextToText</code> and <code>AutoProcessor</code>",
    "adapter": "<code>adapter/</code> alone, put on the frozen parts",
    "lora": "<code>lora/</code>, a PEFT LoRA on the language model, on top of <code>model/</code>",
}


def _picture(image: Any) -> str:
    """An image as a data address: small ones as they are (the page scales their pixels), large ones made smaller."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    picture = picture.convert("RGB")
    picture.thumbnail((192, 192))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(answered: Answered, image_token: str, end: str) -> str:
    """An example: its shots, the query, what the model wrote, what it wrote blind, and what was right."""
    chunks = [chunk.replace(end, "") for chunk in answered.prompt.text.split(image_token)[1:]]
    shown = []
    for number, (image, words) in enumerate(zip(answered.prompt.images, chunks)):
        is_query = number == len(chunks) - 1
        right = answered.answer == answered.truth
        told = escape(words.strip())
        if is_query:
            mark = "right" if right else "wrong"
            told += f' <b class="{mark}">{escape(answered.answer) or "(nothing)"}</b>'
            told += "" if right else f'<span class="truth">right: {escape(answered.truth)}</span>'
            told += f'<span class="truth">blind: {escape(answered.blind) or "(nothing)"}</span>'
        shown.append(
            f'<figure class="{"query" if is_query else "shot"}"><img src="{_picture(image)}" alt="">'
            f"<figcaption>{told}</figcaption></figure>"
        )
    return f'<div class="prompt">{"".join(shown)}</div>'


def _examples(result: Result, image_token: str, end: str) -> str:
    """All examples of a task: without shots in a grid, with shots one below the other."""
    parts = []
    for shots, examples in result.examples.items():
        title = "Without a shot" if shots == 0 else f"After {shots} shot{'s' if shots > 1 else ''}"
        cards = "".join(_card(answered, image_token, end) for answered in examples)
        parts.append(f'<h4>{title}</h4><div class="{"grid" if shots == 0 else "stack"}">{cards}</div>')
    return "".join(parts)


def _table(results: Sequence[Result]) -> str:
    shots = list(results[0].scores)
    head = "".join(f"<th>{number} shot{'' if number == 1 else 's'}</th>" for number in shots)
    rows = []
    for result in results:
        title = f"{TITLES[result.name]} <small>{escape(result.metric)}</small>"
        scores = "".join(f"<td>{result.scores[number]['score']:.3f}</td>" for number in shots)
        blind = "".join(f"<td>{result.scores[number]['blind']:.3f}</td>" for number in shots)
        rows.append(f'<tr><th scope="row">{title}</th>{scores}</tr>')
        rows.append(f'<tr class="blind"><th scope="row">blind: all images zeroed</th>{blind}</tr>')
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _score_chart(result: Result) -> str:
    lines = {
        "sees the images": [(shots, values["score"]) for shots, values in result.scores.items()],
        "blind": [(shots, values["blind"]) for shots, values in result.scores.items()],
    }
    highest = max(value for line in lines.values() for _, value in line)
    return line_chart(
        TITLES[result.name],
        lines,
        "shots",
        result.metric,
        x_ticks=list(result.scores),
        y_range=(0.0, max(1.0, highest)),
        dashed=["blind"],
        dots=True,
    )


def _gate_chart(title: str, steps: Sequence[int], gates: Mapping[str, Sequence[float]]) -> str:
    lines = {f"layer {index}": list(zip(steps, values)) for index, values in gates.items()}
    return line_chart(
        title, lines, "step", "|tanh(gate)|", y_range=(0.0, max(max(values) for values in gates.values()))
    )


def _loss_chart(name: str, curve: Sequence[tuple[int, float]]) -> str:
    highest = max(loss for _, loss in curve)
    return line_chart(f"Loss: {name}", {"loss": curve}, "step", "loss", y_range=(0.0, highest))


def _checks(story: Story) -> str:
    rows = [
        f'<li><b class="{"right" if difference < 1e-4 else "wrong"}">'
        f"{'same answers' if difference < 1e-4 else 'different answers'}</b> from {CHECKS[way]} "
        f"<small>largest difference of a score: {difference:.1e}</small></li>"
        for way, difference in story.checks.items()
    ]
    return f'<ul class="checks">{"".join(rows)}</ul>'


def _code(folder: str) -> str:
    return escape(
        "import hf_mmunify\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'model = AutoModelForImageTextToText.from_pretrained("{folder}/model")\n'
        f'processor = AutoProcessor.from_pretrained("{folder}/model")'
    )


def page(story: Story, image_token: str, end: str) -> str:
    """The whole page.

    Args:
        story (`Story`): What it tells.
        image_token (`str`), end (`str`): How prompts write an image, and the end of its text.
    """
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in story.facts.items()
    )
    tasks = "".join(
        f"<section><h3>{TITLES[result.name]}</h3><p>{ABOUT[result.name]}</p>"
        f"{_examples(result, image_token, end)}</section>"
        for result in story.results
    )
    sections = {
        "FACTS": facts,
        "VISION": escape(story.parts["vision"]),
        "LANGUAGE": escape(story.parts["language"]),
        "ADAPTER": escape(story.parts["adapter"]),
        "TABLE": _table(story.results),
        "SCORES": "".join(_score_chart(result) for result in story.results),
        "EXAMPLES": tasks,
        "GATES": _gate_chart("Attention gates", story.gate_steps, story.attention_gates)
        + _gate_chart("Feed-forward gates", story.gate_steps, story.feed_forward_gates),
        "LOSSES": "".join(_loss_chart(name, curve) for name, curve in story.curves.items()),
        "CHECKS": _checks(story),
        "COMMAND": escape(story.command),
        "CODE": _code(story.folder),
    }
    text = (files(__package__) / "page.html").read_text(encoding="utf-8")
    for name, part in sections.items():
        text = text.replace(f"[[{name}]]", part)
    return text
