"""Which activations carry one sample per row, and whether samples stay apart: found by running two batch sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call, output_tensors, resized

BATCH_ELSEWHERE = (
    "at {path} dimension 0 of the activation is {shapes} for batches of {sizes}: it does not hold the samples"
)

MIXED = (
    "the model mixes the samples of a batch: the same samples give other outputs in a batch of {sizes}, by "
    "{error:.1e} of "
    "the outputs' scale, so no sample has a gradient of its own. Batch statistics in eval mode do that, and "
    "randomness in "
    "the forward"
)
FAILED = (
    "the model runs with {first} samples but not with {size}: {error}. Gates need a model that takes any batch size"
)

SIZES = (2, 3)

SAME = 1e-3
"""Largest relative difference of a sample's outputs between batch sizes: above what single precision explains."""


def misplaced_batches(
    model: nn.Module, paths: Iterable[str], inputs: Any, forward_fn: ForwardFn | None = None
) -> dict[str, str]:
    """Find layers whose input does not have the batch in dimension 0.

    Args:
        model: a copy that may be run freely, in eval mode.
        paths: layers to look at.
        inputs: example inputs.
        forward_fn: how the model is called, if not plainly.

    Returns:
        Path to a message, for the layers that fail; empty if all is well.

    Raises:
        UnsupportedModelError: the model does not run at another batch size, or its samples' outputs depend on it.
    """
    outputs: list[list[torch.Tensor]] = []
    seen: dict[str, list[set[int]]] = {}
    for size in SIZES:
        rows: dict[str, set[int]] = {}
        handles = []
        for path in paths:
            module = model.get_submodule(path)

            def look(
                _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path, rows: Any = rows
            ) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                if isinstance(x, torch.Tensor):
                    rows.setdefault(path, set()).add(int(x.shape[0]) if x.ndim else 0)

            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
        try:
            with torch.no_grad():
                outputs.append(output_tensors(call(model, resized(inputs, size), forward_fn)))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise UnsupportedModelError(FAILED.format(first=SIZES[0], size=size, error=text)) from error
        finally:
            for handle in handles:
                handle.remove()
        for path, found in rows.items():
            seen.setdefault(path, []).append(found)
    _refuse_mixed(*outputs)
    bad = {}
    for path, shapes in seen.items():
        if shapes != [{s} for s in SIZES]:
            listed = " and ".join(", ".join(map(str, sorted(s))) for s in shapes)
            bad[path] = BATCH_ELSEWHERE.format(path=path, shapes=listed, sizes=" and ".join(map(str, SIZES)))
    return bad


def _refuse_mixed(fewer: list[torch.Tensor], more: list[torch.Tensor]) -> None:
    for a, b in zip(fewer, more, strict=False):
        per_sample = a.ndim and b.ndim and (a.shape[0], b.shape[0]) == SIZES and a.shape[1:] == b.shape[1:]
        if not per_sample or not a.is_floating_point():
            continue
        error = float((a - b[: SIZES[0]]).abs().max()) / max(float(a.abs().max()), torch.finfo(a.dtype).tiny)
        if not error <= SAME:
            raise UnsupportedModelError(MIXED.format(sizes=" and of ".join(map(str, SIZES)), error=error))
