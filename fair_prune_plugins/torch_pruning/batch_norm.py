"""BatchNorm statistics of the pruned model: what its layers now see is not what was averaged before the step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sized
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import ForwardFn, batch_size, call, moved, preserved
from fair_prune_plugins.statistics import BatchReader
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.ranks import Distributed, in_agreement, together
from fair_prune_plugins.torch_pruning.distributed import without_ddp

logger = logging.getLogger(__name__)

NOTHING_TO_DO = "the model has no BatchNorm layer with running statistics: nothing to re-estimate"
NOT_REACHED = "the forward pass did not reach the BatchNorm layers %s: their running statistics stay as they were"
NO_DATA = "the loader yielded no sample; running statistics need data"
ONE_VALUE = (
    "batch {batch} gives {layer!r} one value per channel, of which there is no variance; leave that batch out "
    "(drop_last=True), or take larger ones"
)
NOT_FINITE = "{layer!r} sees values that are not finite: no running statistics were changed"
BAD_COUNT = "batches must be a positive number or None for all, got {got}"


class _Moments:
    """Count, mean and sum of squared deviations per channel, pooled exactly (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.calls = self.count = 0
        self.mean: torch.Tensor = torch.zeros(0)
        self.spread: torch.Tensor = torch.zeros(0)

    def add(self, calls: int, count: int, mean: torch.Tensor, spread: torch.Tensor) -> None:
        self.calls += calls
        if not self.count:
            self.count, self.mean, self.spread = count, mean, spread
            return
        total, step = self.count + count, mean - self.mean
        self.spread = self.spread + spread + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total


def reestimate_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    inputs: BatchSource = AUTO,
    batches: int | None = None,
    forward_fn: ForwardFn | None = None,
    distributed: Distributed = "auto",
    process_group: Any = None,
    progress: bool = True,
) -> tuple[str, ...]:
    """Compute the running mean and variance of every BatchNorm layer anew, over data, without labels or gradients.

    Removing channels shifts what later layers see, and running statistics from before the step are the first reason
    why accuracy collapses right after it. As in training, every BatchNorm layer normalises with the batch's own
    statistics; all other layers (Dropout included) are in evaluation mode. The result is the mean and the unbiased
    variance over all values of all batches together, in double precision. ``torch.optim.swa_utils.update_bn`` differs:
    it averages the batches' variances, all batches counting the same, with Dropout active.

    Args:
        model: the model, plain or in ``DistributedDataParallel``; its modes, momenta and everything but the running
            statistics stay as they are. ``num_batches_tracked`` becomes the number of batches seen.
        loader: yields batches: tensors, tuples, lists or dicts; large batches are best, without augmentation.
        inputs: where a batch has the model's inputs: a key, index or callable.
        batches: use only so many batches.
        forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.
        distributed: pool over the ranks of a ``torch.distributed`` run, each with its share; all ranks must call this.
        process_group: those ranks, if not all.
        progress: show a progress bar.

    Returns:
        Paths of the layers with new statistics; empty where the model has none, which is logged.

    Raises:
        InputError: no data, a batch with one value per channel, values that are not finite. The running statistics are
            then as they were.
        FairPruneError: another rank failed.
    """
    if batches is not None and batches < 1:
        raise InputError(BAD_COUNT.format(got=batches))
    model = without_ddp(model)
    layers = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not layers:
        logger.warning(NOTHING_TO_DO)
        return ()
    found = {path: _Moments() for path in layers}
    measure = partial(_measure, model, layers, found, loader, BatchReader(inputs), batches, forward_fn, progress)
    if together(distributed, process_group):
        in_agreement(measure, process_group)
        found = _pooled(found, process_group)
    else:
        measure()
    if not any(m.count for m in found.values()):
        raise InputError(NO_DATA)
    for path, moments in found.items():
        if moments.count and not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.spread).all()):
            raise InputError(NOT_FINITE.format(layer=path))
    missed = [path for path, moments in found.items() if not moments.count]
    if missed:
        logger.warning(NOT_REACHED, ", ".join(missed))
    with torch.no_grad():
        for path, layer in layers.items():
            moments = found[path]
            if moments.count:
                layer.running_mean.copy_(moments.mean)  # type: ignore[union-attr]
                layer.running_var.copy_(moments.spread / (moments.count - 1))  # type: ignore[union-attr]
                if layer.num_batches_tracked is not None:
                    layer.num_batches_tracked.fill_(moments.calls)
    return tuple(path for path in layers if path not in missed)


def _measure(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    found: dict[str, _Moments],
    loader: Iterable[Any],
    reader: BatchReader,
    batches: int | None,
    forward_fn: ForwardFn | None,
    progress: bool,
) -> None:
    at = [0]

    def hook(path: str, layer: _BatchNorm, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0].detach()
        count = x.numel() // x.shape[1]
        if count < 2:
            raise InputError(ONE_VALUE.format(batch=at[0], layer=path))
        variance, mean = torch.var_mean(x.double(), [d for d in range(x.ndim) if d != 1], correction=0)
        found[path].add(1, count, mean, variance * count)
        # In place of the layer's own output: it stays in evaluation mode and its buffers are not touched.
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)

    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    device, dtype = (None, None) if parameter is None else (parameter.device, parameter.dtype)
    total = len(loader) if isinstance(loader, Sized) else None
    if total is None or batches is not None:
        total = batches if total is None or batches is None else min(total, batches)
    handles = []
    try:
        with preserved(model), torch.no_grad():
            model.eval()
            for path, layer in layers.items():
                handles.append(layer.register_forward_hook(partial(hook, path)))
            bar = tqdm(islice(loader, batches), total=total, desc="BatchNorm", disable=not progress, leave=False)
            for at[0], batch in enumerate(bar):
                model_inputs = moved(reader.read_inputs(batch), device=device, dtype=dtype)
                if batch_size(model_inputs):
                    call(model, model_inputs, forward_fn)
    finally:
        for handle in handles:
            handle.remove()


def _pooled(found: dict[str, _Moments], process_group: Any) -> dict[str, _Moments]:
    from torch import distributed as dist

    mine = {p: (m.calls, m.count, m.mean.cpu(), m.spread.cpu()) for p, m in found.items()}
    everyone: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, mine, group=process_group)
    pooled = {path: _Moments() for path in found}
    for one in everyone:
        for path, moments in one.items():
            if moments[1]:
                pooled[path].add(*moments)
    return pooled
