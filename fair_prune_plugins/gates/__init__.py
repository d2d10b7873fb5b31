"""Where: the gate plan of a model (one multiplicative gate per unit, measured at the consumers, closed exactly)."""

from fair_prune_plugins.gates.plan import GatePlan, build_plan
from fair_prune_plugins.gates.structure import CoupledGroup, PruningSettings, Site, UnitSet

__all__ = ["CoupledGroup", "GatePlan", "PruningSettings", "Site", "UnitSet", "build_plan"]
