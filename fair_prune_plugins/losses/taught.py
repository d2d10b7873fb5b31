"""What losses that ask the dense model have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.group_terms import GroupSizes
from fair_prune_plugins.losses.hook import LossBatch, LossHook, Reduction
from fair_prune_plugins.losses.labels import Task
from fair_prune_plugins.losses.teacher import Teacher

OTHER_CLASSES = "the dense model gives logits of shape {dense}, the student {student}: both must decide the same thing"
OTHER_TEACHER = (
    "the saved state is of a loss with another dense model (checksum {saved}, here {here}); make the loss with the "
    "dense model that it was saved with"
)


class TaughtLoss(LossHook):
    """A loss that asks a :class:`~fair_prune_plugins.losses.Teacher`.

    The dense model is not saved with the loss, but its checksum is: state of a loss with another one is refused.

    Args:
        teacher: the dense model (copied), or a teacher, e.g. with a cache.
        groups: see :class:`LossHook`, as for all that follow.
        task: see there.
        label_smoothing: see there.
        reduction: see there.
    """

    needs_inputs: ClassVar[bool] = True

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        groups: GroupSizes | None = None,
        *,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(groups, task=task, label_smoothing=label_smoothing, reduction=reduction)
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)

    def dense_logits(self, batch: LossBatch) -> torch.Tensor:
        """The dense model's logits for the batch, like the student's.

        Raises:
            InputError: they have another shape, or are not finite.
        """
        dense = self.teacher.logits(batch.inputs).to(batch.logits)
        if dense.shape != batch.logits.shape:
            raise InputError(OTHER_CLASSES.format(dense=tuple(dense.shape), student=tuple(batch.logits.shape)))
        return dense

    def get_extra_state(self) -> dict[str, str]:
        """The checksum of the dense model."""
        return {"teacher": self.teacher.checksum}

    def set_extra_state(self, state: Any) -> None:
        """Compare the checksum.

        Raises:
            InputError: the state is of a loss with another dense model.
        """
        if state["teacher"] != self.teacher.checksum:
            raise InputError(OTHER_TEACHER.format(saved=state["teacher"], here=self.teacher.checksum))
