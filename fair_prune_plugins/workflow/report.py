"""The report: one HTML file that needs nothing else, with the same numbers beside it as JSON and CSV.

Everything is embedded (style, pictures as SVG in data URIs, one for light and one for dark screens), so that the file
can be mailed, archived and printed. What the pictures show is also in tables and in their alternative texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fair_prune_plugins.reporting import group_pictures
from fair_prune_plugins.reporting.drawing import Format, Theme
from fair_prune_plugins.reporting.embedding import Picture, embed, page_templates
from fair_prune_plugins.reporting.estimates import SIGNS, TONES, Estimate, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    NONE,
    as_sentence,
    counted,
    listed,
    milliseconds,
    percent,
    percent_interval,
    points,
    points_interval,
    quantity,
    times,
    unsigned_points,
)
from fair_prune_plugins.workflow import after, plots
from fair_prune_plugins.workflow.measured import measured
from fair_prune_plugins.workflow.readings import GroupReading, ModelReading, RunReading, read_run
from fair_prune_plugins.workflow.results import RunResults
from fair_prune_plugins.workflow.table import COLUMNS, sections, to_csv
from fair_prune_plugins.workflow.words import Comparison, Headline, comparisons, headline, in_short, limits, meaning

JSON_NAME, CSV_NAME, HTML_NAME = "results.json", "results.csv", "report.html"
AFTER_NAME = "postprocessed.csv"
"""What thresholds and label overrides made of the models' answers; only where a run was asked for that."""
PICTURE_NAME = "pareto"
"""Stem of the Pareto picture's files, ``.svg`` and ``.png``: what a README or a slide shows."""


@dataclass(frozen=True)
class ReportFiles:
    """What :func:`write` wrote."""

    html: Path
    json: Path
    csv: Path
    pictures: tuple[Path, ...]
    postprocessed: Path | None = None


@dataclass(frozen=True)
class _Figure:
    title: str
    value: str
    note: str


def write(results: RunResults, folder: str | os.PathLike[str]) -> ReportFiles:
    """Write the report, the results and the Pareto picture into a folder, which is made if it is not there.

    Args:
        results: of the run.
        folder: where to write ``report.html``, ``results.json``, ``results.csv``, ``pareto.svg`` and ``pareto.png``;
            the pictures only where a model has both a latency and a worst-group accuracy. ``postprocessed.csv`` where
            the run has thresholds or label overrides.

    Raises:
        InputError: an evaluation in the results lacks a field.
    """
    run = read_run(results)
    html = _render(run)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        place / HTML_NAME,
        place / JSON_NAME,
        place / CSV_NAME,
        _write_pictures(run, place),
        place / AFTER_NAME if results.postprocessed else None,
    )
    if files.postprocessed is not None:
        files.postprocessed.write_text(after.to_csv(after.read_after(run)), encoding="utf-8")
    results.write_json(files.json)
    files.csv.write_text(to_csv(run), encoding="utf-8")
    files.html.write_text(html, encoding="utf-8")
    return files


def render(results: RunResults) -> str:
    """The HTML of the report.

    Raises:
        InputError: an evaluation in the results lacks a field.
    """
    return _render(read_run(results))


def _render(run: RunReading) -> str:
    first = headline(run)
    return (
        page_templates("fair_prune_plugins.workflow")
        .get_template("report.html.j2")
        .render(
            run=run,
            date=datetime.fromisoformat(run.results.created).strftime("%Y-%m-%d %H:%M %Z").strip(),
            headline=first,
            figures=_figures(run, first),
            pareto=_pareto(run),
            short=[_short_row(m, first) for m in run.models],
            confidence=percent(run.dense.evaluation.confidence, 0),
            meaning=meaning(run),
            limits=limits(run),
            changes=_changes(run),
            bars=_bars(run),
            group_rows=_group_rows(run),
            worst_caption=_worst_caption(run),
            sections=sections(),
            columns=_columns(),
            full=[_full_row(m, first) for m in run.models],
            methods=_methods(run),
            comparisons=[_comparison_row(c) for c in comparisons(run)],
            after=after.table(run),
            measured=measured(run),
            machine=_flat(run.results.machine),
        )
    )


# -- pictures


def _write_pictures(run: RunReading, folder: Path) -> tuple[Path, ...]:
    if not _placed(run):
        return ()
    written = []
    formats: tuple[Format, ...] = ("svg", "png")
    for kind in formats:
        path = folder / f"{PICTURE_NAME}.{kind}"
        path.write_bytes(_draw_pareto(run, kind, "light"))
        written.append(path)
    return tuple(written)


def _placed(run: RunReading) -> list[ModelReading]:
    return [m for m in run.models if m.latency.p50.value is not None and m.evaluation.worst_accuracy.value is not None]


def _draw_pareto(run: RunReading, kind: Format, theme: Theme) -> bytes:
    dots = [
        plots.Point(
            label=_label(m),
            method=m.result.method,
            latency=m.latency.p50,
            accuracy=m.evaluation.worst_accuracy,
            on_front=m.on_front,
        )
        for m in _placed(run)
    ]
    return plots.pareto_plot(dots, run.methods, accuracy_title=_accuracy_title(run), format=kind, theme=theme)


def _label(model: ModelReading) -> str:
    return "dense" if model.is_dense else model.result.asked


def _accuracy_title(run: RunReading) -> str:
    names = run.worst_groups
    return f"accuracy of the worst group: {names[0]}" if len(names) == 1 else "accuracy of the worst group"


def _pareto(run: RunReading) -> Picture | None:
    placed = _placed(run)
    if not placed:
        return None
    spots = [
        f"{m.name} {milliseconds(m.latency.p50.value)} ms, {percent(m.evaluation.worst_accuracy.value)}" for m in placed
    ]
    front = listed([m.name for m in placed if m.on_front])
    confidence = percent(run.dense.evaluation.confidence, 0)
    return embed(
        lambda theme: _draw_pareto(run, "svg", theme),
        alt=f"Scatter plot of p50 latency against {_accuracy_title(run)}. {'; '.join(spots)}. On the Pareto front: "
        f"{front}.",
        caption=(
            "Each mark is a model: further left is faster, further up is better for the worst group. Labels are the "
            f"share of channels asked to go (or of the cost asked to stay), whiskers {confidence} intervals. Filled "
            "marks are on the Pareto front (dashed): no other model is both faster and more accurate."
        ),
    )


def _panels(run: RunReading) -> list[group_pictures.Panel]:
    dense = {g.name: g for g in run.dense.evaluation.groups}
    panels = []
    order = sorted(run.pruned, key=lambda m: (m.result.pruning_ratio or 0.0, run.methods.index(m.result.method or "")))
    for model in order:
        bars = [
            group_pictures.Bar(
                group=g.name,
                dense=dense[g.name].accuracy if g.name in dense else Estimate(),
                pruned=g.accuracy,
                change=g.change,
                too_small=g.too_small,
            )
            for g in model.evaluation.groups
        ]
        panels.append(group_pictures.Panel(model.name, model.result.method or "", bars))
    return [p for p in panels if p.bars]


def _bars(run: RunReading) -> Picture | None:
    panels = _panels(run)
    if not panels:
        return None
    minimum = run.dense.evaluation.minimum
    return embed(
        lambda theme: group_pictures.group_bars(panels, run.methods, minimum=minimum, theme=theme),
        alt=f"Bars of accuracy per group, dense beside pruned. {_spoken(run, lambda g: percent(g.accuracy.value))}",
        caption="Bars start at zero. Whiskers of two bars may overlap although the change is shown, and the other "
        "way round: judge differences by the picture above, whose intervals are paired.",
    )


def _changes(run: RunReading) -> Picture | None:
    panels = _panels(run)
    if not panels:
        return None
    minimum = run.dense.evaluation.minimum
    return embed(
        lambda theme: group_pictures.change_plot(panels, run.methods, minimum=minimum, theme=theme),
        alt="Change of accuracy from dense per group, in points. "
        + _spoken(run, lambda g: f"{points(g.change.value)} ({points_interval(g.change)})", pruned_only=True),
        caption="Change of accuracy from the dense model in points, each with the paired interval. Left of the line "
        "is worse than dense. A hollow mark means that the interval includes zero: no difference shown. Whiskers of "
        "groups too small to judge may run out of the picture.",
    )


def _spoken(run: RunReading, say: Callable[[GroupReading], str], *, pruned_only: bool = False) -> str:
    models = run.pruned if pruned_only else run.models
    return " ".join(f"{m.name}: {', '.join(f'{g.name} {say(g)}' for g in m.evaluation.groups)}." for m in models)


# -- numbers


def _figures(run: RunReading, first: Headline) -> list[_Figure]:
    model = first.model
    if model is None:
        return []
    dense, evaluation = run.dense, model.evaluation
    cards = [
        _Figure(
            "Speed",
            times(model.speedup),
            f"{milliseconds(model.latency.p50.value)} ms, dense {milliseconds(dense.latency.p50.value)} ms",
        )
    ]
    worst = evaluation.worst
    if worst is not None:
        before = dense.evaluation.group(worst.name)
        cards.append(
            _Figure(
                f"Worst group: {worst.name}",
                percent(evaluation.worst_accuracy.value),
                f"dense {percent(before.accuracy.value if before else None)}, {points(worst.change.value)} points "
                f"({points_interval(worst.change)})",
            )
        )
    if evaluation.gap.value is not None:
        note = f"dense {unsigned_points(dense.evaluation.gap.value)}"
        if evaluation.gap_by_chance is not None:
            note += (
                f"; equally served groups of these sizes: up to {unsigned_points(evaluation.gap_by_chance)} by chance"
            )
        cards.append(_Figure("Gap between groups", f"{unsigned_points(evaluation.gap.value)} points", note))
    cards.append(
        _Figure(
            "Size",
            percent(model.params_share, 0),
            f"of the parameters; {percent(model.macs_share, 0)} of the MACs",
        )
    )
    return cards


def _short_row(model: ModelReading, first: Headline) -> dict[str, Any]:
    worst = model.evaluation.worst
    change = Estimate() if worst is None or model.is_dense else worst.change
    verdict = judge(change, too_small=bool(worst and worst.too_small))
    p50 = milliseconds(model.latency.p50.value)
    return {
        "model": model,
        "chosen": first.model is not None and first.model.name == model.name,
        "latency": p50 if p50 == NONE else f"{p50} ms",
        "speed": times(model.speedup),
        "worst": percent(model.evaluation.worst_accuracy.value),
        "change": points(change.value),
        "interval": points_interval(change) if change.half_width is not None else "",
        "verdict": "" if model.is_dense else SIGNS.get(verdict, "") + verdict.value,
        "tone": TONES.get(verdict, "neutral"),
        "words": in_short(model),
    }


def _columns() -> list[dict[str, Any]]:
    return [
        {"title": c.title, "meaning": c.meaning, "first": first, "is_text": c.is_text}
        for c, first in zip(COLUMNS, _starts(), strict=True)
    ]


def _starts() -> list[bool]:
    return [i == 0 or COLUMNS[i - 1].section != c.section for i, c in enumerate(COLUMNS)]


def _full_row(model: ModelReading, first: Headline) -> dict[str, Any]:
    cells = []
    for column, begins in zip(COLUMNS, _starts(), strict=True):
        under = column.under(model)
        cells.append(
            {
                "value": column.cell(model),
                "under": "" if under == NONE else under,
                "first": begins,
                "is_text": column.is_text,
            }
        )
    return {"model": model, "chosen": first.model is not None and first.model.name == model.name, "cells": cells}


def _worst_caption(run: RunReading) -> str:
    names = run.worst_groups
    if not names:
        return "No group is large enough to be called the worst."
    how = (
        "picked on the test people"
        if any(m.evaluation.worst_on_this_data for m in run.models)
        else "fixed on validation"
    )
    if len(names) == 1:
        return f"The worst group is {names[0]}, {how}."
    each = [f"{m.evaluation.worst_group} for {m.name}" for m in run.models if m.evaluation.worst_group is not None]
    return f"The worst group, {how}: {listed(each)}."


def _group_rows(run: RunReading) -> list[dict[str, Any]]:
    rows = []
    for group in run.dense.evaluation.groups:
        cells = []
        for model in run.models:
            own = model.evaluation.group(group.name)
            cells.append(_group_cell(own, model.is_dense))
        rows.append({"name": group.name, "people": group.n, "too_small": group.too_small, "cells": cells})
    everyone = [_cell(m.evaluation.accuracy, Estimate() if m.is_dense else m.evaluation.change) for m in run.models]
    rows.append({"name": "Everyone", "people": run.dense.evaluation.n, "too_small": False, "cells": everyone})
    return rows


def _group_cell(group: GroupReading | None, is_dense: bool) -> dict[str, Any]:
    if group is None:
        return {"value": NONE, "under": []}
    return _cell(group.accuracy, Estimate() if is_dense else group.change)


def _cell(accuracy: Estimate, change: Estimate) -> dict[str, Any]:
    under = [percent_interval(accuracy)] if accuracy.half_width is not None else []
    if change.value is not None:
        under.append(f"{points(change.value)} ({points_interval(change)})")
    return {"value": percent(accuracy.value), "under": under}


def _methods(run: RunReading) -> list[dict[str, Any]]:
    methods = []
    for name in run.methods:
        models = [m for m in run.pruned if m.result.method == name]
        methods.append(
            {
                "name": name,
                "summary": as_sentence(models[0].result.summary),
                "source": models[0].result.source,
                "models": [_method_model(m) for m in models],
            }
        )
    return methods


def _comparison_row(comparison: Comparison) -> dict[str, Any]:
    cells = [
        _verdict_cell(comparison.worst.change, comparison.verdict),
        _verdict_cell(comparison.evaluation.change, judge(comparison.evaluation.change)),
    ]
    return {"model": comparison.model, "other": comparison.other, "cells": cells}


def _verdict_cell(change: Estimate, verdict: Verdict) -> dict[str, str]:
    return {
        "value": points(change.value),
        "under": points_interval(change),
        "verdict": SIGNS.get(verdict, "") + verdict.value,
        "tone": TONES.get(verdict, "neutral"),
    }


def _method_model(model: ModelReading) -> dict[str, Any]:
    result = model.result
    digest = f"{percent(model.macs_share, 0)} of the MACs ({quantity(result.macs)}), "
    digest += f"{percent(model.params_share, 0)} of the parameters ({quantity(result.params)})"
    off = [w for w in result.widths if w.kept != w.asked]
    if result.widths:
        digest += f"; {counted(len(result.widths), 'coupled group')}, "
        digest += f"{len(off)} not kept as asked" if off else "all kept as asked"
    spent = [f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items() if seconds is not None]
    return {
        "name": model.name,
        "digest": digest,
        "seconds": f"Took: {', '.join(spent)}." if spent else "",
        "notes": result.notes,
        "widths": result.widths,
    }


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A dict of dicts as lines of a table; what is undefined or empty is left out."""
    lines: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += _flat(value, f"{name}: ")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines += [(name, ", ".join(str(v) for v in value))] if value else []
        elif value is not None and value != "":
            lines.append(
                (name, {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value))
            )
    return lines
