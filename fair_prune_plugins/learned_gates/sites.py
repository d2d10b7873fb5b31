"""Where a gate acts, and which weights it is the same as multiplying.

A gate multiplies its unit at the input of every consumer. A consumer is linear in its input, so a gate ``m`` of a unit
there is the same as ``m`` on the consumer's columns of that unit: ``W (m x) = (W m) x``. Where queries and keys are
contracted without a weight, the gate is on the queries and the same as ``m`` on the rows (and biases) that make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fair_prune_plugins.gates import CoupledGroup, GatePlan, Site
from fair_prune_plugins.gates.closing import width_at, width_of
from fair_prune_plugins.gates.norms import MIXING_NORMS

SiteKind = Literal["input", "output", "attention"]

NO_COLUMNS = "its consumer {path} is a {type}, whose columns a gate cannot be folded into"
NOT_PLAIN = "{path} computes its weight from other parameters, so a gate cannot be folded into it"
NO_CONSUMER = "nothing in the model reads it through weights, so there is no place for its gates"

Columns = dict[str, tuple[int, int]]
"""Unit-set name to its first column in a vector of all gates, and how many it has."""


@dataclass(frozen=True)
class GateSite:
    """One place where gates multiply an activation.

    Attributes:
        path: the module.
        kind: at its input, at its output, or inside an ``nn.MultiheadAttention``.
        index: int64 ``[width]`` each: the gate of every channel, ``len(gates)`` where it has none. The factor of a
            channel is the product over them.
    """

    path: str
    kind: SiteKind
    index: tuple[torch.Tensor, ...]

    def factor(self, gates: torch.Tensor) -> torch.Tensor:
        """The channels' factors, ``[width]``, from all gates ``[columns]``."""
        return channel_factor(self.index, gates)

    def to(self, device: torch.device) -> GateSite:
        """The same on another device."""
        return GateSite(self.path, self.kind, tuple(i.to(device) for i in self.index))


def channel_factor(index: Sequence[torch.Tensor], gates: torch.Tensor) -> torch.Tensor:
    """Products of gates by channel, ``[width]``; see :attr:`GateSite.index`."""
    padded = torch.cat([gates, gates.new_ones(1)])
    factor = padded[index[0]]
    for further in index[1:]:
        factor = factor * padded[further]
    return factor


def channel_index(site: Site, group: CoupledGroup, columns: Columns, width: int) -> tuple[torch.Tensor, ...]:
    """For each unit set of a coupled group, the gate of every channel of a module; see :attr:`GateSite.index`."""
    none = sum(size for _, size in columns.values())
    found = []
    for units in group.unit_sets:
        index = torch.full((width,), none)
        index[site.channels] = columns[units.name][0] + units.of_root[site.roots]
        found.append(index)
    return tuple(found)


def gate_sites(plan: GatePlan) -> tuple[dict[str, list[GateSite]], Columns, dict[str, str]]:
    """Where the gates of a plan act.

    Returns:
        Coupled-group name to its sites; the columns of its unit sets among all gates; and the coupled groups without
        gates, which stay open, with the reason.
    """
    closed_off = {g.name: reason for g in plan.prunable if (reason := _obstacle(plan, g)) is not None}
    columns: Columns = {}
    width = 0
    gated = [g for g in plan.prunable if g.name not in closed_off]
    for group in gated:
        for units in group.unit_sets:
            columns[units.name] = (width, units.size)
            width += units.size
    return {g.name: list(_sites(plan, g, columns)) for g in gated}, columns, closed_off


def _sites(plan: GatePlan, group: CoupledGroup, columns: Columns) -> Iterator[GateSite]:
    model = plan.model
    for site in group.consumers:
        width = width_at(model, site, output=False)
        yield GateSite(site.path, "input", channel_index(site, group, columns, width))
    for site in group.attentions:
        width = width_at(model, site, output=True)
        yield GateSite(site.path, "attention", channel_index(site, group, columns, width))
    for site, whole_heads in _queries(plan, group):
        index = channel_index(site, group, columns, width_at(model, site, output=True))
        kinds = [u.kind for u in group.unit_sets]
        yield GateSite(
            site.path,
            "output",
            index if whole_heads else tuple(i for i, k in zip(index, kinds, strict=True) if k != "heads"),
        )


def _queries(plan: GatePlan, group: CoupledGroup) -> Iterator[tuple[Site, bool]]:
    """Producers of queries, and whether their channels tell heads apart (those of a norm over head dimensions do
    not).
    """
    producers = {s.path: s for s in group.producers}
    norms = {s.path: s for s in group.norms}
    for contraction in plan.contractions:
        if contraction.producer in producers:
            yield producers[contraction.producer].within(contraction.channels), True
        elif contraction.producer in norms:
            site = norms[contraction.producer].within(contraction.channels)
            yield site, len(site.channels) == len(norms[contraction.producer].channels)


def _obstacle(plan: GatePlan, group: CoupledGroup) -> str | None:
    """Why a coupled group cannot have learned gates."""
    sites = [
        *((s.path, "input") for s in group.consumers),
        *((s.path, "attention") for s in group.attentions),
        *((s.path, "output") for s, _ in _queries(plan, group)),
    ]
    if not any(kind != "output" for _, kind in sites):
        return NO_CONSUMER
    for path, kind in sites:
        module = plan.model.get_submodule(path)
        layers: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear)
        if kind == "output":
            layers = (*layers, *MIXING_NORMS)
        if kind == "attention":
            layers = (nn.MultiheadAttention,)
        if not isinstance(module, layers):
            return NO_COLUMNS.format(path=path, type=type(module).__name__)
        if kind != "attention" and not isinstance(module._parameters.get("weight"), nn.Parameter):
            return NOT_PLAIN.format(path=path)
    return None


def weight_factors(model: nn.Module, site: GateSite, gates: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a site's gates do to the parameters of its module, instead of its activations.

    Args:
        model: the plan's model.
        site: one of :func:`gate_sites`.
        gates: ``[columns]``.

    Returns:
        parameter name to a factor that broadcasts to the parameter.
    """
    module = model.get_submodule(site.path)
    factor = site.factor(gates)
    if isinstance(module, nn.MultiheadAttention):
        queries = torch.cat([factor, factor.new_ones(2 * len(factor))])
        found = {"in_proj_weight": queries[:, None] * factor[None, :], "out_proj.weight": factor[None, :]}
        if module.in_proj_bias is not None:
            found["in_proj_bias"] = queries
    elif site.kind == "output":
        found = {"weight": factor if isinstance(module, MIXING_NORMS) else _rows(module, factor)}
        if getattr(module, "bias", None) is not None:
            found["bias"] = factor
    else:
        found = {"weight": _columns(module, factor)}
    return {f"{site.path}.{name}" if site.path else name: value for name, value in found.items()}


def _rows(module: nn.Module, factor: torch.Tensor) -> torch.Tensor:
    """A factor of output channels, shaped for the weight."""
    weight = module._parameters["weight"]
    assert weight is not None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        by_block = factor.reshape(module.groups, 1, -1)
        spread = by_block.expand(-1, weight.shape[0] // module.groups, -1)
        return spread.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    return factor.reshape(-1, *[1] * (weight.ndim - 1))


def _columns(module: nn.Module, factor: torch.Tensor) -> torch.Tensor:
    """A factor of input channels, shaped for the weight."""
    weight = module._parameters["weight"]
    assert weight is not None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    if not isinstance(module, nn.modules.conv._ConvNd):
        return factor.reshape(1, -1)
    assert width_of(module, output=False) == len(factor)
    by_block = factor.reshape(module.groups, 1, -1)
    spread = by_block.expand(-1, weight.shape[0] // module.groups, -1)
    return spread.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
