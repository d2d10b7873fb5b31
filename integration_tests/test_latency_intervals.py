"""Resampled quantiles equal a literal bootstrap, and intervals cover what they claim."""

import numpy as np
import pytest
from scipy import stats

from fair_prune_plugins.latency.intervals import draw_rounds, expanded_tail, interval, resampled_quantiles


def test_resampled_quantiles_equal_numpy_on_the_resampled_rounds():
    rng = np.random.default_rng(0)
    rounds = [rng.exponential(size=n).round(1) for n in (1, 7, 30, 2, 13)]  # rounding makes ties
    quantiles = [0.0, 0.5, 0.9, 0.99, 1.0]
    draws = draw_rounds(len(rounds), 200, rng)
    assert (draws.sum(1) == len(rounds)).all()
    result = resampled_quantiles(rounds, quantiles, draws)
    for row, draw in zip(result, draws, strict=True):
        pooled = np.concatenate([r for r, times in zip(rounds, draw, strict=True) for _ in range(times)])
        np.testing.assert_allclose(row, np.quantile(pooled, quantiles), rtol=1e-12)


def test_the_tail_is_the_formulas_and_vanishes_with_many_rounds():
    assert expanded_tail(10, 0.95) == pytest.approx(stats.norm.cdf(-np.sqrt(10 / 9) * stats.t.ppf(0.975, 9)))
    assert expanded_tail(10**6, 0.95) == pytest.approx(0.025, rel=1e-3)


def test_intervals_over_rounds_cover_where_iterations_are_not_independent():
    rng = np.random.default_rng(0)
    hits, naive_hits, trials = 0, 0, 300
    for _ in range(trials):
        centres = 10 + rng.normal(scale=1.0, size=10)
        rounds = [c + rng.normal(scale=0.1, size=20) for c in centres]
        values = resampled_quantiles(rounds, [0.5], draw_rounds(10, 300, rng))[:, 0]
        low, high = interval(values, 10, 0.95)
        hits += low <= 10 <= high
        singles = [np.array([t]) for t in np.concatenate(rounds)]
        values = resampled_quantiles(singles, [0.5], draw_rounds(200, 300, rng))[:, 0]
        low, high = interval(values, 200, 0.95)
        naive_hits += low <= 10 <= high
    assert hits / trials > 0.9
    assert naive_hits / trials < 0.6  # what resampling iterations one by one would have claimed to be 95 %


def test_one_round_says_nothing_about_its_own_variation():
    assert interval(np.ones(5), 1, 0.95) == (None, None)
