"""FairGRAPE: keep every group's share of the importance (Lin, Kim & Joo, ECCV 2022, arXiv:2207.10888), on units.

The paper prunes single weights layer by layer; here a unit of a coupled group takes a weight's place. The greedy
selection does not depend on how many units are kept, so it is run to the end once and its order becomes the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from fair_prune_plugins.criteria.registry import criterion
from fair_prune_plugins.criteria.taylor import Statistic, per_group
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.units import UnitStatistics

NO_DENSE_SHARE = (
    "target='dense' needs the groups' shares in the dense model, which come from the first collection on it; collect "
    "with the same importance before the first pruning step"
)
OTHER_GROUPS = (
    "target='dense' keeps the dense model's shares, which are of the groups {dense}; these statistics are of {now}. "
    "Collect with the same groups"
)
TOO_FEW_STEPS = (
    "keeping {kappa} per step reaches a pruning ratio of {reached:.4g} in {steps} steps, not {ratio:.4g}; take at "
    "least {needed} steps"
)


def shares(importance: torch.Tensor) -> torch.Tensor:
    """Each group's share of the total importance of a coupled group.

    Args:
        importance: ``[G, U]``.

    Returns:
        ``[G]``, summing to 1; equal shares where the total is zero.
    """
    total = importance.sum(1)
    whole = total.sum()
    return total / whole if whole > 0 else torch.full_like(total, 1 / len(total))


def greedy_order(importance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The order in which the paper's greedy selection keeps units (section 3.3).

    Each time the group whose share among the kept units is furthest below its target picks its most important unit that
    is still free.

    Args:
        importance: ``[G, U]``, not negative.
        target: ``[G]`` target shares.

    Returns:
        int64 ``[U]``: unit numbers, first kept first. Ties go to the group, and to the unit, with the lower number.
    """
    table = importance.double().numpy()
    wanted = target.double().numpy()
    groups, units = table.shape
    orders = np.argsort(-table, axis=1, kind="stable")
    cursors = [0] * groups
    free = np.ones(units, dtype=bool)
    kept = np.zeros(groups)
    share = np.full(groups, 1 / groups)
    order = np.empty(units, dtype=np.int64)
    for position in range(units):
        group = int(np.argmin(share - wanted))
        ranking = orders[group]
        while not free[ranking[cursors[group]]]:
            cursors[group] += 1
        unit = ranking[cursors[group]]
        free[unit] = False
        order[position] = unit
        kept += table[:, unit]
        total = kept.sum()
        if total > 0:
            share = kept / total
    return torch.from_numpy(order)


@criterion(
    "fairgrape",
    summary="Greedy selection that keeps each group's share of the importance in every layer as it was before pruning.",
    source="Lin, Kim & Joo, FairGRAPE, ECCV 2022, arXiv:2207.10888, section 3 (on units)",
    needs_groups=True,
    comparable=False,
)
def fairgrape(
    statistics: UnitStatistics, *, statistic: Statistic = "square", target: Literal["current", "dense"] = "current"
) -> torch.Tensor:
    """The greedy order as a score: 1 for the unit kept first, 1/U for the one kept last.

    Args:
        statistics: of one coupled group.
        statistic: the importance the shares are of: the square of gates' derivatives, or the paper's own, element by
            element of the weights.
        target: the shares to keep: those of the model as it is (the paper), or of the dense model (shares cannot
            drift over iterations).

    Raises:
        ScoreError: an empty group, or ``target="dense"`` without the dense model's statistics or with other groups.
    """
    importance = per_group(statistics, statistic)
    if target == "current":
        wanted = shares(importance)
    elif target == "dense":
        if statistics.dense is None:
            raise ScoreError(NO_DENSE_SHARE)
        dense = statistics.dense
        if set(dense.names) != set(statistics.names):
            raise ScoreError(OTHER_GROUPS.format(dense=list(dense.names), now=list(statistics.names)))
        wanted = shares(per_group(dense, statistic)[[dense.names.index(n) for n in statistics.names]])
    else:
        raise InputError(f"target must be 'current' or 'dense', got {target!r}")
    order = greedy_order(importance, wanted)
    units = len(order)
    scores = torch.empty(units, dtype=torch.float64)
    scores[order] = torch.arange(units, 0, -1, dtype=torch.float64) / units
    return scores


def keep_fraction_steps(ratio: float, kappa: float = 0.9) -> int:
    """How many iterations reach a pruning ratio when each keeps the fraction ``kappa``: ``ceil(ln(1 - ratio) / ln
    kappa)``.

    Raises:
        InputError: a ratio outside [0, 1) or ``kappa`` outside (0, 1).
    """
    if not 0 <= ratio < 1 or not 0 < kappa < 1:
        raise InputError(f"the pruning ratio must lie in [0, 1) and kappa in (0, 1), got {ratio} and {kappa}")
    return max(math.ceil(math.log(1 - ratio) / math.log(kappa) - 1e-9), 1)


def keep_fraction_schedule(kappa: float = 0.9) -> Callable[[float, int], list[float]]:
    """The paper's schedule, as Torch-Pruning's ``iterative_pruning_ratio_scheduler``: after step i, ``kappa**i`` is
    kept.

    Returns:
        ``scheduler(ratio, steps) -> [0, 1 - kappa, 1 - kappa**2, ..., ratio]``. It raises InputError for too few steps
        (:func:`keep_fraction_steps` says how many it takes).
    """

    def scheduler(ratio: float, steps: int) -> list[float]:
        needed = keep_fraction_steps(ratio, kappa)
        if steps < needed:
            reached = 1 - kappa**steps
            raise InputError(
                TOO_FEW_STEPS.format(kappa=kappa, reached=reached, steps=steps, ratio=ratio, needed=needed)
            )
        return [min(ratio, 1 - kappa**i) for i in range(steps + 1)]

    return scheduler
