"""The networks whose forecast is judged, made by the face study's machinery, and their group gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.fairface.bench import Bench, Silent
from benchmarks.fairface.design import DenseTask, Design, tasks
from fair_prune_plugins.audit import forecast
from fair_prune_plugins.audit.forecast import Gradients, GroupGradient
from fair_prune_plugins.groups import JOIN, GroupLabels
from fair_prune_plugins.workflow import model_store
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Part
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, read_json, write_json

GRADIENTS = "gradients.json"
FOLDER = "gradients"


def make(config: RunConfig, design: Design, path: Path, *, base: Path, most: int) -> None:
    """Make what is not made yet: dense and pruned networks, and the dense ones' group gradients.

    Args:
        config: people, network, training, pruning.
        design: how many seeds.
        path: the run folder.
        base: folder that ``module:function`` is looked up in.
        most: validation people per group for the Hessian's eigenvalue.
    """
    description = {"config": config.model_dump(mode="json"), "design": asdict(design), "base": str(base)}
    with RunFolder.open(path, Silent(), description):
        torch.set_num_threads(1)
        bench = Bench(config, design, path, base)
        bench.people()
        bench.cost()
        for task in tqdm(tasks(config, design), desc="networks"):
            bench.do(task)
        measure_gradients(bench, path, range(design.headline_seeds), most)


def add_gradients(study: Path, path: Path, seeds: Sequence[int], most: int) -> None:
    """Group gradients of the dense networks of a finished study, which is only read.

    Args:
        study: its run folder.
        path: folder of the gradients.
        seeds: of which dense networks.
        most: validation people per group for the Hessian's eigenvalue.
    """
    described = read_json(study / "run.json")
    config = RunConfig.model_validate({**described["config"], "device": "cpu"})
    with RunFolder.open(path, Silent(), {"study": config.name, "config": described["config"]}):
        torch.set_num_threads(1)
        bench = Bench(config, Design(), path, Path(__file__).resolve().parents[1] / "fairface")
        measure_gradients(bench, study, seeds, most)


def measure_gradients(bench: Bench, networks: Path, seeds: Sequence[int], most: int) -> None:
    """Measure dense networks on validation people."""
    for seed in tqdm(seeds, desc="group gradients"):

        def work(folder: Path, seed: int = seed) -> None:
            model, _ = model_store.load(networks / DenseTask(seed).name, beside=bench.base)
            found = forecast.gradients(
                model,
                bench._batches(Part.VALIDATION),
                lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
                bench._reader(),
                inputs="inputs",
                targets="targets",
                most=most,
                seed=seed,
                progress=False,
            )
            write_json(folder / GRADIENTS, asdict(found))

        dense = read_json(networks / DenseTask(seed).name / "stamp.json")["stamp"]
        done: Finished = bench.folder.stage(f"{FOLDER}/seed-{seed}", {"dense": dense, "most": most}, work)
        tqdm.write(f"group gradients of seed {seed}: {done.seconds:.0f} s")


def read_gradients(path: Path) -> list[Gradients]:
    """What :func:`measure_gradients` wrote, seed by seed; empty where there is nothing."""
    return [_parsed(read_json(file)) for file in sorted((path / FOLDER).glob(f"seed-*/{GRADIENTS}"))]


def _parsed(found: dict[str, Any]) -> Gradients:
    groups = tuple(GroupGradient(**group) for group in found["groups"])
    return Gradients(found["attribute"], groups, tuple(found["notes"]))


def attributes(crossed: GroupLabels) -> tuple[GroupLabels, ...]:
    """An intersection, and each of its attributes by itself."""
    parts = crossed.attribute.split(JOIN)
    columns = {
        name: [None if code < 0 else crossed.names[code].split(JOIN)[i] for code in crossed.codes]
        for i, name in enumerate(parts)
    }
    return (crossed, *(GroupLabels.from_columns({name: values}) for name, values in columns.items()))
