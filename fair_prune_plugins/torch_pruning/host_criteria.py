"""Criteria of Torch-Pruning's own, by name, for comparison: they look at weights alone, and run under our guards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch_pruning as tp


@dataclass(frozen=True)
class HostCriterion:
    """One of the host's importance classes, described like our criteria.

    Attributes:
        name: how configurations call it.
        make: the host's class; its arguments are the options.
        summary: what it does, in one sentence.
        source: the paper it comes from.
    """

    name: str
    make: Callable[..., Any]
    summary: str
    source: str
    needs_data: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False


HOST_CRITERIA: dict[str, HostCriterion] = {
    c.name: c
    for c in (
        HostCriterion(
            "fpgm",
            tp.importance.FPGMImportance,
            "Torch-Pruning's: channels whose weights are nearest to those of all others go first.",
            "He et al., CVPR 2019, arXiv:1811.00250",
        ),
        HostCriterion(
            "bn_scale",
            tp.importance.BNScaleImportance,
            "Torch-Pruning's: channels with the smallest BatchNorm scale go first; every layer must have a BatchNorm.",
            "Liu et al., Network Slimming, ICCV 2017, arXiv:1708.06519",
        ),
        HostCriterion(
            "random",
            tp.importance.RandomImportance,
            "Torch-Pruning's: any channels go, by torch's random numbers.",
            "a lower bound for every criterion",
        ),
    )
}
"""By name."""
