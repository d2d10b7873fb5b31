"""The pictures of the report: latency against worst-group accuracy, accuracy per group, change per group.

Each function returns the bytes of an SVG or PNG file and touches no global state of matplotlib. Colours are Okabe and
Ito's (safe for colour-blind readers), and every colour comes with a marker or a place of its own, so that none carries
meaning alone.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow.readings import Estimate

Format = Literal["svg", "png"]
Theme = Literal["light", "dark"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
PER_ROW = 3


@dataclass(frozen=True)
class _Look:
    ink: str
    muted: str
    grid: str
    paper: str
    dense: str
    methods: tuple[str, ...]


_LOOKS: dict[Theme, _Look] = {
    "light": _Look(
        ink="#1b2430",
        muted="#5b6675",
        grid="#e3e7ec",
        paper="#ffffff",
        dense="#1b2430",
        methods=("#0072b2", "#d55e00", "#009e73", "#b0568f", "#8a6d00", "#3a87ad", "#7a5230", "#5b6675"),
    ),
    "dark": _Look(
        ink="#e8ecf1",
        muted="#a3aebb",
        grid="#333d49",
        paper="#1a212a",
        dense="#e8ecf1",
        methods=("#56b4e9", "#f0803c", "#2fc79a", "#e08fc0", "#f0e442", "#8fd3f5", "#d0a070", "#a3aebb"),
    ),
}


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


@dataclass(frozen=True)
class Bar:
    """One group of people in one panel of the group pictures; accuracies and changes are shares, 0 to 1.

    Attributes:
        group: name.
        dense: accuracy of the dense model.
        pruned: accuracy of the pruned model.
        change: pruned minus dense, with the paired interval.
        too_small: too few people to judge.
    """

    group: str
    dense: Estimate
    pruned: Estimate
    change: Estimate
    too_small: bool = False


@dataclass(frozen=True)
class Panel:
    """One pruned model in the group pictures."""

    title: str
    method: str
    bars: Sequence[Bar]


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
    look = _LOOKS[theme]
    with _style(look):
        figure = _figure(8.4, 5.0)
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
            colour, marker = _dress(point.method, methods, look)
            axes.errorbar(
                [point.latency.value],
                [point.accuracy.value],
                xerr=_arms(point.latency),
                yerr=_arms(point.accuracy),
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
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.margins(x=0.09, y=0.09)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.set_ylim(top=min(1.004, axes.get_ylim()[1]))

        handles = [_handle(Line2D, None, methods, look, "dense")]
        handles += [_handle(Line2D, m, methods, look, m) for m in methods if any(p.method == m for p in shown)]
        if len(front) > 1:
            handles.append(Line2D([], [], color=look.muted, linewidth=1.6, linestyle=(0, (5, 3)), label="Pareto front"))
        _legend(figure, handles)
        _annotate(figure, axes, shown, methods, look, line)
        return _bytes(figure, format)


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

    look = _LOOKS[theme]
    with _style(look):
        figure, grid = _grid(panels, per_group=0.36)
        for axes, panel in zip(grid, panels, strict=False):
            colour, _ = _dress(panel.method, methods, look)
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
                        xerr=_arms(estimate),
                        fmt="none",
                        ecolor=look.ink,
                        elinewidth=1.2,
                        capsize=2,
                    )
            axes.set_xlim(0, 1.03)
            axes.set_xticks([0, 0.5, 1])
            axes.xaxis.set_major_formatter(FuncFormatter(_percent))
            axes.grid(axis="y", visible=False)
        labels = sorted({p.method for p in panels}, key=list(methods).index)
        handles = [Patch(color=look.muted, label="dense")]
        handles += [Patch(color=_dress(m, methods, look)[0], label=m) for m in labels]
        if any(bar.too_small for panel in panels for bar in panel.bars):
            handles.append(Patch(color=look.muted, alpha=0.45, label=f"* under {minimum} people: too small to judge"))
        _legend(figure, handles)
        return _bytes(figure, format)


def change_plot(
    panels: Sequence[Panel],
    methods: Sequence[str],
    *,
    minimum: int,
    format: Format = "svg",
    theme: Theme = "light",
) -> bytes:
    """Change of accuracy from the dense model per group, in points, with paired intervals around a zero line.

    A filled mark is a difference that the interval shows; a hollow one is a difference not shown.

    Args:
        panels: the pruned models, in reading order.
        methods: every criterion of the run, in order: gives each its colour and marker.
        minimum: groups with fewer people are marked as too small.
        format: ``"svg"`` or ``"png"``.
        theme: ``"light"`` or ``"dark"``.

    Returns:
        The file's bytes.

    Raises:
        InputError: no panel, or a panel without a group.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    look = _LOOKS[theme]
    with _style(look):
        figure, grid = _grid(panels, per_group=0.27)
        reach = _reach(panels)
        for axes, panel in zip(grid, panels, strict=False):
            colour, marker = _dress(panel.method, methods, look)
            axes.axvline(0, color=look.ink, linewidth=1.2, zorder=1)
            for row, bar in enumerate(panel.bars):
                if bar.change.value is None:
                    continue
                alpha = 0.45 if bar.too_small else 1.0
                axes.errorbar(
                    [bar.change.value],
                    [row],
                    xerr=_arms(bar.change),
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
                    markerfacecolor=colour if bar.change.excludes_zero else look.paper,
                    markeredgecolor=colour,
                    markeredgewidth=1.6,
                    linestyle="none",
                    alpha=alpha,
                    zorder=3,
                )
            axes.set_xlim(*reach)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_points))
        marks = (("difference shown", look.muted), ("no difference shown (interval includes zero)", look.paper))
        handles: list[Any] = [
            Line2D(
                [], [], marker="o", linestyle="none", markersize=7, color=look.muted, markerfacecolor=fill,
                markeredgewidth=1.6, label=text,
            )
            for text, fill in marks
        ]  # fmt: skip
        if any(bar.too_small for panel in panels for bar in panel.bars):
            handles.append(Line2D([], [], linestyle="none", label=f"* under {minimum} people: too small to judge"))
        _legend(figure, handles)
        return _bytes(figure, format)


@contextlib.contextmanager
def _style(look: _Look) -> Iterator[None]:
    import matplotlib

    rules = matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the picture is the same everywhere
            "font.size": 10,
            "text.parse_math": False,  # names come from data: a dollar is a dollar
            "svg.fonttype": "path",
            "svg.hashsalt": "fair-prune",  # the same numbers give the same bytes
            "figure.facecolor": look.paper,
            "savefig.facecolor": look.paper,
            "axes.facecolor": look.paper,
            "axes.edgecolor": look.muted,
            "axes.labelcolor": look.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": look.grid,
            "grid.linewidth": 0.8,
            "text.color": look.ink,
            "xtick.color": look.muted,
            "ytick.color": look.muted,
            "xtick.labelcolor": look.ink,
            "ytick.labelcolor": look.ink,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
        }
    )
    with rules, warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; alternative texts and tables have it in letters.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def _figure(width: float, height: float) -> Any:
    # Figure() instead of pyplot: no window, no backend choice, nothing left open when an exception passes.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(panels: Sequence[Panel], per_group: float) -> tuple[Any, list[Any]]:
    """Panels in rows; the groups' names stand at the left of each row only."""
    if not panels or not all(p.bars for p in panels):
        raise InputError("there is no pruned model with per-group numbers to draw")
    columns = min(len(panels), PER_ROW)
    rows = math.ceil(len(panels) / columns)
    groups = [b.group for b in panels[0].bars]
    height = rows * (0.75 + per_group * max(2, len(groups))) + 0.5
    figure = _figure(9.6, height)
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


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    letters = [len(handle.get_label()) + 6 for handle in handles]
    room = 12 * figure.get_figwidth()
    # Columns are as wide as their longest label: beside one another only as far as the longest of all fits.
    columns = len(handles) if sum(letters) <= room else min(3, max(int(room // max(letters)), 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)


def _handle(line: Any, method: str | None, methods: Sequence[str], look: _Look, label: str) -> Any:
    colour, marker = _dress(method, methods, look)
    return line(
        [], [], marker=marker, color=colour, linestyle="none", markersize=11 if method is None else 8, label=label
    )


def _dress(method: str | None, methods: Sequence[str], look: _Look) -> tuple[str, str]:
    if method is None:
        return look.dense, "*"
    place = list(methods).index(method)
    return look.methods[place % len(look.methods)], MARKERS[place % len(MARKERS)]


def _arms(estimate: Estimate) -> list[list[float]] | None:
    """Error bar lengths; a percentile interval need not contain its estimate, and an arm cannot be negative."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _percent(value: float, _position: int = 0) -> str:
    text = f"{100 * value:.1f}".rstrip("0").rstrip(".")
    return f"{text} %"


def _points(value: float, _position: int = 0) -> str:
    text = f"{100 * value:+.1f}".removesuffix(".0").replace("-", "−")
    return "0" if text in ("+0", "−0") else text


def _annotate(
    figure: Any, axes: Any, points: Sequence[Point], methods: Sequence[str], look: _Look, front: Any | None
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
        colour, _ = _dress(p.method, methods, look)
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


def _bytes(figure: Any, format: Format) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    figure.savefig(out, format=format, dpi=160 if format == "png" else 72, metadata=metadata)
    return out.getvalue()
