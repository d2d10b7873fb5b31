"""What an audit looks at: people, what models said of them, and what is known of the training people.

Everything is in one order of people: whoever reads files matches rows by id before making an :class:`AuditData`.
Binary and multi-label tasks have an output per label, decided by a threshold; a multi-class task has a class per logit,
decided by the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import (
    FloatArray,
    IntArray,
    Task,
    check_rows,
    checked_labels,
    checked_logits,
    own_decisions,
)

NO_RUNS = "model {name!r} has no predictions; give at least one run of it"
NO_GROUPS = "no sensitive attribute is given; name at least one column, e.g. gender"
SAME_NAME = "two models are called {name!r}; give each its own name"
SAME_ATTRIBUTE = "the sensitive attribute {name!r} is given twice"
OTHER_WIDTH = (
    "{name!r} run {run} has {got} outputs and the labels {expected}; all models must answer the same question, with "
    "outputs in the same order"
)
OTHER_PEOPLE = "{name!r}, {run}, has logits of {got} people and there are {expected}; match them by id before"
OUTPUT_NAMES = "{expected} names are needed for the outputs, got {got}: {names}"
SAME_ID = "the id {id!r} occurs more than once among the people; ids must tell people apart"
ONLY_DECISIONS = (
    "of {name!r} only decisions are known, so it has no probabilities; give its logits or probabilities instead"
)
OTHER_PRIOR = (
    "the training people and the audited ones must share outputs and sensitive attributes: {what} differ "
    "({training} and {audited})"
)


@dataclass(frozen=True)
class People:
    """People, what is true of them, and the sensitive groups they belong to.

    Attributes:
        ids: who they are, ``N`` strings that tell them apart (a row number, a file name, a key).
        labels: int64 ``[N]`` class indices (binary, multi-class), or ``[N, A]`` of 0 and 1 (multi-label).
        groups: each sensitive attribute, and each intersection, in the order of reports.
        outputs: names of the outputs: of the labels ``[A]`` of a multi-label task, of the classes of a multi-class one,
            one name for a binary task.
        task: what kind of task it is.

    Raises:
        InputError: ids that repeat, labels of another shape or range, other numbers of people, a wrong number of
            output names, or no sensitive attribute.
    """

    ids: tuple[str, ...]
    labels: IntArray
    groups: tuple[GroupLabels, ...]
    outputs: tuple[str, ...]
    task: Task

    def __post_init__(self) -> None:
        width = len(self.outputs) if self.task == "multilabel" else 1
        last = len(self.outputs) - 1 if self.task == "multiclass" else 1
        labels = checked_labels(self.labels, self.task, width, last=last)
        object.__setattr__(self, "labels", labels if self.task == "multilabel" else labels[:, 0])
        if self.task == "binary" and len(self.outputs) != 1:
            raise InputError(OUTPUT_NAMES.format(expected=1, got=len(self.outputs), names=list(self.outputs)))
        if not self.groups:
            raise InputError(NO_GROUPS)
        repeated = _repeated(groups.attribute for groups in self.groups)
        if repeated is not None:
            raise InputError(SAME_ATTRIBUTE.format(name=repeated))
        for groups in self.groups:
            check_rows(groups, ids=np.arange(len(self.ids)), labels=labels)
        twice = _repeated(self.ids)
        if twice is not None:
            raise InputError(SAME_ID.format(id=twice))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def truths(self) -> IntArray:
        """What is true, 0 or 1 per output, int64 ``[N, outputs]``; of a multi-class task one class against the rest."""
        return _as_binary(self.labels, self.task, len(self.outputs))


@dataclass(frozen=True)
class ModelPredictions:
    """What one model said, once per run (training seed).

    Attributes:
        name: how reports call the model.
        runs: logits, a float64 array ``[N]``, ``[N, 1]`` or ``[N, 2]`` (binary), ``[N, A]`` (multi-label) or
            ``[N, classes]`` (multi-class) per run, all of the same people in the same order.
        run_names: how reports call the runs; numbered unless given.
        graded: whether the logits say how sure the model is. ``False`` where only its decisions are known: the logits
            then have the right sign (or the right largest one) and mean nothing more, so that whatever needs scores
            (AUROC, ECE, uncertainty, thresholds) is undefined.
    """

    name: str
    runs: tuple[FloatArray, ...]
    run_names: tuple[str, ...] = ()
    graded: bool = True

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError(NO_RUNS.format(name=self.name))
        names = self.run_names or tuple(f"run {i}" for i in range(len(self.runs)))
        if len(names) != len(self.runs):
            raise InputError(OUTPUT_NAMES.format(expected=len(self.runs), got=len(names), names=list(names)))
        object.__setattr__(self, "run_names", names)


@dataclass(frozen=True)
class TrainingPeople:
    """Labels and groups of the people that the models were trained on: what was frequent, and among whom.

    Attributes:
        labels: as :attr:`People.labels`.
        groups: the same sensitive attributes as the audited people's, with the same group names.
    """

    labels: IntArray
    groups: tuple[GroupLabels, ...]


@dataclass(frozen=True)
class AuditData:
    """All that an audit computes from, checked to describe the same people and the same task.

    Attributes:
        people: whom it is judged on.
        dense: the model before compression.
        pruned: compressed models; none where only the dense model's risks are asked for.
        training: what is known of the training people, for prevalence and bias amplification. ``None`` takes the
            audited people's labels instead, and the audit says so.

    Raises:
        InputError: models of the same name, logits of another shape, not finite, or of other people than the labels.
    """

    people: People
    dense: ModelPredictions
    pruned: tuple[ModelPredictions, ...] = ()
    training: TrainingPeople | None = None
    _checked: dict[str, tuple[FloatArray, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        repeated = _repeated(model.name for model in self.models)
        if repeated is not None:
            raise InputError(SAME_NAME.format(name=repeated))
        for model in self.models:
            self._checked[model.name] = tuple(self._logits(model, i) for i in range(len(model.runs)))
        if self.training is not None:
            self._check_training(self.training)

    @property
    def models(self) -> tuple[ModelPredictions, ...]:
        """The dense model, then the pruned ones."""
        return (self.dense, *self.pruned)

    def logits(self, model: ModelPredictions) -> tuple[FloatArray, ...]:
        """Each run's logits, float64: ``[N, 1]`` (binary), ``[N, A]`` (multi-label), ``[N, classes]`` (multi-class).

        Two logits of a binary task are their difference, which is above 0 exactly where argmax says 1.
        """
        return self._checked[model.name]

    def decisions(self, model: ModelPredictions, run: int) -> IntArray:
        """What a run decides: 0 or 1 per label, int64 ``[N, outputs]``, or the class ``[N, 1]`` (multi-class)."""
        return own_decisions(self._checked[model.name][run], self.people.task)

    def answers(self, model: ModelPredictions, run: int) -> IntArray:
        """The decisions as 0 or 1 per output, int64 ``[N, outputs]``; multi-class: one class against the rest."""
        decided = self.decisions(model, run)
        flat = decided if self.people.task == "multilabel" else decided[:, 0]
        return _as_binary(flat, self.people.task, len(self.people.outputs))

    def probabilities(self, model: ModelPredictions, run: int) -> FloatArray:
        """Probability of 1 per output, float64 ``[N, outputs]``: sigmoid, or softmax over classes (multi-class).

        Raises:
            InputError: only decisions are known of the model (:attr:`ModelPredictions.graded`).
        """
        if not model.graded:
            raise InputError(ONLY_DECISIONS.format(name=model.name))
        logits = self._checked[model.name][run]
        if self.people.task == "multiclass":
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
            return shares
        return sigmoid(logits)

    def _logits(self, model: ModelPredictions, run: int) -> FloatArray:
        task, people = self.people.task, self.people
        values = checked_logits(model.runs[run], task, f"the logits of {model.name!r}, {model.run_names[run]},")
        if len(values) != len(people):
            raise InputError(
                OTHER_PEOPLE.format(name=model.name, run=model.run_names[run], got=len(values), expected=len(people))
            )
        if task == "binary":
            return values if values.shape[1] == 1 else values[:, 1:] - values[:, :1]
        if values.shape[1] != len(people.outputs):
            raise InputError(
                OTHER_WIDTH.format(
                    name=model.name, run=model.run_names[run], got=values.shape[1], expected=len(people.outputs)
                )
            )
        return values

    def _check_training(self, training: TrainingPeople) -> None:
        people = self.people
        width = len(people.outputs) if people.task == "multilabel" else 1
        last = len(people.outputs) - 1 if people.task == "multiclass" else 1
        labels = checked_labels(training.labels, people.task, width, last=last)
        for theirs in training.groups:
            check_rows(theirs, labels=labels)
        described = tuple((groups.attribute, groups.names) for groups in training.groups)
        audited = tuple((groups.attribute, groups.names) for groups in people.groups)
        if described != audited:
            raise InputError(OTHER_PRIOR.format(what="groups", training=described, audited=audited))

    @cached_property
    def training_truths(self) -> IntArray:
        """What was true of the training people, 0 or 1 per output ``[M, outputs]``; of the audited ones without any."""
        if self.training is None:
            return self.people.truths
        labels = np.asarray(self.training.labels)
        return _as_binary(labels.astype(np.int64), self.people.task, len(self.people.outputs))

    @property
    def training_groups(self) -> tuple[GroupLabels, ...]:
        """Sensitive groups of the training people; of the audited ones without any."""
        return self.people.groups if self.training is None else self.training.groups


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probability of 1 from a logit, any shape; never overflows."""
    odds = np.exp(-np.abs(logits))
    chances: FloatArray = np.where(logits >= 0, 1.0, odds) / (1.0 + odds)
    return chances


def _as_binary(labels: IntArray, task: Task, outputs: int) -> IntArray:
    if task == "multilabel":
        return labels
    if task == "binary":
        return labels.reshape(-1, 1)
    against_rest: npt.NDArray[np.int64] = (labels.reshape(-1, 1) == np.arange(outputs)).astype(np.int64)
    return against_rest


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
