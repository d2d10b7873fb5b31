"""An optimizer that survives pruning: its parameters are the pruned ones, with what it remembers of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.torch_pruning.distributed import without_ddp
from fair_prune_plugins.torch_pruning.survivors import Survivors, following

logger = logging.getLogger(__name__)

WHOLE_MODEL = ("LBFGS", "ZeroRedundancyOptimizer")
"""Optimizers whose memory is one flat vector over all parameters, or spread over ranks."""

REFUSED = (
    "{optimizer} cannot be carried over a pruning step: it keeps one memory of all parameters together. Make a new one "
    "after the step"
)
OTHER_STATE = (
    "{optimizer} keeps {key!r} for {name!r}, which is {got}; only numbers and tensors of the parameter's own shape "
    "({shape}) can be carried over a pruning step. Make a new optimizer after it"
)
NOT_THE_MODELS = (
    "{optimizer} has {count} parameters that are not the model's, the first of shape {shape}. Either the model was "
    "pruned before, outside rebinding(): make a new optimizer. Or they belong to another module: name both, as in "
    "rebinding(optimizer, nn.ModuleList([model, other]))"
)
UNFOLLOWED = (
    "{name!r} was replaced during pruning by something other than a pruning group of Torch-Pruning (it was {before}, "
    "it is {after}): the state that {optimizer} keeps for it cannot be carried over. Make a new optimizer"
)

NOT_REBOUND = "{optimizer} still holds the parameters of before the with block: {reason}"


@contextmanager
def rebinding(optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
    """Keep an optimizer working while its model is pruned inside the ``with`` block.

    Pruning replaces parameters by smaller ones, and an optimizer goes on stepping the old ones. Afterwards its
    parameter groups hold the live parameters, in their old places and with their old options, and every state tensor
    of a parameter's shape (momentum, Adam's moments) is cut to the elements that are left. It stays the same object,
    so schedulers and gradient scalers bound to it keep working. Parameters that it never had stay out.

    Works with any pruner of Torch-Pruning, customised layer pruners, ``interactive=True`` and groups pruned by hand::

        with rebinding(optimizer, model):
            pruner.step()

    Args:
        optimizer: any optimizer that keeps its state per parameter, elementwise.
        model: the model that is pruned, plain or wrapped in ``DistributedDataParallel``.

    Raises:
        InputError: before anything is pruned: the optimizer keeps other state than numbers and tensors of a
            parameter's shape, or holds parameters that are not the model's (an earlier pruning left them behind). After
            it: parameters were replaced behind Torch-Pruning's back. The optimizer is then as it was before.
        Exception: whatever the ``with`` block raises, after the optimizer has been brought to the parameters that the
            model has then: pruned ones, or the old ones if a step was rolled back. Where that cannot be done (the host
            failed in the middle of a group), the optimizer is as it was, and a note on the exception says so.
        UnsupportedModelError: a customised pruner computes weights where it should select them.
    """
    model = without_ddp(model)
    before = _names(model)
    _check(optimizer, before)
    shapes = {p: p.shape for p in before}
    flags = {p: p.requires_grad for p in before}
    try:
        with following(before) as survivors:
            yield
    except BaseException as error:
        try:
            _rebind(optimizer, model, before, shapes, flags, survivors)
        except InputError as reason:
            error.add_note(NOT_REBOUND.format(optimizer=_name(optimizer), reason=reason))
        raise
    _rebind(optimizer, model, before, shapes, flags, survivors)


def _rebind(
    optimizer: Optimizer,
    model: nn.Module,
    before: dict[nn.Parameter, list[str]],
    shapes: dict[nn.Parameter, torch.Size],
    flags: dict[nn.Parameter, bool],
    survivors: Survivors,
) -> None:
    """Bring the optimizer to the parameters that the model has now.

    Raises:
        InputError: a parameter's elements cannot be followed; the optimizer is as it was.
    """
    after = dict(model.named_parameters(remove_duplicate=False))
    groups: list[list[nn.Parameter]] = []
    states: dict[torch.Tensor, dict[str, Any]] = {}
    dead = 0
    for group in optimizer.param_groups:
        live: list[nn.Parameter] = []
        for old in group["params"]:
            # A parameter that two layers share may have been parted by pruning: both parts stay.
            heirs = list(dict.fromkeys(after[n] for n in before[old] if n in after))
            dead += not heirs
            for new in heirs:
                state = _carried(optimizer, survivors, old, new, shapes[old], before[old][0])
                if state:
                    states[new] = state
                if new is not old:
                    new.requires_grad_(flags[old])  # the host's new parameters all require gradients
                live.append(new)
        groups.append(live)
    for group, live in zip(optimizer.param_groups, groups, strict=True):
        if "param_names" in group and len(live) != len(group["params"]):
            names = {p: n for n, p in reversed(after.items())}
            group["param_names"] = [names[p] for p in live]
        group["params"][:] = live
    optimizer.state.clear()
    optimizer.state.update(states)
    if dead:
        logger.info("%s: %d parameters are gone from the model, and their state with them", _name(optimizer), dead)


def _check(optimizer: Optimizer, names: dict[nn.Parameter, list[str]]) -> None:
    if any(c.__name__ in WHOLE_MODEL for c in type(optimizer).__mro__):
        raise InputError(REFUSED.format(optimizer=_name(optimizer)))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = [p for p in held if p not in names]
    if strangers:
        shape = tuple(strangers[0].shape)
        raise InputError(NOT_THE_MODELS.format(optimizer=_name(optimizer), count=len(strangers), shape=shape))
    for parameter in held:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                fits = value.shape == parameter.shape or value.numel() == 1
                got = f"a tensor of shape {tuple(value.shape)}"
            else:
                fits = value is None or isinstance(value, bool | int | float)
                got = f"a {type(value).__name__}"
            if not fits:
                raise InputError(
                    OTHER_STATE.format(
                        optimizer=_name(optimizer),
                        key=key,
                        name=names[parameter][0],
                        got=got,
                        shape=tuple(parameter.shape),
                    )
                )


def _carried(
    optimizer: Optimizer, survivors: Survivors, old: nn.Parameter, new: nn.Parameter, shape: torch.Size, name: str
) -> dict[str, Any]:
    """The state of ``old``, cut to what ``new`` holds of it."""
    state: dict[str, Any] = optimizer.state.get(old, {})
    if new is old and new.shape == shape:
        return state
    elements = survivors.elements(new)
    if elements is None or survivors.origin(new) is not old or elements.shape != new.shape:
        raise InputError(
            UNFOLLOWED.format(name=name, before=tuple(shape), after=tuple(new.shape), optimizer=_name(optimizer))
        )
    cut: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            cut[key] = value
        elif value.shape == shape:
            cut[key] = value.flatten()[elements.to(value.device)]
        else:
            cut[key] = value.clone()  # a counter; its own where a shared parameter was parted
    return cut


def _names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__
