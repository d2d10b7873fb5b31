"""Performance-weighted loss: people whom the dense model classifies badly count more, and the dense model is imitated
only where it is right.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.group_terms import share_of
from fair_prune_plugins.losses.hook import LossBatch, Reduction
from fair_prune_plugins.losses.labels import Task, cross_entropy, probabilities, require_hard, right
from fair_prune_plugins.losses.registry import loss
from fair_prune_plugins.losses.taught import TaughtLoss
from fair_prune_plugins.losses.teacher import Teacher

Labels = Literal["original", "soft", "corrected"]

BAD_OPTION = "theta must lie in [0, 1] and gamma be above 0, got theta={theta!r}, gamma={gamma!r}"
BAD_LABELS = "labels must be 'original', 'soft' or 'corrected', got {labels!r}"


@loss(
    "performance_weighted",
    summary="People whom the dense model classifies badly count more; it is imitated only where it is right.",
    source="Meyer and Wong, 2022, arXiv:2211.10285",
)
class PerformanceWeightedLoss(TaughtLoss):
    """``mean_n W_n CE(student(x_n), y~_n)`` with ``W_n = theta + (1 - theta) (1 - q_n)^gamma``, ``q_n`` the probability
    that the dense model gives the true class. It needs no groups.

    ``theta = 1`` turns the weights off. In multi-label tasks every label has its own weight. The weights are not
    normalised unless asked for, so the loss is smaller than a plain one.

    With ``"corrected"`` labels the people whom the dense model gets wrong have hard labels and large weights, the
    others soft labels and small ones, so that a poor dense model teaches mostly its own mistakes. Take it where the
    dense model is good.

    Args:
        teacher: the dense model (copied), or a :class:`~fair_prune_plugins.losses.Teacher`, e.g. with a cache.
        theta: the least weight, 0 to 1.
        gamma: how sharply weights fall with the dense model's certainty, above 0.
        labels: ``"original"``; ``"soft"``: the dense model's probabilities; ``"corrected"``: those where its decision
            is right, the original label elsewhere.
        normalise: divide the weights by their mean over the batch.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there; it smooths soft labels too.
        reduction: see there.
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        theta: float = 0.5,
        gamma: float = 1.0,
        labels: Labels = "corrected",
        *,
        normalise: bool = False,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(teacher, task=task, label_smoothing=label_smoothing, reduction=reduction)
        if not (0 <= theta <= 1 and gamma > 0):
            raise InputError(BAD_OPTION.format(theta=theta, gamma=gamma))
        if labels not in get_args(Labels):
            raise InputError(BAD_LABELS.format(labels=labels))
        self.theta, self.gamma, self.labels, self.normalise = theta, gamma, labels, normalise

    @property
    def compares_batch(self) -> bool:
        """Only with ``normalise``, by the batch's mean."""
        return self.normalise

    def sample_losses(self, batch: LossBatch) -> torch.Tensor:
        """``W_n CE(student, y~)``, the mean over labels in multi-label tasks."""
        require_hard(batch.labels, type(self).__name__)
        dense = self.dense_logits(batch)
        soft = probabilities(dense, batch.task)
        weights = self.theta + (1 - self.theta) * (1 - true_probability(soft, batch)).clamp_min(0) ** self.gamma
        if self.normalise:
            people = batch.weights.to(weights)
            mean = share_of(weights.mean(1) @ people, people.sum())
            weights = share_of(weights, mean.expand_as(weights))
        labels = batch.labels
        if self.labels == "soft":
            labels = soft
        elif self.labels == "corrected":
            labels = torch.where(right(dense, batch.labels, batch.task), soft, batch.labels)
        return (weights * cross_entropy(batch.logits, labels, batch.task, self.label_smoothing)).mean(1)


def true_probability(soft: torch.Tensor, batch: LossBatch) -> torch.Tensor:
    """What the dense model gives the truth, ``[N, 1]``, or ``[N, K]`` for multi-label tasks."""
    if batch.task == "multiclass":
        return (soft * batch.labels).sum(1, keepdim=True)
    return soft * batch.labels + (1 - soft) * (1 - batch.labels)
