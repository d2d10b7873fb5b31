"""From logits to what a decision is made on: a score per output, and how sure a model is of each decision.

A *binary* task has one output: a single logit, or the difference of two. A *multi-label* task has an output per label,
each decided for itself. A *multi-class* task has one output, the class, which no threshold decides.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.outcomes import LENGTHS, NOT_GROUPS
from fair_prune_plugins.groups import GroupLabels

Task = Literal["binary", "multilabel", "multiclass"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BAD_TASK = "task must be one of {tasks}, got {got!r}"
LOGITS_SHAPE = "{what} of a {task} task must have shape {expected}, got {shape}"
LOGITS_TYPE = "{what} must be real numbers, got dtype {dtype}; pass the model's scores before any threshold or argmax"
NOT_FINITE = "{what} is NaN or infinite for {count} of {n} people, first in row {row}"
NO_PEOPLE = "{what} has no rows: there is nobody to choose on or to decide about"
LABELS_SHAPE = "labels of a {task} task must have shape {expected}, got {shape}"
LABELS_VALUES = "labels of a {task} task must be whole numbers from 0 to {last}, got {low} to {high} ({dtype})"
NO_THRESHOLD = (
    "thresholds decide between two answers; this task has {classes} classes. Use label overrides, or a binary or "
    "multi-label model"
)

_SHAPES: dict[Task, str] = {
    "binary": "[people], [people, 1] or [people, 2]",
    "multilabel": "[people, labels]",
    "multiclass": "[people, classes], two classes or more",
}


def task_of(labels: npt.ArrayLike, logits: npt.ArrayLike) -> Task:
    """What kind of task the shapes stand for: labels ``[N, A]`` are multi-label, three logits or more multi-class."""
    if np.ndim(labels) == 2:
        return "multilabel"
    return "multiclass" if np.ndim(logits) == 2 and np.shape(logits)[1] > 2 else "binary"


def checked_logits(logits: npt.ArrayLike, task: Task, what: str = "logits") -> FloatArray:
    """Logits as float64 ``[N, K]``.

    Raises:
        InputError: a shape that the task does not have, another type, no rows, NaN or infinity.
    """
    if task not in get_args(Task):
        raise InputError(BAD_TASK.format(tasks=list(get_args(Task)), got=task))
    values = np.asarray(logits)
    rows = values[:, None] if values.ndim == 1 and task == "binary" else values
    widths = {"binary": (1, 2), "multilabel": (1, np.inf), "multiclass": (2, np.inf)}[task]
    if rows.ndim != 2 or not widths[0] <= rows.shape[1] <= widths[1]:
        raise InputError(LOGITS_SHAPE.format(what=what, task=task, expected=_SHAPES[task], shape=values.shape))
    if not np.issubdtype(rows.dtype, np.floating):
        raise InputError(LOGITS_TYPE.format(what=what, dtype=rows.dtype))
    if not len(rows):
        raise InputError(NO_PEOPLE.format(what=what))
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(NOT_FINITE.format(what=what, count=int(bad.sum()), n=len(rows), row=int(bad.argmax())))
    return rows.astype(np.float64)


def scores(logits: npt.ArrayLike, task: Task, what: str = "logits") -> FloatArray:
    """The score that each decision is made on; the model itself decides for 1 where it is above 0.

    Args:
        logits: ``[N]``, ``[N, 1]`` or ``[N, 2]`` (binary), ``[N, A]`` (multi-label).
        task: binary or multi-label.
        what: how messages call the array.

    Returns:
        float64 ``[N, outputs]``. Of two logits the difference, which is above 0 exactly where argmax says 1.

    Raises:
        InputError: as :func:`checked_logits`.
    """
    rows = checked_logits(logits, task, what)
    return rows[:, 1:] - rows[:, :1] if task == "binary" and rows.shape[1] == 2 else rows


def margins(logits: npt.ArrayLike, task: Task, what: str = "logits") -> FloatArray:
    """How far each decision is from the next best one, in logits: small is uncertain.

    The absolute score, which orders people as ``|p - 0.5|`` does without running into 1; the largest minus the second
    largest logit in multi-class tasks.

    Returns:
        float64 ``[N, outputs]``, 0 or more.
    """
    if task != "multiclass":
        return np.abs(scores(logits, task, what))
    top = np.partition(checked_logits(logits, task, what), -2, axis=1)[:, -2:]
    return top[:, 1:] - top[:, :1]


def own_decisions(logits: npt.ArrayLike, task: Task, what: str = "logits") -> IntArray:
    """What the model decides by itself, int64 ``[N, outputs]``: score above 0, or the class of the largest logit."""
    if task != "multiclass":
        return (scores(logits, task, what) > 0).astype(np.int64)
    chosen: IntArray = checked_logits(logits, task, what).argmax(axis=1).astype(np.int64)
    return chosen[:, None]


def checked_labels(labels: npt.ArrayLike, task: Task, outputs: int, last: int = 1) -> IntArray:
    """Labels as int64 ``[N, outputs]``.

    Raises:
        InputError: another shape, or values that are not whole numbers from 0 to ``last``.
    """
    values = np.asarray(labels)
    expected = f"[people, {outputs}]" if task == "multilabel" else "[people]"
    rows = values if task == "multilabel" else values[:, None] if values.ndim == 1 else values[..., None]
    if rows.ndim != 2 or rows.shape[1] != outputs:
        raise InputError(LABELS_SHAPE.format(task=task, expected=expected, shape=values.shape))
    whole = np.issubdtype(rows.dtype, np.integer) or rows.dtype == np.bool_
    if not whole or (rows.size and (rows.min() < 0 or rows.max() > last)):
        low, high = (rows.min(), rows.max()) if rows.size else ("nothing", "nothing")
        raise InputError(LABELS_VALUES.format(task=task, last=last, low=low, high=high, dtype=rows.dtype))
    return rows.astype(np.int64)


def check_rows(groups: GroupLabels | None = None, **arrays: npt.NDArray[np.generic]) -> None:
    """Refuse arrays and groups of different lengths.

    Raises:
        InputError: they differ, or ``groups`` is something else.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if groups is not None:
        if not isinstance(groups, GroupLabels):
            raise InputError(NOT_GROUPS.format(got=type(groups).__name__))
        lengths["groups"] = len(groups)
    if len(set(lengths.values())) > 1:
        raise InputError(LENGTHS.format(lengths=lengths))


def thresholdable(
    labels: npt.ArrayLike, logits: npt.ArrayLike, groups: GroupLabels
) -> tuple[Task, FloatArray, IntArray]:
    """The task, scores and labels of people whom thresholds are chosen on, both ``[N, outputs]``.

    Raises:
        InputError: unusable inputs, or more than two classes.
    """
    task = task_of(labels, logits)
    if task == "multiclass":
        raise InputError(NO_THRESHOLD.format(classes=np.shape(logits)[1]))
    score = scores(logits, task)
    truth = checked_labels(labels, task, score.shape[1])
    check_rows(groups, labels=truth, logits=score)
    return task, score, truth


def as_labels(decisions: IntArray, task: Task) -> IntArray:
    """Decisions ``[N, outputs]`` in the shape that the task's labels have: ``[N]``, or ``[N, A]`` if multi-label."""
    return decisions if task == "multilabel" else decisions[:, 0]


def as_logits(decisions: npt.ArrayLike, classes: int = 2) -> FloatArray:
    """Decisions ``[N]`` as logits ``[N, classes]`` that say just that: 1 for the class decided for, else -1."""
    chosen: FloatArray = 2.0 * np.eye(classes)[np.asarray(decisions, dtype=np.int64)] - 1.0
    return chosen
