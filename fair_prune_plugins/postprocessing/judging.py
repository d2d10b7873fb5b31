"""What a rule or a policy did, once, on people it was not chosen on: before against after, with paired intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import BinaryFairness, Evaluation, evaluate
from fair_prune_plugins.evaluation.intervals import Estimator, resample
from fair_prune_plugins.evaluation.metrics import RateMeasures, count_cells, measure_pair
from fair_prune_plugins.evaluation.outcomes import check_outcomes
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels
from fair_prune_plugins.postprocessing.scores import as_logits

DECISIONS = "decisions and before must be whole numbers of one shape, [people] or [people, labels]; got {got}"

_DIFFERENCES = ("demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference")


@dataclass(frozen=True)
class Effect:
    """Decisions after a rule or policy, compared with those before it.

    Attributes:
        evaluation: after; its ``dense`` part and every group's ``change`` are against *before*, paired.
        before: fairness of the decisions before, ``None`` unless there are two classes.
        change: after minus before, paired; negative is closer. ``None`` likewise.
    """

    evaluation: Evaluation
    before: BinaryFairness | None
    change: BinaryFairness | None

    def as_dict(self) -> dict[str, Any]:
        """The effect in strict JSON types."""
        return {
            "evaluation": self.evaluation.as_dict(),
            "before": None if self.before is None else asdict(self.before),
            "change": None if self.change is None else asdict(self.change),
        }


def judge(
    labels: npt.ArrayLike,
    decisions: npt.ArrayLike,
    before: npt.ArrayLike,
    groups: GroupLabels,
    *,
    classes: int = 2,
    worst_group: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
) -> Effect:
    """Judge decisions about one output on test people.

    A lottery is judged by the one draw that was made.

    Args:
        labels: true classes ``[N]``.
        decisions: after the rule or policy ``[N]``.
        before: of the model by itself ``[N]``.
        groups: the sensitive group of each person.
        classes: number of classes.
        worst_group: as in :func:`fair_prune_plugins.evaluation.evaluate`.
        resamples: likewise.
        confidence: likewise.
        seed: likewise; the same resamples are drawn.
        minimum: likewise.

    Raises:
        InputError: as :func:`fair_prune_plugins.evaluation.evaluate`.
    """
    after_logits, before_logits = _logits(decisions, classes), _logits(before, classes)
    evaluation = evaluate(
        labels,
        after_logits,
        groups,
        dense_logits=before_logits,
        worst_group=worst_group,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        minimum=minimum,
    )
    if classes != 2:
        return Effect(evaluation, None, None)
    cells = count_cells(check_outcomes(labels, after_logits, groups, before_logits), groups)
    rng = np.random.default_rng(seed).spawn(2)[0]
    observed, draws = measure_pair(cells), measure_pair(resample(cells, resamples, rng))
    pairs = (observed.pruned.rates, observed.dense.rates, draws.pruned.rates, draws.dense.rates)
    old, change = _fairness(Estimator(confidence, resamples), pairs)
    return Effect(evaluation, old, change)


def _logits(decisions: npt.ArrayLike, classes: int) -> npt.NDArray[np.float64]:
    values = np.asarray(decisions)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(DECISIONS.format(got=f"{values.dtype} {values.shape}"))
    return as_logits(values, classes)


def _fairness(
    estimator: Estimator, rates: tuple[RateMeasures | None, ...]
) -> tuple[BinaryFairness | None, BinaryFairness | None]:
    after, before, after_draws, before_draws = rates
    if after is None or before is None or after_draws is None or before_draws is None:
        return None, None
    old, change = {}, {}
    for name in _DIFFERENCES:
        was, was_drawn = getattr(before, name), getattr(before_draws, name)
        old[name] = estimator.estimate(was, was_drawn)
        change[name] = estimator.estimate(getattr(after, name) - was, getattr(after_draws, name) - was_drawn)
    return BinaryFairness(**old), BinaryFairness(**change)
