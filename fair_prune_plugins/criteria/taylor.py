"""First-order criteria: what a unit's removal would cost, per person, and how groups are put together.

``s`` is the derivative of a person's loss by the unit's gate; removing the unit changes that loss by about ``-s``.
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (arXiv:1906.10771), eq. 8 is ``square``
on one gate per channel.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch

from fair_prune_plugins.criteria.registry import criterion
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.store import EVERYONE
from fair_prune_plugins.statistics.units import Pass, UnitStatistics

Statistic = Literal["absolute", "square", "signed", "elementwise"]
"""``"elementwise"`` is of weights, from ``collect_elementwise``; the others are of gates, from ``collect``."""

SIGNED = (
    "signed Taylor scores are driven to zero by training: on a trained model they say little about the effect of "
    "removal, or the opposite. Use statistic='absolute' or 'square'"
)
EMPTY_GROUP = (
    "{groups}: no person (or only zero sample weights) in the statistics; a criterion over groups needs people from "
    "each"
)
OTHER_PASS = (
    "statistic={statistic!r} is not in these statistics, which are of {have}: collect with "
    "fair_prune_plugins.statistics.{function}, as the importance's own collect() does"
)
HAVE: dict[str, str] = {
    "gates": "gates",
    "elementwise": "weights",
    "fisher": "weights, person by person",
    "snnl": "feature maps",
}
COLLECTED_BY: dict[Pass, str] = {
    "gates": "collect",
    "elementwise": "collect_elementwise",
    "fisher": "collect_fisher",
    "snnl": "collect_snnl",
}
OVER_EVERYONE = (
    "statistic='elementwise' over all people is no mean over groups: collect it without groups (groups=None), as the "
    "importance's own collect() does"
)
NOT_FINITE = "the statistics are not finite; collect them again"
NO_GROUPS = "the statistics name no sensitive group; collect them with groups="


def check_groups(statistics: UnitStatistics) -> None:
    """Refuse statistics that name no sensitive group.

    Raises:
        ScoreError: they name none.
    """
    if statistics.names in ((), (EVERYONE,)):
        raise ScoreError(NO_GROUPS)


def per_group(statistics: UnitStatistics, statistic: Statistic | Literal["fisher"]) -> torch.Tensor:
    """Mean importance per person of every group, float64 ``[G, U]``: every group by its own count.

    ``"fisher"`` is the mean of what :func:`~fair_prune_plugins.statistics.collect_fisher` measures.

    Raises:
        ScoreError: there is no group, a group without people, or statistics that are not there or not finite.
        InputError: ``statistic`` is none of these.
    """
    check_groups(statistics)
    empty = [n for n, w in zip(statistics.names, statistics.weight.tolist(), strict=True) if w <= 0]
    if empty:
        raise ScoreError(EMPTY_GROUP.format(groups=", ".join(empty)))
    _check(statistics, statistic)
    if statistic == "elementwise":
        assert statistics.elementwise is not None
        means = statistics.elementwise
    elif statistic == "fisher":
        assert statistics.fisher is not None
        means = statistics.fisher / statistics.weight[:, None]
    else:
        means = _picked(statistics.sum, statistics.absolute, statistics.square, statistic) / statistics.weight[:, None]
    if not torch.isfinite(means).all():
        # Said here, because a rank is finite whatever it is a rank of.
        raise ScoreError(NOT_FINITE)
    return means


def _check(statistics: UnitStatistics, statistic: str) -> None:
    if statistic == "fisher":
        require(statistics, "fisher")
        return
    if statistic not in get_args(Statistic):
        raise InputError(f"statistic must be 'absolute', 'square', 'signed' or 'elementwise', got {statistic!r}")
    require(statistics, "elementwise" if statistic == "elementwise" else "gates", statistic)


def require(statistics: UnitStatistics, needed: Pass, statistic: str = "") -> None:
    """Refuse statistics that were collected for something else.

    Args:
        statistics: of one unit set.
        needed: the pass over the data that must have been made.
        statistic: what was asked for, as the user says it, if not the pass's name.

    Raises:
        ScoreError: saying what to collect with.
    """
    there = {
        "gates": statistics.gates,
        "elementwise": statistics.elementwise is not None,
        "fisher": statistics.fisher is not None,
        "snnl": statistics.snnl is not None,
    }
    if not there[needed]:
        have = ", ".join(HAVE[name] for name, is_there in there.items() if is_there)
        raise ScoreError(OTHER_PASS.format(statistic=statistic or needed, have=have, function=COLLECTED_BY[needed]))


def _picked(signed: torch.Tensor, absolute: torch.Tensor, square: torch.Tensor, statistic: str) -> torch.Tensor:
    if statistic == "absolute":
        return absolute
    if statistic == "square":
        return square
    warnings.warn(SIGNED, stacklevel=4)
    return signed.abs()


@criterion(
    "taylor",
    summary="Mean absolute first-order effect of closing a unit, over all people: large groups count most.",
    source="Molchanov et al., CVPR 2019, arXiv:1906.10771 (on gates)",
)
def taylor(statistics: UnitStatistics, *, statistic: Statistic = "absolute") -> torch.Tensor:
    """Plain Taylor importance: the mean over all people, those of unknown group included.

    Raises:
        ScoreError: statistics of the other pass, or element-wise ones of more than one group.
    """
    _check(statistics, statistic)
    if statistic == "elementwise":
        assert statistics.elementwise is not None
        if statistics.names != (EVERYONE,):
            raise ScoreError(OVER_EVERYONE)
        return statistics.elementwise[0]
    total = _picked(
        statistics.sum.sum(0) + statistics.unknown_sum,
        statistics.absolute.sum(0) + statistics.unknown_absolute,
        statistics.square.sum(0) + statistics.unknown_square,
        statistic,
    )
    return total / (statistics.weight.sum() + statistics.unknown_weight)


@criterion(
    "group_balanced_taylor",
    summary="The mean over groups of each group's own mean Taylor importance: all groups count the same.",
    source="Taylor importance (arXiv:1906.10771) averaged over groups",
    needs_groups=True,
)
def group_balanced_taylor(statistics: UnitStatistics, *, statistic: Statistic = "absolute") -> torch.Tensor:
    """Taylor importance in which every known group has the same weight; people of unknown group take no part."""
    return per_group(statistics, statistic).mean(0)


@criterion(
    "worst_group_taylor",
    summary="The largest of the groups' own mean Taylor importances: a unit that any group depends on is kept.",
    source="Taylor importance (arXiv:1906.10771), maximum over groups",
    needs_groups=True,
)
def worst_group_taylor(statistics: UnitStatistics, *, statistic: Statistic = "absolute") -> torch.Tensor:
    """What the unit is worth to the group that needs it most; people of unknown group take no part."""
    return per_group(statistics, statistic).amax(0)
