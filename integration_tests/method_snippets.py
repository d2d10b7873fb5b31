"""The names that the index of ``docs/methods`` says a snippet may use, on a tiny net and invented people."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.nni import auto_set_denpendency_group_ids
from integration_tests.nni_pruning import torch_evaluator


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def batches(seed: int, count: int = 2, size: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "inputs": torch.randn(size, 3, 8, 8, generator=generator),
            "targets": torch.randint(0, 2, (size,), generator=generator),
            "gender": ["female" if i % 3 else "male" for i in range(size)],
        }
        for _ in range(count)
    ]


def answers(seed: int, people: int = 240) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, people)
    groups = GroupLabels(("female", "male"), rng.integers(0, 2, people), "gender")
    dense = labels * 2.0 - 1.0 + rng.normal(0, 1, people)
    logits = dense + rng.normal(0, 1, people) + 0.5 * groups.codes
    return {"labels": labels, "people": groups, "dense_logits": dense, "logits": logits}


def script() -> dict[str, Any]:
    """All names, made anew: snippets prune and train."""
    model, loader = Net(), batches(1)

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(batch["inputs"]), batch["targets"])

    configured: list[dict[str, Any]] = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    example = loader[0]["inputs"]
    return {
        "model": model,
        "dense": copy.deepcopy(model),
        "example_inputs": example,
        "loader": loader,
        "held_out": batches(2),
        "loss_fn": F.cross_entropy,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
        "epochs": 1,
        "config_list": auto_set_denpendency_group_ids(model, configured, example),
        "evaluator": torch_evaluator(model, loader, step),
        **answers(1),
        **{f"test_{name}": value for name, value in answers(2).items()},
    }
