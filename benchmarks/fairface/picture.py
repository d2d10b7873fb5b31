"""The study's picture: effects on the worst group and on everyone, and accuracy against latency."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.fairface.findings import Comparison, Findings
from benchmarks.fairface.page import attribution, title
from benchmarks.fairface.verdicts import counted, level, speed

# Okabe & Ito, "Color universal design": told apart with every kind of colour vision; shapes differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#222222", "#999999"


def draw(findings: Findings, path: Path) -> None:
    """Write the picture."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(12, 6.4), layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=[1.15, 1])
        effects, others = parts
        _effects(effects.subplots(), findings)
        under = others.subplots(2, 1, sharex=True)
        _latency(under[0], findings, by="loss")
        _latency(under[1], findings, by="method")
        under[1].set_xlabel("latency in ONNX Runtime, ms (median; logarithmic)")
        figure.suptitle(title(findings), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        notes = textwrap.fill(" ".join(attribution(findings)), 190)
        figure.supxlabel(notes, x=0.01, ha="left", fontsize=7, color=INK)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def _effects(axes: Any, findings: Findings) -> None:
    """Main effects: a dot for the worst group, a square for everyone; what is shown is filled."""
    rows: list[Comparison | str] = []
    for family, heading in (
        (findings.criteria[0], f"criteria, against {findings.reference}"),
        (findings.losses[0], f"losses, against {findings.plain}"),
    ):
        rows += [heading, *family.comparisons]
    labels = []
    for y, row in enumerate(rows):
        if isinstance(row, str):
            labels.append(row)
            continue
        labels.append(f"{row.name} ({counted(row.effects['worst'].seeds, 'seed')})")
        dots(axes, y, row, size=6.5)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), labels)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("change of accuracy, points, with 95 % intervals")
    axes.set_title("Main effects at equal MACs", loc="left", fontsize=10)
    name_dots(axes, findings.worst)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, frameon=False)


def dots(axes: Any, y: float, comparison: Comparison, *, size: float) -> None:
    """Both intervals of a comparison: a dot for the worst group, filled if a change is shown, a square for everyone."""
    shown = comparison.adjusted is not None and comparison.adjusted < 0.05 and comparison.effects["worst"].seeds > 1
    for measure, colour, marker, shift in (("worst", COLOURS[1], "o", -0.13), ("everyone", COLOURS[0], "s", 0.13)):
        found = comparison.effects[measure]
        face = colour if shown or measure == "everyone" else "white"
        axes.plot([100 * found.low, 100 * found.high], [y + shift] * 2, color=colour, linewidth=size / 4)
        axes.plot(100 * found.value, y + shift, marker, color=colour, markersize=size, mfc=face)


def name_dots(axes: Any, worst: str) -> None:
    """What the dots and squares stand for, to the legend."""
    axes.plot([], [], "o", color=COLOURS[1], label=f"worst group ({worst}); filled: shown")
    axes.plot([], [], "s", color=COLOURS[0], label="everyone")


def _latency(axes: Any, findings: Findings, *, by: str) -> None:
    """Accuracy of the worst group and of everyone against latency, for the losses or for the criteria."""
    study = findings.study
    config = study.config
    names = [loss.title for loss in config.finetune.losses] if by == "loss" else [m.title for m in config.prune.methods]
    dense = level(findings, "", "", 1.0)
    assert dense is not None  # read_study refuses a folder without one
    milliseconds = {m["name"]: m["p50_ms"]["value"] for m in study.cost["latency"]["models"]}["dense"]
    for number, name in enumerate(names):
        pair = (findings.reference, name) if by == "loss" else (name, findings.plain)
        points = [(speed(findings, q)[0], level(findings, *pair, q)) for q in config.prune.macs]
        found = [(ms, x) for ms, x in points if x is not None]
        if not found:
            continue
        for measure, style in (("worst", "-"), ("everyone", ":")):
            axes.plot(
                [milliseconds, *(ms for ms, _ in found)],
                [100 * dense.effects[measure].value, *(100 * x.effects[measure].value for _, x in found)],
                style,
                color=COLOURS[number],
                marker=MARKERS[number],
                markersize=5,
                linewidth=1.4,
                label=name if measure == "worst" else None,
            )
    axes.set_xscale("log")
    ticks = [milliseconds, *(speed(findings, q)[0] for q in config.prune.macs)]
    axes.set_xticks(ticks, [f"{t:.2f}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylabel("accuracy, %")
    under = f"losses, under {findings.reference}" if by == "loss" else f"criteria, under {findings.plain}"
    axes.set_title(f"{under}: worst group (solid), everyone (dotted)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
