"""One pass over data that measures every gate for every sensitive group.

Eval mode, parameters without gradients, nothing stepped, and the model handed back exactly as it was, also after an
exception or an interrupt. The cost is that of one ordinary backward pass, whatever the number of groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.gates.calling import batch_size, call, moved, output_tensors, preserved
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.tapping import GateMeter
from fair_prune_plugins.groups import EMPTY_GROUPS, SMALL_GROUP, GroupReader, GroupSource, as_reader
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.sample_losses import NOT_DIFFERENTIABLE, LossFn, Reduction, SampleLosses
from fair_prune_plugins.statistics.store import EVERYONE, GateStatistics, first_not_finite

logger = logging.getLogger(__name__)

Groups = GroupReader | GroupSource | Sequence[GroupSource] | Mapping[str, GroupSource]

NO_DATA = "the loader yielded no sample; statistics need data"
NO_GATES = "no coupled group of the model can be pruned:\n{plan}"
FORWARD_FAILED = (
    "the model fails on batch {batch} ({error}); its inputs are {shapes}. Images are expected channels first, as the "
    "model takes them; pass inputs= where the batch has them"
)
NO_SUCH_OUTPUT = "output={key!r} is not in what the model returns, {have}"
NOT_FINITE = (
    "the gates' derivatives are not finite on batch {batch}, first at {name}: the backward pass overflowed there"
)
IN_PLACE = "modified by an inplace operation", "modified inplace"


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
    if not plan.units:
        raise InputError(NO_GATES.format(plan=plan.describe()))
    reader = BatchReader(inputs, targets, weights)
    # A copy of a given reader: names that it learned from other data are not groups of this data.
    group_reader = None if groups is None else replace(as_reader(groups))
    losses = SampleLosses(loss_fn, reduction)
    meter = GateMeter(plan)
    model = plan.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    totals = _Totals(meter.width)
    total = len(loader) if isinstance(loader, Sized) else None
    with preserved(model), meter.attached(), repeatable(device):
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for number, batch in enumerate(
            tqdm(loader, total=total, desc="gate statistics", disable=not progress, leave=False)
        ):
            model_inputs = moved(reader.read_inputs(batch), device=device, dtype=dtype)
            samples = batch_size(model_inputs)
            if not samples:
                continue
            codes = (
                torch.zeros(samples, dtype=torch.int64) if group_reader is None else group_reader.read(batch, samples)
            )
            sample_weights = reader.read_weights(batch, samples)
            loss_targets = moved(reader.read_targets(batch), device=device)
            weights_or_none = None if weights is None else sample_weights

            def total_loss(
                outputs: Any, t: Any = loss_targets, w: Any = weights_or_none, n: int = samples, b: int = number
            ) -> torch.Tensor:
                return losses.total(outputs if output is None else pick(outputs, output, NO_SUCH_OUTPUT), t, w, n, b)

            values = _measure(plan, meter, model_inputs, device, samples, number, total_loss)
            if not torch.isfinite(values).all():
                raise InputError(NOT_FINITE.format(batch=number, name=first_not_finite(meter.columns, values)))
            totals.add(codes, sample_weights, values.cpu())
    if not int(totals.people.sum()) and not allow_empty:
        raise InputError(NO_DATA)
    if group_reader is not None and not int(totals.people[1:].sum()) and not allow_empty:
        raise InputError(EMPTY_GROUPS.format(n=int(totals.people[0]), attribute=group_reader.attribute))
    return _finished(plan, meter, totals, group_reader)


def _measure(
    plan: GatePlan,
    meter: GateMeter,
    inputs: Any,
    device: torch.device,
    samples: int,
    batch: int,
    total_loss: Callable[[Any], torch.Tensor],
) -> torch.Tensor:
    """One batch forward and backward. A second time with copies if the network overwrites what a gate must remember."""
    while True:
        # Parameters take no gradient, and neither do inputs: the graph begins at the first gate.
        with torch.inference_mode(False), torch.enable_grad():
            meter.start(samples, device)
            try:
                loss = total_loss(outputs_of(plan, inputs, batch))
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


def outputs_of(plan: GatePlan, inputs: Any, batch: int) -> Any:
    """What the model returns.

    Raises:
        InputError: it fails.
    """
    try:
        return call(plan.model, inputs, plan.forward_fn)
    except FairPruneError:
        raise
    except Exception as error:
        if any(text in str(error) for text in IN_PLACE):
            raise
        shapes = [f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in output_tensors(inputs)]
        reason = f"{type(error).__name__}: {error}"
        raise InputError(FORWARD_FAILED.format(batch=batch, error=reason, shapes=", ".join(shapes))) from error


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """The same numbers on every run on a GPU; torch warns where an operation of the model has no repeatable form."""
    if device.type != "cuda":
        yield
        return
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    backend.deterministic, backend.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=warn_only or not enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        backend.deterministic, backend.benchmark = before


class _Totals:
    """Running sums; the first row is of people in no known group, then one per group code as codes appear."""

    def __init__(self, width: int) -> None:
        self.people = torch.zeros(1, dtype=torch.int64)
        self.weight = torch.zeros(1, dtype=torch.float64)
        self.sum, self.absolute, self.square = (torch.zeros(1, width, dtype=torch.float64) for _ in range(3))

    def add(self, codes: torch.Tensor, weights: torch.Tensor, values: torch.Tensor) -> None:
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


def _finished(plan: GatePlan, meter: GateMeter, totals: _Totals, reader: GroupReader | None) -> GateStatistics:
    names = (EVERYONE,) if reader is None else tuple(reader.known_names[i] for i in reader.order)
    order = [0] if reader is None else reader.order
    totals._grow(len(order) + 1)
    rows = [i + 1 for i in order] + [0]
    squares = plan.weight_square()
    weight_square = torch.cat([squares[name] for name in meter.columns])
    statistics = GateStatistics(
        "no attribute" if reader is None else reader.attribute,
        names,
        dict(meter.columns),
        totals.people[rows],
        totals.weight[rows],
        totals.sum[rows],
        totals.absolute[rows],
        totals.square[rows],
        weight_square,
        model_checksum(plan.model),
        frozen_note(plan),
    )
    say_small_groups(statistics, reader)
    return statistics


def frozen_note(plan: GatePlan) -> list[str]:
    """A note on frozen layers for the statistics to carry, if there are any."""
    return [f"frozen layers are among what can be pruned: {', '.join(plan.frozen)}"] if plan.frozen else []


def say_small_groups(statistics: GateStatistics, reader: GroupReader | None) -> None:
    """Log how large the groups are, where some are too small to judge or people are in none."""
    if reader is not None and (statistics.unknown or min(statistics.counts.values(), default=0) < SMALL_GROUP):
        logger.warning("%s", statistics.statement())
