"""How well a model serves each sensitive group of people, and what pruning changed, with intervals.

``predict`` takes logits from a torch module or an ONNX Runtime session through one interface; ``evaluate`` turns
labels, logits and groups into an :class:`Evaluation`; ``pick_worst_group`` fixes the group to watch on validation data.
Needs numpy, torch and tqdm only; ONNX Runtime is imported when an :class:`OnnxPredictor` is made.
"""

from fair_prune_plugins.evaluation.evaluate import evaluate, pick_worst_group
from fair_prune_plugins.evaluation.intervals import Estimate, Interval
from fair_prune_plugins.evaluation.outcomes import predicted_classes
from fair_prune_plugins.evaluation.predict import OnnxPredictor, Predictor, TorchPredictor, predict
from fair_prune_plugins.evaluation.result import (
    BinaryFairness,
    DenseComparison,
    Evaluation,
    GroupEvaluation,
    GroupRates,
    WorstGroup,
)

__all__ = [
    "BinaryFairness",
    "DenseComparison",
    "Estimate",
    "Evaluation",
    "GroupEvaluation",
    "GroupRates",
    "Interval",
    "OnnxPredictor",
    "Predictor",
    "TorchPredictor",
    "WorstGroup",
    "evaluate",
    "pick_worst_group",
    "predict",
    "predicted_classes",
]
