"""Coupled groups and their units, read off the host's dependency graph.

A *coupled group* is what must lose the same channels together. Its *units* are what the pruner removes together: one
root channel, repeated over conv groups, norm groups or heads. Everything is keyed by module path, never by object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning import ops

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.enumeration import roots_to_avoid
from fair_prune_plugins.gates.norms import MIXING_NORMS

Status = Literal["exact", "approximate", "unsupported", "unproved"]
UnitKind = Literal["channels", "head dimensions", "heads"]

OUTPUT = "it is an output of the model"
"""Why a coupled group that reaches an output is left alone."""

GROUPED_QUERY = (
    "{layer}: query and key/value projections have different head counts ({heads}); grouped-query attention cannot "
    "be gated. "
    "Add its projections to ignored_layers"
)


@dataclass(frozen=True)
class Site:
    """A module's input or output (or a parameter) and which of its channels belong to a coupled group.

    Attributes:
        path: module path, or parameter name.
        channels: int64 ``[k]``, indices into that module's input or output channels.
        roots: int64 ``[k]``, the root channel each of them follows.
        width: number of input or output channels, as a user's customised pruner counts them; ``None`` for all others.
    """

    path: str
    channels: torch.Tensor
    roots: torch.Tensor
    width: int | None = None

    def within(self, channels: torch.Tensor) -> Site:
        """The site's part among ``channels``."""
        here = torch.isin(self.channels, channels)
        return replace(self, channels=self.channels[here], roots=self.roots[here])


@dataclass(frozen=True)
class SizeAttribute:
    """A plain number that a module remembers and that is the width of a layer.

    Attributes:
        path: path of the module that remembers it.
        name: its attribute; ``config.name`` for a number of the module's configuration object.
        layer: path of the layer whose width it is.
        of_output: whether it is the layer's number of output channels, or of input channels.
    """

    path: str
    name: str
    layer: str
    of_output: bool


@dataclass(frozen=True)
class UnitSet:
    """One way to cut a coupled group into units.

    An attention group has two, head dimensions and whole heads, and each needs statistics of its own: absolute values
    and squares are taken after summing over a unit, so one cannot be had from the other.

    Attributes:
        name: key in the plan and in the statistics.
        kind: what a unit is.
        size: number of units.
        of_root: int64 ``[root channels]``, the unit each root channel belongs to.
    """

    name: str
    kind: UnitKind
    size: int
    of_root: torch.Tensor


@dataclass(frozen=True)
class CoupledGroup:
    """A coupled group: where its channels are produced, mixed and consumed, and what the proof said of it.

    Attributes:
        name: path of the root module; with ``"[in]"`` where the root is a layer's input.
        root: path of the root module.
        root_is_output: whether the root is the module's output side.
        channels: number of root channels.
        unit_sets: how they fall into units.
        producers: convolution, linear and embedding outputs.
        consumers: inputs of the layers that contract over the channels.
        norms: norms that take statistics over the channels.
        attentions: ``nn.MultiheadAttention`` modules, which are all of these at once.
        parameters: bare parameters (positional embeddings, layer scales).
        heads: projections of a hand-written attention that the heads live in, ``path -> heads``.
        reaches_output: the channels arrive at an output of the model without a consumer.
        ignored: the user asked to leave it alone.
        frozen: members whose parameters do not require a gradient.
        sizes: plain numbers elsewhere in the model that follow the width of its members.
        status: whether closing is equal to removing.
        error: largest relative difference that the proof found, between closed and removed or between closed everywhere
            and closed at the consumers; ``None`` without one.
        reason: what makes it approximate or unsupported, or empty.
    """

    name: str
    root: str
    root_is_output: bool
    channels: int
    unit_sets: tuple[UnitSet, ...]
    producers: tuple[Site, ...]
    consumers: tuple[Site, ...]
    norms: tuple[Site, ...]
    attentions: tuple[Site, ...]
    parameters: tuple[Site, ...]
    heads: Mapping[str, int] = field(default_factory=dict)
    reaches_output: bool = False
    ignored: bool = False
    frozen: tuple[str, ...] = ()
    sizes: tuple[SizeAttribute, ...] = ()
    status: Status = "exact"
    error: float | None = None
    reason: str = ""

    @property
    def units(self) -> UnitSet:
        """The finest unit set: channels, or head dimensions of an attention."""
        return self.unit_sets[0]

    @property
    def prunable(self) -> bool:
        """Whether units of it may be removed: supported, wanted, not an output, and more than one."""
        return self.status != "unsupported" and not self.ignored and not self.reaches_output and self.units.size > 1

    def parts(self, units: UnitSet) -> list[torch.Tensor]:
        """Units that belong to a layer which holds only some of them (a concatenation's inputs): one of each part
        must stay.

        Returns:
            int64 unit numbers, one tensor per such layer.
        """
        held = (
            units.of_root[s.roots].unique() for s in (*self.producers, *self.consumers, *self.norms, *self.attentions)
        )
        return [part for part in held if len(part) < units.size]

    def with_verdict(self, status: Status, error: float | None, reason: str = "") -> CoupledGroup:
        """The same group with another verdict of the proof."""
        return replace(self, status=status, error=error, reason=reason)

    def judged_like(self, earlier: CoupledGroup) -> CoupledGroup:
        """The same group with what a proof found out about it before it was pruned."""
        return replace(self, sizes=earlier.sizes, status=earlier.status, error=earlier.error, reason=earlier.reason)


@dataclass(frozen=True)
class PruningSettings:
    """What a pruner knows beyond its graph.

    Attributes:
        ignored_layers: modules whose outputs must keep their width.
        root_module_types: layer types that a coupled group may be rooted in.
        in_channel_groups: conv or norm groups of a layer's inputs.
        out_channel_groups: conv groups, norm groups or heads of a layer's outputs.
        num_heads: attention projections and their head counts.
        prune_num_heads: whether whole heads are removed.
    """

    ignored_layers: Sequence[nn.Module] = ()
    root_module_types: tuple[type[nn.Module], ...] = (ops.TORCH_CONV, ops.TORCH_LINEAR, ops.TORCH_LSTM)
    in_channel_groups: Mapping[nn.Module, int] = field(default_factory=dict)
    out_channel_groups: Mapping[nn.Module, int] = field(default_factory=dict)
    num_heads: Mapping[nn.Module, int] = field(default_factory=dict)
    prune_num_heads: bool = False


def root_key(path: str, is_output: bool) -> str:
    """Name of the coupled group rooted at a module's output, or at its input."""
    return path if is_output else f"{path}[in]"


def host_groups(graph: tp.DependencyGraph, settings: PruningSettings) -> Iterator[Any]:
    """All host groups as its pruners rank them: attention groups re-rooted at a consumer, as the host does."""
    types = tuple(settings.root_module_types)
    endless = roots_to_avoid(graph, types, settings.ignored_layers)
    for group in graph.get_all_groups(ignored_layers=endless, root_module_types=types):
        if attention_layers(graph, group, settings):
            downstream = None
            for dep, idxs in group:
                if isinstance(dep.target.module, types) and graph.is_in_channel_pruning_fn(dep.handler):
                    downstream = (dep, idxs)
            if downstream is None:
                continue
            dep, idxs = downstream
            yield graph.get_pruning_group(dep.target.module, dep.handler, idxs)
        else:
            yield group


def attention_layers(graph: tp.DependencyGraph, group: Any, settings: PruningSettings) -> list[nn.Module]:
    """The modules of a host group whose outputs are attention heads."""
    return [
        dep.target.module
        for dep, _ in group
        if graph.is_out_channel_pruning_fn(dep.handler) and dep.target.module in settings.num_heads
    ]


def channel_repeat(graph: tp.DependencyGraph, group: Any, settings: PruningSettings) -> int:
    """Over how many conv groups, norm groups or heads the root channels repeat."""
    found = [1]
    for dep, _ in group:
        is_out = graph.is_out_channel_pruning_fn(dep.handler)
        table = settings.out_channel_groups if is_out else settings.in_channel_groups
        if dep.target.module in table:
            found.append(table[dep.target.module])
        if is_out and dep.target.module in settings.num_heads:
            found.append(settings.num_heads[dep.target.module])
    return max(found)


def group_key(graph: tp.DependencyGraph, group: Any) -> str:
    """Name of a host group: its root module's path and side."""
    dep = group[0].dep
    return root_key(graph._module2name[dep.target.module], is_output_root(graph, dep))


def is_output_root(graph: tp.DependencyGraph, dep: Any) -> bool:
    """Whether a dependency prunes its target's outputs (pass-through layers count as outputs)."""
    return bool(graph.is_out_channel_pruning_fn(dep.handler))


def read_groups(graph: tp.DependencyGraph, settings: PruningSettings) -> list[CoupledGroup]:
    """Every coupled group of the model, ignored and output groups included (and marked).

    Raises:
        UnsupportedModelError: grouped-query attention among ``settings.num_heads``.
    """
    return [read_group(graph, group, settings) for group in host_groups(graph, settings)]


def read_group(graph: tp.DependencyGraph, group: Any, settings: PruningSettings) -> CoupledGroup:
    """One host group as a coupled group; see :func:`read_groups`."""
    parameter_names = {p: n for n, p in graph.model.named_parameters()}
    ignored = set(settings.ignored_layers)
    root = group[0].dep
    path = graph._module2name[root.target.module]
    channels = len(group[0].idxs)
    sites: dict[str, list[Site]] = {"producers": [], "consumers": [], "norms": [], "attentions": [], "parameters": []}
    reason = ""
    reaches_output = False
    is_ignored = False
    frozen: list[str] = []
    heads: dict[str, int] = {}
    for item in group:
        node = item.dep.target
        module = node.module
        out = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        if node.type == ops.OPTYPE.OUTPUT or (out and not node.outputs and node.type != ops.OPTYPE.PARAMETER):
            reaches_output = True
        role = _role(graph, node, module, out)
        if role is None:
            continue
        if out and module in ignored:
            is_ignored = True
        name = parameter_names[module] if isinstance(module, nn.Parameter) else graph._module2name[module]
        if any(r is None for r in item.root_idxs):
            reason = f"the host cannot say which of {name}'s channels follow which"
            continue
        sites[role].append(
            Site(
                name,
                torch.tensor(item.idxs, dtype=torch.int64),
                torch.tensor(item.root_idxs, dtype=torch.int64),
                _customised_width(graph, node, out) if role in ("producers", "consumers") else None,
            )
        )
        own = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            frozen.append(name)
        if out and module in settings.num_heads and not isinstance(module, nn.MultiheadAttention):
            heads[name] = settings.num_heads[module]
    if len(set(heads.values())) > 1:
        raise UnsupportedModelError(GROUPED_QUERY.format(layer=path, heads=dict(heads)))
    repeat = channel_repeat(graph, group, settings)
    name = root_key(path, is_output_root(graph, root))
    unit_sets = _unit_sets(name, channels, repeat, heads, settings.prune_num_heads)
    if channels % repeat:
        reason = f"{channels} channels do not divide into {repeat} conv groups, norm groups or heads"
    return CoupledGroup(
        name=name,
        root=path,
        root_is_output=is_output_root(graph, root),
        channels=channels,
        unit_sets=unit_sets,
        **{role: tuple(found) for role, found in sites.items()},  # type: ignore[arg-type]
        heads=heads,
        reaches_output=reaches_output,
        ignored=is_ignored,
        frozen=tuple(dict.fromkeys(frozen)),
        status="unsupported" if reason else "exact",
        reason=reason,
    )


def _unit_sets(
    name: str, channels: int, repeat: int, heads: Mapping[str, int], whole_heads: bool
) -> tuple[UnitSet, ...]:
    size = max(channels // repeat, 1)
    roots = torch.arange(channels)
    kind: UnitKind = "head dimensions" if heads else "channels"
    sets = [UnitSet(name, kind, size, roots % size)]
    if heads and whole_heads:
        sets.append(UnitSet(f"{name}#heads", "heads", repeat, roots // size))
    return tuple(sets)


def _role(graph: tp.DependencyGraph, node: Any, module: Any, out: bool) -> str | None:
    """What a member does with the channels; ``None`` for what neither holds weights nor mixes channels."""
    if isinstance(module, nn.Parameter):
        return "parameters"
    if isinstance(module, nn.MultiheadAttention):
        return "attentions"
    if isinstance(module, MIXING_NORMS):
        return "norms"
    if node.type in (
        ops.OPTYPE.CONCAT,
        ops.OPTYPE.SPLIT,
        ops.OPTYPE.RESHAPE,
        ops.OPTYPE.UNBIND,
        ops.OPTYPE.EXPAND,
        ops.OPTYPE.SLICE,
    ):
        return None
    if node.type in (ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.OUTPUT):
        return None
    pruner = graph.get_pruner_of_module(module)
    through = pruner is None or pruner.prune_in_channels == pruner.prune_out_channels
    if through:
        # Depthwise convolutions and embeddings hold weights per channel; BatchNorm and PReLU act on each channel alone.
        return "producers" if isinstance(module, nn.modules.conv._ConvNd | nn.Embedding) else None
    return "producers" if out else "consumers"


def _customised_width(graph: tp.DependencyGraph, node: Any, out: bool) -> int | None:
    """What a user's pruner says of the width of a layer of its own type; ``None`` for all other layers."""
    if type(node.module) not in graph.CUSTOMIZED_PRUNERS:
        return None
    return int(graph.get_out_channels(node) if out else graph.get_in_channels(node))


def close_roots(group: CoupledGroup, closed: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which root channels are closed.

    Args:
        group: a coupled group.
        closed: unit-set name to bool ``[units]``, ``True`` where the unit is closed.

    Returns:
        bool ``[root channels]``.
    """
    roots = torch.zeros(group.channels, dtype=torch.bool)
    for units in group.unit_sets:
        if units.name in closed:
            roots |= closed[units.name][units.of_root]
    return roots


def members(groups: Iterable[CoupledGroup]) -> set[str]:
    """Paths of all members of the groups."""
    return {s.path for g in groups for s in (*g.producers, *g.consumers, *g.norms, *g.attentions, *g.parameters)}
