"""How pictures look: one palette, one style, saved as the same bytes for the same numbers.

Colours are Okabe and Ito's (safe for colour-blind readers). Nothing touches the global state of matplotlib, which is
imported only when something is drawn.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fair_prune_plugins.reporting.estimates import Estimate

Format = Literal["svg", "png"]
Theme = Literal["light", "dark"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Look:
    """The colours of one theme.

    Attributes:
        ink: text and lines that carry meaning.
        muted: axes, and what stands for "before".
        grid: grid lines.
        paper: background.
        dense: the dense model.
        methods: what is compared, in order; every one comes with a marker of its own.
    """

    ink: str
    muted: str
    grid: str
    paper: str
    dense: str
    methods: tuple[str, ...]


LOOKS: dict[Theme, Look] = {
    "light": Look(
        ink="#1b2430",
        muted="#5b6675",
        grid="#e3e7ec",
        paper="#ffffff",
        dense="#1b2430",
        methods=("#0072b2", "#d55e00", "#009e73", "#b0568f", "#8a6d00", "#3a87ad", "#7a5230", "#5b6675"),
    ),
    "dark": Look(
        ink="#e8ecf1",
        muted="#a3aebb",
        grid="#333d49",
        paper="#1a212a",
        dense="#e8ecf1",
        methods=("#56b4e9", "#f0803c", "#2fc79a", "#e08fc0", "#f0e442", "#8fd3f5", "#d0a070", "#a3aebb"),
    ),
}


@contextlib.contextmanager
def styled(look: Look) -> Iterator[None]:
    """Draw in a theme's colours, with names from data as they are."""
    import matplotlib

    rules = matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the picture is the same everywhere
            "font.size": 10,
            "text.parse_math": False,  # names come from data: a dollar is a dollar
            "svg.fonttype": "path",
            "svg.hashsalt": "fair-prune",  # the same numbers give the same bytes
            "figure.facecolor": look.paper,
            "savefig.facecolor": look.paper,
            "axes.facecolor": look.paper,
            "axes.edgecolor": look.muted,
            "axes.labelcolor": look.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": look.grid,
            "grid.linewidth": 0.8,
            "text.color": look.ink,
            "xtick.color": look.muted,
            "ytick.color": look.muted,
            "xtick.labelcolor": look.ink,
            "ytick.labelcolor": look.ink,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
        }
    )
    with rules, warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; alternative texts and tables have it in letters.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    # Figure() instead of pyplot: no window, no backend choice, nothing left open when an exception passes.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def add_legend(figure: Any, handles: Sequence[Any]) -> None:
    """A legend below the picture, in as many columns as fit."""
    letters = [len(handle.get_label()) + 6 for handle in handles]
    room = 12 * figure.get_figwidth()
    # Columns are as wide as their longest label: beside one another only as far as the longest of all fits.
    columns = len(handles) if sum(letters) <= room else min(3, max(int(room // max(letters)), 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)


def dress(method: str | None, methods: Sequence[str], look: Look) -> tuple[str, str]:
    """Colour and marker of what is compared; ``None`` is the dense model."""
    if method is None:
        return look.dense, "*"
    place = list(methods).index(method)
    return look.methods[place % len(look.methods)], MARKERS[place % len(MARKERS)]


def arms(estimate: Estimate) -> list[list[float]] | None:
    """Error bar lengths; a percentile interval need not contain its estimate, and an arm cannot be negative."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def percent_tick(value: float, _position: int = 0) -> str:
    """A share as percent, for an axis."""
    text = f"{100 * value:.1f}".rstrip("0").rstrip(".")
    return f"{text} %"


def points_tick(value: float, _position: int = 0) -> str:
    """A difference of shares in points, for an axis."""
    text = f"{100 * value:+.1f}".removesuffix(".0").replace("-", "−")
    return "0" if text in ("+0", "−0") else text


def image_bytes(figure: Any, format: Format) -> bytes:
    """The file's bytes, without dates: the same picture is the same file."""
    out = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    figure.savefig(out, format=format, dpi=160 if format == "png" else 72, metadata=metadata)
    return out.getvalue()
