"""Which coupled groups are ranked with which, and what each of them loses at a pruning ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fair_prune_plugins.gates import CoupledGroup, UnitSet
from fair_prune_plugins.latency.alignment import Alignment
from fair_prune_plugins.torch_pruning.choices import Choice
from fair_prune_plugins.torch_pruning.selection import (
    Candidate,
    Decision,
    decide_locally,
    decide_together,
    floor_count,
)


@dataclass(frozen=True)
class Ranked:
    """A coupled group with its units' scores.

    Attributes:
        group: the coupled group.
        scores: unit-set name to float64 ``[units]``.
        scope: groups of the same scope are ranked together.
        ratio: the scope's own pruning ratio, or ``None`` where the pruner's counts.
        head_ratio: share of heads to remove.
        conv_groups: whether a member is a convolution with conv groups (depthwise ones have none).
    """

    group: CoupledGroup
    scores: Mapping[str, torch.Tensor]
    scope: str
    ratio: float | None
    head_ratio: float
    conv_groups: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds for all coupled groups.

    Attributes:
        initial: unit-set name to units before any pruning.
        max_ratio: no group loses more than this share of its initial units.
        alignment: which widths the target rewards, or ``None``.
        together: rank over several groups at once, not each by itself.
        prune_head_dims: whether head dimensions may go.
    """

    initial: Mapping[str, int]
    max_ratio: float
    alignment: Alignment | None
    together: bool
    prune_head_dims: bool

    def choose(self, ranked: Sequence[Ranked], ratio: float) -> tuple[Choice, ...]:
        """What every coupled group loses when ``ratio`` of the initial units goes.

        Args:
            ranked: all coupled groups.
            ratio: for scopes without a ratio of their own, cumulative over steps.

        Returns:
            One choice per coupled group, in the same order.
        """
        decisions: dict[str, Decision] = {}
        for heads in (True, False):  # heads first: how many stay decides which head dimensions are aligned
            for asked, candidates in self._scopes(ranked, ratio, heads, decisions):
                if self.together or len(candidates) > 1:
                    decided = decide_together(candidates, asked)
                else:
                    decided = [decide_locally(candidates[0], asked)]
                decisions |= {c.name: d for c, d in zip(candidates, decided, strict=True)}
        return tuple(
            Choice(item.group, {u.name: decisions[u.name] for u in item.group.unit_sets if u.name in decisions})
            for item in ranked
        )

    def _scopes(
        self, ranked: Sequence[Ranked], ratio: float, heads: bool, decisions: Mapping[str, Decision]
    ) -> list[tuple[float, list[Candidate]]]:
        scopes: dict[str, tuple[float, list[Candidate]]] = {}
        for item in ranked:
            gone = sum(len(decisions[u.name].removed) for u in item.group.unit_sets if u.name in decisions)
            for units in item.group.unit_sets:
                if (units.kind == "heads") is not heads:
                    continue
                if heads:
                    asked, scope = item.head_ratio, "all heads" if self.together else units.name
                elif units.kind == "head dimensions" and not self.prune_head_dims:
                    continue
                else:
                    asked, scope = ratio if item.ratio is None else item.ratio, item.scope
                scopes.setdefault(scope, (min(asked, self.max_ratio), []))[1].append(self._candidate(item, units, gone))
        return list(scopes.values())

    def _candidate(self, item: Ranked, units: UnitSet, heads_gone: int) -> Candidate:
        initial = self.initial[units.name]
        repeat = item.group.channels // units.size - heads_gone
        aligned = self.alignment
        if item.conv_groups and aligned is not None and aligned.grain < aligned.block <= units.size:
            repeat = 1  # runtimes compute each conv group in blocks of its own
        return Candidate(
            units.name,
            item.scores[units.name],
            initial,
            floor_count(initial, self.max_ratio),
            None if units.kind == "heads" else self.alignment,
            repeat,
            item.group.parts(units),
        )
