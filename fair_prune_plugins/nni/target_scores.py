"""From scores of units to what NNI ranks: one number per masked block of every target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from nni.compression.base.target_space import PruningTargetSpace, TargetType
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.closing import channel_dim
from fair_prune_plugins.gates.plan import UNREACHED
from fair_prune_plugins.gates.structure import OUTPUT, CoupledGroup
from fair_prune_plugins.nni.structure import Members, Structure

Spaces = Mapping[str, Mapping[str, PruningTargetSpace]]
"""Module path to target name to NNI's target space."""

Metrics = dict[str, dict[str, torch.Tensor]]
"""Module path to target name to scores, as NNI's ``generate_sparsity`` takes them."""

NO_SCORE = (
    "{layer!r} cannot be pruned by its {side} channels: {reason}. Leave it out of the config list "
    "(exclude_op_names=[{layer!r}])"
)
AND_OTHERS = "{first}. Neither can others of the list; leave out all of these: exclude_op_names={layers}"
NOT_AN_OUTPUT = "what passes through it has no unit"
PARTLY = (
    "Torch-Pruning's graph follows only some of them, which happens where they are multiplied with, or added to, "
    "something of another width"
)
MODEL_INPUT = "they are the model's inputs, or come from a layer that has no units"
NOT_WHOLE_CHANNELS = (
    "{layer!r}, target {target!r}: granularity {granularity} masks something else than whole channels, and gate scores "
    "are of whole channels. Use 'out_channel', 'in_channel' or 'per_channel', or blocks of whole channels ([4, -1])"
)
NOT_A_CHANNEL = (
    "{layer!r}, target {target!r}: granularity {granularity} masks along dimension {axis}, which holds no channels of "
    "a {kind}"
)
NO_SHAPE = "{layer!r}, target {target!r}: its shape is not known yet; call pruner.track_forward(...) first"

EXEMPT = math.inf
"""The score of what must stay because it is all that there is."""


def scored_targets(spaces: Spaces) -> Iterator[tuple[str, str, PruningTargetSpace]]:
    """The targets that NNI wants numbers for: those with a ratio or threshold of their own, or a group's."""
    for path, targets in spaces.items():
        for name, space in targets.items():
            if space.type is TargetType.PARAMETER and space.target is None:
                continue
            wanted = (
                space.sparse_ratio,
                space.sparse_threshold,
                space.dependency_group_id,
                space.global_group_id,
            )
            if any(value is not None for value in wanted):
                yield path, name, space


def target_metrics(structure: Structure, scores: Mapping[str, torch.Tensor], spaces: Spaces) -> Metrics:
    """Scores in the shapes that NNI's ``generate_sparsity`` expects, smallest masked first.

    Every channel carries its unit's score, so that all layers of a coupled group rank alike. Blocks that are masked
    already come below everything else, so that what was pruned stays pruned; the best of a target stays, whatever a
    threshold or a global ranking says.

    Args:
        structure: of the model.
        scores: coupled group's name to float64 ``[units]``.
        spaces: the targets.

    Returns:
        float64, on the CPU.

    Raises:
        InputError: a target whose channels have no unit, or that is not masked by channels.
    """
    metrics: Metrics = defaultdict(dict)
    masked: Metrics = defaultdict(dict)
    by_dependency: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for path, name, space in scored_targets(spaces):
        metrics[path][name] = _metric(structure, scores, path, name, space)
        masked[path][name] = _masked_blocks(space, metrics[path][name])
        if space.dependency_group_id is not None:
            by_dependency[space.dependency_group_id].append((path, name))
    # NNI takes the mean over a dependency group: what is masked in one member has to be lowest in all.
    for members in by_dependency.values():
        shapes = {masked[p][n].numel() for p, n in members}
        if len(shapes) == 1:
            either = torch.stack([masked[p][n].flatten() for p, n in members]).any(0)
            for p, n in members:
                masked[p][n] = either.reshape(masked[p][n].shape)
    _put_masked_below(metrics, masked)
    return metrics


def check_targets(structure: Structure, spaces: Spaces) -> None:
    """Refuse targets that no scores will fit.

    Raises:
        InputError: see :func:`target_metrics`.
    """
    blank = {g.name: torch.zeros(g.units.size, dtype=torch.float64) for g in structure.plan.groups}
    refused: dict[str, InputError] = {}
    for path, name, space in scored_targets(spaces):
        if space.shape is not None:
            try:
                _metric(structure, blank, path, name, space)
            except InputError as error:
                refused.setdefault(path, error)
    if not refused:
        return
    path, first = min(refused.items())
    if len(refused) > 1:
        raise InputError(AND_OTHERS.format(first=first, layers=sorted(refused))) from first
    raise first


def modules_passed_through(model: nn.Module, spaces: Spaces) -> list[str]:
    """Paths of the targets' modules with one weight per channel, which a gate plan does not list."""
    paths = {path for path, _, _ in scored_targets(spaces)}
    return sorted(p for p in paths if not _has_kernel(model.get_submodule(p)))


def _has_kernel(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding)


def _metric(
    structure: Structure, scores: Mapping[str, torch.Tensor], path: str, name: str, space: PruningTargetSpace
) -> torch.Tensor:
    if space.shape is None:
        raise InputError(NO_SHAPE.format(layer=path, target=name))
    shape = list(space.shape)
    axis, block = _masked_axis(path, name, space, shape)
    wanted = [1] * len(shape)
    wanted[axis] = shape[axis] // block
    module = structure.plan.model.get_submodule(path)
    side, repeat = _side(module, path, name, space, axis)
    if wanted[axis] == 1:
        return torch.full(wanted, EXEMPT, dtype=torch.float64)
    channels = _channel_scores(structure, scores, path, side, shape[axis] * repeat)
    # Columns of convolutions in conv groups stand for one input channel of each; these are one unit.
    channels = _agreed(channels.reshape(repeat, -1).T)
    return _agreed(channels.reshape(-1, block)).reshape(wanted)


def _agreed(values: torch.Tensor) -> torch.Tensor:
    """Mean of every row; where all values of a row are equal, exactly that value."""
    same: torch.Tensor = (values == values[:, :1]).all(1)
    return torch.where(same, values[:, 0], values.mean(1))


def _masked_axis(path: str, name: str, space: PruningTargetSpace, shape: list[int]) -> tuple[int, int]:
    """Along which dimension a target is masked, and how many channels at a time."""
    granularity = space.granularity
    if space._scaler is None:
        raise InputError(NOT_WHOLE_CHANNELS.format(layer=path, target=name, granularity=granularity))
    scaler = space._scaler
    steps = scaler._padding(scaler.kernel_size, len(shape), scaler.kernel_padding_val, scaler.kernel_padding_mode)
    cut = [d for d, step in enumerate(steps) if step != -1]
    several = [d for d in cut if shape[d] > steps[d]]
    if len(several) > 1 or not cut or any(shape[d] % steps[d] for d in cut):
        raise InputError(NOT_WHOLE_CHANNELS.format(layer=path, target=name, granularity=granularity))
    axis = several[0] if several else cut[0]
    return axis, steps[axis]


def _side(module: nn.Module, path: str, name: str, space: PruningTargetSpace, axis: int) -> tuple[str, int]:
    """Whether a dimension of a target holds output or input channels, and over how many conv groups it is shared."""
    groups = int(getattr(module, "groups", 1)) if isinstance(module, nn.modules.conv._ConvNd) else 1
    side: str | None = None
    repeat = 1
    if space.type is not TargetType.PARAMETER:
        if axis == channel_dim(module) % len(space.shape):
            side = "output" if space.type is TargetType.OUTPUT or not _has_kernel(module) else "input"
    elif len(space.shape) == 1:
        side = "output"
    elif axis < 2:
        outputs_first = not isinstance(module, nn.Embedding | nn.modules.conv._ConvTransposeNd)
        side = "output" if (axis == 0) == outputs_first else "input"
        repeat = groups if axis == 1 else 1
        if isinstance(module, nn.Embedding) and side == "input":
            side = None  # rows of an embedding are words
    if side is None:
        kind = type(module).__name__
        raise InputError(
            NOT_A_CHANNEL.format(layer=path, target=name, granularity=space.granularity, axis=axis, kind=kind)
        )
    return side, repeat


def _channel_scores(
    structure: Structure, scores: Mapping[str, torch.Tensor], path: str, side: str, width: int
) -> torch.Tensor:
    """The units' scores by channel of a module's input or output, float64 ``[width]``."""
    table: Mapping[str, list[Members]] = structure.outputs if side == "output" else structure.inputs
    result = torch.full((width,), math.nan, dtype=torch.float64)
    for members in table.get(path, []):
        group = members.group
        reason = _why_not(group)
        if reason:
            raise InputError(NO_SCORE.format(layer=path, side=side, reason=reason))
        if group.units.size == 1:
            result[members.channels] = EXEMPT
        else:
            result[members.channels] = scores[group.name][members.units]
    if torch.isnan(result).any():
        reason = MODEL_INPUT if side == "input" else NOT_AN_OUTPUT
        if side == "output" and path in structure.plan.unreached:
            reason = UNREACHED
        if path in table:
            reason = PARTLY
        raise InputError(NO_SCORE.format(layer=path, side=side, reason=reason))
    return result


def _why_not(group: CoupledGroup) -> str:
    if group.reaches_output:
        return OUTPUT
    return group.reason if group.status == "unsupported" else ""


def _masked_blocks(space: PruningTargetSpace, metric: torch.Tensor) -> torch.Tensor:
    """Which blocks are masked whole already, bool, in the metric's shape."""
    mask = space.mask
    if mask is None or space._scaler is None:
        return torch.zeros(metric.shape, dtype=torch.bool)
    kept = space._scaler.shrink(mask.detach().cpu() != 0, lambda t: t.any(-1), keepdim=True)
    gone: torch.Tensor = ~kept.reshape(metric.shape)
    return gone


def _put_masked_below(metrics: Metrics, masked: Metrics) -> None:
    """What is masked goes below everything, and the best of every target above: a threshold would cut a model off."""
    pairs = [(metrics[p][n], masked[p][n]) for p in metrics for n in metrics[p]]
    open_scores = [m[~gone & torch.isfinite(m)] for m, gone in pairs]
    lowest = min((float(s.min()) for s in open_scores if s.numel()), default=0.0)
    for metric, gone in pairs:
        metric[gone] = min(lowest, 0.0) - 1.0
        if not gone.all():
            metric.view(-1)[int(metric.argmax())] = EXEMPT
