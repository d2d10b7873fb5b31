"""Before the host enumerates coupled groups: does it come to an end?

Torch-Pruning follows channels from layer to layer with a list of indices. Where it misreads a reshape (windows and
heads of Swin-like attention) every round trip multiplies the list, and it goes on until memory ends. Here the same walk
is made with a bound: a list that is many times longer than the widest layer is wide belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch_pruning as tp
from torch import nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency.index_mapping import update_index_mapping

from fair_prune_plugins.errors import UnsupportedModelError

ENDLESS = (
    "Torch-Pruning cannot enumerate the coupled groups of {layers}: {reason}. It would go on until memory ends. Add "
    "these layers to ignored_layers to prune the rest of the model"
)
TOO_WIDE = (
    "it follows them to {width} channels in {place}, and no layer is wider than {widest}; it misreads the reshapes of "
    "windowed attention in this way"
)
TOO_MANY = "it follows them along {visits} dependencies, and the model has {dependencies}"

TIMES_THE_WIDEST = 4
"""No list of indices should be longer than the widest layer; some misread reshapes end a little above, harmlessly."""

VISITS_PER_DEPENDENCY = 10
"""A dependency is visited once per list of indices that arrives there. The most in torchvision's networks, on average
over all dependencies of a model, is about one."""

_KNOWN: WeakKeyDictionary[tp.DependencyGraph, dict[nn.Module, str]] = WeakKeyDictionary()
"""Endless layers found before, which need not be walked from again: pruning does not mend a reshape."""


def endless_roots(graph: tp.DependencyGraph, root_module_types: Sequence[type[nn.Module]]) -> dict[nn.Module, str]:
    """The layers from which the host's enumeration would not come to an end, each with the reason.

    Time and memory are those of the host's own enumeration of a sound model at most, typically a tenth.

    Args:
        graph: the host's graph of a model.
        root_module_types: layer types that a coupled group may be rooted in.
    """
    update_index_mapping(graph)
    walk = _Walk(graph)
    endless = _KNOWN.setdefault(graph, {})
    settled: set[Any] = set()
    skipped = set(graph.IGNORED_LAYERS_IN_TRACING)
    types = tuple(root_module_types)
    for module in list(graph.module2node):
        if not isinstance(module, types) or module in skipped or module in settled or module in endless:
            continue
        reason = walk.from_output_of(module)
        if reason:
            endless[module] = reason
        else:
            settled |= walk.produced
    return dict(endless)


def roots_to_avoid(
    graph: tp.DependencyGraph, root_module_types: Sequence[type[nn.Module]], ignored_layers: Iterable[nn.Module] = ()
) -> list[nn.Module]:
    """The ignored layers that the host's enumeration must be kept away from, if that is all it takes.

    Raises:
        UnsupportedModelError: the enumeration would not end at a layer that is not ignored.
    """
    endless = endless_roots(graph, root_module_types)
    ignored = set(ignored_layers)
    wanted = {m: reason for m, reason in endless.items() if m not in ignored}
    if wanted:
        layers = ", ".join(graph._module2name[m] for m in wanted)
        raise UnsupportedModelError(ENDLESS.format(layers=layers, reason=next(iter(wanted.values()))))
    return list(endless)


class _Walk:
    """The host's walk from a root (``DependencyGraph.get_pruning_group``), bounded and without building the group."""

    def __init__(self, graph: tp.DependencyGraph) -> None:
        nodes = list(graph.module2node.values())
        widths = (width(node) for node in nodes for width in (graph.get_out_channels, graph.get_in_channels))
        self.graph = graph
        self.widest = max((int(w) for w in widths if w is not None), default=0)
        self.dependencies = sum(len(node.dependencies) for node in nodes)
        self.produced: set[Any] = set()

    def from_output_of(self, module: nn.Module) -> str:
        """Walk with all output channels of ``module``: empty, or why it does not end.

        Leaves in ``produced`` the modules whose outputs belong to the group.
        """
        pruner = self.graph.get_pruner_of_module(module)
        channels = None if pruner is None else pruner.get_out_channels(module)
        self.produced = set()
        if channels is None:
            return ""
        root = self.graph.module2node[module]
        start = [_HybridIndex(idx=i, root_idx=i) for i in range(channels)]
        stack = [(root, pruner.prune_out_channels, start)]
        seen = {(root, pruner.prune_out_channels, hash(tuple(start)))}
        visits, most = 0, VISITS_PER_DEPENDENCY * self.dependencies
        while stack:
            node, handler, idxs = stack.pop()
            if self.graph.is_out_channel_pruning_fn(handler):
                self.produced.add(node.module)
            for dep in node.dependencies:
                if not dep.is_triggered_by(handler):
                    continue
                arriving = idxs
                for mapping in dep.index_mapping:
                    if mapping is not None:
                        arriving = mapping(arriving)
                    if len(arriving) > TIMES_THE_WIDEST * self.widest:
                        place = self._place(dep.target)
                        return TOO_WIDE.format(width=len(arriving), place=place, widest=self.widest)
                key = (dep.target, dep.handler, hash(tuple(arriving)))
                if not arriving or key in seen:
                    continue
                seen.add(key)
                stack.append((dep.target, dep.handler, arriving))
                visits += 1
                if visits > most:
                    return TOO_MANY.format(visits=visits, dependencies=self.dependencies)
        return ""

    def _place(self, node: Any) -> str:
        """A node in the user's words: its module or parameter, or else the nearest one before it."""
        level, seen = [node], {node}
        while level:
            for found in level:
                module = found.module
                names = self.graph._param_to_name if isinstance(module, nn.Parameter) else self.graph._module2name
                if names.get(module):
                    return names[module] if found is node else f"an operation behind {names[module]}"
            level = [i for n in level for i in n.inputs if i not in seen]
            seen.update(level)
        return "an operation"
