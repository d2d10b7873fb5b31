"""Distillation from the dense model, in which groups can be given weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.group_terms import Groups, as_group_sizes, balanced_factors, group_sums, of_people
from fair_prune_plugins.losses.hook import LossBatch, Reduction
from fair_prune_plugins.losses.labels import Task, cross_entropy
from fair_prune_plugins.losses.registry import loss
from fair_prune_plugins.losses.taught import TaughtLoss
from fair_prune_plugins.losses.teacher import Teacher

BAD_OPTION = "temperature must be above 0 and share lie in [0, 1], got temperature={temperature!r}, share={share!r}"
BAD_WEIGHTS = (
    "group_weights must be 'balanced', or one finite, non-negative number per group ({names}), got {weights!r}"
)


@loss(
    "distillation",
    summary="Imitates the dense model's probabilities beside the labels, with all sensitive groups weighing the same.",
    source="Hinton et al., 2015, arXiv:1503.02531, with weights by group",
)
class Distillation(TaughtLoss):
    """``mean_n u_g(n) [(1 - share) CE(student, y) + share T^2 KL(dense_T || student_T)]``, probabilities at temperature
    ``T``; the mean over labels in multi-label tasks.

    Args:
        teacher: the dense model (copied), or a :class:`~fair_prune_plugins.losses.Teacher`, e.g. with a cache.
        groups: number of groups, their names, or their sizes in the training data, see
            :class:`~fair_prune_plugins.losses.GroupBalancedCrossEntropy`.
        temperature: softens both models' probabilities.
        share: of the imitation; 0 is the labels alone, 1 the dense model alone.
        group_weights: ``"balanced"``: all groups weigh the same; or ``u``, one factor per group. People of unknown
            group have the factor 1.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there; it concerns the labels, not the imitation.
        reduction: see there.
    """

    needs_groups = True

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        groups: Groups,
        *,
        temperature: float = 2.0,
        share: float = 0.5,
        group_weights: Literal["balanced"] | Sequence[float] = "balanced",
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        sizes = as_group_sizes(groups)
        super().__init__(teacher, sizes, task=task, label_smoothing=label_smoothing, reduction=reduction)
        if not (temperature > 0 and 0 <= share <= 1):
            raise InputError(BAD_OPTION.format(temperature=temperature, share=share))
        self.temperature, self.share = temperature, share
        self.sizes = sizes
        self._weights = _checked(group_weights, sizes.names)

    @property
    def compares_batch(self) -> bool:
        """Only with ``group_weights="balanced"`` and without the groups' sizes in the training data."""
        return self._weights is None and self.sizes.counts is None

    def sample_losses(self, batch: LossBatch) -> torch.Tensor:
        """Labels and imitation, mixed."""
        dense = self.dense_logits(batch)
        hard = cross_entropy(batch.logits, batch.labels, batch.task, self.label_smoothing).mean(1)
        soft = _divergence(dense / self.temperature, batch.logits / self.temperature, batch.task)
        return (1 - self.share) * hard + self.share * self.temperature**2 * soft

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """The weight of the person's group; 1 where the group is unknown."""
        if self._weights is not None:
            return of_people(self._weights, batch.codes, 1.0)
        weight = group_sums(batch.weights, batch.codes, len(self.sizes))
        return of_people(balanced_factors(self.sizes, weight), batch.codes, 1.0)


def _divergence(dense: torch.Tensor, student: torch.Tensor, task: Task) -> torch.Tensor:
    """KL divergence of the student's probabilities from the dense model's, ``[N]``."""
    if task == "multiclass":
        return F.kl_div(student.log_softmax(1), dense.log_softmax(1), reduction="none", log_target=True).sum(1)
    yes = F.kl_div(F.logsigmoid(student), F.logsigmoid(dense), reduction="none", log_target=True)
    no = F.kl_div(F.logsigmoid(-student), F.logsigmoid(-dense), reduction="none", log_target=True)
    return (yes + no).mean(1)


def _checked(weights: Any, names: tuple[str, ...]) -> torch.Tensor | None:
    if weights == "balanced":
        return None
    error = InputError(BAD_WEIGHTS.format(names=list(names), weights=weights))
    if isinstance(weights, str):
        raise error
    values = torch.tensor(list(weights), dtype=torch.float64)
    if len(values) != len(names) or not torch.isfinite(values).all() or (values < 0).any():
        raise error
    return values
