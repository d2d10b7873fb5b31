"""The model doctor: what of a model can be pruned, what cannot and why, and which defects of the hosts touch it.

:func:`examine` looks at a model, :func:`examine_host` at the installation alone; both return plain frozen dataclasses,
and :func:`~fair_prune_plugins.workflow.doctor.printing.print_diagnosis` writes them for people.
"""

from fair_prune_plugins.workflow.doctor.defects import Finding, HostDefect, known_defects
from fair_prune_plugins.workflow.doctor.diagnosis import Diagnosis, ExportCheck, GroupRow, ModelReport, WidthRow
from fair_prune_plugins.workflow.doctor.examination import examine, examine_host
from fair_prune_plugins.workflow.doctor.versions import PackageVersion, versions

__all__ = [
    "Diagnosis",
    "ExportCheck",
    "Finding",
    "GroupRow",
    "HostDefect",
    "ModelReport",
    "PackageVersion",
    "WidthRow",
    "examine",
    "examine_host",
    "known_defects",
    "versions",
]
