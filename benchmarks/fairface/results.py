"""Read what a study's run folder holds, finished or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fairface.bench import COST, LOGITS, PEOPLE, level_name
from benchmarks.fairface.design import DenseTask, Design, WalkTask, walks
from benchmarks.fairface.effects import IntArray, Outcomes
from benchmarks.fairface.running import TUNING
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import MARKER, STAMP, read_json

NOT_A_STUDY = "{path} holds no study ({missing} is missing); make one with `study.py run -o {path}`"
NOTHING_YET = "{path} has no finished network yet; wait for the first dense network and the first walk"


@dataclass(frozen=True)
class Cell:
    """A kind of network: criterion, loss and share of the MACs; the dense network has none of them."""

    method: str = ""
    loss: str = ""
    share: float = 1.0


@dataclass(frozen=True)
class Study:
    """What is finished.

    Attributes:
        config: of the study.
        design: likewise.
        seeds: those with a dense network.
        cells: kinds of networks; the first is the dense one.
        outcomes: on the test people.
        validation: the dense networks' right answers per group ``[S, G]`` and people ``[G]`` among validation people.
        cost: widths, MACs and latency.
        sizes: people by part.
        notes: on the data.
        step_size: what was chosen for the excess-gap loss, and the rho it was chosen by; empty if nothing was chosen.
        walks_done: finished walks.
        walks_planned: of the whole study.
        hours: that the finished work took, over all processes.
    """

    config: RunConfig
    design: Design
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    outcomes: Outcomes
    validation: tuple[IntArray, IntArray]
    cost: dict[str, Any]
    sizes: dict[str, int]
    notes: tuple[str, ...]
    step_size: dict[str, Any]
    walks_done: int
    walks_planned: int
    hours: float

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.walks_done == self.walks_planned


def read_study(
    path: Path,
    *,
    design_type: type[Design] = Design,
    plan: Callable[[RunConfig, Any], list[WalkTask]] = walks,
) -> Study:
    """Read a run folder.

    Args:
        path: the folder.
        design_type: of the study's design.
        plan: tells its walks.

    Raises:
        InputError: it is none, or nothing is finished.
    """
    for needed in (MARKER, f"{PEOPLE}/{STAMP}", f"{COST}/{STAMP}"):
        if not (path / needed).is_file():
            raise InputError(NOT_A_STUDY.format(path=path, missing=needed))
    description = read_json(path / MARKER)
    config = RunConfig.model_validate(description["config"])
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description["design"].items()}
    design = design_type(**settings)
    about = read_json(path / PEOPLE / "people.json")
    with np.load(path / PEOPLE / "people.npz") as arrays:
        people = dict(arrays)
    planned = plan(config, design)
    finished = [task for task in planned if (path / task.name / STAMP).is_file()]
    seeds = sorted({t.seed for t in planned if (path / DenseTask(t.seed).name / STAMP).is_file()})
    if not finished:
        raise InputError(NOTHING_YET.format(path=path))

    wanted = {(task.method.title, task.loss.title) for task in planned}
    every = [(m.title, loss.title) for loss in config.finetune.losses for m in config.prune.methods]
    pairs = [pair for pair in every if pair in wanted]
    cells = [Cell(), *(Cell(m, loss, share) for share in config.prune.macs for m, loss in pairs)]
    right = np.zeros((len(seeds), len(cells), len(people["test_labels"])), dtype=bool)
    present = np.zeros(right.shape[:2], dtype=bool)
    codes, names = people["test_groups"], tuple(about["groups"])
    chosen_on = np.zeros((len(seeds), len(names)), dtype=np.int64)
    for s, seed in enumerate(seeds):
        folder = path / DenseTask(seed).name
        right[s, 0], present[s, 0] = _right(folder, "test", people), True
        hit = _right(folder, "validation", people)
        chosen_on[s] = np.bincount(people["validation_groups"][hit], minlength=len(names))
    for task in finished:
        for share in config.prune.macs:
            s, k = seeds.index(task.seed), cells.index(Cell(task.method.title, task.loss.title, share))
            right[s, k], present[s, k] = _right(path / task.name / level_name(share), "test", people), True

    folders = [path / task.name for task in finished] + [path / DenseTask(seed).name for seed in seeds]
    return Study(
        config=config,
        design=design,
        seeds=tuple(seeds),
        cells=tuple(cells),
        outcomes=Outcomes(right, present, codes, names, _margins(about["attribute"], names)),
        validation=(chosen_on, np.bincount(people["validation_groups"], minlength=len(names))),
        cost=read_json(path / COST / "cost.json"),
        sizes=about["sizes"],
        notes=tuple(about["notes"]),
        step_size=read_json(path / TUNING) if (path / TUNING).is_file() else {},
        walks_done=len(finished),
        walks_planned=len(planned),
        hours=sum(read_json(folder / "task.json")["seconds"] for folder in folders) / 3600,
    )


def _right(folder: Path, part: str, people: dict[str, Any]) -> Any:
    with np.load(folder / LOGITS) as logits:
        return logits[part].argmax(1) == people[f"{part}_labels"]


def _margins(attribute: str, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The single attributes that groups like ``Black x Female`` are made of."""
    attributes, values = attribute.split(" x "), [name.split(" x ") for name in names]
    return {a: tuple(v[i] for v in values) for i, a in enumerate(attributes)} if len(attributes) > 1 else {}
