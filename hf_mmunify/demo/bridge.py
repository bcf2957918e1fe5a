"""Between the frozen parts: attach the adapters, train them on documents, and see what they can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel, ProcessorMixin

from ..data import InterleavedCollator
from ..evaluation import FewShotEvaluator, FewShotPrompt
from ..models.flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from ..training.optimizer import parameter_groups
from .data import Task


MAX_LENGTH = 512  # tokens of a document
GATE_SPEED = 10  # learning rate of the gates, in that of the rest

# Between the small parts of `parts.py`. With so narrow layers, weights must start larger for images to be noticed.
SMALL_ADAPTER = {
    "cross_attention_num_heads": 4,
    "cross_attention_head_dim": 32,
    "cross_attention_intermediate_size": 256,
    "resampler_num_latents": 9,
    "resampler_num_layers": 1,
    "resampler_num_heads": 4,
    "resampler_head_dim": 24,
    "initializer_range": 0.1,
}
# Between real parts: OpenFlamingo's heads, and about six blocks, however deep the language model is.
REAL_ADAPTER = {
    "cross_attention_num_heads": 8,
    "cross_attention_head_dim": 64,
    "resampler_num_layers": 2,
    "resampler_num_heads": 8,
    "resampler_head_dim": 64,
}


@dataclass
class Answers:
    """What a model answered to the test examples of a task.

    Args:
        prompts (`list[FewShotPrompt]`): What it read.
        seeing (`list[str]`), blind (`list[str]`): What it wrote, and what it wrote with all images zeroed.
        score (`float`), blind_score (`float`): How good they are.
    """

    prompts: list[FewShotPrompt]
    seeing: list[str]
    blind: list[str]
    score: float
    blind_score: float


def attach(vision: str, language: str, small: bool) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """New adapters between two frozen parts, and their processor.

    Args:
        vision (`str`), language (`str`): Repositories or folders, with their image processor and tokenizer.
        small (`bool`): Whether the language model is the small one of `parts.py`.
    """
    processor = FlamingoProcessor(AutoImageProcessor.from_pretrained(vision), AutoTokenizer.from_pretrained(language))
    settings = dict(SMALL_ADAPTER if small else REAL_ADAPTER)
    if not small:
        depth = AutoConfig.from_pretrained(language).get_text_config(decoder=True).num_hidden_layers
        settings["cross_attention_interval"] = max(1, depth // 6)
    full = {"dtype": torch.float32}  # in which the adapters train; a GPU computes in bfloat16 all the same
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        vision, language, processor=processor, vision_kwargs=full, text_kwargs=full, **settings
    )
    return model, processor


def groups_for_optimizer(model: PreTrainedModel, learning_rate: float) -> list[dict[str, Any]]:
    """What is trained, with the paper's weight decay, and the gates faster than the rest.

    A gate and the block behind it wait for each other: while the gate is closed the block learns little, and while the
    block knows little the gate has no reason to open. In so few steps the gates must go ahead.
    """
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("_gate")]
    known = {id(gate) for gate in gates}
    groups = parameter_groups(model)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
    return [*groups, {"params": gates, "weight_decay": 0.0, "lr": GATE_SPEED * learning_rate}]


def collator_of(processor: ProcessorMixin, max_shots: int, seed: int) -> InterleavedCollator:
    """Documents to batches. In them the image comes before its text, so no text looks at the image after it."""
    length = min(MAX_LENGTH, processor.tokenizer.model_max_length)
    return InterleavedCollator(
        processor, max_images=max_shots + 1, max_length=length, next_image_probability=0.0, seed=seed
    )


def answer(
    model: PreTrainedModel, processor: ProcessorMixin, task: Task, shots: Sequence[int], batch_size: int, seed: int
) -> dict[int, Answers]:
    """Answers to the test examples of a task, for each number of shots. Shots are drawn from its training examples."""
    evaluator = FewShotEvaluator(
        model,
        processor,
        task.train,
        task.template,
        zero_shot_examples=0,  # the form of an answer is known from training
        batch_size=batch_size,
        max_new_tokens=task.answer_length,
        num_beams=1,
        seed=seed,
    )
    truth = [row["answer"] for row in task.test]
    answers = {}
    for number in shots:
        seeing = evaluator.generate(task.test, number)
        blind = evaluator.generate(task.test, number, blind=True)
        scores = [next(iter(task.metric(written, truth).values())) for written in (seeing, blind)]
        answers[number] = Answers(evaluator.prompts(task.test, number), seeing, blind, *scores)
    return answers
