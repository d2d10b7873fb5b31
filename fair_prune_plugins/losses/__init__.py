"""What training optimises: losses that keep sensitive groups balanced, and their registry."""

from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.losses.cross_entropy import CrossEntropy
from fair_prune_plugins.losses.dense_accuracy import DenseAccuracy
from fair_prune_plugins.losses.distillation import Distillation
from fair_prune_plugins.losses.equalised import EqualisedLoss
from fair_prune_plugins.losses.excess_gap import ExcessGapConstraint
from fair_prune_plugins.losses.group_balanced import GroupBalancedCrossEntropy
from fair_prune_plugins.losses.group_dro import GroupDRO
from fair_prune_plugins.losses.group_terms import GroupSizes
from fair_prune_plugins.losses.hook import LossBatch, LossHook
from fair_prune_plugins.losses.performance_weighted import PerformanceWeightedLoss
from fair_prune_plugins.losses.registry import Loss, get, loss, names
from fair_prune_plugins.losses.teacher import Teacher, TeacherCache

__all__ = [
    "BatchLoss",
    "CrossEntropy",
    "DenseAccuracy",
    "Distillation",
    "EqualisedLoss",
    "ExcessGapConstraint",
    "GroupBalancedCrossEntropy",
    "GroupDRO",
    "GroupSizes",
    "Loss",
    "LossBatch",
    "LossHook",
    "PerformanceWeightedLoss",
    "Teacher",
    "TeacherCache",
    "get",
    "loss",
    "names",
]
