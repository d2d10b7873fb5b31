"""Making layers narrower: all that goes of a layer at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.nni.choosing import Gone
from fair_prune_plugins.nni.links import CONVOLUTIONS, TRANSPOSED, conv_groups, passes_through, widths


def narrow(graph: tp.DependencyGraph, gone: Gone) -> None:
    """Take the channels that go out of the model's modules, in place.

    Modules stay the objects that they are; they get new parameters and buffers and remember new widths. Gradients are
    narrowed with their parameters; what was frozen stays frozen.

    Args:
        graph: the host's graph of the model, for its knowledge of layer types.
        gone: channels that go.
    """
    sides: dict[Any, dict[bool, list[int]]] = {}
    for (module, is_output), channels in gone.items():
        sides.setdefault(module, {})[is_output] = channels.tolist()
    names = {p: n for n, p in graph.model.named_parameters()}
    with torch.no_grad():
        for module, going in sides.items():
            if isinstance(module, nn.Parameter):
                _narrow_parameter(graph, module, names[module], going[True])
            elif isinstance(module, CONVOLUTIONS):
                _narrow_convolution(module, going)
            else:
                _narrow_module(graph, module, going)


def kept(width: int, going: Sequence[int]) -> torch.Tensor:
    """int64, the numbers below ``width`` that do not go."""
    keep = torch.ones(width, dtype=torch.bool)
    keep[list(going)] = False
    return keep.nonzero().flatten()


def kept_weight(layer: nn.Module, values: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What stays of a weight, or of its mask.

    Args:
        layer: one of :data:`~fair_prune_plugins.nni.links.PRODUCERS`, not narrowed yet.
        values: in the shape of its weight.
        outputs: int64, output channels that stay.
        inputs: int64, input channels that stay; of both every conv group keeps equally many.
    """
    outputs, inputs = outputs.to(values.device), inputs.to(values.device)
    if isinstance(layer, nn.Embedding):
        return values.index_select(1, outputs)
    if passes_through(layer):
        return values.index_select(0, outputs)
    groups, (ins, outs) = conv_groups(layer), widths(layer)
    if isinstance(layer, TRANSPOSED):
        # Its rows are inputs; those of a conv group have that conv group's outputs.
        return _of_groups(values, inputs, outputs, groups, outs // groups)
    return _of_groups(values, outputs, inputs, groups, ins // groups)


def _of_groups(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """``values [rows, columns of a conv group, ...]`` with the rows that stay, each with its conv group's columns.

    Args:
        values: a weight.
        rows: int64, those that stay.
        columns: int64, those that stay, numbered over all conv groups.
        groups: conv groups.
        size: columns of a conv group in ``values``.
    """
    values = values if len(rows) == values.shape[0] else values.index_select(0, rows)
    if len(columns) == groups * size:
        return values
    if groups == 1:
        return values.index_select(1, columns)
    own = (columns.reshape(groups, -1) % size).repeat_interleave(len(rows) // groups, 0)
    index = own.reshape(*own.shape, *[1] * (values.ndim - 2)).expand(*own.shape, *values.shape[2:])
    return values.gather(1, index)


def _narrow_convolution(layer: nn.modules.conv._ConvNd, going: dict[bool, list[int]]) -> None:
    passes = passes_through(layer)
    outputs = kept(layer.out_channels, going.get(True, ()))
    inputs = outputs if passes else kept(layer.in_channels, going.get(False, ()))
    layer.weight = _selected(layer.weight, lambda values: kept_weight(layer, values, outputs, inputs))
    if layer.bias is not None:
        layer.bias = _selected(layer.bias, lambda values: values.index_select(0, outputs.to(values.device)))
    layer.in_channels, layer.out_channels = len(inputs), len(outputs)
    layer.groups = len(outputs) if passes else layer.groups


def _narrow_module(graph: tp.DependencyGraph, module: nn.Module, going: dict[bool, list[int]]) -> None:
    """Any other layer, as the host does it."""
    pruner = graph.get_pruner_of_module(module)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    for is_output, channels in going.items():
        (pruner.prune_out_channels if is_output else pruner.prune_in_channels)(module, channels)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)


def _narrow_parameter(graph: tp.DependencyGraph, parameter: nn.Parameter, name: str, going: Sequence[int]) -> None:
    dim = graph.module2node[parameter].pruning_dim
    staying = kept(parameter.shape[dim], going).to(parameter.device)
    owner, _, own = name.rpartition(".")
    narrower = _selected(parameter, lambda values: values.index_select(dim, staying))
    setattr(graph.model.get_submodule(owner), own, narrower)


def _selected(parameter: torch.Tensor, select: Callable[[torch.Tensor], torch.Tensor]) -> nn.Parameter:
    narrower = nn.Parameter(select(parameter.data).clone(), parameter.requires_grad)
    if parameter.grad is not None:
        narrower.grad = select(parameter.grad).clone()
    return narrower
