"""The rules that a policy can set: what each limits, and where the number is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.audit.changes import Changed, Touched
from fair_prune_plugins.audit.measures import (
    MeasuredAttribute,
    MeasuredGroup,
    OverallAttribute,
    OverallGroup,
)
from fair_prune_plugins.evaluation.intervals import Estimate, Interval

Reach = Literal["everybody", "each group", "everybody and each group", "between groups"]
Numbers = Mapping[str, Estimate]

FLIP_RATE = "max_flip_rate"


@dataclass(frozen=True)
class Rule:
    """A limit on one number.

    Attributes:
        key: its name in a policy; those that start with ``min`` are the least that is allowed, others the most.
        what: the number, in words.
        reach: whom it is asked of.
        of_output: whether it exists for single outputs only, and not for the accuracy over all outputs or classes.
    """

    key: str
    what: str
    reach: Reach
    of_output: bool = False

    @property
    def at_least(self) -> bool:
        """Whether the limit is the least that is allowed."""
        return self.key.startswith("min")

    @property
    def of_everybody(self) -> bool:
        """Whether everybody together is judged."""
        return self.reach.startswith("everybody")

    @property
    def of_groups(self) -> bool:
        """Whether each group is judged."""
        return self.reach.endswith("each group")


RULES: tuple[Rule, ...] = (
    Rule("max_pooled_drop", "accuracy that everybody together lost", "everybody"),
    Rule("max_group_drop", "accuracy that a group lost", "each group"),
    Rule("min_group_accuracy", "accuracy of a group", "each group"),
    Rule("max_excess_gap", "accuracy that a group lost beyond what everybody lost", "each group"),
    Rule("max_gap_increase", "growth of the accuracy gap between groups", "between groups"),
    Rule(FLIP_RATE, "people whose decision changed", "everybody and each group"),
    Rule("max_true_positive_drop", "true positive rate that a group lost", "each group", of_output=True),
    Rule(
        "max_demographic_parity_increase",
        "growth of the gap in positive decisions",
        "between groups",
        of_output=True,
    ),
    Rule(
        "max_equal_opportunity_increase", "growth of the gap in true positive rates", "between groups", of_output=True
    ),
    Rule("max_equalized_odds_increase", "growth of the equalised odds gap", "between groups", of_output=True),
)
"""In the order of tables."""


def of_everybody(measured: MeasuredGroup | OverallGroup, flips: Changed | Touched | None) -> Numbers:
    """What rules limit of everybody together."""
    numbers = {"max_pooled_drop": _lost(_accuracy_change(measured))}
    return numbers if flips is None else {**numbers, FLIP_RATE: _flipped(flips)}


def of_group(measured: MeasuredGroup | OverallGroup, flips: Changed | Touched | None) -> Numbers:
    """What rules limit of one group."""
    numbers = {
        "max_group_drop": _lost(_accuracy_change(measured)),
        "min_group_accuracy": measured.accuracy if isinstance(measured, OverallGroup) else measured.scores.accuracy,
        "max_excess_gap": measured.excess_gap or _UNDEFINED,
    }
    if isinstance(measured, MeasuredGroup):
        numbers["max_true_positive_drop"] = _lost(None if measured.change is None else measured.change.true_positive)
    return numbers if flips is None else {**numbers, FLIP_RATE: _flipped(flips)}


def between_groups(measured: MeasuredAttribute | OverallAttribute) -> Numbers:
    """What rules limit of the differences between groups."""
    if isinstance(measured, OverallAttribute):
        return {"max_gap_increase": measured.gap_change or _UNDEFINED}
    wider = measured.gaps_change
    if wider is None:
        return {}
    return {
        "max_gap_increase": wider.accuracy,
        "max_demographic_parity_increase": wider.demographic_parity,
        "max_equal_opportunity_increase": wider.equal_opportunity_1,
        "max_equalized_odds_increase": wider.equalized_odds,
    }


_UNDEFINED = Estimate(None, None)


def _accuracy_change(measured: MeasuredGroup | OverallGroup) -> Estimate | None:
    change = measured.change
    return change if change is None or isinstance(change, Estimate) else change.accuracy


def _lost(change: Estimate | None) -> Estimate:
    """A change with its sign turned, so that a loss is positive."""
    if change is None or change.value is None:
        return _UNDEFINED
    interval = change.interval
    if interval is not None:
        interval = Interval(-interval.high, -interval.low, interval.undefined, interval.method)
    return Estimate(0.0 - change.value, interval)


def _flipped(flips: Changed | Touched) -> Estimate:
    return flips.answers if isinstance(flips, Touched) else flips.share
