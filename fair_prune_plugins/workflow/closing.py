"""The closing table of a run on the command line, with what it means and what cannot be concluded."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fair_prune_plugins.reporting.estimates import Estimate, Remark
from fair_prune_plugins.reporting.wording import NONE, listed, milliseconds, percent, points, points_interval, times
from fair_prune_plugins.workflow.readings import ModelReading, RunReading, read_run
from fair_prune_plugins.workflow.results import RunResults
from fair_prune_plugins.workflow.words import Headline, headline, in_short, limits, meaning


def print_closing(results: RunResults, console: Console | None = None) -> None:
    """Print the headline, a row per model, what it means and what cannot be concluded.

    Args:
        results: of the run.
        console: where to print; standard output by default.

    Raises:
        InputError: an evaluation in the results lacks a field.
    """
    console = console or Console()
    run = read_run(results)
    first = headline(run)
    console.print()
    console.print(Text(first.text, style="bold"))
    if first.detail:
        console.print(Text(first.detail))
    console.print()
    console.print(closing_table(run, first))
    console.print(_caption(run))
    for title, remarks in (("What it means", meaning(run)), ("What cannot be concluded", limits(run))):
        console.print()
        console.print(Text(title, style="bold"))
        for remark in remarks:
            console.print(Padding(_line(remark), (0, 0, 0, 2)))


def closing_table(run: RunReading, first: Headline) -> Table:
    """A row per model: speed, the worst group's accuracy and change, and the groups in words."""
    names = [escape(name) for name in run.worst_groups]
    worst = f"Worst group\n{names[0]}" if len(names) == 1 else "Worst\ngroup"
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("Model", no_wrap=True)
    table.add_column("p50, ms\nspeed", justify="right", no_wrap=True)
    table.add_column(worst, justify="right")
    table.add_column("Change\npoints", justify="right")
    table.add_column("Groups, in words", min_width=20)
    for model in run.models:
        chosen = first.model is not None and first.model.name == model.name
        table.add_row(
            escape(model.name).replace(" ", "\n", 1),
            f"{milliseconds(model.latency.p50.value)}\n{times(model.speedup)}",
            percent(model.evaluation.worst_accuracy.value),
            _change(model),
            escape(in_short(model)),
            style="bold" if chosen else None,
        )
    return table


def _change(model: ModelReading) -> str:
    worst = model.evaluation.worst
    change = Estimate() if worst is None or model.is_dense else worst.change
    if change.value is None:
        return NONE
    return points(change.value) if change.half_width is None else f"{points(change.value)}\n{points_interval(change)}"


def _caption(run: RunReading) -> Text:
    confidence = percent(run.dense.evaluation.confidence, 0)
    text = f"Change: worst group's accuracy minus dense, with the paired {confidence} interval."
    front = [m.name for m in run.models if m.on_front]
    return Text(text + (f" On the Pareto front: {listed(front)}." if front else ""), style="italic")


def _line(remark: Remark) -> Text:
    return Text.assemble((f"{remark.lead} ", "bold"), remark.text)
