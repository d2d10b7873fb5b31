"""Norms that mix channels, with statistics over the kept channels only: what LayerNorm, GroupNorm and RMSNorm compute
once the closed channels are really gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

MIXING_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Module types (and their subclasses) whose statistics run over channels."""


def gone_channels(indices: torch.Tensor, width: int) -> torch.Tensor:
    """Which channels of a norm go with the indices that a coupled group removes.

    A norm over a head's dimensions (of queries or keys) is one for all heads, and the host counts its channels as those
    of the projection before it: head after head. One of its channels goes if it goes in every head that stays, so if it
    is named more often than one that stays, which is named once for every head that goes.

    Args:
        indices: int64 channels that go, below ``width`` or below ``heads * width``.
        width: channels of the norm; not all of them go.

    Returns:
        bool ``[width]``.
    """
    named = torch.bincount(indices % width, minlength=width)
    return named > named.min()


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    keep: torch.Tensor,
) -> torch.Tensor:
    """LayerNorm whose mean and variance run over the kept channels of the last dimension.

    Args:
        x: ``[..., *normalized_shape]``.
        normalized_shape: as for ``torch.nn.functional.layer_norm``.
        weight: ``normalized_shape`` or ``None``.
        bias: ``normalized_shape`` or ``None``.
        eps: added to the variance.
        keep: bool ``[normalized_shape[-1]]``.

    Returns:
        The normalised tensor, in the shape of ``x``; values at closed channels are meaningless.
    """
    dims = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    mask = keep.to(x.dtype)
    count = mask.sum() * (int(torch.Size(normalized_shape).numel()) // normalized_shape[-1])
    mean = (x * mask).sum(dims, keepdim=True) / count
    centred = (x - mean) * mask
    out = centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + eps)
    return _affine(out, weight, bias)


def rms_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float | None,
    keep: torch.Tensor,
) -> torch.Tensor:
    """RMSNorm over the kept channels of the last dimension; arguments as :func:`layer_norm`."""
    dims = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    mask = keep.to(x.dtype)
    count = mask.sum() * (int(torch.Size(normalized_shape).numel()) // normalized_shape[-1])
    kept = x * mask
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(kept * torch.rsqrt(kept.square().sum(dims, keepdim=True) / count + eps), weight, None)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    keep: torch.Tensor,
) -> torch.Tensor:
    """GroupNorm over the kept channels of each normalisation group.

    Args:
        x: ``[N, C, *positions]``.
        num_groups: normalisation groups; a unit has one channel in each, so each keeps as many.
        weight: ``[C]`` or ``None``.
        bias: ``[C]`` or ``None``.
        eps: added to the variance.
        keep: bool ``[C]``.
    """
    n, c = x.shape[:2]
    split = x.reshape(n, num_groups, c // num_groups, -1)
    mask = keep.to(x.dtype).reshape(1, num_groups, c // num_groups, 1)
    count = mask.sum(2, keepdim=True) * split.shape[3]
    mean = (split * mask).sum((2, 3), keepdim=True) / count
    centred = (split - mean) * mask
    out = centred * torch.rsqrt(centred.square().sum((2, 3), keepdim=True) / count + eps)
    shape = (1, c) + (1,) * (x.ndim - 2)
    return _affine(
        out.reshape(x.shape),
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
