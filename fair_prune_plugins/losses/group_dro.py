"""Group distributionally robust optimisation: training on the mixture of groups that is worst for the model."""

from __future__ import annotations

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.group_terms import GroupMeans, Groups, as_group_sizes, of_people, share_of
from fair_prune_plugins.losses.hook import LossBatch, LossHook, Reduction
from fair_prune_plugins.losses.labels import Task
from fair_prune_plugins.losses.registry import loss

NO_COUNTS = (
    "adjustment={adjustment} needs the groups' sizes in the training data: pass groups= a mapping or GroupLabels"
)
BAD_STEP = "step_size must be above 0 and adjustment at least 0, got {step_size!r} and {adjustment!r}"


@loss(
    "group_dro",
    summary="Weights each group by the exponential of its past losses, so that the worst group leads the training.",
    source="Sagawa et al., ICLR 2020, arXiv:1911.08731, algorithm 1; adjustment of section 3.3",
)
class GroupDRO(LossHook):
    """``sum_g q_g L_g``, with ``q_g`` multiplied by ``exp(step_size x (L_g + adjustment / sqrt(n_g)))`` and normalised
    before each step, for the groups present in the batch.

    A group that is absent from the batch counts with a loss of 0, as in the authors' code.

    Args:
        groups: number of groups, their names or, for ``adjustment``, their sizes in the training data.
        step_size: of the exponentiated ascent, per batch.
        adjustment: ``C`` of the generalisation adjustment, which favours small groups; 0 is none.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there.
        reduction: see there.
    """

    needs_groups = True
    log_shares: torch.Tensor

    def __init__(
        self,
        groups: Groups,
        *,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        sizes = as_group_sizes(groups)
        super().__init__(sizes, task=task, label_smoothing=label_smoothing, reduction=reduction)
        if not (step_size > 0 and adjustment >= 0):
            raise InputError(BAD_STEP.format(step_size=step_size, adjustment=adjustment))
        if adjustment and sizes.counts is None:
            raise InputError(NO_COUNTS.format(adjustment=adjustment))
        self.step_size = step_size
        counts = torch.tensor(sizes.counts or [1] * len(sizes), dtype=torch.float64)
        self._adjustment = adjustment / counts.clamp_min(1).sqrt()
        # Logarithms: a share that underflowed to 0 could never grow again.
        self.register_buffer("log_shares", torch.zeros(len(sizes), dtype=torch.float64).log_softmax(0))

    @property
    def shares(self) -> torch.Tensor:
        """``q``: float64 ``[G]``, sums to 1."""
        return self.log_shares.exp()

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """``q_g`` shared among the group's people; 1 where the group is unknown."""
        means = GroupMeans.of(losses, batch.weights, batch.codes, len(self._adjustment))
        if batch.learning and bool(means.present.any()):
            rise = torch.where(means.present, means.loss + self._adjustment, torch.zeros_like(means.loss))
            self.log_shares.copy_((self.log_shares + self.step_size * rise.to(self.log_shares)).log_softmax(0))
        by_group = share_of(self.shares.cpu() * means.weight.sum(), means.weight)
        return of_people(by_group, batch.codes, 1.0)
