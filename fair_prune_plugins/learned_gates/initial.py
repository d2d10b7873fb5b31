"""What gates are before they are learned."""

from __future__ import annotations

import torch

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import CoupledGroup, GatePlan, UnitSet
from fair_prune_plugins.gates.unit_weights import unit_square, weight_parts
from fair_prune_plugins.learned_gates.gates import LearnedGates


@torch.no_grad()
def set_magnitudes(gates: LearnedGates) -> None:
    """Gates in proportion to the norm of the weights that make their unit; the largest of each unit set is 1."""
    norms = {u.name: _norms(gates.plan, g, u) for g in gates.groups for u in g.unit_sets}
    gates.scores.copy_(gates.joined({name: n / n.max().clamp_min(1e-12) for name, n in norms.items()}))


@torch.no_grad()
def set_random(gates: LearnedGates, seed: int) -> None:
    """Gates drawn uniformly from (0, 1), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    gates.scores.copy_(torch.rand(len(gates.scores), generator=generator))


def _norms(plan: GatePlan, group: CoupledGroup, units: UnitSet) -> torch.Tensor:
    """Norms of the producers' rows; where only embeddings or bare parameters make the units, all are alike."""
    try:
        parts = weight_parts(plan.model, group, units, include_consumers=False)
    except UnsupportedModelError:
        return torch.ones(units.size, dtype=torch.float64)
    return unit_square(parts, plan.model).sqrt()
