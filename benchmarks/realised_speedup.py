"""What a third of the MACs is worth in ONNX Runtime: the host's default, its rounding, and ours.

Torchvision networks at 224 pixels, freshly initialised (BatchNorm randomised, so that their outputs say something), are
pruned by magnitude to a third of their MACs, each layer by the same ratio: with Torch-Pruning's ``MagnitudePruner`` as
it comes, with its ``round_to``, and with ``FairPruner`` as it comes. All are exported, proven equal to torch and timed
side by side in one process: 1 thread, batch 1.

    python benchmarks/realised_speedup.py [--networks ...] [--seconds 6] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fair_prune_plugins.torch_pruning as fpt
from benchmarks.networks import declare_torchvision_operators
from fair_prune_plugins.latency import LatencyReport, alignment_for, benchmark
from fair_prune_plugins.onnx import export

PIXELS = 224
TARGET = 1 / 3
NEAR = 0.002
NETWORKS = {
    "ResNet-18": ("resnet18", 0.90),
    "ResNet-50": ("resnet50", 0.90),
    "MobileNetV2": ("mobilenet_v2", 0.80),
    "MobileNetV3-Large": ("mobilenet_v3_large", 0.80),
}
"""Torchvision's name, and the share of the theoretical speed-up to reach."""


def network(name: str) -> nn.Module:
    """A network of torchvision whose BatchNorm has seen something: fresh ones give outputs of about 1e-9."""
    declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, (low, high) in {
                module.running_mean: (-0.3, 0.3),
                module.running_var: (0.5, 1.5),
                module.weight.data: (0.5, 1.5),
                module.bias.data: (-0.3, 0.3),
            }.items():
                assert isinstance(values, torch.Tensor)
                values.uniform_(low, high)
    return model


def macs(model: nn.Module) -> float:
    return float(tp.utils.count_ops_and_params(model, torch.zeros(1, 3, PIXELS, PIXELS))[0])


def host(model: nn.Module, round_to: int | None) -> nn.Module:
    """Torch-Pruning by itself; it takes ratios, so the ratio whose MACs are nearest to the target is looked for."""
    dense, low, high = macs(model), 0.0, 0.95
    best, distance = model, float("inf")
    for _ in range(12):
        ratio = (low + high) / 2
        pruned = copy.deepcopy(model)
        classifier = [m for m in pruned.modules() if isinstance(m, nn.Linear)][-1]
        tp.pruner.MagnitudePruner(
            pruned,
            torch.zeros(1, 3, PIXELS, PIXELS),
            tp.importance.MagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[classifier],
            round_to=round_to,
        ).step()
        share = macs(pruned) / dense
        if abs(share - TARGET) < distance:
            best, distance = pruned, abs(share - TARGET)
        if distance < NEAR:
            break
        low, high = (ratio, high) if share > TARGET else (low, ratio)
    return best


def ours(model: nn.Module) -> nn.Module:
    pruned = copy.deepcopy(model)
    fpt.FairPruner(
        pruned,
        torch.randn(2, 3, PIXELS, PIXELS),
        fpt.MagnitudeImportance(),
        target=fpt.CostTarget(macs=TARGET),
    ).step()
    return pruned


ARMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "host": lambda model: host(model, None),
    "host, round_to=16": lambda model: host(model, 16),
    "ours": ours,
}


def measure(name: str, seconds: float, rounds: int) -> LatencyReport:
    """Prune, export and time one network's variants."""
    dense = network(NETWORKS[name][0])
    with tempfile.TemporaryDirectory() as folder:
        counts, files = {"dense": macs(dense)}, {"dense": Path(folder) / "dense.onnx"}
        export(dense, torch.randn(2, 3, PIXELS, PIXELS), files["dense"])
        for arm, prune in tqdm(ARMS.items(), desc=name):
            pruned = prune(dense).eval()
            counts[arm], files[arm] = macs(pruned), Path(folder) / f"{len(files)}.onnx"
            export(pruned, torch.randn(2, 3, PIXELS, PIXELS), files[arm])
        return benchmark(files, macs=counts, threads=1, batch_size=1, rounds=rounds, min_seconds=seconds)


def table(reports: dict[str, LatencyReport]) -> str:
    first = next(iter(reports.values()))
    lines = [
        f"Networks of torchvision at {PIXELS} pixels, pruned by magnitude to a third of their MACs; ONNX Runtime, "
        f"{first.settings['threads']} thread, batch {first.settings['batch_size']}, medians of "
        f"{first.settings['rounds']} interleaved rounds (95 % interval). {first.machine.statement()}. Alignment: "
        f"{alignment_for().target}, block {alignment_for().block}, grain {alignment_for().grain}.",
        "",
        "| network | pruned by | MACs | ms | speed-up | realised / theoretical | fast layout |",
        "|---|---|---|---|---|---|---|",
    ]
    for network_name, report in reports.items():
        for model in report.models:
            layout = "" if model.layout is None else f"{model.layout.fast} of {model.layout.total}"
            speedup = share = less = ""
            if model.speedup is not None and model.theoretical is not None and model.realised_share is not None:
                speedup = f"{model.speedup.value:.2f} ({model.speedup.low:.2f} to {model.speedup.high:.2f})"
                less, share = f" / {model.theoretical:.2f}", f"{model.realised_share:.2f}"
            cells = [network_name, model.name, f"{(model.macs or 0) / 1e6:.0f} M{less}", f"{model.p50_ms.value:.2f}"]
            lines.append("| " + " | ".join([*cells, speedup, share, layout]) + " |")
    lines.append("")
    for network_name, report in reports.items():
        wanted, reached = NETWORKS[network_name][1], report["ours"].realised_share or 0
        lines.append(
            f"- {network_name}: {reached:.3f} of {wanted:.2f} wanted" + ("" if reached >= wanted else ": MISSED")
        )
        lines.extend(f"- {network_name}: {note}" for note in report.notes)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), help="which ones")
    parser.add_argument("--seconds", type=float, default=6.0, help="timed seconds of each variant, at least")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    reports = {name: measure(name, arguments.seconds, arguments.rounds) for name in arguments.networks}
    text = table(reports)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "realised_speedup.md").write_text(text + "\n")
    record: dict[str, Any] = {name: report.as_dict() for name, report in reports.items()}
    (arguments.out / "realised_speedup.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
