"""After training and pruning: thresholds chosen on validation people, and label overrides.

``choose_thresholds`` and ``choose_with_fairlearn`` make a :class:`ThresholdRule`, ``choose_override`` an
:class:`OverridePolicy`, for binary and multi-label models (overrides for multi-class ones too). Both are kept as JSON
and applied to logits, wherever these came from. ``judge`` says, once, on test people, what was gained and lost.

Needs numpy; fairlearn for ``choose_with_fairlearn`` alone.
"""

from fair_prune_plugins.postprocessing.choosing import choose_thresholds
from fair_prune_plugins.postprocessing.fairlearn_thresholds import choose_with_fairlearn
from fair_prune_plugins.postprocessing.judging import Effect, judge
from fair_prune_plugins.postprocessing.overrides import (
    Overridden,
    OverridePoint,
    OverridePolicy,
    choose_override,
    override_curve,
)
from fair_prune_plugins.postprocessing.predictor import ThresholdedPredictor
from fair_prune_plugins.postprocessing.rules import Cut, OutputCuts, ThresholdRule

__all__ = [
    "Cut",
    "Effect",
    "OutputCuts",
    "Overridden",
    "OverridePoint",
    "OverridePolicy",
    "ThresholdRule",
    "ThresholdedPredictor",
    "choose_override",
    "choose_thresholds",
    "choose_with_fairlearn",
    "judge",
    "override_curve",
]
