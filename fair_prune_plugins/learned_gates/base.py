"""What the pruners that learn gates have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.learned_gates.gates import LearnedGates
from fair_prune_plugins.learned_gates.importance import NOT_LEARNED, LearnedGateImportance
from fair_prune_plugins.torch_pruning import CostTarget, FairPruner
from fair_prune_plugins.torch_pruning.pruner import UNSUPPORTED

ONE_STEP = "{pruner} learns its gates for one step: iterative_steps is 1, got {steps}"
MACS_TARGET = "{what} needs target=CostTarget(macs=...), got {got!r}"
OTHER_RULES = (
    "{what} ranks the gates of the whole model against one MACs target, which {option} would not be part of; leave it "
    "out"
)
FITTED = "the gates were learned already, and the model with them; make a new pruner to learn others"
BAD_COUNT = "{name} must be a whole number of at least 1, got {value!r}"

RULES_OF_THEIR_OWN = {
    "pruning_ratio_dict": False,
    "isomorphic": False,
    "prune_num_heads": False,
    "prune_head_dims": True,
}
"""Options that take something out of a ranking over the whole model, and whether they must be on or off."""


class LearnedGatePruner(FairPruner):
    """A :class:`~fair_prune_plugins.torch_pruning.FairPruner` whose scores are gates that it learns.

    Coupled groups that cannot have learned gates stay as they are; ``not_pruned`` names them.

    Attributes:
        gates: the gates.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, *, sigmoid: bool, initial: float, **options: Any) -> None:
        if (steps := options.get("iterative_steps", 1)) != 1:
            raise InputError(ONE_STEP.format(pruner=type(self).__name__, steps=steps))
        super().__init__(model, example_inputs, LearnedGateImportance(), **options)
        self.gates = LearnedGates(self.gate_plan(), form="sigmoid" if sigmoid else "unit", initial=initial)
        self.importance.gates = self.gates
        self._saved: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        for layer, reason in self.gates.open.items():
            self.not_pruned[layer] = reason
            warnings.warn(UNSUPPORTED.format(layer=layer, reason=reason), stacklevel=3)

    def state_dict(self) -> dict[str, Any] | None:
        """The training as the last :meth:`fit` left it; ``None`` before it. States on the way are what its
        ``checkpoint`` gets.
        """
        return self._last

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next :meth:`fit` go on from a saved state, with the same settings, data and loss as the saved run."""
        self._saved = dict(state)

    def step(self, interactive: bool = False, *, optimizer: Optimizer | None = None) -> Any:
        """Remove what the gates close; see :meth:`FairPruner.step
        <fair_prune_plugins.torch_pruning.FairPruner.step>`.

        Raises:
            ScoreError: the gates were not learned.
        """
        if not self.importance.learned:
            raise ScoreError(NOT_LEARNED)
        return super().step(interactive, optimizer=optimizer)

    def _check_unfitted(self) -> None:
        if self.importance.learned:
            raise InputError(FITTED)

    def _learned(self, state: dict[str, Any]) -> None:
        self._saved, self._last = None, state
        self.importance.learned = True


def check_one_ranking(what: str, target: Any, options: Mapping[str, Any]) -> None:
    """Refuse what a ranking of all gates within a MACs target cannot learn for.

    Raises:
        InputError: another target, or options by which something has a rule of its own.
    """
    if not isinstance(target, CostTarget) or target.quantity != "macs":
        raise InputError(MACS_TARGET.format(what=what, got=target))
    for option, neutral in RULES_OF_THEIR_OWN.items():
        value = options.get(option)
        if value is not None and bool(value) is not neutral:
            raise InputError(OTHER_RULES.format(what=what, option=option))


def check_count(name: str, value: Any) -> None:
    """Refuse what is no number of steps.

    Raises:
        InputError: naming it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(BAD_COUNT.format(name=name, value=value))
