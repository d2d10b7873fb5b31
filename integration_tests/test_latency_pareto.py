"""The front equals the definition, tried on every pair."""

import numpy as np
import pytest

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency import pareto_front


def literal(points):
    def dominated(i):
        return any(
            q[0] <= points[i][0] and q[1] >= points[i][1] and (q[0] < points[i][0] or q[1] > points[i][1])
            for q in points
        )

    return {i for i in range(len(points)) if not dominated(i)}


@pytest.mark.parametrize("seed", range(50))
def test_front_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    points = [tuple(p) for p in rng.integers(0, 6, (rng.integers(1, 25), 2)).astype(float)]
    front = pareto_front(points)
    assert set(front) == literal(points)
    assert len(front) == len(set(front))
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@pytest.mark.parametrize("seed", range(20))
def test_a_lead_within_the_tolerance_is_no_lead(seed):
    """With every latency rounded to one of a few levels that lie far apart, noise of 1 % changes nothing."""
    rng = np.random.default_rng(seed)
    points = [tuple(p) for p in rng.integers(1, 6, (12, 2)).astype(float)]
    noisy = [(t * (1 + rng.uniform(0, 0.01)), a) for t, a in points]
    assert set(pareto_front(noisy, tolerance=0.02)) == set(pareto_front(points))


def test_undefined_points_are_never_on_the_front_and_hide_nobody():
    assert pareto_front([(1.0, None), (2.0, 0.5), (float("nan"), 0.9), (None, 1.0), (3.0, 0.6)]) == [1, 4]
    assert pareto_front([]) == []


def test_equal_points_stay_together_and_a_triple_is_refused():
    assert pareto_front([(2.0, 0.5), (1.0, 0.4), (2.0, 0.5)]) == [1, 0, 2]
    with pytest.raises(InputError, match="pairs"):
        pareto_front([(1.0, 0.5, 3.0)])
