"""The Pareto picture: latency against the accuracy of the worst group.

It returns the bytes of an SVG or PNG file and touches no global state of matplotlib. Colours are Okabe and
Ito's (safe for colour-blind readers), and every colour comes with a marker or a place of its own, so that none carries
meaning alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.reporting.drawing import (
    LOOKS,
    Format,
    Look,
    Theme,
    add_legend,
    arms,
    dress,
    image_bytes,
    new_figure,
    percent_tick,
    styled,
)
from fair_prune_plugins.reporting.estimates import Estimate


@dataclass(frozen=True)
class Point:
    """One model in the Pareto picture.

    Attributes:
        label: what to write beside it.
        method: criterion, ``None`` for the dense model.
        latency: milliseconds.
        accuracy: of the worst group, 0 to 1.
        on_front: whether no other model is faster and better.
    """

    label: str
    method: str | None
    latency: Estimate
    accuracy: Estimate
    on_front: bool


def pareto_plot(
    points: Sequence[Point],
    methods: Sequence[str],
    *,
    accuracy_title: str,
    latency_title: str = "p50 latency, milliseconds per call  (← faster)",
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Latency on x, accuracy of the worst group on y, each point a model with the intervals of both.

    Args:
        points: the models; those without a latency or an accuracy are left out.
        methods: every criterion of the run, in order: gives each its colour and marker.
        accuracy_title: the y axis, which names the group.
        latency_title: the x axis.
        format: ``"svg"`` or ``"png"``.
        theme: ``"light"`` or ``"dark"``.

    Returns:
        The file's bytes.

    Raises:
        InputError: no point has both numbers.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown = [p for p in points if p.latency.value is not None and p.accuracy.value is not None]
    if not shown:
        raise InputError("no model has both a latency and a worst-group accuracy to draw")
    look = LOOKS[theme]
    with styled(look):
        figure = new_figure(8.4, 5.0)
        axes = figure.add_subplot()
        front = sorted((p for p in shown if p.on_front), key=lambda p: p.latency.value or 0.0)
        line = None
        if len(front) > 1:
            # A staircase: between two models nothing was measured, so no straight line may promise something better.
            corners = [(p.latency.value, p.accuracy.value) for p in front]
            steps = [corners[0]]
            for before, after in itertools.pairwise(corners):
                steps += [(after[0], before[1]), after]
            (line,) = axes.plot(
                *zip(*steps, strict=True),
                color=look.muted,
                linewidth=1.6,
                linestyle=(0, (5, 3)),
                zorder=1,
            )
        for point in shown:
            colour, marker = dress(point.method, methods, look)
            axes.errorbar(
                [point.latency.value],
                [point.accuracy.value],
                xerr=arms(point.latency),
                yerr=arms(point.accuracy),
                fmt="none",
                ecolor=colour,
                elinewidth=1.3,
                alpha=0.55,
                capsize=2.5,
                zorder=2,
            )
            axes.plot(
                [point.latency.value],
                [point.accuracy.value],
                marker=marker,
                markersize=13 if point.method is None else 9.5,
                markerfacecolor=colour if point.on_front else look.paper,
                markeredgecolor=colour,
                markeredgewidth=1.8,
                linestyle="none",
                zorder=3,
            )
        axes.set_xlabel(latency_title)
        axes.set_ylabel(accuracy_title)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.margins(x=0.09, y=0.09)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.set_ylim(top=min(1.004, axes.get_ylim()[1]))

        handles = [_handle(Line2D, None, methods, look, "dense")]
        handles += [_handle(Line2D, m, methods, look, m) for m in methods if any(p.method == m for p in shown)]
        if len(front) > 1:
            handles.append(Line2D([], [], color=look.muted, linewidth=1.6, linestyle=(0, (5, 3)), label="Pareto front"))
        add_legend(figure, handles)
        _annotate(figure, axes, shown, methods, look, line)
        return image_bytes(figure, format)


def _handle(line: Any, method: str | None, methods: Sequence[str], look: Look, label: str) -> Any:
    colour, marker = dress(method, methods, look)
    return line(
        [], [], marker=marker, color=colour, linestyle="none", markersize=11 if method is None else 8, label=label
    )


def _annotate(
    figure: Any, axes: Any, points: Sequence[Point], methods: Sequence[str], look: Look, front: Any | None
) -> None:
    """Write each label at the nearest place where it covers no mark, no whisker and no other label."""
    from matplotlib.transforms import Bbox

    figure.canvas.draw()  # lays the axes out, so that places can be measured in pixels
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else figure._get_renderer()
    frame = axes.get_window_extent(renderer)
    pixel = figure.dpi / 72

    taken: list[Any] = []
    for p in points:
        taken += _obstacles(axes, p, pixel)
    for step in front.get_path().interpolated(24).vertices if front is not None else ():
        x, y = axes.transData.transform(step)
        taken.append(Bbox.from_bounds(x - pixel, y - pixel, 2 * pixel, 2 * pixel))
    for p in sorted(points, key=lambda p: (p.method is not None, p.latency.value, p.accuracy.value)):
        x, y = axes.transData.transform((p.latency.value, p.accuracy.value))
        colour, _ = dress(p.method, methods, look)
        text = axes.annotate(
            p.label, (p.latency.value, p.accuracy.value), (0, 0), textcoords="offset points", color=colour,
            ha="center", va="center", fontsize=9.5, fontweight="bold", zorder=4,
        )  # fmt: skip
        text.set_in_layout(False)  # labels go where there is room and must not move the axes again
        box = text.get_window_extent(renderer)
        best: tuple[float, tuple[float, float], Any] | None = None
        for distance in (10, 16, 24, 34, 46, 60):
            for angle in (45, 135, -45, -135, 0, 180, 20, 160, -20, -160, 70, 110, -70, -110):
                dx = math.cos(math.radians(angle)) * (distance * pixel + box.width / 2)
                dy = math.sin(math.radians(angle)) * (distance * pixel + box.height / 2)
                place = Bbox.from_bounds(x + dx - box.width / 2, y + dy - box.height / 2, box.width, box.height)
                outside = place.x0 < frame.x0 or place.x1 > frame.x1 or place.y0 < frame.y0 or place.y1 > frame.y1
                cost = distance + 1000 * outside + 100 * sum(place.overlaps(other) for other in taken)
                if best is None or cost < best[0]:
                    best = (cost, (dx / pixel, dy / pixel), place)
        assert best is not None
        text.set_position(best[1])
        taken.append(best[2])
        if math.hypot(*best[1]) > 40 + box.width / pixel / 2:
            axes.annotate(
                "", (p.latency.value, p.accuracy.value), best[1], textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.7}, zorder=2,
            )  # fmt: skip


def _obstacles(axes: Any, point: Point, pixel: float) -> list[Any]:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.latency.value, point.accuracy.value))
    mark = 7 * pixel
    boxes = [Bbox.from_bounds(x - mark, y - mark, 2 * mark, 2 * mark)]
    thin = 2 * pixel
    whiskers: Mapping[str, Estimate] = {"x": point.latency, "y": point.accuracy}
    for axis, estimate in whiskers.items():
        if estimate.low is None or estimate.high is None:
            continue
        if axis == "x":
            x0, x1 = (axes.transData.transform((v, point.accuracy.value))[0] for v in (estimate.low, estimate.high))
            boxes.append(Bbox.from_extents(x0, y - thin, x1, y + thin))
        else:
            y0, y1 = (axes.transData.transform((point.latency.value, v))[1] for v in (estimate.low, estimate.high))
            boxes.append(Bbox.from_extents(x - thin, y0, x + thin, y1))
    return boxes
