"""How long a whole audit takes, and how much memory: measures, changes of single people, forecast and its quality.

A made-up multi-label task, dense and one pruned model, every number with intervals. One fresh process per setting, so
that the peak resident size is its own; the data (labels, two models' logits) are part of it and given apart.

    python benchmarks/audit_speed.py [--people 200000] [--resamples 1000] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fair_prune_plugins.audit import AuditData, ModelPredictions, People, audit
from fair_prune_plugins.groups import GroupLabels


@dataclass(frozen=True)
class Setting:
    """What is measured: outputs, sensitive groups, runs per model."""

    outputs: int
    groups: int
    runs: int


SETTINGS = (Setting(40, 14, 1), Setting(40, 14, 3), Setting(1, 14, 1), Setting(1, 2000, 1))


def make_data(people: int, setting: Setting) -> AuditData:
    rng = np.random.default_rng(0)
    prevalence = rng.uniform(0.05, 0.5, setting.outputs)
    labels = (rng.random((people, setting.outputs)) < prevalence).astype(np.int64)
    codes = rng.integers(0, setting.groups, people)
    names = tuple(f"group {i}" for i in range(setting.groups))
    signal = (2 * labels - 1) * 1.5
    dense = tuple(signal + rng.normal(size=labels.shape) for _ in range(setting.runs))
    pruned = tuple(0.8 * logits + 0.4 * rng.normal(size=labels.shape) for logits in dense)
    return AuditData(
        People(
            tuple(str(i) for i in range(people)),
            labels,
            (GroupLabels(names, codes, "group"),),
            tuple(f"output {i}" for i in range(setting.outputs)),
            "multilabel",
        ),
        ModelPredictions("dense", dense),
        (ModelPredictions("pruned", pruned),),
    )


def audit_once(people: int, resamples: int, setting: Setting) -> dict[str, float]:
    data = make_data(people, setting)
    before = peak_mebibytes()
    started, used = time.perf_counter(), time.process_time()
    audit(data, resamples=resamples, progress=sys.stderr.isatty())
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mebibytes": peak_mebibytes(),
        "data_mebibytes": before,
    }


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(people: int, resamples: int, setting: Setting) -> dict[str, float]:
    command = [sys.executable, __file__, "--people", str(people), "--resamples", str(resamples), "--only"]
    command += [str(setting.outputs), str(setting.groups), str(setting.runs)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def table(results: list[tuple[Setting, dict[str, float]]], people: int, resamples: int) -> str:
    lines = [
        f"A whole audit of a dense and one pruned model, {people:,} people, {resamples:,} resamples, {cores()} cores "
        f"(load {os.getloadavg()[0]:.1f}). Memory is the process's peak, the data's share in brackets.",
        "",
        "| outputs | groups | runs per model | seconds | CPU seconds | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.outputs} | {s.groups} | {s.runs} | {r['seconds']:.0f} | {r['cpu_seconds']:.0f} | "
        f"{r['peak_mebibytes']:.0f} ({r['data_mebibytes']:.0f}) |"
        for s, r in results
    ]
    return "\n".join(lines)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=200_000, help="people to audit")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the table and the JSON"
    )
    parser.add_argument(
        "--only", type=int, nargs=3, metavar=("OUTPUTS", "GROUPS", "RUNS"), help="one setting, printed as JSON"
    )
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(audit_once(arguments.people, arguments.resamples, Setting(*arguments.only))))
        return
    results = [(s, in_fresh_process(arguments.people, arguments.resamples, s)) for s in tqdm(SETTINGS, desc="settings")]
    text = table(results, arguments.people, arguments.resamples)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "audit_speed.md").write_text(text + "\n")
    record = {
        "machine": platform.processor() or platform.machine(),
        "cores": cores(),
        "load": os.getloadavg()[0],
        "numpy": np.__version__,
        "people": arguments.people,
        "resamples": arguments.resamples,
        "results": [{**asdict(setting), **found} for setting, found in results],
    }
    (arguments.out / "audit_speed.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
