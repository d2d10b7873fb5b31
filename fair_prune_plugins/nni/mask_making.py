"""Scores of a criterion, and the masks that NNI makes of them."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from nni.compression.base.target_space import PruningTargetSpace
from nni.compression.pruning.tools import generate_sparsity

from fair_prune_plugins.criteria import Criterion
from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.gates import GatePlan
from fair_prune_plugins.nni.target_scores import Metrics, Spaces, scored_targets
from fair_prune_plugins.statistics import GateStatistics

logger = logging.getLogger(__name__)

UnitScores = dict[str, torch.Tensor]
"""Coupled group's name to one score per unit, float64."""

NOT_FINITE = "the scores of {layer!r} are not finite ({count} of {total}); check the data and the criterion"
NOT_GLOBAL = (
    "%s: NNI gives targets with a dependency_group_id their own sparse_ratio and leaves them out of the ranking of "
    "their global_group_id. Without dependency ids they take part, and coupled layers are masked alike all the same: "
    "they have the same scores here"
)
NOTHING_LEFT = (
    "%s: all channels are masked, so the model is cut off there; give the layer a lower ratio or leave it out"
)

TIE = 1e-9
"""Ranks of different layers tie, and NNI keeps all that tie at a global threshold."""


def unit_scores(
    plan: GatePlan,
    criterion: Criterion,
    options: Mapping[str, Any],
    statistics: GateStatistics,
    dense: GateStatistics | None,
) -> UnitScores:
    """The criterion's scores of every coupled group that can be pruned.

    Args:
        plan: of the model.
        criterion: what to rank by.
        options: its own.
        statistics: of the model as it is.
        dense: of the model before anything was masked.

    Raises:
        ScoreError: statistics that the criterion cannot use, or scores that are not finite.
    """
    scores: UnitScores = {}
    for position, group in enumerate(plan.prunable):
        name = group.units.name
        own = statistics.of(name)
        if dense is not None and name in dense.columns:
            own = replace(own, dense=dense.of(name))
        found = criterion(own, **options)
        bad = int((~torch.isfinite(found)).sum())
        if bad:
            raise ScoreError(NOT_FINITE.format(layer=group.name, count=bad, total=len(found)))
        scores[group.name] = found if criterion.comparable else found + TIE * position / len(plan.prunable)
    return scores


def make_masks(metrics: Metrics, spaces: Spaces) -> Metrics:
    """NNI's masks, of the targets' types and on their devices.

    Args:
        metrics: of every target that NNI wants numbers for.
        spaces: the targets.
    """
    both = [
        path
        for path, _, space in scored_targets(spaces)
        if space.dependency_group_id is not None and space.global_group_id is not None
    ]
    if both:
        logger.warning(NOT_GLOBAL, ", ".join(sorted(set(both))))
    masks: Metrics = defaultdict(dict)
    # NNI selects layers through sets, and its global threshold depends on their order where layers differ in size.
    generated = generate_sparsity(metrics, _of_one_shape(metrics, dict(sorted(spaces.items()))))
    for path, targets in generated.items():
        for name in targets:
            mask = _aligned(generated, spaces, path, name)
            like = spaces[path][name].target
            masks[path][name] = mask.float() if like is None else mask.to(like)
        if any(not bool(mask.any()) for mask in masks[path].values()):
            logger.warning(NOTHING_LEFT, path)
    return masks


def _of_one_shape(metrics: Metrics, spaces: Spaces) -> dict[str, dict[str, PruningTargetSpace]]:
    """The targets, with a dependency id for every shape of metrics where one id has several.

    NNI takes the mean of a dependency group's metrics and fails where a convolution is coupled with a linear layer. All
    have the same numbers here, so each shape by itself gets the same mask.
    """
    members: dict[Any, list[tuple[str, str, PruningTargetSpace]]] = defaultdict(list)
    for path, name, space in scored_targets(spaces):
        if space.dependency_group_id is not None:
            members[space.dependency_group_id].append((path, name, space))
    result = {path: dict(targets) for path, targets in spaces.items()}
    for identifier, group in members.items():
        shapes = {tuple(metrics[path][name].shape) for path, name, _ in group}
        if len(shapes) == 1:
            continue
        blocks = math.lcm(*(space.internal_metric_block or 1 for _, _, space in group))
        ratio = next((space.sparse_ratio for _, _, space in group if space.sparse_ratio is not None), None)
        for path, name, space in group:
            twin = copy.copy(space)
            twin._setting = {
                **space.setting,
                "dependency_group_id": f"{identifier}, {tuple(metrics[path][name].shape)}",
                "internal_metric_block": blocks,
                "sparse_ratio": ratio if space.sparse_ratio is None else space.sparse_ratio,
            }
            result[path][name] = twin
    return result


def _aligned(generated: Metrics, spaces: Spaces, path: str, name: str) -> torch.Tensor:
    """A target's mask; that of a norm's bias follows its weight.

    NNI reduces the other mask over no dimension at all there, by which torch means over all of them: the biases of
    BatchNorms would never be masked, and a masked channel would go on as its bias.
    """
    mask, align = generated[path][name], spaces[path][name].align
    if align is None:
        return mask
    source = generated[align["module_name"] or path][align["target_name"]]
    return source if list(source.shape) == spaces[path][name].shape and source.ndim == 1 else mask
