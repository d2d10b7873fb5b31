"""The pruning ratio at which a model costs what it may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.torch_pruning.choices import Choice

UNREACHABLE = (
    "the cost target cannot be reached: {goal:.4g} {unit} asked, {least:.4g} left when everything went that may go. "
    "Raise the target or max_pruning_ratio, or take layers out of ignored_layers"
)

RATIO_STEP = 1e-4
"""Ratios nearer than this are not told apart."""


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        choices: one per coupled group.
        ratio: the largest pruning ratio that any group was decided at.
        cost: of the model after these choices.
        evaluations: how many candidate models were costed.
    """

    choices: tuple[Choice, ...]
    ratio: float
    cost: float
    evaluations: int


class _Costs:
    """A cost function that remembers; the same choices are not costed twice."""

    def __init__(self, cost: Callable[[Sequence[Choice]], float]) -> None:
        self._cost = cost
        self._known: dict[tuple[object, ...], float] = {}

    def __call__(self, choices: Sequence[Choice]) -> float:
        key = tuple(c.signature() for c in choices)
        if key not in self._known:
            self._known[key] = self._cost(choices)
        return self._known[key]

    @property
    def evaluations(self) -> int:
        return len(self._known)


def cheapest_ratio_within(
    choose: Callable[[float], tuple[Choice, ...]],
    cost: Callable[[Sequence[Choice]], float],
    goal: float,
    tolerance: float,
    *,
    unit: str = "",
    highest: float = 1 - RATIO_STEP,
) -> Found:
    """The smallest removal that costs no more than ``goal``.

    A bisection over the ratio ends at two neighbours, one too costly and one cheap enough. Where the widths are
    aligned these can lie far apart, because many groups change at once; then groups go over to the cheaper one by
    one, in the order of the plan, only as many as needed. What is left is given back: groups take their next wider
    choice, in turn, until none of these fits. None of this looks at scores, so with local pruning every criterion
    ends with the same widths.

    Args:
        choose: ratio to choices; more goes at a higher ratio.
        cost: of the model after some choices; it falls as more goes.
        goal: the largest cost allowed.
        tolerance: a cost this fraction below the goal is near enough to stop.
        unit: of the cost, for the message.
        highest: ratio that removes all that may go.

    Raises:
        UnsupportedModelError: even ``highest`` costs more than the goal.
    """
    known = _Costs(cost)

    def near(value: float) -> bool:
        return goal * (1 - tolerance) <= value <= goal

    low, high = 0.0, highest
    costly, cheap = choose(low), choose(high)
    if known(costly) <= goal:
        return Found(costly, low, known(costly), known.evaluations)
    if known(cheap) > goal:
        raise UnsupportedModelError(UNREACHABLE.format(goal=goal, unit=unit, least=known(cheap)))
    while high - low > RATIO_STEP and not near(known(cheap)):
        middle = (low + high) / 2
        choices = choose(middle)
        if known(choices) > goal:
            low, costly = middle, choices
        else:
            high, cheap = middle, choices
    if not near(known(cheap)):
        cheap = _mixed(costly, cheap, known, goal)
        cheap = _widened(cheap, choose, low, known, goal, near)
    return Found(cheap, high, known(cheap), known.evaluations)


def _mixed(costly: tuple[Choice, ...], cheap: tuple[Choice, ...], cost: _Costs, goal: float) -> tuple[Choice, ...]:
    """As few groups as possible, in their order, take their cheaper choice."""
    differing = [i for i, (a, b) in enumerate(zip(costly, cheap, strict=True)) if a.signature() != b.signature()]

    def first_cheap(count: int) -> tuple[Choice, ...]:
        taken = set(differing[:count])
        return tuple(cheap[i] if i in taken else c for i, c in enumerate(costly))

    few, enough = 0, len(differing)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if cost(first_cheap(middle)) <= goal else (middle, enough)
    return first_cheap(enough)


def _widened(
    choices: tuple[Choice, ...],
    choose: Callable[[float], tuple[Choice, ...]],
    highest: float,
    cost: _Costs,
    goal: float,
    near: Callable[[float], bool],
) -> tuple[Choice, ...]:
    """Groups take their next wider choice, in turn, where the goal still holds, until none fits."""
    open_groups = list(range(len(choices)))
    while open_groups and not near(cost(choices)):
        i = open_groups.pop(0)
        wider = _next_wider(choices[i], lambda ratio, i=i: choose(ratio)[i], highest)  # type: ignore[misc]
        if wider is not None and cost(widened := (*choices[:i], wider, *choices[i + 1 :])) <= goal:
            choices = widened
            open_groups.append(i)
    return choices


def _next_wider(own: Choice, choose: Callable[[float], Choice], highest: float) -> Choice | None:
    """What a group loses at the largest ratio where it loses less than now."""
    less, more = 0.0, highest
    wider = choose(less)
    if wider.removed() >= own.removed():
        return None
    if (at_highest := choose(highest)).removed() < own.removed():
        return at_highest
    while more - less > RATIO_STEP:
        middle = (less + more) / 2
        choice = choose(middle)
        if choice.removed() < own.removed():
            less, wider = middle, choice
        else:
            more = middle
    return wider
