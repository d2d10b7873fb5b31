"""Spearman's rank correlation between what was foretold and what came, over few groups."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial
from statistics import NormalDist

import numpy as np

from fair_prune_plugins.errors import MissingDependencyError
from fair_prune_plugins.evaluation.intervals import Estimate, Interval
from fair_prune_plugins.postprocessing.scores import FloatArray

NO_SCIPY = "rank correlations need scipy: pip install 'fair-prune-plugins[workflow]'"

LEAST = 3
"""Two things are always in one of two orders."""

_SHUFFLES = 9999


def rank_correlation(
    pairs: Sequence[tuple[FloatArray, FloatArray]], confidence: float, seed: int
) -> tuple[Estimate, float | None]:
    """Spearman's rank correlation (of several pairs the mean), its interval and a p-value.

    The interval is Bonett & Wright's (Psychometrika 2000), on Fisher's scale; there is none with fewer than four things
    or a perfect correlation, where it would claim certainty. The p-value is two-sided: things are exchanged, in all
    pairs alike, in all orders of up to seven things and in 9,999 random orders of more.

    Args:
        pairs: what was foretold and what came, float64 ``[things]`` each, of the same things in every pair.
        confidence: coverage of the interval.
        seed: of the random orders.

    Returns:
        an undefined estimate and ``None`` with fewer than three things, or where a side is the same for all.
    """
    try:
        from scipy.stats import rankdata
    except ImportError as error:
        raise MissingDependencyError(NO_SCIPY) from error
    things = len(pairs[0][0])
    if things < LEAST or any(np.ptp(values) == 0 for pair in pairs for values in pair):
        return Estimate(None, None), None
    ranks = [(_standard(rankdata(foretold)), _standard(rankdata(came))) for foretold, came in pairs]
    correlation = float(np.clip(np.mean([one @ other for one, other in ranks]), -1.0, 1.0))
    if factorial(things) <= _SHUFFLES:
        orders = np.array(list(permutations(range(things))))
        least = 0
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(things), (_SHUFFLES, 1)), axis=1)
        least = 1  # the order as it is
    shuffled = np.mean([other[orders] @ one for one, other in ranks], axis=0)
    reached = int((np.abs(shuffled) >= abs(correlation) - 1e-9).sum())
    p = (reached + least) / (len(orders) + least)
    return Estimate(correlation, _interval(correlation, things, confidence)), p


def _standard(ranks: FloatArray) -> FloatArray:
    centred = ranks - ranks.mean()
    standard: FloatArray = centred / np.linalg.norm(centred)
    return standard


def _interval(correlation: float, things: int, confidence: float) -> Interval | None:
    if things <= 3 or abs(correlation) > 1 - 1e-9:
        return None
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt((1 + correlation**2 / 2) / (things - 3))
    middle = np.arctanh(correlation)
    return Interval(float(np.tanh(middle - reach)), float(np.tanh(middle + reach)), method="fisher")
