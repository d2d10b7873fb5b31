"""What an importance said of a coupled group, checked before anything is decided by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.gates import CoupledGroup, UnitSet
from fair_prune_plugins.torch_pruning.importances import FairImportance

MISSING_SCORES = (
    "{importance} gave no score for the coupled group of {layer!r}; add the layer to ignored_layers if it is to stay "
    "as it is"
)
SCORING = "while {importance} gave scores for the coupled group of {layer!r}: nothing was pruned"
NOT_FINITE = "{importance} gave scores for {layer!r} that are not finite ({count} of {total}): nothing was pruned"
WRONG_LENGTH = "{importance} gave {got} scores for {layer!r}, which has {expected} channels"


def unit_scores(
    importance: Callable[[Any], torch.Tensor | None], host: Any, group: CoupledGroup
) -> dict[str, torch.Tensor]:
    """Scores of every unit of a coupled group: unit-set name to float64 ``[units]``.

    Args:
        importance: one of ours, the host's, or any callable.
        host: the host's group.
        group: the same group as the plan has it.

    Raises:
        ScoreError: no scores, of another length, or not finite; naming the layer.
    """
    try:
        scores = importance(host)
    except Exception as error:
        error.add_note(SCORING.format(importance=importance, layer=group.name))
        raise
    checked = _checked(importance, scores, group)
    if len(group.unit_sets) > 1 and isinstance(importance, FairImportance):
        # Root scores carry heads up to a constant of the layer, which a ranking over layers would feel.
        return importance.unit_scores(group)
    return {units.name: _unit_means(checked, units) for units in group.unit_sets}


def _checked(importance: Any, scores: Any, group: CoupledGroup) -> torch.Tensor:
    name = importance if isinstance(importance, FairImportance) else type(importance).__name__
    if scores is None:
        raise ScoreError(MISSING_SCORES.format(importance=name, layer=group.name))
    if not isinstance(scores, torch.Tensor) or scores.shape != (group.channels,):
        if not isinstance(scores, torch.Tensor):
            got: object = type(scores).__name__
        else:
            got = len(scores) if scores.ndim == 1 else f"shape {tuple(scores.shape)}"
        raise ScoreError(WRONG_LENGTH.format(importance=name, got=got, layer=group.name, expected=group.channels))
    bad = ~torch.isfinite(scores)
    if bad.any():
        raise ScoreError(NOT_FINITE.format(importance=name, layer=group.name, count=int(bad.sum()), total=len(scores)))
    return scores


def _unit_means(scores: torch.Tensor, units: UnitSet) -> torch.Tensor:
    """The host's rule: a unit's score is the mean over its root channels."""
    scores = scores.detach().double().cpu()
    total = torch.zeros(units.size, dtype=torch.float64).index_add_(0, units.of_root, scores)
    return total / torch.bincount(units.of_root, minlength=units.size)
