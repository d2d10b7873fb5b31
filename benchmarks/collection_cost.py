"""What per-group statistics cost, against a plain Taylor pass over the same data.

One process, methods interleaved in rounds: our collection for 1, 2, 7, 14 and 32 groups; Torch-Pruning's plain
Taylor pass (the
loss's gradient accumulated in ``.grad``, as its examples do); and the straightforward loop (a forward and backward
per group
and batch, as FairGRAPE's reference code does). Every figure is a ratio to the plain pass. Memory is the growth of a
fresh
process's peak resident size, one process per method.

    python benchmarks/collection_cost.py [--samples 256] [--rounds 5] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.networks import NETWORKS
from fair_prune_plugins.gates import GatePlan, build_plan
from fair_prune_plugins.statistics import collect
from fair_prune_plugins.torch_pruning.heads import find_heads

GROUPS = (1, 2, 7, 14, 32)
BATCH = 32
PIXELS = 64

Batches = list[dict[str, torch.Tensor]]


def make_batches(samples: int, groups: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 3, PIXELS, PIXELS, generator=generator)
    targets = torch.randint(0, 10, (samples,), generator=generator)
    codes = torch.arange(samples) % groups
    return [
        {"inputs": images[i : i + BATCH], "targets": targets[i : i + BATCH], "group": codes[i : i + BATCH]}
        for i in range(0, samples, BATCH)
    ]


def per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def plain_taylor(model: nn.Module, batches: Batches) -> None:
    """The host's way: gradients of the mean loss, accumulated over batches."""
    model.zero_grad()
    for batch in batches:
        F.cross_entropy(model(batch["inputs"]), batch["targets"]).backward()


def loop_over_groups(model: nn.Module, batches: Batches, groups: int) -> None:
    """A forward and a backward pass per group and batch: the group's own samples count in the loss, all are
    computed.
    """
    for group in range(groups):
        model.zero_grad()
        for batch in batches:
            mine = (batch["group"] == group).float()
            (per_sample(model(batch["inputs"]), batch["targets"]) * mine).sum().backward()


def one_pass(plan: GatePlan, batches: Batches) -> None:
    collect(plan, batches, per_sample, groups="group", progress=False)


def plan_for(model: nn.Module) -> GatePlan:
    return build_plan(model, torch.randn(2, 3, PIXELS, PIXELS), num_heads=find_heads(model))


def measure(name: str, samples: int, rounds: int, loop_groups: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    started = time.perf_counter()
    plan = plan_for(model)
    plan_seconds = time.perf_counter() - started
    plain = make_batches(samples, 1)
    methods: dict[str, Callable[[], None]] = {"plain Taylor": partial(plain_taylor, model, plain)}
    for g in GROUPS:
        methods[f"one pass, {g} groups"] = partial(one_pass, plan, make_batches(samples, g))
    for g in loop_groups:
        methods[f"loop, {g} groups"] = partial(loop_over_groups, model, make_batches(samples, g), g)
    seconds: dict[str, list[float]] = {m: [] for m in methods}
    for turn in tqdm(range(rounds + 1), desc=name):
        for method, run in methods.items():
            if method.startswith("loop") and turn > 2:
                continue  # long and far from any threshold: two rounds after the warm-up do
            started = time.perf_counter()
            run()
            if turn:  # the first round warms up
                seconds[method].append(time.perf_counter() - started)
            model.zero_grad(set_to_none=True)
    base = seconds["plain Taylor"]
    rows = {}
    for method, times in seconds.items():
        ratios = [t / p for t, p in zip(times, base, strict=False)]
        rows[method] = {
            "ratio_of_minima": min(times) / min(base),
            "median_ratio": statistics.median(ratios),
            "ratios": ratios,
            "seconds": min(times),
        }
    return {"plan_seconds": plan_seconds, "time": rows, "memory": memory(name, samples)}


def memory(name: str, samples: int) -> dict[str, float]:
    """Peak growth in MiB of a fresh process per method, the smallest of three."""
    found = {}
    for method in ("plain", "one pass"):
        peaks = []
        for _ in range(3):
            command = [
                sys.executable,
                __file__,
                "--memory-of",
                method,
                "--network",
                name,
                "--samples",
                str(min(samples, 128)),
            ]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        found[method] = min(peaks)
    return {**found, "ratio": found["one pass"] / found["plain"]}


def memory_of(method: str, name: str, samples: int) -> float:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    batches = make_batches(samples, 7)
    plan = None
    if method == "one pass":
        plan = build_plan(model, torch.randn(2, 3, PIXELS, PIXELS), num_heads=find_heads(model), prove_groups=False)
    before = current_mebibytes()
    if plan is None:
        plain_taylor(model, batches)
    else:
        one_pass(plan, batches)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def current_mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def table(results: dict[str, dict[str, Any]], samples: int, rounds: int) -> str:
    lines = [
        f"Time relative to one plain Taylor pass (Torch-Pruning's) over the same {samples} images of {PIXELS} "
        f"pixels, batches of "
        f"{BATCH}, {torch.get_num_threads()} threads; median of {rounds} interleaved rounds (loops: 2).",
        "",
        "| | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    methods = list(next(iter(results.values()))["time"])
    for method in methods:
        cells = [f"{r['time'][method]['median_ratio']:.2f}x" for r in results.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append(
        "| peak memory, one pass | " + " | ".join(f"{r['memory']['ratio']:.2f}x" for r in results.values()) + " |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256, help="images per pass")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds after one warm-up")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    parser.add_argument(
        "--loop-groups", type=int, nargs="*", default=[2, 7], help="group counts of the straightforward loop"
    )
    parser.add_argument("--memory-of", choices=("plain", "one pass"), help=argparse.SUPPRESS)
    parser.add_argument("--network", choices=list(NETWORKS), help="only this network")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # that 8 people are too few to judge is true and beside the point here
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, arguments.network, arguments.samples))
        return
    names = [arguments.network] if arguments.network else list(NETWORKS)
    results = {n: measure(n, arguments.samples, arguments.rounds, tuple(arguments.loop_groups)) for n in names}
    text = table(results, arguments.samples, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "collection_cost.md").write_text(text + "\n")
    record = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "results": results}
    (arguments.out / "collection_cost.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
