"""Which output channel of a layer reads which input channel, under a mask of its weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

CONVOLUTIONS = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd
CONTRACTIONS = (CONVOLUTIONS, nn.Linear)
"""Layers that contract over their input channels."""

PRODUCERS = (*CONTRACTIONS, nn.Embedding)
"""Layers whose weight says all about what their output channels are made of."""


def conv_groups(layer: nn.Module) -> int:
    """Number of conv groups; 1 for everything that is no convolution."""
    return layer.groups if isinstance(layer, CONVOLUTIONS) else 1


def widths(layer: nn.Module) -> tuple[int, int]:
    """A layer's numbers of input and output channels; an embedding has one input.

    Args:
        layer: one of :data:`PRODUCERS`.
    """
    if isinstance(layer, CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Embedding)
    return 1, layer.embedding_dim


def passes_through(layer: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution, whose inputs go with its outputs."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.out_channels == layer.in_channels > 1


class Links:
    """Which output channel of a layer reads which input channel, under masks of the weights.

    Args:
        masks: by layer, the mask of its weight in the weight's shape, 0 where masked.
    """

    def __init__(self, masks: Mapping[nn.Module, torch.Tensor]) -> None:
        self._rows: dict[nn.Module, torch.Tensor] = {}
        self._pairs: dict[nn.Module, torch.Tensor] = {}
        self._masked: dict[tuple[nn.Module, bool], torch.Tensor] = {}
        for layer, mask in masks.items():
            if not isinstance(layer, PRODUCERS):
                continue
            rows = _whole_rows(layer, mask)
            if rows is None:
                self._pairs[layer] = _pairs(layer, mask)
            else:
                self._rows[layer] = rows

    def fed(self, layer: nn.Module, alive: torch.Tensor) -> torch.Tensor:
        """Output channels that are made of at least one live input channel.

        Args:
            layer: one of :data:`PRODUCERS`.
            alive: bool ``[inputs]``.

        Returns:
            bool ``[outputs]``.
        """
        groups, (ins, outs) = conv_groups(layer), widths(layer)
        alive = alive.reshape(groups, 1, ins // groups)
        if layer in self._pairs:
            return (self._pairs[layer] & alive).any(2).flatten()
        any_alive = alive.any(2).expand(groups, outs // groups).flatten()
        return any_alive & self._rows[layer] if layer in self._rows else any_alive

    def read(self, layer: nn.Module, outputs: torch.Tensor) -> torch.Tensor:
        """Input channels that at least one of ``outputs`` reads.

        Args:
            layer: one of :data:`PRODUCERS`.
            outputs: bool ``[outputs]``.

        Returns:
            bool ``[inputs]``.
        """
        groups, (ins, outs) = conv_groups(layer), widths(layer)
        outputs = outputs & self._rows[layer] if layer in self._rows else outputs
        outputs = outputs.reshape(groups, outs // groups, 1)
        if layer in self._pairs:
            return (self._pairs[layer] & outputs).any(1).flatten()
        return outputs.any(1).expand(groups, ins // groups).flatten()

    def masked_outputs(self, layer: nn.Module) -> torch.Tensor:
        """Output channels whose weights are all masked, bool ``[outputs]``."""
        return self._all_masked(layer, True)

    def masked_inputs(self, layer: nn.Module) -> torch.Tensor:
        """Input channels whose weights are all masked, bool ``[inputs]``."""
        return self._all_masked(layer, False)

    def _all_masked(self, layer: nn.Module, is_output: bool) -> torch.Tensor:
        ins, outs = widths(layer)
        if layer not in self._rows and layer not in self._pairs:
            return torch.zeros(outs if is_output else ins, dtype=torch.bool)
        if (layer, is_output) not in self._masked:
            every = torch.ones(ins if is_output else outs, dtype=torch.bool, device=_weight(layer).device)
            self._masked[layer, is_output] = ~(self.fed if is_output else self.read)(layer, every)
        return self._masked[layer, is_output]


def _whole_rows(layer: nn.Module, mask: torch.Tensor) -> torch.Tensor | None:
    """Bool ``[outputs]``, which rows are open, if each is open or masked as a whole."""
    if isinstance(layer, TRANSPOSED | nn.Embedding):
        return None
    low, high = torch.aminmax(mask.flatten(1), dim=1)
    return low != 0 if bool((low == high).all()) else None


def _pairs(layer: nn.Module, mask: torch.Tensor) -> torch.Tensor:
    """Bool ``[conv groups, outputs, inputs]`` of each conv group."""
    groups, (ins, outs) = conv_groups(layer), widths(layer)
    if isinstance(layer, nn.Embedding):
        return (mask != 0).any(0).reshape(1, outs, 1)
    kernels = (mask != 0).flatten(2).any(2) if mask.ndim > 2 else mask != 0
    if isinstance(layer, TRANSPOSED):
        return kernels.reshape(groups, ins // groups, outs // groups).transpose(1, 2)
    return kernels.reshape(groups, outs // groups, ins // groups)


def row_mask(layer: nn.Module, keep: torch.Tensor) -> torch.Tensor:
    """A mask that leaves only some outputs, broadcastable to the weight.

    Args:
        layer: one of :data:`PRODUCERS`.
        keep: bool ``[outputs]``.
    """
    if isinstance(layer, nn.Embedding):
        return keep
    if isinstance(layer, TRANSPOSED):
        keep = keep.reshape(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0)
        return keep.reshape(*keep.shape, *[1] * (layer.weight.ndim - 2))
    return keep.reshape(-1, *[1] * (_weight(layer).ndim - 1))


def column_mask(layer: nn.Module, keep: torch.Tensor) -> torch.Tensor:
    """A mask that ignores all but some inputs, broadcastable to the weight.

    Args:
        layer: one of :data:`CONTRACTIONS`.
        keep: bool ``[inputs]``.
    """
    weight = _weight(layer)
    if isinstance(layer, TRANSPOSED):
        return keep.reshape(-1, *[1] * (weight.ndim - 1))
    groups, outs = conv_groups(layer), widths(layer)[1]
    keep = keep.reshape(groups, -1).repeat_interleave(outs // groups, 0)
    return keep.reshape(*keep.shape, *[1] * (weight.ndim - 2))


def _weight(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight
