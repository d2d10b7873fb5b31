"""Directional bias amplification of one output with each group against all others (arXiv 2304.12622)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.measures.estimates import UNDEFINED, Estimates
from fair_prune_plugins.audit.measures.group_result import Amplification, Undefined
from fair_prune_plugins.audit.measures.tables import View
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, Proportion
from fair_prune_plugins.groups import GroupLabels

FEWEST = 10
"""True cases needed on either side."""

LEAST_DIFFERENCE = 0.1
"""Of the training shares, relative to the smaller."""


@dataclass(frozen=True)
class Association:
    """With which side an output goes in training, per group against all others.

    Attributes:
        share: share of 1 among each group's training people, float64 ``[G]``, NaN without any.
        others: the same among people of the other groups.
        undefined: per group why amplification has no meaning, or ``None``.
    """

    share: FloatArray
    others: FloatArray
    undefined: tuple[Undefined | None, ...]

    @property
    def sign(self) -> FloatArray:
        """1 where the output is truer of the group than of the others in training, else -1, ``[G]``."""
        return np.where(self.share > self.others, 1.0, -1.0)


def associate(
    output: str, training_truth: IntArray, training: GroupLabels, test_truth: IntArray, test: GroupLabels
) -> Association:
    """Compare training shares, and say for which groups amplification is undefined whatever a model answers.

    Args:
        output: the output's name; the attribute itself (by name) is not judged against itself.
        training_truth: ``[M]``, 0 or 1.
        training: the training people's groups.
        test_truth: ``[N]``, 0 or 1.
        test: the audited people's groups.
    """
    share, others = _sides(*_positives(training_truth, training))
    positives, _ = _positives(test_truth, test)
    fewest = np.minimum(positives, positives.sum() - positives)
    smaller = np.minimum(share, others)
    differ = np.abs(share - others) >= LEAST_DIFFERENCE * smaller
    itself = output.casefold() == test.attribute.casefold()
    reasons: list[Undefined | None] = []
    for i in range(len(test.names)):
        if itself:
            reasons.append("the output is the attribute itself")
        elif fewest[i] < FEWEST or np.isnan(smaller[i]):
            reasons.append("too few true cases")
        elif not differ[i] or share[i] == others[i]:
            reasons.append("as frequent in training among both")
        else:
            reasons.append(None)
    return Association(share, others, tuple(reasons))


def amplified(
    view: View, totals: tuple[IntArray, tuple[IntArray, ...]], association: Association, groups: slice
) -> list[FloatArray]:
    """Amplification per model, ``[R + 1, g]``, of the groups in a view of all resamples; NaN is undefined."""
    people, hits = totals
    true = _share(view.people[..., 1], people[:, 1])
    return [
        association.sign[groups] * (_share(mine.sum(axis=-1), everyone.sum(axis=-1)) - true)
        for mine, everyone in zip(view.hits, hits, strict=True)
    ]


def amplification(
    name: str,
    index: int,
    association: Association,
    value: FloatArray,
    change: FloatArray | None,
    positives: int,
    estimates: Estimates,
) -> Amplification:
    """One group's entry.

    Args:
        name: the group.
        index: its place among the groups.
        association: in training.
        value: ``[R + 1]``.
        change: from the dense model's ``[R + 1]``; ``None`` for the dense model.
        positives: audited people of known group who are truly 1.
        estimates: makes estimates.
    """
    reason = association.undefined[index]
    if reason is None and np.isnan(value[0]):
        reason = "never answered"
    share, others = float(association.share[index]), float(association.others[index])
    known = not (np.isnan(share) or np.isnan(others))
    shift = UNDEFINED if reason or change is None else estimates.bounded(change, positives, -1.0, 1.0)
    return Amplification(
        group=name,
        with_group=bool(share > others) if known and share != others else None,
        training_share=None if np.isnan(share) else share,
        training_share_others=None if np.isnan(others) else others,
        value=UNDEFINED if reason else estimates.bounded(value, positives, -1.0, 1.0),
        change=None if change is None else shift,
        undefined=reason,
    )


def _positives(truth: IntArray, groups: GroupLabels) -> tuple[IntArray, IntArray]:
    known = groups.codes >= 0
    positives = np.bincount(groups.codes[known & (truth == 1)], minlength=len(groups.names)).astype(np.int64)
    return positives, groups.counts


def _sides(positives: IntArray, people: IntArray) -> tuple[FloatArray, FloatArray]:
    return Proportion(positives, people).value, Proportion(positives.sum() - positives, people.sum() - people).value


def _share(part: IntArray, whole: IntArray) -> FloatArray:
    """Groups' part ``[r, g]`` of the whole ``[r]``."""
    return Proportion(part, np.broadcast_to(whole[:, None], part.shape)).value
