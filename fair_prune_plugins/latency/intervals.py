"""Percentiles of a timing, and how sure they are.

Iterations of one round share what the machine was doing at that moment, so they are not independent and resampling
them one by one would claim far too much. Whole rounds are resampled instead (a block bootstrap), with the same draw of
rounds for every model: models run side by side in each round, and a ratio of two keeps what the round did to both.

With few rounds a percentile interval is too narrow (called 95 %, it covered 91 % of simulated runs of 5 rounds and 93 %
of ten). The ends are moved outwards as Hesterberg (2015, "What Teachers Should Know About the Bootstrap", The American
Statistician 69(4), on expanded percentiles) proposes: 93 % and 96 % in the same simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval; the ends are ``None`` where one round cannot give any."""

    value: float
    low: float | None
    high: float | None


def draw_rounds(rounds: int, resamples: int, rng: np.random.Generator) -> IntArray:
    """How often each round is taken in each resample.

    Returns:
        int64 ``[resamples, rounds]``; every row sums to ``rounds``.
    """
    return rng.multinomial(rounds, np.full(rounds, 1.0 / rounds), size=resamples).astype(np.int64)


def resampled_quantiles(rounds: Sequence[FloatArray], quantiles: Sequence[float], draws: IntArray) -> FloatArray:
    """Quantiles of the pooled iterations in every resample of rounds.

    Equal to ``numpy.quantile`` (linear interpolation) of the resampled rounds put together, at the cost of one sort.

    Args:
        rounds: the iterations' times of each round; every round has at least one.
        quantiles: ``Q`` numbers in [0, 1].
        draws: ``[B, R]`` from :func:`draw_rounds`.

    Returns:
        float64 ``[B, Q]``, in the unit of ``rounds``.
    """
    times = np.concatenate(rounds)
    owner = np.repeat(np.arange(len(rounds)), [len(r) for r in rounds])
    order = np.argsort(times, kind="stable")
    times, owner = times[order], owner[order]
    result = np.empty((len(draws), len(quantiles)))
    for row, draw in enumerate(draws):
        upto = np.cumsum(draw[owner])  # how many resampled iterations are at or before each sorted one
        position = (upto[-1] - 1) * np.asarray(quantiles)
        below = np.floor(position)
        low = times[np.searchsorted(upto, below, side="right")]
        high = times[np.searchsorted(upto, np.ceil(position), side="right")]
        result[row] = low + (high - low) * (position - below)
    return result


def interval(resampled: FloatArray, rounds: int, confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Expanded percentile interval of one resampled number.

    Args:
        resampled: ``[B]`` values of the number.
        rounds: how many rounds there were; one round says nothing about its own variation.
        confidence: coverage aimed at, between 0 and 1.
    """
    if rounds < 2:
        return None, None
    tail = expanded_tail(rounds, confidence)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(rounds: int, confidence: float) -> float:
    """Tail of the resampled values to cut on each side: ``Phi(-sqrt(R / (R - 1)) t)``, ``t`` with ``R - 1`` degrees."""
    from scipy import special  # an extra: the rest of this package works without

    t = special.stdtrit(rounds - 1, 0.5 + confidence / 2)
    return float(special.ndtr(-math.sqrt(rounds / (rounds - 1)) * t))
