"""Batches of one group each, from batches in which groups are mixed: samples are held back until they fill one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import UNKNOWN
from fair_prune_plugins.statistics.batches import Leaves

NOT_DIVISIBLE = (
    "a batch of several groups must be taken apart by person, and it holds a {kind}, which cannot be; yield tensors "
    "and lists with one entry per person, or pass inputs= and targets= what the model and the loss need of it"
)

PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
"""Things that may be in a batch once for all its samples."""


@dataclass(frozen=True)
class PureBatch:
    """Samples of one group.

    Attributes:
        code: of the group.
        samples: how many.
        tree: what was handed in of them, structured as it was.
    """

    code: int
    samples: int
    tree: Any


class HeldBack:
    """Takes mixed batches and gives batches of one group, as large as the largest mixed batch so far.

    A full batch goes only once half another is held, so that no group ends with a batch of a few samples, which costs
    nearly as much as a full one; the last may be half as large again.

    Samples of different shapes (images of another size, longer sequences) are never put together: then a smaller batch
    is given. People of unknown group are left out.
    """

    def __init__(self) -> None:
        self._size = 0
        self._held: dict[int, list[_Piece]] = {}

    def add(self, tree: Any, codes: torch.Tensor) -> Iterator[PureBatch]:
        """Hold a batch's samples back, and give the batches that are full now.

        Args:
            tree: any nesting of tuples, lists and dicts; tensors and lists with as many entries as there are codes are
                taken apart, anything else is the same for all samples.
            codes: int64 ``[samples]``, group codes.

        Raises:
            InputError: something in the batch cannot be taken apart.
        """
        samples = len(codes)
        self._size = max(self._size, samples)
        for code in sorted(set(codes.tolist()) - {UNKNOWN}):
            piece = _taken(tree, samples, (codes == code).nonzero().flatten())
            held = self._held.setdefault(code, [])
            if held and not held[0].fits(piece):
                yield self._given(code)
            held.append(piece)
            total = sum(p.samples for p in held)
            if 2 * total >= 3 * self._size:
                later: list[_Piece] = []
                while total > self._size:
                    last = held.pop()
                    kept, over = last.cut(max(last.samples - (total - self._size), 0))
                    later.insert(0, over)
                    if kept.samples:
                        held.append(kept)
                    total -= over.samples
                yield self._given(code)
                held += later

    def rest(self, code: int) -> Iterator[PureBatch]:
        """What is left of a group: one batch, or none."""
        if self._held.get(code):
            yield self._given(code)

    def _given(self, code: int) -> PureBatch:
        pieces = list(self._held[code])
        self._held[code].clear()
        return PureBatch(code, sum(p.samples for p in pieces), _joined(pieces))


@dataclass(frozen=True)
class _Piece:
    """Some samples of one batch."""

    samples: int
    leaves: Leaves

    def fits(self, other: _Piece) -> bool:
        mine, theirs = self.leaves, other.leaves
        if mine.spec != theirs.spec or mine.per_sample != theirs.per_sample:
            return False
        return all(map(_alike, mine.values, theirs.values, mine.per_sample))

    def cut(self, at: int) -> tuple[_Piece, _Piece]:
        before, after = self.leaves.rows(slice(None, at)), self.leaves.rows(slice(at, None))
        return _Piece(at, before), _Piece(self.samples - at, after)


def _taken(tree: Any, samples: int, rows: torch.Tensor) -> _Piece:
    leaves = Leaves.of(tree, samples)
    if len(rows) < samples:
        for value, per_sample in zip(leaves.values, leaves.per_sample, strict=True):
            if not per_sample and not isinstance(value, (torch.Tensor, *PLAIN)):
                raise InputError(NOT_DIVISIBLE.format(kind=type(value).__name__))
        leaves = leaves.rows(rows)
    return _Piece(len(rows), leaves)


def _alike(a: Any, b: Any, per_sample: bool) -> bool:
    """Whether two leaves go together: of one shape apart from the samples, or the same for all samples."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.device != b.device:
            return False
        return a.shape[1:] == b.shape[1:] if per_sample else torch.equal(a, b)
    return type(a) is type(b) and (per_sample or (isinstance(a, PLAIN) and a == b))


def _joined(pieces: Sequence[_Piece]) -> Any:
    first = pieces[0].leaves
    if len(pieces) == 1:
        return first.tree()
    values = []
    for place, own in enumerate(first.per_sample):
        parts = [p.leaves.values[place] for p in pieces]
        if not own:
            values.append(parts[0])
        elif isinstance(parts[0], torch.Tensor):
            values.append(torch.cat(parts))
        else:
            values.append([v for part in parts for v in part])
    return Leaves(values, first.per_sample, first.spec).tree()
