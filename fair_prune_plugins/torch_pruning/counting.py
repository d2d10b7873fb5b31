"""What a model costs, as the host counts it."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.gates.calling import ForwardFn, call, copied


def macs_and_params(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> tuple[int, int]:
    """Multiply-accumulates of one sample and number of parameters (``tp.utils.count_ops_and_params``).

    The model is left as it was.

    Args:
        model: any module.
        inputs: one sample, however the model takes it.
        forward_fn: how it is called, if not plainly.
    """
    # One argument, whatever it is: the counter divides by its length, for a dict by the number of keys.
    called = _Called(copied(model).eval(), inputs, forward_fn)
    macs, params = tp.utils.count_ops_and_params(called, (torch.zeros(1),))
    return int(macs), int(params)


class _Called(nn.Module):
    """A model that is called on inputs of its own, whatever it is given."""

    def __init__(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        super().__init__()
        self.model, self.inputs, self.forward_fn = model, inputs, forward_fn

    def forward(self, _: torch.Tensor) -> Any:
        return call(self.model, self.inputs, self.forward_fn)
