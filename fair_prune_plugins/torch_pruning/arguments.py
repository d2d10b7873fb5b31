"""What a pruner is told, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call, preserved
from fair_prune_plugins.gates.plan import FORWARD_FAILED
from fair_prune_plugins.torch_pruning.cost_target import CostTarget

BAD_RATIO = "{name} must lie in [0, 1), got {value}"
BAD_SCHEDULE = (
    "iterative_pruning_ratio_scheduler must give {steps} + 1 cumulative pruning ratios in [0, 1) that never fall, the "
    "first for no step taken; it gave {got}"
)
RATIO_AND_TARGET = "pruning_ratio and target both say how much goes; pass one of them"
NOT_A_TARGET = "target must be a CostTarget, e.g. CostTarget(macs=0.3), got {got!r}"
OLD_OPTION = "{old} is an old name that Torch-Pruning would take instead of {new}; pass {new}"
NOT_OF_THE_MODEL = "{what} names {got}, which is no {kind} of the model; pass the {kind}s themselves"
ISOMORPHIC = "isomorphic=True ranks layers of a kind together and needs global_pruning=True"
NO_WHOLE_HEADS = "{name} removes whole heads and needs prune_num_heads=True"
PRUNER_OF_ONE = (
    "customized_pruners has a single {type} as key, which Torch-Pruning cannot look up; give that layer a class of its "
    "own and use the class"
)

COLLAPSE = 0.9
"""What one coupled group may lose at most in a ranking over several, unless more is asked for or allowed."""

OLD_NAMES = {
    "ch_sparsity": "pruning_ratio",
    "ch_sparsity_dict": "pruning_ratio_dict",
    "max_ch_sparsity": "max_pruning_ratio",
    "iterative_sparsity_scheduler": "iterative_pruning_ratio_scheduler",
    "channel_groups": "out_channel_groups",
}
"""The host still takes these, and takes them first."""


def check_amounts(
    *,
    pruning_ratio: float | None,
    target: CostTarget | None,
    head_pruning_ratio: float,
    ratios: Mapping[Any, float],
    head_ratios: Mapping[Any, float],
    prune_num_heads: bool,
    max_pruning_ratio: float | None,
    iterative_steps: int,
    global_pruning: bool,
    isomorphic: bool,
) -> None:
    """Refuse amounts that are out of range, contradict each other, or would do nothing.

    Raises:
        InputError: naming the argument.
    """
    if target is not None and not isinstance(target, CostTarget):
        raise InputError(NOT_A_TARGET.format(got=target))
    if target is not None and pruning_ratio is not None:
        raise InputError(RATIO_AND_TARGET)
    named = [("pruning_ratio", pruning_ratio or 0.0), ("head_pruning_ratio", head_pruning_ratio)]
    named += [("a ratio of pruning_ratio_dict", r) for r in ratios.values()]
    named += [("a ratio of head_pruning_ratio_dict", r) for r in head_ratios.values()]
    for name, value in named:
        if not 0 <= value < 1:
            raise InputError(BAD_RATIO.format(name=name, value=value))
    if max_pruning_ratio is not None and not 0 <= max_pruning_ratio <= 1:
        raise InputError(f"max_pruning_ratio must lie in [0, 1], got {max_pruning_ratio}")
    if iterative_steps < 1:
        raise InputError(f"iterative_steps must be at least 1, got {iterative_steps}")
    if isomorphic and not global_pruning:
        raise InputError(ISOMORPHIC)
    for name, given in (("head_pruning_ratio", head_pruning_ratio), ("head_pruning_ratio_dict", head_ratios)):
        if given and not prune_num_heads:
            raise InputError(NO_WHOLE_HEADS.format(name=name))


def largest_ratio(asked: float | None, pruning_ratio: float, global_pruning: bool) -> float:
    """What one coupled group may lose at most.

    Units of wide layers each matter little, so one ranking over all layers takes nearly all of some, and the network
    falls apart there long before it is small. By default a tenth stays of each, or where more than nine tenths are
    asked for overall, half of what that leaves on average.

    Args:
        asked: ``max_pruning_ratio``, which is taken as it is.
        pruning_ratio: of the ranking.
        global_pruning: whether the ranking is over several groups; each by itself has its ratio and no other limit.
    """
    if asked is not None:
        return asked
    return max(COLLAPSE, (1 + pruning_ratio) / 2) if global_pruning else 1.0


def check_options(host_options: Mapping[str, Any]) -> None:
    """Refuse options of the host that would override ours, or that it cannot look up.

    Raises:
        InputError: naming the option.
    """
    for old, new in OLD_NAMES.items():
        if host_options.get(old) is not None:
            raise InputError(OLD_OPTION.format(old=old, new=new))
    for key in host_options.get("customized_pruners") or {}:
        if isinstance(key, nn.Module):
            raise InputError(PRUNER_OF_ONE.format(type=type(key).__name__))


def check_members(
    model: nn.Module, *, layers: Mapping[str, Iterable[Any]], parameters: Mapping[str, Iterable[Any]]
) -> None:
    """Refuse layers and parameters that are not the model's.

    Args:
        model: the model.
        layers: argument name to modules, tuples of modules (one ranking), or bare parameters.
        parameters: argument name to parameters.

    Raises:
        InputError: naming the argument.
    """
    own = {*model.modules(), *model.parameters()}
    for what, given in layers.items():
        for entry in given:
            for one in entry if isinstance(entry, tuple | list) else (entry,):
                if not isinstance(one, nn.Module | nn.Parameter) or one not in own:
                    raise InputError(NOT_OF_THE_MODEL.format(what=what, got=_short(one), kind="layer"))
    for what, given in parameters.items():
        for one in given:
            if not isinstance(one, nn.Parameter) or one not in own:
                raise InputError(NOT_OF_THE_MODEL.format(what=what, got=_short(one), kind="parameter"))


def check_schedules(schedules: Iterable[Sequence[float]], steps: int) -> None:
    """Refuse cumulative ratios that are too few, out of range, or fall.

    Raises:
        InputError: with what the scheduler gave.
    """
    for given in schedules:
        if len(given) <= steps or not all(0 <= r < 1 for r in given) or list(given) != sorted(given):
            raise InputError(BAD_SCHEDULE.format(steps=steps, got=list(given)))


@torch.no_grad()
def check_forward(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
    """Call the model once, as it is left.

    Raises:
        UnsupportedModelError: it fails on its inputs.
    """
    with preserved(model):
        model.eval()
        try:
            call(model, inputs, forward_fn)
        except Exception as error:
            raise UnsupportedModelError(FORWARD_FAILED.format(error=f"{type(error).__name__}: {error}")) from error


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else repr(value)
