"""The bias audit: what compression did, to whom, and what the dense model alone already told.

    people = People(ids, labels, (genders, ages), ("smiling",), "binary")
    data = AuditData(people, ModelPredictions("dense", (logits,)), (ModelPredictions("small", (pruned_logits,)),))
    found = audit(data)
    fair_prune_plugins.audit.report.write_report(found, "runs/audit")

Predictions come from tables, ONNX files and torch modules through :mod:`fair_prune_plugins.audit.reading`; parts of the
audit can be had by themselves (:mod:`.measures`, :mod:`.changes`, :mod:`.forecast`, :mod:`.countermeasures`,
:mod:`.policy`). Needs the extra ``onnx`` (scipy); reading tables and writing reports need ``workflow``.
"""

from fair_prune_plugins.audit.auditing import audit
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People, TrainingPeople
from fair_prune_plugins.audit.result import Audit

__all__ = ["Audit", "AuditData", "ModelPredictions", "People", "TrainingPeople", "audit"]
