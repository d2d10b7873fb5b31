"""Which gates to close: pure functions from per-group statistics to one score per unit, and their registry."""

from fair_prune_plugins.criteria.fairgrape import fairgrape, keep_fraction_schedule, keep_fraction_steps
from fair_prune_plugins.criteria.magnitude import magnitude
from fair_prune_plugins.criteria.registry import Criterion, criterion, get, names
from fair_prune_plugins.criteria.taylor import group_balanced_taylor, taylor, worst_group_taylor

__all__ = [
    "Criterion",
    "criterion",
    "fairgrape",
    "get",
    "group_balanced_taylor",
    "keep_fraction_schedule",
    "keep_fraction_steps",
    "magnitude",
    "names",
    "taylor",
    "worst_group_taylor",
]
