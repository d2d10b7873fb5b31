"""FairGRAPE's own importance, weight by weight: the gradients of every sensitive group's mean loss, times the weights.

``I[g, c] = sum over the weights e of unit c of (w_e * G[e, g])**2``, with ``G[e, g]`` the gradient of the mean loss
over all of a group's people (Lin, Kim & Joo, ECCV 2022, arXiv:2207.10888, eq. 5 and 6). Gradients are summed over all
people before anything is squared, so the numbers depend neither on the batch size nor on the order of the data. The
paper's code squares each mini-batch's gradient instead, and its numbers depend on both.

Samples are held back until a batch of one group is full; each is then computed once, whatever the number of groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from tqdm.auto import tqdm

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.unit_weights import WeightPart, weight_parts
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.regrouping import HeldBack, PureBatch
from fair_prune_plugins.statistics.sample_losses import LossFn, Reduction, SampleLosses
from fair_prune_plugins.statistics.store import GateStatistics, first_not_finite
from fair_prune_plugins.statistics.walking import Groups, Seen, Walk

HALF = (torch.float16, torch.bfloat16)
"""Gradients of these types are summed in single precision."""

NOBODY = (
    "{groups}: nobody in the data (or only zero sample weights), so there is no gradient of theirs; hand in data with "
    "people of every group, or leave such groups out of names="
)
NO_GRADIENT = (
    "the loss does not depend on any weight that can be pruned: is it detached, or computed from something else than "
    "the model's outputs?"
)
NOT_FINITE = (
    "the weights' gradients of group {group!r} are not finite, first at {name}: the backward pass overflowed there"
)
COMPARES_BATCH = (
    "{loss} compares the people of a batch with one another, and element-wise statistics are computed from batches of "
    "one group each, where there is nobody to compare with. Take cross-entropy, a loss whose weights do not depend on "
    "the batch (group_balanced or distillation with the groups' sizes in groups=, performance_weighted without "
    "normalise), or statistics of gates (statistic='square')"
)


def collect_elementwise(
    plan: GatePlan,
    loader: Iterable[Any],
    loss_fn: LossFn,
    *,
    groups: Groups | None = None,
    inputs: BatchSource = AUTO,
    targets: BatchSource | None = AUTO,
    weights: BatchSource | None = None,
    output: Source | None = None,
    reduction: Reduction = "auto",
    include_consumers: bool = True,
    progress: bool = True,
) -> GateStatistics:
    """Measure every unit by its weights' gradients, per sensitive group, with plain backward passes.

    The model is in eval mode, ``.grad`` is left alone, nothing is stepped, and the model is handed back as it was.
    Frozen layers are measured like all others. Memory: up to one and a half batches of samples per group, and one copy
    of the weights for every group that has more people than that.

    Args:
        plan: the model's gate plan.
        loader: yields batches, in which groups may be mixed.
        loss_fn: see :func:`~fair_prune_plugins.statistics.collect`, as for all that follow.
        groups: see there. People of unknown group take no part, and cost nothing.
        inputs: see there.
        targets: see there.
        weights: see there; the mean loss is the weighted mean.
        output: see there.
        reduction: see there.
        include_consumers: count a unit's columns in the layers that read it, which leave with it, not only its rows in
            the layers that make it.
        progress: show a progress bar.

    Returns:
        Statistics whose ``elementwise`` is ``I``; those of gates are NaN, for they were not measured.

    Raises:
        InputError: as for :func:`~fair_prune_plugins.statistics.collect`; a group without people; mixed batches that
            cannot be taken apart; a loss hook that compares the groups of a batch (``LossHook.compares_batch``).
        UnsupportedModelError: a unit set that no weight leaves with.
    """
    if groups is not None and getattr(loss_fn, "compares_batch", False):
        hook = getattr(loss_fn, "hook", loss_fn)
        raise InputError(COMPARES_BATCH.format(loss=type(hook).__name__))
    walk = Walk(plan, loader, BatchReader(inputs, targets, weights), groups, output)
    losses = SampleLosses(loss_fn, reduction)
    sums = _GradientSums(plan, include_consumers)
    numbers = itertools.count()

    def computed(batch: PureBatch) -> None:
        model_inputs, loss_targets, sample_weights = batch.tree
        number = next(numbers)
        with torch.inference_mode(False), torch.enable_grad():
            outputs = walk.outputs(walk.inputs(model_inputs), number)
            loss = losses.total(outputs, walk.targets(loss_targets), sample_weights, batch.samples, number)
            sums.add(batch.code, loss)

    held, seen = HeldBack(), Seen()
    with walk.frozen():
        for parameter in sums.parameters:
            parameter.requires_grad_(True)
        for people in walk.people("weight gradients", progress=progress):
            seen.add(people)
            for pure in held.add((people.inputs, people.targets, people.given_weights), people.codes):
                computed(pure)
        _check_everybody(seen, walk)
        importance = torch.zeros(len(walk.order), sums.width, dtype=torch.float64)
        held_back = tqdm(walk.order, desc="weight gradients of those held back", disable=not progress, leave=False)
        for row, code in enumerate(held_back):
            for pure in held.rest(code):
                computed(pure)
            importance[row] = sums.importance(code, seen.weight[code])
            if not torch.isfinite(importance[row]).all():
                name = first_not_finite(sums.columns, importance[row])
                raise InputError(NOT_FINITE.format(group=walk.names[row], name=name))
    return walk.without_gates(sums.columns, seen, elementwise=importance)


def parts_by_weight(
    plan: GatePlan, include_consumers: bool
) -> tuple[dict[str, tuple[int, int]], dict[str, list[WeightPart]]]:
    """Unit-set name to ``(first column, size)``, and parameter name to the parts of it that leave with units."""
    columns: dict[str, tuple[int, int]] = {}
    parts: dict[str, list[WeightPart]] = {}
    width = 0
    for group in plan.prunable:
        for units in group.unit_sets:
            columns[units.name] = width, units.size
            width += units.size
            for part in weight_parts(plan.model, group, units, include_consumers=include_consumers):
                parts.setdefault(part.weight, []).append(part)
    return columns, parts


class _GradientSums:
    """Sums of weight gradients, per group, and what they say of units."""

    def __init__(self, plan: GatePlan, include_consumers: bool) -> None:
        self.columns, self._parts = parts_by_weight(plan, include_consumers)
        self.parameters = [plan.model.get_parameter(name) for name in self._parts]
        self._sums: dict[int, list[torch.Tensor]] = {}
        self._own: set[int] = set()
        self._scratch: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    @property
    def width(self) -> int:
        return sum(size for _, size in self.columns.values())

    def add(self, code: int, loss: torch.Tensor) -> None:
        """Add the gradient of a group's loss."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise InputError(NO_GRADIENT)
        new = [
            torch.zeros_like(p) if g is None else g.float() if g.dtype in HALF else g
            for g, p in zip(found, self.parameters, strict=True)
        ]
        if code not in self._sums:
            self._sums[code] = new
        elif code not in self._own:
            # What autograd returned may be one tensor twice: it is read, never written to.
            self._sums[code] = list(torch._foreach_add(self._sums[code], new))
            self._own.add(code)
        else:
            torch._foreach_add_(self._sums[code], new)

    def importance(self, code: int, weight: float) -> torch.Tensor:
        """``sum((w * G)**2)`` of every unit, float64 ``[columns]``; gives the group's memory back."""
        result = torch.zeros(self.width, dtype=torch.float64)
        self._own.discard(code)
        for gradient, parameter, parts in zip(self._sums.pop(code), self.parameters, self._parts.values(), strict=True):
            key = gradient.dtype, gradient.device
            if key not in self._scratch:
                self._scratch[key] = gradient.new_empty(max(p.numel() for p in self.parameters))
            # One buffer for all: asking the system for fresh memory takes longer than the product.
            product = self._scratch[key][: gradient.numel()].view(gradient.shape)
            torch.mul(gradient, parameter.detach(), out=product)
            square = product.square_()
            for part in parts:
                first, size = self.columns[part.units]
                result[first : first + size] += part.unit_sums(square)
        return result / weight**2


def _check_everybody(seen: Seen, walk: Walk) -> None:
    """Every group needs people: a mean over nobody has no gradient."""
    walk.check_somebody(seen.everybody, seen.of_known_groups)
    nobody = [name for name, code in zip(walk.names, walk.order, strict=True) if seen.weight.get(code, 0.0) <= 0]
    if nobody:
        raise InputError(NOBODY.format(groups=", ".join(nobody)))
