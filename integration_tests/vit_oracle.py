"""Vision transformers of torchvision, timm and transformers, and the forward of what is left of them written out.

The oracle takes a dense network's weights and the channels that stay, cuts the weights by hand, and computes the pruned
network's outputs in a few lines of plain torch. It knows neither the libraries' modules nor Torch-Pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.gates.plan import GatePlan
from integration_tests.networks import CLASSES

WIDTH, HEADS, SIZE, MLP = 32, 4, 8, 64
EPS = {"torchvision": 1e-6, "timm": 1e-6, "transformers": 1e-12}


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=MLP, num_classes=CLASSES)


def timm_vit(fused: bool = True, **options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "mlp_ratio": 2}
    model = VisionTransformer(**shape, num_classes=CLASSES, **options)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def timm_deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=HEADS, mlp_ratio=2, num_classes=CLASSES
    )


def transformers_vit(attention: str = "sdpa") -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    return ViTForImageClassification(config)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "torchvision": torchvision_vit,
    "timm": timm_vit,
    "timm, eager": partial(timm_vit, fused=False),
    "timm, q and k normalised": partial(timm_vit, qk_norm=True),
    "timm, q and k normalised, eager": partial(timm_vit, fused=False, qk_norm=True),
    "timm, mean of the tokens": partial(timm_vit, class_token=False, global_pool="avg"),
    "timm, distilled": timm_deit,
    "transformers": transformers_vit,
    "transformers, eager": partial(transformers_vit, "eager"),
}


def build_vit(name: str) -> nn.Module:
    """One of the zoo in float64, with nothing at its initial value."""
    torch.manual_seed(0)
    model = ZOO[name]().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith("bias"):
                p.normal_(0, 0.3)
            elif p.ndim > 1:
                p.normal_(0, 0.3 if p.ndim == 2 else 0.5)
    return model


@dataclass
class Left:
    """What stays of a network: channels of the trunk, of each attention's inside (head after head), of each MLP's."""

    trunk: list[int] = field(default_factory=lambda: list(range(WIDTH)))
    inner: list[list[int]] = field(default_factory=lambda: [list(range(HEADS * SIZE)) for _ in range(2)])
    mlp: list[list[int]] = field(default_factory=lambda: [list(range(MLP)) for _ in range(2)])

    def take(self, root: str, gone: Iterable[int]) -> None:
        """Remove positions, counted among what is left, of the coupled group with this root."""
        lost, block = set(gone), 1 if ".1." in root or "layer_1" in root else 0
        if "attn.proj" in root or "o_proj" in root:
            self.inner[block] = _without(self.inner[block], lost)
        elif root.endswith("mlp.fc1") or root.endswith("mlp.0"):
            self.mlp[block] = _without(self.mlp[block], lost)
        else:
            self.trunk = _without(self.trunk, lost)


def _without(channels: Sequence[int], lost: set[int]) -> list[int]:
    return [c for place, c in enumerate(channels) if place not in lost]


def left_when_closed(plan: GatePlan, closed: Mapping[str, torch.Tensor]) -> Left:
    """By the meaning of units: the same place in every head, a head, or a channel."""
    left = Left()
    for group in plan.prunable:
        gone: set[int] = set()
        for units in group.unit_sets:
            for unit in closed[units.name].nonzero().flatten().tolist() if units.name in closed else ():
                if units.kind == "heads":
                    gone |= set(range(unit * SIZE, (unit + 1) * SIZE))
                else:
                    gone |= set(range(unit, group.channels, units.size))
        left.take(group.root + ("[in]" if not group.root_is_output else ""), gone)
    return left


def _weights(model: nn.Module) -> tuple[dict[str, Any], str]:
    """The weights under the names that the oracle uses, and the library."""
    w = {k: v.detach() for k, v in model.state_dict().items()}
    if "conv_proj.weight" in w:
        blocks = []
        for b in range(2):
            p = f"encoder.layers.encoder_layer_{b}"
            a = f"{p}.self_attention"
            blocks.append(
                {
                    "norm1": (w[f"{p}.ln_1.weight"], w[f"{p}.ln_1.bias"]),
                    "qkv": list(zip(w[f"{a}.in_proj_weight"].chunk(3), w[f"{a}.in_proj_bias"].chunk(3), strict=True)),
                    "proj": (w[f"{a}.out_proj.weight"], w[f"{a}.out_proj.bias"]),
                    "norm2": (w[f"{p}.ln_2.weight"], w[f"{p}.ln_2.bias"]),
                    "fc1": (w[f"{p}.mlp.0.weight"], w[f"{p}.mlp.0.bias"]),
                    "fc2": (w[f"{p}.mlp.3.weight"], w[f"{p}.mlp.3.bias"]),
                }
            )
        return {
            "patches": (w["conv_proj.weight"], w["conv_proj.bias"]),
            "tokens": [w["class_token"]],
            "positions": w["encoder.pos_embedding"],
            "blocks": blocks,
            "norm": (w["encoder.ln.weight"], w["encoder.ln.bias"]),
            "heads": [(w["heads.head.weight"], w["heads.head.bias"])],
        }, "torchvision"
    pair = lambda name: (w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    if "classifier.weight" in w:
        return {
            "patches": pair("vit.embeddings.patch_embeddings.projection"),
            "tokens": [w["vit.embeddings.cls_token"]],
            "positions": w["vit.embeddings.position_embeddings"],
            "blocks": [
                {
                    "norm1": pair(f"vit.layers.{b}.layernorm_before"),
                    "qkv": [pair(f"vit.layers.{b}.attention.{n}_proj") for n in "qkv"],
                    "proj": pair(f"vit.layers.{b}.attention.o_proj"),
                    "norm2": pair(f"vit.layers.{b}.layernorm_after"),
                    "fc1": pair(f"vit.layers.{b}.mlp.fc1"),
                    "fc2": pair(f"vit.layers.{b}.mlp.fc2"),
                }
                for b in range(2)
            ],
            "norm": pair("vit.layernorm"),
            "heads": [pair("classifier")],
        }, "transformers"
    blocks = []
    for b in range(2):
        fused = pair(f"blocks.{b}.attn.qkv")
        block = {name: pair(f"blocks.{b}.{name}") for name in ("norm1", "norm2")}
        block |= {"fc1": pair(f"blocks.{b}.mlp.fc1"), "fc2": pair(f"blocks.{b}.mlp.fc2")}
        block |= {"qkv": list(zip(fused[0].chunk(3), fused[1].chunk(3), strict=True))}  # type: ignore[dict-item]
        block |= {"proj": pair(f"blocks.{b}.attn.proj")}
        if f"blocks.{b}.attn.q_norm.weight" in w:
            block |= {"norms": [pair(f"blocks.{b}.attn.{n}_norm") for n in "qk"]}  # type: ignore[dict-item]
        blocks.append(block)
    return {
        "patches": pair("patch_embed.proj"),
        "tokens": [w[name] for name in ("cls_token", "dist_token") if name in w],
        "positions": w["pos_embed"],
        "blocks": blocks,
        "norm": pair("norm") if "norm.weight" in w else pair("fc_norm"),
        "heads": [pair(name) for name in ("head", "head_dist") if f"{name}.weight" in w],
    }, "timm"


def rebuilt_outputs(dense: nn.Module, left: Left, x: torch.Tensor) -> torch.Tensor:
    """Logits of what is left of ``dense``, its weights cut by hand."""
    w, library = _weights(dense)
    trunk = left.trunk

    def normed(x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], keep: Sequence[int]) -> torch.Tensor:
        return F.layer_norm(x, (len(keep),), pair[0][keep], pair[1][keep], EPS[library])

    def linear(
        x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], rows: Sequence[int], columns: Sequence[int]
    ) -> torch.Tensor:
        return x @ pair[0][rows][:, columns].T + pair[1][rows]

    x = F.conv2d(x, w["patches"][0][trunk], w["patches"][1][trunk], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([*(t[..., trunk].expand(len(x), 1, -1) for t in w["tokens"]), x], 1) + w["positions"][..., trunk]
    for block, own, mlp in zip(w["blocks"], left.inner, left.mlp, strict=True):
        inner = trunk if library == "torchvision" else own  # nn.MultiheadAttention is as wide inside as outside
        heads, dims = sorted({i // SIZE for i in inner}), sorted({i % SIZE for i in inner})
        assert inner == [h * SIZE + d for h in heads for d in dims]
        h = normed(x, block["norm1"], trunk)
        q, k, v = (linear(h, p, inner, trunk).unflatten(-1, (len(heads), len(dims))) for p in block["qkv"])
        if "norms" in block:
            q, k = normed(q, block["norms"][0], dims), normed(k, block["norms"][1], dims)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * len(dims) ** -0.5
        context = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(context, block["proj"], trunk, inner)
        h = F.gelu(linear(normed(x, block["norm2"], trunk), block["fc1"], mlp, trunk))
        x = x + linear(h, block["fc2"], trunk, mlp)
    x = normed(x if w["tokens"] else x.mean(1, keepdim=True), w["norm"], trunk)
    classes = list(range(CLASSES))
    logits = [linear(x[:, place], head, classes, trunk) for place, head in enumerate(w["heads"])]
    return torch.stack(logits).mean(0)


def logits_of(outputs: Any) -> torch.Tensor:
    """Of a tensor, or of what transformers return."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits
