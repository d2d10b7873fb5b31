"""Which channels still carry something under the masks: the model is run once on values that only say "alive".

Every layer's output is replaced by a pattern in its live channels and zero in the others; a channel is live where an
unmasked weight reads a live input. All other operations (additions, products, activations, concatenations, reshapes,
whatever the forward does) compute on the pattern, so what arrives at a layer is zero exactly where the masks leave
nothing. Signs alternate and sizes are random, so that neither a ReLU nor a subtraction takes a live channel away.
Norms pass zero on as zero, and so do masked rows with a bias that is not masked: what they would add is a constant, and
what becomes of it is ``norm_shift``'s business.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.nni.links import CONTRACTIONS, PRODUCERS, Links, widths
from fair_prune_plugins.nni.masks import NORMS, WRONG_SHAPE, Masks, ModuleMask, channel_dim


@dataclass
class Liveness:
    """What was seen.

    Attributes:
        inputs: by layer, bool ``[input channels]``: something arrives there, in any of the layer's calls.
        outputs: likewise of its output channels, before anything after it.
        norms: channels that a norm lets through.
    """

    inputs: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    norms: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def note(self, table: dict[nn.Module, torch.Tensor], module: nn.Module, alive: torch.Tensor) -> None:
        """Remember what is alive in a call of ``module``, besides what was in earlier ones."""
        table[module] = alive | table[module] if module in table else alive


def without_zeros(inputs: Any) -> Any:
    """Inputs in which no floating value is zero, because zero means masked here."""
    return pytree.tree_map(
        lambda x: x.masked_fill(x == 0, 1) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs
    )


@contextmanager
def only_live_values(model: nn.Module, masks: Masks, links: Links, seed: int = 0) -> Iterator[Liveness]:
    """Let ``model`` compute on patterns instead of values until the context ends.

    Args:
        model: in eval mode, with the masks multiplied into its parameters.
        masks: what is masked.
        links: what that leaves of the layers' weights.
        seed: of the pattern.

    Yields:
        What is alive, filled in while the model runs.
    """
    liveness, pattern = Liveness(), _Pattern(seed)
    with ExitStack() as stack, _no_zero_parameters(model, masks):
        for module in model.modules():
            if isinstance(module, PRODUCERS):
                stack.enter_context(removing(module.register_forward_hook(partial(_layer, liveness, pattern, links))))
            elif isinstance(module, NORMS):
                mask = masks.get(module, ModuleMask())
                stack.enter_context(removing(module.register_forward_hook(partial(_norm, liveness, pattern, mask))))
        stack.enter_context(masked_activations(masks))
        yield liveness


@contextmanager
def masked_activations(masks: Masks) -> Iterator[None]:
    """Multiply the activations that are masked as such, as NNI's wrappers do, until the context ends."""
    with ExitStack() as stack:
        for module, mask in masks.items():
            if mask.inputs:
                hook = partial(_masked_inputs, mask.inputs)
                stack.enter_context(removing(module.register_forward_pre_hook(hook, with_kwargs=True)))
            if mask.outputs:
                stack.enter_context(removing(module.register_forward_hook(partial(_masked_outputs, mask.outputs))))
        yield


@contextmanager
def holding(values: Mapping[nn.Parameter, torch.Tensor]) -> Iterator[None]:
    """Let parameters have other values until the context ends."""
    with ExitStack() as stack:
        for parameter, own in values.items():
            stack.enter_context(_holding(parameter, own))
        yield


def masked_parameters(masks: Masks) -> dict[nn.Parameter, torch.Tensor]:
    """The parameters' values times their masks."""
    masked: dict[nn.Parameter, torch.Tensor] = {}
    for module, mask in masks.items():
        for name, values in mask.parameters.items():
            parameter = module.get_parameter(name)
            masked[parameter] = masked.get(parameter, parameter.data) * values
    return masked


@contextmanager
def removing(handle: Any) -> Iterator[None]:
    """Remove a hook when the context ends."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _holding(parameter: nn.Parameter, values: torch.Tensor) -> Iterator[None]:
    before = parameter.data
    parameter.data = values
    try:
        yield
    finally:
        parameter.data = before


@contextmanager
def _no_zero_parameters(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Parameters that happen to be zero and are not masked (layer scales, fresh gates) must not look masked."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (*PRODUCERS, *NORMS)):
                continue
            masked = masks[module].parameters if module in masks else {}
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.is_floating_point():
                    continue
                zero = (parameter.data == 0) & (masked[name] != 0 if name in masked else True)
                if bool(zero.any()):
                    stack.enter_context(_holding(parameter, parameter.data.masked_fill(zero, 1)))
        yield


class _Pattern:
    """Writes patterns into tensors: one factor per position with alternating signs, one positive per channel."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._positions = torch.empty(0)

    def write(self, out: torch.Tensor, dim: int, alive: torch.Tensor) -> None:
        """Fill ``out``, in place and unseen by autograd, where ``alive`` says so along ``dim``; zero elsewhere."""
        dim %= out.ndim
        channels = out.shape[dim]
        positions = out.numel() // max(channels, 1)
        if len(self._positions) < positions:
            sizes = torch.rand(2 * positions, generator=self._generator) + 0.5
            sizes[1::2] *= -1
            self._positions = sizes
        factor = torch.rand(channels, generator=self._generator) + 0.5
        of_channel = (factor.to(out) * alive).reshape([-1 if d == dim else 1 for d in range(out.ndim)])
        shape = [1 if d == dim else s for d, s in enumerate(out.shape)]
        torch.mul(self._positions[:positions].to(out).reshape(shape), of_channel, out=out.data)


def live_channels(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Bool ``[channels]``: anything but zero along ``dim`` of ``x``."""
    dim %= x.ndim
    others = [d for d in range(x.ndim) if d != dim]
    x = x.detach()
    return x != 0 if not others else torch.linalg.vector_norm(x, 1, others) != 0


def _layer(
    liveness: Liveness,
    pattern: _Pattern,
    links: Links,
    layer: nn.Module,
    args: tuple[Any, ...],
    out: Any,
) -> None:
    if not isinstance(out, torch.Tensor) or not args or not isinstance(args[0], torch.Tensor):
        return
    if isinstance(layer, CONTRACTIONS):
        arriving = live_channels(args[0], channel_dim(layer, args[0].ndim))
        liveness.note(liveness.inputs, layer, arriving)
    else:
        arriving = torch.ones(widths(layer)[0], dtype=torch.bool, device=out.device)
    alive = links.fed(layer, arriving)
    liveness.note(liveness.outputs, layer, alive)
    pattern.write(out, channel_dim(layer, out.ndim), alive)


def norm_dim(norm: nn.Module, x: torch.Tensor) -> int:
    """Where the channels are in a norm's input; norms over the last dimension may permute theirs inside."""
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return -1 if x.shape[-1] == norm.normalized_shape[-1] else 1
    return channel_dim(norm, x.ndim)


def _norm(
    liveness: Liveness, pattern: _Pattern, mask: ModuleMask, norm: nn.Module, args: tuple[Any, ...], out: Any
) -> None:
    if not isinstance(out, torch.Tensor) or not args or not isinstance(args[0], torch.Tensor):
        return
    dim = norm_dim(norm, args[0])
    alive = live_channels(args[0], dim)
    weight = mask.parameters.get("weight")
    if weight is not None:
        kept = (weight != 0).reshape(-1, weight.shape[-1]).any(0)
        # A norm over head dimensions is one for all heads.
        alive = alive & (kept if len(kept) == len(alive) else kept.repeat(len(alive) // len(kept)))
    liveness.note(liveness.norms, norm, alive)
    pattern.write(out, dim, alive)


def _masked_inputs(
    masks: Mapping[str, torch.Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    changed = list(args)
    kwargs = dict(kwargs)
    names = list(inspect.signature(module.forward).parameters)
    for place, mask in masks.items():
        label = f"an input ({place}) of {type(module).__name__}"
        position = int(place) if place.isdecimal() else names.index(place) if place in names else len(changed)
        name = names[position] if place.isdecimal() and position < len(names) else place
        if position < len(changed):
            changed[position] = _times(label, changed[position], mask)
        elif name in kwargs:
            kwargs[name] = _times(label, kwargs[name], mask)
    return tuple(changed), kwargs


def _masked_outputs(masks: Mapping[str, torch.Tensor], module: nn.Module, _args: Any, out: Any) -> Any:
    def times(place: str, values: Any) -> Any:
        mask = masks.get(place)
        return values if mask is None else _times(f"an output ({place}) of {type(module).__name__}", values, mask)

    if isinstance(out, torch.Tensor):
        for place in masks:
            out = times(place, out)
        return out
    if isinstance(out, dict):
        return {k: times(k, v) for k, v in out.items()}
    if isinstance(out, tuple | list):
        return type(out)(times(str(i), v) for i, v in enumerate(out))
    return out


def _times(label: str, values: Any, mask: torch.Tensor) -> Any:
    """An activation times its mask, which may be of another batch size than the activation.

    Raises:
        InputError: the mask is of another shape.
    """
    if not isinstance(values, torch.Tensor):
        return values
    if mask.ndim == values.ndim and mask.shape[0] not in (1, values.shape[0]):
        mask = mask.amax(0, keepdim=True)  # what is left in any sample
    try:
        return values * mask.to(values)
    except RuntimeError as error:
        expected = tuple(values.shape)
        raise InputError(WRONG_SHAPE.format(target=label, got=tuple(mask.shape), expected=expected)) from error
