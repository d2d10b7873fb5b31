"""Tables of the forecast: what the dense model tells of the risks, and how good that was."""

from __future__ import annotations

from fair_prune_plugins.audit.forecast.result import AttributeRisk, Detection, ForecastQuality, RiskReport
from fair_prune_plugins.audit.report.tables import PLAIN, Body, Cell, Row, Table, level
from fair_prune_plugins.reporting.wording import NONE, chance, decimal, percent

SMALL = "too small to judge"
PAIRS = 15
"""Pairs of group and output that are listed."""


def output_risks(risk: RiskReport) -> Table:
    """Outputs, most at risk first."""
    rows = [
        Row(
            f"{o.rank}. {o.output}",
            [
                Cell(o.reason, is_text=True),
                level(o.uncertainty),
                Cell(decimal(o.interdependence), f"held out {decimal(o.held_out_interdependence)}"),
                level(o.boundary, PLAIN),
                Cell(percent(o.prevalence)),
                level(o.accuracy),
            ],
        )
        for o in risk.ranked
    ]
    return Table(
        "Outputs by risk, from the dense model alone. Unsure: probability between 0.1 and 0.9. Linked: R² of its "
        "answers on the other outputs' answers. Boundary: mean of 1 − Σp², near 0.5 is close to the decision boundary.",
        ["Output", "Why", "Unsure", "Linked", "Boundary", "True in training", "Accuracy"],
        [Body(rows)],
        (True, True),
    )


def group_risks(attribute: AttributeRisk) -> Table:
    """Groups of one attribute, most at risk first, then those too small."""
    gradients = any(g.gradient is not None for g in attribute.groups)
    rows = []
    for g in (*attribute.ranked, *(g for g in attribute.groups if g.rank is None)):
        cells = [
            Cell(str(g.people), f"training {g.training_people}"),
            Cell(g.reason, is_text=True),
            level(g.uncertainty),
            level(g.boundary, PLAIN),
            level(g.accuracy),
        ]
        if gradients:
            found = g.gradient
            norm, noise = (None, None) if found is None else (found.norm, found.noise)
            cells += [
                Cell(decimal(norm, 3), f"noise {decimal(noise, 3)}"),
                Cell(decimal(None if found is None else found.eigenvalue)),
            ]
        rows.append(Row(g.group if g.rank is None else f"{g.rank}. {g.group}", cells, (SMALL,) if g.too_small else ()))
    columns = ["Group", "People", "Why", "Unsure", "Boundary", "Accuracy"]
    if gradients:
        columns += ["Gradient norm", "Largest eigenvalue"]
    return Table(
        f"Groups by {attribute.attribute}, by risk, means over outputs.",
        columns,
        [Body(rows)],
        (True, False, True),
    )


def pair_risks(attribute: AttributeRisk) -> Table:
    """The pairs of group and output most at risk."""
    rows = [
        Row(
            f"{p.rank}. {p.output}, {p.group}",
            [
                Cell(p.reason, is_text=True),
                level(p.uncertainty),
                Cell(percent(p.prevalence), f"elsewhere {percent(p.elsewhere)}"),
                Cell(decimal(p.ratio)),
                Cell(decimal(p.correlation)),
            ],
        )
        for p in attribute.ranked_pairs[:PAIRS]
    ]
    return Table(
        f"Outputs in groups by {attribute.attribute}, the {len(rows)} most at risk. Ratio: how much more frequent the "
        "output is in the group than elsewhere among training people; correlation: of the output with being in the "
        "group.",
        ["Output and group", "Why", "Unsure", "True in training", "Ratio", "Correlation"],
        [Body(rows)],
        (True, True),
    )


def detection_table(quality: ForecastQuality, question: str) -> Table:
    """How well uncertainty told who would change, per group, for one question."""
    bodies = [Body([_detected(d, "Everybody") for d in quality.everyone if d.question == question])]
    mine = [d for d in quality.groups if d.question == question]
    for attribute in dict.fromkeys(d.attribute for d in mine):
        rows = [_detected(d, d.group or "") for d in mine if d.attribute == attribute]
        bodies.append(Body(rows, f"By {attribute}"))
    return Table(
        f"{quality.model}, {question}: how well the dense model's uncertainty told whose answers would change. 0.5 is "
        "guessing, 1 is perfect.",
        ["Group", "Answers", "Of them changed", "AUROC"],
        bodies,
    )


def _detected(entry: Detection, name: str) -> Row:
    return Row(name, [Cell(str(entry.answers)), Cell(str(entry.exemplars)), level(entry.auroc, PLAIN)])


def order_table(quality: ForecastQuality) -> Table | None:
    """Whether the order of risks was the order of losses; ``None`` where too few were compared to say."""
    known = [o for o in quality.orders if o.correlation.value is not None]
    came = list(dict.fromkeys(o.suffered for o in known))
    bodies = []
    for of in dict.fromkeys(o.of for o in known):
        rows = []
        for signal in dict.fromkeys(o.signal for o in known if o.of == of):
            mine = {o.suffered: o for o in known if (o.of, o.signal) == (of, signal)}
            cells = [Cell(str(next(iter(mine.values())).count))]
            for suffered in came:
                found = mine.get(suffered)
                cells += [Cell(NONE)] * 2 if found is None else [level(found.correlation, PLAIN), Cell(chance(found.p))]
            rows.append(Row(signal, cells))
        bodies.append(Body(rows, "Outputs" if of == "outputs" else f"Groups by {of}"))
    if not bodies:
        return None
    return Table(
        f"{quality.model}: rank correlation of each signal with what came, 1 if the order was as foretold.",
        ["Signal", "Compared", *(title for suffered in came for title in (f"With the {suffered}", "p"))],
        bodies,
    )
