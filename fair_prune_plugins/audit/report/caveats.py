"""How it was measured, and what cannot be concluded."""

from __future__ import annotations

from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.estimates import Remark
from fair_prune_plugins.reporting.wording import percent


def before_reading(audit: Audit) -> tuple[Remark, ...]:
    """What a reader must know first."""
    return tuple(_split(note) for note in audit.notes)


def limits(audit: Audit) -> tuple[Remark, ...]:
    """What these numbers do not say."""
    found = [
        Remark(
            "No difference shown is not no difference.",
            "Small groups hide large changes: look at the ends of the intervals, not only at the verdicts.",
        ),
        Remark(
            "These people only.",
            "Intervals are about people like those audited. Other places, cameras and times can differ in ways that no "
            "interval covers.",
        ),
        Remark(
            "Labels and groups are taken as given.",
            "Where labels or groups are wrong, and wrong more often in one group, the numbers are too.",
        ),
        Remark(
            "No verdict on fairness.",
            "Several meanings of fairness are measured side by side and cannot all hold at once; which one matters, "
            "and what an error costs a person, is for people to decide.",
        ),
    ]
    if audit.pruned:
        found.insert(
            1,
            Remark(
                "Many comparisons.",
                "Accuracies of groups are tested with Holm’s correction. Coloured changes of the other numbers are "
                f"{percent(audit.confidence, 0)} intervals one by one; among many some exclude zero by chance.",
            ),
        )
    return tuple(found)


def methods(audit: Audit) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Notes of each part, under its title."""
    parts = [("Measures", audit.measures.notes)]
    parts += [(f"Who is answered otherwise: {c.model}", c.notes) for c in audit.changes]
    parts.append(("Forecast", audit.risk.notes))
    parts += [(f"How good the forecast was: {q.model}", q.notes) for q in audit.quality]
    if audit.countermeasures is not None:
        parts.append(("Countermeasures", audit.countermeasures.notes))
    return tuple((title, tuple(notes)) for title, notes in parts if notes)


def _split(note: str) -> Remark:
    """The first sentence leads."""
    first, dot, rest = note.partition(". ")
    return Remark(first + dot.strip(), rest)
