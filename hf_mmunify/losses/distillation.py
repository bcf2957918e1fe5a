"""Cross entropy against probabilities: of a teacher, or shared among several right answers."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A half-precision tensor in float32; any other as it is. Sums of exponentials need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def soft_cross_entropy(
    logits: torch.Tensor, target_probabilities: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Cross entropy of a prediction against a distribution over the same classes.

    Args:
        logits (`torch.Tensor` of shape `(..., classes)`):
            The prediction.
        target_probabilities (`torch.Tensor` of shape `(..., classes)`):
            What it should be.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over all leading axes, or `"none"`.

    Returns:
        `torch.Tensor`: a scalar, or of shape `(...)` for `"none"`; at least float32.

    Raises:
        ValueError: when the shapes differ, or `reduction` is another word.
    """
    if logits.shape != target_probabilities.shape:
        raise ValueError(
            f"expected a probability for each logit, {tuple(logits.shape)}, got {tuple(target_probabilities.shape)}."
        )
    losses = -(torch.log_softmax(at_least_float32(logits), dim=-1) * target_probabilities).sum(-1)
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction is "mean", "sum" or "none", got "{reduction}".')
    return losses.mean() if reduction == "mean" else losses.sum()


def knowledge_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """How far a student's distribution is from its teacher's (Hinton et al. 2015, section 2).

    Args:
        student_logits (`torch.Tensor` of shape `(..., classes)`):
            The student's prediction.
        teacher_logits (`torch.Tensor` of shape `(..., classes)`):
            The teacher's; no gradient flows into it.
        temperature (`float`, *optional*, defaults to 1.0):
            What both are divided by. The loss is multiplied by its square, so that gradients keep their size when the
            temperature changes.

    Returns:
        `torch.Tensor`: mean Kullback-Leibler divergence of student from teacher, a scalar.
    """
    student = torch.log_softmax(at_least_float32(student_logits) / temperature, dim=-1)
    teacher = torch.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean() * temperature**2
