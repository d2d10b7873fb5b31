"""Heads of hand-written attention: which projections have them, and telling their owners how many are left."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fair_prune_plugins.gates.removal import HEAD_COUNT_NAMES, update_attention_owners


def attention_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Linear layers of modules that remember a number of heads, with that number, where it divides their outputs."""
    heads: dict[nn.Module, int] = {}
    for owner in model.modules():
        if isinstance(owner, nn.MultiheadAttention):
            continue
        counts = [n for name in HEAD_COUNT_NAMES if type(n := owner.__dict__.get(name)) is int and n > 0]
        if counts:
            linear = (m for m in owner.children() if isinstance(m, nn.Linear))
            heads |= {layer: counts[0] for layer in linear if layer.out_features % counts[0] == 0}
    return heads


def tell_owners(model: nn.Module, before: Mapping[nn.Module, tuple[int, int]]) -> None:
    """Let attention modules know their new head counts, after whole heads of their projections were removed.

    Args:
        model: the smaller model.
        before: heads and head size that each projection had.
    """
    layers = {layer: sizes for layer, sizes in before.items() if isinstance(layer, nn.Linear)}
    now = [(layer, layer.out_features // size, size) for layer, (_, size) in layers.items()]
    update_attention_owners(model, now, layers)
