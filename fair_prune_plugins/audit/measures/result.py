"""What is measured, as frozen records: per model, per output, per sensitive attribute and group.

Every number is an :class:`~fair_prune_plugins.evaluation.intervals.Estimate`: ``value`` and ``interval`` are ``None``
where it is undefined, and never 0 instead. A ``change`` is the pruned model's number minus the dense model's on the
same people (paired); the dense model itself has none.

Several runs of a model are averaged: shares (accuracy, rates, uncertainty), AUROC, ECE and interdependence are means
over the runs, and comparisons between groups are made between those means. Intervals say how far people, not training
seeds, would change a number: everybody's outcome under all runs of all models is drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from fair_prune_plugins.audit.measures.group_result import (
    EVERYBODY,
    Amplification,
    ChangeTest,
    Disparity,
    Gaps,
    GapsByChance,
    MeasuredGroup,
    Scores,
    Undefined,
)
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.postprocessing.scores import Task

__all__ = [
    "EVERYBODY",
    "Amplification",
    "ChangeTest",
    "Disparity",
    "Gaps",
    "GapsByChance",
    "Interdependence",
    "MeasuredAttribute",
    "MeasuredGroup",
    "MeasuredModel",
    "MeasuredOutput",
    "Measures",
    "OutputTruth",
    "Overall",
    "OverallAttribute",
    "OverallGroup",
    "Scores",
    "Undefined",
]

T = TypeVar("T")

NO_SUCH = "there is no {what} {name!r} among what was measured; there are {names}"


@dataclass(frozen=True, slots=True)
class MeasuredAttribute:
    """One output by one sensitive attribute.

    Attributes:
        attribute: e.g. ``"race x gender"``.
        groups: in the groups' order.
        gaps: between the groups.
        gaps_by_chance: to read the gaps against.
        gaps_change: from the dense model's; ``None`` for the dense model.
        disparity: ``None`` for the dense model.
        amplification: one per group, in the groups' order.
    """

    attribute: str
    groups: tuple[MeasuredGroup, ...]
    gaps: Gaps
    gaps_by_chance: GapsByChance
    gaps_change: Gaps | None
    disparity: Disparity | None
    amplification: tuple[Amplification, ...]

    def group(self, name: str) -> MeasuredGroup:
        """The entry of one group.

        Raises:
            InputError: no group has that name.
        """
        return _named(self.groups, "name", name, "group")


@dataclass(frozen=True, slots=True)
class Interdependence:
    """How well one output is a linear function of the others: R² of least squares, of answers or of true labels.

    Attributes:
        in_sample: of the fit on all people (ID, arXiv 2304.12622); grows with the number of outputs.
        held_out: each fifth of the people predicted from a fit on the other four; below 0 where others say nothing.
    """

    in_sample: Estimate
    held_out: Estimate


@dataclass(frozen=True, slots=True)
class MeasuredOutput:
    """One output of one model; in a multi-class task one class against the rest.

    Attributes:
        name: the output.
        everybody: pooled over all people, of unknown group too.
        accuracy_by_run: pooled accuracy of each run, in the runs' order.
        interdependence: ``None`` unless the task is multi-label with two outputs or more.
        interdependence_change: from the dense model's; ``None`` for the dense model.
        attributes: one per sensitive attribute.
    """

    name: str
    everybody: MeasuredGroup
    accuracy_by_run: tuple[float, ...]
    interdependence: Interdependence | None
    interdependence_change: Interdependence | None
    attributes: tuple[MeasuredAttribute, ...]

    def attribute(self, name: str) -> MeasuredAttribute:
        """The entry of one sensitive attribute.

        Raises:
            InputError: no attribute has that name.
        """
        return _named(self.attributes, "attribute", name, "sensitive attribute")


@dataclass(frozen=True, slots=True)
class OverallGroup:
    """Overall accuracy of one group; fields as in :class:`MeasuredGroup`."""

    name: str
    n: int
    too_small: bool
    accuracy: Estimate
    change: Estimate | None
    excess_gap: Estimate | None
    test: ChangeTest | None


@dataclass(frozen=True, slots=True)
class OverallAttribute:
    """Overall accuracy by one sensitive attribute; ``gap_by_chance`` is ``None`` in multi-label tasks."""

    attribute: str
    groups: tuple[OverallGroup, ...]
    gap: Estimate
    gap_by_chance: float | None
    gap_change: Estimate | None
    disparity: Disparity | None

    def group(self, name: str) -> OverallGroup:
        """The entry of one group.

        Raises:
            InputError: no group has that name.
        """
        return _named(self.groups, "name", name, "group")


@dataclass(frozen=True, slots=True)
class Overall:
    """Accuracy over all outputs: of the class (multi-class), or the mean over outputs (multi-label)."""

    everybody: OverallGroup
    accuracy_by_run: tuple[float, ...]
    attributes: tuple[OverallAttribute, ...]


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model.

    Attributes:
        name: as in the data.
        runs: names of its runs.
        outputs: in the outputs' order.
        overall: ``None`` in a binary task, whose one output says the same.
    """

    name: str
    runs: tuple[str, ...]
    outputs: tuple[MeasuredOutput, ...]
    overall: Overall | None

    def output(self, name: str) -> MeasuredOutput:
        """The entry of one output.

        Raises:
            InputError: no output has that name.
        """
        return _named(self.outputs, "name", name, "output")


@dataclass(frozen=True, slots=True)
class OutputTruth:
    """What is true of one output, whatever a model says.

    Attributes:
        name: the output.
        positives: audited people who are truly 1.
        prevalence: their share.
        training_prevalence: the share among training people (the audited ones where none are known).
        rare: the rarer value in training, 1 where both are as frequent.
        interdependence: of the true labels, the reference for the answers'; ``None`` as in :class:`MeasuredOutput`.
    """

    name: str
    positives: int
    prevalence: float
    training_prevalence: float
    rare: Literal[0, 1]
    interdependence: Interdependence | None


@dataclass(frozen=True, slots=True)
class Measures:
    """All numbers of an audit.

    Attributes:
        task: binary, multilabel or multiclass.
        n: people audited.
        attributes: the sensitive attributes, in the order of each output's ``attributes``.
        truths: one per output.
        dense: the model before compression.
        pruned: compressed models, each with its changes.
        resamples: bootstrap resamples behind the intervals.
        confidence: coverage the intervals aim at.
        seed: seed of the resamples.
        minimum: people a group needs to be judged.
        notes: what a reader must know before reading the numbers, in sentences.
    """

    task: Task
    n: int
    attributes: tuple[str, ...]
    truths: tuple[OutputTruth, ...]
    dense: MeasuredModel
    pruned: tuple[MeasuredModel, ...]
    resamples: int
    confidence: float
    seed: int
    minimum: int
    notes: tuple[str, ...]

    @property
    def models(self) -> tuple[MeasuredModel, ...]:
        """The dense model, then the pruned ones."""
        return (self.dense, *self.pruned)

    def model(self, name: str) -> MeasuredModel:
        """The entry of one model.

        Raises:
            InputError: no model has that name.
        """
        return _named(self.models, "name", name, "model")


def _named(entries: tuple[T, ...], key: str, name: str, what: str) -> T:
    for entry in entries:
        if getattr(entry, key) == name:
            return entry
    raise InputError(NO_SUCH.format(what=what, name=name, names=[getattr(entry, key) for entry in entries]))
