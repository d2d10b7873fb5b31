"""From sums to numbers, in all resamples at once; the shares themselves are those of ``evaluation``."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from fair_prune_plugins.audit.measures.tables import View
from fair_prune_plugins.evaluation.metrics import (
    FloatArray,
    IntArray,
    ModelMeasures,
    Proportion,
    RateMeasures,
    difference,
)


@dataclass(frozen=True)
class Numbers:
    """One model's numbers ``[r, g]``; NaN is undefined. Names as in :class:`~.result.Scores`."""

    accuracy: FloatArray
    true_positive: FloatArray
    false_positive: FloatArray
    true_negative: FloatArray
    predicted_positive: FloatArray
    rare_value: FloatArray
    ece: FloatArray
    uncertainty: FloatArray

    def minus(self, other: Numbers) -> Numbers:
        """This model's numbers minus another's."""
        return Numbers(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class GapNumbers:
    """One model's differences between groups ``[r]``. Names as in :class:`~.result.Gaps`."""

    accuracy: FloatArray
    auroc: FloatArray
    demographic_parity: FloatArray
    equal_opportunity_1: FloatArray
    equal_opportunity_0: FloatArray
    equalized_odds: FloatArray
    equalized_odds_worst: FloatArray
    equalized_odds_cancelling: FloatArray

    def minus(self, other: GapNumbers) -> GapNumbers:
        """This model's gaps minus another's."""
        return GapNumbers(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


def measures(people: IntArray, hits: IntArray, runs: int, pooled: Proportion | None = None) -> ModelMeasures:
    """The shares of ``evaluation``, from people and answers of 1 by true value.

    Args:
        people: ``[..., G, 2]``.
        hits: ``[..., G, 2]``, answers of 1 in all ``runs``.
        runs: every person was answered so many times.
        pooled: right answers of everybody ``[...]``; ``None`` takes the people here.
    """
    answers = people * runs
    negatives, positives = answers[..., 0], answers[..., 1]
    false_positives, true_positives = hits[..., 0], hits[..., 1]
    by_group = Proportion(true_positives + negatives - false_positives, answers.sum(axis=-1))
    return ModelMeasures(
        pooled=Proportion(by_group.hits.sum(axis=-1), by_group.people.sum(axis=-1)) if pooled is None else pooled,
        by_group=by_group,
        rates=RateMeasures(
            selection=Proportion(hits.sum(axis=-1), by_group.people),
            true_positive=Proportion(true_positives, positives),
            false_positive=Proportion(false_positives, negatives),
        ),
    )


def numbers(view: View, model: int, runs: int, rare: int) -> Numbers:
    """One model's numbers from a view.

    Args:
        view: of some groups in some resamples.
        model: index of the model.
        runs: in how many runs shares are told.
        rare: the value that is rarer in training.
    """
    shares = measures(view.people, view.hits[model], runs)
    rates = shares.rates
    assert rates is not None
    people = view.people.sum(axis=-1)
    answered = rates.selection.hits if rare else rates.selection.people - rates.selection.hits
    return Numbers(
        accuracy=shares.by_group.value,
        true_positive=rates.true_positive.value,
        false_positive=rates.false_positive.value,
        true_negative=1 - rates.false_positive.value,
        predicted_positive=rates.selection.value,
        rare_value=Proportion(answered, runs * view.people[..., rare]).value,
        ece=_per_person(view.miscalibrated[model], people),
        uncertainty=_per_person(view.uncertain[model], people),
    )


def gap_numbers(view: View, model: int, runs: int, auroc: FloatArray) -> GapNumbers:
    """One model's differences between groups from a view of all of them.

    Args:
        view: of all groups in some resamples.
        model: index of the model.
        runs: in how many runs shares are told.
        auroc: each group's AUROC in the data as they are ``[G]``.
    """
    shares = measures(view.people, view.hits[model], runs)
    rates = shares.rates
    assert rates is not None
    true_positive, false_positive = rates.true_positive.value, rates.false_positive.value
    opportunity = difference(true_positive), difference(false_positive)
    return GapNumbers(
        accuracy=shares.gap,
        auroc=difference(_auroc(view, model, auroc)),
        demographic_parity=rates.demographic_parity_difference,
        equal_opportunity_1=opportunity[0],
        equal_opportunity_0=opportunity[1],
        equalized_odds=(opportunity[0] + opportunity[1]) / 2,
        equalized_odds_worst=rates.equalized_odds_difference,
        equalized_odds_cancelling=difference(true_positive + false_positive) / 2,
    )


def _auroc(view: View, model: int, observed: FloatArray) -> FloatArray:
    """AUROC per resample and group, to first order: the mean placement of either class moves it (as in DeLong's)."""
    means = [_per_person(view.placed[model][..., value], view.people[..., value]) for value in (0, 1)]
    approximate: FloatArray = np.clip(means[0] + means[1] - observed, 0.0, 1.0)
    return approximate


def _per_person(sums: FloatArray, people: IntArray) -> FloatArray:
    result: FloatArray = np.divide(sums, people, out=np.full(people.shape, np.nan), where=people > 0)
    return result
