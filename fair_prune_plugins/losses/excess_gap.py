"""CEAG's excess accuracy gap as a constraint: no group may lose more accuracy than everybody does, plus a tolerance."""

from __future__ import annotations

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.dense_accuracy import DenseAccuracy
from fair_prune_plugins.losses.group_terms import GroupMeans, GroupSizes, excess_factors
from fair_prune_plugins.losses.hook import LossBatch, LossHook, Reduction
from fair_prune_plugins.losses.labels import Task, require_hard, right
from fair_prune_plugins.losses.registry import loss

BAD_OPTION = (
    "tolerance must be at least 0, step_size above 0 and memory at least 1, got {tolerance}, {step_size}, {memory}"
)
NOT_DENSE = "dense= must be a DenseAccuracy (DenseAccuracy.measure(model, loader, groups=...)), got {got}"


@loss(
    "excess_gap",
    summary="Cross-entropy under the constraint that no group loses more accuracy than everybody, plus a tolerance.",
    source="Hashemizadeh et al., ICLR 2024, arXiv:2310.20673 (CEAG), algorithm 1",
)
class ExcessGapConstraint(LossHook):
    """``L + sum_g lambda_g (L_g - L)``, where ``lambda_g`` follows the accuracy that group ``g`` lost beyond everybody.

    With ``A`` an accuracy, the excess gap is ``psi_g = [A_g(dense) - A_g(now)] - [A(dense) - A(now)]``. Accuracies now
    come from the most recent ``memory`` people of each group; a group takes part once it has that many. Before each
    step ``lambda_g = max(0, lambda_g + step_size (psi_g - tolerance))``, for every group that takes part, present in
    the batch or not. Constants of the surrogate, which have no gradient, are left out of the value.

    Everybody's accuracy is the groups' mean weighted by the training people in them, for the dense model and for now
    alike, so that an unpruned model has no excess gap. (The authors' code weighs the groups equally for now and by
    people for dense: with unequal groups all its gaps are off by the same amount.)

    Args:
        dense: the dense model's accuracy per group on the training people.
        tolerance: accuracy that a group may lose beyond everybody, as a fraction.
        step_size: of the ascent of the multipliers, per batch.
        memory: people per group in the replay buffer.
        task: see :class:`LossHook`, as for all that follow.
        label_smoothing: see there.
        reduction: see there.
    """

    needs_groups = True
    multipliers: torch.Tensor
    recent: torch.Tensor
    filled: torch.Tensor

    def __init__(
        self,
        dense: DenseAccuracy,
        *,
        tolerance: float = 0.01,
        step_size: float = 1e-4,
        memory: int = 40,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        if not isinstance(dense, DenseAccuracy):
            raise InputError(NOT_DENSE.format(got=type(dense).__name__))
        super().__init__(
            GroupSizes(dense.names, dense.people), task=task, label_smoothing=label_smoothing, reduction=reduction
        )
        if not (tolerance >= 0 and step_size > 0 and memory >= 1):
            raise InputError(BAD_OPTION.format(tolerance=tolerance, step_size=step_size, memory=memory))
        self.tolerance, self.step_size, self.memory = tolerance, step_size, memory
        groups = len(dense.names)
        self._people = torch.tensor(dense.people, dtype=torch.float64)
        self._dense = torch.tensor(dense.accuracy, dtype=torch.float64)
        self.register_buffer("multipliers", torch.zeros(groups, dtype=torch.float64))
        # Correctness of the most recent people, oldest first; only the first `filled` of a row mean anything.
        self.register_buffer("recent", torch.zeros(groups, memory, dtype=torch.float64))
        self.register_buffer("filled", torch.zeros(groups, dtype=torch.int64))

    def excess(self) -> torch.Tensor:
        """The excess gap of every group by the replay buffers, float64 ``[G]``; NaN where a buffer is not full."""
        full = (self.filled == self.memory).cpu()
        change = torch.where(full, self._dense - self.recent.cpu().mean(1), torch.zeros_like(self._dense))
        people = torch.where(full, self._people, torch.zeros_like(self._people))
        everybody = (change * people).sum() / people.sum().clamp_min(1)
        return torch.where(full, change - everybody, torch.full_like(change, torch.nan))

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """1 plus what the group terms make of it."""
        if batch.learning:
            self._learn(batch)
        means = GroupMeans.of(losses, batch.weights, batch.codes, len(self.multipliers))
        return excess_factors(self.multipliers.cpu(), means, batch.codes, float(batch.weights.sum()))

    def _learn(self, batch: LossBatch) -> None:
        """Remember who was classified rightly, then one step of the dual ascent."""
        require_hard(batch.labels, type(self).__name__)
        hits = right(batch.logits.detach(), batch.labels, batch.task).to(self.recent).mean(1)
        counted = torch.where(batch.weights > 0, batch.codes, torch.full_like(batch.codes, -1)).to(hits.device)
        for code in counted.unique().tolist():
            if code < 0:
                continue
            last = torch.cat([self.recent[code, : int(self.filled[code])], hits[counted == code]])[-self.memory :]
            self.recent[code, : len(last)] = last
            self.filled[code] = len(last)
        violation = (self.excess() - self.tolerance).nan_to_num(nan=0.0).to(self.multipliers)
        self.multipliers.add_(self.step_size * violation).clamp_min_(0)
