"""Tables of who is answered otherwise: counts and shares per group, never single people."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit.changes.result import Changed, Changes, Question, Touched
from fair_prune_plugins.audit.report.tables import Body, Cell, Row, Table, level
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.wording import chance, decimal, percent

SMALL = "too small to judge"


def touched_table(audit: Audit) -> Table:
    """Who has any answer changed, under every pruned model."""
    several = len(audit.outputs) > 1 and audit.task == "multilabel"
    columns = ["Group", "People"]
    for model in audit.pruned:
        columns += [f"{model}: people", f"{model}: answers"] if several else [model]
    bodies = [Body([_touched("Everybody", [c.touched for c in audit.changes], several)])]
    for i, sizes in enumerate(audit.attributes):
        rows = []
        for g, (name, people) in enumerate(sizes.groups.items()):
            entries = [c.attributes[i].touched[g] for c in audit.changes]
            row = _touched(name, entries, several)
            rows.append(Row(name, row.cells, (SMALL,) if people < audit.minimum else ()))
        bodies.append(Body(rows, f"By {sizes.attribute}"))
    what = "People with a changed answer, and answers that changed" if several else "People whose answer changed"
    return Table(f"{what}, from {audit.dense}; smaller text is the interval.", columns, bodies)


def _touched(name: str, entries: Sequence[Touched], several: bool) -> Row:
    cells = [Cell(str(entries[0].people))]
    for entry in entries:
        cells += [level(entry.any), level(entry.answers)] if several else [level(entry.any)]
    return Row(name, cells)


def question_table(audit: Audit, changes: Changes, question: Question) -> Table:
    """One question: flips by direction, what the dense model knew, McNemar's test."""
    answers = question.everyone.flips.positive_to_negative is not None
    columns = ["Group", "People", "Changed", "Right to wrong", "Wrong to right"]
    columns += ["1 to 0", "0 to 1"] if answers else ["Wrong to wrong"]
    columns += ["Share of the changed", "Unsure, changed", "Unsure, all", "Lost, gained", "Holm p"]
    bodies = [Body([_row("Everybody", question.everyone, answers)])]
    for attribute in changes.attributes:
        rows = [_row(entry.group or "", entry, answers) for entry in attribute.of(question.name)]
        bodies.append(Body(rows, f"By {attribute.attribute}"))
    return Table(
        f"{question.name} under {changes.model}: people whose answer changed from {changes.dense}, as shares of their "
        "group. Unsure: the dense model's probability lay between 0.1 and 0.9. Lost and gained count people right "
        "under one model only; Holm's p is over the groups of an attribute and all outputs.",
        columns,
        bodies,
    )


def _row(name: str, entry: Changed, answers: bool) -> Row:
    flips, test = entry.flips, entry.test
    cells = [
        Cell(str(entry.people)),
        Cell(str(entry.exemplars), percent(entry.share.value)),
        level(flips.right_to_wrong),
        level(flips.wrong_to_right),
        *([level(flips.positive_to_negative), level(flips.negative_to_positive)] if answers else []),
        *([level(flips.wrong_to_wrong)] if not answers else []),
        Cell(percent(entry.share_of_all.value), f"of people {percent(entry.share_of_people)}"),
        level(entry.unsure_exemplars),
        level(entry.unsure),
        Cell(f"{test.lost}, {test.gained}"),
        Cell(chance(test.over_all), f"McNemar {chance(test.p)}"),
    ]
    return Row(name, cells, (SMALL,) if entry.too_small else ())


def distance_table(changes: Changes, question: Question) -> Table:
    """How far distributions of answers over runs moved (taxicab)."""
    rows = [_distance("Everybody", question.everyone)]
    bodies = [Body(rows)]
    for attribute in changes.attributes:
        bodies.append(
            Body([_distance(e.group or "", e) for e in attribute.of(question.name)], f"By {attribute.attribute}")
        )
    return Table(
        f"{question.name} under {changes.model}: how far answers moved over the runs. The distance is the sum of "
        "absolute differences of the answers' shares over runs, 0 to 2; far are the people who moved most of all.",
        ["Group", "Mean distance", "Far"],
        bodies,
    )


def _distance(name: str, entry: Changed) -> Row:
    distance = entry.distance
    return Row(name, [Cell(decimal(distance.value, 3)), level(entry.far)], (SMALL,) if entry.too_small else ())
