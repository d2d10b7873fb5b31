"""From labels, logits and groups to an :class:`Evaluation`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate, Estimator, gap_by_chance, resample
from fair_prune_plugins.evaluation.metrics import (
    IntArray,
    ModelMeasures,
    PairedMeasures,
    RateMeasures,
    count_cells,
    lowest,
    measure,
    measure_pair,
)
from fair_prune_plugins.evaluation.outcomes import check_outcomes
from fair_prune_plugins.evaluation.result import (
    NO_SUCH_GROUP,
    BinaryFairness,
    DenseComparison,
    Evaluation,
    GroupEvaluation,
    GroupRates,
    WorstGroup,
)
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels

NONE_LARGE_ENOUGH = (
    "no group by {attribute} has {minimum} people to pick a worst one from (the largest has {largest}); "
    "use more validation data, coarser groups or a smaller minimum"
)
PICKED_HERE = (
    "The worst group, {name}, was picked on the same people it is judged on and looks worse than it is; "
    "pick it on validation data (pick_worst_group) to judge it here."
)
NONE_PICKED = "No group has the {minimum} people needed to be called the worst."
WORST_ABSENT = "The group to watch, {name}, has nobody in this data: its accuracy is undefined."
ONE_CLASS = "Without people of both classes, a rate is undefined and left out of comparisons between groups: {names}."


def evaluate(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    groups: GroupLabels,
    *,
    dense_logits: npt.ArrayLike | None = None,
    worst_group: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
) -> Evaluation:
    """Evaluate a model's logits per sensitive group, with intervals, alone or against the dense model.

    Definitions are those of fairlearn and scikit-learn; what compression did is measured with FairGRAPE's rho
    (arXiv 2207.10888) and CEAG's excess gaps (arXiv 2310.20673). Groups without people and rates without cases are
    undefined (``None``) and skipped in comparisons between groups. The result does not depend on the order of rows.

    Args:
        labels: integers ``[N]``, class indices (0 and 1 for a single logit).
        logits: real ``[N, K]``; ``[N]`` or ``[N, 1]`` is a single logit, class 1 where it is above 0.
        groups: the sensitive group of each of the ``N`` people. People of unknown group count in pooled numbers only.
        dense_logits: the dense model's logits for the same people in the same order.
        worst_group: the group to watch, fixed beforehand on other data (:func:`pick_worst_group`). ``None`` picks the
            worst here and says so.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: seed of the bootstrap.
        minimum: groups with fewer people are flagged and cannot be picked as the worst.

    Raises:
        InputError: wrong shapes or types, lengths that differ, labels outside the classes, logits that are not finite,
            another number of classes in the dense model, nobody with a known group, an unknown ``worst_group``,
            ``confidence`` outside (0, 1) or too few ``resamples`` for it.
    """
    outcomes = check_outcomes(labels, logits, groups, dense_logits)
    estimator = Estimator(confidence, resamples)
    if worst_group is not None and worst_group not in groups.names:
        raise InputError(NO_SUCH_GROUP.format(name=worst_group, attribute=groups.attribute, names=list(groups.names)))

    cells = count_cells(outcomes, groups)
    bootstrap_rng, chance_rng = np.random.default_rng(seed).spawn(2)
    resampled = resample(cells, resamples, bootstrap_rng)
    observed, draws = measure(cells), measure(resampled)
    paired = None if dense_logits is None else (measure_pair(cells), measure_pair(resampled))
    worst = _worst(estimator, observed, draws, groups, worst_group, minimum)
    return Evaluation(
        attribute=groups.attribute,
        n=len(groups),
        unknown=groups.unknown,
        classes=outcomes.classes,
        accuracy=estimator.proportion(observed.pooled, draws.pooled),
        groups=_groups(estimator, observed, draws, paired, cells, groups.names, minimum),
        gap=estimator.estimate(observed.gap, draws.gap),
        gap_by_chance=gap_by_chance(observed.by_group, confidence, resamples, chance_rng),
        ratio=estimator.estimate(observed.ratio, draws.ratio),
        worst_group=worst,
        dense=None if paired is None else _comparison(estimator, *paired, cells, outcomes.reclassified),
        binary=_binary(estimator, observed.rates, draws.rates),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        minimum=minimum,
        notes=_notes(groups, observed, worst, minimum),
    )


def pick_worst_group(
    labels: npt.ArrayLike, logits: npt.ArrayLike, groups: GroupLabels, minimum: int = SMALL_GROUP
) -> str:
    """Name the group with the lowest accuracy, to be called on validation data and held fixed from then on.

    Args:
        labels: integers ``[N]``, class indices.
        logits: real ``[N, K]``, or ``[N]`` / ``[N, 1]`` for a single logit.
        groups: the sensitive group of each of the ``N`` people.
        minimum: people a group needs to be picked; the worst of many tiny groups is a matter of luck.

    Returns:
        The group's name; of equally bad groups the first in the groups' order.

    Raises:
        InputError: as :func:`evaluate` for unusable inputs, or no group has ``minimum`` people.
    """
    observed = measure(count_cells(check_outcomes(labels, logits, groups), groups))
    picked = _pick(observed, minimum)
    if picked is None:
        largest = int(groups.counts.max())
        raise InputError(NONE_LARGE_ENOUGH.format(attribute=groups.attribute, minimum=minimum, largest=largest))
    return groups.names[picked]


def _pick(observed: ModelMeasures, minimum: int) -> int | None:
    eligible = np.flatnonzero(observed.by_group.people >= max(minimum, 1))
    if not eligible.size:
        return None
    return int(eligible[observed.by_group.value[eligible].argmin()])


def _worst(
    estimator: Estimator,
    observed: ModelMeasures,
    draws: ModelMeasures,
    groups: GroupLabels,
    fixed: str | None,
    minimum: int,
) -> WorstGroup:
    if fixed is not None:
        index = groups.names.index(fixed)
        return WorstGroup(fixed, False, estimator.proportion(observed.by_group.at(index), draws.by_group.at(index)))
    picked = _pick(observed, minimum)
    if picked is None:
        return WorstGroup(None, True, Estimate(None, None))
    accuracy = estimator.proportion(observed.by_group.at(picked), draws.by_group.at(picked))
    if accuracy.interval is None or accuracy.interval.method == "bootstrap":
        eligible = observed.by_group.people >= max(minimum, 1)
        accuracy = estimator.estimate(observed.by_group.at(picked).value, lowest(draws.by_group.value[:, eligible]))
    return WorstGroup(groups.names[picked], True, accuracy)


def _groups(
    estimator: Estimator,
    observed: ModelMeasures,
    draws: ModelMeasures,
    paired: tuple[PairedMeasures, PairedMeasures] | None,
    cells: IntArray,
    names: tuple[str, ...],
    minimum: int,
) -> tuple[GroupEvaluation, ...]:
    entries = []
    for i, name in enumerate(names):
        n = int(observed.by_group.people[i])
        dense_accuracy = change = excess_gap = None
        if paired is not None:
            pair, pair_draws = paired
            dense_accuracy = estimator.proportion(pair.dense.by_group.at(i), pair_draws.dense.by_group.at(i))
            change = estimator.change(pair.by_group[i], pair_draws.by_group[:, i], n, _flips(cells[i]))
            excess_gap = estimator.estimate(pair.excess[i], pair_draws.excess[:, i])
        entries.append(
            GroupEvaluation(
                name=name,
                n=n,
                too_small=n < minimum,
                accuracy=estimator.proportion(observed.by_group.at(i), draws.by_group.at(i)),
                dense_accuracy=dense_accuracy,
                change=change,
                excess_gap=excess_gap,
                rates=_group_rates(estimator, observed.rates, draws.rates, i),
            )
        )
    return tuple(entries)


def _group_rates(
    estimator: Estimator, observed: RateMeasures | None, draws: RateMeasures | None, i: int
) -> GroupRates | None:
    if observed is None or draws is None:
        return None
    return GroupRates(
        selection=estimator.proportion(observed.selection.at(i), draws.selection.at(i)),
        true_positive=estimator.proportion(observed.true_positive.at(i), draws.true_positive.at(i)),
        false_positive=estimator.proportion(observed.false_positive.at(i), draws.false_positive.at(i)),
    )


def _comparison(
    estimator: Estimator, pair: PairedMeasures, draws: PairedMeasures, cells: IntArray, reclassified: int
) -> DenseComparison:
    people = int(pair.dense.pooled.people)
    return DenseComparison(
        accuracy=estimator.proportion(pair.dense.pooled, draws.dense.pooled),
        change=estimator.change(pair.change, draws.change, people, _flips(cells)),
        gap=estimator.estimate(pair.dense.gap, draws.dense.gap),
        gap_change=estimator.estimate(pair.gap, draws.gap),
        rho=estimator.estimate(pair.rho, draws.rho),
        max_excess_gap=estimator.estimate(pair.max_excess, draws.max_excess),
        pairwise_excess_gap=estimator.estimate(pair.pairwise_excess, draws.pairwise_excess),
        reclassified=reclassified,
    )


def _flips(cells: IntArray) -> int:
    """People right under exactly one of the two models, from cells ``[..., 2, 2]``."""
    return int(cells[..., 0, 1].sum() + cells[..., 1, 0].sum())


def _binary(estimator: Estimator, observed: RateMeasures | None, draws: RateMeasures | None) -> BinaryFairness | None:
    if observed is None or draws is None:
        return None
    return BinaryFairness(
        demographic_parity_difference=estimator.estimate(
            observed.demographic_parity_difference, draws.demographic_parity_difference
        ),
        equal_opportunity_difference=estimator.estimate(
            observed.equal_opportunity_difference, draws.equal_opportunity_difference
        ),
        equalized_odds_difference=estimator.estimate(
            observed.equalized_odds_difference, draws.equalized_odds_difference
        ),
    )


def _notes(groups: GroupLabels, observed: ModelMeasures, worst: WorstGroup, minimum: int) -> tuple[str, ...]:
    notes = [groups.statement(minimum)]
    if worst.name is None:
        notes.append(NONE_PICKED.format(minimum=minimum))
    elif worst.picked_on_this_data:
        notes.append(PICKED_HERE.format(name=worst.name))
    elif worst.accuracy.value is None:
        notes.append(WORST_ABSENT.format(name=worst.name))
    if observed.rates is not None:
        positives, negatives = observed.rates.true_positive.people, observed.rates.false_positive.people
        one_class = np.flatnonzero((positives == 0) != (negatives == 0))
        if one_class.size:
            notes.append(ONE_CLASS.format(names=", ".join(groups.names[i] for i in one_class)))
    return tuple(notes)
