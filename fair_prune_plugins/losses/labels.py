"""What a loss is computed from: logits, labels and the kind of task, checked; cross-entropy and correctness from them.

Three kinds of task. *Binary*: one logit per person, labels 0 or 1. *Multi-class*: ``K`` logits, one class index per
person (or one distribution over the classes). *Multi-label*: ``K`` logits, ``K`` labels of 0 or 1 each.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from fair_prune_plugins.errors import InputError

Task = Literal["auto", "binary", "multiclass", "multilabel"]

NOT_A_TENSOR = "the {what} must be a tensor, got {got}; take the logits out of what the model returns"
OUTPUT_SHAPE = (
    "the outputs must be logits of shape [people], [people, 1] or [people, classes] in floating point, got shape "
    "{shape}, {dtype}"
)
NOT_FINITE = (
    "the {what} are NaN or infinite for {count} of {n} people, first in row {row}: the model diverged or overflowed, "
    "or its inputs are not finite"
)
TARGET_SHAPE = "{task} targets for outputs of shape {outputs} must be {expected}, got shape {shape}, {dtype}"
AMBIGUOUS = (
    "float targets of the outputs' shape {shape} are either one distribution over the classes per person, or one label "
    "per output: say task='multiclass' or task='multilabel'"
)
CLASS_RANGE = (
    "{count} of {n} targets lie outside the classes 0 to {last}, first {value} in row {row}; check the label coding "
    "and the model's number of outputs"
)
LABEL_RANGE = "{task} targets must lie between 0 and 1, found {value} in row {row}"
NO_DISTRIBUTION = "a distribution over the classes must sum to 1, row {row} sums to {total:g}"
SOFT = "{what} needs to know the true class, but the targets are soft (row {row}); pass hard labels"
BAD_TASK = "task must be one of {tasks}, got {task!r}"
BAD_SMOOTHING = "label_smoothing must be at least 0 and below 1, got {smoothing!r}"


def check_task(task: str, smoothing: float) -> None:
    """Refuse what is no task or no smoothing.

    Raises:
        InputError: naming what is allowed.
    """
    if task not in get_args(Task):
        raise InputError(BAD_TASK.format(tasks=", ".join(map(repr, get_args(Task))), task=task))
    if not 0 <= smoothing < 1:
        raise InputError(BAD_SMOOTHING.format(smoothing=smoothing))


def checked_logits(outputs: Any, what: str = "outputs") -> torch.Tensor:
    """``[N, K]`` logits, ``[N, 1]`` for one logit per person; half precision becomes float32.

    Raises:
        InputError: not a tensor of logits, or not finite.
    """
    if not isinstance(outputs, torch.Tensor):
        raise InputError(NOT_A_TENSOR.format(what=what, got=type(outputs).__name__))
    no_class = outputs.ndim == 2 and outputs.shape[1] == 0
    if outputs.ndim not in (1, 2) or no_class or not outputs.is_floating_point():
        raise InputError(OUTPUT_SHAPE.format(shape=tuple(outputs.shape), dtype=_dtype(outputs)))
    logits = outputs[:, None] if outputs.ndim == 1 else outputs
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    bad = ~torch.isfinite(logits.detach()).all(1)
    if bad.any():
        row = int(bad.int().argmax())
        raise InputError(NOT_FINITE.format(what=what, count=int(bad.sum()), n=len(bad), row=row))
    return logits


def checked_labels(targets: Any, logits: torch.Tensor, task: Task) -> tuple[torch.Tensor, Task]:
    """Labels as probabilities, and the kind of task.

    Args:
        targets: binary: ``[N]`` or ``[N, 1]``, 0 to 1. Multi-class: class indices ``[N]`` or distributions ``[N, K]``.
            Multi-label: ``[N, K]``, 0 to 1.
        logits: ``[N, K]``, from :func:`checked_logits`.
        task: ``"auto"`` tells from the shapes and the targets' type.

    Returns:
        Labels like ``logits``: the probability of class 1, of each class, or of each label.

    Raises:
        InputError: a shape, type or value that the task does not have, or a task that cannot be told.
    """
    if not isinstance(targets, torch.Tensor):
        raise InputError(NOT_A_TENSOR.format(what="targets", got=type(targets).__name__))
    n, k = logits.shape
    targets = targets.detach().to(logits.device)
    if task == "auto":
        task = _told(targets, logits)
    if task == "multiclass":
        return _classes(targets, logits), task
    expected = f"[{n}] or [{n}, 1]" if task == "binary" else f"[{n}, {k}]"
    allowed = [(n,), (n, 1)] if task == "binary" else [(n, k)]
    if targets.shape not in allowed or (task == "binary" and k != 1):
        raise _shape_error(task, logits, f"{expected}, 0 to 1" + (" (and one output)" if k != 1 else ""), targets)
    labels = targets.reshape(n, k).to(logits.dtype)
    _in_range(labels, task)
    return labels, task


def _told(targets: torch.Tensor, logits: torch.Tensor) -> Task:
    n, k = logits.shape
    if k == 1:
        return "binary"
    if targets.shape != (n, k):
        return "multiclass"
    if targets.is_floating_point():
        raise InputError(AMBIGUOUS.format(shape=(n, k)))
    return "multilabel"


def _classes(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    n, k = logits.shape
    whole = f"class indices of shape [{n}] in an integer type, or distributions of shape [{n}, {k}]"
    if k == 1:
        raise _shape_error("multiclass", logits, "for two outputs or more", targets)
    if targets.shape == (n, k) and targets.is_floating_point():
        labels = targets.to(logits.dtype)
        _in_range(labels, "multiclass")
        off = (labels.sum(1) - 1).abs() > 1e-3
        if off.any():
            row = int(off.int().argmax())
            raise InputError(NO_DISTRIBUTION.format(row=row, total=float(labels[row].sum())))
        return labels
    if targets.shape == (n, 1):
        targets = targets[:, 0]
    if targets.shape != (n,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise _shape_error("multiclass", logits, whole, targets)
    bad = (targets < 0) | (targets >= k)
    if bad.any():
        row = int(bad.int().argmax())
        count = int(bad.sum())
        raise InputError(CLASS_RANGE.format(count=count, n=n, last=k - 1, value=int(targets[row]), row=row))
    return F.one_hot(targets.long(), k).to(logits.dtype)


def _in_range(labels: torch.Tensor, task: str) -> None:
    bad = ~((labels >= 0) & (labels <= 1)).all(1)
    if bad.any():
        row = int(bad.int().argmax())
        value = next(v for v in labels[row].tolist() if not 0 <= v <= 1)
        raise InputError(LABEL_RANGE.format(task=task, value=value, row=row))


def _shape_error(task: str, logits: torch.Tensor, expected: str, targets: torch.Tensor) -> InputError:
    shape, dtype = tuple(targets.shape), _dtype(targets)
    return InputError(
        TARGET_SHAPE.format(task=task, outputs=tuple(logits.shape), expected=expected, shape=shape, dtype=dtype)
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def require_hard(labels: torch.Tensor, what: str) -> None:
    """Refuse labels that are not 0 or 1.

    Raises:
        InputError: naming the row.
    """
    soft = ((labels != 0) & (labels != 1)).any(1)
    if soft.any():
        raise InputError(SOFT.format(what=what, row=int(soft.int().argmax())))


def probabilities(logits: torch.Tensor, task: Task) -> torch.Tensor:
    """Of class 1, of each class, or of each label; like ``logits``."""
    return logits.softmax(1) if task == "multiclass" else logits.sigmoid()


def right(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> torch.Tensor:
    """Which decisions are right: bool ``[N, 1]``, or ``[N, K]`` for multi-label tasks.

    The decision is the largest logit (the first of equals), or class 1 where the logit is above 0, as in
    :mod:`fair_prune_plugins.evaluation`. ``labels`` must be hard.
    """
    if task == "multiclass":
        return (logits.argmax(1) == labels.argmax(1))[:, None]
    return (logits > 0) == (labels > 0.5)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, task: Task, smoothing: float) -> torch.Tensor:
    """Cross-entropy of every decision, ``[N, 1]``, or ``[N, K]`` for multi-label tasks.

    Smoothing mixes the labels, hard or soft, with the uniform distribution: over the classes as
    :func:`torch.nn.functional.cross_entropy` does, over {0, 1} for a logit of its own.
    """
    if task == "multiclass":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)[:, None]
    smoothed = labels * (1 - smoothing) + 0.5 * smoothing
    return F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
