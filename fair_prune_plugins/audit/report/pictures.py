"""The pictures of the audit's page; what they show is also in tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from fair_prune_plugins.audit.countermeasures.result import Countermeasures, Curve
from fair_prune_plugins.audit.report.readings import ModelLine
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.drawing import (
    LOOKS,
    MARKERS,
    Theme,
    add_legend,
    image_bytes,
    new_figure,
    percent_tick,
    styled,
)
from fair_prune_plugins.reporting.embedding import Picture, embed
from fair_prune_plugins.reporting.estimates import Estimate, Verdict
from fair_prune_plugins.reporting.group_pictures import Bar, Panel, change_plot
from fair_prune_plugins.reporting.wording import percent, points, points_interval

SHOWN = (Verdict.WORSE, Verdict.BETTER)
HOLM = "Holm’s correction"
PANELS = 9
"""Pruned models that are drawn side by side; tables have them all."""


def change_picture(audit: Audit, models: Sequence[ModelLine], attribute: str) -> Picture | None:
    """Change of accuracy per group, a panel per pruned model."""
    dense, *pruned = models
    lines = [(m, m.attribute(attribute)) for m in pruned[:PANELS]]
    if not lines or not any(g.moved.value is not None for _, line in lines for g in line.groups):
        return None
    before = {g.name: Estimate.of(g.accuracy) for g in dense.attribute(attribute).groups}
    panels = [
        Panel(
            textwrap.shorten(m.name, 34, placeholder="…"),
            m.name,
            [
                Bar(g.name, before[g.name], Estimate.of(g.accuracy), g.moved, g.too_small, g.verdict in SHOWN)
                for g in line.groups
            ],
        )
        for m, line in lines
    ]
    names = [m.name for m in pruned]
    said = " ".join(
        f"{m.name}: {', '.join(f'{g.name} {points(g.moved.value)} ({points_interval(g.moved)})' for g in line.groups)}."
        for m, line in lines
    )
    caption = (
        "Change of accuracy from the dense model in points, each with its paired interval. Left of the line is worse "
        "than dense. A hollow mark is a difference that is not shown once all groups and outputs are tested together, "
        "even if its own interval leaves out zero."
    )
    if len(pruned) > PANELS:
        caption += f" The first {PANELS} of {len(pruned)} pruned models are drawn."
    return embed(
        lambda theme: change_plot(panels, names, minimum=audit.minimum, rule=HOLM, theme=theme),
        alt=f"Change of accuracy from dense by {attribute}, in points. {said}",
        caption=caption,
    )


def curve_picture(mended: Countermeasures, model: str) -> Picture | None:
    """Accuracy of the worst group against the budget, mean over outputs, on test people; a panel per attribute."""
    mine = [c for c in mended.curves if c.model == model and c.people == "test"]
    attributes = list(dict.fromkeys(c.attribute for c in mine))
    lines = {
        (attribute, answerer): found
        for attribute in attributes
        for answerer in ("dense", "human")
        if (found := _mean([c for c in mine if c.attribute == attribute and c.answer_of == answerer]))
    }
    shown = [a for a in attributes if (a, "dense") in lines]
    if not shown:
        return None
    said = []
    for (attribute, answerer), line in lines.items():
        steps = ", ".join(f"{percent(b, 0)}: {percent(v)}" for b, v in line)
        said.append(f"By {attribute}, {answerer} asked, share asked and accuracy: {steps}.")
    outputs = len({c.output for c in mine})
    over = f", mean over {outputs} outputs" if outputs > 1 else ""
    return embed(
        lambda theme: _curves(shown, lines, theme),
        alt=f"Accuracy of the worst group against the share of answers overridden, {model}. {' '.join(said)}",
        caption=f"{model}: accuracy of the worst group{over} on test people against the share of answers taken "
        "from the dense model, or from a human who is always right; the least sure answers first. A budget may not be "
        "chosen from this picture: the curves of the validation people are in audit.json.",
    )


def _mean(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Budget and mean over outputs of the worst group's accuracy, where that is defined."""
    defined = [c for c in curves if all(p.worst is not None for p in c.points)]
    if not defined:
        return []
    return [
        (points[0].budget, float(np.mean([p.worst for p in points if p.worst is not None])))
        for points in zip(*(c.points for c in defined), strict=True)
    ]


def _curves(attributes: Sequence[str], lines: dict[tuple[str, str], list[tuple[float, float]]], theme: Theme) -> bytes:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    look = LOOKS[theme]
    per_row = min(len(attributes), 3)
    rows = -(-len(attributes) // per_row)
    with styled(look):
        figure = new_figure(9.6 if per_row > 1 else 6.4, 2.9 * rows + 0.4)
        grid = figure.subplots(rows, per_row, sharey=True, squeeze=False).flat
        for axes, attribute in zip(grid, attributes, strict=False):
            for i, answerer in enumerate(("dense", "human")):
                line = lines.get((attribute, answerer))
                if line:
                    axes.plot(
                        range(len(line)),
                        [value for _, value in line],
                        color=look.methods[i],
                        marker=MARKERS[i],
                        linewidth=1.8,
                        markersize=6,
                        linestyle=("-", (0, (4, 2)))[i],
                    )
                    axes.set_xticks(range(len(line)), [percent_tick(b).replace(" ", "") for b, _ in line], fontsize=8.5)
            axes.set_title(f"by {textwrap.shorten(attribute, 34, placeholder='…')}", fontsize=10.5, loc="left")
            axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
            axes.set_xlabel("share of answers overridden")
        for axes in list(figure.axes)[len(attributes) :]:
            axes.set_visible(False)
        add_legend(
            figure,
            [
                Line2D([], [], color=look.methods[i], marker=MARKERS[i], linestyle=("-", (0, (4, 2)))[i], label=label)
                for i, label in enumerate(("dense model asked", "human asked"))
            ],
        )
        return image_bytes(figure, "svg")
