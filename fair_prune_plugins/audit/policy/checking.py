"""A policy judged on people: every limit against the number's interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fair_prune_plugins.audit.changes import CLASS, Changed, Changes, Touched, compare
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.measures import (
    MeasuredAttribute,
    MeasuredGroup,
    MeasuredModel,
    OverallAttribute,
    OverallGroup,
    measure,
)
from fair_prune_plugins.audit.policy.config import OVERALL, Policy
from fair_prune_plugins.audit.policy.result import Finding, ModelCheck, PolicyCheck, Verdict
from fair_prune_plugins.audit.policy.rules import Numbers, Rule, between_groups, of_everybody, of_group
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.evaluation.intervals import Estimate

NO_PRUNED = "there is no pruned model to check; give one beside the dense model"
NO_SUCH = "{key}: there is no {name!r}; there are {have}"
OF_OUTPUT = (
    "{rules} is about one output at a time, not about the accuracy over all of them; name outputs in the policy, out "
    "of {outputs}"
)
TOO_MANY = (
    "{comparisons} comparisons that are to hold together need {needed} bootstrap resamples, more than {most}. Name "
    "fewer attributes, outputs or rules, or set correction: none"
)
MEANING = (
    "A rule is broken where the whole interval lies beyond the limit, holds where the whole interval keeps it, and "
    "cannot be told otherwise."
)
SIMULTANEOUS = (
    "{confidence:.4g} % confidence for all {comparisons} comparisons of a model together (Bonferroni: each interval is "
    "at {each:.6g} %), which aims at refusing a model that keeps every limit by chance at most {error:.3g} % of the "
    "time."
)
EACH = "{confidence:.4g} % confidence for each of the {comparisons} comparisons by itself; some err by chance."
RUNS = "Runs (training seeds) of a model are averaged; decisions that changed are majority votes over them."
GAPS = "Gaps between groups are over all groups, those too small to judge by themselves included."

TAIL = 5
"""Resamples wanted beyond each end of an interval: with one, its ends are left to luck."""

MOST = 50_000
"""More resamples than this are not made without being asked for."""

_Group = MeasuredGroup | OverallGroup
_Attribute = MeasuredAttribute | OverallAttribute


def check(
    data: AuditData, policy: Policy, *, resamples: int = 1000, seed: int = 0, progress: bool = True
) -> PolicyCheck:
    """Judge every pruned model by a policy.

    The numbers and their paired intervals are those of :func:`fair_prune_plugins.audit.measures.measure` and, for
    decisions that changed, of :func:`fair_prune_plugins.audit.changes.compare`.

    Args:
        data: people and models.
        policy: the limits.
        resamples: bootstrap resamples, at least; more are made where many comparisons must hold together.
        seed: of the bootstrap.
        progress: show progress bars.

    Raises:
        InputError: there is no pruned model.
        ConfigError: the policy names attributes or outputs that there are not, sets rules of single outputs where none
            is judged, or makes too many comparisons.
    """
    if not data.pruned:
        raise InputError(NO_PRUNED)
    attributes = _chosen(policy.attributes, [g.attribute for g in data.people.groups], "attributes")
    outputs = _outputs(data, policy)
    comparisons = _count(data, policy, attributes, outputs)
    confidence = policy.confidence
    if policy.simultaneous and comparisons:
        confidence = 1 - (1 - policy.confidence) / comparisons
        resamples = _resamples(resamples, confidence, comparisons)
    measured = measure(
        data,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        minimum=policy.minimum_group,
        progress=progress,
    )
    changes: Sequence[Changes | None] = [None] * len(data.pruned)
    if policy.max_flip_rate is not None:
        changes = compare(
            data, confidence=confidence, resamples=resamples, seed=seed, minimum=policy.minimum_group, listed=0
        )
    models = tuple(
        ModelCheck(model.name, tuple(_findings(model, changed, policy, attributes, outputs)), policy.strict)
        for model, changed in zip(measured.pruned, changes, strict=True)
    )
    return PolicyCheck(
        dense=data.dense.name,
        models=models,
        confidence=policy.confidence,
        comparisons=comparisons,
        simultaneous=policy.simultaneous,
        resamples=resamples,
        seed=seed,
        minimum=policy.minimum_group,
        notes=tuple(_notes(data, policy, comparisons, confidence)),
    )


def _chosen(asked: Sequence[str] | None, have: Sequence[str], key: str) -> list[str]:
    if asked is None:
        return list(have)
    for name in asked:
        if name not in have:
            raise ConfigError(NO_SUCH.format(key=key, name=name, have=list(have)))
    return list(dict.fromkeys(asked))


def _outputs(data: AuditData, policy: Policy) -> list[str]:
    people = data.people
    overall = [] if people.task == "binary" else [OVERALL]
    have = [*people.outputs, *overall]
    chosen = _chosen(policy.outputs, have, "outputs")
    if policy.outputs is None and overall:
        chosen = overall if people.task == "multiclass" else list(people.outputs)
    stray = [rule.key for rule, _ in policy.rules if rule.of_output]
    if stray and OVERALL in chosen and overall:
        raise ConfigError(OF_OUTPUT.format(rules=", ".join(stray), outputs=list(people.outputs)))
    return chosen


def _count(data: AuditData, policy: Policy, attributes: list[str], outputs: list[str]) -> int:
    groups = [g for g in data.people.groups if g.attribute in attributes]
    large = sum(int((g.counts >= policy.minimum_group).sum()) for g in groups)
    each = 0
    for rule, _ in policy.rules:
        each += int(rule.of_everybody) + large * rule.of_groups + len(groups) * (rule.reach == "between groups")
    return each * len(outputs)


def _resamples(asked: int, confidence: float, comparisons: int) -> int:
    for wanted in (TAIL, 1):
        needed = math.ceil(2 * wanted / (1 - confidence) - 1e-6)
        if needed <= max(asked, MOST):
            return max(asked, needed)
    raise ConfigError(TOO_MANY.format(comparisons=comparisons, needed=needed, most=max(asked, MOST)))


@dataclass(frozen=True)
class _Place:
    """What a number is about."""

    output: str | None
    attribute: str | None
    group: str | None
    people: int
    numbers: Numbers
    reach: str
    too_small: bool = False


def _findings(
    model: MeasuredModel, changes: Changes | None, policy: Policy, attributes: list[str], outputs: list[str]
) -> Iterator[Finding]:
    places = [place for output in outputs for place in _places(model, changes, output, attributes)]
    for rule, limit in policy.rules:
        for place in places:
            if place.reach in rule.reach:
                yield _finding(rule, limit, place)


def _places(model: MeasuredModel, changes: Changes | None, output: str, attributes: list[str]) -> Iterator[_Place]:
    whole = model.overall if output == OVERALL and model.overall is not None else model.output(output)
    shown = None if model.overall is None else output
    everybody: _Group = whole.everybody
    flips = _flips(changes, output, None)
    yield _Place(shown, None, None, everybody.n, of_everybody(everybody, flips.get(None)), "everybody")
    for measured in whole.attributes:
        if measured.attribute not in attributes:
            continue
        flips = _flips(changes, output, measured.attribute)
        known = sum(g.n for g in measured.groups)
        yield _Place(shown, measured.attribute, None, known, between_groups(measured), "between groups")
        for group in measured.groups:
            numbers = of_group(group, flips.get(group.name))
            yield _Place(shown, measured.attribute, group.name, group.n, numbers, "each group", group.too_small)


def _flips(changes: Changes | None, output: str, attribute: str | None) -> dict[str | None, Changed | Touched]:
    """Decisions that changed: of everybody (under ``None``), or of the groups of an attribute."""
    if changes is None:
        return {}
    entries: list[Changed | Touched]
    question = output
    if output == OVERALL and any(q.name == CLASS for q in changes.questions):
        question = CLASS
    if attribute is None:
        entries = [q.everyone for q in changes.questions if q.name == question] or [changes.touched]
    else:
        found = next(a for a in changes.attributes if a.attribute == attribute)
        entries = list(found.of(question)) or list(found.touched)
    return {entry.group: entry for entry in entries}


def _finding(rule: Rule, limit: float, place: _Place) -> Finding:
    number = Estimate(None, None) if place.too_small else place.numbers.get(rule.key, Estimate(None, None))
    return Finding(
        rule=rule.key,
        what=rule.what,
        limit=limit,
        at_least=rule.at_least,
        output=place.output,
        attribute=place.attribute,
        group=place.group,
        people=place.people,
        number=number,
        verdict="too small to judge" if place.too_small else verdict(number, limit, at_least=rule.at_least),
    )


def verdict(number: Estimate, limit: float, *, at_least: bool) -> Verdict:
    """What an interval says of a limit.

    Args:
        number: with its interval.
        limit: the most that is allowed.
        at_least: the limit is the least that is allowed instead.
    """
    if number.value is None or number.interval is None:
        return "cannot be told"
    low, high = number.interval.low, number.interval.high
    # A limit of 0.02 is kept by a drop of 2 people in 100, whatever the last digit of the subtraction.
    slack = 1e-12
    if at_least:
        return "broken" if high < limit - slack else "holds" if low >= limit - slack else "cannot be told"
    return "broken" if low > limit + slack else "holds" if high <= limit + slack else "cannot be told"


def _notes(data: AuditData, policy: Policy, comparisons: int, confidence: float) -> Iterator[str]:
    yield MEANING
    if policy.simultaneous:
        yield SIMULTANEOUS.format(
            confidence=100 * policy.confidence,
            comparisons=comparisons,
            each=100 * confidence,
            error=50 * (1 - policy.confidence),
        )
    else:
        yield EACH.format(confidence=100 * policy.confidence, comparisons=comparisons)
    if any(len(model.runs) > 1 for model in data.models):
        yield RUNS
    if any(rule.reach == "between groups" for rule, _ in policy.rules):
        yield GAPS
