"""How sure a number is: percentile bootstrap over cells, and an exact interval where the bootstrap has nothing to say.

Resampling ``N`` people with replacement and counting them by cell gives a multinomial draw over the cells, so the
counts are drawn directly: the same distribution as resampling rows, thousands of times faster, and paired, because a
cell holds what *both* models did to a person. Group sizes vary from resample to
resample, as they do from one sample of people to the next; where a resample lacks a group, what needs that group is
undefined there and left out of the percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, Proportion, difference

CONFIDENCE_RANGE = "confidence must lie between 0 and 1, got {confidence}; 0.95 is usual"
TOO_FEW_RESAMPLES = "resamples={resamples} is too few for confidence {confidence}: at least {least}, usually 1000"


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower end, in the unit of the number it belongs to.
        high: upper end.
        undefined: resamples that were left out because the number is undefined in them (they lack a group, or a group's
            positives). Where this is a large share, the interval rests on little.
        method: ``"bootstrap"`` (percentiles), or ``"exact"`` (binomial, Clopper & Pearson 1934) where every person in
            question had the same outcome: each resample is then like the data and percentiles would claim certainty.
            ``"delong"`` for areas under ROC curves (DeLong, DeLong & Clarke-Pearson 1988), and ``"fisher"`` for rank
            correlations (Bonett & Wright 2000), both made by ``audit``.
    """

    low: float
    high: float
    undefined: int = 0
    method: Literal["bootstrap", "exact", "delong", "fisher"] = "bootstrap"


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; both ``None`` where the number is undefined, never 0 instead."""

    value: float | None
    interval: Interval | None


class Estimator:
    """Turns a number and its resampled values into an :class:`Estimate`.

    Args:
        confidence: coverage aimed at, between 0 and 1.
        resamples: number of resamples there will be.

    Raises:
        InputError: ``confidence`` outside (0, 1), or too few resamples to have its percentiles.
    """

    def __init__(self, confidence: float, resamples: int) -> None:
        if not 0 < confidence < 1:
            raise InputError(CONFIDENCE_RANGE.format(confidence=confidence))
        self._tail = (1 - confidence) / 2
        least = int(np.ceil(1 / self._tail - 1e-9))
        if resamples < least:
            raise InputError(TOO_FEW_RESAMPLES.format(resamples=resamples, confidence=confidence, least=least))

    def estimate(self, value: npt.ArrayLike, draws: FloatArray) -> Estimate:
        """From a number and its resampled values ``[R]``; NaN is undefined, in both."""
        number = float(np.asarray(value))
        if np.isnan(number):
            return Estimate(None, None)
        defined = draws[~np.isnan(draws)]
        if not defined.size:
            return Estimate(number, None)
        low, high = np.quantile(defined, [self._tail, 1 - self._tail])
        return Estimate(number, Interval(float(low), float(high), undefined=draws.size - defined.size))

    def proportion(self, observed: Proportion, draws: Proportion) -> Estimate:
        """A share of people: exact where all or none of them are hits, else by bootstrap."""
        hits, people = int(observed.hits), int(observed.people)
        if people and hits in (0, people):
            slack = self._slack(people)
            low, high = (1 - slack, 1.0) if hits else (0.0, slack)
            return Estimate(hits / people, Interval(low, high, method="exact"))
        return self.estimate(observed.value, draws.value)

    def change(self, value: npt.ArrayLike, draws: FloatArray, people: int, flips: int) -> Estimate:
        """A paired change of accuracy: exact where nobody's outcome flipped, else by bootstrap.

        With no flip among ``people``, the chance of a flip is below the exact bound, and so is the size of any change.
        """
        if people and not flips:
            slack = self._slack(people)
            return Estimate(0.0, Interval(-slack, slack, method="exact"))
        return self.estimate(value, draws)

    def _slack(self, people: int) -> float:
        """The largest chance of an event that is compatible with not seeing it once: ``1 - tail ** (1 / people)``."""
        return float(-np.expm1(np.log(self._tail) / people))


def resample(cells: IntArray, resamples: int, rng: np.random.Generator) -> IntArray:
    """Draw resamples of the same number of people.

    Args:
        cells: int64 counts of any shape, at least one person.
        resamples: how many, ``R``.
        rng: source of randomness.

    Returns:
        int64 ``[R, *cells.shape]``; each resample sums to the number of people.
    """
    people = int(cells.sum())
    occupied = np.flatnonzero(cells)
    draws = np.zeros((resamples, cells.size), dtype=np.int64)
    # Only occupied cells: numpy gives what rounding leaves over to the last one, which must not be an empty cell.
    draws[:, occupied] = rng.multinomial(people, cells.flat[occupied] / people, size=resamples)
    return draws.reshape(resamples, *cells.shape)


def gap_by_chance(by_group: Proportion, confidence: float, resamples: int, rng: np.random.Generator) -> float | None:
    """The accuracy gap that groups of these sizes show by luck alone when all are served equally well.

    A gap is never negative and its interval hardly ever reaches 0: whether it stands for anything is seen by comparing
    it with this.

    Args:
        by_group: right answers and people per group ``[G]``.
        confidence: share of lucky gaps to stay below.
        resamples: simulated data sets.
        rng: source of randomness.

    Returns:
        That quantile of the gap when every person is classified rightly with the groups' common accuracy; ``None`` with
        fewer than two groups that have people.
    """
    people = by_group.people[by_group.people > 0]
    if len(people) < 2:
        return None
    accuracy = by_group.hits.sum() / people.sum()
    lucky = difference(rng.binomial(people, accuracy, size=(resamples, len(people))) / people)
    return float(np.quantile(lucky, confidence))
