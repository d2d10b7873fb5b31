"""The result of an audit: everything that was measured, and what a reader must know before reading it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fair_prune_plugins.audit.changes.result import Changes
from fair_prune_plugins.audit.countermeasures.result import Countermeasures
from fair_prune_plugins.audit.forecast.result import ForecastQuality, RiskReport
from fair_prune_plugins.audit.measures.result import Measures
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.postprocessing import OverridePolicy, ThresholdRule
from fair_prune_plugins.postprocessing.scores import Task

NO_SUCH_MODEL = "there is no pruned model {name!r} in this audit; there are {names}"

PERSONAL = frozenset({"listed", "likely"})
"""Fields that tell single people apart: who changed most, and who is most likely to."""


@dataclass(frozen=True)
class AttributeSizes:
    """Who was audited, by one sensitive attribute.

    Attributes:
        attribute: its name.
        groups: people per group, in the groups' order.
        unknown: people of no known group.
        too_small: groups with fewer people than the minimum.
    """

    attribute: str
    groups: dict[str, int]
    unknown: int
    too_small: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What compression did, to whom, and what the dense model already told.

    Attributes:
        task: binary, multilabel or multiclass.
        people: how many were audited.
        outputs: names of the outputs.
        attributes: who they are, by sensitive attribute.
        dense: the dense model's name.
        pruned: the pruned models' names; without any, only the risks are here.
        measures: every number per model, output and group.
        changes: who was answered otherwise, one per pruned model.
        risk: what the dense model alone tells.
        quality: how good that forecast was, one per pruned model.
        countermeasures: what thresholds and overrides would bring; ``None`` without validation people or pruned model.
        confidence: coverage of all intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        minimum: groups with fewer people are flagged and never judged.
        notes: what a reader must know before reading, in sentences.
    """

    task: Task
    people: int
    outputs: tuple[str, ...]
    attributes: tuple[AttributeSizes, ...]
    dense: str
    pruned: tuple[str, ...]
    measures: Measures
    changes: tuple[Changes, ...]
    risk: RiskReport
    quality: tuple[ForecastQuality, ...]
    countermeasures: Countermeasures | None
    confidence: float
    resamples: int
    seed: int
    minimum: int
    notes: tuple[str, ...]

    def changes_of(self, model: str) -> Changes:
        """What one pruned model changed.

        Raises:
            InputError: no pruned model has that name.
        """
        for changes in self.changes:
            if changes.model == model:
                return changes
        raise InputError(NO_SUCH_MODEL.format(name=model, names=list(self.pruned)))

    def as_dict(self, *, people: bool = True) -> dict[str, Any]:
        """All of it in dicts, lists, strings, numbers and ``None``: strict JSON, never NaN; undefined is ``None``.

        Args:
            people: with the lists of single people (ids); without, nothing in it tells people apart.
        """
        hidden = frozenset() if people else PERSONAL
        return {f.name: _plain(getattr(self, f.name), hidden) for f in fields(self)}


def _plain(value: Any, hidden: frozenset[str]) -> Any:
    if isinstance(value, ThresholdRule | OverridePolicy):
        return value.as_dict()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), hidden) for f in fields(value) if f.name not in hidden}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, hidden) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, hidden) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
