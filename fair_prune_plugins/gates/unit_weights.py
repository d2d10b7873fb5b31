"""Which entries of which weights leave the model with a unit: its producers' rows and its consumers' columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.closing import width_of
from fair_prune_plugins.gates.structure import CoupledGroup, Site, UnitSet

NO_WEIGHTS = (
    "{name}: no weight of the model leaves with its units (its members are {members}); add the layer to ignored_layers"
)

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention)
"""Layers whose weights' layout is known; those of other types (with customised pruners) do not count."""

KEPT = -1
"""In the place of a unit number: this channel does not leave."""


@dataclass(frozen=True)
class WeightPart:
    """The entries of one weight that leave with the units of one unit set.

    The weight is seen as ``[blocks, first, second, rest]``: blocks are conv groups, the rest is kernel positions.
    Output channels lie along ``first`` and input channels along ``second``; the other way round in transposed
    convolutions and embeddings.

    Attributes:
        weight: the parameter's name.
        units: the unit set's name.
        size: number of units.
        blocks: number of blocks.
        first: int64 ``[blocks * first]``, the unit that each channel along ``first`` leaves with, or :data:`KEPT`;
            ``None`` where none does.
        second: the same along ``second``.
    """

    weight: str
    units: str
    size: int
    blocks: int
    first: torch.Tensor | None
    second: torch.Tensor | None

    def unit_sums(self, entries: torch.Tensor) -> torch.Tensor:
        """Sum over each unit's entries, every entry once even where its row and its column both leave.

        Args:
            entries: shaped like the weight.

        Returns:
            float64 ``[units]`` on the CPU.
        """
        # Sums along whole rows first: those over a few kernel positions each would take several times as long.
        entries = entries.reshape(self.blocks, entries.shape[0] // self.blocks, entries.shape[1], -1)
        total = torch.zeros(self.size, dtype=torch.float64)
        if self.first is not None:
            _add(total, self.first, entries.flatten(2).sum(2))
        if self.second is not None:
            if self.first is not None:
                first, second = (t.to(entries.device).reshape(self.blocks, -1) for t in (self.first, self.second))
                counted = (first[:, :, None] == second[:, None, :]) & (first[:, :, None] != KEPT)
                entries = entries.masked_fill(counted[..., None], 0)
            _add(total, self.second, entries.sum(1).sum(2))
        return total


def weight_parts(
    model: nn.Module, group: CoupledGroup, units: UnitSet, *, include_consumers: bool = True
) -> list[WeightPart]:
    """The weights that leave with the units of a coupled group, without biases, norms and bare parameters.

    Convolutions (with conv groups, depthwise, transposed), linear layers (after a flattening, several columns per
    unit), embeddings and ``nn.MultiheadAttention`` (rows and columns of both its projections).

    Args:
        model: the plan's model.
        group: a coupled group of it.
        units: one of the group's unit sets.
        include_consumers: also the columns that read the unit, not only the rows that make it.

    Raises:
        UnsupportedModelError: no weight leaves with any unit.
    """
    produced = _leaving(model, units, (*group.producers, *group.attentions), output=True)
    read = (*group.consumers, *group.attentions) if include_consumers else ()
    consumed = _leaving(model, units, read, output=False)
    parts = []
    for path in dict.fromkeys((*produced, *consumed)):
        module = model.get_submodule(path)
        rows, columns = produced.get(path), consumed.get(path)
        if isinstance(module, nn.MultiheadAttention):
            thrice = None if rows is None else rows.repeat(3)
            parts.append(WeightPart(f"{path}.in_proj_weight", units.name, units.size, 1, thrice, columns))
            parts.append(WeightPart(f"{path}.out_proj.weight", units.name, units.size, 1, rows, columns))
            continue
        if isinstance(module, nn.Embedding | nn.modules.conv._ConvTransposeNd):
            rows, columns = columns, rows
        parts.append(WeightPart(f"{path}.weight", units.name, units.size, _blocks(module), rows, columns))
    if not parts:
        sites = (*group.producers, *group.consumers, *group.attentions)
        members = ", ".join(dict.fromkeys(s.path for s in sites)) or "none"
        raise UnsupportedModelError(NO_WEIGHTS.format(name=units.name, members=members))
    return parts


def unit_square(parts: Iterable[WeightPart], model: nn.Module) -> torch.Tensor:
    """Sum of squared weights of every unit, float64 ``[units]``.

    Args:
        parts: all parts of one unit set, at least one.
        model: the model they are of.
    """
    return torch.stack([p.unit_sums(model.get_parameter(p.weight).detach().square()) for p in parts]).sum(0)


def _leaving(model: nn.Module, units: UnitSet, sites: Iterable[Site], *, output: bool) -> dict[str, torch.Tensor]:
    """Module path to the unit that each of its output or input channels leaves with, int64 ``[channels]``."""
    found: dict[str, torch.Tensor] = {}
    for site in sites:
        module = model.get_submodule(site.path)
        if not isinstance(module, LAYERS):
            continue
        if site.path not in found:
            found[site.path] = torch.full((width_of(module, output=output),), KEPT)
        found[site.path][site.channels] = units.of_root[site.roots]
    return found


def _blocks(module: nn.Module) -> int:
    return int(module.groups) if isinstance(module, nn.modules.conv._ConvNd) else 1


def _add(total: torch.Tensor, units: torch.Tensor, values: torch.Tensor) -> None:
    leaving = units != KEPT
    total.index_add_(0, units[leaving], values.flatten().double().cpu()[leaving])
