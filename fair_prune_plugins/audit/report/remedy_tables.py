"""Tables of what thresholds and label overrides would bring."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit.countermeasures.result import Countermeasures, Kind, Remedy, Shift
from fair_prune_plugins.audit.report.tables import PLAIN, SHARE, Body, Cell, Row, Table, Unit, difference, tone
from fair_prune_plugins.reporting.estimates import Estimate, Verdict, judge
from fair_prune_plugins.reporting.wording import percent

KINDS: dict[Kind, str] = {
    "thresholds": "calibrated thresholds",
    "dense overrides": "dense model asked",
    "human overrides": "human asked",
}


def summary_table(mended: Countermeasures, models: Sequence[str], attributes: Sequence[str]) -> Table:
    """How often each countermeasure was shown to help or to harm, by attribute."""
    bodies = []
    for model in models:
        rows = []
        for kind, called in KINDS.items():
            remedies = mended.of(model, kind)
            if not remedies:
                continue
            for i, attribute in enumerate(attributes):
                worst = [r.attributes[i].worst.change for r in remedies]
                gap = [r.attributes[i].gap.change for r in remedies]
                rows.append(
                    Row(
                        f"{called}, by {attribute}",
                        [
                            Cell(str(len(remedies))),
                            _counted([judge(Estimate.of(c)) for c in worst], "helped", "harmed"),
                            _counted([judge(Estimate.of(c)) for c in gap], "wider", "narrower"),
                        ],
                    )
                )
        bodies.append(Body(rows, model))
    return Table(
        "In how many outputs a change was shown (its interval excludes zero, not corrected for their number).",
        ["Countermeasure", "Outputs", "Worst group", "Gap"],
        bodies,
        (True, False, True, True),
    )


def _counted(verdicts: Sequence[Verdict], more: str, less: str) -> Cell:
    up, down = verdicts.count(Verdict.BETTER), verdicts.count(Verdict.WORSE)
    return Cell(f"{up} {more}, {down} {less}", f"{len(verdicts) - up - down} not shown", is_text=True)


def remedy_table(mended: Countermeasures, model: str, output: str) -> Table:
    """One output of one model: before, after and change."""
    bodies = []
    mine = [r for r in mended.remedies if r.model == model and r.output == output]
    for remedy in mine:
        rows = [Row("Everybody’s accuracy", _shift(remedy.accuracy))]
        for shift in remedy.attributes:
            name = shift.worst_group or "none large enough"
            rows.append(Row(f"Worst group by {shift.attribute}: {name}", _shift(shift.worst)))
            rows.append(Row(f"Gap by {shift.attribute}", _shift(shift.gap, more_is_worse=True)))
        if remedy.rare_ratio is not None:
            rows.append(
                Row(f"Rare value ratio (value {remedy.rare_value})", _shift(remedy.rare_ratio, PLAIN, plain=True))
            )
        bodies.append(Body(rows, _head(remedy)))
    return Table(
        f"{output} under {model}, on test people; change with its paired {percent(mended.confidence, 0)} interval.",
        ["Number", "Before", "After", "Change"],
        bodies,
    )


def _head(remedy: Remedy) -> str:
    called = KINDS[remedy.kind]
    text = called[:1].upper() + called[1:]
    return text if remedy.kind == "thresholds" else f"{text}: {percent(remedy.overridden)} of answers"


def _shift(shift: Shift, unit: Unit = SHARE, *, more_is_worse: bool = False, plain: bool = False) -> list[Cell]:
    before, after, change = (Estimate.of(e) for e in (shift.before, shift.after, shift.change))
    said = difference(change, unit)
    value, _, within = said.partition(" (")
    colour = "" if plain else tone(judge(change), more_is_worse=more_is_worse)
    return [
        Cell(unit.number(before.value)),
        Cell(unit.number(after.value)),
        Cell(value or "undefined", within.removesuffix(")"), colour),
    ]
