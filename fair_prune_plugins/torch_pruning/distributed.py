"""``DistributedDataParallel`` around a model that is pruned: taken off before, put on again after."""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fair_prune_plugins.errors import InputError

logger = logging.getLogger(__name__)

UNWRAPPED = (
    "DistributedDataParallel was taken off: the model inside is pruned. Wrap it again after the step with "
    "rewrapped(ddp_model): the old wrapper goes on reducing gradients of parameters that are gone"
)
NOT_DDP = "rewrapped() takes the DistributedDataParallel that the model was in, got {got}"
CANNOT_REWRAP = "cannot wrap the model again as it was: {what}; wrap ddp_model.module yourself"
MIXED_PRECISION = "mixed_precision leaves hooks of the old wrapper on the model"
DELAYED = "delay_all_reduce_named_params names parameters that pruning may have replaced"
STATEFUL_HOOK = "the state of its communication hook {hook} may be of the old parameters' sizes"

SAME = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
)
"""Options that a wrapper keeps under their own names; some torch versions lack the last ones."""


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``, or the model itself."""
    if isinstance(model, DistributedDataParallel):
        logger.info(UNWRAPPED)
        inside: nn.Module = model.module
        return inside
    return model


def rewrapped(ddp_model: nn.Module) -> DistributedDataParallel:
    """A new ``DistributedDataParallel`` with the options of the old one, around the same, by now pruned, model.

    A wrapper's reducer is built for the parameters that were there when it was made. Every rank must call this, after
    its pruning step; as on every wrapping, torch refuses ranks whose parameters differ in shape, and copies rank 0's
    values to all.

    Args:
        ddp_model: the wrapper from before the step. Do not use it afterwards.

    Returns:
        The new wrapper: same process group, devices, bucket size and flags, and the same communication hook if that
        has no state but a process group.

    Raises:
        InputError: not a wrapper, or one whose options cannot be carried over (mixed precision, delayed parameters,
            hooks with a state).
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise InputError(NOT_DDP.format(got=type(ddp_model).__name__))
    if getattr(ddp_model, "mixed_precision", None) is not None:
        raise InputError(CANNOT_REWRAP.format(what=MIXED_PRECISION))
    if getattr(ddp_model, "_delay_all_reduce_params", None):
        raise InputError(CANNOT_REWRAP.format(what=DELAYED))
    hooks = list(getattr(ddp_model, "_comm_hooks", ()))
    for hook, state in hooks:
        if state is not None and not isinstance(state, torch.distributed.ProcessGroup):
            raise InputError(CANNOT_REWRAP.format(what=STATEFUL_HOOK.format(hook=hook.__qualname__)))
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {name: getattr(ddp_model, name) for name in SAME if name in known}
    if not ddp_model.bucket_bytes_cap_default:
        options["bucket_cap_mb"] = ddp_model.bucket_bytes_cap / 2**20
    if not ddp_model.broadcast_buffers:
        options["broadcast_buffers"] = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        again = DistributedDataParallel(ddp_model.module, **options)
    for hook, state in hooks:
        again.register_comm_hook(state, hook)
    again.train(ddp_model.training)
    return again
