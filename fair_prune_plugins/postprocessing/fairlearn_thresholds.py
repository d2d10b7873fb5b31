"""Thresholds by fairlearn's ``ThresholdOptimizer`` (Hardt, Price & Srebro, NeurIPS 2016), kept as a rule of ours.

fairlearn makes rates of groups *equal* (or equal within a tolerance) by drawing lots between two thresholds of a
group. Its result is a sum of thresholds with probabilities, which is what a :class:`Cut` holds, so the rule is kept as
JSON and applied without fairlearn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels
from fair_prune_plugins.postprocessing.choosing import (
    BOTH_LABELS,
    OWN_CUT,
    TOO_FEW_GROUPS,
    comparable,
)
from fair_prune_plugins.postprocessing.rules import Cut, OutputCuts, ThresholdRule, output_names
from fair_prune_plugins.postprocessing.scores import FloatArray, IntArray, thresholdable

Constraint = Literal["demographic_parity", "equalized_odds", "true_positive_rate_parity", "false_positive_rate_parity"]
Goal = Literal["accuracy_score", "balanced_accuracy_score"]

NO_FAIRLEARN = "thresholds by fairlearn need fairlearn 0.13 or later: pip install 'fair-prune-plugins[workflow]'"
REFUSED = "fairlearn cannot choose thresholds for {output}: {reason}"


def choose_with_fairlearn(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    groups: GroupLabels,
    constraint: Constraint = "equalized_odds",
    *,
    goal: Goal = "accuracy_score",
    tolerance: float | None = None,
    minimum: int = SMALL_GROUP,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> ThresholdRule:
    """The most accurate lottery between thresholds per group that satisfies a fairness constraint.

    The group of a person is used, and **chance takes part**, when a decision is made: two people of one group and one
    score may be decided differently.

    Args:
        labels: of validation people: 0 or 1, ``[N]``, or ``[N, A]`` for multi-label tasks.
        logits: the model's: ``[N]``, ``[N, 1]``, ``[N, 2]``, or ``[N, A]``.
        groups: the sensitive group of each person. People of unknown group, and of groups that have fewer than
            ``minimum`` people or only one label, keep the model's own threshold.
        constraint: what shall be equal between groups, as fairlearn calls it.
        goal: what is maximised under it, as fairlearn calls it.
        tolerance: how far apart groups may be; ``None`` is not at all. Not with ``equalized_odds``.
        minimum: people a group needs.
        names: of the outputs.
        seed: of the lottery when the rule decides.

    Raises:
        MissingDependencyError: fairlearn is not installed.
        InputError: unusable inputs, more than two classes, fewer than two groups, or fairlearn refuses.
    """
    allowed = get_args(Constraint)
    if constraint not in allowed:
        raise InputError(f"constraint must be one of {list(allowed)}, got {constraint!r}")
    task, score, truth = thresholdable(labels, logits, groups)
    outputs, notes = [], []
    for i, name in enumerate(output_names(names, score.shape[1])):
        able = comparable(truth[:, i], groups, minimum, both_labels=True)
        if able.sum() < 2:
            raise InputError(
                TOO_FEW_GROUPS.format(
                    objective=constraint,
                    have=int(able.sum()),
                    total=len(able),
                    attribute=groups.attribute,
                    minimum=minimum,
                    labels=BOTH_LABELS,
                )
            )
        left_out = [n for n, ok in zip(groups.names, able, strict=True) if not ok]
        if left_out:
            who = f"{', '.join(left_out)} {'is' if len(left_out) == 1 else 'are'}"
            one_label = " or without people of both labels"
            notes.append(OWN_CUT.format(output=name, names=who, minimum=minimum, labels=one_label))
        rows = np.flatnonzero((groups.codes >= 0) & able[groups.codes])
        found = _fit(name, score[rows, i], truth[rows, i], groups.codes[rows], constraint, goal, tolerance)
        outputs.append(
            OutputCuts(name, Cut(), {groups.names[g]: _cut(found[g]) for g in np.flatnonzero(able).tolist()})
        )
    return ThresholdRule(task, f"fairlearn {constraint}", tuple(outputs), groups.attribute, seed, tuple(notes))


def _fit(
    output: str,
    score: FloatArray,
    labels: IntArray,
    codes: IntArray,
    constraint: str,
    goal: str,
    tolerance: float | None,
) -> Mapping[int, Any]:
    try:
        from fairlearn.postprocessing import ThresholdOptimizer
        from sklearn.base import BaseEstimator, ClassifierMixin
    except ImportError as error:
        raise MissingDependencyError(NO_FAIRLEARN) from error

    class Scored(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """A model whose scores are already there."""

        classes_ = np.array([0, 1])

        def fit(self, inputs: Any, targets: Any) -> Scored:
            return self

        def decision_function(self, inputs: Any) -> Any:
            return np.asarray(inputs)[:, 0]

        def __sklearn_is_fitted__(self) -> bool:
            return True

    optimizer = ThresholdOptimizer(
        estimator=Scored(),
        constraints=constraint,
        objective=goal,
        prefit=True,
        predict_method="decision_function",
        tol=tolerance,
    )
    try:
        optimizer.fit(score[:, None], labels, sensitive_features=codes)
    except (ValueError, RuntimeError) as error:
        raise InputError(REFUSED.format(output=output, reason=error)) from error
    found: Mapping[int, Any] = optimizer.interpolated_thresholder_.interpolation_dict
    return found


def _cut(found: Any) -> Cut:
    """Fairlearn's mixture for one group: with p_ignore a coin that knows nothing, else one of two thresholds."""
    ignore = float(found.get("p_ignore", 0.0))
    constant = float(found.get("prediction_constant", 0.0))
    parts = [
        (-math.inf, ignore * constant),
        (math.inf, ignore * (1 - constant)),
        (_threshold(found.operation0), (1 - ignore) * float(found.p0)),
        (_threshold(found.operation1), (1 - ignore) * float(found.p1)),
    ]
    kept: dict[float, float] = {}
    for threshold, probability in parts:
        if probability > 0:
            kept[threshold] = kept.get(threshold, 0.0) + probability
    return Cut(tuple(kept), tuple(kept.values()))


def _threshold(operation: Any) -> float:
    """Fairlearn asks for scores above a threshold, we for scores of at least one: the next number."""
    return float(np.nextafter(float(operation.threshold), math.inf))
