"""FairPrune: prune what the unprivileged group does not need and the others do (Wu et al., MICCAI 2022,
arXiv:2203.02110), on units.

The paper's saliency of a weight for a group is ``1/2 H w**2``, the second-order change of the group's loss when the
weight goes, with ``H`` the diagonal of the Hessian. Here the empirical Fisher information stands for ``H``, the mean of
the squares of every person's own derivative: of the unit's gate (whose value is 1, so ``1/2 H`` is the saliency), or of
each of its weights. The square of a batch's derivative, which summed over people before, is no substitute for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from fair_prune_plugins.criteria.registry import criterion
from fair_prune_plugins.criteria.taylor import per_group
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.units import Needs, UnitStatistics

AUTO = "auto"

BETA = 0.33
"""The default of a third-party implementation (AliGhadirii/FairPrune); the paper's own was not verified."""

BAD_BETA = "beta must be a finite number, at least 0, got {got!r}"
BAD_WEIGHTING = (
    "weighting must be two finite numbers, of the unprivileged and of the other people, the first above 0, got {got!r}"
)
BETA_AND_WEIGHTING = (
    "weighting=({a}, {b}) says what beta says, as beta={beta:.3g} up to the scores' scale; pass one of them"
)
NO_SUCH_GROUP = "unprivileged={asked} is not among the groups of the statistics, {have}"
NOBODY_ELSE = "unprivileged={asked} are all groups of the statistics, and nobody is left to compare them with"


def _needs(options: Mapping[str, Any]) -> Needs:
    beta, weighting = options["beta"], options["weighting"]
    if not _is_number(beta) or beta < 0:
        raise InputError(BAD_BETA.format(got=beta))
    if weighting is not None:
        if not isinstance(weighting, Sequence) or len(weighting) != 2 or not all(map(_is_number, weighting)):
            raise InputError(BAD_WEIGHTING.format(got=weighting))
        a, b = weighting
        if a <= 0:
            raise InputError(BAD_WEIGHTING.format(got=weighting))
        if beta != BETA:
            raise InputError(BETA_AND_WEIGHTING.format(a=a, b=b, beta=-b / a))
    return Needs(frozenset({"fisher" if options["statistic"] == "elementwise" else "gates"}), groups=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@criterion(
    "fairprune",
    summary="Keeps what the unprivileged group needs and lets go what only others need, by Fisher information.",
    source="Wu et al., FairPrune, MICCAI 2022, arXiv:2203.02110 (on units)",
    needs_groups=True,
    needing=_needs,
)
def fairprune(
    statistics: UnitStatistics,
    *,
    statistic: Literal["square", "elementwise"] = "square",
    unprivileged: str | Sequence[str] = AUTO,
    beta: float = BETA,
    weighting: Sequence[float] | None = None,
    over: Literal["groups", "people"] = "groups",
) -> torch.Tensor:
    """``1/2 (h_unprivileged - beta * h_rest)``, smallest pruned first; scores may be negative.

    Args:
        statistics: of one coupled group.
        statistic: ``"square"``, one derivative per person and unit, by the unit's gate; or ``"elementwise"``, one per
            person and weight, as the paper has it: ``sum over the unit's weights of w**2 h``.
        unprivileged: name of the group to protect, or names of several. ``"auto"`` takes the group with the largest
            mean squared derivative over the whole model, the same for all layers: by Tran et al. (NeurIPS 2022,
            arXiv:2205.13574) pruning costs groups with large gradients most. This is our choice; the paper knows which
            group it is. A group of the very name ``auto`` is meant by ``["auto"]``.
        beta: how much the others' need counts for removal.
        weighting: ``(a, b)`` instead of ``(1, -beta)``: ``1/2 (a h_unprivileged + b h_rest)``. ``(9, -5)`` are
            StructuredFairPrune's (guoyb17, 2025), ``beta = 5/9`` at another scale.
        over: where a side has several groups, the mean over ``"groups"``, all counting the same, or over all their
            ``"people"``, which is the Hessian of the side's own mean loss.

    Raises:
        ScoreError: see :func:`~fair_prune_plugins.criteria.taylor.per_group`; names that are none of the groups, or all
            of them.
        InputError: options that do not go together.
    """
    table = per_group(statistics, "fisher" if statistic == "elementwise" else "square")
    protected = _protected(statistics, statistic, unprivileged)
    mine = torch.tensor([name in protected for name in statistics.names])
    share = torch.ones(len(mine), dtype=torch.float64) if over == "groups" else statistics.weight
    a, b = (1.0, -beta) if weighting is None else weighting
    needed, rest = (share[side] @ table[side] / share[side].sum() for side in (mine, ~mine))
    return 0.5 * (a * needed + b * rest)


def most_sensitive_group(statistics: UnitStatistics, statistic: Literal["square", "elementwise"] = "square") -> str:
    """The group with the largest mean squared derivative over the whole model, which ``unprivileged="auto"`` takes.

    Of equals the first. In statistics of a unit set by itself, which do not know the whole model, over that.
    """
    own = per_group(statistics, "fisher" if statistic == "elementwise" else "square")
    overall = statistics.overall_fisher if statistic == "elementwise" else statistics.overall_square
    mean = own.sum(1) if overall is None else overall / statistics.weight
    return statistics.names[int(mean.argmax())]


def _protected(
    statistics: UnitStatistics, statistic: Literal["square", "elementwise"], unprivileged: str | Sequence[str]
) -> set[str]:
    """Names of the unprivileged groups."""
    if unprivileged == AUTO:
        names = {most_sensitive_group(statistics, statistic)}
    else:
        names = {str(n) for n in ([unprivileged] if isinstance(unprivileged, str) else unprivileged)}
    if not names or names - set(statistics.names):
        raise ScoreError(NO_SUCH_GROUP.format(asked=unprivileged, have=list(statistics.names)))
    if names == set(statistics.names):
        raise ScoreError(NOBODY_ELSE.format(asked=sorted(names)))
    return names
