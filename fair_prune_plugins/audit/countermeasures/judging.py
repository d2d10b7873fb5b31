"""What steps did to one output on test people: accuracy, worst group, gap and rare value, with paired intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.countermeasures.counting import Table
from fair_prune_plugins.audit.countermeasures.result import AttributeShift, Shift
from fair_prune_plugins.evaluation.intervals import Estimate, Estimator
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, Proportion


@dataclass(frozen=True)
class Watched:
    """A sensitive attribute and its group to watch.

    Attributes:
        attribute: its name.
        worst: name of the group, ``None`` without one.
        place: its row in the table, ``None`` without one.
    """

    attribute: str
    worst: str | None
    place: int | None


@dataclass(frozen=True)
class Judged:
    """One step's effects: on everybody, per attribute, on the rare value."""

    accuracy: Shift
    attributes: tuple[AttributeShift, ...]
    rare_ratio: Shift | None


@dataclass(frozen=True)
class _Numbers:
    """Means over runs ``[...]``: before, after, change."""

    before: FloatArray
    after: FloatArray
    change: FloatArray


def judge_steps(
    table: Table,
    watched: tuple[Watched, ...],
    rare_value: int | None,
    estimator: Estimator,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Judged, ...]:
    """Judge every step after the first against the first.

    Args:
        table: of one output on test people.
        watched: in the order of the table's attributes.
        rare_value: the value whose frequency is judged, ``None`` for none.
        estimator: of the intervals.
        resamples: as many as the estimator expects.
        rng: source of randomness.
    """
    steps = range(1, len(table.right))
    observed = [_measure(table, table.people, watched, rare_value, step) for step in steps]
    drawn: list[list[list[_Numbers]]] = []
    for counts in table.draws(resamples, rng):
        drawn.append([_measure(table, counts, watched, rare_value, step) for step in steps])
    judged = []
    for step in steps:
        draws = [_joined([block[step - 1][q] for block in drawn]) for q in range(len(observed[step - 1]))]
        judged.append(_Step(table, step, observed[step - 1], draws, estimator).judged(watched, rare_value))
    return tuple(judged)


def _measure(
    table: Table, counts: IntArray, watched: tuple[Watched, ...], rare_value: int | None, step: int
) -> list[_Numbers]:
    """Everybody's accuracy, each attribute's worst group and gap, the rare value's ratio, in this order."""
    found: list[list[_Numbers]] = []
    for run in range(table.right.shape[1]):
        mine: list[_Numbers] = []
        for i, watch in enumerate(watched):
            pair = table.measures(counts, i, step, run)
            after, before = pair.pruned, pair.dense
            if not i:
                mine.append(_Numbers(before.pooled.value, after.pooled.value, pair.change))
            if watch.place is not None:
                g = watch.place
                mine.append(
                    _Numbers(before.by_group.value[..., g], after.by_group.value[..., g], pair.by_group[..., g])
                )
            mine.append(_Numbers(before.gap, after.gap, pair.gap))
        if rare_value is not None:
            was, now = (table.rare_ratio(counts, s, run, rare_value) for s in (0, step))
            mine.append(_Numbers(was, now, now - was))
        found.append(mine)
    return [_mean(list(runs)) for runs in zip(*found, strict=True)]


def _mean(runs: list[_Numbers]) -> _Numbers:
    if len(runs) == 1:
        return runs[0]
    columns = (np.mean([getattr(r, name) for r in runs], axis=0) for name in ("before", "after", "change"))
    return _Numbers(*columns)


def _joined(blocks: list[_Numbers]) -> _Numbers:
    return _Numbers(*(np.concatenate([getattr(b, name) for b in blocks]) for name in ("before", "after", "change")))


class _Step:
    """One step's numbers turned into estimates."""

    def __init__(
        self, table: Table, step: int, observed: list[_Numbers], draws: list[_Numbers], estimator: Estimator
    ) -> None:
        self.table, self.step, self.estimator = table, step, estimator
        self.pairs = iter(zip(observed, draws, strict=True))

    def judged(self, watched: tuple[Watched, ...], rare_value: int | None) -> Judged:
        everybody = np.ones(len(self.table.people), dtype=np.bool_)
        accuracy = self._share(everybody)
        attributes = []
        for i, watch in enumerate(watched):
            nothing = Shift(*[Estimate(None, None)] * 3)
            worst = nothing if watch.place is None else self._share(self.table.rows[i] == watch.place)
            attributes.append(AttributeShift(watch.attribute, watch.worst, worst, self._plain()))
        return Judged(accuracy, tuple(attributes), None if rare_value is None else self._plain())

    def _plain(self) -> Shift:
        value, draws = next(self.pairs)
        estimate = self.estimator.estimate
        return Shift(
            estimate(value.before, draws.before),
            estimate(value.after, draws.after),
            estimate(value.change, draws.change),
        )

    def _share(self, cells: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Shift:
        """A share of people: exact intervals where nothing varies, as in evaluations."""
        value, draws = next(self.pairs)
        people = int(self.table.people[cells].sum())
        moved = (self.table.right[self.step] != self.table.right[0]).any(axis=0)
        flips = int(self.table.people[cells & moved].sum())
        return Shift(
            self._level(value.before, draws.before, people),
            self._level(value.after, draws.after, people),
            self.estimator.change(value.change, draws.change, people, flips),
        )

    def _level(self, value: FloatArray, draws: FloatArray, people: int) -> Estimate:
        if float(value) in (0.0, 1.0):
            hits = np.array(round(float(value)) * people)
            observed = Proportion(hits, np.array(people))
            return self.estimator.proportion(observed, observed)
        return self.estimator.estimate(value, draws)
