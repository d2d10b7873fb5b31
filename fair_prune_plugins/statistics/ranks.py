"""Several processes of ``torch.distributed`` that must come to the same statistics, or fail together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.groups import EMPTY_GROUPS, SMALL_GROUP
from fair_prune_plugins.statistics.store import EVERYONE, GateStatistics
from fair_prune_plugins.statistics.walking import NO_DATA

logger = logging.getLogger(__name__)

Distributed = Literal["auto"] | bool
"""Whether all ranks work together: ``"auto"`` where ``torch.distributed`` runs with more than one."""

T = TypeVar("T")

NOT_RUNNING = "distributed=True needs torch.distributed.init_process_group(...) first"
BAD_CHOICE = "distributed must be 'auto', True or False, got {got!r}"
OTHER_RANK = "rank {rank} failed, so all ranks stop here. It said: {error}"
OTHER_BUFFERS = "this rank's model has other buffers than rank 0's ({name}); all ranks must hold the same model"


def together(distributed: Distributed, process_group: Any = None) -> bool:
    """Whether this is one of several ranks that work together.

    Raises:
        InputError: ranks are asked for and there are none.
    """
    from torch import distributed as dist

    if distributed not in ("auto", True, False):
        raise InputError(BAD_CHOICE.format(got=distributed))
    running = dist.is_available() and dist.is_initialized()
    if distributed is True and not running:
        raise InputError(NOT_RUNNING)
    return bool(distributed) and running and (distributed is True or dist.get_world_size(process_group) > 1)


def in_agreement(work: Callable[[], T], process_group: Any = None) -> T:
    """Do this rank's part of the work; if a rank fails, all of them raise instead of waiting for it.

    A rank that dies outright cannot say so; the others then hear it from ``torch.distributed``, at once or after its
    timeout.

    Raises:
        FairPruneError: another rank failed; the message names it. The rank that failed raises its own error.
    """
    from torch import distributed as dist

    result: Any = None
    mine: Exception | None = None
    try:
        result = work()
    except Exception as error:
        mine = error
    said: list[Any] = [None] * dist.get_world_size(process_group)
    text = None if mine is None else f"{type(mine).__name__}: {mine}"
    dist.all_gather_object(said, text, group=process_group)
    if mine is not None:
        raise mine
    for rank, error_text in enumerate(said):
        if error_text is not None:
            raise FairPruneError(OTHER_RANK.format(rank=rank, error=error_text))
    return result  # type: ignore[no-any-return]


def collected_together(
    model: nn.Module, measure: Callable[[], GateStatistics], process_group: Any = None
) -> GateStatistics:
    """This rank's part in collecting statistics over the data of all ranks; every rank returns the same.

    Every rank first takes rank 0's buffers, as ``DistributedDataParallel`` does before each training forward: after a
    training step each has the running statistics of its own batches, and would measure another model.

    Args:
        model: the model that is measured.
        measure: measures this rank's share, which may be empty (``collect(..., allow_empty=True)``).
        process_group: the ranks; all of them by default.

    Raises:
        FairPruneError: another rank failed.
        InputError: no rank has data, or nobody has anybody of a known group; the ranks' models differ.
    """
    first = _buffers_of_first_rank(model, process_group)

    def work() -> GateStatistics:
        _take(model, first)
        return measure()

    found = in_agreement(work, process_group).all_reduced(process_group)
    if not int(found.people.sum()):
        raise InputError(NO_DATA)
    if found.names != (EVERYONE,):
        if found.unknown == int(found.people.sum()):
            raise InputError(EMPTY_GROUPS.format(n=found.unknown, attribute=found.attribute))
        if found.unknown or min(found.counts.values()) < SMALL_GROUP:
            logger.warning("%s", found.statement())
    return found


def _buffers_of_first_rank(model: nn.Module, process_group: Any) -> dict[str, torch.Tensor]:
    from torch import distributed as dist

    source = 0 if process_group is None else dist.get_global_rank(process_group, 0)
    sent: list[Any] = [None]
    if dist.get_rank() == source:
        sent = [{name: buffer.detach().cpu() for name, buffer in model.named_buffers()}]
    dist.broadcast_object_list(sent, src=source, group=process_group)
    buffers: dict[str, torch.Tensor] = sent[0]
    return buffers


@torch.no_grad()
def _take(model: nn.Module, first: dict[str, torch.Tensor]) -> None:
    own = dict(model.named_buffers())
    for name in sorted(own.keys() | first.keys()):
        if name not in own or name not in first or own[name].shape != first[name].shape:
            raise InputError(OTHER_BUFFERS.format(name=name))
    for name, buffer in own.items():
        buffer.copy_(first[name])
