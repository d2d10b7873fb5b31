"""Put a run's table and picture beside this script: aggregates only, no images, file names or per-person rows.

python benchmarks/fairface/publish.py RUN_FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fair_prune_plugins.workflow.readings import read_run
from fair_prune_plugins.workflow.results import RunResults

HERE = Path(__file__).resolve().parent


def points(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "undefined"
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(run: Path) -> str:
    results = RunResults.read_json(run / "report" / "results.json")
    rows = pd.read_csv(run / "report" / "results.csv")
    worst = rows["worst_group"].dropna().iloc[0]
    lines = [
        f"Test people: {int(rows['people'].iloc[0]):,}; worst group, fixed on validation people: {worst}. Changes are "
        "from the dense model in points, with paired 95 % intervals. One seed. Latency: ONNX Runtime, "
        f"{results.timing['settings']['threads']} thread(s), batch of {results.timing['settings']['batch_size']}.",
        "",
        "| model | MACs | p50, ms (speed-up) | everyone | change | worst group | change | gap between groups | rho |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in rows.iterrows():
        dense = pd.isna(row["worst_group_change"])
        lines.append(
            "| "
            + " | ".join(
                [
                    row["model"],
                    f"{100 * row['macs_relative']:.1f} %",
                    f"{row['p50_ms']:.3f} ({row['speedup']:.1f}x)",
                    f"{100 * row['accuracy']:.1f} %",
                    "" if dense else points(*row[["accuracy_change", "accuracy_change_low", "accuracy_change_high"]]),
                    f"{100 * row['worst_group_accuracy']:.1f} %",
                    ""
                    if dense
                    else points(*row[["worst_group_change", "worst_group_change_low", "worst_group_change_high"]]),
                    f"{100 * row['gap']:.1f}",
                    "" if dense else f"{100 * row['rho']:.1f}",
                ]
            )
            + " |"
        )
    lines += [
        "",
        "Worst group against the first method at the same ratio, and its loss beyond everyone's, in points:",
        "",
    ]
    for model in read_run(results).models:
        worst_group = next((g for g in model.evaluation.groups if g.name == worst), None)
        if model.is_dense or worst_group is None:
            continue
        beyond = worst_group.excess_gap
        parts = [f"beyond everyone {points(beyond.value, beyond.low, beyond.high)}"]
        for name, evaluation in model.against.items():
            change = next(g.change for g in evaluation.groups if g.name == worst)
            parts.append(f"against {name} {points(change.value, change.low, change.high)}")
        lines.append(f"- {model.name}: {'; '.join(parts)}")
    lines += ["", *results.data.attribution]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `fair-prune run` wrote")
    run = parser.parse_args().run
    text = table(run)
    (HERE / "first_run.md").write_text(text + "\n")
    shutil.copyfile(run / "report" / "pareto.png", HERE / "first_run.png")
    print(text)


if __name__ == "__main__":
    main()
