"""How near people are to the decision boundary, and who is nearest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.changes import unsure
from fair_prune_plugins.audit.changes.votes import UNSURE
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.forecast.result import PersonRisk
from fair_prune_plugins.audit.measures.estimates import UNDEFINED, Estimates
from fair_prune_plugins.audit.measures.resampling import Resampling
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.postprocessing.scores import FloatArray, IntArray, margins


def dense_margins(data: AuditData) -> FloatArray:
    """How far each dense answer is from the next best one, in logits, float64 ``[N, outputs]``; ``[N, 1]`` of classes.

    Of several runs the mean logits are taken: runs that disagree come near 0.

    Raises:
        InputError: only decisions are known of the dense model.
    """
    return margins(np.mean(data.logits(data.dense), axis=0), data.people.task)


def stamp_of(data: AuditData) -> str:
    """SHA-256 over the sorted ids of the people."""
    return hashlib.sha256("\n".join(sorted(data.people.ids)).encode()).hexdigest()


def nearest(data: AuditData, margin: FloatArray, most: int) -> tuple[PersonRisk, ...]:
    """The answers nearest to the boundary, nearest first; of equal ones those of the first people."""
    flat = margin.ravel()
    count = min(most, flat.size)
    if not count:
        return ()
    cutoff = np.partition(flat, count - 1)[count - 1]
    candidates = np.flatnonzero(flat <= cutoff)
    chosen = candidates[np.argsort(flat[candidates], kind="stable")][:count]
    classes = data.people.task == "multiclass"
    decided = np.mean(data.logits(data.dense), axis=0).argmax(axis=1) if classes else None
    found = []
    for place in chosen.tolist():
        person, column = divmod(place, margin.shape[1])
        output = column if decided is None else int(decided[person])
        found.append(PersonRisk(data.people.ids[person], data.people.outputs[output], float(flat[place])))
    return tuple(found)


@dataclass(frozen=True)
class PersonSignals:
    """What the dense model's probabilities say of each person, mean over runs.

    Attributes:
        near: ``1 - sum p²`` of each output, float64 ``[N, outputs]``.
        unsure: share of runs that are unsure of each output ``[N, outputs]``.
        person_near: mean of ``near`` over outputs ``[N]``; of all classes together in a multi-class task.
        person_unsure: mean of ``unsure`` over outputs; share of runs without a class at 0.9 in a multi-class task.
    """

    near: FloatArray
    unsure: FloatArray
    person_near: FloatArray
    person_unsure: FloatArray

    @classmethod
    def of(cls, data: AuditData) -> PersonSignals:
        """Read the dense model.

        Raises:
            InputError: only decisions are known of it.
        """
        runs = len(data.dense.runs)
        shape = len(data.people), len(data.people.outputs)
        near, doubtful = np.zeros(shape, order="F"), np.zeros(shape, order="F")  # read output by output
        of_classes, without_class = np.zeros(shape[0]), np.zeros(shape[0])
        multiclass = data.people.task == "multiclass"
        for run in range(runs):
            chances = data.probabilities(data.dense, run)
            near += 2 * chances * (1 - chances) / runs  # 1 - p² - (1 - p)²
            doubtful += unsure(chances) / runs
            if multiclass:
                of_classes += (1 - (chances**2).sum(axis=1)) / runs
                without_class += (chances.max(axis=1) < 0.5 + UNSURE) / runs
        if multiclass:
            return cls(near, doubtful, of_classes, without_class)
        return cls(near, doubtful, near.mean(axis=1), doubtful.mean(axis=1))


class Nearness:
    """Means over people of ``1 - sum p²`` and of being unsure, with intervals from the resamples of ``measures``.

    Args:
        data: people and models; of the dense one probabilities must be known.
        estimates: makes intervals.
        resampling: resamples of the people.
    """

    def __init__(self, data: AuditData, estimates: Estimates, resampling: Resampling) -> None:
        self._estimates, self._resampling = estimates, resampling
        self._signals = PersonSignals.of(data)
        self._most = 1 - 1 / len(data.people.outputs) if data.people.task == "multiclass" else 0.5

    def of_output(self, output: int, codes: IntArray, groups: int) -> list[Estimate]:
        """Mean ``1 - sum p²`` of one output, per group."""
        return self._means(self._signals.near[:, output], codes, groups, 0.5)

    def of_people(self, codes: IntArray, groups: int) -> list[Estimate]:
        """Mean ``1 - sum p²`` over outputs, or over all classes of a multi-class task, per group."""
        return self._means(self._signals.person_near, codes, groups, self._most)

    def unsure_of_people(self, codes: IntArray, groups: int) -> list[Estimate]:
        """Mean share of outputs that the model is unsure of, or share of people without a class at 0.9, per group."""
        return self._means(self._signals.person_unsure, codes, groups, 1.0)

    def _means(self, values: FloatArray, codes: IntArray, groups: int, highest: float) -> list[Estimate]:
        everything = slice(0, self._resampling.columns)
        sums = self._resampling.table(codes, groups, None, 1, values).draw(slice(0, groups), everything)[..., 0]
        people = self._resampling.table(codes, groups, None, 1).draw(slice(0, groups), everything)[..., 0]
        means = np.divide(sums, people, out=np.full(people.shape, np.nan), where=people > 0)
        return [
            self._estimates.bounded(means[:, g], int(people[0, g]), 0.0, highest) if people[0, g] else UNDEFINED
            for g in range(groups)
        ]
