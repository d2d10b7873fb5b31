"""What the trials of the hosts' defects share: Torch-Pruning's own pruner on networks of a few layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

TORCH_PRUNING = "torch-pruning"
SEEN = ("1.6.1",)


def magnitude() -> Any:
    """The host's plainest importance."""
    return tp.importance.MagnitudeImportance()


def host_pruner(
    model: nn.Module,
    inputs: torch.Tensor,
    *,
    importance: Callable[[Any], Any] | None = None,
    ratio: float = 0.5,
    keep: Sequence[nn.Module] = (),
    **options: Any,
) -> Any:
    """The host's pruner with dictionaries of its own, because its defaults are shared by all pruners."""
    dictionaries: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance=importance or magnitude(),
        pruning_ratio=ratio,
        ignored_layers=list(keep),
        **{**dictionaries, **options},
    )


def pruned(model: nn.Module, inputs: torch.Tensor, **options: Any) -> Any:
    """The model after one step of the host's pruner; see :func:`host_pruner`."""
    host_pruner(model, inputs, **options).step()
    return model


def raises(kind: type[Exception] | tuple[type[Exception], ...], action: Callable[[], Any]) -> bool:
    """Whether an action fails in the way that the defect is known for; any other failure goes on."""
    try:
        action()
    except kind:
        return True
    return False
