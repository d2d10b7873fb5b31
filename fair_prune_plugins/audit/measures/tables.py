"""One output's sums by sensitive group: what every number but the interdependence is computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.measures.answers import Answers
from fair_prune_plugins.audit.measures.auroc import Placed, delong, placements
from fair_prune_plugins.audit.measures.resampling import Resampling, Table, chunks
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray

BINS = 11
"""Ten bins of equal width, and one for a probability of exactly 1."""


@dataclass(frozen=True)
class Output:
    """One output: the truth, and per model (then per run) what was said of it.

    Attributes:
        truth: int64 ``[N]``.
        runs: in how many runs shares are told, common to all models.
        hits: per model int64 ``[N]``, in how many of ``runs`` the answer is 1.
        uncertain: per model float64 ``[N]``, share of runs with a probability within (0.1, 0.9).
        scores: per model and run float64 ``[N]``.
        orders: per model and run int64 ``[N]``, people by ascending score.
        probabilities: per model and run float64 ``[N]``.
        graded: per model whether it says how sure it is; where only decisions are known, what needs more is undefined.
    """

    truth: IntArray
    runs: int
    hits: tuple[IntArray, ...]
    uncertain: tuple[FloatArray, ...]
    scores: tuple[tuple[FloatArray, ...], ...]
    orders: tuple[tuple[IntArray, ...], ...]
    probabilities: tuple[tuple[FloatArray, ...], ...]
    graded: tuple[bool, ...]

    @classmethod
    def read(cls, models: tuple[Answers, ...], output: int, truth: IntArray, runs: int) -> Output:
        """Take one output from all models."""
        scores = tuple(tuple(m.score(output, run) for run in range(m.runs)) for m in models)
        probabilities = tuple(tuple(m.probability(output, run) for run in range(m.runs)) for m in models)
        return cls(
            truth=truth,
            runs=runs,
            hits=tuple(m.positive_runs(output) * (runs // m.runs) for m in models),
            uncertain=tuple(np.mean([np.abs(p - 0.5) < 0.4 for p in of_model], axis=0) for of_model in probabilities),
            scores=scores,
            orders=tuple(tuple(np.argsort(s) for s in of_model) for of_model in scores),
            probabilities=probabilities,
            graded=tuple(m.graded for m in models),
        )


@dataclass(frozen=True)
class View:
    """Sums in some resamples (``r``; the data as they are in row 0 where it is among them) of some groups (``g``).

    Attributes:
        people: int64 ``[r, g, 2]``, by true value.
        hits: per model int64 ``[r, g, 2]``, answers of 1 in all runs.
        placed: per model float64 ``[r, g, 2]``, sums of placements.
        uncertain: per model float64 ``[r, g]``, sums of shares.
        miscalibrated: per model float64 ``[r, g]``, sums over bins of how far probabilities are from truth, mean over
            runs.
    """

    people: IntArray
    hits: tuple[IntArray, ...]
    placed: tuple[FloatArray, ...]
    uncertain: tuple[FloatArray, ...]
    miscalibrated: tuple[FloatArray, ...]


class GroupTables:
    """One output's sums by the groups of one sensitive attribute (or of everybody as one group).

    Args:
        output: the output.
        codes: int64 ``[N]``, group, or -1.
        groups: number of groups.
        resampling: whose blocks and weights to use.

    Attributes:
        groups: number of groups.
        runs: in how many runs shares are told.
        auroc: per model, DeLong's.
        auroc_change: per model after the first, from the first's.
    """

    def __init__(self, output: Output, codes: IntArray, groups: int, resampling: Resampling) -> None:
        self.groups, self.runs, self.columns = groups, output.runs, resampling.columns
        truth = output.truth
        graded = output.graded
        placed = [
            _told(
                g,
                sum(
                    (placements(s, o, truth, codes, groups) for s, o in zip(scores, orders, strict=True)),
                    np.zeros(len(truth)),
                )
                / len(scores),
            )
            for g, scores, orders in zip(graded, output.scores, output.orders, strict=True)
        ]
        self.auroc = tuple(delong(values, truth, codes, groups) for values in placed)
        self.auroc_change: tuple[Placed, ...] = tuple(
            delong(values - placed[0], truth, codes, groups) for values in placed[1:]
        )
        self._people = resampling.table(codes, groups, truth, 2)
        self._hits = [resampling.table(codes, groups, truth, 2, values) for values in output.hits]
        self._placed = [resampling.table(codes, groups, truth, 2, values) for values in placed]
        self._uncertain = [
            resampling.table(codes, groups, None, 1, _told(g, values))
            for g, values in zip(graded, output.uncertain, strict=True)
        ]
        self._calibration = [
            [resampling.table(codes, groups, bins(p), BINS, _told(g, p - truth)) for p in runs]
            for g, runs in zip(graded, output.probabilities, strict=True)
        ]
        self._views: dict[tuple[int, ...], View] = {}

    def by_group(self) -> Iterator[tuple[slice, View]]:
        """All resamples of a few groups at a time."""
        for chosen in chunks(self.groups, self.columns):
            yield chosen, self._view(chosen, slice(0, self.columns))

    def by_resample(self) -> Iterator[tuple[slice, View]]:
        """A few resamples of all groups at a time."""
        for chosen in chunks(self.columns, self.groups):
            yield chosen, self._view(slice(0, self.groups), chosen)

    def totals(self) -> tuple[IntArray, tuple[IntArray, ...]]:
        """Over all groups: people and answers of 1 per model, int64 ``[R + 1, 2]``."""
        everything = slice(0, self.columns)
        hits = tuple(_whole(table.draw_all(everything)) for table in self._hits)
        return _whole(self._people.draw_all(everything)), hits

    def _view(self, groups: slice, columns: slice) -> View:
        key = (groups.start, groups.stop, columns.start, columns.stop)
        if key not in self._views:
            view = View(
                people=_whole(self._people.draw(groups, columns)),
                hits=tuple(_whole(table.draw(groups, columns)) for table in self._hits),
                placed=tuple(table.draw(groups, columns) for table in self._placed),
                uncertain=tuple(table.draw(groups, columns)[..., 0] for table in self._uncertain),
                miscalibrated=tuple(_miscalibrated(tables, groups, columns) for tables in self._calibration),
            )
            self._views = {key: view}  # the last one: by_group and by_resample agree where all fits in one view
        return self._views[key]


def bins(probabilities: FloatArray) -> IntArray:
    """The calibration bin of each probability, ``floor(10 p)``, 0 to 10."""
    return np.floor(10 * probabilities).astype(np.int64)


def _told(graded: bool, values: FloatArray) -> FloatArray:
    """The values, or NaN where the model does not tell them."""
    return values if graded else np.full(values.shape, np.nan)


def _miscalibrated(tables: list[Table], groups: slice, columns: slice) -> FloatArray:
    total = sum(np.abs(table.draw(groups, columns)).sum(axis=-1) for table in tables)
    return np.asarray(total / len(tables))


def _whole(sums: FloatArray) -> IntArray:
    """Sums of whole numbers, which float64 holds exactly."""
    return sums.astype(np.int64)
