"""Several criteria in one: the weighted mean of their ranks.

Importance scores have heavy tails (the largest Taylor score of a layer is hundreds of times the median), so a mean of
scores divided by their largest is the score of whichever criterion has the shorter tail. Ranks have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fair_prune_plugins.criteria.registry import Criterion, criterion, get
from fair_prune_plugins.criteria.taylor import NOT_FINITE
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.units import Needs, UnitStatistics

DEFAULT: Mapping[str, float] = {"group_balanced_taylor": 0.5, "fairprune": 0.5}

BAD_WEIGHTS = (
    "weights of rank_mix must be a mapping from names of criteria to finite numbers above 0, e.g. "
    "{{'taylor': 0.5, 'fairprune': 0.5}}, got {got!r}"
)
BAD_OPTIONS = "options of rank_mix must be a mapping from its members to their options, got {got!r}"
NOT_A_MEMBER = "rank_mix has options for {names}, which are not among its members {members}"
NO_COMMON_GROUPS = (
    "{names} with statistic='elementwise' is measured over all people at once, and other members of rank_mix by group; "
    "take statistic='absolute' or 'square' for it"
)


def _members(
    weights: Mapping[str, float] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> list[tuple[Criterion, float, dict[str, Any]]]:
    """Criteria, their weights, and their options, all checked."""
    given = DEFAULT if weights is None else weights
    if not isinstance(given, Mapping) or not given:
        raise InputError(BAD_WEIGHTS.format(got=given))
    for weight in given.values():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
            raise InputError(BAD_WEIGHTS.format(got=dict(given)))
    own = {} if options is None else options
    if not isinstance(own, Mapping) or not all(isinstance(v, Mapping) for v in own.values()):
        raise InputError(BAD_OPTIONS.format(got=own))
    if set(own) - set(given):
        raise InputError(NOT_A_MEMBER.format(names=sorted(set(own) - set(given)), members=sorted(given)))
    members = [(get(name), float(weight), dict(own.get(name, {}))) for name, weight in given.items()]
    for member, _, told in members:
        member.check_options(told)
    return members


def _needs(options: Mapping[str, Any]) -> Needs:
    members = _members(options["weights"], options["options"])
    needs = [member.needs(told) for member, _, told in members]
    together = Needs.together(needs)
    over_everyone = [m.name for (m, _, _), n in zip(members, needs, strict=True) if not n.by_group]
    if together.groups and over_everyone:
        raise InputError(NO_COMMON_GROUPS.format(names=", ".join(over_everyone)))
    return together


@criterion(
    "rank_mix",
    summary="Weighted mean of the ranks that several criteria give a unit within its coupled group.",
    source="Ours; why ranks: importance scores are heavy-tailed, so that normalised by their largest they do not mix",
    needs_groups=True,
    comparable=False,
    needing=_needs,
)
def rank_mix(
    statistics: UnitStatistics,
    *,
    weights: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> torch.Tensor:
    """``sum_k weight_k * rank_k / U / sum_k weight_k``, with rank 1 for the unit that criterion k prunes first.

    Ties share the mean of their ranks. What the members need is collected together, in one pass over the data where one
    does for all; sensitive groups are asked for only if a member compares them.

    Args:
        statistics: of one coupled group.
        weights: registered criteria and what they count, e.g. ``{"taylor": 0.5, "fairprune": 0.5}``; half
            ``group_balanced_taylor`` and half ``fairprune`` if absent.
        options: options of members, e.g. ``{"fairprune": {"beta": 0.2}}``.

    Raises:
        InputError: weights or options that make no sense.
        ScoreError: a member's; or scores of a member that are not finite, which a rank would hide.
    """
    members = _members(weights, options)
    whole = sum(weight for _, weight, _ in members)
    total = torch.zeros_like(statistics.weight_square, dtype=torch.float64)
    for member, weight, told in members:
        scores = member(statistics, **told)
        if not torch.isfinite(scores).all():
            raise ScoreError(NOT_FINITE)
        total += weight / whole * ranks(scores)
    return total


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Ranks from 1/U (lowest) to 1, ties at the mean of theirs; float64 ``[U]``."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    mean: torch.Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return mean[place] / len(scores)
