"""Following every channel of a model from where it is made to where it is read, on the host's dependency graph.

The same walk as ``DependencyGraph.get_pruning_group``, with two differences: index lists are arrays, and what was
visited is looked up and not searched for, which takes a twentieth of the time on DenseNet-121. It starts from every
output channel that no earlier walk has reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn
from torch_pruning import ops
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency.index_mapping import (
    _ConcatIndexMapping,
    _FlattenIndexMapping,
    _SliceIndexMapping,
    _SplitIndexMapping,
)

from fair_prune_plugins.gates.enumeration import TIMES_THE_WIDEST, VISITS_PER_DEPENDENCY

ENDLESS = "Torch-Pruning misreads some reshape behind it, as that of windowed attention"
IS_OUTPUT = "they are outputs of the model"
UNKNOWN_CHANNELS = "the host cannot say which channels follow which"
UNEVEN_DEPTHWISE = "{layer} reads several inputs for each output, one conv group each"
MULTI_HEAD = "{layer} is an nn.MultiheadAttention, of which nothing can be removed by masks"

Indices = NDArray[np.int64]

ROOTS = (ops.TORCH_CONV, nn.Linear, nn.Embedding, nn.LSTM)
"""Modules whose outputs are followed."""

CONTRACTING = ("bmm", "baddbmm", "scaleddotproduct", "einsum")
"""Operations that contract channels without being a layer, by the beginning of autograd's name."""


@dataclass
class Side:
    """The inputs or the outputs of a module or parameter, and which coupled channels run through them.

    Attributes:
        module: the module, or a bare parameter.
        is_output: its outputs; also both sides of what passes channels through (norms, depthwise convolutions).
        channels: int64 ``[k]``, channel numbers.
        roots: int64 ``[k]``, the root that each of them belongs to.
    """

    module: Any
    is_output: bool
    channels: Indices
    roots: Indices


@dataclass
class CoupledChannels:
    """All coupled channels of a model. A *root* is one set of channels that go together, numbered over the model.

    Attributes:
        sides: what the channels run through.
        group: int64 ``[roots]``, the coupled group of a root.
        names: path of the layer that each coupled group was followed from.
        fixed: coupled groups that must stay as they are, and why.
        contracted: coupled groups whose channels are also contracted without a layer (attention).
    """

    sides: list[Side]
    group: Indices
    names: list[str]
    fixed: dict[int, str]
    contracted: set[int]


def follow(graph: tp.DependencyGraph) -> CoupledChannels:
    """Follow every output channel of every layer through the model, where this comes to an end.

    Args:
        graph: newly built; nothing has been pruned with it.
    """
    return _Walk(graph).result()


class _Walk:
    def __init__(self, graph: tp.DependencyGraph) -> None:
        self.graph = graph
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.fixed: dict[int, str] = {}
        self.contracted: set[int] = set()
        self._found: dict[tuple[Any, bool], list[tuple[Indices, Indices]]] = {}
        self._edges = {node: self._edges_of(node) for node in graph.module2node.values()}
        widths = [w for node in self._edges for w in (self._width(node, True), self._width(node, False))]
        self._widest = max(widths, default=0)
        self._most = VISITS_PER_DEPENDENCY * sum(len(node.dependencies) for node in self._edges)

    def result(self) -> CoupledChannels:
        skipped = set(self.graph.IGNORED_LAYERS_IN_TRACING)
        for name, module in self.graph.model.named_modules():
            if isinstance(module, ROOTS) and module in self.graph.module2node and module not in skipped:
                self._from(name, self.graph.module2node[module])
        sides = []
        of_root = np.repeat(np.arange(len(self.sizes)), self.sizes).astype(np.int64)
        for (module, is_output), found in self._found.items():
            channels, roots = (np.concatenate(parts) for parts in zip(*found, strict=True))
            known = channels < (self._width(self.graph.module2node[module], is_output) or np.inf)
            # The host takes some concatenations of a split's halves for wider than they are.
            self.fixed |= {int(g): UNKNOWN_CHANNELS for g in np.unique(of_root[roots[~known]])}
            sides.append(Side(module, is_output, *_distinct(channels[known], roots[known])))
        return CoupledChannels(sides, of_root, self.names, self.fixed, self.contracted)

    def _width(self, node: Any, is_output: bool) -> int:
        return int((self.graph.get_out_channels if is_output else self.graph.get_in_channels)(node) or 0)

    def _edges_of(self, node: Any) -> dict[bool, list[tuple[Any, bool, list[Any]]]]:
        """Where a node's outputs (``True``) and inputs lead: target, whether to its outputs, index mappings."""
        edges: dict[bool, list[tuple[Any, bool, list[Any]]]] = {True: [], False: []}
        for dep in node.dependencies:
            source = self._is_output(node, dep.trigger)
            edges[source].append((dep.target, self._is_output(dep.target, dep.handler), dep.index_mapping))
        return edges

    def _is_output(self, node: Any, fn: Any) -> bool:
        """Whether a pruning function is one of outputs; what passes channels through has only these."""
        return bool(fn == self.graph.get_pruner_of_module(node.module).prune_out_channels)

    def _from(self, name: str, root: Any) -> None:
        covered = [channels for channels, _ in self._found.get((root.module, True), [])]
        start = np.setdiff1d(np.arange(self._width(root, True)), np.concatenate(covered) if covered else [])
        if not len(start):
            return
        group, offset = len(self.names), sum(self.sizes)
        self.names.append(name)
        self.sizes.append(len(start))
        stack: list[tuple[Any, bool, Indices, Indices]] = [(root, True, start, offset + np.arange(len(start)))]
        seen = {_key(*stack[0])}
        visits, visited = 0, []
        while stack:
            node, is_output, channels, roots = stack.pop()
            visited.append((node, is_output, channels, roots))
            for target, side, mappings in self._edges[node][is_output]:
                arriving: tuple[Indices, Indices] | None = channels, roots
                for mapping in mappings:
                    if mapping is not None and arriving is not None:
                        arriving = _mapped(mapping, *arriving)
                if arriving is None:
                    self.fixed[group] = UNKNOWN_CHANNELS
                    continue
                key = _key(target, side, *arriving)
                if not len(arriving[0]) or key in seen:
                    continue
                seen.add(key)
                visits += 1
                if visits > self._most or len(arriving[0]) > TIMES_THE_WIDEST * self._widest:
                    self.fixed[group] = ENDLESS
                    self._found.setdefault((root.module, True), []).append(visited[0][2:])
                    return
                stack.append((target, side, *arriving))
        for visit in visited:
            self._visit(group, *visit)

    def _visit(self, group: int, node: Any, is_output: bool, channels: Indices, roots: Indices) -> None:
        module = node.module
        if node.type == ops.OPTYPE.OUTPUT or (is_output and not node.outputs and node.type != ops.OPTYPE.PARAMETER):
            self.fixed[group] = IS_OUTPUT
        if node.type == ops.OPTYPE.ELEMENTWISE and str(getattr(module, "_grad_fn", "")).lower().startswith(CONTRACTING):
            self.contracted.add(group)
        if not isinstance(module, nn.Parameter) and not self.graph._module2name.get(module):
            return  # an operation, or a model that is a single layer
        if node.type == ops.OPTYPE.DEPTHWISE_CONV and module.in_channels != module.out_channels:
            self.fixed.setdefault(group, UNEVEN_DEPTHWISE.format(layer=self.graph._module2name[module]))
        if isinstance(module, nn.MultiheadAttention):
            self.fixed.setdefault(group, MULTI_HEAD.format(layer=self.graph._module2name[module]))
        self._found.setdefault((module, is_output), []).append((channels, roots))


def _key(node: Any, is_output: bool, channels: Indices, roots: Indices) -> tuple[int, bool, bytes, bytes]:
    return id(node), is_output, channels.tobytes(), roots.tobytes()


def _distinct(channels: Indices, roots: Indices) -> tuple[Indices, Indices]:
    """Every pair of channel and root once, sorted."""
    order = np.lexsort((roots, channels))
    channels, roots = channels[order], roots[order]
    new = np.ones(len(channels), bool)
    new[1:] = (np.diff(channels) != 0) | (np.diff(roots) != 0)
    return channels[new], roots[new]


def _mapped(mapping: Any, channels: Indices, roots: Indices) -> tuple[Indices, Indices] | None:
    """What one of the host's index mappings makes of channels; ``None`` where it loses track of them."""
    reverse = getattr(mapping, "reverse", False)
    if isinstance(mapping, _FlattenIndexMapping):
        stride = mapping._stride
        if reverse:
            return _distinct(channels // stride, roots)
        return (channels[:, None] * stride + np.arange(stride)).ravel(), roots.repeat(stride)
    if isinstance(mapping, _ConcatIndexMapping | _SplitIndexMapping):
        if len(mapping.offset) < 2:  # the gates of an LSTM that autograd sees the inside of
            return None
        low, high = mapping.offset[0], mapping.offset[1]
        if reverse == isinstance(mapping, _SplitIndexMapping):
            return channels + low, roots
        here = (channels >= low) & (channels < high)
        return channels[here] - low, roots[here]
    if isinstance(mapping, _SliceIndexMapping):
        if reverse:
            return channels * mapping.step + mapping.start, roots
        since = channels - mapping.start
        here = (since >= 0) & (channels < mapping.end) & (since % mapping.step == 0)
        return since[here] // mapping.step, roots[here]
    found = mapping([_HybridIndex(idx=int(c), root_idx=int(r)) for c, r in zip(channels, roots, strict=True)])
    if any(i.root_idx is None for i in found):
        return None
    return np.array([i.idx for i in found], np.int64), np.array([i.root_idx for i in found], np.int64)
