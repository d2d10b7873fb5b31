"""A check as a table on the command line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fair_prune_plugins.audit.policy.result import ModelCheck, PolicyCheck
from fair_prune_plugins.audit.policy.wording import COLUMNS, VERDICTS, cells, headline, setting

STYLES = {"broken": "bold red", "cannot be told": "yellow", "holds": "green", "too small to judge": "dim"}


def print_check(check: PolicyCheck, console: Console) -> None:
    """Print what was decided, a row per finding, the worst first, and how it was judged."""
    for model in check.models:
        console.print()
        console.print(Text(headline(model), style="bold red" if model.refused else "bold green"))
        console.print(table_of(model))
    for line in setting(check):
        console.print(Text(line, style="dim"))


def table_of(model: ModelCheck) -> Table:
    """A row per finding, grouped by verdict: what is broken first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("People", "Limit", "Found", "Interval") else "left")
    for verdict in VERDICTS:
        for finding in model.of(verdict):
            *row, last = cells(finding)
            table.add_row(*(escape(cell) for cell in row), Text(last, style=STYLES[verdict]))
    return table
