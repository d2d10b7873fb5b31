"""Cross-entropy in which every sensitive group weighs the same."""

from __future__ import annotations

import torch

from fair_prune_plugins.losses.group_terms import Groups, as_group_sizes, balanced_factors, group_sums, of_people
from fair_prune_plugins.losses.hook import LossBatch, LossHook, Reduction
from fair_prune_plugins.losses.labels import Task
from fair_prune_plugins.losses.registry import loss


@loss(
    "group_balanced",
    summary="Cross-entropy in which all sensitive groups weigh the same, however many people they have.",
    source="inverse-frequency importance weights, e.g. Sagawa et al., ICLR 2020, arXiv:1911.08731, section 4",
)
class GroupBalancedCrossEntropy(LossHook):
    """The mean over groups of each group's mean loss; people of unknown group count with their own weight beside it.

    Args:
        groups: number of groups or their names: then the groups present in a batch share it equally. Or the numbers of
            people in the training data (:class:`~fair_prune_plugins.groups.GroupLabels` or a mapping): then every
            person has a fixed weight, inverse to the size of their group, and the mean over batches is exact.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there.
        reduction: see there.
    """

    needs_groups = True

    def __init__(
        self,
        groups: Groups,
        *,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        sizes = as_group_sizes(groups)
        super().__init__(sizes, task=task, label_smoothing=label_smoothing, reduction=reduction)
        self.sizes = sizes

    @property
    def compares_batch(self) -> bool:
        """Only without the groups' sizes in the training data."""
        return self.sizes.counts is None

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """Inverse to the size of the person's group; 1 where the group is unknown."""
        weight = group_sums(batch.weights, batch.codes, len(self.sizes))
        return of_people(balanced_factors(self.sizes, weight), batch.codes, 1.0)
