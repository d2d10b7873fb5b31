"""Label overrides: the people a model is least sure about are answered by somebody else.

Iofinova, Peste & Alistarh (arXiv 2304.12622): what compression changes sits among the people whom the *dense* model is
unsure about. A policy picks them by a margin that was fixed on validation people, and takes their answers from the
dense model or from a human.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import (
    BoolArray,
    FloatArray,
    IntArray,
    Task,
    as_labels,
    check_rows,
    checked_labels,
    margins,
    own_decisions,
    task_of,
)

Model = Literal["dense", "pruned"]
Answer = Literal["dense", "human"]

BUDGET = "a budget is a share of people, from 0 to 1; got {budget}"
BAD_CHOICE = "{key} must be one of {allowed}, got {got!r}"
DENSE_NEEDED = "the policy needs dense_logits=: it {why}"
LABELS_NEEDED = "the policy asks a human, whose answers are the labels: pass labels="
OTHER_SHAPE = "logits and dense_logits must have the same shape, got {pruned} and {dense}"
NOT_A_POLICY = "not an override policy as OverridePolicy.as_dict() writes it: {reason}"
TIES = "{count} of the budget of {budget} people are overridden: people of equal margin cannot be parted."


@dataclass(frozen=True)
class Overridden:
    """What a policy decided.

    Attributes:
        decisions: class or label, int64 ``[N]``, or ``[N, A]`` (multi-label).
        overridden: where the answer is not the pruned model's, bool of the same shape.
    """

    decisions: IntArray
    overridden: BoolArray


@dataclass(frozen=True)
class OverridePolicy:
    """Who is answered by whom.

    Attributes:
        task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        uncertain_under: the model whose margin picks people. With ``"dense"`` the dense model has to run on everybody
            (or to have run: its margins may be kept); with ``"pruned"`` it runs on the picked people at most.
        answer_of: ``"dense"``, or ``"human"``, who is taken to be right always.
        budget: share of people that was asked for.
        cutoffs: of each output, the margin at or below which an answer is overridden; minus infinite is never.
        notes: ties, in sentences.
    """

    task: Task
    uncertain_under: Model
    answer_of: Answer
    budget: float
    cutoffs: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def apply(
        self,
        logits: npt.ArrayLike,
        *,
        dense_logits: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
    ) -> Overridden:
        """Decide about people.

        Args:
            logits: the pruned model's: ``[N]``, ``[N, 1]``, ``[N, 2]``, ``[N, A]`` or ``[N, K]``.
            dense_logits: the dense model's, where it picks or answers.
            labels: the truth, where a human answers.

        Raises:
            InputError: something needed is missing, or arrays do not fit.
        """
        found = _Inputs.read(self.task, logits, dense_logits, labels, self.uncertain_under, self.answer_of)
        if found.margin.shape[1] != len(self.cutoffs):
            raise InputError(f"the policy is for {len(self.cutoffs)} outputs, the logits have {found.margin.shape[1]}")
        mask = found.margin <= np.array(self.cutoffs)
        decided = np.where(mask, found.answer, found.own)
        shape = mask if self.task == "multilabel" else mask[:, 0]
        return Overridden(as_labels(decided, self.task), shape)

    def as_dict(self) -> dict[str, Any]:
        """The policy in strict JSON types."""
        return {
            "kind": "override",
            "task": self.task,
            "uncertain_under": self.uncertain_under,
            "answer_of": self.answer_of,
            "budget": self.budget,
            "cutoffs": [c if math.isfinite(c) else "never" for c in self.cutoffs],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OverridePolicy:
        """Read what :meth:`as_dict` wrote.

        Raises:
            InputError: something is missing or of the wrong type.
        """
        try:
            if data["kind"] != "override" or data["task"] not in get_args(Task):
                raise ValueError(f"kind {data['kind']!r}, task {data['task']!r}")
            _check_choices(data["uncertain_under"], data["answer_of"])
            cutoffs = tuple(-math.inf if c == "never" else float(c) for c in data["cutoffs"])
            return cls(
                data["task"],
                data["uncertain_under"],
                data["answer_of"],
                float(data["budget"]),
                cutoffs,
                tuple(data["notes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(NOT_A_POLICY.format(reason=f"{type(error).__name__}: {error}")) from error


def choose_override(
    logits: npt.ArrayLike,
    dense_logits: npt.ArrayLike | None = None,
    *,
    budget: float,
    uncertain_under: Model = "dense",
    answer_of: Answer = "dense",
    task: Task | None = None,
) -> OverridePolicy:
    """Fix on validation people at which margin answers are overridden; no label is looked at.

    Args:
        logits: the pruned model's on validation people.
        dense_logits: the dense model's, where ``uncertain_under="dense"``.
        budget: share of people to override, of each output; never exceeded on these people.
        uncertain_under: the model whose margin picks.
        answer_of: who answers in the end.
        task: ``"multilabel"`` cannot be told from logits; without, binary or multi-class by their shape.

    Raises:
        InputError: a budget outside 0 to 1, logits that do not fit, or dense logits that are missing.
    """
    _check_budget(budget)
    _check_choices(uncertain_under, answer_of)
    task = task or task_of((), logits)
    if uncertain_under == "dense" and dense_logits is None:
        raise InputError(DENSE_NEEDED.format(why="picks people by the dense model's margin"))
    chosen_by = dense_logits if uncertain_under == "dense" and dense_logits is not None else logits
    margin = np.sort(margins(chosen_by, task), axis=0)
    asked = _people(budget, len(margin))
    cutoffs, notes = [], []
    for column in margin.T:
        # The largest margin that takes in no more people than asked for.
        count = asked
        if 0 < count < len(column) and column[count - 1] == column[count]:
            count = int(np.searchsorted(column, column[count], side="left"))
        if count < asked:
            notes.append(TIES.format(count=count, budget=asked))
        if not count:
            cutoffs.append(-math.inf)
        elif count == len(column):
            cutoffs.append(float(column[-1]))
        else:
            below, above = column[count - 1], column[count]
            middle = below + (above - below) / 2
            cutoffs.append(float(middle if below <= middle < above else below))
    return OverridePolicy(task, uncertain_under, answer_of, budget, tuple(cutoffs), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class OverridePoint:
    """One output at one budget, on the people the curve is drawn for.

    Attributes:
        budget: share asked for.
        overridden: people overridden.
        accuracy: over everybody, 0 to 1.
        by_group: accuracy per group ``[G]``, NaN for a group without people.
        overridden_by_group: share of each group that is overridden ``[G]``, NaN likewise.
    """

    budget: float
    overridden: int
    accuracy: float
    by_group: FloatArray
    overridden_by_group: FloatArray

    @property
    def worst(self) -> float:
        """Accuracy of the worst group."""
        return float(np.nanmin(self.by_group))

    @property
    def gap(self) -> float:
        """Largest minus smallest accuracy of a group."""
        return float(np.nanmax(self.by_group) - np.nanmin(self.by_group))


def override_curve(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    groups: GroupLabels,
    dense_logits: npt.ArrayLike | None = None,
    *,
    budgets: Sequence[float] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    uncertain_under: Model = "dense",
    answer_of: Answer = "dense",
) -> tuple[tuple[OverridePoint, ...], ...]:
    """Accuracy against budget: at each, exactly that many people of the smallest margin are overridden.

    People of equal margin are taken in the order of the rows. Draw it on validation people to choose a budget.

    Args:
        labels: the truth: ``[N]``, or ``[N, A]`` (multi-label).
        logits: the pruned model's.
        groups: the sensitive group of each person.
        dense_logits: the dense model's, where it picks or answers.
        budgets: shares of people.
        uncertain_under: the model whose margin picks.
        answer_of: who answers.

    Returns:
        for each output its points, in the order of ``budgets``.

    Raises:
        InputError: a budget outside 0 to 1, arrays that do not fit, or logits that are missing.
    """
    for budget in budgets:
        _check_budget(budget)
    _check_choices(uncertain_under, answer_of)
    task = task_of(labels, logits)
    found = _Inputs.read(task, logits, dense_logits, labels, uncertain_under, answer_of)
    check_rows(groups, logits=found.own)
    truth = checked_labels(labels, task, found.own.shape[1], last=found.classes - 1)
    rank = np.argsort(np.argsort(found.margin, axis=0, kind="stable"), axis=0, kind="stable")
    curves = []
    for i in range(found.own.shape[1]):
        points = []
        for budget in budgets:
            mask = rank[:, i] < _people(budget, len(rank))
            right = np.where(mask, found.answer[:, i], found.own[:, i]) == truth[:, i]
            points.append(
                OverridePoint(
                    budget,
                    int(mask.sum()),
                    float(right.mean()),
                    share_by_group(right, groups),
                    share_by_group(mask, groups),
                )
            )
        curves.append(tuple(points))
    return tuple(curves)


def share_by_group(mask: BoolArray, groups: GroupLabels) -> FloatArray:
    """Share of each group's people for whom something holds, float64 ``[G]``; NaN without people."""
    hits = np.bincount(groups.codes[mask & (groups.codes >= 0)], minlength=len(groups.names))
    counts = groups.counts
    shares: FloatArray = np.divide(hits, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return shares


@dataclass(frozen=True)
class _Inputs:
    """What a policy looks at, checked; each ``[N, outputs]``."""

    own: IntArray
    answer: IntArray
    margin: FloatArray
    classes: int

    @classmethod
    def read(
        cls,
        task: Task,
        logits: npt.ArrayLike,
        dense_logits: npt.ArrayLike | None,
        labels: npt.ArrayLike | None,
        uncertain_under: Model,
        answer_of: Answer,
    ) -> _Inputs:
        own = own_decisions(logits, task)
        classes = np.shape(logits)[1] if task == "multiclass" else 2
        if dense_logits is not None and np.shape(dense_logits) != np.shape(logits):
            raise InputError(OTHER_SHAPE.format(pruned=np.shape(logits), dense=np.shape(dense_logits)))
        if uncertain_under == "dense" and dense_logits is None:
            raise InputError(DENSE_NEEDED.format(why="picks people by the dense model's margin"))
        picked_by = dense_logits if uncertain_under == "dense" and dense_logits is not None else logits
        if answer_of == "human":
            if labels is None:
                raise InputError(LABELS_NEEDED)
            answer = checked_labels(labels, task, own.shape[1], last=classes - 1)
        else:
            if dense_logits is None:
                raise InputError(DENSE_NEEDED.format(why="takes the dense model's answers"))
            answer = own_decisions(dense_logits, task, "dense_logits")
        check_rows(logits=own, answers=answer)
        return cls(own, answer, margins(picked_by, task), classes)


def _people(budget: float, people: int) -> int:
    # Rounded first: 0.29 of 100 people is 28.999... of them in floating point.
    return math.floor(round(budget * people, 9))


def _check_budget(budget: float) -> None:
    if not 0 <= budget <= 1:
        raise InputError(BUDGET.format(budget=budget))


def _check_choices(uncertain_under: Model, answer_of: Answer) -> None:
    for key, value, allowed in (
        ("uncertain_under", uncertain_under, get_args(Model)),
        ("answer_of", answer_of, get_args(Answer)),
    ):
        if value not in allowed:
            raise InputError(BAD_CHOICE.format(key=key, allowed=list(allowed), got=value))
