"""What the removed units still said: constants that masks leave behind a layer's mask, and where they can be kept.

A convolution's masked channel is zero, and the norm after it makes of that the constant ``beta - mean * gamma / std``.
Removing the channel drops it. A layer that reads the constant can keep it in its bias, if it reads the same value at
every position; zero padding puts zeros beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.nni.choosing import Gone
from fair_prune_plugins.nni.links import CONTRACTIONS, CONVOLUTIONS, TRANSPOSED, Links, conv_groups
from fair_prune_plugins.nni.liveness import removing
from fair_prune_plugins.nni.masks import channel_dim

CONSTANT = {torch.float64: 1e-12, torch.float32: 1e-5}
"""How far apart the values of a constant may be, beside the largest; for other types as for half precision."""
COARSE = 1e-2

ZERO_PADDING = "its padding puts zeros beside the constant"
SPREADING = "a transposed convolution spreads the constant unevenly"
VARYING = "the values vary with the input or with the position"


@dataclass(frozen=True)
class Shift:
    """What removed input channels of a layer said under the masks.

    Attributes:
        layer: its path.
        folded: channels whose constant is in the layer's bias now.
        dropped: channels that said something and are gone.
        reason: why they could not be folded, where that was asked for.
    """

    layer: str
    folded: int
    dropped: int
    reason: str = ""


@dataclass
class Values:
    """What arrived in a layer's removed input channels, over all of its calls.

    Attributes:
        channels: int64 ``[k]``, the channels.
        low: ``[k]``, their least values.
        high: ``[k]``, their largest.
    """

    channels: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def constant(self) -> torch.Tensor:
        """Bool ``[k]``: the same everywhere, but for rounding."""
        near = CONSTANT.get(self.low.dtype, COARSE)
        return self.high - self.low <= near * torch.maximum(self.low.abs(), self.high.abs())


@contextmanager
def watched(gone: Gone, seen: dict[nn.Module, Values]) -> Iterator[None]:
    """See what arrives in the input channels that go, of all layers, until the context ends.

    Args:
        gone: channels that go.
        seen: by layer, is added to.
    """
    with ExitStack() as stack:
        for (module, is_output), channels in gone.items():
            if not is_output and isinstance(module, CONTRACTIONS):
                stack.enter_context(removing(module.register_forward_pre_hook(partial(_see, seen, channels))))
        yield


def _see(seen: dict[nn.Module, Values], channels: torch.Tensor, layer: nn.Module, args: tuple[Any, ...]) -> None:
    if not args or not isinstance(args[0], torch.Tensor):
        return
    x = args[0].detach()
    x = x.index_select(channel_dim(layer, x.ndim) % x.ndim, channels.to(x.device))
    x = x.movedim(channel_dim(layer, x.ndim), 0).flatten(1)
    low, high = x.amin(1), x.amax(1)
    before = seen.get(layer)
    if before is not None:
        low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
    seen[layer] = Values(channels.to(x.device), low, high)


@contextmanager
def silenced(gone: Gone) -> Iterator[None]:
    """Let nothing arrive in the input channels that go, of all layers, until the context ends."""
    with ExitStack() as stack:
        for (module, is_output), channels in gone.items():
            if not is_output and isinstance(module, CONTRACTIONS):
                stack.enter_context(removing(module.register_forward_pre_hook(partial(_silence, channels))))
        yield


def _silence(channels: torch.Tensor, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not args or not isinstance(args[0], torch.Tensor):
        return None
    x = args[0]
    return x.index_fill(channel_dim(layer, x.ndim) % x.ndim, channels.to(x.device), 0), *args[1:]


def settle(
    seen: Mapping[nn.Module, Values], links: Links, names: Mapping[nn.Module, str], *, fold: bool
) -> list[Shift]:
    """Say what the removed channels said, and fold what is constant into biases.

    Args:
        seen: what arrived in them, under the masks.
        links: which inputs a layer reads at all.
        names: paths of the layers.
        fold: whether to change biases; a layer without one gets one.

    Returns:
        One entry for each layer that heard anything from them.
    """
    shifts = []
    with torch.no_grad():
        for layer, values in seen.items():
            read = ~links.masked_inputs(layer).to(values.low.device)[values.channels]
            heard = read & ((values.low != 0) | (values.high != 0))
            if not bool(heard.any()):
                continue
            reason = _inexact(layer) if fold else ""
            constant = heard & values.constant() if fold and not reason else torch.zeros_like(heard)
            if bool(constant.any()):
                _add_to_bias(layer, _response(layer, values.channels[constant], values.low[constant]))
            dropped = int((heard & ~constant).sum())
            if fold and dropped and not reason:
                reason = VARYING
            shifts.append(Shift(names[layer], int(constant.sum()), dropped, reason))
    return shifts


def _inexact(layer: nn.Module) -> str:
    """Why a constant at a layer's input is not one at its output, or nothing."""
    if isinstance(layer, TRANSPOSED):
        return SPREADING
    if not isinstance(layer, CONVOLUTIONS) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return ""
    padded = any(k > 1 for k in layer.kernel_size) if layer.padding == "same" else any(p != 0 for p in layer.padding)
    return ZERO_PADDING if padded else ""


def _response(layer: nn.Module, channels: torch.Tensor, constants: torch.Tensor) -> torch.Tensor:
    """What constants in some input channels add to a layer's outputs, ``[outputs]``."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    kernels = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    groups = conv_groups(layer)
    arriving = constants.new_zeros(groups * kernels.shape[1])
    arriving[channels] = constants
    kernels = kernels.reshape(groups, -1, kernels.shape[1])
    return torch.einsum("goi,gi->go", kernels, arriving.reshape(groups, -1)).flatten()


def _add_to_bias(layer: nn.Module, response: torch.Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    if isinstance(bias, nn.Parameter):
        bias.data = bias.data + response
    else:
        layer.bias = nn.Parameter(response.to(weight), weight.requires_grad)
