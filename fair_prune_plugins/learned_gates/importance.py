"""Learned gates as scores, for any pruner of Torch-Pruning."""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp

from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.gates.structure import group_key
from fair_prune_plugins.learned_gates.gates import LearnedGates

NOT_LEARNED = "the gates were not learned yet: call pruner.fit(...) before pruner.step()"
OTHER_MODEL = (
    "there are no gates for the coupled group of {layer!r} as it is now: it was pruned, or they are of another model"
)


class LearnedGateImportance(tp.importance.Importance):  # type: ignore[misc]
    """Every unit's score is its gate.

    Attributes:
        gates: the gates; ``None`` until they are there.
        learned: whether they were learned.
    """

    def __init__(self) -> None:
        self.gates: LearnedGates | None = None
        self.learned = False

    def __call__(self, group: Any) -> torch.Tensor | None:
        """Scores of a host group, float64, one per index of its root; ``None`` for groups without gates.

        Attention has two unit sets; ``dimension + head - mean(head)`` has both orders.

        Raises:
            ScoreError: the gates were not learned, or are of another model.
        """
        if self.gates is None or not self.learned:
            raise ScoreError(NOT_LEARNED)
        layer = group_key(group._DG, group)
        if layer in self.gates.open:
            return None
        coupled = next((g for g in self.gates.groups if g.name == layer), None)
        if coupled is None or coupled.channels != len(group[0].idxs):
            raise ScoreError(OTHER_MODEL.format(layer=layer))
        values = self.gates.by_unit_set(self.gates.values().detach().double().cpu())
        scores = torch.zeros(coupled.channels, dtype=torch.float64)
        for units in coupled.unit_sets:
            own = values[units.name]
            scores += (own if units is coupled.units else own - own.mean())[units.of_root]
        return scores[torch.tensor(group[0].idxs, dtype=torch.int64)]
