"""Batches of one group each, from batches in which groups are mixed: samples are held back until they fill one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import UNKNOWN

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
            if total >= self._size:
                last, over = held.pop(), total - self._size
                kept, rest = last.cut(last.samples - over)
                held.append(kept)
                yield self._given(code)
                if over:
                    held.append(rest)

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
    """Some samples of one batch: the leaves of its tree, and which of them have one entry per sample."""

    samples: int
    leaves: Sequence[Any]
    per_sample: Sequence[bool]
    spec: pytree.TreeSpec

    def fits(self, other: _Piece) -> bool:
        if self.spec != other.spec or self.per_sample != other.per_sample:
            return False
        return all(map(_alike, self.leaves, other.leaves, self.per_sample))

    def cut(self, at: int) -> tuple[_Piece, _Piece]:
        both = []
        for part in (slice(None, at), slice(at, None)):
            leaves = [leaf[part] if own else leaf for leaf, own in zip(self.leaves, self.per_sample, strict=True)]
            samples = at if part.stop is not None else self.samples - at
            both.append(_Piece(samples, leaves, self.per_sample, self.spec))
        return both[0], both[1]


def _taken(tree: Any, samples: int, rows: torch.Tensor) -> _Piece:
    def is_sample_list(node: Any) -> bool:
        return isinstance(node, list) and len(node) == samples and not any(isinstance(v, torch.Tensor) for v in node)

    leaves, spec = pytree.tree_flatten(tree, is_leaf=is_sample_list)
    own = [is_sample_list(v) or (isinstance(v, torch.Tensor) and v.ndim > 0 and len(v) == samples) for v in leaves]
    if len(rows) < samples:
        for leaf, per_sample in zip(leaves, own, strict=True):
            if not per_sample and not isinstance(leaf, (torch.Tensor, *PLAIN)):
                raise InputError(NOT_DIVISIBLE.format(kind=type(leaf).__name__))
        leaves = [_rows(leaf, rows) if per_sample else leaf for leaf, per_sample in zip(leaves, own, strict=True)]
    return _Piece(len(rows), leaves, own, spec)


def _rows(leaf: Any, rows: torch.Tensor) -> Any:
    return leaf[rows.to(leaf.device)] if isinstance(leaf, torch.Tensor) else [leaf[i] for i in rows.tolist()]


def _alike(a: Any, b: Any, per_sample: bool) -> bool:
    """Whether two leaves go together: of one shape apart from the samples, or the same for all samples."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.device != b.device:
            return False
        return a.shape[1:] == b.shape[1:] if per_sample else torch.equal(a, b)
    return type(a) is type(b) and (per_sample or (isinstance(a, PLAIN) and a == b))


def _joined(pieces: Sequence[_Piece]) -> Any:
    first = pieces[0]
    if len(pieces) == 1:
        return pytree.tree_unflatten(list(first.leaves), first.spec)
    leaves = []
    for place, own in enumerate(first.per_sample):
        parts = [p.leaves[place] for p in pieces]
        if not own:
            leaves.append(parts[0])
        elif isinstance(parts[0], torch.Tensor):
            leaves.append(torch.cat(parts))
        else:
            leaves.append([v for part in parts for v in part])
    return pytree.tree_unflatten(leaves, first.spec)
