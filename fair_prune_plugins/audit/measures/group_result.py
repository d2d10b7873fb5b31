"""What is measured of one group of people, and between groups, as frozen records.

``value`` and ``interval`` of an :class:`~fair_prune_plugins.evaluation.intervals.Estimate` are ``None`` where the
number is undefined, and never 0 instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.evaluation.intervals import Estimate

EVERYBODY = "everybody"
"""How the pooled numbers' row is called: all people, those of unknown group included."""

Undefined = Literal[
    "the output is the attribute itself",
    "too few true cases",
    "as frequent in training among both",
    "never answered",
]


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's numbers on one output and some people; or how much they changed from the dense model's.

    Attributes:
        accuracy: share of people answered rightly.
        auroc: chance that a positive scores above a negative (ties count half); undefined with people of one class.
            Intervals: DeLong, DeLong & Clarke-Pearson 1988, on the logit scale (of a change: on its own scale, within
            [-1, 1]).
        true_positive: of those who are truly 1, the share answered 1.
        false_positive: of those who are truly 0, the share answered 1.
        true_negative: of those who are truly 0, the share answered 0.
        predicted_positive: share of people answered 1.
        rare_value: how often the rare value is answered over how often it is true; below 1 is under-predicted. Which
            value is rare among all training people is in :attr:`OutputTruth.rare`.
        ece: expected calibration error, 10 bins of equal width (a probability of exactly 1 has its own). Never
            negative: read it beside ``ece_by_chance``.
        uncertainty: share of people with a probability within (0.1, 0.9) (U, arXiv 2304.12622).
    """

    accuracy: Estimate
    auroc: Estimate
    true_positive: Estimate
    false_positive: Estimate
    true_negative: Estimate
    predicted_positive: Estimate
    rare_value: Estimate
    ece: Estimate
    uncertainty: Estimate


@dataclass(frozen=True, slots=True)
class ChangeTest:
    """Whether a group's accuracy changed from the dense model's at all.

    Attributes:
        p: two-sided p-value of the sign-flip test: had compression done nothing to the group, each person's change
            would be as likely to point the other way. With one run per model this is McNemar's exact test.
        holm: the same after Holm's correction over the family.
        family: number of tests in the family: all groups with enough people x all outputs (overall accuracy is one
            more) of one pruned model and one sensitive attribute.
    """

    p: float
    holm: float
    family: int


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """One group of people on one output; :data:`EVERYBODY` for the pooled numbers.

    Attributes:
        name: the group.
        n: people in it. With none, every estimate is undefined.
        positives: of these, people who are truly 1.
        too_small: fewer people than the ``minimum`` one can judge. Such groups are flagged, count in comparisons
            between groups (as in ``evaluation``), and are not tested.
        scores: the model's numbers.
        ece_by_chance: the ECE that a perfectly calibrated model of these probabilities stays below with the given
            confidence.
        change: the numbers' changes from the dense model; ``None`` for the dense model.
        excess_gap: accuracy that the group lost beyond what everybody lost (psi, arXiv 2310.20673); ``None`` for the
            dense model and for everybody.
        test: of the change of accuracy; ``None`` for the dense model, for everybody, and for groups that are too small.
    """

    name: str
    n: int
    positives: int
    too_small: bool
    scores: Scores
    ece_by_chance: float | None
    change: Scores | None
    excess_gap: Estimate | None
    test: ChangeTest | None


@dataclass(frozen=True, slots=True)
class Gaps:
    """Differences between groups, or how much they changed from the dense model's (positive: wider).

    All are largest minus smallest over the groups in which the number is defined, and undefined with fewer than two.
    Resampling adds its noise to such differences; intervals are the resamples' spread about the number.

    Attributes:
        accuracy: difference in accuracy.
        auroc: difference in AUROC.
        demographic_parity: difference in the share answered 1.
        equal_opportunity_1: difference in true positive rates.
        equal_opportunity_0: difference in true negative rates (as in false positive rates).
        equalized_odds: mean of the differences in true and in false positive rates, the form in which opposite gaps do
            not cancel (fairlearn's with ``agg="mean"``).
        equalized_odds_worst: the larger of the two (fairlearn's default, and what ``evaluation`` reports).
        equalized_odds_cancelling: difference in the mean of both rates, ``|dTPR + dFPR| / 2`` for two groups. Found in
            the literature; gaps in opposite directions cancel, so 0 does not mean equal odds. For comparison only.
    """

    accuracy: Estimate
    auroc: Estimate
    demographic_parity: Estimate
    equal_opportunity_1: Estimate
    equal_opportunity_0: Estimate
    equalized_odds: Estimate
    equalized_odds_worst: Estimate
    equalized_odds_cancelling: Estimate


@dataclass(frozen=True, slots=True)
class GapsByChance:
    """The gaps that equally well served groups of these sizes stay below with the given confidence.

    A gap is never negative and luck alone makes one: whether it stands for anything is seen by comparing it with this.
    ``None`` with fewer than two groups to compare.
    """

    accuracy: float | None
    demographic_parity: float | None
    equal_opportunity_1: float | None
    equal_opportunity_0: float | None


@dataclass(frozen=True, slots=True)
class Disparity:
    """How unequally the change of accuracy from the dense model fell on the groups; intervals as in :class:`Gaps`.

    Attributes:
        rho: sample standard deviation over groups of their changes (arXiv 2207.10888).
        max_excess_gap: largest excess gap of any group (max psi, arXiv 2310.20673).
        pairwise_excess_gap: largest difference in change between two groups (pairwise psi).
    """

    rho: Estimate
    max_excess_gap: Estimate
    pairwise_excess_gap: Estimate


@dataclass(frozen=True, slots=True)
class Amplification:
    """Directional bias amplification of an output with one group against all others (arXiv 2304.12622).

    Attributes:
        group: the group; the others are all people of another, known group. With two groups both entries say the same.
        with_group: whether the output was truer of the group than of the others in training; ``None`` where unknown.
        training_share: share of 1 among the group's training people, ``None`` without any.
        training_share_others: the same among the others.
        value: of the people answered 1, the share on the side where it was truer in training, minus that share of those
            truly 1. Positive: the model associates the output with that side more than the truth does. Runs are pooled.
        change: from the dense model's; ``None`` for the dense model.
        undefined: why there is no value, ``None`` where there is one: fewer than 10 people truly 1 on either side,
            training shares that differ by less than a tenth of the smaller, nobody answered 1, or an output that is
            the sensitive attribute itself.
    """

    group: str
    with_group: bool | None
    training_share: float | None
    training_share_others: float | None
    value: Estimate
    change: Estimate | None
    undefined: Undefined | None
