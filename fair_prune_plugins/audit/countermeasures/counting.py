"""Several runs before and after countermeasures on the same people: counted once, resampled together.

People who are alike in everything that is compared (groups, truth, who was right in which run at which step) are one
cell, so that steps, runs and attributes are all paired and a resample is one multinomial draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.evaluation.intervals import resample
from fair_prune_plugins.evaluation.metrics import PairedMeasures, measure_pair
from fair_prune_plugins.postprocessing.scores import BoolArray, FloatArray, IntArray

BLOCK = 2_000_000
"""Counts drawn at a time: memory stays flat however many cells there are."""


@dataclass(frozen=True)
class Table:
    """People by cell.

    Attributes:
        people: per cell ``[K]``.
        rows: of each attribute, the cell's group ``[K]``; the last row is people of unknown group.
        groups: of each attribute, how many there are.
        truth: 0 or 1 per cell ``[K]``, all 0 where only right and wrong count.
        right: who was right, bool ``[steps, runs, K]``; step 0 is before.
        classes: 2 where truth counts, else 1.
    """

    people: IntArray
    rows: tuple[IntArray, ...]
    groups: tuple[int, ...]
    truth: IntArray
    right: BoolArray
    classes: int

    @classmethod
    def of(
        cls,
        rows: Sequence[IntArray],
        groups: Sequence[int],
        truth: IntArray | None,
        right: Sequence[Sequence[BoolArray]],
    ) -> Table:
        """Count people.

        Args:
            rows: of each attribute ``[N]``, below ``groups + 1``.
            groups: of each attribute.
            truth: 0 or 1 ``[N]``; ``None`` where only right and wrong count.
            right: step by step, run by run ``[N]``.
        """
        answers = np.array([list(step) for step in right])
        true = np.zeros(answers.shape[-1], dtype=np.int64) if truth is None else truth
        cell = np.zeros_like(true)
        for column in (*rows, true, *answers.reshape(-1, len(true)).astype(np.int64)):
            # Made dense again after every column, so that numbers of cells never overflow.
            cell = np.unique(cell * (int(column.max()) + 1) + column, return_inverse=True)[1]
        _, first, people = np.unique(cell, return_index=True, return_counts=True)
        return cls(
            people.astype(np.int64),
            tuple(row[first] for row in rows),
            tuple(groups),
            true[first],
            answers[..., first],
            1 if truth is None else 2,
        )

    def draws(self, resamples: int, rng: np.random.Generator) -> Iterator[IntArray]:
        """Resamples ``[r, K]`` in blocks that together are ``resamples``."""
        widest = max(len(self.people), 4 * self.classes * (max(self.groups) + 1))
        block = max(1, BLOCK // widest)
        for start in range(0, resamples, block):
            yield resample(self.people, min(block, resamples - start), rng)

    def measures(self, counts: IntArray, attribute: int, step: int, run: int) -> PairedMeasures:
        """Metrics after a step beside those before, of counts ``[..., K]``."""
        shape = (self.groups[attribute] + 1, self.classes, 2, 2)
        after, before = self.right[step, run].astype(np.int64), self.right[0, run].astype(np.int64)
        place = np.ravel_multi_index((self.rows[attribute], self.truth, after, before), shape)
        order = np.argsort(place, kind="stable")
        occupied, starts = np.unique(place[order], return_index=True)
        cells = np.zeros((*counts.shape[:-1], int(np.prod(shape))), dtype=np.int64)
        cells[..., occupied] = np.add.reduceat(counts[..., order], starts, axis=-1)
        return measure_pair(cells.reshape(*counts.shape[:-1], *shape))

    def rare_ratio(self, counts: IntArray, step: int, run: int, value: int) -> FloatArray:
        """How often ``value`` is answered over how often it is true ``[...]``, NaN where it never is."""
        true = (self.truth == value).astype(np.int64)
        answered = np.where(self.right[step, run], true, 1 - true)
        often, really = counts @ answered, counts @ true
        ratio: FloatArray = np.divide(often, really, out=np.full(really.shape, np.nan), where=really > 0)
        return ratio
