"""What each coupled group of a model loses, decided once and carried out on the model or on a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import CoupledGroup
from fair_prune_plugins.gates.removal import frozen_stay, update_attention_owners
from fair_prune_plugins.torch_pruning.selection import Decision

EMPTIED = "removing {count} channels at {layer!r} would leave a layer empty"


@dataclass(frozen=True)
class Choice:
    """What one coupled group loses.

    Attributes:
        group: the coupled group as it is before the removal.
        decisions: unit-set name to decision; a set that is not there loses nothing.
    """

    group: CoupledGroup
    decisions: Mapping[str, Decision]

    def kept(self, kind: str) -> int | None:
        """Units of a kind that stay; ``None`` if the group has no such units."""
        for units in self.group.unit_sets:
            if units.kind == kind:
                decision = self.decisions.get(units.name)
                return units.size - (0 if decision is None else len(decision.removed))
        return None

    def removed_roots(self) -> torch.Tensor:
        """Root channels that go, int64."""
        gone = torch.zeros(self.group.channels, dtype=torch.bool)
        for units in self.group.unit_sets:
            decision = self.decisions.get(units.name)
            if decision is not None:
                closed = torch.zeros(units.size, dtype=torch.bool)
                closed[decision.removed] = True
                gone |= closed[units.of_root]
        return gone.nonzero().flatten()

    def removed(self) -> int:
        """Units of all kinds that go."""
        return sum(len(d.removed) for d in self.decisions.values())

    def signature(self) -> tuple[tuple[int, ...], ...]:
        """Equal for choices that remove the same units."""
        return tuple(tuple(d.removed.tolist()) for _, d in sorted(self.decisions.items()))


def carried_out(
    model: nn.Module,
    graph: tp.DependencyGraph,
    choices: Sequence[Choice],
    pruned: Callable[[Choice], None] = lambda _: None,
) -> Iterator[Any]:
    """Yield the host group of each choice that removes anything, for the caller to prune or to leave.

    The next group is read from the graph only after the caller has dealt with the last one. At the end, also an early
    one, the modules that own attention projections learn the sizes of what was really pruned.

    Args:
        model: the model the choices were made for, or a copy of it.
        graph: its dependency graph.
        choices: made on the model as it is now.
        pruned: told of each choice whose group the caller has pruned.

    Raises:
        UnsupportedModelError: a removal would leave a layer without channels.
    """
    done: list[Choice] = []
    try:
        for choice in choices:
            roots = choice.removed_roots()
            if not len(roots):
                continue
            layer = model.get_submodule(choice.group.root)
            pruner = graph.get_pruner_of_module(layer)
            out = choice.group.root_is_output
            prune, width = (
                (pruner.prune_out_channels, pruner.get_out_channels)
                if out
                else (pruner.prune_in_channels, pruner.get_in_channels)
            )
            host = graph.get_pruning_group(layer, prune, roots.tolist())
            if not graph.check_pruning_group(host):
                raise UnsupportedModelError(EMPTIED.format(count=len(roots), layer=choice.group.name))
            before = width(layer)
            try:
                with frozen_stay(graph, host):
                    yield host
            finally:
                if width(layer) != before:
                    done.append(choice)
                    pruned(choice)
    finally:
        _tell_owners(model, done)


def _tell_owners(model: nn.Module, done: Sequence[Choice]) -> None:
    attention: list[tuple[nn.Linear, int, int]] = []
    before: dict[nn.Linear, tuple[int, int]] = {}
    for choice in done:
        for path, count in choice.group.heads.items():
            projection = model.get_submodule(path)
            assert isinstance(projection, nn.Linear)
            before[projection] = (count, choice.group.units.size)
            heads, size = choice.kept("heads"), choice.kept("head dimensions")
            assert size is not None
            attention.append((projection, count if heads is None else heads, size))
    update_attention_owners(model, attention, before, [size for choice in done for size in choice.group.sizes])
