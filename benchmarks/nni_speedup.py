"""Masks made structure: ours beside NNI's own ``ModelSpeedup``, which needs a symbolic trace on today's torch.

Torchvision networks at 224 pixels, freshly initialised (BatchNorm randomised). NNI's ``L1NormPruner`` masks half of the
output channels of every convolution, coupled ones alike; the same masks go to both, on copies of the same model, one
after the other in one process. Times are CPU times of constructor and ``speedup_model()`` together, on one thread, ours
with its comparison of the smaller and the masked model, NNI's without its trace. Widths of all layers are compared.

    python benchmarks/nni_speedup.py [--networks ...] [--rounds 3] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.networks import declare_torchvision_operators

declare_torchvision_operators()
from benchmarks.realised_speedup import network  # noqa: E402
from fair_prune_plugins.latency.machine import describe_machine  # noqa: E402
from fair_prune_plugins.nni.speedup import ModelSpeedup  # noqa: E402

PIXELS = 224
NETWORKS = {
    "ResNet-18": "resnet18",
    "ResNet-50": "resnet50",
    "MobileNetV2": "mobilenet_v2",
    "DenseNet-121": "densenet121",
    "RegNetY-400MF": "regnet_y_400mf",
    "EfficientNet-B0": "efficientnet_b0",
}
LEAST, MOSTLY = 15, 50
"""How many times faster on every network, and on most."""


def masked(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network and NNI's masks of half of it, coupled convolutions alike by NNI's own analysis."""
    from nni.compression.pruning import L1NormPruner
    from nni.compression.speedup.dependency import auto_set_denpendency_group_ids

    model = network(name)
    graph_module = torch.fx.symbolic_trace(model)
    ShapeProp(graph_module).propagate(torch.randn(1, 3, PIXELS, PIXELS))
    config = auto_set_denpendency_group_ids(graph_module, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    pruner = L1NormPruner(model, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return model, dict(masks)


def host(model: nn.Module, masks: dict[str, Any], inputs: torch.Tensor) -> Callable[[], nn.Module]:
    """NNI's own, given the trace that its tracer cannot make any more."""
    from nni.compression.speedup import ModelSpeedup as Host

    graph_module = torch.fx.symbolic_trace(model)

    def run() -> nn.Module:
        with contextlib.redirect_stdout(io.StringIO()):
            result: nn.Module = Host(model, inputs, masks, graph_module=graph_module).speedup_model()
        return result

    return run


def ours(model: nn.Module, masks: dict[str, Any], inputs: torch.Tensor) -> Callable[[], nn.Module]:
    return lambda: ModelSpeedup(model, inputs, masks).speedup_model()


ARMS = {"NNI": host, "ours": ours}


def widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of every round, and whether the results are equally wide."""
    model, masks = masked(NETWORKS[name])
    inputs = torch.randn(1, 3, PIXELS, PIXELS)
    ours(copy.deepcopy(model), copy.deepcopy(masks), inputs)()  # what torch sets up on first use belongs to nobody
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    error = ""
    for _ in tqdm(range(rounds), desc=name):
        for arm, prepare in ARMS.items():
            run = prepare(copy.deepcopy(model), copy.deepcopy(masks), inputs)
            start = time.process_time()
            try:
                shapes[arm] = widths(run())
            except Exception as failure:
                error = f"{arm}: {type(failure).__name__}: {failure}"
                continue
            seconds[arm].append(time.process_time() - start)
    same = {arm: sum(shapes[arm][n] == shapes["NNI"][n] for n in shapes["NNI"]) for arm in shapes if "NNI" in shapes}
    return {
        "seconds": seconds,
        "layers": len(widths(model)),
        "same_widths": same.get("ours"),
        "parameters": {
            "dense": sum(p.numel() for p in model.parameters()),
            **{arm: sum(torch.Size(s).numel() for s in found.values()) for arm, found in shapes.items()},
        },
        "error": error,
    }


def table(found: dict[str, dict[str, Any]], rounds: int) -> str:
    lines = [
        f"Half of the output channels of every convolution masked by NNI's `L1NormPruner`, {PIXELS} pixels, batch 1, "
        f"1 thread, CPU time, medians of {rounds} rounds. {describe_machine().statement()}.",
        "",
        "| network | NNI, s | ours, s | times faster | layers of the same width |",
        "|---|---|---|---|---|",
    ]
    factors = []
    for name, result in found.items():
        medians = {arm: statistics.median(s) for arm, s in result["seconds"].items() if s}
        if len(medians) < len(ARMS):
            lines.append(f"| {name} | {result['error']} | | | |")
            continue
        factors.append(medians["NNI"] / medians["ours"])
        widths_text = f"{result['same_widths']} of {result['layers']}"
        lines.append(f"| {name} | {medians['NNI']:.2f} | {medians['ours']:.3f} | {factors[-1]:.0f} | {widths_text} |")
    slow = sum(f < LEAST for f in factors)
    lines += [
        "",
        f"- at least {LEAST} times faster on every network: " + ("yes" if not slow else f"MISSED on {slow}"),
        f"- {MOSTLY} times on most: {sum(f >= MOSTLY for f in factors)} of {len(factors)}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), help="which ones")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, both arms in each")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = {name: measure(name, arguments.rounds) for name in arguments.networks}
    text = table(found, arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "nni_speedup.md").write_text(text + "\n")
    (arguments.out / "nni_speedup.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
