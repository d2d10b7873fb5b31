"""A fingerprint of a model's values, to notice that statistics are of another state of it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def model_checksum(model: nn.Module) -> str:
    """Hash of all parameters and buffers: names, shapes, dtypes and bytes, as hexadecimal digits.

    Buffers that merely count (``num_batches_tracked``) are left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
