"""The findings before pruning: what the dense model alone lets one expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fair_prune_plugins.audit.report.readings import read_models
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.estimates import Estimate, Remark
from fair_prune_plugins.reporting.wording import as_sentence, listed, percent, percent_interval

MOST = 3
"""Names that are listed before the rest is counted."""


@dataclass(frozen=True)
class Findings:
    """What the page begins with.

    Attributes:
        headline: one sentence.
        lead: the numbers behind it.
        remarks: what compression did, to whom, how sure.
    """

    headline: str
    lead: str
    remarks: tuple[Remark, ...]


def risks_only(audit: Audit) -> Findings:
    """The report before pruning."""
    risk = audit.risk
    dense = read_models(audit)[0]
    pairs = [(a.attribute, g) for a in risk.attributes for g in a.ranked[:1]]
    first = risk.ranked[0]
    if len(audit.outputs) > 1:
        headline = f"If {audit.dense} is pruned, watch {first.output} first."
    elif pairs:
        headline = f"If {audit.dense} is pruned, watch {listed([g.group for _, g in pairs])} first."
    else:
        headline = f"What {audit.dense} alone tells of the risks of pruning."
    remarks = [Remark(f"Most at risk by {attribute}.", f"{g.group}: {as_sentence(g.reason)}") for attribute, g in pairs]
    if len(audit.outputs) > 1:
        remarks = [
            *(Remark(f"Rank {o.rank}: {o.output}.", as_sentence(o.reason)) for o in risk.ranked[:MOST]),
            *remarks,
        ]
    everybody = Estimate.of(dense.everybody.accuracy)
    remarks.append(
        Remark(
            "How sure.",
            "These are warnings from the dense model alone, by signals that published studies proposed. Nothing here "
            "says what compression will do; prune, and audit again with the pruned model.",
        )
    )
    return Findings(
        headline,
        f"Its accuracy is {percent(everybody.value)} ({percent_interval(everybody)}) over {audit.people} people.",
        tuple(remarks),
    )


def some(said: Sequence[str]) -> str:
    """The first few, and how many more."""
    if len(said) <= MOST:
        return listed(said)
    return f"{', '.join(said[:MOST])} and {len(said) - MOST} more"
