"""The comparison's picture: each method against plain Taylor, and accuracy of the worst group against latency."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.fairface.picture import COLOURS, FAINT, INK, MARKERS, dots, name_dots
from benchmarks.fairface.results import Cell
from benchmarks.methods.findings import MethodsFindings
from benchmarks.methods.page import title
from benchmarks.methods.verdicts import level


def draw(findings: MethodsFindings, path: Path) -> None:
    """Write the picture."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        rows = len(findings.main.comparisons) + len(findings.combined.comparisons)
        figure = plt.figure(figsize=(12, max(5.0, 2.2 + 0.26 * rows)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        _effects(left, findings)
        _latency(right, findings)
        figure.suptitle(title(findings), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        notes = textwrap.fill(" ".join(findings.methods_study.study.config.data.attribution), 190)
        figure.supxlabel(notes, x=0.01, ha="left", fontsize=7, color=INK)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)


def _effects(axes: Any, findings: MethodsFindings) -> None:
    """A dot for the worst group, a square for everyone; what is shown for the worst group is filled."""
    labels = []
    y = 0
    for family in (findings.main, findings.combined):
        for c in sorted(family.comparisons, key=lambda c: -c.effects["worst"].value):
            dots(axes, y, c, size=5)
            labels.append((y, c.name))
            y += 1
        if family is findings.main:
            axes.axhline(y - 0.5, color=FAINT, linewidth=0.6)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_yticks([place for place, _ in labels], [name for _, name in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_xlabel("change of accuracy, points, with 95 % intervals")
    axes.set_title(
        f"Against {findings.reference} + {findings.plain}, at equal MACs and training", loc="left", fontsize=10, pad=24
    )
    name_dots(axes, findings.worst)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)


def _latency(axes: Any, findings: MethodsFindings) -> None:
    """Every method under the plain loss: colours tell the MACs, names the reference and the two ends."""
    read = findings.methods_study
    dense_ms = {m["name"]: m["p50_ms"]["value"] for m in read.study.cost["latency"]["models"]}["dense"]
    ticks = [dense_ms]
    for number, share in enumerate(read.study.config.prune.macs):
        points = []
        for method in read.study.config.prune.methods:
            cell = Cell(method.title, findings.plain, share)
            found = level(findings, cell)
            if found is not None:
                points.append((dense_ms / read.costs[cell].speedup, 100 * found.effects["worst"].value, method.title))
        if not points:
            continue
        ticks.append(next((x for x, _, name in points if name == findings.reference), points[0][0]))
        number %= len(COLOURS)
        axes.plot(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            MARKERS[number],
            color=COLOURS[number],
            mfc="none",
            label=f"{100 * share:g} % of the MACs",
        )
        ends = {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])}
        for x, y, name in {*ends, *(p for p in points if p[2] == findings.reference)}:
            axes.annotate(name, (x, y), xytext=(5, 0), textcoords="offset points", fontsize=7, va="center")
    dense = level(findings, Cell())
    assert dense is not None  # read_study refuses a folder without one
    axes.plot(dense_ms, 100 * dense.effects["worst"].value, "*", color=INK, markersize=9, label="dense")
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("latency in ONNX Runtime, ms (median; logarithmic)")
    axes.set_ylabel(f"accuracy of {findings.worst}, %")
    axes.set_title(f"Methods under {findings.plain}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
