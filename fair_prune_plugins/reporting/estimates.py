"""A number with its interval as reports take it, and what may be said about a difference."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fair_prune_plugins.evaluation import intervals

NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, each ``None`` where undefined.

    Attributes:
        value: the number.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, measured: intervals.Estimate | None) -> Estimate:
        """From what was measured; ``None`` is undefined."""
        if measured is None:
            return cls()
        if measured.interval is None:
            return cls(measured.value)
        return cls(measured.value, measured.interval.low, measured.interval.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and lies on one side of zero: the rule for calling a difference shown."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


UNMEASURED = Estimate()


class Verdict(Enum):
    """What may be said about a difference."""

    WORSE = "worse"
    BETTER = "better"
    NO_DIFFERENCE = NO_DIFFERENCE
    TOO_SMALL = "too small to judge"
    UNDEFINED = "not measured"


TONES = {Verdict.WORSE: "worse", Verdict.BETTER: "better"}
"""CSS classes; what is neither is ``neutral``."""
SIGNS = {Verdict.WORSE: "▼ ", Verdict.BETTER: "▲ "}
"""Beside the colour, which must not carry meaning alone."""


def judge(change: Estimate, *, too_small: bool = False) -> Verdict:
    """What may be said about a paired difference.

    Args:
        change: the difference with its paired interval.
        too_small: whether the group has too few people to judge.
    """
    if too_small:
        return Verdict.TOO_SMALL
    if change.value is None or change.half_width is None:
        return Verdict.UNDEFINED
    if not change.excludes_zero:
        return Verdict.NO_DIFFERENCE
    return Verdict.WORSE if (change.high or 0.0) < 0 else Verdict.BETTER


@dataclass(frozen=True)
class Remark:
    """A sentence or two, with a few words in front that say what they are about."""

    lead: str
    text: str
