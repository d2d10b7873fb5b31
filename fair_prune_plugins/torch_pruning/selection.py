"""How many units each coupled group keeps, and which: pure functions on scores.

Kept counts follow the papers' ``floor(size * (1 - ratio))`` on the initial size, not the host's integer cut, which
can be one short. Thresholds do not over-prune on ties, and a group's floor holds inside a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fair_prune_plugins.latency.alignment import Alignment


@dataclass(frozen=True)
class Candidate:
    """One coupled group in a ranking.

    Attributes:
        name: for reports.
        scores: float64 ``[units now]``.
        initial: units before any pruning.
        floor: units that must stay.
        alignment: which widths the target rewards (``None``: any).
        repeat: channels per unit, which count for the alignment (conv groups, heads).
        parts: int64 unit numbers of layers that hold only some of the units; each keeps its best.
    """

    name: str
    scores: torch.Tensor
    initial: int
    floor: int
    alignment: Alignment | None = None
    repeat: int = 1
    parts: Sequence[torch.Tensor] = ()

    def order(self) -> torch.Tensor:
        """Units in the order they go; those that must stay are last."""
        scores = self.scores.clone()
        for part in self.parts:
            scores[part[self.scores[part].argmax()]] = math.inf
        return torch.argsort(scores, stable=True)

    @property
    def least(self) -> int:
        """Units that must stay: the floor, and one of each part."""
        return max(self.floor, len({int(part[self.scores[part].argmax()]) for part in self.parts}))


@dataclass(frozen=True)
class Decision:
    """What one coupled group loses.

    Attributes:
        asked: units to keep by the ratio alone.
        removed: int64, unit numbers to remove.
        reason: why the number kept is not the number asked, or empty.
    """

    asked: int
    removed: torch.Tensor
    reason: str = ""


def kept_count(initial: int, ratio: float) -> int:
    """``floor(initial * (1 - ratio))``, safe against the last bit: 10 units at ratio 0.9 keep 1, not 0."""
    return math.floor(initial * (1 - ratio) + 1e-9)


def floor_count(initial: int, max_ratio: float) -> int:
    """Units that must stay under a maximum pruning ratio: at least one."""
    return max(math.ceil(initial * (1 - max_ratio) - 1e-9), 1)


def decide_locally(candidate: Candidate, ratio: float) -> Decision:
    """One group by itself: its own ratio of its initial size."""
    asked = kept_count(candidate.initial, ratio)
    return _decision(candidate, asked, asked)


def decide_together(candidates: Sequence[Candidate], ratio: float) -> list[Decision]:
    """One ranking over all groups: the lowest scores go, no more than asked, and no group below its floor."""
    widths = [len(c.scores) for c in candidates]
    wanted = sum(widths) - kept_count(sum(c.initial for c in candidates), ratio)
    open_scores = []
    for c in candidates:
        going = c.order()[: max(len(c.scores) - c.least, 0)]
        free = torch.full_like(c.scores, math.inf)
        free[going] = c.scores[going]
        open_scores.append(free)
    everything = torch.cat(open_scores)
    possible = int(torch.isfinite(everything).sum())
    chosen = torch.argsort(everything, stable=True)[: max(min(wanted, possible), 0)]
    gone = torch.zeros(len(everything), dtype=torch.bool)
    gone[chosen] = True
    decisions = []
    for c, part in zip(candidates, gone.split(widths), strict=True):
        keep = int((~part).sum())
        short = "the floor of every group is reached" if wanted > possible else ""
        decisions.append(_decision(c, keep, keep, short))
    return decisions


def _decision(candidate: Candidate, asked: int, keep: int, reason: str = "") -> Decision:
    width, least = len(candidate.scores), candidate.least
    if keep < least:
        keep, reason = least, f"at least {least} must stay"
    if keep > width:
        keep, reason = width, "an earlier step removed more already"
    if candidate.alignment is not None and keep < width:
        fitted = candidate.alignment.fit(keep, width, least, candidate.repeat)
        if fitted != keep:
            reason = candidate.alignment.why(keep, fitted, width, candidate.repeat)
            keep = fitted
    return Decision(asked, candidate.order()[: width - keep].sort().values, reason if keep != asked else "")
