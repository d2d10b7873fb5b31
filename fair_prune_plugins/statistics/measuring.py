"""Whatever statistics a criterion needs, from as many passes over the data as that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.collecting import collect
from fair_prune_plugins.statistics.elementwise import collect_elementwise
from fair_prune_plugins.statistics.fisher import collect_fisher
from fair_prune_plugins.statistics.sample_losses import LossFn, Reduction
from fair_prune_plugins.statistics.snnl import collect_snnl
from fair_prune_plugins.statistics.store import GateStatistics
from fair_prune_plugins.statistics.units import Needs, Pass
from fair_prune_plugins.statistics.walking import Groups

NO_LOSS = "these statistics are derivatives of a loss: pass loss_fn="
NO_GROUPS = "these statistics compare sensitive groups: pass groups="
ONCE_ONLY = (
    "this criterion takes {passes} passes over the data, and the loader can be gone through only once; pass one that "
    "starts anew each time (a DataLoader, a list)"
)
OTHER_PEOPLE = (
    "the loader yielded other people on another pass ({first} and then {second}); pass one that yields the same people "
    "each time, in whatever order"
)


def measure(
    plan: GatePlan,
    loader: Iterable[Any],
    loss_fn: LossFn | None,
    needs: Needs,
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
    """Collect what a criterion needs (``Criterion.needs``), in one set of statistics.

    Args:
        plan: the model's gate plan.
        loader: yields batches; gone through once per pass.
        loss_fn: may be left out where ``needs.loss`` is false.
        needs: at least one pass.
        groups: see :func:`~fair_prune_plugins.statistics.collect`, as for all that follow.
        inputs: see there.
        targets: see there.
        weights: see there.
        output: see there.
        reduction: see there.
        progress: see there.
        allow_empty: see there; element-wise statistics never accept it.

    Raises:
        InputError: no loss, no groups, or a loader that cannot be gone through again, where it takes them; people who
            differ from pass to pass; and see the collecting functions.
    """
    if needs.loss and loss_fn is None:
        raise InputError(NO_LOSS)
    if needs.groups and groups is None:
        raise InputError(NO_GROUPS)
    if len(needs.passes) > 1 and iter(loader) is loader:
        raise InputError(ONCE_ONLY.format(passes=len(needs.passes)))
    told: dict[str, Any] = {
        "groups": groups if needs.by_group else None,
        "inputs": inputs,
        "weights": weights,
        "progress": progress,
    }
    found = []
    if loss_fn is not None:
        differentiated = {**told, "targets": targets, "output": output, "reduction": reduction}
        functions: dict[Pass, Callable[..., GateStatistics]] = {
            "gates": partial(collect, allow_empty=allow_empty),
            "elementwise": collect_elementwise,
            "fisher": partial(collect_fisher, allow_empty=allow_empty),
        }
        found = [f(plan, loader, loss_fn, **differentiated) for name, f in functions.items() if name in needs.passes]
    if "snnl" in needs.passes:
        found.append(collect_snnl(plan, loader, temperature=needs.temperature, allow_empty=allow_empty, **told))
    first, *others = found
    for other in others:
        if other.names != first.names or not torch.allclose(other.weight, first.weight, rtol=1e-9):
            raise InputError(OTHER_PEOPLE.format(first=first.counts, second=other.counts))
        first = replace(
            first,
            elementwise=first.elementwise if other.elementwise is None else other.elementwise,
            fisher=first.fisher if other.fisher is None else other.fisher,
            snnl=first.snnl if other.snnl is None else other.snnl,
        )
    return first
