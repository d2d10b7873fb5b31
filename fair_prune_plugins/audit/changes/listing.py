"""The people who changed most, by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fair_prune_plugins.audit.changes.result import CLASS, ChangedPerson
from fair_prune_plugins.audit.changes.votes import CountArray, Votes, true_answers
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.postprocessing.scores import FloatArray


def list_changed(
    data: AuditData, dense: Votes, pruned: Votes, distances: Sequence[CountArray], most: int
) -> tuple[ChangedPerson, ...]:
    """The answers with the largest taxicab distance, at most ``most``; of equal ones the larger shift of probability.

    In a multi-class task only the class is looked at. Answers that no run changed are left out.
    """
    if not most:
        return ()
    multiclass = data.people.task == "multiclass"
    margins = None if dense.probabilities is None else _margins(dense.probabilities, multiclass=multiclass)
    columns = distances[:1] if multiclass else distances
    # A shift is at most 1 and distances are whole numbers, so half a shift decides among equal distances alone.
    apart = np.stack(list(columns), axis=1)
    keys = apart + 0.5 * _shift(dense, pruned, multiclass=multiclass)
    keys[apart == 0] = -1.0
    flat = keys.ravel()
    chosen = np.argpartition(-flat, min(most, flat.size) - 1)[:most]
    chosen = chosen[np.lexsort((chosen, -flat[chosen]))]
    truth = true_answers(data)
    names = data.people.outputs
    unit = 1.0 / (dense.runs * pruned.runs)
    found = []
    for place in chosen[flat[chosen] >= 0].tolist():
        person, question = divmod(place, keys.shape[1])
        said = (dense.answers[person, question], pruned.answers[person, question], truth[person, question])
        was, now, true = (names[int(a)] if multiclass else str(int(a)) for a in said)
        found.append(
            ChangedPerson(
                id=data.people.ids[person],
                question=CLASS if multiclass else names[question],
                distance=float(columns[question][person] * unit),
                dense=was,
                pruned=now,
                truth=true,
                dense_margin=None if margins is None else float(margins[person, question]),
            )
        )
    return tuple(found)


def _margins(probabilities: FloatArray, *, multiclass: bool) -> FloatArray:
    """How sure a model is, float64 ``[N, questions]``."""
    if not multiclass:
        return np.abs(probabilities - 0.5)
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return top[:, 1:] - top[:, :1]


def _shift(dense: Votes, pruned: Votes, *, multiclass: bool) -> FloatArray | float:
    """How far probabilities moved, 0 to 1, float64 ``[N, questions]``; 0 where they are not known."""
    if dense.probabilities is None or pruned.probabilities is None:
        return 0.0
    apart = np.abs(dense.probabilities - pruned.probabilities)
    return 0.5 * apart.sum(axis=1, keepdims=True) if multiclass else apart
