"""From a run folder to how good the forecast was; nothing here is about a single person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.audit.making import attributes, read_gradients
from benchmarks.fairface.bench import LOGITS, PEOPLE, level_name
from benchmarks.fairface.design import walk_name
from fair_prune_plugins.audit import changes, forecast
from fair_prune_plugins.audit.changes import Changes
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.audit.forecast import ForecastQuality, RiskReport
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.run_folder import MARKER, read_json

NOTHING = "{path} holds no run with networks of at least one seed; make one with `forecast.py run -o {path}`"
VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Judged:
    """What was found.

    Attributes:
        name: of the run.
        attribution: lines that the data's licence asks to be shown.
        seeds: of the dense network.
        sizes: people by part.
        report: the forecast, from validation people.
        changes: what compression did to test people, by pruned model.
        qualities: how good the forecast was, by pruned model.
        accuracies: of all models on test people, mean over seeds.
        retrained: share of test people on whom two dense networks of different seeds disagree, mean over pairs;
            ``None`` with one seed.
        gradient_seeds: dense networks whose group gradients are known.
    """

    name: str
    attribution: tuple[str, ...]
    seeds: tuple[int, ...]
    sizes: dict[str, int]
    report: RiskReport
    changes: tuple[Changes, ...]
    qualities: tuple[ForecastQuality, ...]
    accuracies: dict[str, float]
    retrained: float | None
    gradient_seeds: int


def judge_run(path: Path, gradients: Path, methods: Sequence[str] | None, resamples: int) -> Judged:
    """Forecast on validation people, judge on test people.

    Args:
        path: the run folder.
        gradients: folder of the group gradients.
        methods: criteria to look at; ``None`` takes all that every seed has.
        resamples: bootstrap resamples.

    Raises:
        InputError: there is nothing yet.
    """
    try:
        config = RunConfig.model_validate(read_json(path / MARKER)["config"])
        described = read_json(path / PEOPLE / "people.json")
    except OSError as error:
        raise InputError(NOTHING.format(path=path)) from error
    models = dict(_models(path, config, methods))
    if not models:
        raise InputError(NOTHING.format(path=path))
    (dense_name, seeds), *pruned = models.items()
    by_part = {
        part: AuditData(
            _people(path, described, part, config),
            _predictions(dense_name, seeds, part),
            tuple(_predictions(name, folders, part) for name, folders in pruned),
        )
        for part in (VALIDATION, TEST)
    }
    test = by_part[TEST]
    curved = read_gradients(gradients)
    report = forecast.forecast(
        by_part[VALIDATION],
        gradients=[forecast.average(curved)] if curved else [],
        likely=0,
        resamples=resamples,
        progress=False,
    )
    answers = [test.answers(test.dense, run)[:, 0] for run in range(len(seeds))]
    apart = [float((one != other).mean()) for one, other in combinations(answers, 2)]
    return Judged(
        name=config.name,
        attribution=tuple(config.data.attribution),
        seeds=tuple(sorted(seeds)),
        sizes=described["sizes"],
        report=report,
        changes=changes.compare(test, resamples=resamples, listed=0),
        qualities=forecast.judge(report, test),
        accuracies={m.name: _accuracy(test, m) for m in test.models},
        retrained=float(np.mean(apart)) if apart else None,
        gradient_seeds=len(curved),
    )


def _models(path: Path, config: RunConfig, methods: Sequence[str] | None) -> Iterator[tuple[str, dict[int, Path]]]:
    """The dense network, and each criterion under the plain loss at each share; by seed the folder of its logits."""
    dense = {
        int(folder.parent.name.removeprefix("seed-")): folder
        for folder in sorted(path.glob("seed-*/dense"))
        if (folder / LOGITS).is_file()
    }
    found = {}
    for method in config.prune.methods:
        if methods is not None and method.title not in methods:
            continue
        for share in sorted(config.prune.macs, reverse=True):
            loss = config.finetune.losses[0].slug
            folders = {seed: path / walk_name(seed, method.slug, loss) / level_name(share) for seed in dense}
            found[f"{method.title}, {100 * share:g} % of the MACs"] = {
                seed: folder for seed, folder in folders.items() if (folder / LOGITS).is_file()
            }
    shared = set.intersection(*(set(folders) for folders in found.values())) if found else set()
    if shared:
        yield "dense", {seed: dense[seed] for seed in sorted(shared)}
        for name, folders in found.items():
            yield name, {seed: folders[seed] for seed in sorted(shared)}


def _people(path: Path, described: dict[str, Any], part: str, config: RunConfig) -> People:
    with np.load(path / PEOPLE / "people.npz") as arrays:
        labels, codes = arrays[f"{part}_labels"], arrays[f"{part}_groups"]
    crossed = GroupLabels(tuple(described["groups"]), codes, described["attribute"])
    ids = tuple(f"{part} {row}" for row in range(len(labels)))
    return People(ids, labels, attributes(crossed), (config.data.target or "label",), "binary")


def _predictions(name: str, folders: dict[int, Path], part: str) -> ModelPredictions:
    runs = tuple(_logits(folder, part) for folder in folders.values())
    return ModelPredictions(name, runs, tuple(f"seed {seed}" for seed in folders))


def _logits(folder: Path, part: str) -> npt.NDArray[np.float64]:
    with np.load(folder / LOGITS) as arrays:
        found: npt.NDArray[np.float64] = arrays[part].astype(np.float64)
    return found


def _accuracy(data: AuditData, model: ModelPredictions) -> float:
    right = [(data.answers(model, run) == data.people.truths).mean() for run in range(len(model.runs))]
    return float(np.mean(right))
