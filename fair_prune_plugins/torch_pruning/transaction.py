"""All or nothing: a model and its pruner as they were, if a pruning step fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def transaction(model: nn.Module, pruner: Any, rebuild_graph: Any) -> Iterator[None]:
    """Undo everything on an exception.

    Pruning replaces parameters, buffers and plain attributes of modules and never their values, so what modules refer
    to is all there is to remember. The host's graph is changed in many small ways; it is built anew.

    Args:
        model: the model that is pruned.
        pruner: its pruner; its own attributes are put back too.
        rebuild_graph: called after a roll-back to give the pruner a graph of the restored model.
    """
    modules = [(m, _copied(m.__dict__)) for m in model.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    state = _copied({k: v for k, v in pruner.__dict__.items() if k != "model"})
    history = list(pruner.DG.pruning_history())
    try:
        yield
    except BaseException:
        for module, contents in modules:
            module.__dict__.clear()
            module.__dict__.update(contents)
        with torch.no_grad():
            for p, data, grad, requires_grad in parameters:
                p.data, p.grad = data, grad
                p.requires_grad_(requires_grad)
        pruner.__dict__.update(state)
        pruner.DG = rebuild_graph()
        pruner.DG._pruning_history = history
        raise


def _copied(contents: dict[str, Any]) -> dict[str, Any]:
    return {k: type(v)(v) if type(v) in (dict, list, set) else v for k, v in contents.items()}
