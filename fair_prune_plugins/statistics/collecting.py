"""One pass over data that measures every gate for every sensitive group.

Eval mode, parameters without gradients, nothing stepped, and the model handed back exactly as it was, also after an
exception or an interrupt. The cost is that of one ordinary backward pass, whatever the number of groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.tapping import GateMeter
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.sample_losses import NOT_DIFFERENTIABLE, LossFn, Reduction, SampleLosses
from fair_prune_plugins.statistics.store import GateStatistics, first_not_finite
from fair_prune_plugins.statistics.walking import IN_PLACE, Groups, People, Walk

NOT_FINITE = (
    "the gates' derivatives are not finite on batch {batch}, first at {name}: the backward pass overflowed there"
)


def collect(
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
    progress: bool = True,
    allow_empty: bool = False,
) -> GateStatistics:
    """Measure the gates of a plan on data.

    Take people the model was not trained on where there are any, without augmentation: on its training data the signed
    derivatives of a trained model are near zero and say little.

    Args:
        plan: the model's gate plan.
        loader: yields batches: tuples, lists or dicts.
        loss_fn: ``loss_fn(outputs, targets)``: one loss per sample, or a single number whose reduction is known (see
            ``reduction``); ``loss_fn(outputs, batch)`` with ``targets=None``.
        groups: the sensitive groups: a key, index or callable on the batch, several of them for intersections, or a
            :class:`~fair_prune_plugins.groups.GroupReader`. ``None`` counts everyone as one group.
        inputs: where a batch has the model's inputs.
        targets: where it has the targets; ``None`` hands the batch to the loss.
        weights: where it has sample weights; they multiply the losses, and every statistic with them.
        output: takes what the loss needs from the model's outputs: a key, an index or a callable.
        reduction: what a loss that is a single number is of its samples' losses; checked on every batch, sample
            by sample on the first.
        progress: show a progress bar.
        allow_empty: accept that nobody is seen, or nobody of a known group: for a rank of a distributed run whose share
            may be empty, before :meth:`GateStatistics.all_reduced`.

    Returns:
        Per group and unit, the count and the sums of s, |s| and s squared.

    Raises:
        InputError: no data, nobody in a known group, a batch that cannot be taken apart, a loss that fails, is not
            finite or not reduced as declared.
        UnsupportedModelError: see :func:`~fair_prune_plugins.gates.build_plan`.
    """
    walk = Walk(plan, loader, BatchReader(inputs, targets, weights), groups, output)
    losses = SampleLosses(loss_fn, reduction)
    meter = GateMeter(plan)
    totals = Totals(meter.width)
    with walk.frozen(), meter.attached():
        for people in walk.people("gate statistics", progress=progress):
            values = measured(walk, meter, losses, people)
            if not torch.isfinite(values).all():
                raise InputError(NOT_FINITE.format(batch=people.batch, name=first_not_finite(meter.columns, values)))
            totals.add(people.codes, people.weights, values.cpu())
    if not allow_empty:
        walk.check_somebody(int(totals.people.sum()), int(totals.people[1:].sum()))
    return finished(plan, meter, totals, walk)


def measured(walk: Walk, meter: GateMeter, losses: SampleLosses, people: People) -> torch.Tensor:
    """The gates' derivatives on one batch, ``[n, columns]``: forward and backward.

    A second time with copies if the network overwrites what a gate must remember.
    """
    inputs, targets = walk.inputs(people.inputs), walk.targets(people.targets)
    while True:
        # Parameters take no gradient, and neither do inputs: the graph begins at the first gate.
        with torch.inference_mode(False), torch.enable_grad():
            meter.start(people.samples, walk.device)
            try:
                outputs = walk.outputs(inputs, people.batch)
                loss = losses.total(outputs, targets, people.given_weights, people.samples, people.batch)
                # Only as far as the gates: inputs and a loss's own parameters keep their .grad.
                (reached,) = torch.autograd.grad(loss, meter.anchor, allow_unused=True)
            except RuntimeError as error:
                if meter.copies or not any(text in str(error) for text in IN_PLACE):
                    raise
                meter.copies = True
                continue
        if reached is None:
            raise InputError(NOT_DIFFERENTIABLE)
        return meter.finish()


class Totals:
    """Running sums; the first row is of people in no known group, then one per group code as codes appear."""

    def __init__(self, width: int) -> None:
        self.people = torch.zeros(1, dtype=torch.int64)
        self.weight = torch.zeros(1, dtype=torch.float64)
        self.sum, self.absolute, self.square = (torch.zeros(1, width, dtype=torch.float64) for _ in range(3))

    def add(self, codes: torch.Tensor, weights: torch.Tensor, values: torch.Tensor) -> None:
        """Add a batch.

        Args:
            codes: int64 ``[n]`` group codes, -1 for none.
            weights: float64 ``[n]`` sample weights.
            values: ``[n, columns]`` derivatives of the weighted losses.
        """
        self._grow(int(codes.max()) + 2)
        rows = codes + 1
        member = torch.zeros(len(self.people), len(codes), dtype=torch.float64)
        member[rows, torch.arange(len(codes))] = 1
        self.people += member.sum(1).long()
        # The loss was weighted already, so s is weight times the sample's own derivative: |s| adds as it is, and the
        # square must be weighted once, not twice.
        self.weight += member @ weights
        self.sum += member @ values
        self.absolute += member @ values.abs()
        inverse = torch.where(weights > 0, 1 / weights, torch.zeros_like(weights))
        self.square += (member * inverse) @ values.square()

    def _grow(self, rows: int) -> None:
        more = rows - len(self.people)
        if more > 0:
            self.people = torch.nn.functional.pad(self.people, (0, more))
            self.weight = torch.nn.functional.pad(self.weight, (0, more))
            self.sum, self.absolute, self.square = (
                torch.nn.functional.pad(t, (0, 0, 0, more)) for t in (self.sum, self.absolute, self.square)
            )


def finished(plan: GatePlan, meter: GateMeter, totals: Totals, walk: Walk) -> GateStatistics:
    """The statistics of a walk that is over."""
    totals._grow(len(walk.order) + 1)
    rows = [i + 1 for i in walk.order] + [0]
    squares = plan.weight_square()
    statistics = GateStatistics(
        walk.attribute,
        walk.names,
        dict(meter.columns),
        totals.people[rows],
        totals.weight[rows],
        totals.sum[rows],
        totals.absolute[rows],
        totals.square[rows],
        torch.cat([squares[name] for name in meter.columns]),
        model_checksum(plan.model),
        walk.notes,
    )
    walk.say_small_groups(statistics)
    return statistics
