"""Set-up shared by all tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


def _declare_torchvision_operators() -> list[torch.library.Library]:
    """Let torchvision be imported where its compiled operators are of another torch build.

    Importing it registers meta kernels for ``nms`` and ``qnms`` and fails if nobody declared those operators. The
    models that the tests take from torchvision and timm need neither.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return []
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [library]


# Before anything imports torchvision (Torch-Pruning imports timm, which does); kept alive with the module.
_LIBRARIES = _declare_torchvision_operators()


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
