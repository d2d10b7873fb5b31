"""Which layers of a model must lose the same output channels together, in the terms of NNI's configurations.

Read off Torch-Pruning's dependency graph. NNI's own analysis walks a traced graph from every addition back to the
nearest layers and takes what it finds to be of one width; the graph used here knows which channel follows which.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import call, moved, preserved
from fair_prune_plugins.gates.enumeration import endless_roots
from fair_prune_plugins.gates.removal import build_graph

FORWARD_FAILED = "the model fails on dummy_input ({shapes}): {error}. Pass inputs that the model accepts"

PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
"""Layers with output channels of their own. NNI looks at the 2d convolutions among them only, and prunes them all."""

CONTRACTIONS = (nn.modules.conv._ConvNd, nn.Linear)
"""Where NNI's search for the layers in front of a grouped convolution ends."""


@dataclass(frozen=True)
class OutputCoupling:
    """What is coupled with what, by module path.

    Attributes:
        sets: layers whose output channels are the same channels, one for one; every layer that runs is in exactly one
            set, alone if need be. Paths in the order of ``model.named_modules()``.
        blocks: into how many equal parts a layer's output channels must stay divisible: the least common multiple over
            its own conv groups and those of the grouped convolutions and group norms next behind it. Depthwise
            convolutions count as 1.
        misaligned: pairs of layers that share channels but not one for one: a concatenation, a flattening or a padding
            lies between.
        unread: layers that run but that the graph does not hold, because no gradient arrives there.
        endless: layers that the graph cannot be followed from, with the reason.
    """

    sets: tuple[tuple[str, ...], ...]
    blocks: dict[str, int]
    misaligned: tuple[tuple[str, str], ...]
    unread: tuple[str, ...]
    endless: dict[str, str]


def read_coupling(model: nn.Module, dummy_input: Any) -> OutputCoupling:
    """Run a model once and read which of its layers are coupled at their outputs.

    Args:
        model: any module; it is left exactly as it was.
        dummy_input: a tensor, a tuple or list (positional) or a dict (keywords). Tensors are moved to the model's
            device.

    Raises:
        InputError: the model fails on ``dummy_input``.
        UnsupportedModelError: Torch-Pruning cannot trace the model.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = moved(dummy_input, device=device)
    failures: list[Exception] = []

    def forward(called: nn.Module, given: Any) -> Any:
        try:
            return call(called, given)
        except Exception as error:
            failures.append(error)
            raise

    with preserved(model), _ran(model) as ran:
        model.eval()
        try:
            graph = build_graph(model, inputs, forward_fn=forward)
        except UnsupportedModelError:
            if failures:
                error = f"{type(failures[0]).__name__}: {failures[0]}"
                raise InputError(FORWARD_FAILED.format(shapes=shapes(dummy_input), error=error)) from failures[0]
            raise
        with warnings.catch_warnings():
            # What the host cannot follow is found below, and named.
            warnings.filterwarnings("ignore", "Maximum recursive depth")
            return _read(graph, model, ran)


def shapes(inputs: Any) -> str:
    """The inputs in a message's words: dtype and shape of every tensor."""
    found = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in _tensors(inputs)]
    return ", ".join(found) or f"no tensor, but {type(inputs).__name__}"


def _tensors(inputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


@contextmanager
def _ran(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that run while the context is open."""
    ran: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: ran.add(module)) for m in model.modules()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _read(graph: tp.DependencyGraph, model: nn.Module, ran: set[nn.Module]) -> OutputCoupling:
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, PRODUCERS) and m in ran]
    endless = endless_roots(graph, PRODUCERS)
    sets: list[list[nn.Module]] = []
    placed: set[nn.Module] = set()
    misaligned: dict[frozenset[nn.Module], tuple[str, str]] = {}
    for root in layers:
        if root in placed:
            continue
        together = [root]
        if root in graph.module2node and root not in endless:
            for member, aligned in _members(graph, root).items():
                if aligned and member not in placed:
                    together.append(member)
                elif not aligned:
                    misaligned.setdefault(frozenset((root, member)), (names[root], names[member]))
        placed.update(together)
        sets.append(together)
    order = {module: i for i, module in enumerate(model.modules())}
    return OutputCoupling(
        sets=tuple(tuple(names[m] for m in sorted(found, key=order.__getitem__)) for found in sets),
        blocks={names[m]: block for m, block in _blocks(graph, model, ran).items()},
        misaligned=tuple(misaligned.values()),
        unread=tuple(names[m] for m in layers if m not in graph.module2node),
        endless={names[m]: reason for m, reason in endless.items()},
    )


def _members(graph: tp.DependencyGraph, root: nn.Module) -> dict[nn.Module, bool]:
    """The other layers that produce channels of the root's coupled group, and whether one for one.

    None does where the graph comes back to the root with other channels than it left with.
    """
    pruner = graph.get_pruner_of_module(root)
    width = int(pruner.get_out_channels(root))
    links: dict[nn.Module, set[tuple[int, int | None]]] = {}
    for item in graph.get_pruning_group(root, pruner.prune_out_channels, list(range(width))):
        module = item.dep.target.module
        if isinstance(module, PRODUCERS) and graph.is_out_channel_pruning_fn(item.dep.handler):
            links.setdefault(module, set()).update(zip(item.idxs, item.root_idxs, strict=True))
    same = {(i, i) for i in range(width)}
    sound = links.pop(root) == same
    return {m: sound and found == same and int(graph.get_out_channels(m)) == width for m, found in links.items()}


def _blocks(graph: tp.DependencyGraph, model: nn.Module, ran: set[nn.Module]) -> dict[nn.Module, int]:
    """NNI's ``internal_metric_block`` of every convolution and group norm that runs, and of the layers before them.

    As NNI's ``GroupDependency`` has it: every convolution has one, 1 if it is plain; a linear layer has one only in
    front of conv groups.
    """
    blocks: dict[nn.Module, int] = {}
    for module in model.modules():
        if module not in ran:
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            groups = 1 if module.groups == module.out_channels else module.groups
        elif isinstance(module, nn.GroupNorm):
            groups = module.num_groups
        else:
            continue
        before = _layers_before(graph, module) if groups > 1 and module in graph.module2node else ()
        for layer in (module, *before):
            blocks[layer] = math.lcm(blocks.get(layer, 1), groups)
    return blocks


def _layers_before(graph: tp.DependencyGraph, module: nn.Module) -> list[nn.Module]:
    """The nearest convolutions and linear layers that a layer's input comes from."""
    found: list[nn.Module] = []
    stack = list(graph.module2node[module].inputs)
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node.module, CONTRACTIONS):
            found.append(node.module)
            continue
        stack.extend(before for before in node.inputs if before not in seen)
        seen.update(node.inputs)
    return found
