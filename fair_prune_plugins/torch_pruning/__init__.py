"""The adapter for Torch-Pruning: importance classes for any of its pruners, and a pruner with guards."""

from fair_prune_plugins.torch_pruning.importances import (
    FairGRAPEImportance,
    FairImportance,
    GroupBalancedTaylorImportance,
    MagnitudeImportance,
    TaylorImportance,
    WorstGroupTaylorImportance,
    importance,
)
from fair_prune_plugins.torch_pruning.pruner import FairPruner
from fair_prune_plugins.torch_pruning.registration import register
from fair_prune_plugins.torch_pruning.step_report import StepReport, WidthReport

__all__ = [
    "FairGRAPEImportance",
    "FairImportance",
    "FairPruner",
    "GroupBalancedTaylorImportance",
    "MagnitudeImportance",
    "StepReport",
    "TaylorImportance",
    "WidthReport",
    "WorstGroupTaylorImportance",
    "importance",
    "register",
]
