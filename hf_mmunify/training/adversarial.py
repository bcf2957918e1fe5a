"""Adversarial training of any model: small changes of what it reads that raise its loss most, found while it learns.

    clean            p = logits of the batch as it is
    step 1 ... K     change delta (0 at first) of word embeddings and pixels or features
                     loss(delta) / K + weight * (KL(p | q) + KL(q | p)) / K, with q the logits under delta
                     its gradient -> parameters (added up) and, scaled to a fixed length, -> delta
    one update

The gradients of all steps train the model ("free" adversarial training): the first step, at delta 0, is the ordinary
loss. The clean prediction gets its gradient of the divergence too.

Paper: Large-Scale Adversarial Training for Vision-and-Language Representation Learning (Gan et al., 2020), section 3.3
and algorithm 1. Original: zhegan27/VILLA@8aa6ac2, train_vqa_adv.py; in one parallel wrapper, where the original
reduces gradients by hand, all but the last step are summed up locally.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn

from ..losses.distillation import at_least_float32
from .distillation import real_tokens
from .loss_scaling import TaskTrainer, TaskTrainingArguments


MODALITIES = ("text", "image", "both", "alternate")
NORMS = ("l2", "linf")
IMAGE_INPUTS = ("pixel_values", "image_features", "visual_embeds", "region_features")


@dataclass
class AdversarialTrainingArguments(TaskTrainingArguments):
    """[`TaskTrainingArguments`] of an [`AdversarialTrainer`]; the values are those of the original's VQA fine-tuning.

    Args:
        adversarial_steps (`int`, *optional*, defaults to 3):
            Forward and backward passes of each batch. With 1 there is no change, and training is the ordinary one.
        adversarial_modality (`str`, *optional*, defaults to `"text"`):
            What is changed: word embeddings (`"text"`), the image input (`"image"`), both at once (`"both"`), or one
            after the other, with two passes a step (`"alternate"`).
        adversarial_text_step_size (`float`, *optional*, defaults to 1e-3):
            Length of one step of the change of a row's word embeddings.
        adversarial_image_step_size (`float`, *optional*, defaults to 1e-3):
            The same of its image input.
        adversarial_max_norm (`float`, *optional*, defaults to 0.0):
            The most that a row's change may measure; 0 sets no bound.
        adversarial_norm (`str`, *optional*, defaults to `"l2"`):
            How changes are measured: `"l2"` or `"linf"`.
        adversarial_kl_weight (`float`, *optional*, defaults to 1.5):
            Weight of the divergence between clean and changed predictions.
        adversarial_embeddings (`str`, *optional*):
            Path of the module whose output is changed as text; by default the model's input embeddings.
    """

    adversarial_steps: int = field(default=3, metadata={"help": "Passes of each batch; 1 changes nothing."})
    adversarial_modality: str = field(
        default="text", metadata={"help": "What is changed.", "choices": list(MODALITIES)}
    )
    adversarial_text_step_size: float = field(default=1e-3, metadata={"help": "Step of the word embeddings' change."})
    adversarial_image_step_size: float = field(default=1e-3, metadata={"help": "Step of the image input's change."})
    adversarial_max_norm: float = field(default=0.0, metadata={"help": "Largest change of a row; 0: no bound."})
    adversarial_norm: str = field(default="l2", metadata={"help": "Measure of a change.", "choices": list(NORMS)})
    adversarial_kl_weight: float = field(default=1.5, metadata={"help": "Weight of the divergence."})
    adversarial_embeddings: str | None = field(
        default=None, metadata={"help": "Path of the embeddings that are changed; by default the model's own."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.adversarial_steps < 1:
            raise ValueError(f"adversarial_steps is at least 1, got {self.adversarial_steps}.")
        if self.adversarial_modality not in MODALITIES:
            raise ValueError(
                f'adversarial_modality is one of {", ".join(MODALITIES)}, got "{self.adversarial_modality}".'
            )
        if self.adversarial_norm not in NORMS:
            raise ValueError(f'adversarial_norm is l2 or linf, got "{self.adversarial_norm}".')


class AdversarialTrainer(TaskTrainer):
    """`Trainer` with adversarial changes of word embeddings and images, for any model with logits and a loss.

    A batch costs `adversarial_steps + 1` passes. Evaluation is the ordinary one.

    Args:
        args:
            As of `Trainer`, with [`AdversarialTrainingArguments`].
        kwargs:
            As of [`TaskTrainer`].

    Raises:
        ValueError: the model or a batch has not what is to be changed, or no `logits` to compare.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, AdversarialTrainingArguments):
            raise ValueError(f"args are AdversarialTrainingArguments, got {type(self.args).__name__}.")
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "Adversarial steps are several backward passes before gradients are reduced, which DeepSpeed's engine "
                "does not offer: use DDP or FSDP2."
            )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """All steps of one batch, with the gradients of the parameters added up; returns the mean loss."""
        args = self.args
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers without a schedule have modes
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        bare = self.accelerator.unwrap_model(model)
        kinds = (
            ("text", "image") if args.adversarial_modality in ("both", "alternate") else (args.adversarial_modality,)
        )
        passes = [(kind,) for kind in kinds] if args.adversarial_modality == "alternate" else [kinds]
        image = _image_input(inputs) if "image" in kinds else None
        is_compared = args.adversarial_kl_weight > 0 and args.adversarial_steps > 1
        shapes: dict[str, torch.Tensor] = {}
        with self.accelerator.no_sync(model), _changed(self._embeddings(bare), None, shapes):
            _, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
            clean = _logits(outputs) if is_compared else None
        deltas = {"text": _zeros_for(shapes["text"])} if "text" in kinds else {}
        if image is not None:
            deltas["image"] = _zeros_for(inputs[image])
        # The graph of the clean pass is gone through once, at the end
        leaf = clean.detach().requires_grad_() if is_compared else None
        number = args.adversarial_steps * len(passes)
        total = torch.zeros((), device=args.device)
        for step in range(args.adversarial_steps):
            deltas = {kind: delta.detach().requires_grad_() for kind, delta in deltas.items()}
            for place, changed in enumerate(passes):
                is_last = step == args.adversarial_steps - 1 and place == len(passes) - 1
                reference = clean if is_last else leaf
                with self._synchronised(model, is_last):
                    batch = inputs
                    if "image" in changed:
                        batch = {**inputs, image: inputs[image] + deltas["image"].to(inputs[image].dtype)}
                    delta = deltas["text"] if "text" in changed else None
                    with _changed(self._embeddings(bare), delta, shapes):
                        loss, outputs = self.compute_loss(
                            model, batch, return_outputs=True, num_items_in_batch=num_items_in_batch
                        )
                    if num_items_in_batch is None or not self.model_accepts_loss_kwargs:
                        loss = loss / self.current_gradient_accumulation_steps
                    if is_compared:
                        divergence = _divergence(_logits(outputs), reference, inputs)
                        weight = args.adversarial_kl_weight / self.current_gradient_accumulation_steps
                        loss = loss + weight * divergence
                    loss = loss / number
                    total = total + loss.detach()
                    if is_last and is_compared and leaf.grad is not None:
                        # What the earlier steps asked of the clean prediction, with a gradient and without a value
                        loss = loss + (clean - clean.detach()).mul(leaf.grad).sum() / self._scale()
                    self.accelerator.backward(loss)
            if step < args.adversarial_steps - 1:
                deltas = {kind: self._stepped(kind, delta) for kind, delta in deltas.items()}
        return total

    def _scale(self) -> float:
        """What `backward` multiplies by in float16, and `leaf.grad` has been multiplied by already."""
        return 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()

    @contextmanager
    def _synchronised(self, model: nn.Module, is_last: bool) -> Iterator[None]:
        if is_last:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    def _embeddings(self, model: nn.Module) -> nn.Module | None:
        if self.args.adversarial_modality == "image":
            return None
        if self.args.adversarial_embeddings is not None:
            return model.get_submodule(self.args.adversarial_embeddings)
        try:
            embeddings = model.get_input_embeddings()
        except NotImplementedError:
            embeddings = None
        if not isinstance(embeddings, nn.Embedding):
            raise ValueError(
                f"The input embeddings of {type(model).__name__} are {type(embeddings).__name__}, not a table of "
                'words: name their path in adversarial_embeddings, or set adversarial_modality="image".'
            )
        return embeddings

    def _stepped(self, kind: str, delta: torch.Tensor) -> torch.Tensor:
        """A change one step further up the loss, and within its bound."""
        args = self.args
        if delta.grad is None:
            raise ValueError(f"The loss does not depend on the {kind} that is to be changed.")
        size = args.adversarial_text_step_size if kind == "text" else args.adversarial_image_step_size
        order = 2.0 if args.adversarial_norm == "l2" else float("inf")
        stepped = delta.detach() + size * delta.grad / _length(delta.grad, order).clamp(min=1e-8)
        if args.adversarial_max_norm > 0 and order == 2.0:
            stepped = stepped * (args.adversarial_max_norm / _length(stepped, order).clamp(min=1e-8)).clamp(max=1.0)
        elif args.adversarial_max_norm > 0:
            stepped = stepped.clamp(-args.adversarial_max_norm, args.adversarial_max_norm)
        return stepped


def _zeros_for(values: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(values, dtype=torch.promote_types(values.dtype, torch.float32))


def _length(values: torch.Tensor, order: float) -> torch.Tensor:
    """Length of each row, in a shape that divides `values`."""
    lengths = torch.linalg.vector_norm(values.flatten(1), ord=order, dim=1)  # [B]
    return lengths.view(-1, *[1] * (values.dim() - 1))


@contextmanager
def _changed(
    embeddings: nn.Module | None, delta: torch.Tensor | None, shapes: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Add `delta` to what the embeddings give when they are first asked in a pass; note what they gave."""
    if embeddings is None:
        yield
        return
    calls = []

    def change(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        calls.append(module)
        if len(calls) > 1:
            return None
        shapes["text"] = output.detach()
        return None if delta is None else output + delta.to(output.dtype)

    handle = embeddings.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ValueError(
            "The embeddings were not asked in a forward pass: the batch has no text, or adversarial_embeddings names "
            "another module than the one that reads it."
        )


def _image_input(inputs: dict[str, Any]) -> str:
    found = [name for name in IMAGE_INPUTS if isinstance(inputs.get(name), torch.Tensor)]
    if not found:
        raise ValueError(f"The batch has none of {list(IMAGE_INPUTS)} to change, only {sorted(inputs)}.")
    return found[0]


def _logits(outputs: Any) -> torch.Tensor:
    logits = outputs.get("logits") if isinstance(outputs, dict) else None
    if logits is None:
        found = list(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(f"The model returns no `logits` to compare, only {found}: set adversarial_kl_weight=0.")
    return logits


def _divergence(logits: torch.Tensor, reference: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """KL both ways, mean over rows, or over tokens that are no padding."""
    one, other = (at_least_float32(each).log_softmax(-1) for each in (logits, reference))  # [..., C]
    each = ((one.exp() - other.exp()) * (one - other)).sum(-1)  # [...]
    counted = real_tokens(inputs, logits)
    return each.mean() if counted is None else each[counted].mean()


__all__ = ["AdversarialTrainer", "AdversarialTrainingArguments"]
