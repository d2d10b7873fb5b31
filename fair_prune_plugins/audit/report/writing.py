"""Write the report's files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fair_prune_plugins.audit.report.card import model_card
from fair_prune_plugins.audit.report.faces import Thumbnail
from fair_prune_plugins.audit.report.page import render
from fair_prune_plugins.audit.result import Audit

HTML_NAME, JSON_NAME, CARD_NAME = "audit.html", "audit.json", "model_card.md"


@dataclass(frozen=True)
class AuditFiles:
    """What :func:`write_report` wrote."""

    html: Path
    json: Path
    card: Path


def write_report(
    audit: Audit,
    folder: str | os.PathLike[str],
    *,
    title: str = "",
    when: datetime | None = None,
    people: bool = False,
    thumbnails: Mapping[str, Thumbnail] | None = None,
) -> AuditFiles:
    """Write ``audit.html``, ``audit.json`` and ``model_card.md``.

    Without ``people`` or ``thumbnails`` none of them tells single people apart.

    Args:
        audit: what was found.
        folder: made if it is not there.
        title: what the page is called; the dense model's name without.
        when: date to print; now without.
        people: name single people by their ids, in the page and the JSON: those most likely to flip, and in the JSON
            those who changed most.
        thumbnails: id to an image file or its bytes. The page then shows the people most likely to flip and warns that
            it holds faces; implies ``people`` for the page only.

    Raises:
        InputError: a thumbnail that is no image, or none of anybody in question.
    """
    html = render(audit, title=title, when=when, people=people, thumbnails=thumbnails)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = AuditFiles(place / HTML_NAME, place / JSON_NAME, place / CARD_NAME)
    text = json.dumps(audit.as_dict(people=people), ensure_ascii=False, allow_nan=False)
    files.json.write_text(f"{text}\n", encoding="utf-8")
    files.card.write_text(model_card(audit), encoding="utf-8")
    files.html.write_text(html, encoding="utf-8")
    return files
