"""What the dense model alone tells of the risks of compression, and how good that forecast was, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from fair_prune_plugins.evaluation.intervals import Estimate


@dataclass(frozen=True, slots=True)
class OutputRisk:
    """One output (a label; a class against the rest in a multi-class task), over all people.

    Attributes:
        output: its name.
        rank: 1 is the output most at risk; outputs of equal score share a rank.
        score: mean over the signals of where the output stands among the outputs, 0 (safest) to 1; ``None`` with a
            single output, which has nothing to be compared with.
        reason: why, in plain words with the numbers.
        uncertainty: share of people with ``|p - 0.5| < 0.4`` (U; Iofinova et al., arXiv 2304.12622).
        interdependence: in-sample R² of the output's answers on the other outputs' answers (ID); ``None`` if undefined.
        held_out_interdependence: the same R² on people held out of the regression.
        boundary: mean of ``1 - sum p²``, 0 to 0.5 for two answers; large is close to the decision boundary (Tran et
            al., arXiv 2205.13574).
        prevalence: share of training people of whom the output is true.
        rare: share of the rarer value among training people, 0 to 0.5; small is imbalanced.
        accuracy: of the dense model, mean over runs.
    """

    output: str
    rank: int
    score: float | None
    reason: str
    uncertainty: Estimate
    interdependence: float | None
    held_out_interdependence: float | None
    boundary: Estimate
    prevalence: float
    rare: float
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class GroupOutputRisk:
    """One output in one group.

    Attributes:
        attribute: the sensitive attribute.
        group: the group.
        output: the output's name.
        people: audited people of the group.
        too_small: fewer than the minimum one can judge.
        rank: 1 is the pair most at risk of this attribute's; ``None`` if too small.
        score: mean over the signals of where the pair stands among the attribute's, 0 to 1; ``None`` if too small.
        reason: why, in plain words with the numbers.
        uncertainty: as :attr:`OutputRisk.uncertainty`, of the group's people.
        boundary: likewise.
        accuracy: likewise.
        prevalence: share of the group's training people of whom the output is true (pi1); ``None`` without people.
        elsewhere: the same among all other training people of known group (pi0).
        ratio: ``pi1 / pi0``; ``None`` where undefined.
        correlation: of the training labels with membership of the group (phi coefficient); ``None`` where either is
            constant.
    """

    attribute: str
    group: str
    output: str
    people: int
    too_small: bool
    rank: int | None
    score: float | None
    reason: str
    uncertainty: Estimate
    boundary: Estimate
    accuracy: Estimate
    prevalence: float | None
    elsewhere: float | None
    ratio: float | None
    correlation: float | None


@dataclass(frozen=True, slots=True)
class GroupGradient:
    """What a group's loss looks like around the dense network (Tran et al., arXiv 2205.13574).

    The loss that the group gains when weights move by ``d`` is at most ``norm * |d| + eigenvalue * |d|² / 2`` and
    terms of third order.

    Attributes:
        group: the group.
        people: whose loss it is.
        loss: mean loss.
        norm: Euclidean norm of the gradient of the mean loss by all trainable parameters.
        noise: standard error by which chance lifts the norm: square root of the summed variances of the mean gradient.
            A norm that is not well above it says more of the group's size than of the group. ``None`` with fewer than
            two people.
        eigenvalue: largest eigenvalue of the Hessian of the mean loss; ``None`` if not converged or not asked for.
        eigenvalue_people: people it was computed from.
    """

    group: str
    people: int
    loss: float | None
    norm: float | None
    noise: float | None
    eigenvalue: float | None
    eigenvalue_people: int


@dataclass(frozen=True, slots=True)
class Gradients:
    """Group gradients of one or several dense runs, per group the mean over runs.

    Attributes:
        attribute: the sensitive attribute.
        groups: one entry per group, in the order of the groups.
        notes: in sentences.
    """

    attribute: str
    groups: tuple[GroupGradient, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupRisk:
    """One group, over all outputs.

    Attributes:
        group: its name.
        people: audited people.
        too_small: fewer than the minimum one can judge.
        rank: 1 is the group most at risk of its attribute; ``None`` if too small.
        score: mean over the signals of where the group stands among the groups, 0 to 1; ``None`` if too small.
        reason: why, in plain words with the numbers.
        uncertainty: mean over outputs; in a multi-class task the share of people without a class at 0.9.
        boundary: mean over outputs of ``1 - sum p²``; in a multi-class task that of all classes together.
        accuracy: mean over outputs.
        training_people: how many there are in the training data.
        gradient: from :func:`~fair_prune_plugins.audit.forecast.gradients`, where it was given.
    """

    group: str
    people: int
    too_small: bool
    rank: int | None
    score: float | None
    reason: str
    uncertainty: Estimate
    boundary: Estimate
    accuracy: Estimate
    training_people: int
    gradient: GroupGradient | None


@dataclass(frozen=True, slots=True)
class AttributeRisk:
    """One sensitive attribute.

    Attributes:
        attribute: its name.
        groups: one entry per group, in the order of the groups.
        pairs: one entry per group and output: groups in order, and within each the outputs.
    """

    attribute: str
    groups: tuple[GroupRisk, ...]
    pairs: tuple[GroupOutputRisk, ...]

    @property
    def ranked(self) -> tuple[GroupRisk, ...]:
        """Groups that are large enough, most at risk first."""
        return tuple(sorted((g for g in self.groups if g.rank is not None), key=lambda g: g.rank or 0))

    @property
    def ranked_pairs(self) -> tuple[GroupOutputRisk, ...]:
        """Pairs of group and output that are large enough, most at risk first."""
        return tuple(sorted((p for p in self.pairs if p.rank is not None), key=lambda p: p.rank or 0))


@dataclass(frozen=True, slots=True)
class PersonRisk:
    """One answer that is likely to flip.

    Attributes:
        id: who.
        output: the output whose answer is least sure; of a multi-class task the class decided for.
        margin: how far the dense model's answer is from the next best one, in logits, mean over runs.
    """

    id: str
    output: str
    margin: float


@dataclass(frozen=True, slots=True)
class RiskReport:
    """What the dense model alone tells.

    Attributes:
        model: the dense model's name.
        runs: of it.
        people: audited.
        stamp: SHA-256 over their sorted ids: tells whether something else is of the same people.
        outputs: in the order of the outputs.
        attributes: by sensitive attribute.
        likely: answers most likely to flip, least sure first.
        signals: what the order of outputs, of groups and of pairs is made of, by these names.
        training: whether prevalences come from training people; else from the audited ones.
        confidence: coverage of the intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        minimum: groups with fewer people are flagged and not ranked.
        notes: what a reader must know, in sentences.
    """

    model: str
    runs: int
    people: int
    stamp: str
    outputs: tuple[OutputRisk, ...]
    attributes: tuple[AttributeRisk, ...]
    likely: tuple[PersonRisk, ...]
    signals: dict[str, tuple[str, ...]]
    training: bool
    confidence: float
    resamples: int
    seed: int
    minimum: int
    notes: tuple[str, ...]

    @property
    def ranked(self) -> tuple[OutputRisk, ...]:
        """Outputs, most at risk first."""
        return tuple(sorted(self.outputs, key=lambda o: o.rank))


@dataclass(frozen=True, slots=True)
class Detection:
    """How well the dense model's uncertainty tells who will be an exemplar.

    Attributes:
        attribute: the sensitive attribute; ``None`` for everyone.
        group: the group; ``None`` for everyone.
        question: an output's name, the class of a multi-class task, or ``"mean over outputs"``: of those with at least
            two exemplars and two others.
        answers: how many.
        exemplars: of them.
        auroc: chance that an exemplar was less sure under the dense model than another answer; 0.5 is no better than
            guessing. Undefined where all or none are exemplars.
    """

    attribute: str | None
    group: str | None
    question: str
    answers: int
    exemplars: int
    auroc: Estimate


@dataclass(frozen=True, slots=True)
class OrderQuality:
    """How well a signal of the dense model put groups, or outputs, in the order in which they really suffered.

    Attributes:
        of: what was ordered: a sensitive attribute's groups (its name), or ``"outputs"``.
        signal: which signal; ``"risk"`` is all of them together. ``"gradient norm beyond chance"`` is the square root
            of ``norm² - noise²``.
        suffered: what came: ``"loss of accuracy"`` or ``"share of exemplars"``.
        halves: whether signals were taken of one half of the people and what came of the other half, and the other way
            round, because the report is of the same people; the correlation is the mean of the two.
        count: groups or outputs compared; those under the minimum are left out.
        correlation: Spearman's rank correlation, 1 if the order was as foretold; undefined with fewer than three. Its
            interval (Bonett & Wright 2000) is about other groups like these, so it is wide where there are few; there
            is none with fewer than four.
        p: two-sided, by permutation.
    """

    of: str
    signal: str
    suffered: str
    halves: bool
    count: int
    correlation: Estimate
    p: float | None


@dataclass(frozen=True, slots=True)
class ForecastQuality:
    """How good the forecast was for one pruned model.

    Attributes:
        model: the pruned model's name.
        plain: whether exemplars are plain disagreement of single runs.
        everyone: detection over all people, question by question, their mean last where there are several; empty where
            only decisions are known of the dense model.
        groups: detection per attribute, group and question, likewise.
        orders: of groups and of outputs.
        notes: in sentences.
    """

    model: str
    plain: bool
    everyone: tuple[Detection, ...]
    groups: tuple[Detection, ...]
    orders: tuple[OrderQuality, ...]
    notes: tuple[str, ...]
