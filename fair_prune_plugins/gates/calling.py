"""How a model is called: tensors, tuples and dicts in, anything with tensors out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError, UnsupportedModelError

ForwardFn = Callable[[nn.Module, Any], Any]
"""``forward_fn(model, inputs)``: for models that are not called as ``model(x)``, ``model(*inputs)`` or
``model(**inputs)``."""

NO_TENSOR = "the model's inputs hold no tensor (got {kind}); pass a tensor, or a tuple, list or dict with tensors"
NOT_COPYABLE = (
    "the model cannot be copied ({reason}), and it is examined and measured on copies, to leave yours as it is. Keep "
    "nothing in it that copy.deepcopy refuses: of a tensor that a forward computed, keep tensor.detach()"
)


def call(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None = None) -> Any:
    """Call ``model`` on ``inputs``: a tensor, a tuple or list (positional), or a mapping (keywords)."""
    if forward_fn is not None:
        return forward_fn(model, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def output_tensors(outputs: Any) -> list[torch.Tensor]:
    """Every tensor in what a model returned (dicts, tuples, dataclasses registered with pytree), in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def batch_size(inputs: Any) -> int:
    """Number of samples: the first dimension of the first tensor.

    Raises:
        InputError: there is no tensor with a batch dimension.
    """
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise InputError(NO_TENSOR.format(kind=type(inputs).__name__))


def resized(inputs: Any, size: int) -> Any:
    """``inputs`` with ``size`` samples: rows repeated or dropped in every tensor that has the batch dimension."""
    now = batch_size(inputs)
    rows = torch.arange(size) % now

    def fit(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == now:
            return leaf.detach()[rows.to(leaf.device)]
        return leaf

    return pytree.tree_map(fit, inputs)


def moved(inputs: Any, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """``inputs`` on another device; floating tensors also in another dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return pytree.tree_map(move, inputs)


def generic(inputs: Any, seed: int) -> Any:
    """``inputs`` with nothing in them that could hide a difference: constant floating tensors are drawn at random, and
    samples that repeat the first one are scaled apart.
    """
    samples = batch_size(inputs)
    generator = torch.Generator().manual_seed(seed)

    def vary(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
            return leaf
        if bool((leaf == leaf.flatten()[0]).all()):
            return torch.rand(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
        if leaf.shape[0] == samples > 1 and bool((leaf == leaf[:1]).all()):
            return leaf * (1 + torch.arange(samples).to(leaf) / 8).reshape(-1, *[1] * (leaf.ndim - 1))
        return leaf

    return pytree.tree_map(vary, inputs)


def copied(model: nn.Module, instead: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model, also of one that keeps what its forward computed (``self.features = ...``).

    Such tensors are part of a graph and refuse to be copied; the copy has their values, detached.

    Args:
        model: stays as it is.
        instead: by ``id`` of something in the model, what the copy has in its place.

    Raises:
        UnsupportedModelError: the model holds something else that refuses.
    """
    memo = dict(instead or {})
    for module in model.modules():
        for leaf in pytree.tree_leaves(dict(module.__dict__)):
            if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module's own __deepcopy__ or pickling raises
        raise UnsupportedModelError(NOT_COPYABLE.format(reason=f"{type(error).__name__}: {error}")) from error


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Hand the model back as it was: every module's mode, attributes, ``requires_grad``, ``.grad`` and buffers,
    whatever happens inside.

    Hooks are the business of those who add them. Gradients are set aside, so that a backward pass inside starts from
    none.
    """
    # The modes are among the attributes, and so is what a forward leaves behind (activations, counters).
    attributes = [(m, dict(m.__dict__)) for m in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [
        (m, dict(m._buffers), {k: b.clone() for k, b in m._buffers.items() if b is not None}) for m in model.modules()
    ]
    for p, _, _ in parameters:
        p.grad = None
    try:
        yield
    finally:
        for m, before in attributes:
            for name in m.__dict__.keys() - before.keys():
                del m.__dict__[name]
            m.__dict__.update(before)
        for p, requires_grad, grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad
        with torch.no_grad():
            for m, originals, values in buffers:
                for name, original in originals.items():
                    m._buffers[name] = original
                    if original is not None and not _same(original, values[name]):
                        original.copy_(values[name])


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())
