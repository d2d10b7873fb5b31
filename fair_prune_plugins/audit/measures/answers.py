"""What a model says of one output at a time, so that no copy of all its outputs is needed."""

from __future__ import annotations

import math

import numpy as np

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, sigmoid
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray
from fair_prune_plugins.postprocessing.scores import BoolArray


class Answers:
    """One model's answers, probabilities and scores, output by output.

    Args:
        data: what the audit looks at.
        model: one of its models.
    """

    def __init__(self, data: AuditData, model: ModelPredictions) -> None:
        self.name = model.name
        self.run_names = model.run_names
        self.graded = model.graded
        self._logits = data.logits(model)
        self.runs = len(self._logits)
        self._chosen: list[IntArray] = []
        self._log_totals: list[FloatArray] = []
        if data.people.task == "multiclass":
            for run, logits in enumerate(self._logits):
                self._chosen.append(data.decisions(model, run)[:, 0])
                largest = logits.max(axis=1)
                self._log_totals.append(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))

    def answered(self, output: int, run: int) -> BoolArray:
        """Whether the answer is 1, ``[N]``."""
        if self._chosen:
            positive: BoolArray = self._chosen[run] == output
        else:
            positive = self._logits[run][:, output] > 0
        return positive

    def score(self, output: int, run: int) -> FloatArray:
        """What orders people from surely 0 to surely 1, ``[N]``: the logit, or the log of the softmax's share."""
        scores = self._logits[run][:, output]
        return scores - self._log_totals[run] if self._log_totals else np.ascontiguousarray(scores)

    def probability(self, output: int, run: int) -> FloatArray:
        """Probability of 1, ``[N]``."""
        scores = self.score(output, run)
        return np.exp(scores) if self._log_totals else sigmoid(scores)

    def positive_runs(self, output: int) -> IntArray:
        """In how many runs the answer is 1, int64 ``[N]``."""
        total = np.zeros(len(self._logits[0]), dtype=np.int64)
        for run in range(self.runs):
            total += self.answered(output, run)
        return total

    def right_runs(self, output: int, truth: IntArray) -> IntArray:
        """In how many runs the answer is right, int64 ``[N]``."""
        positive = self.positive_runs(output)
        return np.where(truth == 1, positive, self.runs - positive)


def common_runs(models: tuple[Answers, ...]) -> int:
    """The smallest number of runs that every model's shares can be told in: their least common multiple."""
    return math.lcm(*(model.runs for model in models))
