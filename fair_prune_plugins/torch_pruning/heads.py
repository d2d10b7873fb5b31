"""Recognising the projections of hand-written attention by how their modules name them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fair_prune_plugins.gates.removal import HEAD_COUNT_NAMES

HEADS_STAY = (
    "{layer}: nn.MultiheadAttention cannot lose whole heads, because it splits the width of its own inputs into heads; "
    "its head dimensions are pruned with that width. For fewer heads, write the attention with query, key and value "
    "projections of its own"
)
FUSED = ("qkv", "to_qkv", "in_proj", "query_key_value", "c_attn", "Wqkv")
SEPARATE = (
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
)


def find_heads(model: nn.Module) -> dict[nn.Module, int]:
    """Attention projections and their head counts.

    ``nn.MultiheadAttention`` knows its own. A module that has a head count under a usual name, and query, key and value
    projections (fused or apart, all as wide) under usual names, is taken for attention; whether that is right is proved
    with the gate plan, and projections under other names are the user's to name (``num_heads=``).

    Returns:
        module to number of heads.
    """
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            heads[module] = module.num_heads
            continue
        count = next((v for n in HEAD_COUNT_NAMES if isinstance(v := getattr(module, n, None), int) and v > 0), None)
        if count is None:
            continue
        layers = {n: m for n, m in module.named_children() if isinstance(m, nn.Linear)}
        for name in FUSED:
            if name in layers and layers[name].out_features % (3 * count) == 0:
                heads[layers[name]] = count
        for names in SEPARATE:
            trio = [layers[n] for n in names if n in layers]
            if len(trio) == 3 and len({t.out_features for t in trio}) == 1 and trio[0].out_features % count == 0:
                heads.update(dict.fromkeys(trio, count))
    return heads


def heads_that_stay(model: nn.Module, attentions: Iterable[nn.Module]) -> dict[str, str]:
    """Attention modules whose heads nothing can remove, for a pruner that was asked to remove whole heads.

    Args:
        model: the model.
        attentions: the modules that hold heads; see :func:`find_heads`.

    Returns:
        path to reason.
    """
    whole = {m for m in attentions if isinstance(m, nn.MultiheadAttention)}
    return {path: HEADS_STAY.format(layer=path) for path, m in model.named_modules() if m in whole}
