"""The losses of a model with several objectives as one: fixed weights, or weights that are learned from uncertainty.

Paper: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics (Kendall et al., 2018),
section 3.2. Its likelihood of a classification with a noise of variance sigma^2 gives the loss `L / sigma^2 + log
sigma`; what is learned is `s = log sigma^2`, which needs no bound.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import distributed, nn


class MultiTaskWeights(nn.Module):
    """Losses by name -> one loss.

        fixed     sum of  weight * loss
        learned   sum of  exp(-s) * loss + s / 2

    Args:
        weights (`Mapping[str, float]` or `Sequence[str]`):
            The outputs of the model that are losses (`"loss_itc"`, ...), with the fixed weight of each; or their names
            alone, of which the weights are learned.

    Raises:
        ValueError: no loss is named.

    Example:

    ```python
    >>> weights = MultiTaskWeights({"loss_itc": 1.0, "loss_itm": 1.0, "loss_mlm": 0.5})  # fixed
    >>> weights = MultiTaskWeights(["loss_itc", "loss_itm", "loss_mlm"])  # learned
    >>> trainer = TaskTrainer(model, args, multi_task_weights=weights)
    ```
    """

    def __init__(self, weights: Mapping[str, float] | Sequence[str]):
        super().__init__()
        self.names = list(weights)
        if not self.names:
            raise ValueError("MultiTaskWeights needs the names of losses, got none.")
        self.is_learned = not isinstance(weights, Mapping)
        if self.is_learned:
            self.log_variances = nn.Parameter(torch.zeros(len(self.names)))
            self.log_variances.register_hook(_mean_over_processes)
        else:
            self.fixed = nn.Buffer(torch.tensor([float(weights[name]) for name in self.names]))

    def forward(self, losses: Mapping[str, torch.Tensor | None]) -> torch.Tensor:
        """Weigh the losses.

        Args:
            losses (`Mapping[str, torch.Tensor]`): Scalars by name: the model's outputs as they are.

        Returns:
            `torch.Tensor`: a scalar.

        Raises:
            ValueError: a loss is missing; the message names those that are there.
        """
        missing = [name for name in self.names if losses.get(name) is None]
        if missing:
            found = [name for name, value in losses.items() if "loss" in name and value is not None]
            raise ValueError(f"The model returned no {missing}, only {found}: name those, or pass what they need.")
        terms = torch.stack([losses[name].mean() for name in self.names])  # [N]
        if self.is_learned:
            return (terms * (-self.log_variances).exp() + self.log_variances / 2).sum()
        return (terms * self.fixed).sum()

    def current(self) -> dict[str, float]:
        """The weight of each loss as it is now."""
        weights = (-self.log_variances.detach()).exp() if self.is_learned else self.fixed
        return dict(zip(self.names, weights.tolist()))


def _mean_over_processes(gradient: torch.Tensor) -> torch.Tensor:
    """The weights are no part of the model, so no parallel wrapper averages their gradient."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return gradient
    gradient = gradient.clone()
    distributed.all_reduce(gradient)
    return gradient / distributed.get_world_size()


__all__ = ["MultiTaskWeights"]
