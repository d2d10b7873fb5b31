"""What a check says, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.evaluation.intervals import Estimate

Verdict = Literal["holds", "broken", "cannot be told", "too small to judge"]


@dataclass(frozen=True)
class Finding:
    """One rule on one number.

    Attributes:
        rule: key of the rule, e.g. ``max_group_drop``.
        what: the number, in words.
        limit: the policy's.
        at_least: whether the limit is the least that is allowed, instead of the most.
        output: which output; ``None`` where the task has one, ``overall`` for all outputs or classes together.
        attribute: the sensitive attribute; ``None`` for everybody.
        group: the group; ``None`` for everybody, and for what lies between groups.
        people: how many people it rests on.
        number: with its interval; a loss is positive. Undefined for groups too small to judge.
        verdict: ``broken``: the whole interval is on the wrong side of the limit. ``holds``: the whole interval is on
            the right side. ``cannot be told``: the limit lies within, or the number is undefined.
    """

    rule: str
    what: str
    limit: float
    at_least: bool
    output: str | None
    attribute: str | None
    group: str | None
    people: int
    number: Estimate
    verdict: Verdict

    @property
    def where(self) -> str:
        """Whom and what it is about: ``smiling, race: Black``."""
        people = "everybody"
        if self.attribute is not None:
            people = f"between groups by {self.attribute}" if self.group is None else f"{self.attribute}: {self.group}"
        return people if self.output is None else f"{self.output}, {people}"


@dataclass(frozen=True)
class ModelCheck:
    """One pruned model.

    Attributes:
        model: its name.
        findings: every rule on every number, in the order of rules.
        strict: whether what cannot be told refuses the model.
    """

    model: str
    findings: tuple[Finding, ...]
    strict: bool

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """The findings with a verdict."""
        return tuple(f for f in self.findings if f.verdict == verdict)

    @property
    def refused(self) -> bool:
        """Whether the policy refuses the model."""
        return bool(self.of("broken")) or (self.strict and bool(self.of("cannot be told")))


@dataclass(frozen=True)
class PolicyCheck:
    """Pruned models against a policy.

    Attributes:
        dense: name of the model before compression.
        models: one for each pruned model.
        confidence: of the verdicts.
        comparisons: numbers judged for each model; they share the confidence if ``simultaneous``.
        simultaneous: whether the confidence holds for all comparisons of a model together.
        resamples: bootstrap resamples behind the intervals.
        seed: of the bootstrap.
        minimum: people a group needs to be judged.
        notes: what a reader must know, in sentences.
    """

    dense: str
    models: tuple[ModelCheck, ...]
    confidence: float
    comparisons: int
    simultaneous: bool
    resamples: int
    seed: int
    minimum: int
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no model is refused."""
        return not any(model.refused for model in self.models)
