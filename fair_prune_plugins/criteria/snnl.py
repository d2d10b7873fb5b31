"""SCP's channel sensitivity: units that tell sensitive groups apart go first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fair_prune_plugins.criteria.registry import criterion
from fair_prune_plugins.criteria.taylor import NOT_FINITE, check_groups, require
from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.statistics.units import Needs, UnitStatistics, checked_temperature


def _needs(options: Mapping[str, Any]) -> Needs:
    return Needs(frozenset({"snnl"}), groups=True, temperature=checked_temperature(options["temperature"]))


@criterion(
    "snnl",
    summary="Units whose feature maps tell the sensitive groups apart go first; looks at no loss.",
    source="Kong et al., SCP, MICCAI 2024, arXiv:2405.08681 (on units)",
    needs_groups=True,
    comparable=False,
    needing=_needs,
)
def snnl(statistics: UnitStatistics, *, temperature: float = 1.0) -> torch.Tensor:
    """The soft nearest neighbour loss of the unit's feature map by the sensitive group; low is sensitive, and goes.

    How it is measured, and how it depends on batches: :mod:`fair_prune_plugins.statistics.snnl`. The paper prunes one
    layer by it; values of different layers are of maps of different sizes, so a ranking over several means little. It
    says nothing of what a unit is worth to the task: mix it with a criterion that does (``rank_mix``).

    Args:
        statistics: of one coupled group.
        temperature: of the loss, which is measured at it; the lower, the more the nearest neighbours count.

    Raises:
        ScoreError: no groups, statistics of something else, or nobody who could be compared.
    """
    check_groups(statistics)
    require(statistics, "snnl")
    assert statistics.snnl is not None
    if not torch.isfinite(statistics.snnl).all():
        raise ScoreError(NOT_FINITE)
    return statistics.snnl
