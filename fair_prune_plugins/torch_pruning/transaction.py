"""All or nothing: a model and its pruner as they were, if a pruning step fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fair_prune_plugins.gates.rollback import copied_attributes, undone_on_error


@contextmanager
def transaction(model: nn.Module, pruner: Any, rebuild_graph: Any) -> Iterator[None]:
    """Undo everything on an exception.

    The host's graph is changed in many small ways; it is built anew.

    Args:
        model: the model that is pruned.
        pruner: its pruner; its own attributes are put back too.
        rebuild_graph: called after a roll-back to give the pruner a graph of the restored model.
    """
    state = copied_attributes({k: v for k, v in pruner.__dict__.items() if k != "model"})
    history = list(pruner.DG.pruning_history())
    try:
        with undone_on_error(model):
            yield
    except BaseException:
        pruner.__dict__.update(state)
        pruner.DG = rebuild_graph()
        pruner.DG._pruning_history = history
        raise
