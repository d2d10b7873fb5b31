"""Plain cross-entropy: everybody counts the same, as in a loss of torch."""

from __future__ import annotations

from fair_prune_plugins.losses.hook import LossHook, Reduction
from fair_prune_plugins.losses.labels import Task
from fair_prune_plugins.losses.registry import loss


@loss(
    "cross_entropy",
    summary="Mean cross-entropy: everybody counts the same, so large groups count most.",
    source="torch.nn.CrossEntropyLoss and BCEWithLogitsLoss",
)
class CrossEntropy(LossHook):
    """The loss to compare the others with; it takes and ignores groups. Arguments as of :class:`LossHook`."""

    def __init__(self, *, task: Task = "auto", label_smoothing: float = 0.0, reduction: Reduction = "mean") -> None:
        super().__init__(task=task, label_smoothing=label_smoothing, reduction=reduction)
