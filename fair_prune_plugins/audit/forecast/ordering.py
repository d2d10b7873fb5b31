"""Putting outputs, groups and pairs in the order of their risk, with a reason in words.

There is no published threshold from which on a risk is real, so signals are compared: where a thing stands among its
likes, 0 (safest) to 1, and the mean of that over the signals. Every signal counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

HIGH = 0.75
"""A signal is a reason where it stands in the upper quarter and, as shown, above the middle."""

NOTHING_HIGH = "Nothing stands out: {said}."
NOTHING_KNOWN = "Nothing is known that could be compared."


@dataclass(frozen=True)
class Signal:
    """One kind of evidence about several things.

    Attributes:
        name: what it is called.
        values: one per thing, larger is riskier; ``None`` where undefined or not to be compared.
        say: a value in words.
        show: a value alone.
    """

    name: str
    values: Sequence[float | None]
    say: Callable[[float], str]
    show: Callable[[float], str]


@dataclass(frozen=True)
class Placed:
    """Where one thing stands: as :class:`~.result.OutputRisk` says; ``score`` and ``rank`` ``None`` if not compared."""

    rank: int | None
    score: float | None
    reason: str


def percent(share: float) -> str:
    """A share as a percentage with two digits that count."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def standings(values: Sequence[float | None]) -> list[float | None]:
    """Where each value stands among the defined ones, 0 to 1; equal ones share the middle of their places.

    All ``None`` with fewer than two defined values.
    """
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return [None] * len(values)
    ordered = np.sort(known)

    def place(value: float) -> float:
        below, up_to = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
        return float((below + up_to - 1) / 2 / (len(known) - 1))

    return [None if value is None else place(value) for value in values]


def mean_standings(signals: Sequence[Sequence[float | None]], things: int) -> list[float | None]:
    """Each thing's mean standing over the signals in which it is defined."""
    stands = [standings(values) for values in signals]
    known = [[stand[thing] for stand in stands if stand[thing] is not None] for thing in range(things)]
    return [float(np.mean(np.array(mine, dtype=np.float64))) if mine else None for mine in known]


def place(signals: Sequence[Signal], things: int) -> list[Placed]:
    """Order things by their signals, most at risk first; equal scores share a rank."""
    stands = [standings(signal.values) for signal in signals]
    scores = mean_standings([signal.values for signal in signals], things)
    # Rounded: means of the same places in another order differ in the last digit.
    rounded = [None if score is None else round(score, 12) for score in scores]
    ranks = [
        None if mine is None else 1 + sum(other is not None and other > mine for other in rounded) for mine in rounded
    ]
    return [Placed(ranks[i], scores[i], _reason(signals, [stand[i] for stand in stands], i)) for i in range(things)]


def _reason(signals: Sequence[Signal], stands: Sequence[float | None], thing: int) -> str:
    high, others = [], []
    for signal, stand in zip(signals, stands, strict=True):
        value = signal.values[thing]
        if value is None:
            continue
        said = signal.say(value)
        typical = signal.show(float(np.median([v for v in signal.values if v is not None])))
        if stand is not None and stand >= HIGH and signal.show(value) != typical:
            high.append((stand, f"{said} (typically {typical})"))
        else:
            others.append(said)
    if high:
        text = "; ".join(said for _, said in sorted(high, key=lambda entry: -entry[0])) + "."
        return text[0].upper() + text[1:]
    return NOTHING_HIGH.format(said="; ".join(others)) if others else NOTHING_KNOWN
