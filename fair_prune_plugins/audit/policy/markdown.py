"""A check as Markdown, for a pull request or a job's summary."""

from __future__ import annotations

from fair_prune_plugins.audit.policy.result import PolicyCheck
from fair_prune_plugins.audit.policy.wording import COLUMNS, VERDICTS, cells, headline, setting

_NUMBERS = ("People", "Limit", "Found", "Interval")
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"} | {"\n": " ", "\r": " "})


def as_markdown(check: PolicyCheck) -> str:
    """The check as GitHub-flavoured Markdown: a heading, and per model a sentence and a table, the worst rows first."""
    lines = [f"## Fairness policy: {'passed' if check.passed else 'REFUSED'}", ""]
    for model in check.models:
        lines += [f"### {_text(headline(model))}", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |"]
        lines += ["|" + "|".join(" ---: " if c in _NUMBERS else " --- " for c in COLUMNS) + "|"]
        for verdict in VERDICTS:
            for finding in model.of(verdict):
                *row, last = (_text(cell) for cell in cells(finding))
                lines.append("| " + " | ".join([*row, f"**{last}**" if verdict == "broken" else last]) + " |")
        lines.append("")
    lines += [f"- {_text(line)}" for line in setting(check)]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return text.translate(_SPECIAL)
