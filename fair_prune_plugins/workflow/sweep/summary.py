"""What a sweep found: each setting's mean over seeds with the spread, and the choice, made on validation people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fair_prune_plugins.latency.pareto import pareto_front
from fair_prune_plugins.reporting.estimates import Estimate, Verdict, judge
from fair_prune_plugins.workflow.readings import SAME_LATENCY, ModelReading, RunReading
from fair_prune_plugins.workflow.stages import DENSE
from fair_prune_plugins.workflow.sweep.outcome import FinishedPoint
from fair_prune_plugins.workflow.sweep.running import Course, Crash


@dataclass(frozen=True)
class Spread:
    """A number over seeds; ``None`` where no seed has it.

    Attributes:
        mean: over seeds.
        low: of the seed with the smallest.
        high: of the seed with the largest.
    """

    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of one number per seed."""
        known = [v for v in values if v is not None]
        return cls(sum(known) / len(known), min(known), max(known)) if known else cls(None, None, None)

    @property
    def estimate(self) -> Estimate:
        """As pictures and wording take it: the spread in the place of the interval, if there are two seeds."""
        return Estimate(self.mean, self.low, self.high) if self.low != self.high else Estimate(self.mean)


@dataclass(frozen=True)
class Row:
    """One setting, or the dense network.

    Attributes:
        name: of the setting.
        title: its name without the amount.
        asked: the amount; empty for the dense network.
        seeds: that are finished.
        validation: worst group's accuracy on validation people: what the choice is made by.
        worst: that group's accuracy on test people.
        change: of that, from the dense network.
        shown_worse: seeds in which a loss of the worst group was shown (the paired interval excludes zero).
        accuracy: of all test people.
        gap: largest minus smallest accuracy of a group, on test people.
        latency: p50 in milliseconds.
        speedup: the dense network's over this one's.
        macs_share: of the dense network's.
        chosen: whether it served the worst group best on validation people, among the settings of this amount.
        on_front: whether no other row is faster and more accurate for the worst group, on test people.
    """

    name: str
    title: str
    asked: str
    seeds: tuple[int, ...]
    validation: Spread
    worst: Spread
    change: Spread
    shown_worse: int
    accuracy: Spread
    gap: Spread
    latency: Spread
    speedup: Spread
    macs_share: Spread
    chosen: bool = False
    on_front: bool = False


@dataclass(frozen=True)
class Summary:
    """A whole sweep.

    Attributes:
        name: what it is called.
        rows: the dense network first, then the settings, amount by amount.
        seeds: that were asked for.
        worst_groups: by seed.
        crashed: trials of the last call that ended without a result.
        trials: that there are to be.
        finished: that have a result.
    """

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    worst_groups: Mapping[int, str]
    crashed: tuple[Crash, ...]
    trials: int
    finished: int

    @property
    def titles(self) -> list[str]:
        """Criteria and losses, in order of appearance."""
        return list(dict.fromkeys(row.title for row in self.rows if row.asked))

    def write_json(self, path: Path) -> None:
        """All of it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def write_csv(self, path: Path) -> None:
        """A row per setting; an undefined number is an empty cell."""
        rows = [_flat(row) for row in self.rows]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def summarise(
    name: str,
    seeds: Sequence[int],
    found: Sequence[FinishedPoint],
    readings: Mapping[int, RunReading],
    course: Course,
    trials: int,
) -> Summary:
    """Put the seeds together.

    Args:
        name: of the sweep.
        seeds: that were asked for.
        found: all finished points.
        readings: what the report of each seed shows.
        course: of the last call.
        trials: that there are to be.
    """
    rows = [_dense(found, readings)]
    for setting in {f.point.setting.name: f.point.setting for f in found}.values():
        mine = [f for f in found if f.point.setting == setting]
        models = [_model(readings[f.point.seed], setting.name) for f in mine]
        values = [f.outcome.value for f in mine]
        done = tuple(f.point.seed for f in mine)
        rows.append(_row(setting.name, setting.title, setting.variant.amount.title, done, values, models))
    return Summary(
        name=name,
        rows=tuple(_on_front(_chosen(rows))),
        seeds=tuple(seeds),
        worst_groups={f.point.seed: f.outcome.worst_group for f in found},
        crashed=tuple(course.crashed),
        trials=trials,
        finished=course.kept + course.done,
    )


def _dense(found: Sequence[FinishedPoint], readings: Mapping[int, RunReading]) -> Row:
    values = {f.point.seed: f.outcome.validation[DENSE].worst_group for f in found}
    models = [readings[seed].dense for seed in values]
    return _row(DENSE, DENSE, "", tuple(values), list(values.values()), models)


def _row(
    name: str, title: str, asked: str, seeds: tuple[int, ...], values: list[float], models: list[ModelReading]
) -> Row:
    worst = [m.evaluation.worst for m in models]
    return Row(
        name=name,
        title=title,
        asked=asked,
        seeds=seeds,
        validation=Spread.of(values),
        worst=Spread.of([m.evaluation.worst_accuracy.value for m in models]),
        change=Spread.of([w.change.value if w and asked else None for w in worst]),
        shown_worse=sum(
            judge(w.change, too_small=w.too_small) is Verdict.WORSE for w in worst if w is not None and asked
        ),
        accuracy=Spread.of([m.evaluation.accuracy.value for m in models]),
        gap=Spread.of([m.evaluation.gap.value for m in models]),
        latency=Spread.of([m.latency.p50.value for m in models]),
        speedup=Spread.of([m.speedup for m in models]),
        macs_share=Spread.of([m.macs_share for m in models]),
    )


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Mark the best of each amount on validation people, among those with the most seeds; of equals the first."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.get(row.asked)
        if row.asked and (held is None or _rank(row) > _rank(held)):
            best[row.asked] = row
    return [replace(row, chosen=best.get(row.asked) is row) for row in rows]


def _rank(row: Row) -> tuple[int, float]:
    return len(row.seeds), row.validation.mean or 0.0


def _on_front(rows: Sequence[Row]) -> list[Row]:
    front = set(pareto_front([(r.latency.mean, r.worst.mean) for r in rows], tolerance=SAME_LATENCY))
    return [replace(row, on_front=place in front) for place, row in enumerate(rows)]


def _model(reading: RunReading, name: str) -> ModelReading:
    return next(m for m in reading.models if m.name == name)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in asdict(row).items():
        if isinstance(value, dict):
            flat |= {key if part == "mean" else f"{key}_{part}": number for part, number in value.items()}
        else:
            flat[key] = " ".join(map(str, value)) if key == "seeds" else value
    return flat
