"""What a model costs, as the host counts it."""

from __future__ import annotations

from typing import Any

import torch_pruning as tp
from torch import nn

from fair_prune_plugins.gates.calling import ForwardFn, preserved


def macs_and_params(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> tuple[int, int]:
    """Multiply-accumulates of a forward on ``inputs`` and number of parameters (``tp.utils.count_ops_and_params``).

    The model is left as it was.
    """
    with preserved(model):
        model.eval()
        if forward_fn is None:
            macs, params = tp.utils.count_ops_and_params(model, inputs)
        else:
            # One argument, whatever it is: the counter would unroll a tuple or a dict.
            macs, params = tp.utils.count_ops_and_params(_Called(model, forward_fn), (inputs,))
    return int(macs), int(params)


class _Called(nn.Module):
    """A model behind its ``forward_fn``, for the host's counter."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        self.model, self.forward_fn = model, forward_fn

    def forward(self, inputs: Any) -> Any:
        return self.forward_fn(self.model, inputs)
