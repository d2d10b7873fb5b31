"""A rule in front of any predictor: torch, ONNX Runtime, or a function on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.rules import GROUPS_NEEDED, ThresholdRule
from fair_prune_plugins.postprocessing.scores import as_logits

LOTTERY = (
    "this rule draws lots, person after person, so it cannot be applied batch by batch; take the logits of everybody "
    "with predict() and call rule.decide() once"
)


class ThresholdedPredictor:
    """A predictor that decides by a rule; it stands wherever a predictor does, also in ``predict``.

    Args:
        predictor: gives logits ``[n, K]`` for a batch, e.g. ``TorchPredictor`` or ``OnnxPredictor``.
        rule: the thresholds.

    Raises:
        InputError: the rule is a lottery.
    """

    def __init__(self, predictor: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], rule: ThresholdRule) -> None:
        if rule.is_lottery:
            raise InputError(LOTTERY)
        self.predictor = predictor
        self.rule = rule

    def __call__(self, inputs: npt.NDArray[Any], /, groups: GroupLabels | None = None) -> npt.NDArray[np.floating]:
        """Decisions about one batch, written as logits.

        Args:
            inputs: ``[n, ...]``.
            groups: of these people, where the rule's thresholds differ between groups.

        Returns:
            float64: ``[n, 2]``, 1 for the class decided for and -1 for the other (binary), or ``[n, A]``, 1 where the
            label is given and -1 where not.

        Raises:
            InputError: groups that are needed are missing.
        """
        if self.rule.uses_groups and groups is None:
            raise InputError(GROUPS_NEEDED.format(attribute=self.rule.attribute))
        decided = self.rule.decide(self.predictor(inputs), groups)
        return 2.0 * decided - 1.0 if self.rule.task == "multilabel" else as_logits(decided)
