"""Per-person squares of weight gradients: the diagonal of the empirical Fisher information, unit by unit.

``F[g, c] = mean over the people n of group g of sum over the weights e of unit c of (w_e * dL_n/dw_e)**2``, with
``L_n`` the loss of one person. A batch's gradient is a sum over its people, and the square of the sum is something else
(``collect_elementwise``), so every person needs a gradient of their own: what the loss says of the outputs is
differentiated once per batch, and from there on the model person by person, many of them at a time by ``torch.func``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.groups import UNKNOWN
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchReader, BatchSource, Leaves
from fair_prune_plugins.statistics.elementwise import HALF, NO_GRADIENT, parts_by_weight
from fair_prune_plugins.statistics.sample_losses import LossFn, Reduction, SampleLosses
from fair_prune_plugins.statistics.store import GateStatistics, first_not_finite
from fair_prune_plugins.statistics.walking import Groups, People, Seen, Walk

logger = logging.getLogger(__name__)

AT_A_TIME = 2**25
"""Numbers in the gradients of people that are computed at a time: 128 MiB in single precision."""

TOO_FEW = 8
"""On a CPU so few people at a time take longer than one by one (large weights: a ResNet-18 takes 1.5 times as long)."""

NOT_FINITE = (
    "the weights' gradients are not finite on batch {batch}, first at {name}: the backward pass overflowed there"
)
NOT_BY_PERSON = (
    "the loss depends on an output of shape {shape}, whose first dimension is not that of the {people} people: nobody "
    "has a gradient of their own through it. Use statistic='square'"
)
ONE_BY_ONE = "gradients are computed person by person, which takes longer: torch.func cannot run this model (%s)"


def collect_fisher(
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
    allow_empty: bool = False,
) -> GateStatistics:
    """Measure every unit by the squares of every person's weight gradients, per sensitive group.

    The model is in eval mode, ``.grad`` is left alone, nothing is stepped, and the model is handed back as it was.
    Memory: the gradients of as many people as fit into 128 MiB, at least one, and a copy of the weights per group. A
    model that ``torch.func`` cannot run (one that looks at values) is differentiated person by person.

    Args:
        plan: the model's gate plan.
        loader: yields batches, in which groups may be mixed.
        loss_fn: see :func:`~fair_prune_plugins.statistics.collect`, as for all that follow; it is called with whole
            batches. A penalty on weights in it is not seen: only what it says of the outputs counts.
        groups: see there.
        inputs: see there.
        targets: see there.
        weights: see there; the mean is the weighted mean.
        output: see there.
        reduction: see there.
        include_consumers: count a unit's columns in the layers that read it, which leave with it, not only its rows in
            the layers that make it.
        progress: show a progress bar.
        allow_empty: see there.

    Returns:
        Statistics with the sums over people in ``fisher``; they add up, as those of gates do, which are NaN here.

    Raises:
        InputError: as for :func:`~fair_prune_plugins.statistics.collect`.
        UnsupportedModelError: a unit set that no weight leaves with.
    """
    walk = Walk(plan, loader, BatchReader(inputs, targets, weights), groups, output)
    losses = SampleLosses(loss_fn, reduction)
    totals, seen = _Totals(plan, include_consumers), Seen()
    gradients = _PersonalGradients(plan, walk, totals.names)
    with walk.frozen():
        for parameter in gradients.parameters.values():
            parameter.requires_grad_(True)
        for people in walk.people("gradients of every person", progress=progress):
            with torch.inference_mode(False):
                for rows, found in gradients.of(people, losses):
                    totals.add(people.codes[rows], people.weights[rows], found)
            totals.close(people.batch)
            seen.add(people)
    if not allow_empty:
        walk.check_somebody(seen.everybody, seen.of_known_groups)
    nothing = torch.zeros(totals.width, dtype=torch.float64)
    sums = [totals.sums.get(code, nothing) for code in (*walk.order, UNKNOWN)]
    return walk.without_gates(totals.columns, seen, fisher=torch.stack(sums))


class _PersonalGradients:
    """The gradient of every person's loss by some of a model's weights."""

    def __init__(self, plan: GatePlan, walk: Walk, names: Sequence[str]) -> None:
        self.parameters = {name: plan.model.get_parameter(name) for name in names}
        self._model, self._walk = plan.model, walk
        self._one_by_one = False

    def of(self, people: People, losses: SampleLosses) -> Iterable[tuple[slice, dict[str, torch.Tensor]]]:
        """Some people of a batch at a time, and their gradients: parameter name to ``[people, *shape]``."""
        inputs = Leaves.of(self._walk.inputs(people.inputs), people.samples)
        by_output = self._by_output(inputs, people, losses)
        size = sum(p.numel() for p in self.parameters.values())
        step = max(AT_A_TIME // max(size, 1), 1)
        if step < TOO_FEW and self._walk.device.type == "cpu":
            self._one_by_one = True
        for start in range(0, people.samples, step):
            rows = slice(start, min(start + step, people.samples))
            part = inputs.rows(rows), {k: v[rows] for k, v in by_output.items()}
            found = None if self._one_by_one else self._together(*part, people.batch)
            if found is not None:
                yield rows, found
                continue
            for n in range(rows.start, rows.stop):
                one = slice(n, n + 1)
                own = {k: v[one] for k, v in by_output.items()}
                yield one, self._alone(inputs.rows(one), own, people.batch)

    def _by_output(self, inputs: Leaves, people: People, losses: SampleLosses) -> dict[int, torch.Tensor]:
        """The derivative of the batch's loss by the model's outputs: number of the output to ``[people, ...]``."""
        with torch.no_grad():
            outputs = self._walk.outputs(inputs.tree(), people.batch)
        leaves, spec = pytree.tree_flatten(outputs)
        own = {
            i: leaf.detach().requires_grad_()
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        }
        with torch.enable_grad():
            tree = pytree.tree_unflatten([own.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
            targets = self._walk.targets(people.targets)
            loss = losses.total(tree, targets, people.given_weights, people.samples, people.batch)
            found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        reached = {i: gradient for i, gradient in zip(own, found, strict=True) if gradient is not None}
        if not reached:
            raise InputError(NO_GRADIENT)
        for gradient in reached.values():
            if gradient.shape[:1] != (people.samples,):
                raise InputError(NOT_BY_PERSON.format(shape=tuple(gradient.shape), people=people.samples))
        return reached

    def _together(
        self, inputs: Leaves, by_output: dict[int, torch.Tensor], batch: int
    ) -> dict[str, torch.Tensor] | None:
        """All of them at once; ``None`` where that cannot be."""
        tensors = [v for v, own in zip(inputs.values, inputs.per_sample, strict=True) if own]
        if not all(isinstance(v, torch.Tensor) for v in tensors):
            self._one_by_one = True
            return None
        called = _Called(self._model, self._walk, inputs, list(by_output), batch)
        detached = {f"model.{name}": p.detach() for name, p in self.parameters.items()}

        def gradient(own: list[torch.Tensor], cotangents: list[torch.Tensor]) -> Any:
            one = [t.unsqueeze(0) for t in own]
            back = torch.func.vjp(lambda p: torch.func.functional_call(called, p, (one,)), detached)[1]
            return back([c.unsqueeze(0) for c in cotangents])[0]

        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings("ignore", "There is a performance drop")
                found = torch.func.vmap(gradient)(tensors, list(by_output.values()))
        except Exception as error:  # a model that looks at values, an operation without a rule, too little memory
            logger.info(ONE_BY_ONE, f"{type(error).__name__}: {error}")
            self._one_by_one = True
            return None
        return {name.removeprefix("model."): g for name, g in found.items()}

    def _alone(self, inputs: Leaves, by_output: dict[int, torch.Tensor], batch: int) -> dict[str, torch.Tensor]:
        with torch.enable_grad():
            leaves = pytree.tree_leaves(self._walk.outputs(inputs.tree(), batch))
            pairs = [(leaves[i], c) for i, c in by_output.items() if leaves[i].requires_grad]
            if not pairs:
                raise InputError(NO_GRADIENT)
            outputs, cotangents = [o for o, _ in pairs], [c for _, c in pairs]
            found = torch.autograd.grad(outputs, list(self.parameters.values()), cotangents, allow_unused=True)
        return {n: g.unsqueeze(0) for n, g in zip(self.parameters, found, strict=True) if g is not None}


class _Called(nn.Module):
    """The model as a function of the tensors that its inputs have per person."""

    def __init__(self, model: nn.Module, walk: Walk, inputs: Leaves, outputs: Sequence[int], batch: int) -> None:
        super().__init__()
        self.model = model
        self._walk, self._inputs, self._outputs, self._batch = walk, inputs, outputs, batch

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        own = iter(tensors)
        values = [
            next(own) if mine else v for v, mine in zip(self._inputs.values, self._inputs.per_sample, strict=True)
        ]
        leaves = pytree.tree_leaves(
            self._walk.outputs(Leaves(values, self._inputs.per_sample, self._inputs.spec).tree(), self._batch)
        )
        return [leaves[i] for i in self._outputs]


class _Totals:
    """Sums over people, by group code."""

    def __init__(self, plan: GatePlan, include_consumers: bool) -> None:
        self.columns, self._parts = parts_by_weight(plan, include_consumers)
        self.width = sum(size for _, size in self.columns.values())
        self._weights = {name: plan.model.get_parameter(name) for name in self._parts}
        self._squares: dict[int, dict[str, torch.Tensor]] = {}
        self.sums: dict[int, torch.Tensor] = {}

    @property
    def names(self) -> list[str]:
        return list(self._parts)

    def add(self, codes: torch.Tensor, weights: torch.Tensor, gradients: dict[str, torch.Tensor]) -> None:
        """Add some people's gradients ``[people, *shape]``.

        The loss was weighted already, so the square is to be weighted once less.
        """
        for n, (code, weight) in enumerate(zip(codes.tolist(), weights.tolist(), strict=True)):
            if not weight:
                continue
            squares = self._squares.setdefault(code, {})
            for name, gradient in gradients.items():
                own = gradient[n].float() if gradient.dtype in HALF else gradient[n]
                if name not in squares:
                    squares[name] = torch.zeros_like(own)
                squares[name].addcmul_(own, own, value=1 / weight)

    def close(self, batch: int) -> None:
        """Take what was added of a batch into the double precision sums over units."""
        for code, squares in self._squares.items():
            total = self.sums.setdefault(code, torch.zeros(self.width, dtype=torch.float64))
            for name, square in squares.items():
                square.mul_(self._weights[name].detach()).mul_(self._weights[name].detach())
                for part in self._parts[name]:
                    first, size = self.columns[part.units]
                    total[first : first + size] += part.unit_sums(square)
                square.zero_()
            if not torch.isfinite(total).all():
                raise InputError(NOT_FINITE.format(batch=batch, name=first_not_finite(self.columns, total)))
