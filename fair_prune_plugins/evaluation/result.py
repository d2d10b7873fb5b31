"""What an evaluation says, as frozen records that turn into JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate

NO_SUCH_GROUP = "there is no group {name!r} by {attribute}; the groups are {names}"


@dataclass(frozen=True)
class GroupRates:
    """Rates of one group in a binary task (class 1 is the positive one).

    Attributes:
        selection: share of people who are given class 1.
        true_positive: of those truly in class 1, the share given class 1; undefined without any.
        false_positive: of those truly in class 0, the share given class 1; undefined without any.
    """

    selection: Estimate
    true_positive: Estimate
    false_positive: Estimate


@dataclass(frozen=True)
class GroupEvaluation:
    """One sensitive group.

    Attributes:
        name: the group's name.
        n: people in it. With none, every estimate is undefined.
        too_small: fewer people than the ``minimum`` one can judge.
        accuracy: share of people classified rightly.
        dense_accuracy: the same for the dense model, ``None`` without one.
        change: accuracy minus the dense model's, on the same people (paired); negative is worse. ``None`` without a
            dense model.
        excess_gap: what the group lost beyond what everybody lost (CEAG's psi); ``None`` without a dense model.
        rates: ``None`` unless the task is binary.
    """

    name: str
    n: int
    too_small: bool
    accuracy: Estimate
    dense_accuracy: Estimate | None
    change: Estimate | None
    excess_gap: Estimate | None
    rates: GroupRates | None


@dataclass(frozen=True)
class WorstGroup:
    """The group to watch.

    Attributes:
        name: the group, or ``None`` where it was to be picked and none is large enough.
        picked_on_this_data: whether it was picked as the worst on the very data it is judged on, which makes it look
            worse than it is. The interval then picks anew in every resample; it shows the spread of that pick and does
            not undo the bias.
        accuracy: the group's accuracy.
    """

    name: str | None
    picked_on_this_data: bool
    accuracy: Estimate


@dataclass(frozen=True)
class DenseComparison:
    """The evaluated model against the dense one on the same people; intervals are paired.

    Attributes:
        accuracy: the dense model's pooled accuracy.
        change: pooled accuracy minus the dense model's; negative is worse.
        gap: the dense model's accuracy gap.
        gap_change: gap minus the dense model's; positive is wider.
        rho: sample standard deviation over groups of their changes (FairGRAPE).
        max_excess_gap: largest excess gap of any group (CEAG's max psi). At least 0 where everybody's group is known.
        pairwise_excess_gap: largest difference in change between two groups (CEAG's pairwise Psi).
        reclassified: people whom the two models give different classes.
    """

    accuracy: Estimate
    change: Estimate
    gap: Estimate
    gap_change: Estimate
    rho: Estimate
    max_excess_gap: Estimate
    pairwise_excess_gap: Estimate
    reclassified: int


@dataclass(frozen=True)
class BinaryFairness:
    """Fairness of a binary task as fairlearn defines it, except that groups whose rate is undefined are skipped.

    fairlearn counts such a rate as 0 and so shows a difference of up to 1 where nothing can be compared.

    Attributes:
        demographic_parity_difference: largest minus smallest selection rate.
        equal_opportunity_difference: largest minus smallest true positive rate.
        equalized_odds_difference: the larger of the differences in true and in false positive rates.
    """

    demographic_parity_difference: Estimate
    equal_opportunity_difference: Estimate
    equalized_odds_difference: Estimate


@dataclass(frozen=True)
class Evaluation:
    """How well a model serves each group of people.

    Attributes:
        attribute: what the groups are groups of, e.g. ``"race x gender"``.
        n: people evaluated.
        unknown: of these, people whose group is not known; they count in pooled numbers and in no group.
        classes: number of classes.
        accuracy: pooled over everybody.
        groups: one entry per group, in the groups' order.
        gap: largest minus smallest group accuracy (``MetricFrame.difference(method="between_groups")``). Never
            negative, and its interval hardly ever reaches 0: compare it with ``gap_by_chance``.
        gap_by_chance: the gap that equally well served groups of these sizes stay below with the given confidence.
        ratio: smallest over largest group accuracy.
        worst_group: the group to watch.
        dense: comparison with the dense model, ``None`` without one.
        binary: ``None`` unless there are two classes.
        resamples: bootstrap resamples behind the intervals.
        confidence: coverage the intervals aim at.
        seed: seed of the resamples.
        minimum: people a group needs to be judged.
        notes: what a reader must know before reading the numbers, in sentences.
    """

    attribute: str
    n: int
    unknown: int
    classes: int
    accuracy: Estimate
    groups: tuple[GroupEvaluation, ...]
    gap: Estimate
    gap_by_chance: float | None
    ratio: Estimate
    worst_group: WorstGroup
    dense: DenseComparison | None
    binary: BinaryFairness | None
    resamples: int
    confidence: float
    seed: int
    minimum: int
    notes: tuple[str, ...]

    def group(self, name: str) -> GroupEvaluation:
        """The entry of one group.

        Raises:
            InputError: no group has that name.
        """
        for entry in self.groups:
            if entry.name == name:
                return entry
        raise InputError(
            NO_SUCH_GROUP.format(name=name, attribute=self.attribute, names=[entry.name for entry in self.groups])
        )

    def as_dict(self) -> dict[str, Any]:
        """The whole evaluation in dicts, lists, strings, numbers and ``None``: strict JSON, never NaN."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
