"""The criteria there are. Strict: a bad or duplicate criterion is refused when it is registered, not when it is
used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.store import UnitStatistics

CriterionFn = Callable[..., torch.Tensor]

DUPLICATE = "the criterion {name!r} is registered already, by {first}; {second} may not take the same name"
BAD_SIGNATURE = (
    "{place}: a criterion takes exactly one positional argument, the UnitStatistics, and options as keywords with "
    "defaults; "
    "{problem}"
)
UNKNOWN = "there is no criterion {name!r}; there are {have}.{hint}"
UNKNOWN_OPTION = "the criterion {name!r} has no option {option!r}; it takes {have}"
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
        ranking
            means something; ranks are not.
    """

    name: str
    function: CriterionFn
    summary: str
    source: str
    needs_data: bool
    needs_groups: bool
    comparable: bool

    @property
    def options(self) -> dict[str, Any]:
        """Options and their defaults."""
        return {p.name: p.default for p in list(inspect.signature(self.function).parameters.values())[1:]}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options the criterion does not have.

        Raises:
            InputError: naming the option and what there is.
        """
        for option in options:
            if option not in self.options:
                raise InputError(
                    UNKNOWN_OPTION.format(name=self.name, option=option, have=sorted(self.options) or "none")
                )

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


_REGISTRY: dict[str, Criterion] = {}


def criterion(
    name: str,
    *,
    summary: str,
    source: str,
    needs_data: bool = True,
    needs_groups: bool = False,
    comparable: bool = True,
) -> Callable[[CriterionFn], CriterionFn]:
    """Register a function as a criterion; see :class:`Criterion` for the arguments.

    Raises:
        InputError: the name is taken, or the function's signature is not that of a criterion.
    """

    def register(function: CriterionFn) -> CriterionFn:
        place = _place(function)
        if name in _REGISTRY:
            raise InputError(DUPLICATE.format(name=name, first=_place(_REGISTRY[name].function), second=place))
        _check_signature(function, place)
        _REGISTRY[name] = Criterion(name, function, summary, source, needs_data, needs_groups, comparable)
        return function

    return register


def names() -> list[str]:
    """Names of all registered criteria."""
    return sorted(_REGISTRY)


def get(name: str) -> Criterion:
    """A criterion by name.

    Raises:
        InputError: there is none of that name; the message lists what there is.
    """
    if name not in _REGISTRY:
        near = get_close_matches(name, _REGISTRY, n=1)
        raise InputError(UNKNOWN.format(name=name, have=names(), hint=f" Did you mean {near[0]!r}?" if near else ""))
    return _REGISTRY[name]


def _check_signature(function: CriterionFn, place: str) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise InputError(BAD_SIGNATURE.format(place=place, problem="it takes no statistics"))
    for p in parameters[1:]:
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise InputError(BAD_SIGNATURE.format(place=place, problem=f"{p.name!r} is not a keyword-only option"))
        if p.default is inspect.Parameter.empty:
            raise InputError(BAD_SIGNATURE.format(place=place, problem=f"the option {p.name!r} has no default"))


def _place(function: CriterionFn) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}{where}"
