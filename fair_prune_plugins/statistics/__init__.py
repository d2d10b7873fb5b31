"""What passes over data tell about every unit, per sensitive group."""

from fair_prune_plugins.statistics.batches import BatchReader
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.collecting import collect
from fair_prune_plugins.statistics.elementwise import collect_elementwise
from fair_prune_plugins.statistics.fisher import collect_fisher
from fair_prune_plugins.statistics.measuring import measure
from fair_prune_plugins.statistics.snnl import collect_snnl
from fair_prune_plugins.statistics.store import GateStatistics
from fair_prune_plugins.statistics.units import Needs, UnitStatistics

__all__ = [
    "BatchReader",
    "GateStatistics",
    "Needs",
    "UnitStatistics",
    "collect",
    "collect_elementwise",
    "collect_fisher",
    "collect_snnl",
    "measure",
    "model_checksum",
]
