"""How a number is written for people: one spelling for the report, the pictures and the command line.

Shares (0 to 1) are written as percent, differences of shares as points with a sign. ``None`` is written as a dash and
never as zero. Spaces inside a number do not break.
"""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.reporting.estimates import Estimate

NONE = "–"
MINUS = "−"
_SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float | None, digits: int = 1) -> str:
    """``0.9312`` as ``93.1 %``."""
    return NONE if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def points(share: float | None) -> str:
    """``-0.0212`` as ``−2.1``; what rounds to zero has no sign."""
    if share is None:
        return NONE
    text = f"{100 * share:+.1f}".replace("-", MINUS)
    return "0.0" if text in ("+0.0", f"{MINUS}0.0") else text


def unsigned_points(share: float | None) -> str:
    """The size of a difference: ``-0.0212`` as ``2.1``."""
    return NONE if share is None else f"{abs(100 * share):.1f}"


def percent_interval(estimate: Estimate) -> str:
    """``90.1 to 95.2 %``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{100 * estimate.low:.1f} to {percent(estimate.high)}".replace(" ", _SPACE)


def points_interval(estimate: Estimate) -> str:
    """``−3.0 to +0.4``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{points(estimate.low)} to {points(estimate.high)}".replace(" ", _SPACE)


def milliseconds(value: float | None) -> str:
    """Three significant digits: ``0.412``, ``12.3``."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def milliseconds_interval(estimate: Estimate) -> str:
    """``0.401 to 0.425``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{milliseconds(estimate.low)} to {milliseconds(estimate.high)}".replace(" ", _SPACE)


def times(ratio: float | None) -> str:
    """``1.87`` as ``1.9x``; two digits below 1.2, where one would hide the difference."""
    if ratio is None:
        return NONE
    return f"{ratio:.2f}x" if ratio < 1.2 else f"{ratio:.1f}x"


def times_interval(estimate: Estimate) -> str:
    """``1.8 to 2.0x``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    digits = 2 if estimate.low < 1.2 else 1
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}x".replace(" ", _SPACE)


def quantity(value: float | None) -> str:
    """A large count with a unit prefix: ``1.2 k``, ``3.4 M``, ``5.6 G``."""
    if value is None:
        return NONE
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{_SPACE}{prefix}"
    return f"{value:g}"


def scientific(value: float | None) -> str:
    """``3.2e-07`` as ``3e-07``; zero stays ``0``."""
    return NONE if value is None else "0" if value == 0 else f"{value:.0e}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A plain number: ``0.93``, ``−0.12``; what rounds to zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:.{digits}f}"
    return (text if text.strip("-0.") else text.lstrip("-")).replace("-", MINUS)


def decimal_interval(estimate: Estimate, digits: int = 2) -> str:
    """``0.91 to 0.95``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{decimal(estimate.low, digits)} to {decimal(estimate.high, digits)}".replace(" ", _SPACE)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference of plain numbers: ``+0.03``; what rounds to zero has no sign."""
    if value is None:
        return NONE
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text[1:] if not text.strip(f"+{MINUS}0.") else text


def signed_interval(estimate: Estimate, digits: int = 2) -> str:
    """``−0.03 to +0.01``."""
    if estimate.low is None or estimate.high is None:
        return NONE
    return f"{signed(estimate.low, digits)} to {signed(estimate.high, digits)}".replace(" ", _SPACE)


def chance(p: float | None) -> str:
    """A p-value: ``0.032``, ``< 0.001``."""
    if p is None:
        return NONE
    return f"<{_SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(n: int, one: str, many: str | None = None) -> str:
    """``1 group``, ``3 groups``."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def as_sentence(text: str) -> str:
    """With a capital and a full stop; an empty text stays empty."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
