"""Thresholds and label overrides in the report: a row per network and step, and what must be said of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fair_prune_plugins.postprocessing.rules import OWN
from fair_prune_plugins.reporting.estimates import TONES, Estimate, Remark, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    as_sentence,
    counted,
    listed,
    percent,
    points,
    points_interval,
    quantity,
    unsigned_points,
)
from fair_prune_plugins.workflow.readings import EvaluationReading, RunReading, read_estimate, read_evaluation
from fair_prune_plugins.workflow.results import Postprocessed

Scalar = str | float | int | None

_DIFFERENCES = (
    ("demographic_parity_difference", "Selection"),
    ("equal_opportunity_difference", "True positives"),
    ("equalized_odds_difference", "Odds"),
)


@dataclass(frozen=True)
class Difference:
    """A difference between groups before and after, and its paired change; shares, 0 to 1."""

    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True)
class AfterReading:
    """One row: what a step made of a network's answers.

    Attributes:
        result: what the run recorded.
        evaluation: after; changes are against the same network's own answers.
        against_dense: likewise against the dense network's, ``None`` for the dense network.
        differences: of selection, true positive and both error rates, by fairlearn's name; empty unless there are two
            classes.
    """

    result: Postprocessed
    evaluation: EvaluationReading
    against_dense: EvaluationReading | None
    differences: dict[str, Difference]

    @property
    def worst_change(self) -> Estimate:
        """Of the worst group's accuracy, against the network's own answers."""
        return self.evaluation.worst.change if self.evaluation.worst else Estimate()

    @property
    def worst_from_dense(self) -> Estimate:
        """Of the worst group's accuracy, against the dense network's answers."""
        return self.against_dense.worst.change if self.against_dense and self.against_dense.worst else Estimate()


def read_after(run: RunReading) -> list[AfterReading]:
    """Every row of the run."""
    return [_read(result) for result in run.results.postprocessed]


def _read(result: Postprocessed) -> AfterReading:
    effect = result.effect
    after, before, change = effect["evaluation"].get("binary"), effect["before"], effect["change"]
    differences = {}
    if after and before and change:
        differences = {
            name: Difference(*(read_estimate(part[name]) for part in (before, after, change)))
            for name, _ in _DIFFERENCES
        }
    return AfterReading(
        result,
        read_evaluation(effect["evaluation"]),
        read_evaluation(result.against_dense) if result.against_dense else None,
        differences,
    )


def table(run: RunReading) -> dict[str, Any] | None:
    """Headings, rows and remarks for the template; ``None`` where the run was not asked for any."""
    rows = read_after(run)
    if not rows:
        return None
    shown = [title for name, title in _DIFFERENCES if any(name in r.differences for r in rows)]
    overridden = any(r.result.overridden for r in rows)
    return {
        "differences": shown,
        "overrides": overridden,
        "rows": [_row(r, overridden) for r in rows],
        "remarks": remarks(run),
    }


def _row(row: AfterReading, overridden: bool) -> dict[str, Any]:
    evaluation = row.evaluation
    cells = [
        _changed(percent(evaluation.accuracy.value), evaluation.change),
        _changed(
            percent(evaluation.worst_accuracy.value),
            row.worst_change,
            bool(evaluation.worst and evaluation.worst.too_small),
        ),
        {**_changed(points(row.worst_from_dense.value), Estimate()), "under": _interval(row.worst_from_dense)},
    ]
    for difference in row.differences.values():
        # Less difference is better, which is the other way round than with accuracy.
        verdict = judge(difference.change)
        tone = {Verdict.WORSE: "better", Verdict.BETTER: "worse"}.get(verdict, "neutral")
        text = f"{unsigned_points(difference.before.value)} → {unsigned_points(difference.after.value)}"
        under = f"{points(difference.change.value)} ({points_interval(difference.change)})"
        cells.append({"value": text, "under": under if difference.change.value is not None else "", "tone": tone})
    if overridden:
        share = row.result.overridden.get("share")
        most = {k: v for k, v in row.result.overridden.get("by_group", {}).items() if v is not None}
        top = max(most, key=lambda k: most[k]) if most else ""
        under = f"most: {top} {percent(most[top])}" if top else ""
        cells.append({"value": percent(share), "under": under, "tone": "neutral"})
        cells.append({"value": quantity(row.result.macs), "under": "", "tone": "neutral"})
    marks = (("uses the group", row.result.uses_groups), ("by lot", row.result.by_chance))
    return {
        "model": row.result.model,
        "step": row.result.name,
        "tags": [text for text, holds in marks if holds],
        "chosen": chosen(row.result.rule),
        "notes": [as_sentence(note) for note in row.result.rule["notes"]],
        "cells": cells,
    }


def _changed(value: str, change: Estimate, too_small: bool = False) -> dict[str, str]:
    under = "" if change.value is None else f"{points(change.value)} ({points_interval(change)})"
    return {"value": value, "under": under, "tone": TONES.get(judge(change, too_small=too_small), "neutral")}


def _interval(change: Estimate) -> str:
    return points_interval(change) if change.half_width is not None else ""


def chosen(rule: dict[str, Any]) -> str:
    """A rule in a few words: ``score of at least 0.31``, ``margin of at most 0.42``."""
    if rule["kind"] == "override":
        return listed([_margin(c) for c in rule["cutoffs"]])
    (output,) = rule["outputs"]
    groups = output["groups"]
    if not groups:
        return _threshold(output["everyone"])
    if any(isinstance(cut, list) for cut in groups.values()):
        return f"lots between thresholds in {counted(len(groups), 'group')}"
    numbers = sorted(cut for cut in groups.values() if not isinstance(cut, str))
    span = f", score {numbers[0]:.2f} to {numbers[-1]:.2f}" if numbers else ""
    return f"{counted(len(groups), 'group')} with their own{span}"


def _threshold(cut: Any) -> str:
    if isinstance(cut, str):
        return f"{cut} positive"
    return "the network's own" if cut == OWN else f"score of at least {cut:.3g}"


def _margin(cutoff: Any) -> str:
    return "nobody" if isinstance(cutoff, str) else f"margin of at most {cutoff:.3g}"


def remarks(run: RunReading) -> list[Remark]:
    """What a reader must know of these rows."""
    results = run.results.postprocessed
    found = [
        Remark(
            "Chosen on validation people.",
            "Thresholds and margins were fixed there and judged once on the test people; what they were chosen for "
            "holds on the test people only as far as the numbers show. Changes are against the same network's own "
            "answers, on the same people, paired. Every row adds comparisons that are judged without correction.",
        )
    ]
    positive = run.results.task.classes[1] if len(run.results.task.classes) == 2 else ""
    if any(r.kind == "thresholds" for r in results):
        found.append(
            Remark(
                "Thresholds.",
                f"A score is the logit of {positive} minus the other one; the network's own threshold is 0. "
                f"Selection, true positives and odds are the largest differences between groups in being called "
                f"{positive}, in being called so rightly, and in being called so rightly or wrongly; less is closer.",
            )
        )
    if any(r.uses_groups for r in results):
        found.append(
            Remark(
                "Uses the group.",
                "These rules need to know the group of a person when that person is decided about, and treat people of "
                "equal score in different groups differently. Where that is forbidden or unknown, they are no option.",
            )
        )
    if any(r.by_chance for r in results):
        found.append(
            Remark(
                "By lot.",
                "Two people of one group and one score may be decided differently; shown is the one draw that was"
                " made.",
            )
        )
    if any(r.kind == "override" for r in results):
        found.append(
            Remark(
                "Overrides.",
                "A margin is the distance between the two largest logits. MACs are those of one person on average, the "
                "dense network's included wherever it has to run; no latency was measured for them. A human is taken "
                "to be always right.",
            )
        )
    return found


def to_csv(rows: Sequence[AfterReading]) -> str:
    """The rows as CSV text: plain numbers, shares 0 to 1; an empty cell is undefined."""
    written = [_csv_row(row) for row in rows]
    names = list(dict.fromkeys(name for row in written for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(written)
    return out.getvalue()


def _csv_row(row: AfterReading) -> dict[str, Scalar]:
    result, evaluation = row.result, row.evaluation
    validation = result.validation
    values: dict[str, Scalar] = {
        "model": result.model,
        "step": result.name,
        "kind": result.kind,
        "uses_groups": int(result.uses_groups),
        "by_chance": int(result.by_chance),
        "overridden": result.overridden.get("share"),
        "macs": result.macs,
        "validation_accuracy_before": validation["before"]["accuracy"],
        "validation_accuracy": validation["after"]["accuracy"],
        "validation_worst_group_accuracy_before": validation["before"]["worst_group_accuracy"],
        "validation_worst_group_accuracy": validation["after"]["worst_group_accuracy"],
        **_spread("accuracy", evaluation.accuracy),
        **_spread("accuracy_change", evaluation.change),
        "worst_group": evaluation.worst_group,
        **_spread("worst_group_accuracy", evaluation.worst_accuracy),
        **_spread("worst_group_change", row.worst_change),
        **_spread("worst_group_change_from_dense", row.worst_from_dense),
        **_spread("gap", evaluation.gap),
        **_spread("gap_change", evaluation.gap_change),
    }
    for name, difference in row.differences.items():
        values[f"{name}_before"] = difference.before.value
        values |= _spread(name, difference.after)
        values |= _spread(f"{name}_change", difference.change)
    return values


def _spread(key: str, estimate: Estimate) -> dict[str, Scalar]:
    return {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
