"""The run as one table, a row per model: ``results.csv``, and the cells of the report's tables.

The CSV holds plain numbers (shares 0 to 1, milliseconds) in a column each, so that a spreadsheet can work on them; an
empty cell is an undefined number. The report's cells hold the same numbers written for people.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.reporting.estimates import Estimate
from fair_prune_plugins.reporting.wording import (
    NONE,
    milliseconds,
    milliseconds_interval,
    percent,
    percent_interval,
    points,
    points_interval,
    quantity,
    scientific,
    times,
    times_interval,
    unsigned_points,
)
from fair_prune_plugins.workflow.readings import ModelReading, RunReading

Scalar = str | float | int | None

NOT_OUR_CSV = "{path} is not a results.csv of this package: its first columns must be {expected}, found {found}"

_TEXT_COLUMNS = ("model", "criterion", "asked", "worst_group")
_FIRST_COLUMNS = ["model", "criterion", "pruning_ratio"]


@dataclass(frozen=True)
class Column:
    """A column of the full table in the report.

    Attributes:
        section: what it is about; neighbours of one section share a heading.
        title: heading.
        meaning: what the number is, for the notes under the table.
        cell: the main text of a model's cell.
        under: smaller text under it, e.g. an interval.
        is_text: whether cells are words rather than numbers.
    """

    section: str
    title: str
    meaning: str
    cell: Callable[[ModelReading], str]
    under: Callable[[ModelReading], str] = lambda _: ""
    is_text: bool = False


def _worst_change(model: ModelReading) -> Estimate:
    return model.evaluation.worst.change if model.evaluation.worst else Estimate()


def _pruned(show: Callable[[ModelReading], str]) -> Callable[[ModelReading], str]:
    """Blank for the dense model, which has no change from itself."""
    return lambda model: NONE if model.is_dense else show(model)


COLUMNS: tuple[Column, ...] = (
    Column(
        "Method",
        "Criterion",
        "the rule that chose which channels go",
        lambda m: m.result.method or NONE,
        is_text=True,
    ),
    Column(
        "Method",
        "Asked",
        "share of channels that was asked to go, or share of the cost that was asked to stay",
        lambda m: m.result.asked or NONE,
    ),
    Column(
        "Size",
        "MACs",
        "multiply-accumulates for one input, relative to the dense model",
        lambda m: percent(m.macs_share, 0),
        lambda m: quantity(m.result.macs),
    ),
    Column(
        "Size",
        "Params",
        "number of parameters, relative to the dense model",
        lambda m: percent(m.params_share, 0),
        lambda m: quantity(m.result.params),
    ),
    Column(
        "Size",
        "File",
        "size of the ONNX file in bytes",
        lambda m: quantity(m.result.file_bytes),
    ),
    Column(
        "Latency",
        "p50, ms",
        "median time of one call in ONNX Runtime, with its interval",
        lambda m: milliseconds(m.latency.p50.value),
        lambda m: milliseconds_interval(m.latency.p50),
    ),
    Column(
        "Latency",
        "p90, ms",
        "nine of ten calls are faster than this",
        lambda m: milliseconds(m.latency.p90.value),
        lambda m: milliseconds_interval(m.latency.p90),
    ),
    Column(
        "Latency",
        "Speed",
        "the dense model's p50 over this model's, with the interval from rounds in which both ran",
        lambda m: times(m.speedup),
        lambda m: times_interval(m.latency.speedup),
    ),
    Column(
        "Latency",
        "Realised",
        "the measured speed-up over the one that the MACs promise",
        _pruned(lambda m: percent(m.latency.realised, 0)),
    ),
    Column(
        "Latency",
        "Fast layout",
        "share of convolutions that ONNX Runtime runs in its fast blocked layout",
        lambda m: percent(m.latency.fast_layout, 0),
    ),
    Column(
        "Accuracy",
        "Everyone",
        "share of right predictions over all test people, with its interval",
        lambda m: percent(m.evaluation.accuracy.value),
        lambda m: percent_interval(m.evaluation.accuracy),
    ),
    Column(
        "Accuracy",
        "Worst group",
        "accuracy of the worst group, with its interval",
        lambda m: percent(m.evaluation.worst_accuracy.value),
        lambda m: percent_interval(m.evaluation.worst_accuracy),
    ),
    Column(
        "Accuracy",
        "Change",
        "the worst group's accuracy minus the dense model's, in points, with the paired interval",
        _pruned(lambda m: points(_worst_change(m).value)),
        _pruned(lambda m: points_interval(_worst_change(m))),
    ),
    Column(
        "Between groups",
        "Gap",
        "largest minus smallest group accuracy, in points",
        lambda m: unsigned_points(m.evaluation.gap.value),
    ),
    Column(
        "Between groups",
        "Gap change",
        "the gap minus the dense model's, in points, with the paired interval; positive is wider",
        _pruned(lambda m: points(m.evaluation.gap_change.value)),
        _pruned(lambda m: points_interval(m.evaluation.gap_change)),
    ),
    Column(
        "Between groups",
        "rho",
        "sample standard deviation over groups of the change from dense, in points",
        _pruned(lambda m: unsigned_points(m.evaluation.rho.value)),
    ),
    Column(
        "Between groups",
        "Max excess",
        "the most that a group lost beyond what everyone lost, in points",
        _pruned(lambda m: points(m.evaluation.max_excess_gap.value).lstrip("+")),
    ),
    Column(
        "ONNX proof",
        "Error",
        "largest difference between ONNX Runtime's and torch's outputs over the outputs' scale",
        lambda m: scientific(m.parity.error),
    ),
    Column(
        "ONNX proof",
        "Differ",
        "samples whose predicted class differs between ONNX Runtime and torch",
        lambda m: NONE if m.parity.differing is None else f"{m.parity.differing} of {m.parity.samples}",
    ),
)


def csv_rows(run: RunReading) -> list[dict[str, Scalar]]:
    """The table as plain values, a row per model; every row has the same columns."""
    return [_csv_row(model) for model in run.models]


def to_csv(run: RunReading) -> str:
    """The table as CSV text."""
    rows = csv_rows(run)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, Scalar]]:
    """Read what :func:`to_csv` wrote back to the values of :func:`csv_rows`.

    Raises:
        InputError: the file has other columns, or a cell that should be a number is none.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        found = list(reader.fieldnames or [])
        if found[: len(_FIRST_COLUMNS)] != _FIRST_COLUMNS:
            raise InputError(NOT_OUR_CSV.format(path=path, expected=_FIRST_COLUMNS, found=found[:3]))
        return [{key: _scalar(key, text, path) for key, text in row.items()} for row in reader]


def _scalar(key: str, text: str, path: str | os.PathLike[str]) -> Scalar:
    if text == "":
        return None
    if key in _TEXT_COLUMNS:
        return text
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise InputError(f"{path}: column {key!r} holds {text!r}, expected a number or nothing") from None


def _csv_row(model: ModelReading) -> dict[str, Scalar]:
    evaluation, latency = model.evaluation, model.latency
    row: dict[str, Scalar] = {
        "model": model.name,
        "criterion": model.result.method,
        "pruning_ratio": model.result.pruning_ratio,
        "asked": model.result.asked or None,
        "macs": model.result.macs,
        "macs_relative": model.macs_share,
        "params": model.result.params,
        "params_relative": model.params_share,
        "file_bytes": model.result.file_bytes,
        **_spread("p50_ms", latency.p50),
        **_spread("p90_ms", latency.p90),
        **_spread("p99_ms", latency.p99),
        "speedup": model.speedup,
        "speedup_low": latency.speedup.low,
        "speedup_high": latency.speedup.high,
        "theoretical_speedup": latency.theoretical,
        "realised_over_theoretical": latency.realised,
        "fast_layout_share": latency.fast_layout,
        "people": evaluation.n,
        **_spread("accuracy", evaluation.accuracy),
        **_spread("accuracy_change", evaluation.change),
        "worst_group": evaluation.worst_group,
        **_spread("worst_group_accuracy", evaluation.worst_accuracy),
        **_spread("worst_group_change", _worst_change(model)),
        **_spread("gap", evaluation.gap),
        **_spread("gap_change", evaluation.gap_change),
        "gap_by_chance": evaluation.gap_by_chance,
        **_spread("rho", evaluation.rho),
        **_spread("max_excess_gap", evaluation.max_excess_gap),
        "onnx_error": model.parity.error,
        "onnx_predictions_differ": model.parity.differing,
        "onnx_samples": model.parity.samples,
        "on_pareto_front": int(model.on_front),
    }
    for group in evaluation.groups:
        row[f"people: {group.name}"] = group.n
        row.update(_spread(f"accuracy: {group.name}", group.accuracy))
        row.update(_spread(f"change: {group.name}", group.change))
    return row


def _spread(key: str, estimate: Estimate) -> dict[str, Scalar]:
    return {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}


def sections(columns: Sequence[Column] = COLUMNS) -> list[tuple[str, int]]:
    """The headings above the columns and how many columns each spans."""
    spans: list[tuple[str, int]] = []
    for column in columns:
        if spans and spans[-1][0] == column.section:
            spans[-1] = (column.section, spans[-1][1] + 1)
        else:
            spans.append((column.section, 1))
    return spans
