"""Resamples of people as weights on blocks of people, and sums over people under all of them at once.

People are dealt at random into at most 2,000 blocks, one person each where there are no more people than that, and
blocks are drawn with replacement. Any sum over people (of hits, of probabilities, of products of answers) is then one
small matrix product for all resamples, and every number of every model, output and group rests on the same resamples:
all of it is paired. With blocks of one person this is the bootstrap of people; with larger ones it has its mean and
variance to within the few percent by which the variance over 2,000 blocks is known. The people of a small group lie in
blocks of their own, so that its sums have the bootstrap's steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.evaluation.intervals import resample
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray

BLOCKS = 2000
FOLDS = 5
_ENTRIES = 2**18
"""Numbers per array that is worked on at once: 2 MiB."""

_SPARSE = 8
"""A table with more than this many times as many entries as people is mostly zeros."""


def chunks(length: int, width: int) -> Iterator[slice]:
    """Slices of ``length`` rows of ``width`` numbers that are small enough to be worked on at once."""
    step = max(_ENTRIES // max(width, 1), 1)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class Resampling:
    """Blocks of people and how often each is drawn.

    Args:
        ids: who the people are; blocks follow ids, so that the order of rows changes nothing.
        resamples: how many, ``R``.
        rng: source of randomness.

    Attributes:
        block: int64 ``[N]``, each person's block.
        blocks: how many there are, ``B``.
        weights: float64 ``[B, R + 1]``; the first column is the data as they are, all ones.
    """

    def __init__(self, ids: tuple[str, ...], resamples: int, rng: np.random.Generator) -> None:
        people = len(ids)
        self.blocks = min(people, BLOCKS)
        dealt = np.empty(people, dtype=np.int64)
        dealt[np.argsort(np.array(ids), kind="stable")] = rng.permutation(people)
        self.block: IntArray = dealt % self.blocks
        drawn = resample(np.ones(self.blocks, dtype=np.int64), resamples, rng)
        self.weights: FloatArray = np.ones((self.blocks, resamples + 1))
        self.weights[:, 1:] = drawn.T

    @property
    def columns(self) -> int:
        """``R + 1``: the data as they are, and the resamples."""
        return int(self.weights.shape[1])

    def table(
        self, codes: IntArray, groups: int, cell: IntArray | None, cells: int, values: npt.NDArray[Any] | None = None
    ) -> Table:
        """Sum values by group, cell and block.

        Args:
            codes: int64 ``[N]``, from -1 (in no group) to ``groups - 1``.
            groups: number of groups, ``G``.
            cell: int64 ``[N]`` from 0 to ``cells - 1``; ``None`` where there is only one.
            cells: number of cells.
            values: ``[N]``; ``None`` counts people.
        """
        known = codes >= 0
        all_known = bool(known.all())
        rows = codes * cells if cell is None else codes * cells + cell
        block = self.block
        if not all_known:
            rows, block = rows[known], block[known]
            values = None if values is None else values[known]
        size = groups * cells
        if size * self.blocks > _SPARSE * len(codes) + 10**6:
            from scipy.sparse import coo_array

            filled = np.ones(len(rows)) if values is None else values.astype(np.float64)
            sums: Any = coo_array((filled, (rows, block)), shape=(size, self.blocks)).tocsr()
        else:
            index = rows * self.blocks + block
            sums = np.bincount(index, weights=values, minlength=size * self.blocks).reshape(size, self.blocks)
            sums = sums.astype(np.float64, copy=False)
        return Table(sums, self.weights, cells)


class Table:
    """Sums by group, cell and block, and what they are in each resample."""

    def __init__(self, sums: Any, weights: FloatArray, cells: int) -> None:
        self._sums, self._weights, self._cells = sums, weights, cells

    def draw(self, groups: slice, columns: slice) -> FloatArray:
        """Sums ``[columns, groups, cells]``, of the data as they are in column 0 and of the resamples in the others."""
        chosen = self._sums[groups.start * self._cells : groups.stop * self._cells]
        product = np.asarray(chosen @ self._weights[:, columns])
        return product.reshape(groups.stop - groups.start, self._cells, -1).transpose(2, 0, 1)

    def draw_all(self, columns: slice) -> FloatArray:
        """Sums over all groups, ``[columns, cells]``."""
        by_cell = [np.asarray(self._sums[i :: self._cells].sum(axis=0)).ravel() for i in range(self._cells)]
        product: FloatArray = np.stack(by_cell) @ self._weights[:, columns]
        return product.T
