"""The report over all trials of one seed: one dense network, every setting beside it, timed and compared together.

Trials are timed while others run, and each knows only its own network. So when all are over, the files of one seed are
timed in turn in one process, and each network is compared with the plain one of its amount on the same people.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.evaluation import evaluate
from fair_prune_plugins.latency import benchmark
from fair_prune_plugins.workflow import job, report, sources
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.progress import show_bars
from fair_prune_plugins.workflow.results import ModelResult, RunResults
from fair_prune_plugins.workflow.run_folder import STAMP, RunFolder, read_json
from fair_prune_plugins.workflow.stages import DENSE
from fair_prune_plugins.workflow.sweep.outcome import RUN, FinishedPoint
from fair_prune_plugins.workflow.sweep.space import Setting, Space


@dataclass(frozen=True)
class _Member:
    """One setting's part of a seed: what its run found, and where its files are."""

    setting: Setting
    results: RunResults
    folder: Path

    @property
    def network(self) -> Path:
        return self.folder / self.setting.variant.folder

    def logits(self) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.load(self.network / "test_logits/logits.npy", allow_pickle=False)
        return found


def write_seed(
    space: Space, seed: int, found: Sequence[FinishedPoint], folder: Path, base: Path, stages: RunFolder
) -> RunResults:
    """Write the report of one seed, unless it is there and nothing has changed.

    Args:
        space: of the sweep.
        seed: which.
        found: its finished points, at least one.
        folder: of the sweep.
        base: folder that relative paths are looked up in.
        stages: where the reports of a sweep are.

    Returns:
        what the report shows.
    """
    members = [_member(f, folder) for f in found]
    depends = {
        "trials": {m.setting.name: read_json(m.folder / job.REPORT_FOLDER / STAMP)["stamp"] for m in members},
        "benchmark": space.config.benchmark.model_dump(mode="json"),
        "machine": platform.node(),
        "name": space.config.name,
    }

    def work(place: Path) -> None:
        report.write(_together(space, seed, members, base), place)

    written = stages.stage(f"seed-{seed}", depends, work)
    return RunResults.read_json(written.folder / report.JSON_NAME)


def _member(found: FinishedPoint, folder: Path) -> _Member:
    run = folder / found.point.folder / RUN
    return _Member(found.point.setting, RunResults.read_json(run / job.REPORT_FOLDER / report.JSON_NAME), run)


def _together(space: Space, seed: int, members: Sequence[_Member], base: Path) -> RunResults:
    samples = sources.load(space.config.data, base=base, seed=seed)
    first = members[0]
    timed = _timed(space, seed, members, samples)
    machine, timings = timed.pop("machine"), {m["name"]: m for m in timed.pop("models")}
    models = [first.results.dense.model_copy(update={"latency": timings[DENSE]})]
    after = [p for p in first.results.postprocessed if p.model == DENSE]
    plain: dict[Amount, _Member] = {}
    for member in members:
        name = member.setting.name
        other = plain.setdefault(member.setting.variant.amount, member)
        changes: dict[str, Any] = {"name": name, "method": member.setting.title, "latency": timings[name]}
        if other is not member:
            changes["against"] = {other.setting.name: _compared(space, seed, member, other, samples)}
        (pruned,) = member.results.pruned
        models.append(ModelResult.model_validate({**pruned.model_dump(), **changes}))
        own = [p for p in member.results.postprocessed if p.model == pruned.name]
        after += [p.model_copy(update={"model": name}) for p in own]
    return first.results.model_copy(
        update={
            "name": f"{space.config.name}, seed {seed}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "timing": timed,
            "models": models,
            "postprocessed": after,
        }
    )


def _timed(space: Space, seed: int, members: Sequence[_Member], samples: Samples) -> dict[str, Any]:
    config = space.config
    rows = samples.rows(Part.TEST)
    people = Batches(samples, rows, Normalisation.of_training(samples), config.benchmark.batch_size)
    files = {DENSE: members[0].folder / f"models/{DENSE}/onnx"} | {m.setting.name: m.network / "onnx" for m in members}
    return benchmark(
        {name: place / "model.onnx" for name, place in files.items()},
        inputs=next(iter(people.arrays())),
        macs={name: read_json(place / "export.json")["macs"] for name, place in files.items()},
        reference=DENSE,
        seed=seed,
        confidence=config.evaluation.confidence,
        progress=show_bars(),
        **config.benchmark.model_dump(),
    ).as_dict()


def _compared(space: Space, seed: int, member: _Member, other: _Member, samples: Samples) -> dict[str, Any]:
    rows = samples.rows(Part.TEST)
    config = space.config.evaluation
    return evaluate(
        samples.labels[rows],
        member.logits(),
        samples.groups.take(rows),
        dense_logits=other.logits(),
        worst_group=member.results.dense.evaluation["worst_group"]["name"],
        resamples=config.resamples,
        confidence=config.confidence,
        seed=seed,
        minimum=config.minimum_group,
    ).as_dict()
