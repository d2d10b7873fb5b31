"""Read what a run folder of the comparison holds, finished or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fairface.bench import level_name
from benchmarks.fairface.results import Cell, Study, read_study
from benchmarks.methods.bench import has_own_widths
from benchmarks.methods.design import MethodsDesign, walks
from benchmarks.methods.tuning import CHOSEN
from fair_prune_plugins.workflow.run_folder import STAMP, read_json


@dataclass(frozen=True)
class Cost:
    """What a kind of network costs, mean over its seeds.

    Attributes:
        macs: share of the dense network's.
        furthest: of a single network's MACs from what was asked, as a share of that.
        speedup: how many times as fast as the dense network, in ONNX Runtime.
        ranking: seconds spent on statistics, gates and removal from the dense network on; of bi-level methods with the
            training that this is.
        training: seconds of all other training.
        steps: of the optimizer on the weights, from the dense network on.
        own_widths: whether widths are the method's own and not those of the others.
    """

    macs: float
    furthest: float
    speedup: float
    ranking: float
    training: float
    steps: int
    own_widths: bool


@dataclass(frozen=True)
class MethodsStudy:
    """What is finished.

    Attributes:
        study: as the face study reads it.
        design: of the comparison.
        costs: by kind of network.
        chosen: by method or loss, what was chosen on validation people and from what.
    """

    study: Study
    design: MethodsDesign
    costs: dict[Cell, Cost]
    chosen: dict[str, Any]


def read_comparison(path: Path) -> MethodsStudy:
    """Read a run folder.

    Raises:
        InputError: it is none, or nothing is finished.
    """
    study = read_study(path, design_type=MethodsDesign, plan=walks)
    assert isinstance(study.design, MethodsDesign)
    dense = study.cost["networks"]["dense"]["macs"]
    common = {m["name"]: m["speedup"]["value"] for m in study.cost["latency"]["models"] if m["name"] != "dense"}
    methods = {m.title: m for m in study.config.prune.methods}
    found: dict[Cell, list[dict[str, Any]]] = {}
    for task in walks(study.config, study.design):
        if (path / task.name / STAMP).is_file():
            levels = read_json(path / task.name / "task.json")["levels"]
            for share in study.config.prune.macs:
                found.setdefault(Cell(task.method.title, task.loss.title, share), []).append(levels[level_name(share)])
    costs = {}
    for cell, levels in found.items():
        macs = np.array([level["macs"] / dense for level in levels])
        own = has_own_widths(study.config, methods[cell.method])
        costs[cell] = Cost(
            macs=float(macs.mean()),
            furthest=float(np.abs(macs / cell.share - 1).max()),
            speedup=float(np.mean([level["speedup"]["value"] for level in levels]))
            if own
            else common[level_name(cell.share)],
            ranking=float(np.mean([level["spent"]["collect"] + level["spent"]["prune"] for level in levels])),
            training=float(np.mean([level["spent"]["finetune"] for level in levels])),
            steps=levels[0]["weight_steps"],
            own_widths=own,
        )
    chosen = read_json(path / CHOSEN) if (path / CHOSEN).is_file() else {}
    return MethodsStudy(study, study.design, costs, chosen)
