"""Whether compression changed a group's accuracy at all: sign-flip tests per group, with Holm's correction.

Each person's change is how many more runs are right about them, pruned minus dense. If compression does nothing to the
group's accuracy, changes of either sign are as likely; the p-value is the chance that a sum of changes with random
signs is as far from 0. With one run per model these are the discordant pairs of McNemar's test, and the test is its
exact form.
"""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.audit.measures.group_result import ChangeTest
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray

_EXACT = 4096
"""Sums with more possible values than this are taken as normally distributed."""


def count_changes(changes: IntArray, codes: IntArray, groups: int, largest: int) -> IntArray:
    """Count people by group and change.

    Args:
        changes: int64 ``[N]`` from ``-largest`` to ``largest``.
        codes: ``[N]``, group, or -1.
        groups: number of groups.
        largest: the largest possible change.

    Returns:
        int64 ``[G, 2 * largest + 1]``; no change is in the middle.
    """
    known = codes >= 0
    width = 2 * largest + 1
    cell = codes[known] * width + changes[known] + largest
    return np.bincount(cell, minlength=groups * width).astype(np.int64).reshape(groups, width)


def sign_flip(counts: IntArray, minimum: int = 1) -> FloatArray:
    """Two-sided p-values ``[G]`` from counts by change ``[G, 2 * largest + 1]``; 1 where nobody changed.

    NaN for groups of fewer than ``minimum`` people, or of nobody: they are not tested.
    """
    largest = counts.shape[1] // 2
    up, down = counts[:, largest + 1 :], counts[:, :largest][:, ::-1]
    sums = np.abs(((up - down) * np.arange(1, largest + 1)).sum(axis=1))
    p = np.full(len(counts), np.nan)
    for i in np.flatnonzero(counts.sum(axis=1) >= max(minimum, 1)):
        p[i] = _two_sided(up[i] + down[i], int(sums[i]))
    return p


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjusted p-values, any shape, NaN left out of the family (Holm 1979)."""
    flat = p.ravel()
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(flat.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * factors), 1.0) if len(order) else 0.0
    return adjusted.reshape(p.shape)


class Family:
    """All tests of one pruned model and one sensitive attribute.

    Args:
        p: float64 ``[outputs, G]``, the last row overall accuracy where the task has it; NaN is not tested.
    """

    def __init__(self, p: FloatArray) -> None:
        self._p, self._holm = p, holm(p)
        self.size = int((~np.isnan(p)).sum())

    def test(self, output: int, group: int) -> ChangeTest | None:
        """One test, ``None`` where it was not made. ``output`` -1 is the last row, overall accuracy."""
        if np.isnan(self._p[output, group]):
            return None
        return ChangeTest(float(self._p[output, group]), float(self._holm[output, group]), self.size)


def _two_sided(people: IntArray, observed: int) -> float:
    """Chance that ``|sum of ± j|`` over ``people[j - 1]`` people of change ``j`` reaches ``observed``."""
    from scipy.stats import binom, norm

    sizes = np.flatnonzero(people) + 1
    if observed == 0 or not sizes.size:
        return 1.0
    if sizes.size == 1:
        n, ahead = int(people[sizes[0] - 1]), observed // int(sizes[0])
        return float(min(2 * binom.sf((n + ahead) // 2 - 1, n, 0.5), 1.0))
    reach = int((sizes * people[sizes - 1]).sum())
    if reach >= _EXACT:
        spread = np.sqrt((sizes**2 * people[sizes - 1]).sum())
        return float(2 * norm.sf(observed / spread))
    chances = np.ones(1)
    for size in sizes.tolist():
        of_size = int(people[size - 1])
        steps = np.zeros(2 * size * of_size + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(of_size + 1), of_size, 0.5)
        chances = np.convolve(chances, steps)
    return float(min(2 * chances[reach + observed :].sum(), 1.0))
