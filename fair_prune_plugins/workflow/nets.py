"""Compact networks for the quickstart and for 64-pixel faces, so that a first run needs no model zoo.

Residual networks after He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, and inverted residuals
after Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; own, smaller layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm, with ReLU6 where asked."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, conv_groups: int = 1, activate: bool = False
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=conv_groups, bias=False)
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([nn.ReLU6()] if activate else []))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride=stride)
        self.second = ConvNorm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, inputs, H, W]`` to ``[n, outputs, H / stride, W / stride]``."""
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem, residual blocks, global average pooling and a linear classifier.

    Args:
        classes: number of classes.
        channels: channels of the inputs.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: blocks per stage.
    """

    def __init__(self, classes: int, channels: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.stem = ConvNorm(channels, widths[0], 3, stride=2)
        layers = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(ResidualBlock(before, width, stride=2 if stage and not block else 1))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, H, W]``."""
        x = self.blocks(functional.relu(self.stem(x)))
        logits: torch.Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection, with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *([ConvNorm(inputs, hidden, 1, activate=True)] if expansion > 1 else []),
            ConvNorm(hidden, hidden, 3, stride=stride, conv_groups=hidden, activate=True),
            ConvNorm(hidden, outputs, 1),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, inputs, H, W]`` to ``[n, outputs, H / stride, W / stride]``."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


class MobileNet(nn.Module):
    """A stem, inverted residuals, a wide 1 x 1 convolution, global average pooling and a linear classifier.

    Args:
        classes: number of classes.
        channels: channels of the inputs.
        stages: expansion, width, blocks and stride of each stage.
        stem: channels of the first convolution.
        head: channels before the classifier.
    """

    def __init__(
        self, classes: int, channels: int, stages: Sequence[tuple[int, int, int, int]], stem: int, head: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(channels, stem, 3, stride=2, activate=True)]
        before = stem
        for expansion, width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(before, width, 1 if block else stride, expansion))
                before = width
        layers.append(ConvNorm(before, head, 1, activate=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, H, W]``."""
        logits: torch.Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def digits_resnet(classes: int = 10, channels: int = 1, widths: Sequence[int] = (32, 64, 128)) -> nn.Module:
    """Three residual blocks for images of about 32 pixels: 307,000 parameters, 12 million MACs at 32 x 32."""
    return ResidualNet(classes, channels, widths, blocks=1)


def face_resnet(
    classes: int = 2, channels: int = 3, widths: Sequence[int] = (32, 64, 128, 256), blocks: int = 2
) -> nn.Module:
    """A residual network in the layout of ResNet-18, half as wide, with a stem for images of about 64 pixels."""
    return ResidualNet(classes, channels, widths, blocks)


def face_mobilenet(classes: int = 2, channels: int = 3) -> nn.Module:
    """A MobileNetV2 with half the blocks for images of about 64 pixels."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 3, 2), (6, 96, 1, 1))
    return MobileNet(classes, channels, stages, stem=32, head=256)
