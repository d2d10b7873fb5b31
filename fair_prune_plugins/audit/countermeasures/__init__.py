"""What thresholds and label overrides would mend of what compression did: chosen on validation people, judged on test.

``counter`` makes a :class:`Countermeasures`; the choosing itself is done by
:mod:`fair_prune_plugins.postprocessing`.
"""

from fair_prune_plugins.audit.countermeasures.countering import counter
from fair_prune_plugins.audit.countermeasures.result import (
    AttributeShift,
    Chosen,
    Countermeasures,
    Curve,
    CurvePoint,
    Remedy,
    Shift,
)

__all__ = ["AttributeShift", "Chosen", "Countermeasures", "Curve", "CurvePoint", "Remedy", "Shift", "counter"]
