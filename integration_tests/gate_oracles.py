"""What gates are compared with: structural removal by the host, and derivatives by gates written out as tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.removal import LastDimensionNormPruner
from fair_prune_plugins.gates.structure import CoupledGroup, UnitSet
from integration_tests.networks import FusedAttention, SeparateAttention, heads_of

Closed = dict[str, torch.Tensor]


class Net(nn.Module):
    """A network written as a function of its layers."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.written = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.written(self, x)


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def host_graph(model: nn.Module, x: torch.Tensor) -> tp.DependencyGraph:
    norms = {type(m): LastDimensionNormPruner() for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(
            model, (x,), customized_pruners=norms, verbose=False, output_transform=tensors
        )


def unit_of(group: CoupledGroup, units: UnitSet, root: int) -> int:
    """The unit of a root channel, by the host's conventions: the same place in each conv group or head, or a head."""
    repeat = group.channels // group.units.size
    return root // (group.channels // repeat) if units.kind == "heads" else root % group.units.size


def random_closed(plan: GatePlan, fraction: float, seed: int) -> Closed:
    """About ``fraction`` of all units, never all of a layer's."""
    generator = torch.Generator().manual_seed(seed)
    closed: Closed = {}
    for group in plan.prunable:
        for units in group.unit_sets:
            order = torch.randperm(units.size, generator=generator).tolist()
            stay = {order[0]} | {next(u for u in order if u in part.tolist()) for part in group.parts(units)}
            mask = torch.zeros(units.size, dtype=torch.bool)
            mask[[u for u in order if u not in stay][: max(1, round(fraction * units.size))]] = True
            if mask.any():
                closed[units.name] = mask
    return closed


def removed(model: nn.Module, x: torch.Tensor, plan: GatePlan, closed: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of ``model`` without the closed units."""
    twin = copy.deepcopy(model)
    graph = host_graph(twin, x)
    for group in plan.prunable:
        roots = [
            r
            for r in range(group.channels)
            if any(u.name in closed and closed[u.name][unit_of(group, u, r)] for u in group.unit_sets)
        ]
        if not roots:
            continue
        root = twin.get_submodule(group.root)
        pruner = graph.get_pruner_of_module(root)
        prune = pruner.prune_out_channels if group.root_is_output else pruner.prune_in_channels
        graph.get_pruning_group(root, prune, roots).prune()
        gone = {u.kind: int(closed[u.name].sum()) if u.name in closed else 0 for u in group.unit_sets}
        for path in group.heads:
            attention = twin.get_submodule(path.rpartition(".")[0])
            assert isinstance(attention, FusedAttention | SeparateAttention)
            if path.rpartition(".")[2] in ("qkv", "q"):
                attention.num_heads -= gone.get("heads", 0)
                if isinstance(attention, FusedAttention):
                    attention.head_dim -= gone["head dimensions"]
                else:  # as it would have been made for the head size that is left
                    attention.scale = (attention.q.out_features // attention.num_heads) ** -0.5
    return twin


def error(found: Any, expected: Any) -> float:
    """Largest difference relative to the outputs' scale."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def closing_error(model: nn.Module, x: torch.Tensor, plan: GatePlan, closed: Closed) -> float:
    """Closed by the plan against removed by the host."""
    small = removed(model, x, plan, closed)
    with torch.no_grad():
        with plan.closed(closed) as same:
            assert same is model
            gated = model(x)
        return error(gated, small(x))


class Gates:
    """Gates as leaf tensors ``[1, units]``, multiplied in where the network consumes its units."""

    def __init__(self, model: nn.Module, x: torch.Tensor, plan: GatePlan) -> None:
        self.model, self.plan = model, plan
        self.leaves = {name: torch.ones(1, u.size, dtype=x.dtype, requires_grad=True) for name, u in plan.units.items()}
        self._inputs: list[tuple[str, list[int], list[int], CoupledGroup]] = []
        graph = host_graph(model, x)
        for group in plan.prunable:
            root = model.get_submodule(group.root)
            pruner = graph.get_pruner_of_module(root)
            prune = pruner.prune_out_channels if group.root_is_output else pruner.prune_in_channels
            for item in graph.get_pruning_group(root, prune, list(range(group.channels))):
                module = item.dep.target.module
                if graph.is_out_channel_pruning_fn(item.dep.handler) or isinstance(module, nn.MultiheadAttention):
                    continue
                if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    self._inputs.append((graph._module2name[module], item.idxs, item.root_idxs, group))

    def factor(self, group: CoupledGroup, channels: list[int], roots: list[int], width: int) -> torch.Tensor:
        """``[1, width]``: the product of the gates that each channel hangs on, one elsewhere."""
        factor = torch.ones(1, width, dtype=torch.float64)
        for units in group.unit_sets:
            index = torch.tensor([unit_of(group, units, r) for r in roots])
            place = F.one_hot(torch.tensor(channels), width).double()
            factor = factor * (1 + (self.leaves[units.name][:, index].double() - 1) @ place)
        return factor

    def _hook(self, channels: list[int], roots: list[int], group: CoupledGroup) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = args[0]
            if isinstance(module, nn.Linear):
                return (x * self.factor(group, channels, roots, x.shape[-1]),)
            factor = self.factor(group, channels, roots, x.shape[1])
            return (x * factor.reshape(1, -1, *[1] * (x.ndim - 2)),)

        return hook

    def _query_hook(self, group: CoupledGroup, heads: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            width, dims = args[0].shape[-1], group.units.size
            sets = {u.kind: self.leaves[u.name] for u in group.unit_sets}
            channel = torch.arange(heads * dims)
            factor = sets["head dimensions"][:, channel % dims]
            if "heads" in sets:
                factor = factor * sets["heads"][:, channel // dims]
            assert heads * dims == width
            return torch.cat([out[..., :width] * factor, out[..., width:]], -1)

        return hook

    def _written_out(self, module: nn.MultiheadAttention, group: CoupledGroup) -> Callable[..., Any]:
        def forward(x: torch.Tensor, *_args: Any, **_options: Any) -> tuple[torch.Tensor, None]:
            gate = self.leaves[group.units.name][:, torch.arange(module.embed_dim) % group.units.size]
            q, k, v = F.linear(x * gate, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t in (q * gate, k, v))
            context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return F.linear(context * gate, module.out_proj.weight, module.out_proj.bias), None

        return forward

    @contextmanager
    def inserted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for path, channels, roots, group in self._inputs:
                module = self.model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(self._hook(channels, roots, group)).remove)
            for group in self.plan.prunable:
                for layer, heads in heads_of(self.model).items():
                    path = next(p for p, m in self.model.named_modules() if m is layer)
                    if path in group.heads and path.rpartition(".")[2] in ("qkv", "q"):
                        stack.callback(layer.register_forward_hook(self._query_hook(group, heads)).remove)
                for site in group.attentions:
                    module = self.model.get_submodule(site.path)
                    assert isinstance(module, nn.MultiheadAttention)
                    stack.callback(setattr, module, "forward", module.forward)
                    module.forward = self._written_out(module, group)
            yield

    def per_sample(self, x: torch.Tensor, loss: Callable[[torch.Tensor, int], torch.Tensor]) -> dict[str, torch.Tensor]:
        """``s[n, u]``, one sample and one backward pass at a time."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self.leaves}
        with self.inserted():
            for n in range(len(x)):
                total = loss(self.model(x[n : n + 1]), n)
                gradients = torch.autograd.grad(total, list(self.leaves.values()))
                for name, gradient in zip(self.leaves, gradients, strict=True):
                    found[name].append(gradient[0])
        return {name: torch.stack(rows) for name, rows in found.items()}


COUNTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention)


def counted_weights(model: nn.Module) -> list[str]:
    """Names of the weights of layers: no biases, norms, positions or layer scales."""
    paths = {path for path, m in model.named_modules() if isinstance(m, COUNTED)}
    return [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[0] in paths and name.rpartition(".")[2] in ("weight", "in_proj_weight")
    ]


def lost_entries(plan: GatePlan, name: str, unit: int) -> set[int]:
    """Numbers of the weights that are gone when the host has removed the unit.

    Every weight of the model is given a number of its own as its value; those missing afterwards have left.
    """
    numbered = copy.deepcopy(plan.model)
    names = counted_weights(numbered)
    start = 0
    with torch.no_grad():
        for weight in map(numbered.get_parameter, names):
            weight.copy_(torch.arange(start, start + weight.numel()).reshape(weight.shape))
            start += weight.numel()
    mask = torch.zeros(plan.units[name].size, dtype=torch.bool)
    mask[unit] = True
    small = removed(numbered, torch.randn(1, 3, 16, 16, dtype=torch.float64), plan, {name: mask})
    stayed = torch.cat([small.get_parameter(n).detach().flatten() for n in names]).long()
    assert len(stayed.unique()) == len(stayed)
    return set(range(start)) - set(stayed.tolist())
