"""What countermeasures would bring, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.postprocessing import OverridePolicy, ThresholdRule
from fair_prune_plugins.postprocessing.overrides import Answer

Kind = Literal["thresholds", "dense overrides", "human overrides"]
"""Thresholds at which as many people are decided 1 as are 1 on validation people; the answers that the dense model is
least sure about taken from the dense model; or from a human who is taken to be always right."""


@dataclass(frozen=True)
class Shift:
    """A number before and after a countermeasure, mean over runs.

    Attributes:
        before: of the pruned model by itself.
        after: with the countermeasure.
        change: after minus before, paired.
    """

    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True)
class AttributeShift:
    """One sensitive attribute.

    Attributes:
        attribute: its name.
        worst_group: the group of the lowest accuracy before, fixed on validation people; ``None`` where no group is
            large enough.
        worst: its accuracy on test people.
        gap: largest minus smallest accuracy of a group on test people, too small groups included.
    """

    attribute: str
    worst_group: str | None
    worst: Shift
    gap: Shift


@dataclass(frozen=True)
class Remedy:
    """What one countermeasure does to one output of one pruned model, on test people.

    Attributes:
        model: the pruned model's name.
        output: the output's name; of a multi-class task all classes together.
        kind: which countermeasure.
        accuracy: over everybody.
        rare_ratio: how often the rarer value is predicted over how often it is true, 1 is calibrated (Iofinova et al.,
            arXiv 2304.12622); ``None`` in a multi-class task.
        rare_value: which value is the rarer one among training people; ``None`` likewise.
        overridden: share of answers that are not the pruned model's own; 0 with thresholds.
        attributes: by sensitive attribute.
    """

    model: str
    output: str
    kind: Kind
    accuracy: Shift
    rare_ratio: Shift | None
    rare_value: int | None
    overridden: float
    attributes: tuple[AttributeShift, ...]


@dataclass(frozen=True)
class Chosen:
    """What was chosen on validation people, ready to be applied.

    Attributes:
        model: the pruned model's name.
        run: which of its runs.
        kind: which countermeasure.
        rule: thresholds or override policy of all outputs.
    """

    model: str
    run: str
    kind: Kind
    rule: ThresholdRule | OverridePolicy


@dataclass(frozen=True)
class CurvePoint:
    """One budget; numbers are means over runs, shares, ``None`` where undefined.

    Attributes:
        budget: share of people overridden.
        accuracy: over everybody.
        worst: of the group that is the worst one on validation people.
        gap: largest minus smallest accuracy of a group.
    """

    budget: float
    accuracy: float
    worst: float | None
    gap: float | None


@dataclass(frozen=True)
class Curve:
    """Accuracy against the share of answers overridden.

    Attributes:
        model: the pruned model's name.
        output: as :attr:`Remedy.output`.
        attribute: the sensitive attribute.
        answer_of: ``"dense"`` or ``"human"``.
        people: whose curve it is. A budget may be read off that of validation people only.
        worst_group: whom ``worst`` is about.
        points: by budget.
    """

    model: str
    output: str
    attribute: str
    answer_of: Answer
    people: Literal["validation", "test"]
    worst_group: str | None
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Countermeasures:
    """What thresholds and overrides would bring.

    Attributes:
        budget: share of answers that overrides were asked for.
        remedies: per pruned model, output and kind.
        chosen: per pruned model, run and kind.
        curves: per pruned model, output, attribute, answerer, and people.
        validation_people: whom they were chosen on.
        test_people: whom they were judged on.
        confidence: coverage of the intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        minimum: groups with fewer validation people cannot be the worst.
        notes: what a reader must know, in sentences.
    """

    budget: float
    remedies: tuple[Remedy, ...]
    chosen: tuple[Chosen, ...]
    curves: tuple[Curve, ...]
    validation_people: int
    test_people: int
    confidence: float
    resamples: int
    seed: int
    minimum: int
    notes: tuple[str, ...]

    def of(self, model: str, kind: Kind) -> tuple[Remedy, ...]:
        """One countermeasure's entries for one model, output by output."""
        return tuple(r for r in self.remedies if r.model == model and r.kind == kind)
