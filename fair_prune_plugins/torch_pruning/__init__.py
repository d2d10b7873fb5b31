"""The adapter for Torch-Pruning: importance classes for any of its pruners, and a pruner with guards."""

from fair_prune_plugins.torch_pruning.batch_norm import reestimate_batch_norm
from fair_prune_plugins.torch_pruning.cost_target import CostTarget
from fair_prune_plugins.torch_pruning.criterion_importances import (
    FairGRAPEImportance,
    FairPruneImportance,
    GroupBalancedTaylorImportance,
    MagnitudeImportance,
    RankMixImportance,
    SNNLImportance,
    TaylorImportance,
    WorstGroupTaylorImportance,
    importance,
)
from fair_prune_plugins.torch_pruning.distributed import rewrapped
from fair_prune_plugins.torch_pruning.history import PruningHistory
from fair_prune_plugins.torch_pruning.importances import FairImportance
from fair_prune_plugins.torch_pruning.optimizers import rebinding
from fair_prune_plugins.torch_pruning.pruner import FairPruner
from fair_prune_plugins.torch_pruning.recording import HistoryRecorder, replay
from fair_prune_plugins.torch_pruning.registration import register
from fair_prune_plugins.torch_pruning.step_report import ReachedCost, StepReport, WidthReport

__all__ = [
    "CostTarget",
    "FairGRAPEImportance",
    "FairImportance",
    "FairPruneImportance",
    "FairPruner",
    "GroupBalancedTaylorImportance",
    "HistoryRecorder",
    "MagnitudeImportance",
    "PruningHistory",
    "RankMixImportance",
    "ReachedCost",
    "SNNLImportance",
    "StepReport",
    "TaylorImportance",
    "WidthReport",
    "WorstGroupTaylorImportance",
    "importance",
    "rebinding",
    "reestimate_batch_norm",
    "register",
    "replay",
    "rewrapped",
]
