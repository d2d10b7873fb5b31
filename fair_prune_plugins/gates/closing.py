"""Closing gates: the network computes what it would compute with the closed units removed, without being changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fair_prune_plugins.gates import norms
from fair_prune_plugins.gates.attention import Call, Contraction, Frames, kept_scales, multihead_attention
from fair_prune_plugins.gates.structure import CoupledGroup, Site, close_roots


@dataclass
class Masks:
    """Keep-masks per module, bool ``[channels]``, ``True`` where the channel stays.

    Attributes:
        outputs: at producers' outputs.
        inputs: at consumers' inputs.
        norms: of channel-mixing norms.
        attentions: of ``nn.MultiheadAttention`` modules.
        head_sizes: kept head size per ``scaled_dot_product_attention``.
        scales: scale attributes of attention modules for the kept head size, by module path and name.
    """

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    attentions: dict[str, torch.Tensor] = field(default_factory=dict)
    head_sizes: dict[Call, int] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)


def width_of(module: nn.Module, *, output: bool) -> int:
    """Number of output or input channels of a module with weights.

    Raises:
        TypeError: the module has no such number.
    """
    names = (
        ("out_channels", "out_features", "embedding_dim", "hidden_size")
        if output
        else ("in_channels", "in_features", "input_size")
    )
    for name in (*names, "num_channels", "num_features", "embed_dim"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return int(shape[-1])
    raise TypeError(f"{type(module).__name__} does not say how many {'output' if output else 'input'} channels it has")


def width_at(model: nn.Module, site: Site, *, output: bool) -> int:
    """Number of output or input channels of the module at a site; see :func:`width_of`."""
    return width_of(model.get_submodule(site.path), output=output) if site.width is None else site.width


def channel_dim(module: nn.Module) -> int:
    """Dimension of the channels in a module's input and output: 1 for convolutions, last for everything else.

    A layer of the user's own with kernels of more than two dimensions is taken for a convolution; the proof says
    whether that is right.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1
    return 1 if any(p.ndim > 2 for p in module.parameters(recurse=False)) else -1


def masks_for(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    closed: Mapping[str, torch.Tensor],
    contractions: Sequence[Contraction],
    *,
    consumers_only: bool = False,
) -> Masks:
    """Turn closed units into keep-masks of modules.

    Args:
        model: the model.
        groups: its coupled groups.
        closed: unit-set name to bool ``[units]``.
        contractions: where attention contracts queries with keys.
        consumers_only: leave the producers open, so that whatever reads the channels beside the consumers shows.
    """
    masks = Masks()
    for group in groups:
        if not any(u.name in closed for u in group.unit_sets):
            continue
        roots = close_roots(group, closed)

        def shut(table: dict[str, torch.Tensor], site: Site, *, output: bool, roots: torch.Tensor = roots) -> None:
            if site.path not in table:
                table[site.path] = torch.ones(width_at(model, site, output=output), dtype=torch.bool)
            gone = site.channels[roots[site.roots]]
            if table is masks.norms:
                table[site.path] &= ~norms.gone_channels(gone, len(table[site.path]))
            else:
                table[site.path][gone] = False

        for site in group.producers:
            if consumers_only:
                for c in contractions:
                    if c.producer == site.path:
                        shut(masks.outputs, site.within(c.channels), output=True)
            else:
                shut(masks.outputs, site, output=True)
        for site in group.consumers:
            shut(masks.inputs, site, output=False)
        for site in group.norms:
            shut(masks.norms, site, output=True)
            if any(c.producer == site.path for c in contractions):  # its bias would be contracted
                masks.outputs[site.path] = masks.norms[site.path]
        for site in group.attentions:
            shut(masks.attentions, site, output=True)
        if group.heads and group.units.name in closed:
            kept = int((~closed[group.units.name]).sum())
            producers = {s.path for s in (*group.producers, *group.norms)}
            for c in contractions:
                if c.call is not None and c.producer in producers:
                    masks.head_sizes[c.call] = kept
            for path in {path.rpartition(".")[0] for path in group.heads}:
                masks.scales[path] = kept_scales(model.get_submodule(path), group.units.size, kept)
    return masks


@contextmanager
def closed_gates(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Run ``model`` as if the masked channels were gone, until the context ends."""
    with ExitStack() as stack:
        for path, keep in masks.outputs.items():
            module = model.get_submodule(path)
            stack.enter_context(_removing(module.register_forward_hook(_shut_output(keep, channel_dim(module)))))
        for path, keep in masks.inputs.items():
            module = model.get_submodule(path)
            hook = module.register_forward_pre_hook(_shut_input(keep, channel_dim(module)), with_kwargs=True)
            stack.enter_context(_removing(hook))
        for path, keep in masks.attentions.items():
            module = model.get_submodule(path)
            assert isinstance(module, nn.MultiheadAttention)
            stack.enter_context(replaced_forward(module, partial(_closed_attention, module, keep)))
        for path, values in masks.scales.items():
            stack.enter_context(_attributes(model.get_submodule(path), values))
        if masks.norms or masks.head_sizes:
            mode = _ClosedOperations(masks.head_sizes)
            for path, keep in masks.norms.items():
                module = model.get_submodule(path)
                stack.enter_context(_removing(module.register_forward_pre_hook(partial(mode.enter_norm, keep))))
                stack.enter_context(_removing(module.register_forward_hook(mode.leave_norm, always_call=True)))
            for handle in mode.frames.watch(model, sorted({path for path, _ in masks.head_sizes})):
                stack.enter_context(_removing(handle))
            stack.enter_context(mode)
        yield


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _attributes(module: nn.Module, values: Mapping[str, float]) -> Iterator[None]:
    before = {name: module.__dict__[name] for name in values}
    module.__dict__.update(values)
    try:
        yield
    finally:
        module.__dict__.update(before)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``module`` compute ``forward`` until the context ends."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _shut(x: torch.Tensor, keep: torch.Tensor, dim: int) -> torch.Tensor:
    shape = [1] * x.ndim
    shape[dim] = -1
    # masked_fill and not a product: a closed channel that overflowed must not leave NaN behind.
    return x.masked_fill(~keep.to(x.device).reshape(shape), 0)


def _shut_output(keep: torch.Tensor, dim: int) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return _shut(output, keep, dim) if isinstance(output, torch.Tensor) else output

    return hook


def _shut_input(keep: torch.Tensor, dim: int) -> Callable[..., Any]:
    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_first_input(args, kwargs, lambda x: _shut(x, keep, dim))

    return hook


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with ``change`` applied to its input, given by position or by name."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: change(kwargs[name])}


def _closed_attention(module: nn.MultiheadAttention, keep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    kept_head_dim = int(keep.sum()) // module.num_heads
    return multihead_attention(module, lambda _point, x: _shut(x, keep, -1), kept_head_dim, *args, **kwargs)


class _ClosedOperations(TorchFunctionMode):
    """Swaps channel-mixing operations for those over the kept channels while the model runs."""

    def __init__(self, head_sizes: Mapping[Call, int]) -> None:
        super().__init__()
        self.head_sizes = head_sizes
        self.frames = Frames()
        self.norms: list[torch.Tensor] = []

    def enter_norm(self, keep: torch.Tensor, _module: nn.Module, _args: Any) -> None:
        self.norms.append(keep)

    def leave_norm(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self.norms:
            self.norms.pop()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            call = self.frames.next()
            kept = None if call is None else self.head_sizes.get(call)
            if kept is not None and kwargs.get("scale") is None and len(args) < 7:
                kwargs["scale"] = 1 / math.sqrt(kept)
        elif self.norms and func in _NORMS:
            x = args[0] if args else kwargs.pop("input")
            return _NORMS[func](x, *args[1:], **kwargs, keep=self.norms[-1].to(x.device))
        return func(*args, **kwargs)


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    keep: torch.Tensor,
) -> torch.Tensor:
    return norms.layer_norm(x, normalized_shape, weight, bias, eps, keep)


def _rms_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
    *,
    keep: torch.Tensor,
) -> torch.Tensor:
    return norms.rms_norm(x, normalized_shape, weight, eps, keep)


def _group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    keep: torch.Tensor,
) -> torch.Tensor:
    return norms.group_norm(x, num_groups, weight, bias, eps, keep)


_NORMS: dict[Any, Callable[..., torch.Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
}
