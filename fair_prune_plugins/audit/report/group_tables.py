"""Tables of what was measured: accuracy per group, gaps, and every number of one output."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit.measures import Amplification, MeasuredAttribute, MeasuredGroup, MeasuredModel
from fair_prune_plugins.audit.report.readings import AttributeLine, GroupLine, ModelLine, of_measured
from fair_prune_plugins.audit.report.tables import (
    FINE,
    PLAIN,
    SHARE,
    Body,
    Cell,
    Row,
    Table,
    changed,
    difference,
    level,
    tone,
    verdict_cell,
)
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.estimates import Estimate, judge
from fair_prune_plugins.reporting.wording import NONE, chance, percent, points, unsigned_points

SMALL = "too small to judge"
EVERYBODY = "Everybody"

SCORES = (
    "Accuracy",
    "Holm p",
    "AUROC",
    "True positives",
    "False positives",
    "Answered 1",
    "Rare value",
    "ECE",
    "Unsure",
)
GAPS = (
    ("accuracy", "Accuracy"),
    ("auroc", "AUROC"),
    ("demographic_parity", "Answered 1"),
    ("equal_opportunity_1", "True positives"),
    ("equal_opportunity_0", "True negatives"),
    ("equalized_odds", "Odds (mean)"),
    ("equalized_odds_worst", "Odds (larger)"),
    ("equalized_odds_cancelling", "Odds (cancelling)"),
)


def accuracy_table(audit: Audit, models: Sequence[ModelLine], attribute: str) -> Table:
    """Dense, pruned, change, Holm and verdict per group."""
    dense, *pruned = models
    columns = ["Group", "People", audit.dense]
    words = [True, False, False]
    for model in pruned:
        columns += [model.name, "Holm p", "Verdict"]
        words += [False, False, True]
    names = [g.name for g in dense.attribute(attribute).groups]
    rows = []
    for i, name in enumerate(names):
        group = dense.attribute(attribute).groups[i]
        cells = [Cell(str(group.n)), level(group.accuracy)]
        for model in pruned:
            cells += _judged(model.attribute(attribute).groups[i])
        rows.append(Row(name, cells, (SMALL,) if group.too_small else ()))
    cells = [Cell(str(audit.people)), level(dense.everybody.accuracy)]
    for model in pruned:
        cells += _judged(model.everybody)
    rows.append(Row(EVERYBODY, cells))
    caption = f"Accuracy by {attribute}; smaller text is the {percent(audit.confidence, 0)} interval"
    if pruned:
        caption += (
            ", for pruned models of the change from dense, in points, paired. A group's verdict is made of Holm's p, "
            "everybody's of the interval"
        )
    return Table(f"{caption}.", columns, [Body(rows)], words)


def _judged(group: GroupLine) -> list[Cell]:
    p = Cell(chance(None if group.test is None else group.test.holm))
    colour = tone(group.verdict)
    return [
        Cell(percent(group.accuracy.value), difference(group.moved), colour),
        p,
        verdict_cell(group.verdict),
    ]


def gap_table(audit: Audit, models: Sequence[ModelLine]) -> Table:
    """How far groups are apart in accuracy, and how evenly the loss fell."""
    lucky = any(line.gap_by_chance is not None for model in models for line in model.attributes)
    bodies = []
    for i, line in enumerate(models[0].attributes):
        rows = [Row(model.name, _gap_cells(model.attributes[i], lucky, len(models) > 1)) for model in models]
        bodies.append(Body(rows, f"By {line.attribute}"))
    columns = ["Model", "Gap", *(["By chance below"] if lucky else [])]
    caption = "Largest minus smallest accuracy of a group, in points"
    if lucky:
        caption += ", beside what luck alone gives equally well served groups of these sizes"
    if len(models) > 1:
        columns += ["Change of gap", "Largest excess", "Largest difference of changes", "Rho"]
        caption += (
            "; then how evenly the change fell: excess is what a group lost beyond everybody, rho the standard "
            "deviation of the groups' changes"
        )
    return Table(f"{caption}.", columns, bodies)


def _gap_cells(line: AttributeLine, lucky: bool, compared: bool) -> list[Cell]:
    gap, change, unequal = Estimate.of(line.gap), Estimate.of(line.gap_change), line.disparity
    cells = [_apart(gap), *([Cell(unsigned_points(line.gap_by_chance))] if lucky else [])]
    if unequal is None:
        return cells + [Cell(NONE)] * (4 * compared)
    cells.append(Cell(points(change.value), _within(change), tone(judge(change), more_is_worse=True)))
    return cells + [
        _apart(Estimate.of(estimate)) for estimate in (unequal.max_excess_gap, unequal.pairwise_excess_gap, unequal.rho)
    ]


def _apart(size: Estimate) -> Cell:
    """A size in points, which has no sign."""
    return Cell("undefined" if size.value is None else points(size.value).lstrip("+"), _within(size).replace("+", ""))


def _within(estimate: Estimate) -> str:
    return difference(estimate).partition("(")[2].removesuffix(")")


def score_table(audit: Audit, output: int, attribute: int) -> Table:
    """Every number of one output in every group under every model."""
    models = audit.measures.models
    dense = models[0].outputs[output].attributes[attribute]
    bodies = []
    for i, group in enumerate(dense.groups):
        rows = [_score_row(m, m.outputs[output].attributes[attribute].groups[i], audit) for m in models]
        head = f"{group.name}, {group.n} people, {group.positives} of them truly 1"
        bodies.append(Body(rows, head, (SMALL,) if group.too_small else ()))
    everybody = models[0].outputs[output].everybody
    bodies.append(
        Body(
            [_score_row(m, m.outputs[output].everybody, audit) for m in models],
            f"{EVERYBODY}, {everybody.n} people, {everybody.positives} of them truly 1",
        )
    )
    return Table(
        f"{models[0].outputs[output].name} by {dense.attribute}. Smaller text is the interval of the dense model, and "
        "the change from dense with its paired interval for pruned ones.",
        ["Model", *SCORES],
        bodies,
    )


def _score_row(model: MeasuredModel, group: MeasuredGroup, audit: Audit) -> Row:
    scores, change = group.scores, group.change
    ece = f"by chance below {percent(group.ece_by_chance)}" if group.ece_by_chance is not None else ""
    if change is None:
        calibration = level(scores.ece)
        cells = [
            level(scores.accuracy),
            Cell(""),
            level(scores.auroc, FINE),
            level(scores.true_positive),
            level(scores.false_positive),
            level(scores.predicted_positive),
            level(scores.rare_value, PLAIN),
            Cell(calibration.value, ece or calibration.under),
            level(scores.uncertainty),
        ]
        return Row(model.name, cells)
    line = of_measured(group, 1 - audit.confidence)
    cells = [
        changed(scores.accuracy, change.accuracy, verdict=line.verdict),
        Cell(chance(None if group.test is None else group.test.holm)),
        changed(scores.auroc, change.auroc, FINE),
        changed(scores.true_positive, change.true_positive),
        changed(scores.false_positive, change.false_positive, more_is_worse=True),
        changed(scores.predicted_positive, change.predicted_positive, neutral=True),
        changed(scores.rare_value, change.rare_value, PLAIN, neutral=True),
        changed(scores.ece, change.ece, more_is_worse=True),
        changed(scores.uncertainty, change.uncertainty, neutral=True),
    ]
    if group.too_small:
        cells = [Cell(cell.value, cell.under) for cell in cells]
    return Row(model.name, cells)


def output_gap_table(audit: Audit, output: int) -> Table:
    """Fairness gaps of one output."""
    models = audit.measures.models
    bodies = []
    for a, attribute in enumerate(models[0].outputs[output].attributes):
        rows = []
        for model in models:
            measured = model.outputs[output].attributes[a]
            rows.append(Row(model.name, [_output_gap(measured, name) for name, _ in GAPS]))
        rows.append(Row("by chance below", [_by_chance(attribute, name) for name, _ in GAPS]))
        bodies.append(Body(rows, f"By {attribute.attribute}"))
    return Table(
        f"{models[0].outputs[output].name}: largest minus smallest value of a group, in percent. Odds: true and false "
        "positives together; in the cancelling form opposite gaps hide each other, so 0 does not mean equal odds.",
        ["Model", *(title for _, title in GAPS)],
        bodies,
    )


def _output_gap(measured: MeasuredAttribute, name: str) -> Cell:
    unit = FINE if name == "auroc" else SHARE
    if measured.gaps_change is None:
        return level(getattr(measured.gaps, name), unit)
    return changed(getattr(measured.gaps, name), getattr(measured.gaps_change, name), unit, more_is_worse=True)


def _by_chance(measured: MeasuredAttribute, name: str) -> Cell:
    return Cell(percent(getattr(measured.gaps_by_chance, name, None)))


LINKED = " Linked: R² of the output's answers on the other outputs' answers, on the same people and on people held out."


def has_links(audit: Audit) -> bool:
    """Whether outputs can be told from each other at all: there are several, each with answers of its own."""
    return any(truth.interdependence is not None for truth in audit.measures.truths)


def calibration_table(audit: Audit) -> Table:
    """Every output over everybody: the attribute-level quantities."""
    bodies, links = [], has_links(audit)
    for i, truth in enumerate(audit.measures.truths):
        rows = []
        for model in audit.measures.models:
            output = model.outputs[i]
            row = _score_row(model, output.everybody, audit)
            kept = [row.cells[0], *row.cells[2:3], row.cells[5], row.cells[6], row.cells[7], row.cells[8]]
            linked, moved = output.interdependence, output.interdependence_change
            if linked is None:
                kept += [Cell("–"), Cell("–")] if links else []
            elif moved is None:
                kept += [level(linked.in_sample, PLAIN), level(linked.held_out, PLAIN)]
            else:
                kept += [
                    changed(linked.in_sample, moved.in_sample, PLAIN, neutral=True),
                    changed(linked.held_out, moved.held_out, PLAIN, neutral=True),
                ]
            rows.append(Row(model.name, kept))
        true = f"{truth.name}: true of {percent(truth.prevalence)}"
        if round(truth.prevalence, 4) != round(truth.training_prevalence, 4):
            true += f", of {percent(truth.training_prevalence)} in training"
        bodies.append(Body(rows, f"{true}; the rarer value is {truth.rare}"))
    return Table(
        "Each output over everybody. Rare value: how often the rarer value is answered over how often it is true, 1 is "
        "calibrated. ECE: expected calibration error. Unsure: probability between 0.1 and 0.9."
        f"{LINKED if links else ''}",
        [
            *("Model", "Accuracy", "AUROC", "Answered 1", "Rare value", "ECE", "Unsure"),
            *(("Linked", "Linked, held out") if links else ()),
        ],
        bodies,
    )


def amplification_table(audit: Audit, output: int, attribute: int) -> Table:
    """Directional bias amplification of one output by one attribute."""
    models = audit.measures.models
    measured = models[0].outputs[output].attributes[attribute]
    # Of two groups each is the other's others, and both entries say the same.
    entries = measured.amplification[:1] if len(measured.groups) == 2 else measured.amplification
    rows = []
    for i, entry in enumerate(entries):
        mine = [m.outputs[output].attributes[attribute].amplification[i] for m in models]
        shares = Cell(percent(entry.training_share), f"others {percent(entry.training_share_others)}")
        rows.append(Row(entry.group, [shares, *(_amplified(found) for found in mine)]))
    return Table(
        f"{models[0].outputs[output].name} by {measured.attribute}: bias amplification in points, each group against "
        "all others. Positive: the model associates the output with the side where it was more frequent in training, "
        "more than the truth does.",
        ["Group", "True in training", *(m.name for m in models)],
        [Body(rows)],
    )


def _amplified(entry: Amplification) -> Cell:
    if entry.undefined is not None:
        return Cell("undefined", entry.undefined)
    value = Estimate.of(entry.value)
    if entry.change is None:
        return Cell(points(value.value), _within(value))
    return Cell(points(value.value), f"change {difference(Estimate.of(entry.change))}")
