"""Which gates to close: pure functions from per-group statistics to one score per unit, and their registry."""

from fair_prune_plugins.criteria.fairgrape import fairgrape, keep_fraction_schedule, keep_fraction_steps
from fair_prune_plugins.criteria.fairprune import fairprune, most_sensitive_group
from fair_prune_plugins.criteria.magnitude import magnitude
from fair_prune_plugins.criteria.mixing import rank_mix
from fair_prune_plugins.criteria.registry import Criterion, criterion, get, names
from fair_prune_plugins.criteria.snnl import snnl
from fair_prune_plugins.criteria.taylor import group_balanced_taylor, taylor, worst_group_taylor

__all__ = [
    "Criterion",
    "criterion",
    "fairgrape",
    "fairprune",
    "get",
    "group_balanced_taylor",
    "keep_fraction_schedule",
    "keep_fraction_steps",
    "magnitude",
    "most_sensitive_group",
    "names",
    "rank_mix",
    "snnl",
    "taylor",
    "worst_group_taylor",
]
