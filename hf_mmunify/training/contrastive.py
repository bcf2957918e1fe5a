"""Contrastive training of any two-tower model inside `Trainer`: negatives of all processes, and batches of any size.

Gradient caching, for a batch of B pairs of which C fit into memory:

    1  chunk by chunk, without a graph      pairs [C] -> features [C, D]
    2  the loss of all B pairs              features [B, D] of all processes -> loss, gradients [B, D] of the features
    3  chunk by chunk, once more, with one  pairs [C] -> features [C, D], into which their part of the gradients flows

The third pass draws what the first one drew (dropout, dropped patches), so the gradients of the parameters are exactly
those of the whole batch; they are averaged over the processes once, with the last chunk. The price is one more
forward pass. Neither pass holds more than C pairs' activations, and the loss is computed for C rows of the matrix of
similarities at a time.

Papers: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), section 2.3;
Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (Gao et al., 2021), section 3.2.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..losses import contrastive_loss, gather_without_gradient, matching_targets, rank, world_size
from .loss_scaling import TaskTrainer, TaskTrainingArguments


# Keys of a batch that neither tower reads
BESIDE_THE_TOWERS = ("return_loss", "image_ids")
PAIRS_TO_COMPARE = 8


@dataclass
class ContrastiveTrainingArguments(TaskTrainingArguments):
    """[`TaskTrainingArguments`] of a [`ContrastiveTrainer`].

    Args:
        contrastive_gather (`str`, *optional*, defaults to `"full"`):
            Where a pair's negatives come from: with `"full"` and `"local"` from all processes, exactly, the second
            with less memory (each process computes its own rows); with `"none"` from its own process only, which is
            another objective and what transformers' own losses do.
        gradient_cache_chunk_size (`int`, *optional*):
            How many pairs of `per_device_train_batch_size` are encoded at a time; by default all of them, without
            gradient caching.
    """

    contrastive_gather: str = field(
        default="full",
        metadata={
            "help": "Whence negatives come: all processes (full, local) or one (none).",
            "choices": ["full", "local", "none"],
        },
    )
    gradient_cache_chunk_size: int | None = field(
        default=None, metadata={"help": "Pairs encoded at a time; by default the whole batch, without caching."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.contrastive_gather not in ("full", "local", "none"):
            raise ValueError(f'contrastive_gather is full, local or none, got "{self.contrastive_gather}".')
        if self.gradient_cache_chunk_size is not None and self.gradient_cache_chunk_size < 1:
            raise ValueError(f"gradient_cache_chunk_size is at least 1, got {self.gradient_cache_chunk_size}.")


class ContrastiveTrainer(TaskTrainer):
    """`Trainer` of the symmetric contrastive loss, for any model of two towers.

    The model, of transformers or of this package, has `get_image_features` and `get_text_features` (outputs whose
    `pooler_output` are the projected features) and a parameter `logit_scale`, the logarithm of what similarities are
    multiplied by. A batch has what those two methods take, and may have `image_ids`: pairs of the same id, in whatever
    process, are right answers to each other. Without them every pair is an image of its own.

    `evaluate` gives the mean loss of the evaluation batches; `predict` and `compute_metrics` get the features of
    images and texts, of length 1, as predictions and `image_ids`, where the batch has them, as labels.

    Args:
        args:
            As of `Trainer`, with [`ContrastiveTrainingArguments`].
        kwargs:
            As of [`TaskTrainer`].

    Raises:
        ValueError: the model has no two towers, its own loss is another one than the contrastive (noticed with the
            first batch), a batch has what neither tower takes, or a setting cannot be combined; the message says
            what to do.

    Example:

    ```python
    >>> args = ContrastiveTrainingArguments("clip", per_device_train_batch_size=4096, gradient_cache_chunk_size=64)
    >>> trainer = ContrastiveTrainer(model, args, RetrievalCollator(processor), train_dataset)
    ```
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, ContrastiveTrainingArguments):
            raise ValueError(f"args are ContrastiveTrainingArguments, got {type(self.args).__name__}.")
        model = self.accelerator.unwrap_model(self.model)
        missing = [
            name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)
        ]
        if missing:
            raise ValueError(
                f"ContrastiveTrainer trains models of two towers, but {type(model).__name__} has no "
                f"{', '.join(missing)}: train it with TaskTrainer, which uses the model's own loss."
            )
        if self.compute_loss_func is not None or self.multi_task_weights is not None:
            raise ValueError("The loss is the contrastive one: leave out compute_loss_func and multi_task_weights.")
        if self.args.n_gpu > 1:
            raise ValueError(
                "One process drives several GPUs (DataParallel), which cuts the batch into pieces that do not see "
                "each other: start a process for each with `accelerate launch --multi_gpu` or torchrun."
            )
        if self.args.gradient_cache_chunk_size and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "Gradient caching needs several backward passes before gradients are reduced, which DeepSpeed's "
                "engine does not offer: use DDP or FSDP2, or leave out gradient_cache_chunk_size."
            )
        if self.accelerator.is_fsdp2 and model.logit_scale.dim() == 0:
            raise ValueError(
                f"The temperature of {type(model).__name__} has no dimension, and FSDP2 divides only parameters that "
                "have one: keep the whole model on each GPU (examples/accelerate/multi_gpu.yaml)."
            )
        self.model_accepts_loss_kwargs = self._asks_for_scaling = False  # a mean over the pairs
        self._image_keys = _parameters(model.get_image_features)
        self._text_keys = _parameters(model.get_text_features)
        self._is_compared = False

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One batch: its loss, with the gradients of the parameters added up."""
        if not self._is_compared:
            self._compare_objectives(model, self._prepare_inputs(inputs))
            self._is_compared = True
        if self.args.gradient_cache_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers without a schedule have modes
            self.optimizer.train()
        return self._cached_step(model, self._prepare_inputs(inputs))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The contrastive loss of a batch, all of it at once."""
        images, texts, scale = self._encode(model, inputs)
        loss = contrastive_loss(
            images, texts, scale, image_ids=inputs.get("image_ids"), gather=self.args.contrastive_gather
        )
        return (loss, {"loss": loss, "image_embeds": images, "text_embeds": texts}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]:
        """The loss of an evaluation batch, the features of its images and texts, and their `image_ids`."""
        inputs = self._prepare_inputs(inputs)
        ids = inputs.get("image_ids")
        with torch.no_grad():
            parts = [self._encode(model, chunk) for chunk in self._chunks(inputs)]
            images, texts = (torch.cat([part[side] for part in parts]) for side in (0, 1))  # [B, D]
            loss = contrastive_loss(images, texts, parts[0][2], image_ids=ids, gather=self.args.contrastive_gather)
        return (loss, None, None) if prediction_loss_only else (loss, (images, texts), ids)

    def _cached_step(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        chunks, device = self._chunks(inputs), self.args.device
        states, parts = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(_random_state(device))
                parts.append(self._encode(model, chunk))
        images, texts = (torch.cat([part[side] for part in parts]) for side in (0, 1))  # [B, D]
        loss, gradients = _loss_and_gradients(
            images,
            texts,
            parts[0][2],
            inputs.get("image_ids"),
            is_gathered=self.args.contrastive_gather != "none",
            rows_at_once=self.args.gradient_cache_chunk_size,
        )
        loss = loss / self.current_gradient_accumulation_steps
        of_images, of_texts, of_scale = (gradient / self.current_gradient_accumulation_steps for gradient in gradients)
        for number, (chunk, state, part) in enumerate(zip(chunks, states, parts)):
            is_last = number == len(chunks) - 1
            start = number * self.args.gradient_cache_chunk_size
            rows = slice(start, start + len(part[0]))
            # A random state that was set again ends where the first pass over the chunk ended
            _set_random_state(state, device)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                image, text, scale = self._encode(model, chunk)
                surrogate = (image * of_images[rows]).sum() + (text * of_texts[rows]).sum()
                if is_last:
                    surrogate = surrogate + (scale * of_scale).sum()
                self.accelerator.backward(surrogate)
        return loss

    def _encode(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features of images and texts [B, D], of length 1, and the exponential of `logit_scale`; through wrappers."""
        bare = self.accelerator.unwrap_model(model)
        image_inputs, text_inputs = self._divide(inputs)

        def towers(
            image_inputs: dict[str, Any], text_inputs: dict[str, Any]
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            # Without the autocast of the wrapped forward; a new one each time, as weights that were cast where no
            # gradient is taken would be used again where one is
            with self.accelerator.autocast():
                image = bare.get_image_features(**image_inputs).pooler_output
                text = bare.get_text_features(**text_inputs).pooler_output
            return _normalised(image), _normalised(text), bare.logit_scale.to(image.device).exp()

        with _forward_of(bare, towers):
            return model(image_inputs, text_inputs)

    def _divide(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        unknown = [
            key
            for key in inputs
            if key not in self._image_keys and key not in self._text_keys and key not in BESIDE_THE_TOWERS
        ]
        if unknown:
            raise ValueError(
                f"Neither tower takes {unknown} of the batch: images take {sorted(self._image_keys)}, texts "
                f"{sorted(self._text_keys)}, and beside them a batch may have {list(BESIDE_THE_TOWERS)}."
            )
        image_inputs = {key: value for key, value in inputs.items() if key in self._image_keys}
        return image_inputs, {
            key: value for key, value in inputs.items() if key in self._text_keys and key not in image_inputs
        }

    def _chunks(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        size = self.args.gradient_cache_chunk_size
        if size is None:
            return [inputs]
        pairs = max(len(value) for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim())
        return [
            {
                key: value[start : start + size] if isinstance(value, torch.Tensor) and value.dim() else value
                for key, value in inputs.items()
            }
            for start in range(0, pairs, size)
        ]

    def _compare_objectives(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Refuse a model whose own loss is not the contrastive one, or not it alone."""
        bare = self.accelerator.unwrap_model(model)
        few = {
            key: value[:PAIRS_TO_COMPARE] if isinstance(value, torch.Tensor) and value.dim() else value
            for key, value in inputs.items()
            if key not in BESIDE_THE_TOWERS
        }
        advice = (
            "a queue, matching, captioning or pairwise sigmoid terms would be lost. Train it with TaskTrainer, which "
            "uses the model's own loss."
        )
        base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare  # in PEFT
        if "return_loss" not in inspect.signature(type(base).forward).parameters:
            raise ValueError(
                f"{type(base).__name__} has no contrastive loss of its own (no `return_loss`) to compare: {advice}"
            )
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                own = model(**few, return_loss=True)["loss"].float()
                images, texts, scale = self._encode(model, few)
                expected = [contrastive_loss(images, texts, scale, gather=way) for way in ("none", "full")]
        finally:
            for module, mode in modes:
                module.training = mode
        if not any(torch.isclose(own, loss.to(own), rtol=2e-2, atol=1e-3) for loss in expected):
            raise ValueError(
                f"The loss of {type(base).__name__} is more or other than contrastive ({own.item():.4f} on "
                f"{len(images)} pairs, where the contrastive loss is {expected[0].item():.4f}): {advice}"
            )


def _parameters(method: Callable) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _normalised(features: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


@contextmanager
def _forward_of(module: nn.Module, function: Callable) -> Iterator[None]:
    """Let `function` be what a module, and every parallel wrapper around it, computes."""
    own = vars(module).get("forward")  # set by accelerate, for mixed precision
    module.forward = function
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _loss_and_gradients(
    images: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
    ids: torch.Tensor | None,
    is_gathered: bool,
    rows_at_once: int,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`contrastive_loss` of this process's pairs against all, with its gradients, some rows of similarities at a time.

    Returns:
        The loss, and its gradients with respect to `images` [B, D], `texts` [B, D] and `scale`.
    """
    is_gathered = is_gathered and world_size() > 1
    batch, first = len(images), rank() * len(images) if is_gathered else 0
    leaves = [gather_without_gradient(side) if is_gathered else side for side in (images, texts)]  # [N, D]
    leaves = [leaf.detach().requires_grad_() for leaf in (*leaves, scale)]
    all_ids = gather_without_gradient(ids) if is_gathered and ids is not None else ids
    total = 0.0
    for start in range(first, first + batch, rows_at_once):
        rows = slice(start, min(start + rows_at_once, first + batch))
        loss = 0.0
        for queries, candidates in (leaves[:2], leaves[1::-1]):
            logits = queries[rows] @ candidates.t() * leaves[2]  # [C, N]
            targets = (
                torch.arange(rows.start, rows.stop, device=logits.device)
                if all_ids is None
                else matching_targets(all_ids[rows], all_ids, logits.dtype)
            )
            loss = loss + nn.functional.cross_entropy(logits, targets, reduction="sum") / (2 * batch)
        loss.backward()
        total = total + loss.detach()
    of_images, of_texts, of_scale = (leaf.grad for leaf in leaves)
    if is_gathered:
        # A process's features are candidates of all processes
        of_images, of_texts = (_own_rows_of_sum(side, first, batch) for side in (of_images, of_texts))
    return total, (of_images, of_texts, of_scale)


def _own_rows_of_sum(gradient: torch.Tensor, first: int, batch: int) -> torch.Tensor:
    torch.distributed.all_reduce(gradient)
    return gradient[first : first + batch]


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), own


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)


class LogitScaleCallback(TrainerCallback):
    """Keeps the temperature of a contrastive model in bounds after every update, as CLIP was trained (section 2.5).

    Args:
        maximum (`float`, defaults to 100.0): The most that similarities are multiplied by.
    """

    def __init__(self, maximum: float = 100.0):
        self.maximum = maximum

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(self.maximum))


__all__ = ["ContrastiveTrainer", "ContrastiveTrainingArguments", "LogitScaleCallback"]
