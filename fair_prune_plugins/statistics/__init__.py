"""What one pass over data tells about every gate, per sensitive group."""

from fair_prune_plugins.statistics.batches import BatchReader
from fair_prune_plugins.statistics.checksum import model_checksum
from fair_prune_plugins.statistics.collecting import collect
from fair_prune_plugins.statistics.elementwise import collect_elementwise
from fair_prune_plugins.statistics.store import GateStatistics, UnitStatistics

__all__ = ["BatchReader", "GateStatistics", "UnitStatistics", "collect", "collect_elementwise", "model_checksum"]
