"""What compression did to single people: exemplars, flips by direction, and tests of dense against pruned."""

from fair_prune_plugins.audit.changes.comparing import compare, exemplars
from fair_prune_plugins.audit.changes.result import (
    CLASS,
    AttributeChanges,
    Changed,
    ChangedPerson,
    Changes,
    Flips,
    McNemar,
    Question,
    Touched,
)
from fair_prune_plugins.audit.changes.testing import mcnemar
from fair_prune_plugins.audit.changes.votes import UNSURE, unsure

__all__ = [
    "CLASS",
    "UNSURE",
    "AttributeChanges",
    "Changed",
    "ChangedPerson",
    "Changes",
    "Flips",
    "McNemar",
    "Question",
    "Touched",
    "compare",
    "exemplars",
    "mcnemar",
    "unsure",
]
