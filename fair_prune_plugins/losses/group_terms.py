"""Who the groups of a loss are, and means over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels

BAD_GROUPS = (
    "groups= must be the number of groups, their names, a mapping of name to number of people, or GroupLabels, got "
    "{got!r}"
)
NO_GROUP = "a loss over sensitive groups needs at least one group"
BAD_COUNT = "the group sizes must be whole numbers of people, got {counts}"
NO_PEOPLE = "no group has any people: {counts}"
SAME_NAMES = "group names must differ, got {names}"
STRAY = "the batch has people of {names}, groups that have nobody in the training data according to groups={counts}"
BAD_CODES = (
    "groups= of a call must be one integer code per person ({people}; -1 is unknown), got shape {shape}, {dtype}; read "
    "names with on_batches(groups=...)"
)
NO_SUCH_GROUP = "a person's group code is {code}, the loss knows the codes 0 to {last}: {names}"


@dataclass(frozen=True)
class GroupSizes:
    """The groups of the training people.

    Attributes:
        names: by code.
        counts: people per group, or ``None`` where only batches will tell.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError(NO_GROUP)
        if len(set(self.names)) != len(self.names):
            raise InputError(SAME_NAMES.format(names=list(self.names)))
        if self.counts is None:
            return
        if len(self.counts) != len(self.names) or any(c < 0 or c != int(c) for c in self.counts):
            raise InputError(BAD_COUNT.format(counts=dict(zip(self.names, self.counts, strict=False))))
        if not sum(self.counts):
            raise InputError(NO_PEOPLE.format(counts=dict(zip(self.names, self.counts, strict=True))))

    def __len__(self) -> int:
        return len(self.names)


Groups = int | Sequence[str] | Mapping[str, int] | GroupLabels | GroupSizes
"""What ``groups=`` of a loss takes. Numbers of people, where they are given, are those of the training data."""


def as_group_sizes(groups: Groups) -> GroupSizes:
    """Make :class:`GroupSizes` of whatever a user passes as ``groups=``.

    Raises:
        InputError: something else, or no group at all.
    """
    if isinstance(groups, GroupSizes):
        return groups
    if isinstance(groups, GroupLabels):
        return GroupSizes(groups.names, tuple(groups.counts.tolist()))
    if isinstance(groups, Mapping):
        return GroupSizes(tuple(map(str, groups)), tuple(groups.values()))
    if isinstance(groups, int) and not isinstance(groups, bool):
        return GroupSizes(tuple(map(str, range(groups))))
    if isinstance(groups, Sequence) and not isinstance(groups, str):
        return GroupSizes(tuple(map(str, groups)))
    raise InputError(BAD_GROUPS.format(got=groups))


def group_sums(values: torch.Tensor, codes: torch.Tensor, groups: int) -> torch.Tensor:
    """Sums over each group's people, ``[G]``; people of unknown group (negative codes) are in none."""
    known = codes >= 0
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add_(0, codes[known], values[known])


@dataclass(frozen=True)
class GroupMeans:
    """A batch by group, float64, without gradients.

    Attributes:
        loss: ``[G]`` weighted mean loss, 0 where nobody is present.
        weight: ``[G]`` sum of sample weights.
        pooled: mean loss over everybody of a known group, 0 if there is nobody.
    """

    loss: torch.Tensor
    weight: torch.Tensor
    pooled: torch.Tensor

    @property
    def present(self) -> torch.Tensor:
        """Bool ``[G]``: somebody with a positive weight is in the batch."""
        return self.weight > 0

    @classmethod
    def of(cls, losses: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, groups: int) -> GroupMeans:
        """Means of ``losses`` ``[N]``."""
        total, weight = group_sums(losses * weights, codes, groups), group_sums(weights, codes, groups)
        return cls(share_of(total, weight), weight, share_of(total.sum(), weight.sum()))


def excess_factors(multipliers: torch.Tensor, means: GroupMeans, codes: torch.Tensor, weight: float) -> torch.Tensor:
    """Factors whose weighted mean loss is ``mean loss + sum over present groups of multiplier x (group - pooled)``.

    Args:
        multipliers: ``[G]``.
        means: of the batch.
        codes: ``[N]``.
        weight: sum of all sample weights of the batch, people of unknown group included.

    Returns:
        ``[N]``; 1 for people of unknown group, who are in no group term.
    """
    active = torch.where(means.present, multipliers, torch.zeros_like(multipliers))
    by_group = 1 + weight * (share_of(active, means.weight) - share_of(active.sum(), means.weight.sum()))
    return of_people(by_group, codes, 1.0)


def of_people(by_group: torch.Tensor, codes: torch.Tensor, unknown: float) -> torch.Tensor:
    """Each person's group's value, ``[N]``; ``unknown`` for people of no known group."""
    return torch.where(codes >= 0, by_group[codes.clamp_min(0)], torch.full_like(by_group[:1], unknown))


def balanced_factors(sizes: GroupSizes, weight: torch.Tensor) -> torch.Tensor:
    """Factors ``[G]`` by which all groups weigh the same and the known people as much as before.

    Args:
        sizes: with counts, a person counts by the size of their group in the training data, whoever else is in the
            batch; without, the groups present in the batch share its known people equally.
        weight: ``[G]``, sum of sample weights in the batch.

    Raises:
        InputError: somebody is in a group that has nobody according to the counts.
    """
    counts = weight if sizes.counts is None else torch.tensor(sizes.counts).to(weight)
    stray = (weight > 0) & (counts <= 0)
    if stray.any():
        raise InputError(_stray(sizes, stray))
    return share_of(counts.sum() / (counts > 0).sum().clamp_min(1), counts)


def _stray(sizes: GroupSizes, stray: torch.Tensor) -> str:
    names = [n for n, s in zip(sizes.names, stray.tolist(), strict=True) if s]
    return STRAY.format(names=names, counts=dict(zip(sizes.names, sizes.counts or (), strict=True)))


def share_of(total: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """``total / of``, 0 where ``of`` is 0."""
    return torch.where(of > 0, total / torch.where(of > 0, of, torch.ones_like(of)), torch.zeros_like(of))


def checked_codes(groups: Any, people: int, sizes: GroupSizes | None) -> torch.Tensor:
    """int64 ``[N]`` on the CPU; every negative code is -1 (unknown).

    Raises:
        InputError: not one integer per person, or a code that is no group.
    """
    codes = torch.as_tensor(groups).detach().cpu()
    if codes.ndim == 2 and codes.shape[1] == 1:
        codes = codes[:, 0]
    if codes.numel() == 0:
        codes = codes.long()
    if codes.shape != (people,) or codes.is_floating_point() or codes.dtype == torch.bool:
        raise InputError(BAD_CODES.format(people=people, shape=tuple(codes.shape), dtype=codes.dtype))
    codes = codes.long().clamp_min(-1)
    if sizes is not None and people and int(codes.max()) >= len(sizes):
        raise InputError(NO_SUCH_GROUP.format(code=int(codes.max()), last=len(sizes) - 1, names=list(sizes.names)))
    return codes
