"""Every number of an audit: per model, output, sensitive attribute and group, with paired intervals.

:func:`measure` turns an :class:`~fair_prune_plugins.audit.data.AuditData` into :class:`Measures`. Needs numpy and
scipy.
"""

from fair_prune_plugins.audit.measures.group_result import (
    EVERYBODY,
    Amplification,
    ChangeTest,
    Disparity,
    Gaps,
    GapsByChance,
    MeasuredGroup,
    Scores,
)
from fair_prune_plugins.audit.measures.measuring import measure
from fair_prune_plugins.audit.measures.result import (
    Interdependence,
    MeasuredAttribute,
    MeasuredModel,
    MeasuredOutput,
    Measures,
    OutputTruth,
    Overall,
    OverallAttribute,
    OverallGroup,
)

__all__ = [
    "EVERYBODY",
    "Amplification",
    "ChangeTest",
    "Disparity",
    "Gaps",
    "GapsByChance",
    "Interdependence",
    "MeasuredAttribute",
    "MeasuredGroup",
    "MeasuredModel",
    "MeasuredOutput",
    "Measures",
    "OutputTruth",
    "Overall",
    "OverallAttribute",
    "OverallGroup",
    "Scores",
    "measure",
]
