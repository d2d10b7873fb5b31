"""What the runs of a model answer together: majority votes, how the votes are spread, how sure the model is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.audit.changes.result import CLASS
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.postprocessing.scores import FloatArray

BoolArray = npt.NDArray[np.bool_]
CountArray = npt.NDArray[np.int32]

UNSURE = 0.4
"""A model is unsure of an answer where its probability is nearer to 0.5 than this: between 0.1 and 0.9."""


def unsure(probabilities: FloatArray) -> BoolArray:
    """Where a model is unsure: ``|p - 0.5| < 0.4`` (U of Iofinova et al., arXiv 2304.12622)."""
    near: BoolArray = np.abs(probabilities - 0.5) < UNSURE
    return near


@dataclass(frozen=True)
class Votes:
    """One model's runs on each question.

    Attributes:
        runs: how many voted.
        answers: the majority's answer, int32 ``[N, questions]``: 0 or 1, a class index for the class question.
        counts: runs per class ``[N, classes]`` (multi-class), or runs that answer 1 ``[N, outputs]``.
        tied: where no answer had more runs than every other, bool ``[N, questions]``.
        probabilities: mean over runs of the probability of 1 ``[N, outputs]``, of each class in a multi-class task;
            ``None`` where only decisions are known.
    """

    runs: int
    answers: CountArray
    counts: CountArray
    tied: BoolArray
    probabilities: FloatArray | None


def question_names(data: AuditData) -> tuple[str, ...]:
    """The questions: outputs, and before them the class of a multi-class task."""
    return (CLASS, *data.people.outputs) if data.people.task == "multiclass" else data.people.outputs


def true_answers(data: AuditData) -> CountArray:
    """What is true, per question int32 ``[N, questions]``."""
    truths = data.people.truths.astype(np.int32)
    if data.people.task != "multiclass":
        return truths
    return np.column_stack([data.people.labels.astype(np.int32), truths])


def vote(data: AuditData, model: ModelPredictions) -> Votes:
    """Let the runs of a model vote.

    A tie (possible with an even number of runs, or with three classes or more) goes to the answer of the larger mean
    probability over runs, among those tied; if that ties too, or only decisions are known, to 0 or the first class, as
    a single run decides.
    """
    runs = len(model.runs)
    counts = np.zeros((len(data.people), len(data.people.outputs)), dtype=np.int32)
    for run in range(runs):
        counts += data.answers(model, run).astype(np.int32)
    probabilities = None
    if model.graded:
        probabilities = data.probabilities(model, 0)
        for run in range(1, runs):
            probabilities += data.probabilities(model, run)
        probabilities /= runs
    if data.people.task == "multiclass":
        leading = counts == counts.max(axis=1, keepdims=True)
        chosen = np.where(leading, 0.0 if probabilities is None else probabilities, -1.0).argmax(axis=1)
        one_by_one = chosen[:, None] == np.arange(counts.shape[1])
        undecided = leading.sum(axis=1) > 1
        answers = np.column_stack([chosen, one_by_one]).astype(np.int32)
        return Votes(runs, answers, counts, np.column_stack([undecided, leading & undecided[:, None]]), probabilities)
    tied = 2 * counts == runs
    answers = (2 * counts > runs).astype(np.int32)
    if probabilities is not None:
        answers[tied] = probabilities[tied] > 0.5
    return Votes(runs, answers, counts, tied, probabilities)


def unsure_of(data: AuditData, votes: Votes) -> BoolArray | None:
    """Where a model, its runs taken together, is unsure, bool ``[N, questions]``; ``None`` where nobody can know.

    Of the class question: where no class has a probability of 0.9.
    """
    if votes.probabilities is None:
        return None
    each = unsure(votes.probabilities)
    if data.people.task != "multiclass":
        return each
    return np.column_stack([votes.probabilities.max(axis=1) < 0.5 + UNSURE, each])


def taxicab(dense: Votes, pruned: Votes, question: int, *, multiclass: bool) -> CountArray:
    """L1 distance of the two distributions of answers over runs, in units of ``1 / (dense runs * pruned runs)``.

    Whole numbers, so that equal distances are equal: 0 to ``2 * dense runs * pruned runs``, int32 ``[N]``. (Taxicab
    distance of Hooker et al., arXiv 2010.03058.)
    """
    if multiclass and question == 0:
        between: CountArray = np.abs(dense.counts * pruned.runs - pruned.counts * dense.runs).sum(
            axis=1, dtype=np.int32
        )
        return between
    output = question - 1 if multiclass else question
    ones: CountArray = dense.counts[:, output] * pruned.runs - pruned.counts[:, output] * dense.runs
    # The share of 0 differs as much as the share of 1 does.
    return 2 * np.abs(ones)


def farthest(distance: CountArray, top: float) -> int | None:
    """The distance at or above which people are among the farthest ``top`` share; ``None`` where all are 0.

    People of equal distance cannot be parted: all who are as far as the last one count too.
    """
    if not distance.any():
        return None
    count = max(1, int(np.floor(round(top * len(distance), 9))))
    cutoff = int(np.partition(distance, len(distance) - count)[len(distance) - count])
    return cutoff or int(distance[distance > 0].min())
