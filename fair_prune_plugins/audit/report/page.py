"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from fair_prune_plugins.audit.report import caveats, change_tables, group_tables, sections
from fair_prune_plugins.audit.report.faces import Thumbnail, faces, likely_table
from fair_prune_plugins.audit.report.findings import find
from fair_prune_plugins.audit.report.readings import read_models, what_accuracy
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.embedding import page_templates

PARTS = (
    ("findings", "Findings"),
    ("groups", "Groups"),
    ("gaps", "Gaps"),
    ("calibration", "Calibration"),
    ("outputs", "Every number"),
    ("changes", "Who is answered otherwise"),
    ("forecast", "Forecast"),
    ("remedies", "What would help"),
    ("limits", "Limits"),
    ("methods", "Method"),
)


def render(
    audit: Audit,
    *,
    title: str = "",
    when: datetime | None = None,
    people: bool = False,
    thumbnails: Mapping[str, Thumbnail] | None = None,
) -> str:
    """The HTML of the report.

    Args:
        audit: what was found.
        title: what the page is called; the dense model's name without.
        when: date to print; now without.
        people: name the people most likely to flip by their ids.
        thumbnails: id to image; shows those of the people most likely to flip, and names them. The page then holds
            faces, and says so.

    Raises:
        InputError: a thumbnail that is no image, or none of anybody in question.
    """
    models = read_models(audit)
    remedies = sections.remedy_part(audit)
    missing = {"changes"} if not audit.changes else set()
    missing |= {"remedies"} if remedies is None else set()
    found = {} if thumbnails is None else {"faces": faces(audit, thumbnails)}
    return (
        page_templates("fair_prune_plugins.audit.report")
        .get_template("audit.html.j2")
        .render(
            audit=audit,
            title=title or audit.dense,
            date=(when or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M %Z").strip(),
            parts=[(id_, name) for id_, name in PARTS if id_ not in missing],
            found=find(audit),
            before=caveats.before_reading(audit),
            accuracy=what_accuracy(audit),
            attributes=sections.attribute_parts(audit, models),
            gaps=group_tables.gap_table(audit, models),
            linked=group_tables.has_links(audit),
            calibration=group_tables.calibration_table(audit),
            outputs=sections.output_folds(audit),
            touched=[change_tables.touched_table(audit)] if audit.changes else [],
            changes=sections.change_folds(audit),
            risks=list(sections.risk_tables_of(audit)),
            forecasts=sections.risk_folds(audit),
            faces=found.get("faces", []),
            personal=likely_table(audit) if people or thumbnails is not None else None,
            remedies=remedies,
            limits=caveats.limits(audit),
            methods=caveats.methods(audit),
        )
    )
