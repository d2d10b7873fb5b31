"""Thresholds that bring groups' true positive rates, and false positive rates, as close together as accuracy allows.

For one threshold per group this is a search for the narrowest *window* of rates in which every group has a cut and the
best such cuts together are accurate enough. Along a group's cuts both rates only rise, so the cuts within a window are
neighbours, and the most accurate of neighbours is looked up in a table of stretches of length ``2 ** k``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fair_prune_plugins.postprocessing.cuts import Cuts
from fair_prune_plugins.postprocessing.scores import FloatArray, IntArray

FINEST = 201
"""Windows begin at every rate that occurs, or at steps of half a point where there are more different rates."""

_SAME = 1e-12
_CLOSE = 1e-9


def rates(cuts: Cuts, *, false_positives: bool) -> list[FloatArray]:
    """True positive rates per group and cut ``[G, m + 1]``, and the false positive ones where asked for."""
    found = [cuts.true_positives / cuts.positives[:, None]]
    if false_positives:
        found.append(cuts.false_positives / cuts.negatives[:, None])
    return found


def gaps(found: Sequence[FloatArray]) -> FloatArray:
    """The largest difference between groups in any of the rates, at each common cut ``[m + 1]``."""
    spread: FloatArray = np.max([r.max(axis=0) - r.min(axis=0) for r in found], axis=0)
    return spread.round(12)  # equal fractions must be equal numbers where ties are decided


def narrowest(groups: Sequence[Cuts], need: int, *, false_positives: bool) -> list[int]:
    """The cut of each group for which the largest difference in rates is smallest.

    Args:
        groups: cuts of each group's people, one row of counts each, all with people of both labels.
        need: people to decide rightly at least, over all these groups; it must be attainable.
        false_positives: compare false positive rates too, not only true positive rates.

    Returns:
        index of the cut per group. Exact where each of the rates takes no more than :data:`FINEST` values, else within
        half a point. Of windows equally narrow the most accurate one, in a group the most accurate cut.
    """
    found = [rates(cuts, false_positives=false_positives) for cuts in groups]
    begins = [_begins([rate[axis][0] for rate in found]) for axis in range(len(found[0]))]
    tables = [_Best(cuts.right[0]) for cuts in groups]

    def accuracy(width: float) -> IntArray:
        """Most right decisions for a window of this width at each place, -1 where a group has no cut in it."""
        total: IntArray = np.zeros([len(b) for b in begins], dtype=np.int64)
        possible = np.ones(total.shape, dtype=np.bool_)
        for rate, table in zip(found, tables, strict=True):
            low, high = _within(rate, begins, width)
            possible &= low <= high
            total += table.highest(np.minimum(low, high), high)
        return np.where(possible, total, -1)

    wide, tight = 1.0, 0.0
    if accuracy(0.0).max() >= need:
        wide = 0.0
    while wide - tight > _CLOSE:
        middle = (wide + tight) / 2
        if accuracy(middle).max() >= need:
            wide = middle
        else:
            tight = middle
    place = np.unravel_index(int(accuracy(wide).argmax()), [len(b) for b in begins])
    chosen = []
    corner = [b[[at]] for b, at in zip(begins, place, strict=True)]
    for cuts, rate in zip(groups, found, strict=True):
        low, high = (int(end.item()) for end in _within(rate, corner, wide))
        chosen.append(cuts.best(cuts.right[0, low : high + 1], low=low))
    return chosen


def _begins(values: Sequence[FloatArray]) -> FloatArray:
    different: FloatArray = np.unique(np.concatenate(values).round(12))
    return different if len(different) <= FINEST else np.linspace(0, 1, FINEST)


def _within(rate: Sequence[FloatArray], begins: Sequence[FloatArray], width: float) -> tuple[IntArray, IntArray]:
    """First and last cut of a group in each window, of the shape of all places; first above last where there is none.

    Args:
        rate: one array ``[1, m + 1]`` per rate that is compared.
        begins: where windows begin, one array per rate.
        width: of all windows.
    """
    lows, highs = [], []
    for axis, (values, begin) in enumerate(zip(rate, begins, strict=True)):
        shape = [-1 if axis == other else 1 for other in range(len(begins))]
        lows.append(np.searchsorted(values[0], begin - _SAME, side="left").reshape(shape))
        highs.append(np.searchsorted(values[0], begin + (width + _SAME), side="right").reshape(shape) - 1)
    if len(begins) == 1:
        return lows[0], highs[0]
    return np.maximum(*lows), np.minimum(*highs)


class _Best:
    """The largest of any stretch of an array, looked up as the larger of two stretches of a power of two."""

    def __init__(self, values: IntArray) -> None:
        size = len(values)
        levels = [values]
        while 2 ** len(levels) <= size:
            before, step = levels[-1], 2 ** (len(levels) - 1)
            level = before.copy()
            level[: size - step] = np.maximum(before[: size - step], before[step:])
            levels.append(level)
        self._table = np.stack(levels)

    def highest(self, low: IntArray, high: IntArray) -> IntArray:
        """The largest from ``low`` to ``high``, both included."""
        low = np.maximum(low, 0)
        length = np.maximum(high - low + 1, 1)
        level = np.frexp(length)[1] - 1
        low = np.minimum(low, self._table.shape[1] - 1)
        found: IntArray = np.maximum(self._table[level, low], self._table[level, np.maximum(high - 2**level + 1, 0)])
        return found
