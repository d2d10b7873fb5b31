"""Pages that need nothing else: pictures embedded for light and for dark screens, and the templates' environment."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fair_prune_plugins.reporting.drawing import Theme

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Picture:
    """A picture inside of a page.

    Attributes:
        light: SVG in a data URI, for light screens and paper.
        dark: likewise, for dark screens.
        alt: what it shows, with its numbers, for those who do not see it.
        caption: how to read it.
        width: in points.
        height: likewise.
    """

    light: str
    dark: str
    alt: str
    caption: str
    width: int
    height: int


def embed(draw: Callable[[Theme], bytes], *, alt: str, caption: str) -> Picture:
    """Draw a picture for both themes and embed it.

    Args:
        draw: gives the SVG file of a theme.
        alt: its alternative text.
        caption: what stands below it.
    """
    light, dark = draw("light"), draw("dark")
    width, height = _size(light)
    return Picture(_data_uri(light), _data_uri(dark), alt, caption, width, height)


def page_templates(package: str) -> Environment:
    """Templates of a package, and the ones that all reports share: style and macros.

    Everything is escaped: names of models, groups and layers come from users' data.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("fair_prune_plugins.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _size(svg: bytes) -> tuple[int, int]:
    """Width and height in points, so that a browser keeps the place free while it decodes."""
    found = re.search(rb'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"', svg, re.DOTALL)
    if found is None:
        raise AssertionError("matplotlib always writes a viewBox")
    return round(float(found[1])), round(float(found[2]))
