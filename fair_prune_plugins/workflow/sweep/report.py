"""The report of a sweep: one page over all trials, with the same numbers as JSON and CSV, and a report per seed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fair_prune_plugins.reporting.drawing import Format, Theme
from fair_prune_plugins.reporting.wording import (
    NONE,
    counted,
    listed,
    milliseconds,
    milliseconds_interval,
    percent,
    percent_interval,
    points,
    points_interval,
    times,
    times_interval,
)
from fair_prune_plugins.workflow import plots
from fair_prune_plugins.workflow.progress import ConsoleWatcher
from fair_prune_plugins.workflow.readings import read_run
from fair_prune_plugins.workflow.report import CSV_NAME, HTML_NAME, JSON_NAME, PICTURE_NAME
from fair_prune_plugins.workflow.run_folder import RunFolder
from fair_prune_plugins.workflow.sweep.outcome import finished_points
from fair_prune_plugins.workflow.sweep.running import Course
from fair_prune_plugins.workflow.sweep.seed_report import write_seed
from fair_prune_plugins.workflow.sweep.space import Space
from fair_prune_plugins.workflow.sweep.summary import Row, Spread, Summary, summarise

REPORT_FOLDER = "report"


def write_report(space: Space, folder: Path, base: Path, course: Course, console: Console) -> Summary:
    """Write the reports of a sweep: one per seed, and the page over all of them.

    Args:
        space: of the sweep.
        folder: of the sweep, with at least one finished trial.
        base: folder that relative paths are looked up in.
        course: of the call.
        console: where progress is printed.
    """
    found = finished_points(space, folder)
    seeds = [seed for seed in space.seeds if any(f.point.seed == seed for f in found)]
    place = folder / REPORT_FOLDER
    stages = RunFolder(place, ConsoleWatcher(console, len(seeds)))
    console.print("[dim]timing the networks of each seed side by side ...[/]")
    readings = {
        seed: read_run(write_seed(space, seed, [f for f in found if f.point.seed == seed], folder, base, stages))
        for seed in seeds
    }
    summary = summarise(space.config.name, space.seeds, found, readings, course, space.trials())
    summary.write_json(place / JSON_NAME)
    summary.write_csv(place / CSV_NAME)
    for kind in ("svg", "png"):
        (place / f"{PICTURE_NAME}.{kind}").write_bytes(_draw(summary, kind, "light"))
    (place / HTML_NAME).write_text(_render(summary, seeds), encoding="utf-8")
    return summary


def print_summary(summary: Summary, console: Console) -> None:
    """Print the choice, a row per setting, and what cannot be concluded."""
    console.print()
    for text in choices(summary):
        console.print(f"[bold]{escape(text)}[/]", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("Setting", min_width=14, overflow="fold")
    for title in ("p50, ms\nspeed", "Worst group\nvalidation", "Worst group\ntest", "Change\npoints", "Loss\nshown"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary.rows:
        cells = _cells(row)
        shown = [f"{v}\n{u}" if u else v for v, u in (cells[k] for k in ("latency", "validation", "worst", "change"))]
        table.add_row(
            escape(row.name).replace(" ", "\n", 1), *shown, cells["shown"][0], style="bold" if row.chosen else None
        )
    console.print(table)
    for text in remarks(summary):
        console.print(f"  {escape(text)}", highlight=False)


def choices(summary: Summary) -> list[str]:
    """What was chosen, a sentence for each amount."""
    dense = summary.rows[0]
    sentences = []
    for row in summary.rows:
        if not row.chosen:
            continue
        rivals = sum(r.asked == row.asked for r in summary.rows)
        equals = [row.title, *(r.title for r in summary.rows if r is not row and _ties(r, row))]
        best = f"At {row.asked}, {row.title} served the worst group best on validation people"
        if rivals == 1:
            best = f"At {row.asked} there is {row.title} alone"
        elif len(equals) > 1:
            best = (
                f"At {row.asked}, {listed(equals)} served the worst group equally well on validation people, and best; "
                f"the first of them is taken, {row.title}"
            )
        sentences.append(
            f"{best} ({percent(row.validation.mean)}). On test people that group has {_said(row.worst)}, "
            f"dense {_said(dense.worst)}; {times(row.speedup.mean)} as fast as dense."
        )
    return sentences


def _ties(row: Row, chosen: Row) -> bool:
    return (row.asked, len(row.seeds), row.validation.mean) == (
        chosen.asked,
        len(chosen.seeds),
        chosen.validation.mean,
    )


def remarks(summary: Summary) -> list[str]:
    """How to read the numbers, and what cannot be concluded."""
    groups = sorted(set(summary.worst_groups.values()))
    said = [
        f"The choice is made on validation people alone; every other accuracy is on test people. The worst group "
        f"({listed(groups)}) is the dense network's on validation people, for each seed its own.",
    ]
    most = max(len(row.seeds) for row in summary.rows)
    if most > 1:
        said.append(
            f"Numbers are means over up to {most} seeds, with the smallest and the largest seed below: a spread, no "
            "confidence interval. Loss shown: seeds in which the paired interval over test people excludes zero; the "
            "report of each seed has all intervals."
        )
    else:
        said.append(
            "One seed: nothing is known of how much another training run would differ; a ranking needs several seeds."
        )
    fewer = [row.name for row in summary.rows if row.asked and len(row.seeds) < most]
    if fewer:
        said.append(f"Fewer seeds than others, and not chosen where others have more: {listed(fewer)}.")
    if len(summary.rows) > 2:
        said.append(
            "The best of several is partly the luckiest on the validation people; differences smaller than the spread "
            "rank nothing."
        )
    missing = summary.trials - summary.finished
    if missing > 0:
        crashed = f", {len(summary.crashed)} of them crashed in this call" if summary.crashed else ""
        said.append(
            f"{counted(missing, 'trial')} of {summary.trials} not finished{crashed}; the same command tries again."
        )
    return said


def _said(spread: Spread) -> str:
    interval = spread.estimate
    return percent(spread.mean) + (f" ({percent_interval(interval)})" if interval.low is not None else "")


def _cells(row: Row) -> dict[str, tuple[str, str]]:
    """Each number of a row, and its spread or what else stands below it."""

    def under(text: str) -> str:
        return "" if text == NONE else text

    shown = f"{row.shown_worse} of {len(row.seeds)}" if row.asked else ""
    return {
        "latency": (milliseconds(row.latency.mean), times(row.speedup.mean)),
        "latency_spread": (milliseconds(row.latency.mean), under(milliseconds_interval(row.latency.estimate))),
        "speed": (times(row.speedup.mean), under(times_interval(row.speedup.estimate))),
        "macs": (percent(row.macs_share.mean, 0), ""),
        "validation": (percent(row.validation.mean), under(percent_interval(row.validation.estimate))),
        "worst": (percent(row.worst.mean), under(percent_interval(row.worst.estimate))),
        "change": (points(row.change.mean), under(points_interval(row.change.estimate))),
        "shown": (shown, ""),
        "accuracy": (percent(row.accuracy.mean), under(percent_interval(row.accuracy.estimate))),
        "gap": (percent(row.gap.mean), under(percent_interval(row.gap.estimate))),
    }


_COLUMNS = (
    ("latency_spread", "p50, ms"),
    ("speed", "Speed"),
    ("macs", "MACs"),
    ("validation", "Worst group, validation"),
    ("worst", "Worst group, test"),
    ("change", "Change from dense, points"),
    ("shown", "Loss shown, seeds"),
    ("accuracy", "Everyone, test"),
    ("gap", "Gap, test"),
)


def _render(summary: Summary, seeds: Sequence[int]) -> str:
    environment = Environment(
        loader=PackageLoader("fair_prune_plugins.workflow"),
        autoescape=True,  # names come from users' configurations
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows: list[dict[str, Any]] = [
        {"row": row, "cells": [_cells(row)[key] for key, _ in _COLUMNS]} for row in summary.rows
    ]
    return environment.get_template("sweep.html.j2").render(
        summary=summary,
        choices=choices(summary),
        remarks=remarks(summary),
        rows=rows,
        columns=[title for _, title in _COLUMNS],
        light=_uri(_draw(summary, "svg", "light")),
        dark=_uri(_draw(summary, "svg", "dark")),
        alt="; ".join(f"{r.name} {milliseconds(r.latency.mean)} ms, {percent(r.worst.mean)}" for r in summary.rows),
        seeds=seeds,
        html_name=HTML_NAME,
    )


def _draw(summary: Summary, kind: Format, theme: Theme) -> bytes:
    dots = [
        plots.Point(
            label=row.asked or row.name,
            method=row.title if row.asked else None,
            latency=row.latency.estimate,
            accuracy=row.worst.estimate,
            on_front=row.on_front,
        )
        for row in summary.rows
    ]
    return plots.pareto_plot(
        dots, summary.titles, accuracy_title="accuracy of the worst group", format=kind, theme=theme
    )


def _uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
