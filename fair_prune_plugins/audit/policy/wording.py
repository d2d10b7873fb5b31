"""How findings are worded, the same in the table, in Markdown and in JUnit's XML."""

from __future__ import annotations

from collections.abc import Iterator

from fair_prune_plugins.audit.policy.result import Finding, ModelCheck, PolicyCheck, Verdict
from fair_prune_plugins.reporting.wording import MINUS, NONE, counted, listed

COLUMNS = ("Rule", "Of whom", "People", "Limit", "Found", "Interval", "Verdict")
"""Headings of a table of findings."""

VERDICTS: tuple[Verdict, ...] = ("broken", "cannot be told", "holds", "too small to judge")
"""In the order in which they matter."""


def share(value: float | None) -> str:
    """``0.0225`` as ``2.25 %``, three digits."""
    return NONE if value is None else f"{100 * value + 0.0:.3g}\N{NO-BREAK SPACE}%".replace("-", MINUS)


def limit(finding: Finding) -> str:
    """``at most 2 %``."""
    return f"at {'least' if finding.at_least else 'most'} {share(finding.limit)}"


def found(finding: Finding) -> str:
    """The number."""
    return (
        "undefined"
        if finding.number.value is None and finding.verdict == "cannot be told"
        else share(finding.number.value)
    )


def interval(finding: Finding) -> str:
    """``1.2 % to 3.4 %``."""
    ends = finding.number.interval
    return NONE if ends is None else f"{share(ends.low)} to {share(ends.high)}"


def cells(finding: Finding) -> tuple[str, ...]:
    """A row of a table, under :data:`COLUMNS`."""
    return (
        finding.what,
        finding.where,
        str(finding.people),
        limit(finding),
        found(finding),
        interval(finding),
        finding.verdict,
    )


def sentence(finding: Finding) -> str:
    """A finding in one sentence."""
    text = f"{finding.rule} ({finding.what}; {finding.where}): {limit(finding)} is allowed"
    if finding.verdict == "too small to judge":
        return f"{text}; {counted(finding.people, 'person', 'people')} are too few to judge."
    if finding.number.value is None:
        return f"{text}; the number is undefined."
    return f"{text}; found {found(finding)}, interval {interval(finding)}: {finding.verdict}."


def headline(model: ModelCheck) -> str:
    """What is decided about a model, with how many rules said what."""
    counts = [f"{len(model.of(v))} {v}" for v in VERDICTS if model.of(v)]
    word = "REFUSED" if model.refused else "passes"
    why = "" if not model.refused or model.of("broken") else " (strict: what cannot be told refuses)"
    return f"{model.model} {word}{why}: {listed(counts)}"


def setting(check: PolicyCheck) -> Iterator[str]:
    """What a reader must know of how it was judged."""
    yield f"Compared with {check.dense} on the same people; groups under {check.minimum} people are not judged."
    yield from check.notes
    yield f"Intervals rest on {check.resamples} paired bootstrap resamples (seed {check.seed})."
