"""Tables as the page draws them: a caption, heads with scopes, bodies of rows, and in each cell a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fair_prune_plugins.evaluation import intervals
from fair_prune_plugins.reporting.estimates import SIGNS, TONES, Estimate, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    NONE,
    decimal,
    decimal_interval,
    percent,
    percent_interval,
    points,
    points_interval,
    signed,
    signed_interval,
)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: what it says.
        under: what stands below it in small, e.g. an interval.
        tone: ``"worse"``, ``"better"`` or nothing.
        is_text: words, which stand at the left; numbers stand at the right.
    """

    value: str
    under: str = ""
    tone: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its head, marks beside that, and its cells."""

    name: str
    cells: Sequence[Cell]
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Body:
    """Rows that belong together, under a head of their own where ``name`` is given."""

    rows: Sequence[Row]
    name: str = ""
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """A table; ``columns`` begins with that of the rows' heads."""

    caption: str
    columns: Sequence[str]
    bodies: Sequence[Body]
    is_text: Sequence[bool] = ()
    """Which columns hold words; none where empty."""

    @property
    def width(self) -> int:
        """Columns in all."""
        return len(self.columns)

    def words(self, column: int) -> bool:
        """Whether a column holds words."""
        return column == 0 or (column < len(self.is_text) and self.is_text[column])


@dataclass(frozen=True)
class Unit:
    """How a number and its change are written."""

    number: Callable[[float | None], str]
    interval: Callable[[Estimate], str]
    change: Callable[[float | None], str]
    change_interval: Callable[[Estimate], str]


SHARE = Unit(percent, percent_interval, points, points_interval)
"""Percent, and points of percent."""
PLAIN = Unit(decimal, decimal_interval, signed, signed_interval)
"""Two digits."""
FINE = Unit(
    lambda value: decimal(value, 3),
    lambda estimate: decimal_interval(estimate, 3),
    lambda value: signed(value, 3),
    lambda estimate: signed_interval(estimate, 3),
)
"""Three digits."""


def level(measured: intervals.Estimate | None, unit: Unit = SHARE) -> Cell:
    """A number above its interval."""
    estimate = Estimate.of(measured)
    if estimate.value is None:
        return Cell("undefined")
    return Cell(unit.number(estimate.value), shown_interval(estimate, unit.interval))


def changed(
    measured: intervals.Estimate | None,
    change: intervals.Estimate | None,
    unit: Unit = SHARE,
    *,
    verdict: Verdict | None = None,
    more_is_worse: bool = False,
    neutral: bool = False,
) -> Cell:
    """A number above its change from the dense model with the paired interval.

    Args:
        measured: the number.
        change: of it.
        unit: how to write both.
        verdict: on the change; by its interval where not given.
        more_is_worse: a rise is bad.
        neutral: neither direction is good or bad.
    """
    estimate, moved = Estimate.of(measured), Estimate.of(change)
    if estimate.value is None:
        return Cell("undefined")
    said = judge(moved) if verdict is None else verdict
    return Cell(
        unit.number(estimate.value), difference(moved, unit), "" if neutral else tone(said, more_is_worse=more_is_worse)
    )


def difference(change: Estimate, unit: Unit = SHARE) -> str:
    """``−2.1 (−3.0 to −1.2)``; empty where undefined."""
    if change.value is None:
        return ""
    within = shown_interval(change, unit.change_interval)
    return f"{unit.change(change.value)} ({within})" if within else unit.change(change.value)


def shown_interval(estimate: Estimate, write: Callable[[Estimate], str]) -> str:
    """The interval, or nothing where there is none."""
    text = write(estimate)
    return "" if text == NONE else text


def tone(verdict: Verdict, *, more_is_worse: bool = False) -> str:
    """The CSS class of a verdict."""
    if more_is_worse:
        verdict = {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}.get(verdict, verdict)
    return TONES.get(verdict, "")


def verdict_cell(verdict: Verdict, under: str = "") -> Cell:
    """A verdict with its sign, so that colour carries no meaning alone."""
    return Cell(SIGNS.get(verdict, "") + verdict.value, under, TONES.get(verdict, "neutral"), is_text=True)
