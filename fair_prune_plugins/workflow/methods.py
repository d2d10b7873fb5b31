"""What `prune.methods` may name: every registered criterion, and Torch-Pruning's own for comparison."""

from __future__ import annotations

from typing import Any

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.torch_pruning.host_criteria import HOST_CRITERIA, HostCriterion


def names() -> list[str]:
    """All names, sorted."""
    return sorted({*criteria.names(), *HOST_CRITERIA})


def get(name: str) -> criteria.Criterion | HostCriterion:
    """What is behind a name; registered criteria come first.

    Raises:
        InputError: nothing is.
    """
    return HOST_CRITERIA[name] if name in HOST_CRITERIA and name not in criteria.names() else criteria.get(name)


def importance(name: str, options: dict[str, Any]) -> Any:
    """The importance object of a name.

    Raises:
        InputError: options that a registered criterion does not have.
        TypeError: options that the host's class does not have.
    """
    found = get(name)
    return found.make(**options) if isinstance(found, HostCriterion) else fpt.importance(name, **options)
