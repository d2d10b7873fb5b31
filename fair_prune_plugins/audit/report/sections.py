"""The parts of the page, made ready for the template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fair_prune_plugins.audit.changes.result import CLASS, Question
from fair_prune_plugins.audit.report import change_tables, group_tables, remedy_tables, risk_tables
from fair_prune_plugins.audit.report.heat import heat_table
from fair_prune_plugins.audit.report.pictures import change_picture, curve_picture
from fair_prune_plugins.audit.report.readings import ModelLine
from fair_prune_plugins.audit.report.tables import Table
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.embedding import Picture
from fair_prune_plugins.reporting.wording import counted

OPEN = 2
"""As many outputs or fewer are shown unfolded."""


@dataclass(frozen=True)
class Fold:
    """Something that unfolds: a title, a word on what is inside, tables."""

    title: str
    digest: str
    tables: tuple[Table, ...]
    is_open: bool = False


@dataclass(frozen=True)
class AttributePart:
    """One sensitive attribute: the picture of changes, the table, every output in every group per pruned model."""

    title: str
    statement: str
    picture: Picture | None
    table: Table
    heats: tuple[Table, ...]


def attribute_parts(audit: Audit, models: tuple[ModelLine, ...]) -> list[AttributePart]:
    """Group by group, attribute by attribute."""
    parts = []
    for i, sizes in enumerate(audit.attributes):
        heats = [heat_table(audit, model, i) for model in range(len(audit.pruned))]
        statement = f"{counted(len(sizes.groups), 'group')}"
        if sizes.groups:
            statement += f", {min(sizes.groups.values())} to {max(sizes.groups.values())} people each"
        if sizes.unknown:
            statement += f"; {counted(sizes.unknown, 'person', 'people')} of unknown group"
        parts.append(
            AttributePart(
                f"By {sizes.attribute}",
                f"{statement}.",
                change_picture(audit, models, sizes.attribute),
                group_tables.accuracy_table(audit, models, sizes.attribute),
                tuple(h for h in heats if h is not None),
            )
        )
    return parts


def output_folds(audit: Audit) -> list[Fold]:
    """Every number, output by output."""
    folds = []
    for i, output in enumerate(audit.measures.dense.outputs):
        tables = [group_tables.score_table(audit, i, a) for a in range(len(output.attributes))]
        tables.append(group_tables.output_gap_table(audit, i))
        tables += [
            group_tables.amplification_table(audit, i, a)
            for a, attribute in enumerate(output.attributes)
            if attribute.amplification
        ]
        worst = _largest_loss(audit, i)
        folds.append(Fold(output.name, worst, tuple(tables), len(audit.outputs) <= OPEN))
    return folds


def _largest_loss(audit: Audit, output: int) -> str:
    """How many losses hold, as a reason to unfold."""
    shown = tests = 0
    for model in audit.measures.pruned:
        for attribute in model.outputs[output].attributes:
            for group in attribute.groups:
                if group.test is not None and group.change is not None:
                    tests += 1
                    shown += group.test.holm < 1 - audit.confidence and (group.change.accuracy.value or 0) < 0
    return f"a loss shown in {shown} of {counted(tests, 'test')}" if tests else ""


def change_folds(audit: Audit) -> list[Fold]:
    """Who is answered otherwise, model by model and question by question."""
    folds = []
    for changes in audit.changes:
        questions = sorted(changes.questions, key=lambda q: q.name != CLASS)
        for question in questions:
            tables = [change_tables.question_table(audit, changes, question)]
            if not changes.plain:
                tables.append(change_tables.distance_table(changes, question))
            unfolded = question.name == CLASS or len(audit.outputs) <= OPEN
            folds.append(Fold(f"{changes.model}: {question.name}", _digest(question), tuple(tables), unfolded))
    return folds


def _digest(question: Question) -> str:
    everyone = question.everyone
    return f"{everyone.exemplars} of {counted(everyone.people, 'answer')} changed"


def risk_tables_of(audit: Audit) -> Iterator[Table]:
    """What the dense model told before."""
    if len(audit.risk.outputs) > 1:
        yield risk_tables.output_risks(audit.risk)
    for attribute in audit.risk.attributes:
        yield risk_tables.group_risks(attribute)


def risk_folds(audit: Audit) -> list[Fold]:
    """Pairs of group and output; how good the forecast was per output."""
    folds = []
    if len(audit.risk.outputs) > 1:
        for attribute in audit.risk.attributes:
            if attribute.ranked_pairs:
                table = risk_tables.pair_risks(attribute)
                folds.append(Fold(f"Outputs in groups by {attribute.attribute}", "most at risk first", (table,)))
    for quality in audit.quality:
        if not quality.everyone:
            continue
        last = quality.everyone[-1].question
        tables = [risk_tables.detection_table(quality, last)]
        orders = risk_tables.order_table(quality)
        if orders is not None:
            tables.append(orders)
        folds.append(Fold(f"How good the forecast was: {quality.model}", last, tuple(tables), True))
        rest = [d.question for d in quality.everyone if d.question != last]
        if rest:
            tables = [risk_tables.detection_table(quality, question) for question in rest]
            folds.append(Fold(f"{quality.model}, output by output", counted(len(rest), "output"), tuple(tables)))
    return folds


@dataclass(frozen=True)
class RemedyPart:
    """Countermeasures: the summary, curves, and every output."""

    summary: Table
    pictures: tuple[Picture, ...]
    folds: tuple[Fold, ...]


def remedy_part(audit: Audit) -> RemedyPart | None:
    """What would help; ``None`` where nothing was chosen."""
    mended = audit.countermeasures
    if mended is None:
        return None
    names = [sizes.attribute for sizes in audit.attributes]
    pictures = [curve_picture(mended, model) for model in audit.pruned]
    outputs = list(dict.fromkeys(r.output for r in mended.remedies))
    folds = [
        Fold(
            f"{model}: {output}",
            "before and after",
            (remedy_tables.remedy_table(mended, model, output),),
            len(outputs) <= OPEN,
        )
        for model in audit.pruned
        for output in outputs
    ]
    return RemedyPart(
        remedy_tables.summary_table(mended, audit.pruned, names),
        tuple(p for p in pictures if p is not None),
        tuple(folds),
    )
