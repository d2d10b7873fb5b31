"""Every output in every group at a glance: a table whose cells are coloured by the change of accuracy.

A table and no picture: its numbers are text on every screen, in print and for screen readers.
"""

from __future__ import annotations

from fair_prune_plugins.audit.report.tables import Body, Cell, Row, Table
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.wording import NONE, points

STEPS = 4
"""Shades on either side of no change."""


def heat_table(audit: Audit, model: int, attribute: int) -> Table | None:
    """Change of accuracy of every output in every group under one pruned model; ``None`` with a single output."""
    measured = audit.measures.pruned[model]
    if len(measured.outputs) < 2:
        return None
    first = measured.outputs[0].attributes[attribute]
    changes = [
        abs(g.change.accuracy.value or 0.0)
        for output in measured.outputs
        for g in output.attributes[attribute].groups
        if g.change is not None and not g.too_small
    ]
    reach = max(changes, default=0.0)
    rows = []
    for output in measured.outputs:
        cells = []
        for group in output.attributes[attribute].groups:
            value = None if group.change is None else group.change.accuracy.value
            if value is None or group.too_small:
                cells.append(Cell(NONE))
                continue
            holds = group.test is not None and group.test.holm < 1 - audit.confidence
            cells.append(Cell(points(value) + (" •" if holds else ""), tone=_shade(value, reach, holds)))
        rows.append(Row(output.name, cells))
    return Table(
        f"{measured.name}, by {first.attribute}: change of accuracy from dense in points. Orange is worse, blue is "
        "better; a dot marks what holds after Holm’s correction. A dash: too few people, or undefined.",
        ["Output", *(g.name for g in first.groups)],
        [Body(rows)],
    )


def _shade(value: float, reach: float, holds: bool) -> str:
    """CSS classes: side and strength of the colour."""
    strength = round(STEPS * abs(value) / reach) if reach else 0
    side = f"{'less' if value < 0 else 'more'}{strength}" if strength else ""
    return f"heat {side}{' holds' if holds else ''}"
