"""A fingerprint of a model's values, to notice that statistics are of another state of it."""

from __future__ import annotations

import zlib

import torch
from torch import nn


def model_checksum(model: nn.Module) -> str:
    """CRC-32 of all parameters and buffers: names, shapes, dtypes and bytes, as hexadecimal digits.

    Buffers that merely count (``num_batches_tracked``) are left out.
    """
    value = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            continue
        value = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), value)
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
