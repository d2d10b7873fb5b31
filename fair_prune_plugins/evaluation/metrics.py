"""Every metric as a function of one table of counts.

A table counts people by cell ``[G + 1, L, 2, D]``: sensitive group (the last row is people of unknown group), true
class (binary tasks, ``L = 2``; otherwise all classes share one, ``L = 1``), model wrong or right, dense model wrong or
right (``D = 1`` without a dense model). All functions take any leading axes, so that the observed data and a thousand
resamples of it go through the same code: an interval is always an interval of exactly the number it stands beside.

``NaN`` means undefined: the accuracy of a group without people, the true positive rate of a group without positives, a
difference between fewer than two groups. Comparisons between groups skip undefined groups, as
``fairlearn.metrics.MetricFrame.difference`` and ``.ratio`` do with ``method="between_groups"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.evaluation.outcomes import Outcomes
from fair_prune_plugins.groups import GroupLabels

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Proportion:
    """Hits among people; both int64, any shape."""

    hits: IntArray
    people: IntArray

    @cached_property
    def value(self) -> FloatArray:
        """``hits / people``, NaN where there are no people."""
        return _quotient(self.hits, self.people)

    def at(self, index: int) -> Proportion:
        """One group's proportion, out of a proportion per group (last axis)."""
        return Proportion(self.hits[..., index], self.people[..., index])


@dataclass(frozen=True)
class RateMeasures:
    """A binary task's rates per group ``[..., G]`` (class 1 is positive), and fairlearn's differences ``[...]``."""

    selection: Proportion
    true_positive: Proportion
    false_positive: Proportion

    @property
    def demographic_parity_difference(self) -> FloatArray:
        """Largest minus smallest selection rate."""
        return difference(self.selection.value)

    @property
    def equal_opportunity_difference(self) -> FloatArray:
        """Largest minus smallest true positive rate."""
        return difference(self.true_positive.value)

    @property
    def equalized_odds_difference(self) -> FloatArray:
        """The larger of the differences in true and in false positive rates; undefined when either is."""
        return np.maximum(self.equal_opportunity_difference, difference(self.false_positive.value))


@dataclass(frozen=True)
class ModelMeasures:
    """One model's metrics: pooled ``[...]``, per group ``[..., G]``; ``rates`` for binary tasks only."""

    pooled: Proportion
    by_group: Proportion
    rates: RateMeasures | None

    @property
    def gap(self) -> FloatArray:
        """Largest minus smallest group accuracy."""
        return difference(self.by_group.value)

    @property
    def ratio(self) -> FloatArray:
        """Smallest over largest group accuracy."""
        return ratio(self.by_group.value)


@dataclass(frozen=True)
class PairedMeasures:
    """The pruned model against the dense one on the same people."""

    pruned: ModelMeasures
    dense: ModelMeasures

    @cached_property
    def change(self) -> FloatArray:
        """Pooled accuracy, pruned minus dense ``[...]``."""
        return _change(self.pruned.pooled, self.dense.pooled)

    @cached_property
    def by_group(self) -> FloatArray:
        """Change per group ``[..., G]``; negative is worse than dense (FairGRAPE, arXiv 2207.10888)."""
        return _change(self.pruned.by_group, self.dense.by_group)

    @property
    def gap(self) -> FloatArray:
        """Change of the accuracy gap; positive is a wider gap than dense."""
        return self.pruned.gap - self.dense.gap

    @property
    def rho(self) -> FloatArray:
        """Sample standard deviation over groups of the change (FairGRAPE's disparity)."""
        return sample_deviation(self.by_group)

    @cached_property
    def excess(self) -> FloatArray:
        """Accuracy that a group lost beyond what everybody lost, ``[..., G]`` (psi, CEAG, arXiv 2310.20673)."""
        return self.change[..., None] - self.by_group

    @property
    def max_excess(self) -> FloatArray:
        """The largest excess loss of any group (CEAG's max psi)."""
        return highest(self.excess)

    @property
    def pairwise_excess(self) -> FloatArray:
        """The largest difference in change between two groups (CEAG's pairwise Psi)."""
        return difference(self.by_group)


def count_cells(outcomes: Outcomes, groups: GroupLabels) -> IntArray:
    """Count people by cell, int64 ``[G + 1, L, 2, D]`` (see the module's docstring)."""
    n_groups = len(groups.names)
    binary = outcomes.classes == 2
    shape = (n_groups + 1, 2 if binary else 1, 2, 1 if outcomes.dense_right is None else 2)
    group = np.where(groups.codes < 0, n_groups, groups.codes)
    true_class = outcomes.labels if binary else np.zeros_like(outcomes.labels)
    dense = np.zeros_like(outcomes.labels) if outcomes.dense_right is None else outcomes.dense_right.astype(np.int64)
    cell = np.ravel_multi_index((group, true_class, outcomes.right.astype(np.int64), dense), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).astype(np.int64).reshape(shape)


def measure(cells: IntArray) -> ModelMeasures:
    """The evaluated model's metrics from cells ``[..., G + 1, L, 2, D]``."""
    return _measure_model(cells.sum(axis=-1))


def measure_pair(cells: IntArray) -> PairedMeasures:
    """Both models' metrics on the same people, from cells ``[..., G + 1, L, 2, 2]``."""
    return PairedMeasures(pruned=_measure_model(cells.sum(axis=-1)), dense=_measure_model(cells.sum(axis=-2)))


def difference(values: FloatArray) -> FloatArray:
    """Largest minus smallest over the last axis, skipping undefined groups; NaN with fewer than two defined ones.

    As ``MetricFrame.difference(method="between_groups")``, but fairlearn calls the difference among one group 0.
    """
    return _if_comparable(values, highest(values) - lowest(values))


def ratio(values: FloatArray) -> FloatArray:
    """Smallest over largest along the last axis, skipping undefined groups; NaN with fewer than two, or largest 0.

    As ``MetricFrame.ratio(method="between_groups")``, but fairlearn calls the ratio among one group 1.
    """
    return _if_comparable(values, _quotient(lowest(values), highest(values)))


def sample_deviation(values: FloatArray) -> FloatArray:
    """Sample standard deviation (``n - 1``) over the last axis, skipping undefined groups; NaN with fewer than two."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=-1)
    mean = np.where(defined, values, 0.0).sum(axis=-1) / np.maximum(n, 1)
    squares = np.where(defined, (values - mean[..., None]) ** 2, 0.0).sum(axis=-1)
    return _if_comparable(values, np.sqrt(squares / np.maximum(n - 1, 1)))


def lowest(values: FloatArray) -> FloatArray:
    """Smallest over the last axis, skipping undefined groups; NaN where none is defined."""
    smallest: FloatArray = np.fmin.reduce(values, axis=-1)  # fmin skips NaN, and does not warn when all are NaN
    return smallest


def highest(values: FloatArray) -> FloatArray:
    """Largest over the last axis, skipping undefined groups; NaN where none is defined."""
    largest: FloatArray = np.fmax.reduce(values, axis=-1)
    return largest


def _measure_model(table: IntArray) -> ModelMeasures:
    """Metrics of one model from its table ``[..., G + 1, L, 2]``; the last axis is wrong, right."""
    people = table.sum(axis=(-2, -1))
    right = table[..., 1].sum(axis=-1)
    known = table[..., :-1, :, :]
    return ModelMeasures(
        pooled=Proportion(right.sum(axis=-1), people.sum(axis=-1)),
        by_group=Proportion(right[..., :-1], people[..., :-1]),
        rates=_measure_rates(known) if table.shape[-2] == 2 else None,
    )


def _measure_rates(table: IntArray) -> RateMeasures:
    """Rates from ``[..., G, true class, wrong or right]``: a positive answer is a right 1 or a wrong 0."""
    people = table.sum(axis=-1)
    true_positives, false_positives = table[..., 1, 1], table[..., 0, 0]
    return RateMeasures(
        selection=Proportion(true_positives + false_positives, people.sum(axis=-1)),
        true_positive=Proportion(true_positives, people[..., 1]),
        false_positive=Proportion(false_positives, people[..., 0]),
    )


def _change(pruned: Proportion, dense: Proportion) -> FloatArray:
    """Pruned minus dense share of the same people; hits are subtracted first: equal changes stay equal numbers."""
    return _quotient(pruned.hits - dense.hits, pruned.people)


def _quotient(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> FloatArray:
    """Quotient of arrays of one shape, NaN where the denominator is 0 or undefined."""
    undefined = np.full(denominator.shape, np.nan)
    result: FloatArray = np.divide(numerator, denominator, out=undefined, where=denominator > 0)
    return result


def _if_comparable(values: FloatArray, result: FloatArray) -> FloatArray:
    return np.where((~np.isnan(values)).sum(axis=-1) >= 2, result, np.nan)
