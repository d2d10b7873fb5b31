"""The gate plan of whatever is pruned: a host pruner, one of ours, or a plain model."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import GatePlan, PruningSettings, build_plan
from fair_prune_plugins.gates.calling import ForwardFn
from fair_prune_plugins.gates.removal import LastDimensionNormPruner
from fair_prune_plugins.statistics import BatchReader
from fair_prune_plugins.torch_pruning.distributed import without_ddp

NOT_A_PRUNER = "collect() takes a torch_pruning pruner or a model, got {got}"
HAS_ITS_OWN = (
    "this {pruner} has {argument} of its own, with which it was made and prunes: leave out {argument}= here, or give "
    "other ones to the pruner"
)
HOST_LAYER_NORM = (
    "this pruner removes LayerNorm channels with Torch-Pruning's own routine, which permutes weights silently where "
    "few channels are kept; use fair_prune_plugins.torch_pruning.FairPruner for this model"
)


def plan_of(pruner_or_model: Any, example_inputs: Any, forward_fn: ForwardFn | None = None) -> GatePlan:
    """The gate plan of a host pruner (with its graph and settings), of one of ours, or of a model (DDP's inside).

    Args:
        pruner_or_model: any of these.
        example_inputs: to build the plan with; not for a pruner of ours, which has its own.
        forward_fn: likewise.

    Raises:
        InputError: something else, or arguments for a pruner that has its own.
        UnsupportedModelError: see :func:`fair_prune_plugins.gates.build_plan`.
    """
    if isinstance(pruner_or_model, nn.Module):
        return build_plan(without_ddp(pruner_or_model), example_inputs, forward_fn=forward_fn)
    own = getattr(pruner_or_model, "gate_plan", None)
    if own is not None:
        for argument, given in (("example_inputs", example_inputs), ("forward_fn", forward_fn)):
            if given is not None:
                raise InputError(HAS_ITS_OWN.format(pruner=type(pruner_or_model).__name__, argument=argument))
        plan: GatePlan = own()
        return plan
    if not isinstance(pruner_or_model, tp.pruner.BasePruner):
        raise InputError(NOT_A_PRUNER.format(got=type(pruner_or_model).__name__))
    plan = build_plan(
        pruner_or_model.model,
        example_inputs,
        settings=settings_of(pruner_or_model),
        graph=pruner_or_model.DG,
        forward_fn=forward_fn,
    )
    _warn_of_host_layer_norm(pruner_or_model, plan)
    return plan


def settings_of(pruner: Any) -> PruningSettings:
    """What a host pruner knows beyond its graph."""
    return PruningSettings(
        ignored_layers=tuple(pruner.ignored_layers),
        root_module_types=tuple(pruner.root_module_types),
        in_channel_groups=dict(pruner.in_channel_groups),
        out_channel_groups=dict(pruner.out_channel_groups),
        num_heads=dict(pruner.num_heads),
        prune_num_heads=bool(pruner.prune_num_heads),
    )


def _warn_of_host_layer_norm(pruner: Any, plan: GatePlan) -> None:
    for group in plan.prunable:
        for site in group.norms:
            module = plan.model.get_submodule(site.path)
            host = pruner.DG.get_pruner_of_module(module)
            if isinstance(module, nn.LayerNorm) and not isinstance(host, LastDimensionNormPruner):
                warnings.warn(HOST_LAYER_NORM, stacklevel=4)
                return


def peeked(loader: Iterable[Any], reader: BatchReader) -> tuple[Any, Iterable[Any]]:
    """A loader's first inputs, and a loader that still yields them."""
    iterator = iter(loader)
    try:
        first = next(iterator)
    except StopIteration:
        raise InputError("the loader yielded no batch; statistics need data") from None
    rest = itertools.chain([first], iterator) if iterator is loader else loader
    return reader.read_inputs(first), rest
