"""What the width of a convolution costs in ONNX Runtime: why widths are aligned as they are.

Stacks of convolutions at 28 pixels, alike but for one width, timed side by side on one thread. Every figure is relative
to the stack of 16 channels. The table stands in the docstring of ``fair_prune_plugins.latency.alignment``.

    python benchmarks/width_costs.py [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fair_prune_plugins.latency import alignment_for, describe_machine
from fair_prune_plugins.latency.width_costs import PIXELS, Layer, inverted_residuals, time_stacks

WIDTHS = (2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64)
REFERENCE = 16

STACKS: dict[str, Callable[[int], list[Layer]]] = {
    "1x1, 96 to it and back": lambda width: [(96, 1, 1), *[(width, 1, 1), (96, 1, 1)] * 4],
    "3x3, it to itself": lambda width: [(width, 3, 1)] * 5,
    "bottleneck 1x1, 3x3, 1x1": lambda width: [(96, 1, 1), *[(width, 1, 1), (width, 3, 1), (96, 1, 1)] * 3],
    "depthwise between two 1x1": inverted_residuals,
    "1x1 around a depthwise of 96": lambda width: [(width, 1, 1), *[(96, 1, 1), (96, 3, 96), (width, 1, 1)] * 4],
}


def table(costs: dict[str, dict[int, float]]) -> str:
    lines = [
        f"Time of stacks of convolutions by their width, relative to {REFERENCE} channels; ONNX Runtime, 1 thread, "
        f"{PIXELS} pixels. {describe_machine().statement()}. Alignment: {alignment_for().target}, block "
        f"{alignment_for().block}, grain {alignment_for().grain}.",
        "",
        "| channels | " + " | ".join(map(str, WIDTHS)) + " |",
        "|---|" + "---|" * len(WIDTHS),
    ]
    for name, of_width in costs.items():
        cells = [f"{of_width[width] / of_width[REFERENCE]:.2f}" for width in WIDTHS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    arguments = parser.parse_args()
    provider = "CPUExecutionProvider"
    costs = {
        name: time_stacks({width: stack(width) for width in WIDTHS}, provider, min_seconds=1.0)
        for name, stack in STACKS.items()
    }
    text = table(costs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "width_costs.md").write_text(text + "\n")
    (arguments.out / "width_costs.json").write_text(json.dumps({"seconds": costs}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
