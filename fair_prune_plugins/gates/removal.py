"""Removing units for real: the host's dependency graph, with norm pruners that are right.

Torch-Pruning 1.6.1's own LayerNorm pruner leaves its keep list unsorted when few channels are kept and so permutes
weights
silently, and ``nn.RMSNorm`` has no pruner at all. The two here replace them wherever this package builds a graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning import ops
from torch_pruning.pruner.function import BasePruningFunc

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, output_tensors

NO_GRAPH = (
    "Torch-Pruning cannot read the model's structure: {error}. It traces autograd through ordinary layers and tensor "
    "operations; channel shuffles and forwards that cut the graph are known to stop it"
)

HEAD_COUNT_NAMES = ("num_heads", "n_heads", "n_head", "heads", "nhead", "num_attention_heads")
HEAD_SIZE_NAMES = ("head_dim", "dim_head", "head_size", "attention_head_size", "d_head")
INNER_SIZE_NAMES = ("inner_dim", "attn_dim", "all_head_size")


class LastDimensionNormPruner(BasePruningFunc):  # type: ignore[misc]
    """Prunes a norm over the last dimension (``nn.LayerNorm``, ``nn.RMSNorm``), keeping the order of what stays."""

    TARGET_MODULES = (nn.LayerNorm, nn.RMSNorm)

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        """Drop ``idxs`` from the last normalised dimension."""
        gone = set(idxs)
        keep = [i for i in range(layer.normalized_shape[-1]) if i not in gone]
        for name in ("weight", "bias"):
            parameter = getattr(layer, name, None)
            if parameter is not None:
                setattr(layer, name, self._prune_parameter_and_grad(parameter, keep, -1))
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        return layer  # type: ignore[no-any-return]

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        """Size of the last normalised dimension."""
        return int(layer.normalized_shape[-1])

    def get_in_channels(self, layer: Any) -> int:
        """Size of the last normalised dimension."""
        return int(layer.normalized_shape[-1])


def with_norm_pruners(model: nn.Module, customized: Mapping[Any, BasePruningFunc] | None) -> dict[Any, BasePruningFunc]:
    """The user's customised pruners, plus ours for every LayerNorm and RMSNorm type in the model that they leave alone.

    The host looks pruners up by exact class, so subclasses (channels-first LayerNorms) are registered one by one.
    """
    pruners = dict(customized or {})
    for module in model.modules():
        if isinstance(module, LastDimensionNormPruner.TARGET_MODULES) and type(module) not in pruners:
            pruners[type(module)] = LastDimensionNormPruner()
    return pruners


def traceable_outputs(outputs: Any) -> list[torch.Tensor]:
    """Output tensors that the graph can be traced from."""
    return [t for t in output_tensors(outputs) if t.grad_fn is not None]


def build_graph(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFn | None = None,
    output_transform: Any = None,
    customized_pruners: Mapping[Any, BasePruningFunc] | None = None,
    unwrapped_parameters: Sequence[tuple[nn.Parameter, int]] | None = None,
    ignored_params: Sequence[nn.Parameter] = (),
) -> tp.DependencyGraph:
    """The host's dependency graph with our norm pruners; frozen parameters are traced like all others.

    The model must be in eval mode; its ``requires_grad`` flags are put back.

    Raises:
        UnsupportedModelError: the host cannot trace it.
    """
    # The host calls model(*inputs) first, which would unroll a bare tensor along its batch.
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) and forward_fn is None else example_inputs
    frozen = [p for p in model.parameters() if not p.requires_grad]
    hooks = [(m, set(m._forward_hooks)) for m in model.modules()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            # "Unwrapped parameters detected": the plan lists them as members, and says so in its own words.
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=forward_fn,
                output_transform=traceable_outputs if output_transform is None else output_transform,
                customized_pruners=with_norm_pruners(model, customized_pruners),
                unwrapped_parameters=None if unwrapped_parameters is None else list(unwrapped_parameters),
                ignored_params=list(ignored_params),
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedModelError(NO_GRAPH.format(error=f"{type(error).__name__}: {error}")) from error
    finally:
        for p in frozen:
            p.requires_grad_(False)
        for module, before in hooks:  # the host leaves its own behind when the model fails
            for key in module._forward_hooks.keys() - before:
                del module._forward_hooks[key]


def channel_groups(graph: tp.DependencyGraph, model: nn.Module) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """How many conv groups or norm groups each layer's inputs and outputs fall into (depthwise convolutions have
    none).
    """
    ins: dict[nn.Module, int] = {}
    outs: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, ops.TORCH_CONV) and module.groups == module.out_channels:
            continue
        pruner = graph.get_pruner_of_module(module)
        if pruner is None:
            continue
        if pruner.get_in_channel_groups(module) > 1:
            ins[module] = pruner.get_in_channel_groups(module)
        if pruner.get_out_channel_groups(module) > 1:
            outs[module] = pruner.get_out_channel_groups(module)
    return ins, outs


def remove(graph: tp.DependencyGraph, group: Any) -> None:
    """Remove a coupled group's indices; parameters that were frozen stay frozen."""
    frozen = [
        (item.dep.target.module, name)
        for item in group
        if isinstance(item.dep.target.module, nn.Module)
        for name, p in item.dep.target.module.named_parameters()
        if not p.requires_grad
    ]
    bare = [
        graph._param_to_name[item.dep.target.module]
        for item in group
        if isinstance(item.dep.target.module, nn.Parameter) and not item.dep.target.module.requires_grad
    ]
    group.prune()
    for name in bare:
        graph.model.get_parameter(name).requires_grad_(False)
    for module, name in frozen:
        module.get_parameter(name).requires_grad_(False)


def update_attention_owners(
    model: nn.Module, layers: Sequence[tuple[nn.Linear, int, int]], before: Mapping[nn.Linear, tuple[int, int]]
) -> None:
    """Tell the modules that own attention projections their new head count and sizes.

    Attention modules keep these as plain attributes and reshape by them, so a pruned projection alone breaks their
    forward.

    Args:
        model: the pruned model.
        layers: ``(projection, heads, head size)`` after pruning.
        before: ``(heads, head size)`` of each projection before.
    """
    owners = {child: module for module in model.modules() for child in module.children()}
    for layer, heads, size in layers:
        owner = owners.get(layer)
        if owner is None or isinstance(owner, nn.Sequential | nn.ModuleList):
            continue
        old_heads, old_size = before[layer]
        for names, old, new in (
            (HEAD_COUNT_NAMES, old_heads, heads),
            (HEAD_SIZE_NAMES, old_size, size),
            (INNER_SIZE_NAMES, old_heads * old_size, heads * size),
        ):
            for name in names:
                value = owner.__dict__.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value == old:
                    setattr(owner, name, new)
