"""Pictures of groups: accuracy per group, and what changed from the dense model, a panel per pruned model.

Every colour comes with a marker or a place of its own, so that none carries meaning alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.reporting.drawing import (
    LOOKS,
    Format,
    Theme,
    add_legend,
    arms,
    dress,
    image_bytes,
    new_figure,
    percent_tick,
    points_tick,
    styled,
)
from fair_prune_plugins.reporting.estimates import Estimate

PER_ROW = 3


@dataclass(frozen=True)
class Bar:
    """One group of people in one panel of the group pictures; accuracies and changes are shares, 0 to 1.

    Attributes:
        group: name.
        dense: accuracy of the dense model.
        pruned: accuracy of the pruned model.
        change: pruned minus dense, with the paired interval.
        too_small: too few people to judge.
        shown: whether the change is called a difference; by its interval where not given.
    """

    group: str
    dense: Estimate
    pruned: Estimate
    change: Estimate
    too_small: bool = False
    shown: bool | None = None

    @property
    def filled(self) -> bool:
        """Whether the change is called a difference."""
        return self.change.excludes_zero if self.shown is None else self.shown


@dataclass(frozen=True)
class Panel:
    """One pruned model in the group pictures."""

    title: str
    method: str
    bars: Sequence[Bar]


def group_bars(
    panels: Sequence[Panel],
    methods: Sequence[str],
    *,
    minimum: int,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Accuracy per group, dense and pruned side by side, one panel per pruned model; bars start at zero.

    Args:
        panels: the pruned models, in reading order.
        methods: every criterion of the run, in order: gives each its colour.
        minimum: groups with fewer people are marked as too small.
        format: ``"svg"`` or ``"png"``.
        theme: ``"light"`` or ``"dark"``.

    Returns:
        The file's bytes.

    Raises:
        InputError: no panel, or a panel without a group.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    look = LOOKS[theme]
    with styled(look):
        figure, grid = _grid(panels, per_group=0.36)
        for axes, panel in zip(grid, panels, strict=False):
            colour, _ = dress(panel.method, methods, look)
            for row, bar in enumerate(panel.bars):
                for offset, estimate, paint in ((-0.19, bar.dense, look.muted), (0.19, bar.pruned, colour)):
                    if estimate.value is None:
                        continue
                    axes.barh(
                        row + offset, estimate.value, height=0.34, color=paint, alpha=0.45 if bar.too_small else 0.92
                    )
                    axes.errorbar(
                        [estimate.value],
                        [row + offset],
                        xerr=arms(estimate),
                        fmt="none",
                        ecolor=look.ink,
                        elinewidth=1.2,
                        capsize=2,
                    )
            axes.set_xlim(0, 1.03)
            axes.set_xticks([0, 0.5, 1])
            axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
            axes.grid(axis="y", visible=False)
        labels = sorted({p.method for p in panels}, key=list(methods).index)
        handles = [Patch(color=look.muted, label="dense")]
        handles += [Patch(color=dress(m, methods, look)[0], label=m) for m in labels]
        if any(bar.too_small for panel in panels for bar in panel.bars):
            handles.append(Patch(color=look.muted, alpha=0.45, label=f"* under {minimum} people: too small to judge"))
        add_legend(figure, handles)
        return image_bytes(figure, format)


def change_plot(
    panels: Sequence[Panel],
    methods: Sequence[str],
    *,
    minimum: int,
    rule: str = "interval includes zero",
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Change of accuracy from the dense model per group, in points, with paired intervals around a zero line.

    A filled mark is a difference that is shown; a hollow one is a difference not shown.

    Args:
        panels: the pruned models, in reading order.
        methods: every criterion of the run, in order: gives each its colour and marker.
        minimum: groups with fewer people are marked as too small.
        rule: why a difference is not called shown, for the legend.
        format: ``"svg"`` or ``"png"``.
        theme: ``"light"`` or ``"dark"``.

    Returns:
        The file's bytes.

    Raises:
        InputError: no panel, or a panel without a group.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    look = LOOKS[theme]
    with styled(look):
        figure, grid = _grid(panels, per_group=0.27)
        reach = _reach(panels)
        for axes, panel in zip(grid, panels, strict=False):
            colour, marker = dress(panel.method, methods, look)
            axes.axvline(0, color=look.ink, linewidth=1.2, zorder=1)
            for row, bar in enumerate(panel.bars):
                if bar.change.value is None:
                    continue
                alpha = 0.45 if bar.too_small else 1.0
                axes.errorbar(
                    [bar.change.value],
                    [row],
                    xerr=arms(bar.change),
                    fmt="none",
                    ecolor=colour,
                    elinewidth=1.6,
                    capsize=2.5,
                    alpha=alpha,
                    zorder=2,
                )
                axes.plot(
                    [bar.change.value],
                    [row],
                    marker=marker,
                    markersize=7,
                    markerfacecolor=colour if bar.filled else look.paper,
                    markeredgecolor=colour,
                    markeredgewidth=1.6,
                    linestyle="none",
                    alpha=alpha,
                    zorder=3,
                )
            axes.set_xlim(*reach)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(points_tick))
        marks = (("difference shown", look.muted), (f"no difference shown ({rule})", look.paper))
        handles: list[Any] = [
            Line2D(
                [], [], marker="o", linestyle="none", markersize=7, color=look.muted, markerfacecolor=fill,
                markeredgewidth=1.6, label=text,
            )
            for text, fill in marks
        ]  # fmt: skip
        if any(bar.too_small for panel in panels for bar in panel.bars):
            handles.append(Line2D([], [], linestyle="none", label=f"* under {minimum} people: too small to judge"))
        add_legend(figure, handles)
        return image_bytes(figure, format)


def _grid(panels: Sequence[Panel], per_group: float) -> tuple[Any, list[Any]]:
    """Panels in rows; the groups' names stand at the left of each row only."""
    if not panels or not all(p.bars for p in panels):
        raise InputError("there is no pruned model with per-group numbers to draw")
    columns = min(len(panels), PER_ROW)
    rows = math.ceil(len(panels) / columns)
    groups = [b.group for b in panels[0].bars]
    height = rows * (0.75 + per_group * max(2, len(groups))) + 0.5
    figure = new_figure(9.6, height)
    figure.get_layout_engine().set(wspace=0.05, hspace=0.05)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    flat = list(grid.flat)
    names = [textwrap.fill(b.group + (" *" if b.too_small else ""), 26) for b in panels[0].bars]
    for axes, panel in zip(flat, panels, strict=False):
        if [b.group for b in panel.bars] != groups:
            raise InputError(f"{panel.title!r} has other groups than {panels[0].title!r}")
        axes.set_title(panel.title, fontsize=10.5, loc="left", fontweight="bold")
        axes.set_yticks(range(len(names)), names)
    flat[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    return figure, flat


def _reach(panels: Sequence[Panel]) -> tuple[float, float]:
    """One scale for all panels, made for groups that can be judged: tiny groups' whiskers would dwarf the others."""
    bars = [b for p in panels for b in p.bars]
    ends = [0.0, *(b.change.value for b in bars if b.change.value is not None)]
    for bar in [b for b in bars if not b.too_small] or bars:
        ends += [e for e in (bar.change.low, bar.change.high) if e is not None]
    pad = 0.06 * ((max(ends) - min(ends)) or 0.01)
    return min(ends) - pad, max(ends) + pad
