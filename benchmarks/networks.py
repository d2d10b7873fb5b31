"""The networks of the benchmarks: torchvision's and timm's own, at 64 pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_DECLARED: list[Any] = []


def declare_torchvision_operators() -> None:
    """Declare the two operators that torchvision's Python code registers against when its compiled library cannot
    be loaded.
    """
    if _DECLARED:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # the compiled library is there after all
            return
    _DECLARED.append(library)  # a library's definitions end with the object


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet-18 as torchvision has it, freshly initialised."""
    declare_torchvision_operators()
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=classes)
    return model


def mobilenet_v2(classes: int = 10) -> nn.Module:
    """MobileNetV2 as torchvision has it, freshly initialised."""
    declare_torchvision_operators()
    import torchvision

    model: nn.Module = torchvision.models.mobilenet_v2(num_classes=classes)
    return model


def vit_tiny(classes: int = 10) -> nn.Module:
    """ViT-Tiny as timm has it, with 8-pixel patches on 64 pixels (65 tokens), freshly initialised."""
    declare_torchvision_operators()
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=classes)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "MobileNetV2": mobilenet_v2,
    "ViT-Tiny": vit_tiny,
}
