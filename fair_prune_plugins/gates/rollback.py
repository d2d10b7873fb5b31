"""All or nothing: a model as it was, if what is done to its structure fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Undo everything that happened to a model's structure inside, if an exception leaves the context.

    Pruning replaces parameters, buffers and plain attributes of modules and never writes into them, so what modules
    refer to is all there is to remember.
    """
    modules = [(m, copied_attributes(m.__dict__)) for m in model.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
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
        raise


def copied_attributes(contents: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an object, in containers of their own where they are lists, sets or dicts."""
    return {k: type(v)(v) if type(v) in (dict, list, set) else v for k, v in contents.items()}
