"""The criteria there are: built in, registered by hand, or brought by installed packages through entry points of the
group ``fair_prune_plugins.criteria``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.registry import Registry, check_options, options_of, place
from fair_prune_plugins.statistics.units import Needs, UnitStatistics

CriterionFn = Callable[..., torch.Tensor]

NeedsFn = Callable[[Mapping[str, Any]], Needs]
"""What a criterion needs with all its options, those left at their defaults among them; it refuses what cannot be."""

BAD_SIGNATURE = (
    "{place}: a criterion takes exactly one positional argument, the UnitStatistics, and options as keywords with "
    "defaults; {problem}"
)
BAD_SCORES = "the criterion {name!r} must return one score per unit ([{units}]), got {got}"


@dataclass(frozen=True)
class Criterion:
    """A named rule from per-group statistics to one score per unit; the lowest scores are pruned first.

    Attributes:
        name: how configurations and code call it.
        function: ``function(statistics, **options) -> [units]``.
        summary: what it does, in one sentence.
        source: the paper (and equation) it comes from.
        needs_data: whether it uses anything beyond the model's weights.
        needs_groups: whether it compares sensitive groups.
        comparable: whether scores of different layers are in the same unit (a change of the loss), so that a global
            ranking means something; ranks are not.
    """

    name: str
    function: CriterionFn
    summary: str
    source: str
    needs_data: bool
    needs_groups: bool
    comparable: bool
    needing: NeedsFn | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults."""
        return options_of(list(inspect.signature(self.function).parameters.values())[1:])

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options the criterion does not have, and values that an option annotated with ``Literal`` does not.

        Raises:
            InputError: naming the option and what there is, or what it takes; or options that do not go together.
        """
        check_options("criterion", self.name, self.function, self.options, options)
        self.needs(options)

    def needs(self, options: Mapping[str, Any]) -> Needs:
        """What must be collected for the criterion with these options.

        Raises:
            InputError: options that do not go together.
        """
        given = {**self.options, **options}
        if self.needing is not None:
            return self.needing(given)
        if not self.needs_data:
            return Needs(frozenset(), self.needs_groups)
        elementwise = given.get("statistic") == "elementwise"
        return Needs(frozenset({"elementwise" if elementwise else "gates"}), self.needs_groups)

    def __call__(self, statistics: UnitStatistics, **options: Any) -> torch.Tensor:
        """Scores, float64 ``[units]``.

        Raises:
            ScoreError: the function returned something else than one number per unit.
        """
        self.check_options(options)
        scores = self.function(statistics, **options)
        units = statistics.weight_square.shape[0]
        if not isinstance(scores, torch.Tensor) or scores.shape != (units,):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ScoreError(BAD_SCORES.format(name=self.name, units=units, got=got))
        return scores.double()


_REGISTRY: Registry[Criterion] = Registry("criterion", "criteria", "fair_prune_plugins.criteria")


def criterion(
    name: str,
    *,
    summary: str,
    source: str,
    needs_data: bool = True,
    needs_groups: bool = False,
    comparable: bool = True,
    needing: NeedsFn | None = None,
) -> Callable[[CriterionFn], CriterionFn]:
    """Register a function as a criterion; see :class:`Criterion` for the arguments.

    Raises:
        InputError: the name is taken, or the function's signature is not that of a criterion.
    """

    def register(function: CriterionFn) -> CriterionFn:
        def make() -> Criterion:
            _check_signature(function)
            return Criterion(name, function, summary, source, needs_data, needs_groups, comparable, needing)

        _REGISTRY.add(name, function, make)
        return function

    return register


def names() -> list[str]:
    """Names of all registered criteria, those of other installed packages among them."""
    return _REGISTRY.names()


def get(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: there is none of that name (the message lists what there is), or its package failed to load.
    """
    return _REGISTRY.get(name)


def _check_signature(function: CriterionFn) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise InputError(BAD_SIGNATURE.format(place=place(function), problem="it takes no statistics"))
    for p in parameters[1:]:
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            problem = f"{p.name!r} is not a keyword-only option"
            raise InputError(BAD_SIGNATURE.format(place=place(function), problem=problem))
        if p.default is inspect.Parameter.empty:
            problem = f"the option {p.name!r} has no default"
            raise InputError(BAD_SIGNATURE.format(place=place(function), problem=problem))
