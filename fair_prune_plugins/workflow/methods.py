"""What `prune.methods` may name: every registered criterion, the methods that learn gates, and Torch-Pruning's own
criteria for comparison.
"""

from __future__ import annotations

from typing import Any

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.learned_gates import LEARNED, LearnedMethod
from fair_prune_plugins.torch_pruning.host_criteria import HOST_CRITERIA, HostCriterion


def names() -> list[str]:
    """All names, sorted."""
    return sorted({*criteria.names(), *HOST_CRITERIA, *LEARNED})


def get(name: str) -> criteria.Criterion | HostCriterion | LearnedMethod:
    """What is behind a name; registered criteria come first.

    Raises:
        InputError: nothing is.
    """
    if name in LEARNED and name not in criteria.names():
        return LEARNED[name]
    return HOST_CRITERIA[name] if name in HOST_CRITERIA and name not in criteria.names() else criteria.get(name)


def importance(name: str, options: dict[str, Any]) -> Any:
    """The importance object of a name; a method that learns gates is its own.

    Raises:
        InputError: options that a registered criterion does not have.
        TypeError: options that the host's class does not have.
    """
    found = get(name)
    if isinstance(found, LearnedMethod):
        found.check_options(options)
        return found
    return found.make(**options) if isinstance(found, HostCriterion) else fpt.importance(name, **options)
