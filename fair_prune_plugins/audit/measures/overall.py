"""Accuracy over all outputs: of the class in multi-class tasks, the mean over outputs in multi-label ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.measures.chance import lucky_gap
from fair_prune_plugins.audit.measures.change_tests import Family
from fair_prune_plugins.audit.measures.group_result import EVERYBODY
from fair_prune_plugins.audit.measures.grouping import Settings, disparity
from fair_prune_plugins.audit.measures.resampling import Resampling, chunks
from fair_prune_plugins.audit.measures.result import Overall, OverallAttribute, OverallGroup
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, ModelMeasures, PairedMeasures, Proportion
from fair_prune_plugins.groups import GroupLabels


@dataclass(frozen=True)
class RightAnswers:
    """How many answers are right, by person and model.

    Attributes:
        right: per model int64 ``[N]``, right answers of each person.
        answers: how many answers every person was given, over all runs and outputs.
        by_run: per model the accuracy of each run.
        single: whether each run gives a person one answer.
    """

    right: tuple[IntArray, ...]
    answers: int
    by_run: tuple[tuple[float, ...], ...]
    single: bool


def measure_overall(
    found: RightAnswers,
    attributes: tuple[GroupLabels, ...],
    families: tuple[tuple[Family | None, ...], ...],
    resampling: Resampling,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Overall]:
    """Every model's overall accuracy.

    Args:
        found: right answers.
        attributes: the sensitive attributes.
        families: per attribute and model the tests of its changes, overall accuracy their last row.
        resampling: blocks and weights.
        settings: how sure to be.
        rng: source of randomness.
    """
    one = GroupLabels((EVERYBODY,), np.zeros(len(resampling.block), dtype=np.int64))
    sums = _Sums(found, one, resampling)
    shares = sums.draw(slice(0, 1), slice(0, resampling.columns))
    models = range(len(found.right))
    pooled = [share.at(0) for share in shares]
    everybody = [entry for (entry,) in _entries(one, slice(0, 1), shares, None, (None,) * len(shares), settings)]
    by_attribute = [
        _attribute(found, groups, pooled, family, resampling, settings, rng)
        for groups, family in zip(attributes, families, strict=True)
    ]
    return [Overall(everybody[m], found.by_run[m], tuple(entries[m] for entries in by_attribute)) for m in models]


class _Sums:
    """People and right answers by group."""

    def __init__(self, found: RightAnswers, groups: GroupLabels, resampling: Resampling) -> None:
        width = len(groups.names)
        self._answers = found.answers
        self._people = resampling.table(groups.codes, width, None, 1)
        self._right = [resampling.table(groups.codes, width, None, 1, right) for right in found.right]

    def draw(self, groups: slice, columns: slice) -> list[Proportion]:
        """Per model right answers of all ``[columns, groups]``."""
        answers = self._people.draw(groups, columns)[..., 0].astype(np.int64) * self._answers
        return [Proportion(t.draw(groups, columns)[..., 0].astype(np.int64), answers) for t in self._right]


def _attribute(
    found: RightAnswers,
    groups: GroupLabels,
    pooled: list[Proportion],
    families: tuple[Family | None, ...],
    resampling: Resampling,
    settings: Settings,
    rng: np.random.Generator,
) -> list[OverallAttribute]:
    models, estimates = range(len(found.right)), settings.estimates
    sums, width = _Sums(found, groups, resampling), len(groups.names)
    entries: list[list[OverallGroup]] = [[] for _ in models]
    for chosen in chunks(width, resampling.columns):
        shares = sums.draw(chosen, slice(0, resampling.columns))
        for m, some in enumerate(_entries(groups, chosen, shares, pooled, families, settings)):
            entries[m].extend(some)
    gaps: list[list[FloatArray]] = [[] for _ in models]
    disparities: list[list[tuple[FloatArray, ...]]] = [[] for _ in models]
    for chosen in chunks(resampling.columns, width):
        shares = sums.draw(slice(0, width), chosen)
        if not chosen.start:
            observed = [Proportion(share.hits[0], share.people[0]) for share in shares]
        drawn = [
            ModelMeasures(Proportion(everybody.hits[chosen], everybody.people[chosen]), share, None)
            for everybody, share in zip(pooled, shares, strict=True)
        ]
        for m in models:
            gaps[m].append(drawn[m].gap)
            pair = PairedMeasures(pruned=drawn[m], dense=drawn[0])
            disparities[m].append((pair.rho, pair.max_excess, pair.pairwise_excess))
    smallest = min((n for n in groups.counts.tolist() if n), default=0)
    found_gaps = [np.concatenate(parts) for parts in gaps]
    return [
        OverallAttribute(
            attribute=groups.attribute,
            groups=tuple(entries[m]),
            gap=estimates.centred(found_gaps[m], smallest, 0.0, 1.0),
            gap_by_chance=(
                lucky_gap(observed[m], found.answers, settings.confidence, settings.resamples, rng)
                if found.single
                else None
            ),
            gap_change=estimates.centred(found_gaps[m] - found_gaps[0], smallest, -1.0, 1.0) if m else None,
            disparity=disparity(disparities[m], smallest, estimates) if m else None,
        )
        for m in models
    ]


def _entries(
    groups: GroupLabels,
    chosen: slice,
    shares: list[Proportion],
    pooled: list[Proportion] | None,
    families: tuple[Family | None, ...],
    settings: Settings,
) -> list[list[OverallGroup]]:
    """Per model the entries of some groups, whose shares are ``[R + 1, groups]``; ``pooled`` as in ``shares``."""
    estimates, counts = settings.estimates, groups.counts.tolist()
    entries: list[list[OverallGroup]] = []
    for m, share in enumerate(shares):
        changes = share.value - shares[0].value
        everybody = None if pooled is None or not m else pooled[m].value - pooled[0].value
        family = families[m]
        of_model = []
        for column, index in enumerate(range(chosen.start, chosen.stop)):
            people, change = counts[index], changes[:, column]
            excess = None if everybody is None else estimates.bounded(everybody - change, people, -2.0, 2.0)
            of_model.append(
                OverallGroup(
                    name=groups.names[index],
                    n=people,
                    too_small=people < settings.minimum,
                    accuracy=estimates.bounded(share.value[:, column], people, 0.0, 1.0),
                    change=estimates.bounded(change, people, -1.0, 1.0) if m else None,
                    excess_gap=excess,
                    test=None if family is None else family.test(-1, index),
                )
            )
        entries.append(of_model)
    return entries
