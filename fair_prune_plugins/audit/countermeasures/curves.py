"""Accuracy against the share of answers overridden, on validation people and on test people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from fair_prune_plugins.audit.countermeasures.result import Curve, CurvePoint
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.evaluation.metrics import difference
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing import OverridePoint, override_curve
from fair_prune_plugins.postprocessing.overrides import Answer

BUDGETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def curves(
    validation: AuditData,
    test: AuditData,
    model: ModelPredictions,
    partners: Sequence[int],
    outputs: Sequence[str],
    worst: Mapping[tuple[str, str], str | None],
    budgets: Sequence[float],
) -> list[Curve]:
    """Curves of one pruned model.

    Args:
        validation: people whose curves a budget may be read off.
        test: people whose curves say what it brings.
        model: of the test people.
        partners: the dense run that stands by each run.
        outputs: names of the curves of :func:`~fair_prune_plugins.postprocessing.override_curve`, in its order.
        worst: the group to watch, by output and attribute.
        budgets: shares of people.
    """
    found = []
    whose: tuple[tuple[Literal["validation", "test"], AuditData], ...] = (("validation", validation), ("test", test))
    for people, data in whose:
        mine = next(m for m in data.pruned if m.name == model.name)
        labels = data.people.labels
        for groups in data.people.groups:
            for answer_of in get_args(Answer):
                runs = [
                    override_curve(
                        labels,
                        data.logits(mine)[run],
                        groups,
                        data.logits(data.dense)[partner],
                        budgets=budgets,
                        answer_of=answer_of,
                    )
                    for run, partner in enumerate(partners)
                ]
                for i, output in enumerate(outputs):
                    watch = worst[output, groups.attribute]
                    points = tuple(_point([run[i][b] for run in runs], groups, watch) for b in range(len(budgets)))
                    found.append(Curve(model.name, output, groups.attribute, answer_of, people, watch, points))
    return found


def _point(runs: Sequence[OverridePoint], groups: GroupLabels, worst: str | None) -> CurvePoint:
    by_group = np.array([run.by_group for run in runs])
    at = None if worst is None else groups.names.index(worst)
    return CurvePoint(
        runs[0].budget,
        float(np.mean([run.accuracy for run in runs])),
        None if at is None else _defined(by_group[:, at].mean()),
        _defined(difference(by_group).mean()),
    )


def _defined(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)
