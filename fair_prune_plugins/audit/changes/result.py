"""What compression did to single people, as frozen records.

A *question* is what is asked of each person: each output of a binary or multi-label task; in a multi-class task the
class (named :data:`CLASS`), and then each class against the rest. An *exemplar* is a compression-identified exemplar
(CIE; Hooker et al., arXiv 1911.05248 and 2010.03058): a person whose majority answer over the pruned runs differs from
the majority answer over the dense runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from fair_prune_plugins.evaluation.intervals import Estimate

CLASS = "any class"
"""The question of a multi-class task that asks for the class, beside each class against the rest."""


@dataclass(frozen=True, slots=True)
class Flips:
    """How often the majority answer changed in which direction; shares of all people of the entry.

    Attributes:
        right_to_wrong: right under the dense model, wrong under the pruned one.
        wrong_to_right: the other way round. Their difference is the change of the majority vote's accuracy.
        wrong_to_wrong: another wrong class; ``None`` unless the question is the class of a multi-class task.
        positive_to_negative: answered 1 by the dense model and 0 by the pruned one; ``None`` for the class of a
            multi-class task, which is neither.
        negative_to_positive: the other way round; ``None`` likewise.
    """

    right_to_wrong: Estimate
    wrong_to_right: Estimate
    wrong_to_wrong: Estimate | None
    positive_to_negative: Estimate | None
    negative_to_positive: Estimate | None


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test of dense against pruned: did as many people become right as wrong?

    With several runs the majority votes are tested, not single runs.

    Attributes:
        lost: people right under the dense model only.
        gained: people right under the pruned model only.
        p: two-sided, exact binomial; 1 where nobody changed, ``None`` without people.
        over_groups: Holm's p over the groups of the same attribute and question. ``None`` for everyone together (no
            family) and for groups under the minimum, which are not counted among the tests.
        over_all: Holm's p over the groups and the questions of the same attribute; for everyone together over the
            questions.
    """

    lost: int
    gained: int
    p: float | None
    over_groups: float | None
    over_all: float | None


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one group's answers to one question.

    Attributes:
        question: an output's name, or :data:`CLASS`.
        group: the group's name; ``None`` is everyone, people of unknown group too.
        people: how many.
        too_small: fewer than the minimum one can judge.
        exemplars: how many of them are (modal) exemplars.
        share: exemplars among these people.
        share_of_all: these people's share of everybody's exemplars; compare with ``share_of_people``.
        share_of_people: these people's share of everybody.
        flips: by direction.
        unsure: share whom the dense model was unsure about (base share): its runs' mean probability is in (0.1, 0.9).
        unsure_exemplars: the same among the exemplars.
        dense_error: share whose dense majority answer is wrong.
        pruned_error: share whose pruned majority answer is wrong.
        dense_error_of_exemplars: the same among the exemplars.
        pruned_error_of_exemplars: the same among the exemplars.
        distance: mean taxicab distance, 0 to 2: L1 distance of the two models' distributions of answers over runs.
        far: share of taxicab exemplars: those among the farthest of everybody (see :attr:`Question.cutoff`).
        test: McNemar's test.
    """

    question: str
    group: str | None
    people: int
    too_small: bool
    exemplars: int
    share: Estimate
    share_of_all: Estimate
    share_of_people: float
    flips: Flips
    unsure: Estimate
    unsure_exemplars: Estimate
    dense_error: Estimate
    pruned_error: Estimate
    dense_error_of_exemplars: Estimate
    pruned_error_of_exemplars: Estimate
    distance: Estimate
    far: Estimate
    test: McNemar


@dataclass(frozen=True, slots=True)
class Question:
    """One question over everybody.

    Attributes:
        name: an output's name, or :data:`CLASS`.
        everyone: what became of all people.
        dense_ties: people whose dense runs had no majority; the mean probability over runs decides for them.
        pruned_ties: likewise.
        cutoff: taxicab distance from which a person is a taxicab exemplar; ``None`` where no distance is above 0.
    """

    name: str
    everyone: Changed
    dense_ties: int
    pruned_ties: int
    cutoff: float | None


@dataclass(frozen=True, slots=True)
class Touched:
    """People of one group with any answer changed.

    Attributes:
        group: the group's name; ``None`` is everyone.
        people: how many.
        any: share with at least one exemplar among their answers.
        answers: mean share of a person's answers that changed.
    """

    group: str | None
    people: int
    any: Estimate
    answers: Estimate


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """One sensitive attribute.

    Attributes:
        attribute: its name.
        unknown: people of no known group.
        groups: one entry per question and group: questions in order, and within each the groups.
        touched: one entry per group.
    """

    attribute: str
    unknown: int
    groups: tuple[Changed, ...]
    touched: tuple[Touched, ...]

    def of(self, question: str) -> tuple[Changed, ...]:
        """The groups' entries for one question."""
        return tuple(entry for entry in self.groups if entry.question == question)


@dataclass(frozen=True, slots=True)
class ChangedPerson:
    """One person's answer to one question.

    Attributes:
        id: who.
        question: what was asked.
        distance: taxicab distance, 0 to 2.
        dense: the dense runs' majority answer: 0 or 1, or the class's name for :data:`CLASS`.
        pruned: the pruned runs' likewise.
        truth: what is true.
        dense_margin: distance of the dense model's probability from where it decides otherwise: ``|p - 0.5|``, or
            of the two largest class probabilities; small is unsure. ``None`` where only decisions are known.
    """

    id: str
    question: str
    distance: float
    dense: str
    pruned: str
    truth: str
    dense_margin: float | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What one pruned model does otherwise than the dense one, to whom.

    Attributes:
        model: the pruned model's name.
        dense: the dense model's name.
        dense_runs: runs (training seeds) of the dense model.
        pruned_runs: runs of the pruned model.
        plain: whether both have one run: exemplars are then plain disagreement of two networks, part of which two
            trainings of the same network would show as well.
        questions: everybody, question by question.
        touched: everybody with any answer changed.
        attributes: by sensitive attribute.
        listed: the people who changed most, by id.
        confidence: coverage of the intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        minimum: groups with fewer people are flagged.
        notes: what a reader must know, in sentences.
    """

    model: str
    dense: str
    dense_runs: int
    pruned_runs: int
    plain: bool
    questions: tuple[Question, ...]
    touched: Touched
    attributes: tuple[AttributeChanges, ...]
    listed: tuple[ChangedPerson, ...]
    confidence: float
    resamples: int
    seed: int
    minimum: int
    notes: tuple[str, ...]
