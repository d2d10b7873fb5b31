"""How much is pruned: a share of the units to go, or a share of the cost to stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fair_prune_plugins.torch_pruning import CostTarget

Quantity = Literal["ratio", "macs", "params", "latency"]

OF: dict[Quantity, str] = {"macs": "MACs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True)
class Amount:
    """One thing to prune down to.

    Attributes:
        quantity: ``"ratio"``: units to go; otherwise the cost to keep.
        value: the share, above 0 and below 1.
    """

    quantity: Quantity
    value: float

    @property
    def removed(self) -> float:
        """The share that goes at the end, of units or of the cost: what schedules speak of."""
        return self.value if self.quantity == "ratio" else 1 - self.value

    @property
    def title(self) -> str:
        """As reports have it: ``50 %`` of the units to go, or ``30 % of MACs`` to keep."""
        return self._percent if self.quantity == "ratio" else f"{self._percent} of {OF[self.quantity]}"

    @property
    def slug(self) -> str:
        """As folders have it: ``50`` or ``macs-30``."""
        number = f"{100 * self.value:.6g}"
        return number if self.quantity == "ratio" else f"{self.quantity}-{number}"

    @property
    def pruner_options(self) -> dict[str, Any]:
        """What :class:`~fair_prune_plugins.torch_pruning.FairPruner` is told."""
        match self.quantity:
            case "ratio":
                return {"pruning_ratio": self.value}
            case "macs":
                return {"target": CostTarget(macs=self.value)}
            case "params":
                return {"target": CostTarget(params=self.value)}
            case "latency":
                return {"target": CostTarget(latency=self.value)}

    @property
    def _percent(self) -> str:
        return f"{100 * self.value:.6g} %"
