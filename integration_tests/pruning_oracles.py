"""What the pruning tests compare with: literal algorithms, and models looked at from outside."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.statistics.store import UnitStatistics
from integration_tests.networks import CLASSES


def sample_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy per sample, or for image outputs their mean square."""
    if outputs.ndim != 2:
        return outputs.square().flatten(1).mean(1)
    return F.cross_entropy(outputs, targets, reduction="none")


def faces(samples: int = 12, groups: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A batch of random images of people in ``groups`` groups of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.arange(samples) % (groups + 1)
    return {
        "inputs": torch.randn(samples, 3, 16, 16, generator=generator, dtype=dtype),
        "targets": torch.randint(0, CLASSES, (samples,), generator=generator),
        "group": torch.where(codes == groups, torch.zeros_like(codes), codes),
    }


def host_pruner(model: nn.Module, importance: Any, **options: Any) -> tp.pruner.BasePruner:
    """The host's pruner with dictionaries of its own and without its warnings about bare parameters."""
    fresh: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    inputs = options.pop("example_inputs", torch.zeros(1, 3, 16, 16, dtype=next(model.parameters()).dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.pruner.BasePruner(model, inputs, importance, **{**fresh, **options})


def literal_greedy(importance: Sequence[Sequence[float]], kept: int) -> set[int]:
    """FairGRAPE's selection of ``kept`` units as the paper states it; ``importance[g][u]``."""
    groups, units = range(len(importance)), range(len(importance[0]))
    whole = sum(sum(row) for row in importance)
    target = [sum(row) / whole if whole else 1 / len(importance) for row in importance]
    share = [1 / len(importance) for _ in groups]
    total = [0.0 for _ in groups]
    selected: set[int] = set()
    while len(selected) < kept:
        chosen = min(groups, key=lambda g: (share[g] - target[g], g))
        unit = min((u for u in units if u not in selected), key=lambda u: (-importance[chosen][u], u))
        selected.add(unit)
        total = [t + importance[g][unit] for g, t in enumerate(total)]
        if sum(total):
            share = [t / sum(total) for t in total]
    return selected


def per_person(tables: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean over each group's people of ``tables [N, U]``, a loop over people."""
    groups = int(codes.max()) + 1
    out = torch.zeros(groups, tables.shape[1], dtype=torch.float64)
    for row, code in zip(tables.double(), codes.tolist(), strict=True):
        out[code] += row
    return out / torch.bincount(codes, minlength=groups)[:, None]


def unit_statistics(
    s: torch.Tensor, codes: torch.Tensor, groups: int, weight_square: torch.Tensor | None = None
) -> UnitStatistics:
    """Statistics of ``s [N, U]``, person by person; code -1 is unknown."""
    units = s.shape[1]
    sums = torch.zeros(3, groups + 1, units, dtype=torch.float64)
    weight = torch.zeros(groups + 1, dtype=torch.float64)
    for row, code in zip(s.double(), codes.tolist(), strict=True):
        weight[code] += 1
        for table, value in zip(sums, (row, row.abs(), row.square()), strict=True):
            table[code] += value
    return UnitStatistics(
        tuple(f"group {g}" for g in range(groups)),
        weight[:-1],
        sums[0, :-1],
        sums[1, :-1],
        sums[2, :-1],
        float(weight[-1]),
        sums[0, -1],
        sums[1, -1],
        sums[2, -1],
        torch.arange(1, units + 1, dtype=torch.float64) if weight_square is None else weight_square,
    )


@dataclass(frozen=True)
class Tap:
    """A place where a unit's gate is measured: a module's input or output, channels in dimension 1 or last."""

    path: str
    output: bool = False
    last: bool = False


def gate_derivatives(model: nn.Module, batch: Mapping[str, Any], taps: Sequence[Tap]) -> torch.Tensor:
    """``x * dL/dx`` per sample and channel, summed over positions and taps: ``[N, C]``, by autograd alone."""
    seen: list[tuple[torch.Tensor, Tap]] = []
    hooks = []

    def tapped(x: torch.Tensor, tap: Tap) -> torch.Tensor:
        alias = x * 1  # read by this consumer alone, whatever else reads x
        alias.retain_grad()
        seen.append((alias, tap))
        return alias

    for tap in taps:
        module = model.get_submodule(tap.path)
        if tap.output:
            hooks.append(module.register_forward_hook(lambda m, i, o, tap=tap: tapped(o, tap)))
        else:
            hooks.append(module.register_forward_pre_hook(lambda m, i, tap=tap: (tapped(i[0], tap),)))
    sample_loss(model(batch["inputs"]), batch["targets"]).sum().backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    total = torch.zeros(1, dtype=torch.float64)
    for x, tap in seen:
        assert x.grad is not None
        product = (x * x.grad).detach().double()
        product = product.movedim(-1, 1) if tap.last else product
        total = total + product.flatten(2).sum(2) if product.ndim > 2 else total + product
    return total


def removed_roots(pruner: tp.pruner.BasePruner) -> dict[str, set[int]]:
    """Root channels the host recorded as removed in a single step, by root layer."""
    return {name: {int(i) for i in idxs} for name, _, idxs in pruner.pruning_history()}


@dataclass(frozen=True)
class Snapshot:
    """Everything of a model that pruning can change."""

    tensors: dict[str, tuple[int, bytes, bool, bytes | None]]
    attributes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        tensors = {}
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            grad = None if t.grad is None else t.grad.numpy().tobytes()
            tensors[name] = (id(t), t.detach().numpy().tobytes(), t.requires_grad, grad)
        plain = (int, float, str, bool, tuple, type(None))
        attributes = {
            name: {k: copy.copy(v) for k, v in vars(m).items() if isinstance(v, plain)}
            for name, m in model.named_modules()
        }
        return cls(tensors, attributes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
