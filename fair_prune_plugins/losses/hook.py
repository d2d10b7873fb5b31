"""What every loss hook is: losses per person, times factors that are constants of the step.

All losses of this package have the form ``sum_n w_n k_n loss_n / sum_n w_n``: ``w`` the sample weights, ``k`` what the
method makes a person count, without gradient. That is why each of them is a number to train with and, before it is
summed, one loss per person to collect statistics with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.losses.group_terms import GroupSizes, checked_codes
from fair_prune_plugins.losses.labels import NOT_FINITE, Task, check_task, checked_labels, checked_logits, cross_entropy
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.walking import Groups as GroupSources

Reduction = Literal["mean", "sum", "none"]

BAD_REDUCTION = "reduction must be 'mean', 'sum' or 'none', got {reduction!r}"
NEEDS_GROUPS = (
    "{loss} compares sensitive groups: pass groups= one code per person (-1 is unknown), or use on_batches(groups=...)"
)
NEEDS_INPUTS = (
    "{loss} asks the dense model about the same people: pass inputs= exactly what the model was given, or use "
    "on_batches()"
)
BAD_WEIGHTS = "weights= must be one finite, non-negative number per person ({people}), got {got}"
BAD_TERMS = "{loss}.{method} must return one number per person ([{people}]), got {got}"
ROWS = "outputs have {outputs} rows and {what} {got}; they must describe the same people"


@dataclass(frozen=True)
class LossBatch:
    """One checked batch, as a hook's methods see it.

    Attributes:
        logits: ``[N, K]``, ``[N, 1]`` for one logit per person; with gradient.
        labels: like ``logits``: the probability of class 1, of each class, or of each label.
        task: how to read them.
        codes: int64 ``[N]`` on the CPU, -1 where the group is unknown (everywhere, if the caller named no groups).
        weights: float64 ``[N]`` on the CPU.
        inputs: what the model was given, if the caller passed it.
        learning: whether the hook's state moves on with this batch.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    task: Task
    codes: torch.Tensor
    weights: torch.Tensor
    inputs: Any
    learning: bool


class LossHook(nn.Module):
    """A training loss that knows about sensitive groups, a dense model, or both; here plain cross-entropy.

    ``value = hook(outputs, targets, groups=codes)`` and ``value.backward()`` is all a training loop needs. State
    (multipliers, replay buffers) is in buffers: save ``hook.state_dict()`` beside the model's. It moves only while the
    hook is in training mode. A subclass overrides :meth:`sample_losses`, :meth:`factors`, or both.

    People of unknown group (code -1) count as in a plain loss and are in no group term. A batch without people has the
    loss 0.

    Args:
        groups: the groups that the hook compares, or ``None``.
        task: ``"binary"`` (one logit), ``"multiclass"``, ``"multilabel"``, or ``"auto"`` to tell by shapes.
        label_smoothing: at least 0, below 1.
        reduction: ``"mean"`` is ``sum w k loss / sum w``, ``"sum"`` the numerator, ``"none"`` its terms ``[N]``.

    Raises:
        InputError: an argument that is not allowed.
    """

    needs_groups: ClassVar[bool] = False
    needs_inputs: ClassVar[bool] = False

    def __init__(
        self,
        groups: GroupSizes | None = None,
        *,
        task: Task = "auto",
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_task(task, label_smoothing)
        _check_reduction(reduction)
        self.group_sizes = groups
        self.task: Task = task
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    @property
    def compares_batch(self) -> bool:
        """Whether what a person counts depends on who else is in the batch, so that a batch of one group says nothing.

        Taken for granted of losses with groups; one with fixed weights says otherwise.
        """
        return self.needs_groups

    def sample_losses(self, batch: LossBatch) -> torch.Tensor:
        """Each person's loss ``[N]``, with gradient."""
        return cross_entropy(batch.logits, batch.labels, batch.task, self.label_smoothing).mean(1)

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        """How much each person counts, ``[N]``; 1 is as in a plain loss.

        State moves on here, where ``batch.learning``.

        Args:
            batch: the batch; it has at least one person.
            losses: float64 ``[N]`` on the CPU, without gradient.
        """
        return torch.ones_like(losses)

    def forward(
        self,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        *,
        groups: Any = None,
        inputs: Any = None,
        weights: Any = None,
    ) -> torch.Tensor:
        """The loss of a batch.

        Args:
            outputs: the model's logits: ``[N]`` or ``[N, 1]`` (binary), ``[N, K]``.
            targets: see :func:`~fair_prune_plugins.losses.labels.checked_labels`.
            groups: integer codes ``[N]`` of the people's sensitive group, -1 where it is unknown.
            inputs: what the model was given, the very same tensors, where a dense model is asked too.
            weights: sample weights ``[N]``; two is as good as being there twice.

        Returns:
            See ``reduction`` of the class.

        Raises:
            InputError: a shape, type or value that does not fit, something not finite, or a missing argument.
        """
        return self.evaluate(outputs, targets, groups, inputs, weights, self.reduction, self.training)

    def evaluate(
        self,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        groups: Any,
        inputs: Any,
        weights: Any,
        reduction: Reduction,
        learning: bool,
    ) -> torch.Tensor:
        """The loss with another reduction, or without touching the state; else as :meth:`forward`."""
        _check_reduction(reduction)
        batch = self._batch(outputs, targets, groups, inputs, weights, learning)
        people = len(batch.logits)
        if not people:
            return batch.logits.sum(1) if reduction == "none" else batch.logits.sum()
        losses = self.sample_losses(batch)
        self._check_terms(losses, people, "sample_losses")
        with torch.no_grad():
            factors = self.factors(batch, losses.detach().double().cpu())
            self._check_terms(factors, people, "factors")
            factors = factors.to(batch.weights) * batch.weights
            if reduction == "mean":
                factors = factors / batch.weights.sum().clamp_min(torch.finfo(torch.float64).tiny)
        terms = losses * factors.to(losses)
        return terms if reduction == "none" else terms.sum()

    def _check_terms(self, terms: Any, people: int, method: str) -> None:
        if not isinstance(terms, torch.Tensor) or terms.shape != (people,):
            got = f"shape {tuple(terms.shape)}" if isinstance(terms, torch.Tensor) else type(terms).__name__
            raise InputError(BAD_TERMS.format(loss=type(self).__name__, method=method, people=people, got=got))
        bad = ~torch.isfinite(terms.detach())
        if bad.any():
            row = int(bad.int().argmax())
            raise InputError(NOT_FINITE.format(what="losses", count=int(bad.sum()), n=people, row=row))

    def _batch(self, outputs: Any, targets: Any, groups: Any, inputs: Any, weights: Any, learning: bool) -> LossBatch:
        name = type(self).__name__
        if self.needs_groups and groups is None:
            raise InputError(NEEDS_GROUPS.format(loss=name))
        if self.needs_inputs and inputs is None:
            raise InputError(NEEDS_INPUTS.format(loss=name))
        logits = checked_logits(outputs)
        people = len(logits)
        if isinstance(targets, torch.Tensor) and targets.ndim and len(targets) != people:
            raise InputError(ROWS.format(outputs=people, what="targets", got=len(targets)))
        labels, task = checked_labels(targets, logits, self.task)
        unknown = torch.full((people,), -1)
        codes = unknown if groups is None else checked_codes(groups, people, self.group_sizes)
        return LossBatch(logits, labels, task, codes, _checked_weights(weights, people), inputs, learning)

    def on_batches(
        self,
        *,
        groups: GroupSources | None = None,
        inputs: BatchSource = AUTO,
        targets: BatchSource = AUTO,
        weights: BatchSource | None = None,
    ) -> BatchLoss:
        """This loss as ``loss_fn(outputs, batch)``, for trainers that hand over whole batches.

        Args:
            groups: where a batch has the sensitive group: a key, index or callable, several of them for intersections,
                or a :class:`~fair_prune_plugins.groups.GroupReader`. Values are matched to the hook's group names.
            inputs: where it has the model's inputs.
            targets: where it has the targets.
            weights: where it has sample weights.

        Raises:
            InputError: the hook needs groups and none are given, or a reader with other names than the hook's.
        """
        return BatchLoss(self, groups, inputs, targets, weights)

    def for_statistics(
        self, *, groups: GroupSources | None = None, inputs: BatchSource = AUTO, targets: BatchSource = AUTO
    ) -> BatchLoss:
        """This loss for :func:`fair_prune_plugins.statistics.collect` and ``importance.collect``, with
        ``targets=None`` there: one loss per person, and the state stays as it is.

        Sample weights are given to ``collect``, which applies them. Arguments as of :meth:`on_batches`.
        """
        return BatchLoss(self, groups, inputs, targets, None, reduction="none", frozen=True)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise InputError(BAD_REDUCTION.format(reduction=reduction))


def _checked_weights(weights: Any, people: int) -> torch.Tensor:
    if weights is None:
        return torch.ones(people, dtype=torch.float64)
    values = torch.as_tensor(weights).detach().double().cpu()
    if values.shape != (people,):
        raise InputError(BAD_WEIGHTS.format(people=people, got=f"shape {tuple(values.shape)}"))
    if not torch.isfinite(values).all() or (values < 0).any():
        raise InputError(BAD_WEIGHTS.format(people=people, got="negative or non-finite values"))
    return values
