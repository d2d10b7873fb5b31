"""Did groups, and outputs, suffer in the order that the dense model foretold?

What was foretold and what came must not share their luck. On the same people they do: a group whose people the dense
model happens to get wrong seems to lose less by compression, even where nothing is the matter (regression to the mean).
So with a report of the same people, signals of one half meet what came to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.forecast import signals
from fair_prune_plugins.audit.forecast.nearness import PersonSignals, stamp_of
from fair_prune_plugins.audit.forecast.ordering import mean_standings
from fair_prune_plugins.audit.forecast.rank_correlation import rank_correlation
from fair_prune_plugins.audit.forecast.result import AttributeRisk, GroupRisk, OrderQuality, RiskReport
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import BoolArray, FloatArray, IntArray

RISK = "risk"
LOSS, EXEMPLARS = "loss of accuracy", "share of exemplars"
OUTPUTS = "outputs"

Values = Sequence[float | None]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Persons:
    """What is known of each person.

    Attributes:
        dense_right: share of dense runs that are right, ``[N, questions]``.
        loss: how much smaller that share is among the pruned runs.
        changed: who is an exemplar ``[N, questions]``.
        signals: of the dense model; ``None`` where only decisions are known.
    """

    dense_right: FloatArray
    loss: FloatArray
    changed: BoolArray
    signals: PersonSignals | None


def judge_orders(
    report: RiskReport, data: AuditData, model: ModelPredictions, changed: BoolArray
) -> list[OrderQuality]:
    """Rank correlations of every signal with what came, for the groups of each attribute and for outputs."""
    dense_right = _rightness(data, data.dense)
    known = PersonSignals.of(data) if data.dense.graded else None
    persons = _Persons(dense_right, dense_right - _rightness(data, model), changed, known)
    everybody = np.arange(len(data.people))
    same = report.stamp == stamp_of(data)
    # Whose signals, and on whom they are judged.
    splits = [(one, other) for one, other in _halves(data, report.seed)] if same else [(None, everybody)]
    found = []
    for attribute, groups in zip(report.attributes, data.people.groups, strict=True):
        large = [not group.too_small for group in attribute.groups]
        foretold = [_of_groups(attribute, groups, persons, rows) for rows, _ in splits]
        came = [_came_to_groups(groups, persons, rows) for _, rows in splits]
        found += _orders(attribute.attribute, foretold, came, large, report, same)
    if data.people.task == "multilabel" and len(report.outputs) > 1:
        foretold = [_of_outputs(report, persons, rows) for rows, _ in splits]
        came = [_came_to_outputs(persons, rows) for _, rows in splits]
        found += _orders(OUTPUTS, foretold, came, [True] * len(report.outputs), report, same)
    return found


def _halves(data: AuditData, seed: int) -> tuple[tuple[Rows, Rows], tuple[Rows, Rows]]:
    """Two random halves, each once for the signals; by id, so that the order of rows changes nothing."""
    ordered = np.argsort(np.array(data.people.ids), kind="stable")
    shuffled = ordered[np.random.default_rng(seed).permutation(len(ordered))]
    one, other = shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]
    return (one, other), (other, one)


def _orders(
    of: str,
    foretold: list[dict[str, Values]],
    came: list[dict[str, Values]],
    keep: Sequence[bool],
    report: RiskReport,
    same: bool,
) -> list[OrderQuality]:
    found = []
    for signal in foretold[0]:
        for suffered in came[0]:
            columns = [v for f, c in zip(foretold, came, strict=True) for v in (f[signal], c[suffered])]
            table = np.array([[np.nan if v is None else v for v in column] for column in columns], dtype=np.float64)
            table = table[:, np.array(keep) & ~np.isnan(table).any(axis=0)]
            pairs = [(table[2 * i], table[2 * i + 1]) for i in range(len(foretold))]
            estimate, p = rank_correlation(pairs, report.confidence, report.seed)
            found.append(OrderQuality(of, signal, suffered, same, table.shape[1], estimate, p))
    return found


def _of_groups(
    attribute: AttributeRisk, groups: GroupLabels, persons: _Persons, rows: Rows | None
) -> dict[str, Values]:
    """Signals per group: of some people, or as the report has them of other people."""
    entries = attribute.groups
    if rows is None:
        found: dict[str, Values] = {
            signals.UNCERTAINTY: [entry.uncertainty.value for entry in entries],
            signals.BOUNDARY: [entry.boundary.value for entry in entries],
            signals.ERROR: [_error(entry.accuracy.value) for entry in entries],
        }
    else:
        found = {signals.ERROR: [_error(right) for right in _means(persons.dense_right.mean(axis=1), groups, rows)]}
        if persons.signals is not None:
            found = {
                signals.UNCERTAINTY: _means(persons.signals.person_unsure, groups, rows),
                signals.BOUNDARY: _means(persons.signals.person_near, groups, rows),
                **found,
            }
    if any(entry.gradient is not None for entry in entries):
        curved = [entry.gradient for entry in entries]
        found[signals.NORM] = [None if g is None else g.norm for g in curved]
        found[signals.EIGENVALUE] = [None if g is None else g.eigenvalue for g in curved]
    large = [
        {name: None if entry.too_small else values[i] for name, values in found.items()}
        for i, entry in enumerate(entries)
    ]
    risk = mean_standings([[thing[name] for thing in large] for name in found], len(entries))
    if signals.NORM in found:
        found[signals.BEYOND_CHANCE] = [_beyond_chance(entry) for entry in entries]
    return _defined({RISK: risk, **found})


def _of_outputs(report: RiskReport, persons: _Persons, rows: Rows | None) -> dict[str, Values]:
    outputs = report.outputs
    found: dict[str, Values] = {
        signals.UNCERTAINTY: [output.uncertainty.value for output in outputs],
        signals.INTERDEPENDENCE: [output.interdependence for output in outputs],
        signals.ERROR: [_error(output.accuracy.value) for output in outputs],
        signals.IMBALANCE: [0.5 - output.rare for output in outputs],
    }
    if rows is not None:
        found[signals.ERROR] = (1 - persons.dense_right[rows].mean(axis=0)).tolist()
        if persons.signals is not None:
            found[signals.UNCERTAINTY] = persons.signals.unsure[rows].mean(axis=0).tolist()
    return _defined({RISK: mean_standings(list(found.values()), len(outputs)), **found})


def _came_to_groups(groups: GroupLabels, persons: _Persons, rows: Rows) -> dict[str, Values]:
    return {
        LOSS: _means(persons.loss.mean(axis=1), groups, rows),
        EXEMPLARS: _means(persons.changed.mean(axis=1), groups, rows),
    }


def _came_to_outputs(persons: _Persons, rows: Rows) -> dict[str, Values]:
    return {
        LOSS: persons.loss[rows].mean(axis=0).tolist(),
        EXEMPLARS: persons.changed[rows].mean(axis=0).tolist(),
    }


def _defined(found: dict[str, Values]) -> dict[str, Values]:
    return {signal: values for signal, values in found.items() if any(value is not None for value in values)}


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else 1 - accuracy


def _beyond_chance(group: GroupRisk) -> float | None:
    """The gradient norm without what chance adds to it."""
    gradient = group.gradient
    if gradient is None or gradient.norm is None or gradient.noise is None:
        return None
    return float(np.sqrt(max(gradient.norm**2 - gradient.noise**2, 0.0)))


def _rightness(data: AuditData, model: ModelPredictions) -> FloatArray:
    truth: IntArray = data.people.labels.reshape(len(data.people), -1)
    total = np.zeros(truth.shape)
    for run in range(len(model.runs)):
        total += data.decisions(model, run) == truth
    return total / len(model.runs)


def _means(values: FloatArray, groups: GroupLabels, rows: Rows) -> list[float | None]:
    """Mean per group over some people; ``None`` without any."""
    codes, chosen = groups.codes[rows], values[rows]
    known = codes >= 0
    people = np.bincount(codes[known], minlength=len(groups.names))
    sums = np.bincount(codes[known], weights=chosen[known], minlength=len(groups.names))
    return [float(total / count) if count else None for total, count in zip(sums, people, strict=True)]
