"""Which units stay: those with the largest gates, so many of each coupled group or within a budget of MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from fair_prune_plugins.torch_pruning.selection import Candidate

Parts = Sequence[torch.Tensor]


def keep_highest(values: torch.Tensor, count: int, parts: Parts = ()) -> torch.Tensor:
    """The ``count`` units with the largest values; of equals, the last ones.

    Args:
        values: ``[units]``.
        count: how many stay; at least one, and one of each part, do.
        parts: unit numbers of layers that hold only some of the units; each keeps its largest.

    Returns:
        bool ``[units]``, ``True`` where the unit stays.
    """
    candidate = Candidate("", values.double(), len(values), 1, parts=parts)
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[candidate.order()[: len(values) - max(count, candidate.least)]] = False
    return kept


def keep_within(
    values: Mapping[str, torch.Tensor],
    cost: Callable[[Mapping[str, torch.Tensor]], float],
    budget: float,
    *,
    floors: Mapping[str, int],
    parts: Mapping[str, Parts],
) -> dict[str, torch.Tensor]:
    """The smallest values of the whole model go, until what stays costs no more than ``budget``.

    Args:
        values: unit-set name to ``[units]``.
        cost: of what stays (unit-set name to bool ``[units]``); it falls as more goes.
        budget: the largest cost allowed.
        floors: unit-set name to units that must stay.
        parts: unit-set name to its parts; see :func:`keep_highest`.

    Returns:
        Unit-set name to bool ``[units]``. If nothing more may go, what stays can cost more than the budget.
    """
    numbers, names = [], []
    for position, (name, own) in enumerate(values.items()):
        candidate = Candidate(name, own.double(), len(own), floors.get(name, 1), parts=parts.get(name, ()))
        going = candidate.order()[: max(len(own) - candidate.least, 0)]
        numbers.append(torch.stack([torch.full_like(going, position), going], 1))
        names.append(own.double()[going])
    units, scores = torch.cat(numbers), torch.cat(names)
    units = units[torch.argsort(scores, stable=True)]
    keys = list(values)

    def without(gone: int) -> dict[str, torch.Tensor]:
        masks = {name: torch.ones(len(own), dtype=torch.bool) for name, own in values.items()}
        for position, name in enumerate(keys):
            own = units[:gone]
            masks[name][own[own[:, 0] == position, 1]] = False
        return masks

    few, many = -1, len(units)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if cost(without(middle)) <= budget else (middle, many)
    return without(many)


def straight_through(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """``kept`` as numbers, with the gradient of ``values``.

    Args:
        values: ``[columns]``.
        kept: bool or numbers ``[columns]``.
    """
    return kept.to(values) + (values - values.detach())


def ramp(step: int, steps: int) -> float:
    """The share of what goes in the end that is gone at a step: ``1 - (1 - step / steps)^3``, at most 1; 1 without
    steps (the cubic schedule of Zhu and Gupta, 2017, arXiv:1710.01878).
    """
    return 1.0 if step >= steps else 1 - (1 - step / steps) ** 3
