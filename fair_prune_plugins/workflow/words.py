"""What the numbers mean, and what cannot be concluded from them: sentences that follow from the numbers by fixed rules.

The one rule behind all of them: two accuracies differ where their *paired* interval excludes zero, and else "no
difference shown" is said, which is not "no difference". A group with too few people is never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fair_prune_plugins.latency.report import NOISY
from fair_prune_plugins.reporting.estimates import NO_DIFFERENCE, Estimate, Remark, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    counted,
    listed,
    milliseconds,
    percent,
    points,
    points_interval,
    times,
    unsigned_points,
)
from fair_prune_plugins.workflow.readings import SAME_LATENCY, EvaluationReading, GroupReading, ModelReading, RunReading


@dataclass(frozen=True)
class Headline:
    """The report's first words.

    Attributes:
        text: one sentence.
        detail: the numbers behind it, and what they leave open.
        model: the pruned model it speaks about, if it speaks about one.
    """

    text: str
    detail: str
    model: ModelReading | None


@dataclass(frozen=True)
class Comparison:
    """One pruned model against another on the same people.

    Attributes:
        model: name of the one that is judged.
        other: name of the one it is compared with.
        worst: the worst group's accuracy, and its change from ``other`` with the paired interval.
        evaluation: all of the comparison.
    """

    model: str
    other: str
    worst: GroupReading
    evaluation: EvaluationReading

    @property
    def verdict(self) -> Verdict:
        """On the worst group."""
        return judge(self.worst.change, too_small=self.worst.too_small)


def in_short(model: ModelReading) -> str:
    """One model's effect on the groups in a few words: the last column of the closing table."""
    if model.is_dense:
        return "the model before pruning"
    evaluation = model.evaluation
    if not evaluation.judged:
        return "no group can be judged"
    parts = []
    if evaluation.losers:
        parts.append(f"loses: {_changes(evaluation.losers)}")
    if evaluation.winners:
        parts.append(f"gains: {_changes(evaluation.winners)}")
    silent = len(evaluation.judged) - len(evaluation.losers) - len(evaluation.winners)
    if silent == len(evaluation.judged):
        parts.append(f"{NO_DIFFERENCE} in {_all_of(silent)}")
    elif silent:
        parts.append(f"{NO_DIFFERENCE} in {silent} of {counted(len(evaluation.judged), 'group')}")
    if judge(evaluation.change) in (Verdict.WORSE, Verdict.BETTER):
        parts.append(f"everyone together {points(evaluation.change.value)}")
    unjudged = len(evaluation.groups) - len(evaluation.judged)
    if unjudged:
        parts.append(f"{counted(unjudged, 'group')} not judged")
    return "; ".join(parts)


def headline(run: RunReading) -> Headline:
    """The first sentence of the report.

    Rules, in order: nothing pruned; nothing timed; no pruned model shown to be faster; no group can be judged (the
    fastest model); some faster model was not shown to lose accuracy, in any group or over everyone (the fastest of
    them); every faster model was (the one whose worst group changes for the best).
    """
    if not run.pruned:
        return Headline("Only the dense model was measured.", _level(run.dense), None)
    timed = [m for m in run.pruned if m.speedup is not None]
    if not timed:
        return Headline(
            "The pruned models were not timed, so nothing can be said about speed.", _level(run.dense), None
        )
    faster = [m for m in timed if m.is_faster]
    if not faster:
        best = max(timed, key=lambda m: m.speedup or 0.0)
        return Headline(
            "No pruned model was shown to answer faster than the dense one on this machine.",
            f"The fastest, {best.name}, took {milliseconds(best.latency.p50.value)} ms against "
            f"{milliseconds(run.dense.latency.p50.value)} ms (p50).",
            None,
        )
    judged = [m for m in faster if m.evaluation.judged]
    if not judged:
        best = max(faster, key=lambda m: m.speedup or 0.0)
        return Headline(
            f"{best.name} answers {_as_fast(best)} as the dense model; what that does to the groups cannot be judged.",
            f"No group has a measured change and at least {best.evaluation.minimum} people.",
            best,
        )
    harmless = [m for m in judged if not _costs(m)]
    if harmless:
        best = max(harmless, key=lambda m: m.speedup or 0.0)
        return Headline(
            f"{best.name} answers {_as_fast(best)} as the dense model; no group was shown to lose accuracy"
            f"{_not_ruled_out(best.evaluation)}.",
            " ".join(filter(None, [_worst_change(best, run), _everyone(best.evaluation)])),
            best,
        )
    best = max(judged, key=lambda m: (_worst_value(m), m.speedup or 0.0))
    return Headline(
        f"Every faster model costs accuracy. {best.name}, the gentlest on the worst group, answers "
        f"{_as_fast(best)} as the dense model.",
        " ".join(filter(None, [_worst_change(best, run), _who_loses(best.evaluation), _everyone(best.evaluation)])),
        best,
    )


def meaning(run: RunReading) -> list[Remark]:
    """What the run showed, most important first."""
    remarks = [*_speed(run), *_harm(run), *_evenness(run), *_methods(run), *_front(run), *_proof(run)]
    return [r for r in remarks if r.text]


def limits(run: RunReading) -> list[Remark]:
    """What cannot be concluded, and why."""
    return [
        Remark(
            "One seed.",
            f"Each model was trained and pruned once (seed {run.results.seed}). The intervals say how much the test "
            "people matter, not how much another training run would differ; a ranking of methods needs several seeds.",
        ),
        *_multiplicity(run),
        *_power(run),
        *_selection(run),
        *_comparability(run),
        *_small_groups(run),
        *_machine(run),
        Remark(
            "Accuracy only.",
            "Equal accuracy is one meaning of fairness among several: which errors are made, and what an error costs a "
            "person, is not in these numbers.",
        ),
    ]


def _changes(groups: Sequence[GroupReading], most: int = 2) -> str:
    text = ", ".join(f"{g.name} {points(g.change.value)}" for g in groups[:most])
    return text + (f" and {len(groups) - most} more" if len(groups) > most else "")


def _all_of(n: int) -> str:
    return "the one group" if n == 1 else "both groups" if n == 2 else f"all {n} groups"


def _as_fast(model: ModelReading) -> str:
    return f"{times(model.speedup).removesuffix('x')} times as fast"


def _level(model: ModelReading) -> str:
    worst = model.evaluation.worst
    if worst is None:
        return f"Its accuracy is {percent(model.evaluation.accuracy.value)}."
    return (
        f"Its accuracy is {percent(model.evaluation.accuracy.value)}, and {percent(worst.accuracy.value)} for the "
        f"worst group, {worst.name}."
    )


def _worst_value(model: ModelReading) -> float:
    worst = model.evaluation.worst
    change = worst.change.value if worst else None
    return -1.0 if change is None else change


def _confidence(evaluation: EvaluationReading) -> str:
    return percent(evaluation.confidence, digits=0)


def _interval(change: Estimate, evaluation: EvaluationReading) -> str:
    return f"{_confidence(evaluation)} interval {points_interval(change)}"


def _worst_change(model: ModelReading, run: RunReading) -> str:
    evaluation = model.evaluation
    worst = evaluation.worst
    if worst is None:
        return ""
    before = run.dense.evaluation.group(worst.name)
    levels = f"{percent(worst.accuracy.value)} against {percent(before.accuracy.value if before else None)} dense"
    verdict = judge(worst.change, too_small=worst.too_small)
    if verdict is Verdict.TOO_SMALL:
        return (
            f"Worst group, {worst.name}: {levels}, but with {counted(worst.n, 'person', 'people')} too small to judge."
        )
    return (
        f"Worst group, {worst.name}: {levels}, a change of {points(worst.change.value)} points "
        f"({_interval(worst.change, evaluation)}): {verdict.value}."
    )


def _not_ruled_out(evaluation: EvaluationReading) -> str:
    open_loss = min(evaluation.judged, key=lambda g: g.change.low or 0.0)
    if points(open_loss.change.low) == "0.0" or (open_loss.change.low or 0.0) >= 0:
        return ""
    return (
        f", but a loss of up to {unsigned_points(open_loss.change.low)} points ({open_loss.name}) cannot be ruled out"
    )


def _who_loses(evaluation: EvaluationReading) -> str:
    others = [g for g in evaluation.losers if g.name != evaluation.worst_group]
    if not others:
        return ""
    verb = "loses" if len(others) == 1 else "lose"
    names = [f"{g.name} ({points(g.change.value)})" for g in others[:3]]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"Also {verb}: {listed(names) if not more else ', '.join(names) + more}."


def _costs(model: ModelReading) -> bool:
    """Whether a loss was shown, in a group or over everyone: small losses can hide in each group, not in their sum."""
    return bool(model.evaluation.losers) or judge(model.evaluation.change) is Verdict.WORSE


def _everyone(evaluation: EvaluationReading) -> str:
    verdict = judge(evaluation.change)
    if verdict is Verdict.UNDEFINED:
        return ""
    return (
        f"Everyone together: {points(evaluation.change.value)} points ({_interval(evaluation.change, evaluation)}), "
        f"{verdict.value}."
    )


def _speed(run: RunReading) -> list[Remark]:
    timed = [m for m in run.pruned if m.speedup is not None]
    if not timed:
        return []
    best = max(timed, key=lambda m: m.speedup or 0.0)
    if not best.is_faster:
        return [Remark("Speed.", "No pruned model was shown to be faster than the dense one.")]
    text = (
        f"{best.name} is the fastest: {milliseconds(best.latency.p50.value)} ms at the median against "
        f"{milliseconds(run.dense.latency.p50.value)} ms dense, {_as_fast(best)}. It needs "
        f"{percent(best.macs_share, 0)} of the dense model's MACs"
    )
    if best.latency.realised is not None:
        text += f"; {percent(best.latency.realised, 0)} of the speed-up that this promises arrived"
    return [Remark("Speed.", text + ".")]


def _harm(run: RunReading) -> list[Remark]:
    judged = [m for m in run.pruned if m.evaluation.judged]
    if not judged:
        return []
    hurt = [m for m in judged if m.evaluation.losers]
    models = counted(len(judged), "pruned model")
    if not hurt:
        helped = [m.name for m in judged if m.evaluation.winners]
        gain = f", or a gain ({listed(helped)})" if helped else ""
        text = f"None of {models} was shown to lose accuracy in any group: {NO_DIFFERENCE}{gain}."
        pooled = [f"{m.name} ({points(m.evaluation.change.value)})" for m in judged if _costs(m)]
        if pooled:
            text += (
                f" Over everyone together a loss was shown for {listed(pooled)}: smaller than single groups can show."
            )
        return [Remark("Groups.", text)]
    model = min(hurt, key=lambda m: m.evaluation.losers[0].change.value or 0.0)
    group = model.evaluation.losers[0]
    return [
        Remark(
            "Groups.",
            f"{len(hurt)} of {models} lost accuracy in at least one group. The largest loss: "
            f"{group.name} under {model.name}, {points(group.change.value)} points "
            f"({_interval(group.change, model.evaluation)}).",
        )
    ]


def _evenness(run: RunReading) -> list[Remark]:
    known = [(m, g) for m in run.pruned for g in m.evaluation.judged if g.excess_gap.value is not None]
    if not known:
        return []
    model, group = max(known, key=lambda pair: pair[1].excess_gap.value or 0.0)
    excess = group.excess_gap
    interval = _interval(excess, model.evaluation)
    if not excess.excludes_zero or (excess.value or 0.0) <= 0:
        text = (
            f"No group was shown to lose more than everyone together. The largest excess loss, {group.name} under "
            f"{model.name}, is {points(excess.value).lstrip('+')} points ({interval})."
        )
    else:
        text = (
            f"The loss fell unevenly under {model.name}: {group.name} lost {unsigned_points(excess.value)} points more "
            f"than everyone together ({interval})."
        )
    return [Remark("Evenness.", text)]


def comparisons(run: RunReading) -> list[Comparison]:
    """Every paired comparison of two pruned models that the run holds, in the order of the models."""
    found = []
    for model in run.pruned:
        for other, evaluation in model.against.items():
            worst = evaluation.group(model.evaluation.worst_group)
            if worst is not None:
                found.append(Comparison(model.name, other, worst, evaluation))
    return found


def _methods(run: RunReading) -> list[Remark]:
    found = comparisons(run)
    if not found:
        return []
    better = [c for c in found if c.verdict is Verdict.BETTER]
    worse = [c for c in found if c.verdict is Verdict.WORSE]
    text = (
        f"Of {counted(len(found), 'paired comparison')} of two pruned models on the worst group, {len(better)} showed "
        f"the first one better, {len(worse)} worse"
    )
    silent = sum(c.verdict is Verdict.NO_DIFFERENCE for c in found)
    text += f", {silent} {NO_DIFFERENCE}." if silent else "."
    shown = [
        f"{c.model} against {c.other}: {points(c.worst.change.value)} points "
        f"({_interval(c.worst.change, c.evaluation)})."
        for c in [*better, *worse]
    ]
    return [Remark("Method against method.", " ".join([text, *shown]))]


def _front(run: RunReading) -> list[Remark]:
    front = [m.name for m in run.models if m.on_front]
    if not front:
        return []
    return [
        Remark(
            "On the Pareto front:",
            f"{listed(front)}. For every other model, some model measured here is at least as fast and at least as "
            f"accurate for the worst group; latencies within {SAME_LATENCY:.0%} count as equal. The front is drawn "
            "through the estimates; within the intervals it could run elsewhere.",
        )
    ]


def _proof(run: RunReading) -> list[Remark]:
    checked = [m for m in run.models if m.parity.differing is not None]
    if not checked:
        return []
    moved = [m for m in checked if m.parity.differing]
    if not moved:
        return [
            Remark(
                "ONNX files.", "Every exported file gives the predictions of its torch model on all samples compared."
            )
        ]
    names = [f"{m.name} ({m.parity.differing} of {m.parity.samples})" for m in moved]
    return [Remark("ONNX files.", f"Samples whose predicted class differs from the torch model's: {listed(names)}.")]


def _multiplicity(run: RunReading) -> list[Remark]:
    tests = sum(len(m.evaluation.judged) for m in run.pruned)
    tests += sum(len(e.judged) for m in run.pruned for e in m.against.values())
    if tests < 2:
        return []
    evaluation = run.pruned[0].evaluation
    chance = tests * (1 - evaluation.confidence)
    about = f"about {chance:.0f}" if chance >= 1 else "perhaps one"
    return [
        Remark(
            "Many comparisons.",
            f"{tests} changes were each judged at {_confidence(evaluation)}, without correction: {about} would look "
            "like a difference by chance alone if nothing had changed.",
        )
    ]


def _power(run: RunReading) -> list[Remark]:
    silent = [
        (g.change.half_width or 0.0, g)
        for m in run.pruned
        for g in m.evaluation.judged
        if judge(g.change) is Verdict.NO_DIFFERENCE
    ]
    if not silent:
        return []
    _, group = max(silent, key=lambda pair: pair[0])
    return [
        Remark(
            "“No difference shown” is not “no difference”.",
            "With this many test people a real change can hide in the interval: the widest one that was called so "
            f"reaches {points_interval(group.change)} points ({group.name}, {counted(group.n, 'person', 'people')}).",
        )
    ]


def _selection(run: RunReading) -> list[Remark]:
    remarks = []
    if headline(run).model is not None and len(run.pruned) > 1:
        remarks.append(
            Remark(
                "Picked here.",
                "The model in the headline was picked by the same test people whose numbers stand beside it, so on "
                "new people expect a little less than it shows here.",
            )
        )
    if any(m.evaluation.worst_on_this_data for m in run.models):
        remarks.append(
            Remark(
                "Worst group not fixed beforehand.",
                "It was picked on the test people themselves, which makes it look worse than it is.",
            )
        )
    return remarks


def _comparability(run: RunReading) -> list[Remark]:
    if len(run.methods) < 2 or any(m.against for m in run.pruned):
        return []
    return [
        Remark(
            "Method against method.",
            "Each pruned model was compared with the dense one, not with the other pruned models: whether one method "
            "beats another cannot be read from intervals that overlap or do not.",
        )
    ]


def _machine(run: RunReading) -> list[Remark]:
    if all(m.latency.p50.value is None for m in run.models):
        return []
    text = (
        "Latency holds for the machine, the runtime and the number of threads named in this run; another device can "
        "rank the models in another order."
    )
    noisy = [m.name for m in run.models if m.latency.dispersion is not None and m.latency.dispersion > NOISY]
    if noisy:
        text += (
            f" It was busy or noisy: rounds differed by more than {percent(NOISY, 0)} for {listed(noisy)}, so trust "
            "speed-ups, whose models ran side by side, more than milliseconds."
        )
    return [Remark("This machine.", text)]


def _small_groups(run: RunReading) -> list[Remark]:
    small = [g for g in run.dense.evaluation.groups if g.too_small]
    if not small:
        return []
    names = listed([f"{g.name} ({g.n})" for g in small])
    return [
        Remark(
            "Groups too small to judge:",
            f"{names}. Under {run.dense.evaluation.minimum} people nothing is said about a group, neither harm nor "
            "its absence.",
        )
    ]
