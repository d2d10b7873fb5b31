"""Small networks, one per structure the gates must understand. All take ``[N, 3, 16, 16]`` images and give ``[N, 5]``
logits unless they say otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 5


def conv_bn(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(3, 12), nn.ReLU(), conv_bn(12, 16, stride=2), nn.ReLU(inplace=True), conv_bn(16, 10), nn.SiLU()
        )
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(i, o, stride=stride), conv_bn(o, o)
        self.shortcut = conv_bn(i, o, 1, stride) if i != o or stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x), inplace=True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.blocks = nn.Sequential(BasicBlock(10, 10, 1), BasicBlock(10, 14, 2), BasicBlock(14, 14, 1))
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class PreActivationBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, padding=1)
        self.shortcut = nn.Conv2d(i, o, 1) if i != o else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(x), inplace=True)
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + skip


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(PreActivationBlock(8, 8), PreActivationBlock(8, 12), PreActivationBlock(12, 12))
        self.bn, self.fc = nn.BatchNorm2d(12), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.bn(self.blocks(self.stem(x)))).mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [8, 14, 20]
        self.stem = conv_bn(3, 8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[:2])
        self.layers = nn.ModuleList(nn.Conv2d(w, 6, 3, padding=1) for w in widths[:2])
        self.transition = nn.Conv2d(20, 9, 1)
        self.bn, self.fc = nn.BatchNorm2d(9), nn.Linear(9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.fc(F.relu(self.bn(F.avg_pool2d(self.transition(x), 2))).mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        h = 3 * i
        self.expand, self.depthwise, self.project = conv_bn(i, h, 1), conv_bn(h, h, 3, stride, h), conv_bn(h, o, 1)
        self.reduce = nn.Conv2d(h, 4, 1) if squeeze else None
        self.excite = nn.Conv2d(4, h, 1) if squeeze else None
        self.residual = i == o and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        if self.reduce is not None and self.excite is not None:
            h = h * F.hardsigmoid(self.excite(F.relu(self.reduce(F.adaptive_avg_pool2d(h, 1)))))
        h = self.project(h)
        return x + h if self.residual else h


class MobileNet(nn.Module):
    """MobileNetV2-like; with ``squeeze`` MobileNetV3-like, squeeze-excite included."""

    def __init__(self, squeeze: bool = False) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 1, squeeze),
            InvertedResidual(8, 12, 2, squeeze),
            InvertedResidual(12, 12, 1, squeeze),
        )
        self.head, self.fc = conv_bn(12, 20, 1), nn.Linear(20, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu6(self.head(self.blocks(F.relu6(self.stem(x))))).mean((2, 3)))


class GroupedConvolution(nn.Module):
    """ResNeXt-like: convolutions in 4 conv groups between dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce, self.grouped, self.expand = conv_bn(8, 16, 1), conv_bn(16, 16, 3, groups=4), conv_bn(16, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.expand(F.relu(self.grouped(F.relu(self.reduce(x))))))
        return self.fc(x.mean((2, 3)))


class GroupNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.conv2, self.gn2 = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.conv3, self.gn3 = nn.Conv2d(12, 10, 3, padding=1), nn.GroupNorm(1, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.gn1(self.conv1(x)))
        x = F.relu(x + self.gn2(self.conv2(x)))
        return self.fc(F.relu(self.gn3(self.conv3(x))).mean((2, 3)))


class ChannelsFirstLayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.layer_scale * self.fc2(F.gelu(self.fc1(h))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 2, 2), ChannelsFirstLayerNorm(12)
        self.block1, self.down_norm, self.down = ConvNeXtBlock(12), ChannelsFirstLayerNorm(12), nn.Conv2d(12, 16, 2, 2)
        self.block2, self.norm, self.fc = ConvNeXtBlock(16), nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.down_norm(self.block1(self.stem_norm(self.stem(x)))))
        return self.fc(self.norm(self.block2(x).mean((2, 3))))


class RMSNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(3 * 16 * 16, 24), nn.RMSNorm(24)
        self.fc2, self.norm2 = nn.Linear(24, 24), nn.RMSNorm(24, eps=1e-6)
        self.fc3 = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.fc1(x.flatten(1))))
        return self.fc3(self.norm2(x + self.fc2(x)))


class FlattenToLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(10, 10, 3, padding=1, groups=10),
        )
        self.bn = nn.BatchNorm2d(10)
        self.fc1, self.fc2 = nn.Linear(10 * 16, 12), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(torch.cat([self.conv1(x), self.conv2(x)], 1))
        x = F.max_pool2d(F.relu(self.conv3(x)), 4)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class EncoderDecoder(nn.Module):
    """UNet-like, with transposed convolution and a skip; gives ``[N, 2, 16, 16]``."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 8), conv_bn(8, 12, stride=2)
        self.up, self.bn = nn.ConvTranspose2d(12, 10, 2, 2), nn.BatchNorm2d(10)
        self.mix, self.head = conv_bn(18, 9), nn.Conv2d(9, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.bn(self.up(F.relu(self.down2(a)))))
        return self.head(F.relu(self.mix(torch.cat([a, b], 1))))


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class SeparateAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, self.num_heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, -1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, attention: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), attention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(
        self, attention: Callable[[int, int], nn.Module] = FusedAttention, width: int = 16, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(
            TransformerBlock(width, heads, attention), TransformerBlock(width, heads, attention)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class Reused(nn.Module):
    """One convolution called twice: a site is a call, not a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.out = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = x + torch.tanh(self.shared(x))
        x = x + torch.tanh(self.shared(x))
        return self.fc(F.relu(self.out(x)).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "pre-activation": PreActivation,
    "densenet": DenseNet,
    "mobilenet-v2": MobileNet,
    "squeeze-excite": lambda: MobileNet(squeeze=True),
    "conv groups": GroupedConvolution,
    "groupnorm": GroupNormalised,
    "layernorm (convnext)": ConvNeXt,
    "rmsnorm": RMSNormalised,
    "flatten": FlattenToLinear,
    "transposed convolution": EncoderDecoder,
    "attention, fused": VisionTransformer,
    "attention, separate": lambda: VisionTransformer(SeparateAttention),
    "nn.MultiheadAttention": lambda: VisionTransformer(SelfAttention),
    "reused module": Reused,
}


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """The attention projections of a network here, with their head counts, as a user names them."""
    heads: dict[nn.Module, int] = {}
    for m in model.modules():
        if isinstance(m, FusedAttention):
            heads[m.qkv] = m.num_heads
        elif isinstance(m, SeparateAttention):
            heads |= {m.q: m.num_heads, m.k: m.num_heads, m.v: m.num_heads}
    return heads


def build(name: str, seed: int = 0) -> nn.Module:
    """A network with generic norms: nothing at its initial value hides a mistake."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 1.5)
            if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
                m.weight.uniform_(0.5, 1.5)
                if getattr(m, "bias", None) is not None:
                    m.bias.normal_(0, 0.3)
            if isinstance(m, ConvNeXtBlock):
                m.layer_scale.uniform_(0.5, 1.5)
    return model.eval()
