"""What a loop over a user's model puts back, and the random numbers that it goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Put every module's mode and every parameter's ``.grad`` and ``requires_grad`` back, whatever happens; values
    stay as they are then.
    """
    modes = [(m, m.training) for m in model.modules()]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    for p, _, _ in parameters:
        p.grad = None
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p, grad, requires_grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad


def random_numbers(device: torch.device) -> dict[str, Any]:
    """The state of torch's random numbers, on the CPU and on the device."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_numbers(state: dict[str, Any], device: torch.device) -> None:
    """Go on with saved random numbers; those of a GPU only where one is used now too."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
