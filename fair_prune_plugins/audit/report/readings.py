"""What the report speaks of first: accuracy over all outputs, or of the one output of a binary task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fair_prune_plugins.audit.measures import (
    ChangeTest,
    Disparity,
    MeasuredGroup,
    MeasuredModel,
    OverallGroup,
)
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.evaluation import intervals
from fair_prune_plugins.reporting.estimates import Estimate, Verdict, judge


@dataclass(frozen=True)
class GroupLine:
    """One group's accuracy under one model.

    Attributes:
        name: of the group.
        n: people in it.
        too_small: too few to judge.
        accuracy: with its interval.
        change: from the dense model's.
        excess: what it lost beyond what everybody lost.
        test: whether it changed at all.
        alpha: chance of error that is accepted over all tests of the family.
    """

    name: str
    n: int
    too_small: bool
    accuracy: intervals.Estimate
    change: intervals.Estimate | None
    excess: intervals.Estimate | None
    test: ChangeTest | None
    alpha: float

    @property
    def moved(self) -> Estimate:
        """The change, flat."""
        return Estimate.of(self.change)

    @property
    def verdict(self) -> Verdict:
        """What may be said of the change: after Holm's correction where there is a test, else by the interval."""
        if self.too_small:
            return Verdict.TOO_SMALL
        if self.test is None or self.moved.value is None:
            return judge(self.moved)
        if self.test.holm >= self.alpha or not self.moved.value:
            return Verdict.NO_DIFFERENCE
        return Verdict.WORSE if self.moved.value < 0 else Verdict.BETTER


@dataclass(frozen=True)
class AttributeLine:
    """One sensitive attribute under one model."""

    attribute: str
    groups: tuple[GroupLine, ...]
    gap: intervals.Estimate
    gap_by_chance: float | None
    gap_change: intervals.Estimate | None
    disparity: Disparity | None

    @property
    def judged(self) -> tuple[GroupLine, ...]:
        """Groups that are large enough and have a change."""
        return tuple(g for g in self.groups if not g.too_small and g.moved.value is not None)

    @property
    def losers(self) -> tuple[GroupLine, ...]:
        """Groups shown to lose, the largest loss first."""
        return tuple(sorted(self._said(Verdict.WORSE), key=lambda g: g.moved.value or 0))

    @property
    def winners(self) -> tuple[GroupLine, ...]:
        """Groups shown to gain, the largest gain first."""
        return tuple(sorted(self._said(Verdict.BETTER), key=lambda g: -(g.moved.value or 0)))

    def _said(self, verdict: Verdict) -> list[GroupLine]:
        return [g for g in self.groups if g.verdict is verdict]


@dataclass(frozen=True)
class ModelLine:
    """One model's accuracy."""

    name: str
    runs: int
    everybody: GroupLine
    attributes: tuple[AttributeLine, ...]

    @property
    def losers(self) -> list[tuple[str, GroupLine]]:
        """Attribute and group of everyone shown to lose, the largest loss first."""
        found = [(a.attribute, g) for a in self.attributes for g in a.losers]
        return sorted(found, key=lambda pair: pair[1].moved.value or 0)

    def attribute(self, name: str) -> AttributeLine:
        """One sensitive attribute's."""
        return next(a for a in self.attributes if a.attribute == name)


def read_models(audit: Audit) -> tuple[ModelLine, ...]:
    """Every model, the dense one first."""
    return tuple(read_model(model, 1 - audit.confidence) for model in audit.measures.models)


def read_model(model: MeasuredModel, alpha: float) -> ModelLine:
    """Overall accuracy, or the one output's."""
    if model.overall is not None:
        overall = model.overall
        attributes: Sequence[AttributeLine] = [
            AttributeLine(
                a.attribute,
                tuple(_of_overall(g, alpha) for g in a.groups),
                a.gap,
                a.gap_by_chance,
                a.gap_change,
                a.disparity,
            )
            for a in overall.attributes
        ]
        return ModelLine(model.name, len(model.runs), _of_overall(overall.everybody, alpha), tuple(attributes))
    (output,) = model.outputs
    attributes = [
        AttributeLine(
            a.attribute,
            tuple(of_measured(g, alpha) for g in a.groups),
            a.gaps.accuracy,
            a.gaps_by_chance.accuracy,
            None if a.gaps_change is None else a.gaps_change.accuracy,
            a.disparity,
        )
        for a in output.attributes
    ]
    return ModelLine(model.name, len(model.runs), of_measured(output.everybody, alpha), tuple(attributes))


def of_measured(group: MeasuredGroup, alpha: float) -> GroupLine:
    """Accuracy of one group on one output."""
    change = None if group.change is None else group.change.accuracy
    return GroupLine(
        group.name, group.n, group.too_small, group.scores.accuracy, change, group.excess_gap, group.test, alpha
    )


def _of_overall(group: OverallGroup, alpha: float) -> GroupLine:
    return GroupLine(
        group.name, group.n, group.too_small, group.accuracy, group.change, group.excess_gap, group.test, alpha
    )


def what_accuracy(audit: Audit) -> str:
    """What "accuracy" stands for, in words."""
    if audit.task == "multiclass":
        return "share of people whose class is right"
    if len(audit.outputs) == 1:
        return f"share of people answered rightly on {audit.outputs[0]}"
    return f"share of right answers, mean over the {len(audit.outputs)} outputs"
