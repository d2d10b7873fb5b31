"""From labels, logits and groups to checked outcomes: who was classified how, and rightly or wrongly.

Everything that can be wrong with the inputs of an evaluation is found here, before anything is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import EMPTY_GROUPS, GroupLabels

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

LOGITS_SHAPE = (
    "{what} must be [people, classes] (or [people] / [people, 1] for a single logit), got shape {shape}; "
    "reduce other dimensions before evaluating"
)
LOGITS_TYPE = "{what} must be real numbers, got dtype {dtype}; pass the model's scores before argmax"
NO_PEOPLE = "{what} has no rows: there is nobody to evaluate"
NOT_FINITE = (
    "{what} is NaN or infinite for {count} of {n} people, first in row {row}; "
    "the model diverged or overflowed, so evaluate a model with finite outputs"
)
LABELS_SHAPE = "labels must be one class per person, shape [people], got shape {shape}"
LABELS_TYPE = (
    "labels must be integers (class indices), got dtype {dtype}; convert them, e.g. labels.astype(numpy.int64)"
)
LABEL_RANGE = (
    "{count} of {n} labels lie outside the model's classes 0 to {last}, first {value} in row {row}; "
    "check the label coding and the model's number of outputs"
)
LENGTHS = "labels, logits and groups must describe the same people: {lengths} rows"
CLASS_COUNT = (
    "the dense model has {dense} outputs and the pruned one {pruned}; both must classify into the same classes: "
    "the output layer must not be pruned (ignored_layers)"
)
NOT_GROUPS = "groups must be GroupLabels, got {got}; make them with GroupLabels.from_columns({{'gender': values}})"


@dataclass(frozen=True)
class Outcomes:
    """What happened to each person, checked and reduced to what metrics need.

    Attributes:
        labels: int64 ``[N]``, true classes.
        right: bool ``[N]``, whether the model's class is the true one.
        dense_right: the same for the dense model, or ``None`` without one.
        classes: number of classes; a single logit is two.
        reclassified: people whom the two models give different classes, 0 without a dense model.
    """

    labels: IntArray
    right: BoolArray
    dense_right: BoolArray | None
    classes: int
    reclassified: int


def predicted_classes(logits: npt.ArrayLike, *, what: str = "logits") -> IntArray:
    """The class each row of logits stands for.

    Args:
        logits: real ``[N, K]``: the class is the index of the largest (the first of equals). ``[N]`` or ``[N, 1]`` is a
            single logit: class 1 where it is above 0, else class 0.
        what: how error messages call the array.

    Returns:
        int64 ``[N]``.

    Raises:
        InputError: another shape or type, no rows, NaN or infinity.
    """
    return _classes(_checked_logits(logits, what))


def check_outcomes(
    labels: npt.ArrayLike, logits: npt.ArrayLike, groups: GroupLabels, dense_logits: npt.ArrayLike | None = None
) -> Outcomes:
    """Check the inputs of an evaluation and reduce them to outcomes.

    Args:
        labels: integers or booleans ``[N]``, class indices.
        logits: real ``[N, K]``, or ``[N]`` / ``[N, 1]`` for a single logit.
        groups: the sensitive group of each of the ``N`` people.
        dense_logits: the dense model's logits for the same people, shape as ``logits``.

    Raises:
        InputError: wrong shapes or types, no rows, lengths that differ, labels outside the classes, logits that are not
            finite, another number of classes in the dense model, or nobody with a known group.
    """
    if not isinstance(groups, GroupLabels):
        raise InputError(NOT_GROUPS.format(got=type(groups).__name__))
    scores = _checked_logits(logits, "logits")
    dense_scores = None if dense_logits is None else _checked_logits(dense_logits, "dense_logits")
    truth = np.asarray(labels)
    if truth.ndim != 1:
        raise InputError(LABELS_SHAPE.format(shape=truth.shape))
    lengths = {"labels": len(truth), "logits": len(scores), "groups": len(groups)}
    if dense_scores is not None:
        lengths["dense_logits"] = len(dense_scores)
    if len(set(lengths.values())) > 1:
        raise InputError(LENGTHS.format(lengths=lengths))
    if dense_scores is not None and dense_scores.shape[1] != scores.shape[1]:
        raise InputError(CLASS_COUNT.format(dense=dense_scores.shape[1], pruned=scores.shape[1]))
    classes = max(scores.shape[1], 2)
    truth = _checked_labels(truth, classes)
    if groups.unknown == len(groups):
        raise InputError(EMPTY_GROUPS.format(n=len(groups), attribute=groups.attribute))

    predicted = _classes(scores)
    if dense_scores is None:
        return Outcomes(truth, predicted == truth, None, classes, 0)
    dense_predicted = _classes(dense_scores)
    reclassified = int((predicted != dense_predicted).sum())
    return Outcomes(truth, predicted == truth, dense_predicted == truth, classes, reclassified)


def _classes(scores: npt.NDArray[np.floating]) -> IntArray:
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0).astype(np.int64)
    largest: IntArray = scores.argmax(axis=1).astype(np.int64)
    return largest


def _checked_logits(logits: npt.ArrayLike, what: str) -> npt.NDArray[np.floating]:
    scores = np.asarray(logits)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise InputError(LOGITS_SHAPE.format(what=what, shape=np.shape(logits)))
    if not np.issubdtype(scores.dtype, np.floating):
        raise InputError(LOGITS_TYPE.format(what=what, dtype=scores.dtype))
    if not len(scores):
        raise InputError(NO_PEOPLE.format(what=what))
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise InputError(NOT_FINITE.format(what=what, count=int(bad.sum()), n=len(scores), row=int(bad.argmax())))
    return scores


def _checked_labels(labels: npt.NDArray[np.generic], classes: int) -> IntArray:
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise InputError(LABELS_TYPE.format(dtype=labels.dtype))
    truth = labels.astype(np.int64)
    bad = (truth < 0) | (truth >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            LABEL_RANGE.format(count=int(bad.sum()), n=len(truth), last=classes - 1, value=int(truth[row]), row=row)
        )
    return truth
