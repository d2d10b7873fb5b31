"""What luck alone would show: gaps between equally well served groups, calibration errors of calibrated models."""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.audit.measures.group_result import GapsByChance
from fair_prune_plugins.audit.measures.tables import BINS, bins
from fair_prune_plugins.evaluation.intervals import gap_by_chance
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, ModelMeasures, Proportion


def lucky_gap(
    share: Proportion, runs: int, confidence: float, resamples: int, rng: np.random.Generator
) -> float | None:
    """The gap in a share that equally well served groups stay below.

    Several runs count as one: they err on the same people, and so steady a gap less than as many people would.

    Args:
        share: per group ``[G]``, told in ``runs``.
        runs: every person was answered so many times.
        confidence: share of lucky gaps to stay below.
        resamples: simulated data sets.
        rng: source of randomness.
    """
    people = share.people // runs
    hits = np.rint(share.hits / runs).astype(np.int64)
    return gap_by_chance(Proportion(hits, people), confidence, resamples, rng)


def lucky_gaps(
    measures: ModelMeasures, runs: int, confidence: float, resamples: int, rng: np.random.Generator
) -> GapsByChance:
    """All gaps of one model on one output; arguments as :func:`lucky_gap`."""
    rates = measures.rates
    assert rates is not None
    return GapsByChance(
        *(
            lucky_gap(share, runs, confidence, resamples, rng)
            for share in (measures.by_group, rates.selection, rates.true_positive, rates.false_positive)
        )
    )


def lucky_ece(
    probabilities: tuple[FloatArray, ...], codes: IntArray, groups: int, confidence: float, luck: FloatArray
) -> FloatArray:
    """The ECE that a perfectly calibrated model stays below, ``[G]``, NaN without people.

    In each bin the people who are truly 1 are then binomial about their probabilities, taken as normal.

    Args:
        probabilities: per run ``[N]``; the mean over runs of each run's quantile is returned.
        codes: ``[N]``, group, or -1.
        groups: number of groups.
        confidence: the quantile.
        luck: absolute standard normal draws ``[draws, bins]``.
    """
    known = codes >= 0
    people = np.bincount(codes[known], minlength=groups)
    total = np.zeros(groups)
    for p in probabilities:
        spread = np.bincount(codes[known] * BINS + bins(p)[known], (p * (1 - p))[known], groups * BINS)
        deviations = np.sqrt(spread).reshape(groups, BINS)
        for start in range(0, groups, 256):
            total[start : start + 256] += np.quantile(luck @ deviations[start : start + 256].T, confidence, axis=0)
    lucky: FloatArray = np.divide(total / len(probabilities), people, out=np.full(groups, np.nan), where=people > 0)
    return lucky
