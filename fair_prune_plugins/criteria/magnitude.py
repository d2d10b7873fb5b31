"""The criterion without data: the size of a unit's weights."""

from __future__ import annotations

import torch

from fair_prune_plugins.criteria.registry import criterion
from fair_prune_plugins.statistics.units import UnitStatistics


@criterion(
    "magnitude",
    summary="Norm of the unit's weights (its producers' rows and consumers' columns); sees neither data nor groups.",
    source="Li et al., ICLR 2017, arXiv:1608.08710, over whole coupled groups as in Fang et al., arXiv:2301.12900",
    needs_data=False,
    comparable=False,
)
def magnitude(statistics: UnitStatistics) -> torch.Tensor:
    """The L2 norm over all weights that leave with the unit, relative to the mean unit of its coupled group."""
    norm = statistics.weight_square.sqrt()
    return norm / norm.mean().clamp_min(torch.finfo(torch.float64).tiny)
