"""What one finished run of a sweep says: written beside its run folder, read by the next call and by the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.workflow.run_folder import read_json, write_json
from fair_prune_plugins.workflow.sweep.config import Scalar
from fair_prune_plugins.workflow.sweep.space import Point, Space

OUTCOME = "outcome.json"
RUN = "run"
"""The run folder's name in the folder of a point."""


class Accuracies(BaseModel):
    """On validation people, shares 0 to 1.

    Attributes:
        worst_group: of the group that the dense network serves worst on the same people.
        everyone: of all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    worst_group: float
    everyone: float


class Outcome(BaseModel):
    """One finished run.

    Attributes:
        stamp: of what it was made from, :meth:`Space.stamp`.
        parameters: of the trial, as NNI has them.
        seed: of the run.
        worst_group: which group that is.
        validation: by stage, ``dense``, ``pruned`` and ``finetuned``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stamp: str
    parameters: dict[str, Scalar]
    seed: int
    worst_group: str
    validation: dict[str, Accuracies]

    @property
    def value(self) -> float:
        """What settings are compared by: the worst group's validation accuracy after fine-tuning."""
        return self.validation["finetuned"].worst_group

    def write(self, folder: Path) -> None:
        """Keep it in the folder of its point."""
        write_json(folder / OUTCOME, self.model_dump(mode="json"))


@dataclass(frozen=True)
class FinishedPoint:
    """A point with what it found."""

    point: Point
    outcome: Outcome


def read_outcome(space: Space, point: Point, folder: Path) -> Outcome | None:
    """The outcome of a point, if it is finished and was made from what the configuration says now.

    Args:
        space: of the sweep.
        point: which.
        folder: of the sweep.
    """
    found = _read(folder / point.folder / OUTCOME)
    return found if found is not None and found.stamp == space.stamp(point) else None


def finished_points(space: Space, folder: Path) -> list[FinishedPoint]:
    """All finished points of a sweep, in the order of its grid; what a tuner chose by name."""
    if space.sweep.is_grid:
        points = space.points()
    else:
        points = sorted(
            {p.folder: p for p in _proposed(space, folder)}.values(), key=lambda p: (p.setting.name, p.seed)
        )
    found = [(p, read_outcome(space, p, folder)) for p in points]
    return [FinishedPoint(p, o) for p, o in found if o is not None]


def finished_trials(space: Space, folder: Path) -> list[dict[str, Any]]:
    """Finished trials as tuners are told about them: parameters, and the mean over seeds where a tuner chose."""
    trials: dict[tuple[tuple[str, Scalar], ...], list[FinishedPoint]] = {}
    for found in finished_points(space, folder):
        parameters = space.parameters_of(found.point.setting, found.point.seed if space.sweep.is_grid else None)
        trials.setdefault(tuple(parameters.items()), []).append(found)
    return [
        {"parameter": dict(parameters), "value": sum(f.outcome.value for f in found) / len(found)}
        for parameters, found in trials.items()
        if len(found) == len(space.points_of(dict(parameters)))
    ]


def _proposed(space: Space, folder: Path) -> Iterator[Point]:
    for path in sorted(folder.glob(f"trials/*/*/{OUTCOME}")):
        found = _read(path)
        if found is None:
            continue
        try:
            yield from (p for p in space.points_of(found.parameters) if p.seed == found.seed)
        except ConfigError:  # the configuration has changed since
            continue


def _read(path: Path) -> Outcome | None:
    try:
        return Outcome.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError):
        return None
