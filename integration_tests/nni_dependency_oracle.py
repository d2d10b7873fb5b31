"""NNI's own dependency analysis, which needs of tensorboard nothing but that it can be imported."""

from __future__ import annotations

import importlib.machinery
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

PROTOCOLS = ("attr_value", "config", "graph", "node_def", "step_stats", "tensor_shape", "versions")


@contextmanager
def without_tensorboard() -> Iterator[None]:
    """Let ``torch.utils.tensorboard._pytorch_graph`` be imported: it names message types that nothing here makes."""
    before = dict(sys.modules)
    package = ModuleType("torch.utils.tensorboard")
    package.__path__ = [str(Path(torch.__file__).parent / "utils" / "tensorboard")]
    package.__spec__ = importlib.machinery.ModuleSpec(package.__name__, None, is_package=True)
    sys.modules[package.__name__] = package
    for name in ("", ".compat", ".compat.proto", *(f".compat.proto.{p}_pb2" for p in PROTOCOLS)):
        sys.modules[f"tensorboard{name}"] = MagicMock(name=f"tensorboard{name}")
    try:
        yield
    finally:
        for name in sys.modules.keys() - before.keys():
            if "tensorboard" in name:
                del sys.modules[name]


def host_config_list(model: nn.Module, config_list: list[dict[str, Any]], dummy_input: Any) -> list[dict[str, Any]]:
    """What NNI 3.0's ``nni.compression.utils.auto_set_denpendency_group_ids`` returns."""
    from nni.compression.utils import auto_set_denpendency_group_ids

    with without_tensorboard(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and warns of what it cannot trace
        return auto_set_denpendency_group_ids(model, config_list, dummy_input)  # type: ignore[no-any-return]
