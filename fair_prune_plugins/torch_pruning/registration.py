"""Putting our classes where code looks for criteria and pruners by name."""

from __future__ import annotations

import torch_pruning as tp

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.torch_pruning.criterion_importances import IMPORTANCES
from fair_prune_plugins.torch_pruning.pruner import FairPruner

TAKEN = (
    "torch_pruning.{where}.{name} exists already and is not ours; a newer Torch-Pruning may have a class of "
    "that name: import ours by its own path"
)

HOST_NAMES = ("MagnitudeImportance", "TaylorImportance")
"""The host has classes of these names; ours are registered with a prefix and never replace them."""


def register() -> list[str]:
    """Make our classes attributes of ``torch_pruning.importance`` and ``torch_pruning.pruner``.

    Names that the host uses itself get the prefix ``Gate`` (``GateTaylorImportance``). Calling it again changes
    nothing.

    Returns:
        The registered names, with their module.

    Raises:
        InputError: a name is taken by something else.
    """
    done = []
    wanted = [
        (tp.importance, f"Gate{c.__name__}" if c.__name__ in HOST_NAMES else c.__name__, c)
        for c in IMPORTANCES.values()
    ]
    wanted = [*wanted, (tp.pruner, FairPruner.__name__, FairPruner)]
    for module, name, value in wanted:
        where = module.__name__.removeprefix("torch_pruning.")
        if getattr(module, name, value) is not value:
            raise InputError(TAKEN.format(where=where, name=name))
    for module, name, value in wanted:
        setattr(module, name, value)
        done.append(f"{module.__name__}.{name}")
    return done
