"""AUROC per group, averaged over runs, with DeLong's intervals.

A person's *placement* is the share of people of the other class whom the score puts on the right side of them (ties
half). AUROC is the mean placement of the positives, and of the negatives; DeLong, DeLong & Clarke-Pearson 1988 take
its variance from both. Means of placements over runs, and their differences between two models on the same people, have
their variance in the same way: this is how runs are averaged and models paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fair_prune_plugins.audit.measures.estimates import UNDEFINED, Estimates
from fair_prune_plugins.evaluation.intervals import Estimate, Interval
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray


@dataclass(frozen=True)
class Placed:
    """AUROC, or a change of it, per group.

    Attributes:
        value: float64 ``[G]``, NaN for groups with people of one class.
        variance: DeLong's, NaN where a class has fewer than two people.
        pairs: int64 ``[G]``, people of the smaller class: so many pairs of a positive and a negative share nobody.
    """

    value: FloatArray
    variance: FloatArray
    pairs: IntArray


def placements(score: FloatArray, order: IntArray, truth: IntArray, codes: IntArray, groups: int) -> FloatArray:
    """Each person's placement among the people of their own group.

    Args:
        score: ``[N]``.
        order: ``[N]``, people by ascending score.
        truth: ``[N]``, 0 or 1.
        codes: ``[N]``, group, or -1.
        groups: number of groups.

    Returns:
        ``[N]``; 0 for people of unknown group and where the other class is absent.
    """
    small = np.where(codes < 0, groups, codes).astype(np.uint16 if groups < 2**16 else np.int64)
    rows = order[np.argsort(small[order], kind="stable")]  # by group, then score
    group, ordered, positive = small[rows], score[rows], truth[rows]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (group[1:] != group[:-1])])
    tied = np.diff(np.r_[starts, len(rows)])
    positives = np.add.reduceat(positive, starts)
    negatives = tied - positives

    first = np.searchsorted(group, np.arange(groups + 1))  # where each group's people begin
    positives_up_to, negatives_up_to = np.r_[0, np.cumsum(positive)], np.r_[0, np.cumsum(1 - positive)]
    mine = group[starts].astype(np.int64)
    positives_below = positives_up_to[starts] - positives_up_to[first[mine]]
    negatives_below = negatives_up_to[starts] - negatives_up_to[first[mine]]
    positives_in = np.diff(positives_up_to[np.r_[first, len(rows)]])[mine]
    negatives_in = np.diff(negatives_up_to[np.r_[first, len(rows)]])[mine]

    of_positive = (negatives_below + 0.5 * negatives) / np.maximum(negatives_in, 1)
    of_negative = (positives_in - positives_below - 0.5 * positives) / np.maximum(positives_in, 1)
    placed = np.empty(len(rows))
    placed[rows] = np.where(positive == 1, np.repeat(of_positive, tied), np.repeat(of_negative, tied))
    placed[codes < 0] = 0.0
    return placed


def delong(placed: FloatArray, truth: IntArray, codes: IntArray, groups: int) -> Placed:
    """AUROC and its variance from placements, or a change from differences of placements.

    Args:
        placed: ``[N]``, mean over runs.
        truth: ``[N]``, 0 or 1.
        codes: ``[N]``, group, or -1.
        groups: number of groups.
    """
    known = codes >= 0
    cell = codes[known] * 2 + truth[known]
    values = placed[known]
    count = np.bincount(cell, minlength=2 * groups)
    mean = np.bincount(cell, weights=values, minlength=2 * groups) / np.maximum(count, 1)
    squares = np.bincount(cell, weights=(values - mean[cell]) ** 2, minlength=2 * groups)
    of_mean = np.where(count >= 2, squares / np.maximum(count - 1, 1) / np.maximum(count, 1), np.nan).reshape(-1, 2)
    pairs = count.reshape(-1, 2).min(axis=1)
    value = np.where(pairs > 0, mean.reshape(-1, 2)[:, 1], np.nan)
    return Placed(value, of_mean.sum(axis=1), pairs)


def auroc_estimate(placed: Placed, group: int, estimates: Estimates, confidence: float) -> Estimate:
    """One group's AUROC; the interval is symmetric on the logit scale and so within (0, 1).

    Where no pair departs from the others (all scores tied, or the classes fully apart) the variance is 0; the interval
    is then exact, from the pairs that share nobody. A class of one person has no variance and gives no interval.
    """
    value, variance = float(placed.value[group]), float(placed.variance[group])
    if np.isnan(value):
        return UNDEFINED
    if np.isnan(variance):
        return Estimate(value, None)
    if variance < 1e-20:
        return estimates.constant(value, int(placed.pairs[group]), 0.0, 1.0)
    logit = np.log(value) - np.log1p(-value)
    reach = _quantile(confidence) * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(logit - reach))), 1 / (1 + np.exp(-(logit + reach)))
    return Estimate(value, Interval(float(low), float(high), method="delong"))


def auroc_change_estimate(placed: Placed, group: int, estimates: Estimates, confidence: float) -> Estimate:
    """One group's change of AUROC; the interval is symmetric, cut off at -1 and 1."""
    value, variance = float(placed.value[group]), float(placed.variance[group])
    if np.isnan(value):
        return UNDEFINED
    if np.isnan(variance):
        return Estimate(value, None)
    if variance < 1e-20:
        return estimates.constant(value, int(placed.pairs[group]), -1.0, 1.0)
    reach = _quantile(confidence) * float(np.sqrt(variance))
    return Estimate(value, Interval(max(value - reach, -1.0), min(value + reach, 1.0), method="delong"))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
