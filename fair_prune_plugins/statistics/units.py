"""The statistics of one unit set, as criteria take them, and what a criterion needs of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from fair_prune_plugins.errors import InputError

Pass = Literal["gates", "elementwise", "fisher", "snnl"]
"""A way to measure units: ``collect``, ``collect_elementwise``, ``collect_fisher``, ``collect_snnl``."""

TWO_TEMPERATURES = (
    "soft nearest neighbour losses at the temperatures {temperatures} in one criterion; they are measured once, so "
    "take one temperature"
)
BAD_TEMPERATURE = "the temperature must be a finite number above 0, got {got!r}"


def checked_temperature(value: float) -> float:
    """A temperature of a soft nearest neighbour loss.

    Raises:
        InputError: not a finite number above 0.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(BAD_TEMPERATURE.format(got=value))
    return float(value)


@dataclass(frozen=True)
class Needs:
    """What must be collected for a criterion with its options.

    Attributes:
        passes: over the data; none where the weights say it all.
        groups: whether sensitive groups are compared.
        temperature: of the pass ``"snnl"``.
    """

    passes: frozenset[Pass]
    groups: bool
    temperature: float = 1.0

    @property
    def loss(self) -> bool:
        """Whether a loss is differentiated."""
        return bool(self.passes - {"snnl"})

    @property
    def by_group(self) -> bool:
        """Whether statistics are to be kept apart by group; weights' importance over all people is no sum over
        groups, so nobody's groups are asked for where nobody compares them.
        """
        return self.groups or "elementwise" not in self.passes

    @classmethod
    def together(cls, several: Iterable[Needs]) -> Needs:
        """What serves all of several criteria.

        Raises:
            InputError: two temperatures.
        """
        needs = list(several)
        temperatures = sorted({n.temperature for n in needs if "snnl" in n.passes})
        if len(temperatures) > 1:
            raise InputError(TWO_TEMPERATURES.format(temperatures=temperatures))
        passes = frozenset(p for n in needs for p in n.passes)
        return cls(passes, any(n.groups for n in needs), *temperatures)


@dataclass(frozen=True)
class UnitStatistics:
    """The statistics of one unit set, as criteria take them: ``G`` sensitive groups, ``U`` units, all float64.

    Attributes:
        names: the groups' names.
        weight: ``[G]`` total sample weight (the number of people, without weights).
        sum: ``[G, U]`` sum of s over a group's people.
        absolute: ``[G, U]`` sum of |s|.
        square: ``[G, U]`` sum of s squared.
        unknown_weight: total sample weight of people in no known group.
        unknown_sum: ``[U]`` as ``sum``, over those people.
        unknown_absolute: ``[U]`` as ``absolute``.
        unknown_square: ``[U]`` as ``square``.
        weight_square: ``[U]`` sum of the squared weights of the unit, for criteria without data.
        dense: the same of the dense model, where pruning goes in steps and whoever asks kept them; only its groups
            matter, its units are the dense model's.
        elementwise: ``[G, U]`` sum over the unit's weights of (weight x gradient of the group's mean loss) squared,
            from :func:`~fair_prune_plugins.statistics.collect_elementwise`.
        gates: whether the states of gates above were measured; they are NaN otherwise.
        fisher: ``[G, U]`` sum over a group's people, and over the unit's weights, of (weight x gradient of the person's
            own loss) squared, from :func:`~fair_prune_plugins.statistics.collect_fisher`.
        snnl: ``[U]`` mean soft nearest neighbour loss of the unit's feature map, from
            :func:`~fair_prune_plugins.statistics.collect_snnl`; NaN where nobody was compared.
        overall_square: ``[G]`` sum of ``square`` over all units of the model; ``None`` where these are all.
        overall_fisher: ``[G]`` likewise of ``fisher``.
    """

    names: tuple[str, ...]
    weight: torch.Tensor
    sum: torch.Tensor
    absolute: torch.Tensor
    square: torch.Tensor
    unknown_weight: float
    unknown_sum: torch.Tensor
    unknown_absolute: torch.Tensor
    unknown_square: torch.Tensor
    weight_square: torch.Tensor
    dense: UnitStatistics | None = None
    elementwise: torch.Tensor | None = None
    gates: bool = True
    fisher: torch.Tensor | None = None
    snnl: torch.Tensor | None = None
    overall_square: torch.Tensor | None = None
    overall_fisher: torch.Tensor | None = None
