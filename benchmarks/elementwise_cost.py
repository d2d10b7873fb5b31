"""What FairGRAPE's own importance, weight by weight, costs against a plain Taylor pass over the same people.

One process, interleaved: for every number of groups and people per group, one round is Torch-Pruning's plain Taylor
pass (the loss's gradient accumulated in ``.grad``, as its examples do) and our element-wise collection over the same
batches, in which groups are mixed. Every figure is the median over rounds of the ratio of the two.

    python benchmarks/elementwise_cost.py [--rounds 7] [--people 18 36] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.collection_cost import BATCH, PIXELS, Batches, make_batches, per_sample, plain_taylor
from benchmarks.networks import NETWORKS
from fair_prune_plugins.gates import GatePlan, build_plan
from fair_prune_plugins.statistics import collect_elementwise

GROUPS = (2, 4, 7, 14)
NAMES = ("ResNet-18", "MobileNetV2")


def element_wise(plan: GatePlan, batches: Batches) -> None:
    collect_elementwise(plan, batches, per_sample, groups="group", progress=False)


def timed(run: Callable[[], None], model: nn.Module) -> float:
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def measure(name: str, people: tuple[int, ...], rounds: int) -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    plan = build_plan(model, torch.zeros(1, 3, PIXELS, PIXELS), prove_groups=False)
    pairs = {}
    for g in GROUPS:
        for n in people:
            batches = make_batches(g * n, g)
            pairs[f"{g} groups of {n}"] = partial(plain_taylor, model, batches), partial(element_wise, plan, batches)
    seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in pairs}
    for turn in tqdm(range(rounds + 1), desc=name):
        for label, (plain, ours) in pairs.items():
            if turn % 2:  # whoever comes second finds the caches warm
                of_ours, of_plain = timed(ours, model), timed(plain, model)
            else:
                of_plain, of_ours = timed(plain, model), timed(ours, model)
            if turn:  # the first round warms up
                seconds[label].append((of_plain, of_ours))
    return {label: summary(times) for label, times in seconds.items()}


def summary(times: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [ours / plain for plain, ours in times]
    least_plain, least_ours = (min(column) for column in zip(*times, strict=True))
    return {
        "median_ratio": statistics.median(ratios),
        "ratio_of_minima": least_ours / least_plain,
        "ratios": ratios,
        "seconds_plain": least_plain,
        "seconds": least_ours,
    }


def table(results: dict[str, dict[str, dict[str, Any]]], rounds: int) -> str:
    lines = [
        f"Time of the element-wise collection relative to one plain Taylor pass (Torch-Pruning's) over the same "
        f"people: images of {PIXELS} pixels, batches of {BATCH} with mixed groups, {torch.get_num_threads()} threads; "
        f"median of {rounds} interleaved rounds (smallest to largest).",
        "",
        "| | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for label in next(iter(results.values())):
        cells = []
        for of_network in results.values():
            row = of_network[label]
            cells.append(f"{row['median_ratio']:.2f}x ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds after one warm-up")
    parser.add_argument("--people", type=int, nargs="+", default=[18, 36], help="people per group")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # that 18 people are too few to judge is true and beside the point here
    results = {name: measure(name, tuple(arguments.people), arguments.rounds) for name in NAMES}
    text = table(results, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "elementwise_cost.md").write_text(text + "\n")
    record = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "results": results}
    (arguments.out / "elementwise_cost.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
