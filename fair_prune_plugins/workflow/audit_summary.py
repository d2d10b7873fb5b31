"""An audit in a few lines on the command line: who lost most. Everything else is in the report."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fair_prune_plugins.audit.measures import MeasuredModel
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.reporting.estimates import Estimate as Shown
from fair_prune_plugins.reporting.wording import NONE, percent, points, points_interval

CAPTION = (
    "Changes are points of accuracy against {dense}, with paired {confidence:.4g} % intervals. The group that lost "
    "most is picked among many and looks worse than it is; `fair-prune check` judges all of them together."
)


def print_summary(audit: Audit, console: Console) -> None:
    """Print a row per model: accuracy, its change, and the group that lost most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("Model", "Output", "Accuracy", "Change", "Lost most", "Change of that group"):
        table.add_column(name, justify="left" if name in ("Model", "Output", "Lost most") else "right")
    for model in audit.measures.models:
        _add(table, model, audit.minimum)
    console.print(table)
    if audit.pruned:
        console.print(Text(CAPTION.format(dense=audit.dense, confidence=100 * audit.confidence), style="dim"))


def _add(table: Table, model: MeasuredModel, minimum: int) -> None:
    overall = model.overall
    if overall is not None:
        groups = [(a.attribute, g.name, g.change) for a in overall.attributes for g in a.groups if g.n >= minimum]
        _row(table, model.name, "overall", overall.everybody.accuracy, overall.everybody.change, groups)
        return
    for output in model.outputs:
        everybody = output.everybody
        change = None if everybody.change is None else everybody.change.accuracy
        groups = [
            (a.attribute, g.name, None if g.change is None else g.change.accuracy)
            for a in output.attributes
            for g in a.groups
            if g.n >= minimum
        ]
        _row(table, model.name, output.name, everybody.scores.accuracy, change, groups)


def _row(
    table: Table,
    model: str,
    output: str,
    accuracy: Estimate,
    change: Estimate | None,
    groups: list[tuple[str, str, Estimate | None]],
) -> None:
    lost = [(c.value, attribute, name, c) for attribute, name, c in groups if c is not None and c.value is not None]
    most = min(lost, key=lambda entry: entry[0], default=None)
    who = NONE if most is None else f"{most[1]}: {most[2]}"
    changed = [_change(change), who, _change(most and most[3])]
    table.add_row(escape(model), escape(output), percent(accuracy.value), *(escape(cell) for cell in changed))


def _change(change: Estimate | None) -> str:
    if change is None or change.value is None:
        return NONE
    return f"{points(change.value)} ({points_interval(Shown.of(change))})"
