"""Runs to report on: made-up people, true statistics of them, hand-made timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fair_prune_plugins.evaluation import evaluate
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow.results import Data, ModelResult, RunResults, Task, Width

DIGIT_GROUPS = {"bold strokes": 170, "regular strokes": 168, "thin strokes": 159}
RACES = ("Black", "East Asian", "Indian", "Latino Hispanic", "Middle Eastern", "Southeast Asian", "White")
FACE_GROUPS = {f"{race} x {gender}": 40 + 37 * i for i, race in enumerate(RACES) for gender in ("Female", "Male")}
FACE_GROUPS["Southeast Asian x Male"] = 17

SUMMARIES = {
    "taylor": ("first-order Taylor: mean absolute effect of closing a channel's gate", "Molchanov et al., CVPR 2019"),
    "group-balanced taylor": ("Taylor, every group of people counting the same whatever its size", "this package"),
    "fairgrape": ("keeps each group's share of importance as it was in the dense model", "Lin, Kim, Joo, ECCV 2022"),
}


def interval(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def latency(p50: float, dense: float, macs: float, dense_macs: float, noise: float = 0.015) -> dict[str, Any]:
    is_dense = p50 == dense
    speedup, theoretical = dense / p50, dense_macs / macs
    return {
        "p50_ms": interval(p50, noise * p50),
        "p90_ms": interval(1.08 * p50, 2 * noise * p50),
        "p99_ms": interval(1.3 * p50, 6 * noise * p50),
        "speedup": None if is_dense else interval(speedup, noise * speedup),
        "theoretical": None if is_dense else theoretical,
        "realised_share": None if is_dense else speedup / theoretical,
        "fast_share": 1.0 if is_dense else 0.86,
        "dispersion": noise,
    }


def parity(n: int, differ: int = 0) -> dict[str, Any]:
    return {
        "relative": 3.1e-7,
        "classes": {"output": "logits", "overall": {"name": "everyone", "count": n, "differ": differ}, "groups": []},
        "batch_sizes": [1, 2, 7, 32],
        "samples": n,
        "tolerance": 1e-4,
        "notes": [],
    }


def logits(predicted: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any]:
    return np.eye(classes)[predicted]


def spoil(
    truth: np.ndarray[Any, Any],
    predicted: np.ndarray[Any, Any],
    codes: np.ndarray[Any, Any],
    rates: Sequence[float],
    classes: int,
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """Turn a share of each group's right predictions wrong, and a fifth of that share the other way."""
    out = predicted.copy()
    for code, rate in enumerate(rates):
        rows = np.flatnonzero(codes == code)
        right, wrong = rows[predicted[rows] == truth[rows]], rows[predicted[rows] != truth[rows]]
        lost = rng.choice(right, round(rate * len(rows)), replace=False)
        out[lost] = (truth[lost] + 1) % classes
        won = rng.choice(wrong, min(len(wrong), round(rate * len(rows) / 5)), replace=False)
        out[won] = truth[won]
    return out


def make_run(
    counts: Mapping[str, int] = DIGIT_GROUPS,
    *,
    classes: int = 10,
    unknown: int = 0,
    methods: Sequence[str] = ("taylor", "group-balanced taylor", "fairgrape"),
    ratios: Sequence[float] = (0.3, 0.5),
    worst: str | None = None,
    against: bool = True,
    attribute: str = "stroke weight",
    target: str = "digit",
    name: str = "digits quickstart",
    attribution: Sequence[str] = (),
    seed: int = 0,
) -> RunResults:
    rng = np.random.default_rng(seed)
    names = tuple(counts)
    codes = np.concatenate([np.repeat(np.arange(len(names)), list(counts.values())), np.full(unknown, -1)])
    groups = GroupLabels(names, codes, attribute)
    n = len(codes)
    worst = worst or names[-1]
    truth = rng.integers(0, classes, n)
    dense = spoil(
        truth, truth.copy(), codes, [0.03 + 0.05 * (g == worst) + 0.02 * rng.random() for g in names], classes, rng
    )
    fixed: dict[str, Any] = {"worst_group": worst, "resamples": 400, "seed": 1}

    models = [
        ModelResult(
            name="dense",
            macs=4_180_000,
            params=78_042,
            file_bytes=318_000,
            evaluation=evaluate(truth, logits(dense, classes), groups, **fixed).as_dict(),
            latency=latency(0.412, 0.412, 1, 1),
            parity=parity(n),
        )
    ]
    for ratio in ratios:
        plain = None
        for place, method in enumerate(methods):
            unfair = 0.09 * ratio / (1 + place)
            rates = [0.06 * ratio + unfair * (g == worst) + 0.02 * rng.random() * ratio for g in names]
            predicted = spoil(truth, dense, codes, rates, classes, rng)
            scores = logits(predicted, classes)
            macs = 4_180_000 * (1 - ratio) ** 2 * (1 + 0.02 * place)
            p50 = 0.412 * (0.15 + 0.85 * (1 - ratio) ** 1.6) * (1 + 0.03 * rng.random())
            evaluation = evaluate(truth, scores, groups, dense_logits=logits(dense, classes), **fixed).as_dict()
            compared = {}
            if plain is not None and against:
                compared[plain[0]] = evaluate(truth, scores, groups, dense_logits=plain[1], **fixed).as_dict()
            plain = plain or (f"{method} {ratio:.0%}", scores)
            summary, source = SUMMARIES.get(method, ("made up", ""))
            models.append(
                ModelResult(
                    name=f"{method} {ratio:.0%}",
                    method=method,
                    summary=summary,
                    source=source,
                    pruning_ratio=ratio,
                    asked=f"{100 * ratio:.0f} %",
                    macs=round(macs),
                    params=round(78_042 * (1 - ratio) ** 1.9),
                    file_bytes=round(318_000 * (1 - ratio) ** 1.9),
                    evaluation=evaluation,
                    against=compared,
                    latency=latency(p50, 0.412, macs, 4_180_000),
                    parity=parity(n, differ=int(place == 2)),
                    widths=[
                        Width(layer="stem.conv", asked=round(16 * (1 - ratio)), kept=round(16 * (1 - ratio)), total=16),
                        Width(layer="blocks.0.conv1", asked=22, kept=24, total=32, note="rounded up to 8s"),
                    ],
                    seconds={"collect": 1.31, "prune": 0.22, "finetune": 9.4},
                    notes=[],
                )
            )
    return RunResults(
        name=name,
        created="2025-03-04T10:20:30",
        seed=7,
        task=Task(
            target=target,
            classes=[str(i) for i in range(classes)],
            attribute=attribute,
            groups=list(names),
            statement=groups.statement(),
            description="Which digit is it? Groups by how heavy the pen stroke is, cut at thirds of the training data.",
        ),
        data=Data(
            name="handwritten digits",
            attribution=list(attribution),
            sizes={"train": 1000, "validation": 300, "test": n},
            notes=["Shown to the net at 32x32."],
        ),
        machine={
            "cpu": "Example CPU @ 2.50GHz",
            "architecture": "x86_64",
            "flags": ["avx2", "avx512f", "fma"],
            "cores": 2,
            "usable_cores": 2,
            "load": 0.4,
            "system": "Linux 6.1",
            "python": "3.11.9",
            "packages": {"onnxruntime": "1.20.0", "torch": "2.5.0"},
            "providers": ["CPUExecutionProvider"],
        },
        timing={
            "reference": "dense",
            "settings": {
                "threads": 1,
                "batch_size": 1,
                "warmup": 10,
                "min_iterations": 10,
                "min_seconds": 1.0,
                "rounds": 10,
                "seed": 0,
                "provider": "CPUExecutionProvider",
                "confidence": 0.95,
                "inputs": "given",
            },
            "notes": ["under 100 calls of dense: p99 is about the slowest call seen"],
        },
        models=models,
        versions={"fair-prune-plugins": "0.1.0", "torch": "2.5.0", "torch-pruning": "1.6.1"},
    )


def face_run() -> RunResults:
    return make_run(
        FACE_GROUPS,
        classes=2,
        unknown=23,
        worst="Black x Female",
        attribute="race x gender",
        target="gender",
        name="faces, first run",
        attribution=["Face data: Example authors, CC BY 4.0; images were scaled to 64x64."],
        seed=3,
    )
