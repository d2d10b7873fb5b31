"""People in groups of different sizes, in batches, and plans of the test networks: for statistics of weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from integration_tests.networks import CLASSES, build, heads_of

NAMES = ("female", "male", "other")
Batch = dict[str, Any]


def people(samples: int = 18, dtype: torch.dtype = torch.float64) -> Batch:
    """Images, targets and groups of different sizes; every seventh person's group is unknown."""
    generator = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(samples, 3, 16, 16, generator=generator, dtype=dtype),
        "y": torch.randint(0, CLASSES, (samples,), generator=generator),
        "group": [None if n % 7 == 6 else NAMES[n % 5 % 3] for n in range(samples)],
    }


def batches(data: Batch, size: int, order: list[int] | None = None) -> list[Batch]:
    order = list(range(len(data["y"]))) if order is None else order
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [{k: v[p] if isinstance(v, torch.Tensor) else [v[i] for i in p] for k, v in data.items()} for p in parts]


def per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if outputs.ndim == 4:
        return outputs.square().mean((1, 2, 3)) + outputs[:, 0, 3, 4]
    return F.cross_entropy(outputs, targets, reduction="none")


def planned(name: str, dtype: torch.dtype = torch.float64) -> GatePlan:
    model = build(name).to(dtype)
    return build_plan(model, torch.zeros(1, 3, 16, 16), num_heads=heads_of(model), prune_num_heads=True)
