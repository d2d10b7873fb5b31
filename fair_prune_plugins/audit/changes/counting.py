"""People counted by what happened to them, so that resamples of people are resamples of counts.

Each person has six flags per question; a table counts people by group and flags, and everything reported is a sum over
the flags that qualify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.evaluation.intervals import resample
from fair_prune_plugins.evaluation.metrics import Proportion
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import BoolArray, FloatArray, IntArray

FLAGS = ("dense_right", "pruned_right", "changed", "dense_positive", "unsure", "far")
"""Right under the dense model and under the pruned one, an exemplar, dense answer 1, dense model unsure, far apart."""

_CELLS = 2 ** len(FLAGS)
_ON = {name: (np.arange(_CELLS) >> i & 1).astype(bool) for i, name in enumerate(FLAGS)}
_CHANGED = _ON["changed"]

SUMS: dict[str, BoolArray] = {
    "people": np.ones(_CELLS, dtype=bool),
    "exemplars": _CHANGED,
    "right_to_wrong": _ON["dense_right"] & ~_ON["pruned_right"],
    "wrong_to_right": ~_ON["dense_right"] & _ON["pruned_right"],
    "wrong_to_wrong": ~_ON["dense_right"] & ~_ON["pruned_right"] & _CHANGED,
    "positive_to_negative": _CHANGED & _ON["dense_positive"],
    "negative_to_positive": _CHANGED & ~_ON["dense_positive"],
    "unsure": _ON["unsure"],
    "unsure_exemplars": _ON["unsure"] & _CHANGED,
    "dense_error": ~_ON["dense_right"],
    "pruned_error": ~_ON["pruned_right"],
    "dense_error_of_exemplars": ~_ON["dense_right"] & _CHANGED,
    "pruned_error_of_exemplars": ~_ON["pruned_right"] & _CHANGED,
    "far": _ON["far"],
}
"""What is counted, and which cells count for it."""

_QUALIFIES = np.stack(list(SUMS.values()), axis=1).astype(np.float64)


@dataclass(frozen=True)
class Counted:
    """Sums over people by name (:data:`SUMS`): observed ``[G]`` and resampled ``[R, G]``, and over everybody."""

    observed: dict[str, IntArray]
    draws: dict[str, IntArray]
    all_exemplars: int
    all_exemplars_draws: IntArray


@dataclass(frozen=True)
class Tally:
    """People by a whole number that takes few values.

    Attributes:
        taken: the values, int64 ``[V]``, ascending.
        observed: people per group and value ``[G, V]``.
        draws: the same, resampled ``[R, G, V]``.
    """

    taken: IntArray
    observed: IntArray
    draws: IntArray

    def mean(self, unit: float) -> tuple[FloatArray, FloatArray]:
        """The mean in units of ``unit``: observed ``[G]`` and resampled ``[R, G]``; NaN without people."""
        return _means(self.observed, self.taken * unit), _means(self.draws, self.taken * unit)

    def above_zero(self) -> tuple[Proportion, Proportion]:
        """People with more than 0: observed ``[G]`` and resampled ``[R, G]``."""
        some = self.taken > 0
        observed = Proportion(self.observed[..., some].sum(axis=-1), self.observed.sum(axis=-1))
        return observed, Proportion(self.draws[..., some].sum(axis=-1), self.draws.sum(axis=-1))


def flag_codes(flags: dict[str, BoolArray]) -> npt.NDArray[np.uint8]:
    """Each person's flags as a cell number, uint8 ``[N]``: small, as there are many people and questions."""
    return np.packbits(np.stack([flags[name] for name in FLAGS], axis=1), axis=1, bitorder="little")[:, 0]


def rows_of(groups: GroupLabels | None, people: int) -> tuple[npt.NDArray[np.int64], int]:
    """Each person's row in a table and how many groups there are; the last row is people of unknown group.

    Without groups everyone is one group.
    """
    if groups is None:
        return np.zeros(people, dtype=np.int64), 1
    return np.where(groups.codes < 0, len(groups.names), groups.codes), len(groups.names)


def count(
    codes: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], n_groups: int, resamples: int, rng: np.random.Generator
) -> Counted:
    """Count people by group and flags, observed and in resamples."""
    table = np.bincount(rows * _CELLS + codes, minlength=(n_groups + 1) * _CELLS).reshape(n_groups + 1, _CELLS)
    draws = resample(table.astype(np.int64), resamples, rng)
    # Counts are far below 2**53, so sums of them as floats are exact, and a product of matrices is fast.
    observed = (table @ _QUALIFIES).astype(np.int64)
    drawn = (draws.astype(np.float64).reshape(-1, _CELLS) @ _QUALIFIES).astype(np.int64).reshape(*draws.shape[:2], -1)
    which = list(SUMS).index("exemplars")
    return Counted(
        observed={name: observed[:-1, i] for i, name in enumerate(SUMS)},
        draws={name: drawn[:, :-1, i] for i, name in enumerate(SUMS)},
        all_exemplars=int(observed[:, which].sum()),
        all_exemplars_draws=drawn[:, :, which].sum(axis=1),
    )


def tally(
    values: npt.NDArray[np.integer],
    rows: npt.NDArray[np.int64],
    n_groups: int,
    resamples: int,
    rng: np.random.Generator,
) -> Tally:
    """Count people by group and a whole number of few values, observed and in resamples.

    Args:
        values: ``[N]``, 0 or more.
        rows: as :func:`rows_of`.
        n_groups: likewise.
        resamples: how many.
        rng: source of randomness.
    """
    taken, index = np.unique(values, return_inverse=True)
    table = np.bincount(rows * len(taken) + index, minlength=(n_groups + 1) * len(taken))
    cells = table.reshape(n_groups + 1, len(taken)).astype(np.int64)
    return Tally(taken.astype(np.int64), cells[:-1], resample(cells, resamples, rng)[:, :-1])


def _means(cells: IntArray, weights: npt.NDArray[np.floating]) -> FloatArray:
    people = cells.sum(axis=-1)
    mean: FloatArray = np.divide(cells @ weights, people, out=np.full(people.shape, np.nan), where=people > 0)
    return mean


def changed_answers(changed: Sequence[BoolArray]) -> npt.NDArray[np.int64]:
    """How many of a person's answers changed, int64 ``[N]``."""
    total = np.zeros(len(changed[0]), dtype=np.int64)
    for column in changed:
        total += column
    return total
