"""NNI: pipelines that are fair, and that end in a smaller model.

What NNI has under the same name is a drop-in: a pipeline changes its imports and nothing else. Every registered
criterion has a pruner here, those of other installed packages among them. NNI's own pruners and ``TorchEvaluator`` work
as they are; they are handed on so that one import serves, also where NNI's fails for an optional package that is
broken.
"""

from typing import Any

from fair_prune_plugins.nni import host

host.load()

from nni.compression import TorchEvaluator  # noqa: E402
from nni.compression.pruning import (  # noqa: E402
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
)

from fair_prune_plugins.nni.dependencies import (  # noqa: E402
    auto_set_denpendency_group_ids,
    auto_set_dependency_group_ids,
)
from fair_prune_plugins.nni.fair_evaluator import fair_evaluator  # noqa: E402
from fair_prune_plugins.nni.lightning import LightningEvaluator  # noqa: E402
from fair_prune_plugins.nni.pruners import (  # noqa: E402
    FairGRAPEPruner,
    FairPrunePruner,
    FairTaylorPruner,
    GateTaylorPruner,
    GroupBalancedTaylorPruner,
    MagnitudePruner,
    WorstGroupTaylorPruner,
    class_named,
    pruner_class,
)
from fair_prune_plugins.nni.speedup import ModelSpeedup, speedup  # noqa: E402
from fair_prune_plugins.nni.speedup_report import SpeedupReport  # noqa: E402
from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator  # noqa: E402

__all__ = [
    "AGPPruner",
    "FPGMPruner",
    "FairGRAPEPruner",
    "FairPrunePruner",
    "FairTaylorPruner",
    "GateTaylorPruner",
    "GroupBalancedTaylorPruner",
    "L1NormPruner",
    "L2NormPruner",
    "LevelPruner",
    "LightningEvaluator",
    "LinearPruner",
    "MagnitudePruner",
    "ModelSpeedup",
    "MovementPruner",
    "SlimPruner",
    "SpeedupReport",
    "TaylorPruner",
    "TorchEvaluator",
    "TransformersEvaluator",
    "WorstGroupTaylorPruner",
    "auto_set_denpendency_group_ids",
    "auto_set_dependency_group_ids",
    "fair_evaluator",
    "pruner_class",
    "speedup",
]


def __getattr__(name: str) -> Any:
    """Pruners of criteria that other packages bring, by their class names."""
    return class_named(name)
