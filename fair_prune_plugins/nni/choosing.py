"""Which units go: those that nothing is left of wherever they are read, as far as the structure allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.nni.following import CoupledChannels, Side
from fair_prune_plugins.nni.heads import attention_heads
from fair_prune_plugins.nni.links import CONTRACTIONS, CONVOLUTIONS, PRODUCERS, Links, widths
from fair_prune_plugins.nni.liveness import Liveness
from fair_prune_plugins.nni.makers import masked_by_all_makers
from fair_prune_plugins.nni.masks import NORMS, Masks

EMPTIED = (
    "the masks leave nothing of {layer}: all of its {count} {side} would go. Prune it less (max_sparse_ratio), or "
    "leave it out of the configuration"
)
MADE = "{open} makes them too and does not mask them"
STILL_READ = "{open} still reads them"
UNEVEN = "{layer}'s {kind} must keep equally many"
SHARED = "they share channels with units that stay"
TIED = "{one} and {other} share a parameter"
WHOLE_HEADS = "{layer}'s heads go as a whole"
UNLIKE_HEADS = "they are queries, keys or values of {layer}, which has not one projection of one width for each of them"
LSTM = "{layer} is an LSTM, of which nothing can be removed by masks"

Flags = NDArray[np.bool_]
Gone = dict[tuple[Any, bool], torch.Tensor]
"""By module (or bare parameter) and side (``True`` for outputs): int64, the channels that go."""


@dataclass(frozen=True)
class KeptUnits:
    """Units that are masked somewhere and stay all the same.

    Attributes:
        coupled_group: path of the layer that the coupled group is named after.
        units: how many.
        masked: layers that mask them.
        reason: why they stay.
    """

    coupled_group: str
    units: int
    masked: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.units} of {self.coupled_group} (masked in {', '.join(self.masked)}): {self.reason}"


@dataclass(frozen=True)
class Choice:
    """What goes and what stays.

    Attributes:
        gone: channels that go.
        removed: number of units that go, by coupled group.
        units: number of units there are, by coupled group.
        kept: units that are masked somewhere and stay.
        heads: attention projections that lose whole heads, with the heads and the head size that they have.
    """

    gone: Gone
    removed: Mapping[str, int]
    units: Mapping[str, int]
    kept: tuple[KeptUnits, ...]
    heads: Mapping[nn.Module, tuple[int, int]]


def choose(
    model: nn.Module,
    coupled: CoupledChannels,
    liveness: Liveness,
    behind_functions: Callable[[], Liveness],
    masks: Masks,
    links: Links,
) -> Choice:
    """Choose the units that go.

    A unit can go if every layer that reads it gets nothing, or masks all that it reads of it; also if it gets only what
    a function made of nothing (``sigmoid(0)``), where all layers that make the unit mask it. Of those that can, conv
    groups and norm groups lose equally many, the first ones of each, and attention loses whole heads.

    Args:
        model: with the masks multiplied into its parameters.
        coupled: its coupled channels.
        liveness: what is alive.
        behind_functions: what is alive if functions make nothing of nothing; called only where it matters.
        masks: what is masked.
        links: what that leaves of the layers' weights.

    Raises:
        InputError: a layer would lose everything.
    """
    return _Choosing(model, coupled, liveness, behind_functions, masks, links).choice()


class _Choosing:
    def __init__(
        self,
        model: nn.Module,
        coupled: CoupledChannels,
        liveness: Liveness,
        behind_functions: Callable[[], Liveness],
        masks: Masks,
        links: Links,
    ) -> None:
        self.names: dict[Any, str] = {m: n or type(m).__name__ for n, m in model.named_modules()}
        self.coupled, self.liveness, self.masks, self.links = coupled, liveness, masks, links
        self.consumers = [s for s in coupled.sides if not s.is_output and isinstance(s.module, CONTRACTIONS)]
        self.producers = [s for s in coupled.sides if s.is_output and isinstance(s.module, PRODUCERS)]
        self.norms = [s for s in coupled.sides if isinstance(s.module, NORMS)]
        self.outputs = {s.module: s for s in self.producers}
        self.made_alive = {s.module: self._alive(liveness.outputs, s.module, 1) for s in self.producers}
        self.behind_functions = behind_functions
        self.arriving = {s.module: self._alive(liveness.inputs, s.module, 0) for s in self.consumers}
        self.wanted: dict[nn.Module, Flags] = {}
        self.uneven: dict[int, str] = {}
        self.heads: dict[nn.Module, int] = {}
        self.fixed = {**coupled.fixed, **self._not_understood(model), **self._read_heads(model)}

    def choice(self) -> Choice:
        free = self._free()
        masked = masked_by_all_makers(self.coupled, self.links, None)
        if bool((masked & ~free & ~np.isin(self.coupled.group, list(self.fixed))).any()):
            self._close(self.behind_functions())
            free = self._free()
        gone = self._even(free)
        channels: Gone = {}
        for side in self.coupled.sides:
            going = self._going(side, gone)
            if bool(gone[side.roots].all()):
                kind = "output channels" if side.is_output else "input channels"
                raise InputError(EMPTIED.format(layer=self._name(side.module), count=int(going.sum()), side=kind))
            if bool(going.any()):
                channels[side.module, side.is_output] = torch.from_numpy(np.flatnonzero(going))
        names, group = self.coupled.names, self.coupled.group
        removed = np.bincount(group[gone], minlength=len(names))
        units = np.bincount(group, minlength=len(names))
        return Choice(
            channels,
            {names[g]: int(n) for g, n in enumerate(removed) if n},
            {names[g]: int(n) for g, n in enumerate(units)},
            tuple(self._kept(gone)),
            {layer: (n, widths(layer)[1] // n) for layer, n in self.heads.items() if (layer, True) in channels},
        )

    def _name(self, module: Any) -> str:
        return self.names.get(module, "a parameter")

    def _not_understood(self, model: nn.Module) -> dict[int, str]:
        """Coupled groups that no layer of which may lose anything."""
        reasons: dict[Any, str] = {}
        owners: dict[nn.Parameter, nn.Module] = {}
        for module in model.modules():
            if isinstance(module, nn.LSTM):
                reasons[module] = LSTM.format(layer=self._name(module))
            for parameter in module.parameters(recurse=False):
                owner = owners.setdefault(parameter, module)
                if owner is not module:
                    reasons[owner] = reasons[module] = TIED.format(one=self._name(owner), other=self._name(module))
        return {
            int(group): reasons[side.module]
            for side in self.coupled.sides
            if side.module in reasons
            for group in np.unique(self.coupled.group[side.roots])
        }

    def _read_heads(self, model: nn.Module) -> dict[int, str]:
        """Find the attention projections with their heads; coupled groups of those that are laid out otherwise."""
        heads, reasons = attention_heads(model), {}
        for group in self.coupled.contracted:
            made_by = [s.module for s in self.producers if group in self.coupled.group[s.roots]]
            projections = {m: heads[m] for m in made_by if m in heads}
            if not projections:
                continue
            if len(made_by) > 1 and len({(heads.get(m), widths(m)[1]) for m in made_by}) == 1:
                self.heads |= projections
            else:
                reasons[group] = UNLIKE_HEADS.format(layer=self._name(next(iter(projections))).rpartition(".")[0])
        return reasons

    @staticmethod
    def _alive(table: Mapping[nn.Module, torch.Tensor], module: nn.Module, side: int) -> Flags:
        """What is alive there; everything, where the layer was not called in a way that shows."""
        alive = table.get(module)
        return np.ones(widths(module)[side], bool) if alive is None else alive.cpu().numpy()

    def _free(self) -> Flags:
        """Units that nobody would miss. What is read only for outputs that nobody misses is not read."""
        group = self.coupled.group
        possible = np.zeros(len(group), bool)
        for side in self.consumers:
            possible[side.roots] = True
        possible &= ~np.isin(group, list(self.fixed))
        # What is contracted without a layer is read there too, so all that makes it must have masked it; but of a whole
        # head without values, nobody hears the queries and keys.
        headed = {int(g) for s in self.producers if s.module in self.heads for g in np.unique(group[s.roots])}
        contracted = np.isin(group, list(self.coupled.contracted - headed))
        for side in self.producers:
            made = self.made_alive[side.module][side.channels] & contracted[side.roots]
            possible[side.roots[made]] = False
        free = np.zeros(len(group), bool)
        while True:
            now = possible.copy()
            for side in self.consumers:
                wanted = self._wanted(side.module, free)
                now[side.roots[wanted[side.channels]]] = False
            if bool((now == free).all()):
                return free
            free = now

    def _close(self, behind: Liveness) -> None:
        """Take what functions make of units that are masked wherever they are made for nothing."""
        masked = masked_by_all_makers(self.coupled, self.links, behind)
        for side in self.consumers:
            going = self._going(side, masked)
            quiet = ~self._alive(behind.inputs, side.module, 0)
            arriving = self.arriving[side.module].copy()
            arriving[: len(going)] &= ~(going & quiet[: len(going)])
            self.arriving[side.module] = arriving
        self.wanted.clear()

    def _wanted(self, layer: nn.Module, free: Flags) -> Flags:
        """Live inputs that a layer reads for outputs that are not free."""
        outputs = np.ones(widths(layer)[1], bool)
        if layer in self.outputs:
            going = self._going(self.outputs[layer], free)
            outputs[: len(going)] &= ~going
        masked = self.links.masked_outputs(layer).cpu().numpy()
        if layer in self.wanted and bool((outputs | masked).all()):
            return self.wanted[layer]  # those that are masked never read
        device = layer.weight.device
        assert isinstance(device, torch.device)
        read = self.links.read(layer, torch.from_numpy(outputs).to(device)).cpu().numpy()
        wanted: Flags = np.logical_and(read, self.arriving[layer])
        self.wanted[layer] = wanted
        return wanted

    @staticmethod
    def _going(side: Side, gone: Flags) -> Flags:
        """Channels of a side of which all units go, bool ``[last channel of the side + 1]``."""
        here, stays = np.zeros((2, side.channels.max() + 1), bool)
        here[side.channels] = True
        stays[side.channels[~gone[side.roots]]] = True
        going: Flags = np.logical_and(here, ~stays)
        return going

    def _even(self, free: Flags) -> Flags:
        """Of the free units those that leave the structure even."""
        gone = free.copy()
        while True:
            before = gone.copy()
            for side in self.coupled.sides:
                going = self._going(side, gone)
                self._stay(side, ~going, gone, SHARED)
                if side.is_output and side.module in self.heads:
                    of_head = going.reshape(self.heads[side.module], -1)
                    partly = (of_head & (of_head.sum(1, keepdims=True) < of_head.shape[1])).ravel()
                    self._stay(side, partly, gone, WHOLE_HEADS.format(layer=self._name(side.module)))
                blocks, width, kind = self._blocks(side)
                if blocks == 1:
                    continue
                of_block = np.zeros(width, bool)
                of_block[: len(going)] = going
                before_it = of_block.reshape(blocks, -1).cumsum(1)
                surplus = of_block & (before_it > before_it[:, -1].min()).ravel()
                self._stay(side, surplus, gone, UNEVEN.format(layer=self._name(side.module), kind=kind))
            if bool((before == gone).all()):
                return gone

    def _stay(self, side: Side, channels: Flags, gone: Flags, reason: str) -> None:
        roots = side.roots[channels[side.channels] & gone[side.roots]]
        self.uneven |= {int(root): reason for root in roots}
        gone[roots] = False

    @staticmethod
    def _blocks(side: Side) -> tuple[int, int, str]:
        """How many conv groups or norm groups a side's channels fall into, of how many channels in all."""
        module = side.module
        if isinstance(module, nn.GroupNorm):
            return module.num_groups, module.num_channels, "norm groups"
        if isinstance(module, CONVOLUTIONS) and module.groups != module.out_channels:
            return module.groups, widths(module)[side.is_output], "conv groups"
        return 1, 0, ""

    def _kept(self, gone: Flags) -> Iterator[KeptUnits]:
        """What is masked and stays, by coupled group and reason."""
        maskers: dict[int, list[str]] = {}
        for side, masked in self._masked_sides():
            for root in np.unique(side.roots[masked[side.channels] & ~gone[side.roots]]):
                maskers.setdefault(int(root), []).append(self._name(side.module))
        makers, readers = self._open(maskers)
        sorted_out: dict[tuple[int, tuple[str, ...], str], int] = {}
        for root, layers in maskers.items():
            group = int(self.coupled.group[root])
            reason = self.fixed.get(group) or self.uneven.get(root)
            if reason is None and root in makers:
                reason = MADE.format(open=", ".join(makers[root]))
            if reason is None:
                reason = STILL_READ.format(open=", ".join(readers.get(root, ["something"])))
            key = (group, tuple(layers), reason)
            sorted_out[key] = sorted_out.get(key, 0) + 1
        for (group, masked_in, reason), units in sorted_out.items():
            yield KeptUnits(self.coupled.names[group], units, masked_in, reason)

    def _masked_sides(self) -> Iterator[tuple[Side, Flags]]:
        for side in self.producers:
            if side.module in self.masks:
                yield side, self.links.masked_outputs(side.module).cpu().numpy()
        for side in self.consumers:
            if side.module in self.masks:
                yield side, self.links.masked_inputs(side.module).cpu().numpy()
        for side in self.norms:
            mask = self.masks.get(side.module)
            weight = None if mask is None else mask.parameters.get("weight")
            if weight is not None:
                gone = (weight == 0).reshape(-1, weight.shape[-1]).all(0).cpu().numpy()
                yield side, np.resize(gone, int(side.channels.max()) + 1)

    def _open(self, roots: Iterable[int]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """Which layers make, and which read, each of these units."""
        wanted = np.zeros(len(self.coupled.group), bool)
        wanted[list(roots)] = True
        makers: dict[int, list[str]] = {}
        readers: dict[int, list[str]] = {}
        for sides, flags, table in (
            (self.producers, self.made_alive, makers),
            (self.consumers, self.wanted, readers),
        ):
            for side in sides:
                open_here = side.roots[flags[side.module][side.channels] & wanted[side.roots]]
                for root in np.unique(open_here):
                    table.setdefault(int(root), []).append(self._name(side.module))
        return makers, readers
