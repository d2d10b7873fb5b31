"""Equalised loss: every group's loss is pulled towards everybody's, by multipliers that grow with the gap."""

from __future__ import annotations

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.group_terms import GroupMeans, Groups, as_group_sizes, excess_factors
from fair_prune_plugins.losses.hook import LossBatch, LossHook, Reduction
from fair_prune_plugins.losses.labels import Task
from fair_prune_plugins.losses.registry import loss

BAD_STEP = "step_size must be above 0, got {step_size!r}"


@loss(
    "equalised_loss",
    summary="Cross-entropy plus the gaps between each group's loss and everybody's, times multipliers that grow.",
    source="Tran et al., NeurIPS 2022, arXiv:2205.13574",
)
class EqualisedLoss(LossHook):
    """``J + sum_g lambda_g |J_g - J|``, with ``lambda_g += step_size |J_g - J|`` before each step, over the groups that
    are present in the batch.

    The gap compares with the mean over people of known groups; multipliers never fall. A group that is better off than
    the mean is pulled up to it: its people can count less than nothing.

    Args:
        groups: number of groups or their names.
        step_size: of the ascent of the multipliers, per batch.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there.
        reduction: see there.
    """

    needs_groups = True
    multipliers: torch.Tensor

    def __init__(
        self,
        groups: Groups,
        *,
        step_size: float = 0.01,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        sizes = as_group_sizes(groups)
        super().__init__(sizes, task=task, label_smoothing=label_smoothing, reduction=reduction)
        if not step_size > 0:
            raise InputError(BAD_STEP.format(step_size=step_size))
        self.step_size = step_size
        self.register_buffer("multipliers", torch.zeros(len(sizes), dtype=torch.float64))

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """1 plus what the group terms make of it."""
        means = GroupMeans.of(losses, batch.weights, batch.codes, len(self.multipliers))
        gap = torch.where(means.present, means.loss - means.pooled, torch.zeros_like(means.loss))
        if batch.learning:
            self.multipliers.add_(self.step_size * gap.abs().to(self.multipliers))
        # |x| is sign(x) x, and the sign has no gradient.
        signed = self.multipliers.cpu() * gap.sign()
        return excess_factors(signed, means, batch.codes, float(batch.weights.sum()))
