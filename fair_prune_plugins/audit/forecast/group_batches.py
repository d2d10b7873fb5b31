"""People of one group at a time, from batches in which groups are mixed, as often as they are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from tqdm.auto import tqdm

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import batch_size
from fair_prune_plugins.groups import UNKNOWN, GroupReader
from fair_prune_plugins.statistics.batches import BatchReader, rows
from fair_prune_plugins.statistics.regrouping import HeldBack, PureBatch

CHANGED = "batches yields {got} people of {group!r} now and yielded {before} before; it must yield the same people"

PART = 16
"""People whose gradient is added up at a time; the noise of the mean is told from how these parts differ."""


class People:
    """Batches of one group each, as often as they are read."""

    def __init__(self, batches: Iterable[Any], reader: BatchReader, groups: GroupReader, progress: bool) -> None:
        self._batches, self._reader, self._groups, self._progress = batches, reader, groups, progress
        self.seen = 0

    def read(self, what: str, chosen: dict[int, torch.Tensor] | None = None) -> Iterator[PureBatch]:
        """Batches of one group each.

        Args:
            what: shown beside the progress bar.
            chosen: by group code, bool ``[people]``: who of the group is taken, in the order of the data; ``None``
                takes everyone.
        """
        total = len(self._batches) if isinstance(self._batches, Sized) else None
        held, self.seen = HeldBack(), 0
        before: dict[int, int] = {}
        codes_seen: set[int] = set()
        for batch in tqdm(self._batches, total=total, desc=what, disable=not self._progress, leave=False):
            model_inputs = self._reader.read_inputs(batch)
            samples = batch_size(model_inputs)
            if not samples:
                continue
            self.seen += samples
            codes = self._groups.read(batch, samples)
            codes_seen |= set(codes.tolist()) - {UNKNOWN}
            tree = (model_inputs, self._reader.read_targets(batch))
            if chosen is not None:
                wanted = self._wanted(codes, chosen, before)
                tree, codes = rows(tree, samples, wanted), codes[wanted]
            if len(codes):
                yield from held.add(tree, codes)
        for code in sorted(codes_seen):
            yield from held.rest(code)

    def _wanted(self, codes: torch.Tensor, chosen: dict[int, torch.Tensor], before: dict[int, int]) -> torch.Tensor:
        """Row numbers of the chosen people of one batch."""
        keep = torch.zeros(len(codes), dtype=torch.bool)
        for code in sorted(set(codes.tolist()) - {UNKNOWN}):
            mine = (codes == code).nonzero().flatten()
            first = before.get(code, 0)
            before[code] = first + len(mine)
            of_group = chosen.get(code, torch.zeros(0, dtype=torch.bool))
            if before[code] > len(of_group):
                name = self._groups.known_names[code]
                raise InputError(CHANGED.format(group=name, got=f"{before[code]} or more", before=len(of_group)))
            keep[mine] = of_group[first : before[code]]
        return keep.nonzero().flatten()


def parts(batch: PureBatch) -> Iterator[PureBatch]:
    """A batch in parts of nearly equal size, at most :data:`PART` people each, and two of them if it has two people."""
    count = min(batch.samples, max(2, -(-batch.samples // PART)))
    cuts = [batch.samples * k // count for k in range(count + 1)]
    for start, end in itertools.pairwise(cuts):
        yield PureBatch(batch.code, end - start, rows(batch.tree, batch.samples, slice(start, end)))
