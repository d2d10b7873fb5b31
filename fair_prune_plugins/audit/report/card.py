"""A section for a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit.report import caveats
from fair_prune_plugins.audit.report.findings import find
from fair_prune_plugins.audit.report.readings import ModelLine, read_models, what_accuracy
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.estimates import Estimate
from fair_prune_plugins.reporting.wording import (
    chance,
    percent,
    percent_interval,
    points,
    points_interval,
    unsigned_points,
)

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|~"})


def model_card(audit: Audit) -> str:
    """Markdown with headings from level 2 on, ready to paste into a model card."""
    found = find(audit)
    models = read_models(audit)
    lines = ["## Bias audit" if audit.pruned else "## Bias risks before pruning", "", f"**{_text(found.headline)}**"]
    lines += ["", _text(found.lead)] if found.lead else []
    lines += ["", *(f"- **{_text(r.lead)}** {_text(r.text)}" for r in found.remarks)]
    lines += ["", "### Accuracy per group", "", f"Accuracy is the {_text(what_accuracy(audit))}. "]
    lines[-1] += (
        f"In brackets: {percent(audit.confidence, 0)} intervals; of pruned models, the change from dense in points, "
        f"paired. Holm: p-value after correction."
    )
    for sizes in audit.attributes:
        lines += ["", f"#### By {_text(sizes.attribute)}", "", *_table(models, sizes.attribute)]
    if audit.pruned:
        lines += ["", "### Gaps between groups", "", *_gaps(models)]
    lines += ["", "### Caveats", ""]
    lines += [f"- {_text(note)}" for note in audit.notes]
    lines += [f"- {_text(r.lead)} {_text(r.text)}" for r in caveats.limits(audit)]
    return "\n".join(lines) + "\n"


def _table(models: Sequence[ModelLine], attribute: str) -> list[str]:
    dense, *pruned = models
    heads = ["Group", "People", dense.name, *(t for m in pruned for t in (m.name, "Holm", "Verdict"))]
    rows = []
    for i, group in enumerate(dense.attribute(attribute).groups):
        cells = [group.name, str(group.n), _bracketed(Estimate.of(group.accuracy))]
        for model in pruned:
            mine = model.attribute(attribute).groups[i]
            p = "–" if mine.test is None else chance(mine.test.holm)
            cells += [_changed(Estimate.of(mine.accuracy), mine.moved), p, mine.verdict.value]
        rows.append(cells)
    cells = ["Everybody", str(dense.everybody.n), _bracketed(Estimate.of(dense.everybody.accuracy))]
    for model in pruned:
        mine = model.everybody
        cells += [_changed(Estimate.of(mine.accuracy), mine.moved), "–", mine.verdict.value]
    return _markdown(heads, [*rows, cells])


def _gaps(models: Sequence[ModelLine]) -> list[str]:
    rows = []
    for i, line in enumerate(models[0].attributes):
        for model in models:
            mine = model.attributes[i]
            change = Estimate.of(mine.gap_change)
            moved = f"{points(change.value)} ({points_interval(change)})" if change.value is not None else "–"
            rows.append(
                [
                    line.attribute,
                    model.name,
                    unsigned_points(mine.gap.value),
                    unsigned_points(mine.gap_by_chance),
                    moved,
                ]
            )
    return _markdown(["Attribute", "Model", "Gap, points", "By chance below", "Change"], rows)


def _bracketed(accuracy: Estimate) -> str:
    if accuracy.value is None:
        return "undefined"
    return f"{percent(accuracy.value)} ({percent_interval(accuracy)})"


def _changed(accuracy: Estimate, change: Estimate) -> str:
    if accuracy.value is None:
        return "undefined"
    return f"{percent(accuracy.value)} ({points(change.value)}; {points_interval(change)})"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(_text(h) for h in heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(_text(c) for c in row)} |" for row in rows]


def _text(text: str) -> str:
    """As it is: names come from users' data and may hold what Markdown would take for its own."""
    return " ".join(text.split("\n")).translate(_SPECIAL)
