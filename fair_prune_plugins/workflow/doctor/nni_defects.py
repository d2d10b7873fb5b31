"""Defects of NNI, looked for only where it is installed: importing it takes seconds."""

from __future__ import annotations

from importlib import import_module, metadata, util

import torch
from torch import nn

from fair_prune_plugins.workflow.doctor.defects import HostDefect
from fair_prune_plugins.workflow.doctor.small_trials import raises

NNI = "nni"
SEEN = ("3.0",)


def nni_is_installed() -> bool:
    """Whether NNI is installed."""
    try:
        metadata.version(NNI)
    except metadata.PackageNotFoundError:
        return False
    return True


def _tracer() -> bool:
    tracer = import_module("nni.common.concrete_trace_utils")
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 1)), {"input": torch.ones(1, 3, 4, 4)}
    return raises((AttributeError, TypeError), lambda: tracer.concrete_trace(model, inputs))


def _tensorboard() -> bool:
    return util.find_spec("tensorboard") is None and raises(
        ModuleNotFoundError, lambda: import_module("nni.common.graph_utils")
    )


NNI_DEFECTS = (
    HostDefect(
        "ModelSpeedup crashes",
        NNI,
        SEEN,
        "ModelSpeedup's tracer reads names that torch 2.2 and later no longer have, and fails on any model.",
        "Import ModelSpeedup from fair_prune_plugins.nni.",
        _tracer,
    ),
    HostDefect(
        "tensorboard is not declared",
        NNI,
        SEEN,
        "auto_set_denpendency_group_ids needs tensorboard, which installing NNI does not bring.",
        "Import auto_set_denpendency_group_ids from fair_prune_plugins.nni.",
        _tensorboard,
    ),
)
