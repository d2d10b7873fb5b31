"""From a number and its resampled values to an estimate, also where all resamples say the same."""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.evaluation.intervals import Estimate, Estimator, Interval
from fair_prune_plugins.evaluation.metrics import FloatArray, Proportion

UNDEFINED = Estimate(None, None)


class Estimates(Estimator):
    """An :class:`~fair_prune_plugins.evaluation.intervals.Estimator` for numbers between bounds.

    Args:
        confidence: coverage aimed at.
        resamples: number of resamples there will be.
    """

    def bounded(self, drawn: FloatArray, people: int, low: float, high: float) -> Estimate:
        """An average over people; exact where no resample differs, because all of them had the same outcome.

        The chance of another outcome than that is then below the exact bound (as in ``Estimator.proportion``), and such
        outcomes lie between ``low`` and ``high``.

        Args:
            drawn: ``[R + 1]``: the number, then its resampled values; NaN is undefined.
            people: whom it is an average over.
            low: smallest value the number can take.
            high: largest value.
        """
        value, draws = float(drawn[0]), drawn[1:]
        if people and not np.isnan(value) and not np.any(np.abs(draws - value) > 1e-12):
            return self.constant(value, people, low, high)
        return self.estimate(value, draws)

    def centred(self, drawn: FloatArray, people: int, low: float, high: float, *, clipped: bool = True) -> Estimate:
        """A number that resampling inflates: a largest, a sum of absolute values, a fit's R².

        The interval is the resamples' spread about the number; percentiles as they are count the inflation twice and
        can lie wholly above it. Arguments as :meth:`bounded`; ``clipped`` keeps the
        interval between ``low`` and ``high``.
        """
        value, draws = float(drawn[0]), drawn[1:]
        defined = draws[~np.isnan(draws)]
        if np.isnan(value) or not defined.size or np.ptp(defined) <= 1e-12:
            return self.bounded(drawn, people, low, high)
        # Shifted by the median, which unlike the mean makes the interval hold the number.
        shifted = draws - np.median(defined) + value
        return self.estimate(value, np.clip(shifted, low, high) if clipped else shifted)

    def constant(self, value: float, people: int, low: float, high: float) -> Estimate:
        """A number that nobody among ``people`` departs from."""
        slack = self.unseen(people)
        return Estimate(value, Interval(value - slack * (value - low), value + slack * (high - value), method="exact"))

    def unseen(self, people: int) -> float:
        """The largest chance of an outcome that is compatible with not seeing it once among ``people``."""
        none = Proportion(np.zeros((), dtype=np.int64), np.array(people))
        interval = self.proportion(none, none).interval
        assert interval is not None
        return interval.high
