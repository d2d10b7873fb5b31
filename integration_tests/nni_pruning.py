"""Small NNI pipelines that the pruners' tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nni
import torch
import torch.nn.functional as F
from nni.compression import TorchEvaluator
from torch import nn

import fair_prune_plugins.nni  # noqa: F401  NNI's compression part imports cleanly only through it
from fair_prune_plugins.gates import GatePlan
from integration_tests.networks import CLASSES

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(count: int = 3, size: int = 16, groups: int = 2, dtype: torch.dtype = torch.float32) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, 3, 16, 16, generator=generator, dtype=dtype),
            torch.randint(0, CLASSES, (size,), generator=generator),
            torch.randint(0, groups, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def mean_loss(batch: Any, model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def plain_loop(data: Sequence[Any]) -> Callable[..., None]:
    """A training function as NNI's documentation has it."""

    def training_func(
        model: nn.Module,
        optimizers: Any,
        training_step: Callable[..., Any],
        lr_schedulers: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        model.train()
        steps = 0
        for _ in range(max_epochs or 100):
            for batch in data:
                optimizers.zero_grad()
                loss = training_step(batch, model)
                loss = loss["loss"] if isinstance(loss, dict) else loss[0] if isinstance(loss, tuple) else loss
                loss.backward()
                optimizers.step()
                steps += 1
                if max_steps and steps >= max_steps:
                    return
            if lr_schedulers is not None:
                lr_schedulers.step()

    return training_func


def torch_evaluator(
    model: nn.Module, data: Sequence[Any], step: Callable[..., Any] = mean_loss, lr: float = 0.05
) -> TorchEvaluator:
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
    return TorchEvaluator(plain_loop(data), optimizer, step)


def names_of(model: nn.Module, *types: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, types)]


def inner_layers(model: nn.Module, plan: GatePlan, *types: type[nn.Module]) -> list[str]:
    """Layers whose outputs may be pruned."""
    outputs = {s.path for g in plan.groups if not g.prunable for s in g.producers}
    return [name for name in names_of(model, *types) if name not in outputs]


def kept(mask: torch.Tensor) -> list[int]:
    """Numbers of the output channels that are not masked."""
    return mask.flatten(1).any(1).nonzero().flatten().tolist() if mask.ndim > 1 else mask.nonzero().flatten().tolist()
