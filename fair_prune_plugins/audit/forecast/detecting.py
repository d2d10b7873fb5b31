"""How well the dense model's margin tells who will be an exemplar: areas under ROC curves, per question and group."""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.audit.changes import CLASS
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.forecast.result import Detection
from fair_prune_plugins.audit.measures.auroc import Placed, auroc_estimate, delong, placements
from fair_prune_plugins.audit.measures.estimates import Estimates
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import BoolArray, FloatArray, IntArray

MEAN = "mean over outputs"
"""A detection's question where it is the mean of the outputs' areas."""


class Detector:
    """The dense margin against who changed.

    Args:
        data: the people.
        changed: who is an exemplar, bool ``[N, questions]``.
        margins: the dense model's, ``[N, questions]``; small is unsure.
        confidence: coverage of the intervals.
        estimates: makes exact intervals where DeLong's has no width.
    """

    def __init__(
        self, data: AuditData, changed: BoolArray, margins: FloatArray, confidence: float, estimates: Estimates
    ) -> None:
        self._names = (CLASS,) if data.people.task == "multiclass" else data.people.outputs
        self._changed = changed
        self._scores = np.asfortranarray(-margins)  # read question by question
        self._confidence, self._estimates = confidence, estimates

    def detect(self, groups: GroupLabels | None) -> tuple[Detection, ...]:
        """Group by group each question, and of several questions their mean last; everybody without groups."""
        attribute = None if groups is None else groups.attribute
        names = (None,) if groups is None else groups.names
        codes = np.zeros(len(self._scores), dtype=np.int64) if groups is None else groups.codes
        mean = _MeanArea(codes, len(names))
        rows = []
        for i, question in enumerate(self._names):
            truth, score = self._changed[:, i].astype(np.int64), self._scores[:, i]
            placed = placements(score, np.argsort(score), truth, codes, len(names))
            known = codes >= 0
            cell = np.bincount(codes[known] * 2 + truth[known], minlength=2 * len(names)).reshape(-1, 2)
            mean.add(placed, truth, cell)
            rows.append((question, delong(placed, truth, codes, len(names)), cell.sum(axis=1), cell[:, 1]))
        if len(rows) > 1:
            rows.append((MEAN, mean.result(), mean.answers, mean.exemplars))
        return tuple(
            Detection(
                attribute,
                name,
                question,
                int(answers[g]),
                int(exemplars[g]),
                auroc_estimate(area, g, self._estimates, self._confidence),
            )
            for g, name in enumerate(names)
            for question, area, answers, exemplars in rows
        )


class _MeanArea:
    """The mean of several questions' areas in each group, with a variance over people (each answers all questions).

    A person moves an area by how far their placement is from its class's mean, divided by the class's size (as in
    DeLong's variance); the movements of one person add up before they are squared (Obuchowski 1997 has the same for
    pooled answers).
    """

    def __init__(self, codes: IntArray, count: int) -> None:
        self._codes, self._count = codes, count
        self._moves = np.zeros(len(codes))
        self._areas, self._questions = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._pairs = np.full(count, np.iinfo(np.int64).max)
        self.answers, self.exemplars = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)

    def add(self, placed: FloatArray, truth: IntArray, cell: IntArray) -> None:
        """Add a question: placements ``[N]``, exemplars 0 or 1 ``[N]``, people per group and class ``[G, 2]``."""
        usable: BoolArray = np.less_equal(2, cell.min(axis=1))
        known = self._codes >= 0
        known &= usable[np.maximum(self._codes, 0)]
        index = self._codes[known] * 2 + truth[known]
        sums = np.bincount(index, weights=placed[known], minlength=2 * self._count)
        means = sums / np.maximum(cell.ravel(), 1)
        sizes = np.sqrt(np.maximum(cell.ravel(), 1) * np.maximum(cell.ravel() - 1.0, 1.0))
        self._moves[known] += (placed[known] - means[index]) / sizes[index]
        self._areas += np.where(usable, means.reshape(-1, 2)[:, 1], 0.0)
        self._questions += usable
        self._pairs = np.where(usable, np.minimum(self._pairs, cell.min(axis=1)), self._pairs)
        self.answers += np.where(usable, cell.sum(axis=1), 0)
        self.exemplars += np.where(usable, cell[:, 1], 0)

    def result(self) -> Placed:
        """Mean areas and their variances; undefined without a question."""
        known = self._codes >= 0
        squares = np.bincount(self._codes[known], weights=self._moves[known] ** 2, minlength=self._count)
        number = np.where(self._questions > 0, self._questions, np.nan)
        return Placed(self._areas / number, squares / number**2, np.where(self._questions > 0, self._pairs, 0))
