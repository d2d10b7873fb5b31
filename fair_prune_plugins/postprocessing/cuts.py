"""Every place where a list of scored people can be cut in two, and what each cut counts.

Cut 0 decides nobody 1, each further cut takes in the people of the next lower score. People of equal score cannot be
parted, so there are as many cuts as different scores, and one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fair_prune_plugins.postprocessing.rules import OWN, Cut
from fair_prune_plugins.postprocessing.scores import FloatArray, IntArray


@dataclass(frozen=True)
class Cuts:
    """All cuts of some people.

    Attributes:
        values: different scores ``[m]``, descending.
        true_positives: of each group, people of label 1 that each cut decides 1, ``[G, m + 1]``.
        false_positives: likewise of label 0.
    """

    values: FloatArray
    true_positives: IntArray
    false_positives: IntArray

    @classmethod
    def of(cls, score: FloatArray, labels: IntArray, codes: IntArray | None = None, groups: int = 1) -> Cuts:
        """Count the cuts of people.

        Args:
            score: ``[n]``.
            labels: 0 or 1 ``[n]``.
            codes: each person's row in the counts ``[n]``, below ``groups``; all in row 0 without.
            groups: rows.
        """
        values, place = np.unique(-score, return_inverse=True)
        row = np.zeros(len(score), dtype=np.int64) if codes is None else codes
        counts = np.zeros((2, groups, len(values) + 1), dtype=np.int64)
        np.add.at(counts, (1 - labels, row, place + 1), 1)
        true, false = counts.cumsum(axis=2)
        return cls(-values, true, false)

    @property
    def positives(self) -> IntArray:
        """People of label 1 per group ``[G]``."""
        return self.true_positives[:, -1]

    @property
    def negatives(self) -> IntArray:
        """People of label 0 per group ``[G]``."""
        return self.false_positives[:, -1]

    @property
    def people(self) -> IntArray:
        """People per group ``[G]``."""
        return self.positives + self.negatives

    @cached_property
    def selected(self) -> IntArray:
        """People decided 1 at each cut, all groups together ``[m + 1]``."""
        total: IntArray = (self.true_positives + self.false_positives).sum(axis=0)
        return total

    @cached_property
    def right(self) -> IntArray:
        """People decided rightly per group and cut ``[G, m + 1]``."""
        return self.true_positives + self.negatives[:, None] - self.false_positives

    @property
    def own(self) -> int:
        """The cut that the model makes by itself, at score 0."""
        return int((self.values > 0).sum())

    @cached_property
    def moved(self) -> IntArray:
        """People whom each cut decides otherwise than the model does by itself ``[m + 1]``."""
        changed: IntArray = np.abs(self.selected - self.selected[self.own])
        return changed

    def best(self, goodness: IntArray | FloatArray, *more: IntArray | FloatArray, low: int = 0) -> int:
        """The cut of the largest goodness; of equals the larger of ``more``, then the fewest moved, then the strictest.

        Args:
            goodness: ``[m + 1]`` or a stretch of it that begins at cut ``low``.
            more: likewise.
            low: the first cut in question.
        """
        moved = self.moved[low : low + len(goodness)]
        order = np.lexsort((np.arange(len(goodness)), moved, *(-m for m in reversed(more)), -goodness))
        return low + int(order[0])

    def cut(self, index: int) -> Cut:
        """The threshold of a cut: half-way between the scores it parts, 0 where that is what the model does itself.

        Half-way, so that an exported model whose logits differ in the last digits decides alike.
        """
        if index == self.own:
            return Cut((OWN,))
        if index == 0:
            return Cut((np.inf,))
        if index == len(self.values):
            return Cut((-np.inf,))
        above, below = self.values[index - 1], self.values[index]
        middle = below + (above - below) / 2
        return Cut((float(middle if below < middle <= above else above),))
