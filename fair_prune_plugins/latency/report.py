"""What was measured, in a form that is kept: dataclasses, JSON, CSV, words."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fair_prune_plugins.latency.intervals import Estimate
from fair_prune_plugins.latency.layout import Layout
from fair_prune_plugins.latency.machine import Machine

NOISY = 0.05
"""Rounds whose medians vary more than this (standard deviation over mean) are called noisy."""

PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}


@dataclass(frozen=True)
class ModelLatency:
    """One model's latency; times are milliseconds per call of one batch.

    Attributes:
        name: as given.
        size: of the file in bytes (files of external weights included).
        iterations: timed calls, over all rounds.
        seconds: time they took in all.
        p50_ms: median, with its interval.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; with under 100 iterations close to the slowest call.
        min_ms: fastest call.
        mean_ms: average.
        rounds_p50_ms: median of each round, in order.
        dispersion: standard deviation of the rounds' medians over their mean; ``None`` with one round.
        layout: convolutions in the runtime's fast layout; ``None`` on other providers than the CPU.
        macs: multiply-accumulates of one sample, where given.
        speedup: the reference's p50 over this one's, from paired rounds; ``None`` for the reference itself.
        theoretical: the reference's MACs over this one's, where both are given.
        realised_share: ``speedup / theoretical``.
    """

    name: str
    size: int
    iterations: int
    seconds: float
    p50_ms: Estimate
    p90_ms: Estimate
    p99_ms: Estimate
    min_ms: float
    mean_ms: float
    rounds_p50_ms: tuple[float, ...]
    dispersion: float | None
    layout: Layout | None
    macs: float | None
    speedup: Estimate | None
    theoretical: float | None
    realised_share: float | None

    @property
    def fast_share(self) -> float | None:
        """Share of the convolutions in the fast layout; ``None`` where there is none or it does not apply."""
        return None if self.layout is None else self.layout.share


@dataclass(frozen=True)
class LatencyReport:
    """Latency of several models, measured side by side.

    Attributes:
        models: in the order given.
        reference: the model that others are compared with.
        settings: how it was measured.
        machine: on what.
        notes: what a reader should know, in sentences.
    """

    models: tuple[ModelLatency, ...]
    reference: str
    settings: dict[str, Any]
    machine: Machine
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> ModelLatency:
        return next(model for model in self.models if model.name == name)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        models = [{**asdict(model), "fast_share": model.fast_share} for model in self.models]
        return {**asdict(self), "models": models}

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per model, as in the CSV file; what is undefined is ``None``."""
        return [_row(model, self) for model in self.models]

    def write_json(self, path: str | Path) -> None:
        """Write everything, machine and settings included."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def write_csv(self, path: str | Path) -> None:
        """Write one row per model; an undefined number is an empty cell."""
        rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def statement(self) -> str:
        """The result in words, a line per model."""
        lines = [self.machine.statement() + f", {self.settings['threads']} thread(s)."]
        for model in self.models:
            text = f"{model.name}: {_span(model.p50_ms)} ms"
            if model.speedup is not None:
                text += f", {_span(model.speedup)} times as fast as {self.reference}"
            if model.realised_share is not None:
                text += f" ({model.realised_share:.0%} of what its {model.theoretical:.2f}x fewer MACs promise)"
            if model.layout is not None and model.layout.total:
                text += f", {model.layout.fast} of {model.layout.total} convolutions in the fast layout"
            lines.append(text + ".")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])


def _row(model: ModelLatency, report: LatencyReport) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model.name, "size_bytes": model.size, "iterations": model.iterations}
    estimates = {**{name: getattr(model, name) for name in PERCENTILES}, "speedup": model.speedup}
    for name, estimate in estimates.items():
        row[name] = None if estimate is None else estimate.value
        row[f"{name}_low"] = None if estimate is None else estimate.low
        row[f"{name}_high"] = None if estimate is None else estimate.high
    row |= {
        "min_ms": model.min_ms,
        "mean_ms": model.mean_ms,
        "dispersion": model.dispersion,
        "reference": report.reference,
        "macs": model.macs,
        "theoretical": model.theoretical,
        "realised_share": model.realised_share,
        "convs_fast": None if model.layout is None else model.layout.fast,
        "convs": None if model.layout is None else model.layout.total,
        "threads": report.settings["threads"],
        "batch_size": report.settings["batch_size"],
        "provider": report.settings["provider"],
        "cpu": report.machine.cpu,
    }
    return row


def _span(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
