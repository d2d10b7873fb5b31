"""Single people in the report: only where they were asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fair_prune_plugins.audit.report.tables import Body, Cell, Row, Table
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.reporting.wording import decimal

SIDE = 96
"""Pixels of a thumbnail, at most."""
MOST = 24
"""People who are shown."""

NOT_AN_IMAGE = "the thumbnail of {id!r} ({source}) is not an image that Pillow can read: {reason}"
NOBODY = (
    "thumbnails has no picture of anybody who is likely to flip; its keys are ids such as {theirs!r}, the audit's are "
    "such as {ours!r}"
)

Thumbnail = Path | str | bytes
"""An image file, or the bytes of one."""


@dataclass(frozen=True)
class Face:
    """One person likely to flip, with a picture."""

    id: str
    output: str
    margin: str
    uri: str


def faces(audit: Audit, thumbnails: Mapping[str, Thumbnail]) -> list[Face]:
    """Thumbnails of the people most likely to flip, each person once, made small and without the files' metadata.

    Raises:
        InputError: none of them has a picture, or one is no image.
    """
    found: dict[str, Face] = {}
    for person in audit.risk.likely:
        if len(found) < MOST and person.id in thumbnails and person.id not in found:
            uri = _uri(person.id, thumbnails[person.id])
            found[person.id] = Face(person.id, person.output, decimal(person.margin), uri)
    if not found and audit.risk.likely:
        theirs = next(iter(thumbnails), None)
        raise InputError(NOBODY.format(theirs=theirs, ours=audit.risk.likely[0].id))
    return list(found.values())


def likely_table(audit: Audit) -> Table:
    """Ids of the people whose answers are most likely to flip."""
    rows = [Row(p.id, [Cell(p.output, is_text=True), Cell(decimal(p.margin, 3))]) for p in audit.risk.likely]
    return Table(
        "Margin: how far the dense model's answer is from the next best one, in logits.",
        ["Person", "Output", "Margin"],
        [Body(rows)],
        (True, True),
    )


def _uri(name: str, source: Thumbnail) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        shown = "bytes" if isinstance(source, bytes) else str(source)
        raise InputError(NOT_AN_IMAGE.format(id=name, source=shown, reason=error)) from error
    out = io.BytesIO()
    small.save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
