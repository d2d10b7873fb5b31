"""The findings in plain sentences, which follow from the numbers by fixed rules.

A group is said to have lost where Holm's correction over all groups and outputs leaves its test below the accepted
chance of error; a group too small is never judged; "no difference shown" is not "no difference".
"""

from __future__ import annotations

from fair_prune_plugins.audit.changes.result import CLASS, Changes
from fair_prune_plugins.audit.forecast.result import ForecastQuality
from fair_prune_plugins.audit.report.readings import ModelLine, read_models
from fair_prune_plugins.audit.report.risk_findings import Findings, risks_only, some
from fair_prune_plugins.audit.result import Audit
from fair_prune_plugins.reporting.estimates import NO_DIFFERENCE, Estimate, Remark, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    counted,
    decimal,
    decimal_interval,
    percent,
    points,
    points_interval,
    unsigned_points,
)


def find(audit: Audit) -> Findings:
    """Say what was found."""
    if not audit.pruned:
        return risks_only(audit)
    models = read_models(audit)
    headline, lead = _headline(audit, models)
    remarks = [
        *(_did(audit, m) for m in models[1:]),
        _to_whom(audit, models),
        _evenness(audit, models),
        _outputs(audit),
        *(_flipped(c) for c in audit.changes),
        _rare(audit),
        _forecast(audit),
        _mended(audit),
        _sure(audit, models),
    ]
    return Findings(headline, lead, tuple(r for r in remarks if r.text))


def _headline(audit: Audit, models: tuple[ModelLine, ...]) -> tuple[str, str]:
    pruned = models[1:]
    confidence = percent(audit.confidence, 0)
    hurt = [m for m in pruned if m.losers]
    if not any(a.judged for m in pruned for a in m.attributes):
        return "What compression did to the groups cannot be judged: all are too small.", ""
    if not hurt:
        who = pruned[0].name if len(pruned) == 1 else f"any of the {len(pruned)} pruned models"
        model, group = min(
            ((m, g) for m in pruned for a in m.attributes for g in a.judged), key=lambda pair: pair[1].moved.low or 0
        )
        open_loss = unsigned_points(min(group.moved.low or 0, 0))
        return (
            f"No group was shown to lose accuracy under {who}.",
            f"That is not proof of harmlessness: a loss of up to {open_loss} points ({group.name} under {model.name}) "
            f"is compatible with these people ({confidence} interval).",
        )
    model = min(hurt, key=lambda m: m.losers[0][1].moved.value or 0)
    attribute, group = model.losers[0]
    first = f"{model.name} costs {group.name} ({attribute}) {unsigned_points(group.moved.value)} points of accuracy"
    if len(pruned) > 1:
        first += f", the largest loss among {len(pruned)} pruned models"
    everybody = model.everybody.moved
    return (
        f"{first}.",
        f"{confidence} interval {points_interval(group.moved)}; everybody together {points(everybody.value)} points "
        f"({points_interval(everybody)}). Groups were shown to lose under "
        f"{f'{len(hurt)} of {len(pruned)} pruned models' if len(pruned) > 1 else 'this model'}.",
    )


def _did(audit: Audit, model: ModelLine) -> Remark:
    """Everybody together."""
    before = read_models(audit)[0].everybody.accuracy.value
    change = model.everybody.moved
    verdict = judge(change)
    text = (
        f"Accuracy of everybody went from {percent(before)} to {percent(model.everybody.accuracy.value)}, "
        f"{points(change.value)} points ({percent(audit.confidence, 0)} interval {points_interval(change)}): "
        f"{verdict.value}."
    )
    losers = [f"{g.name} {points(g.moved.value)}" for _, g in model.losers]
    judged = [g for a in model.attributes for g in a.judged]
    if losers:
        text += f" Shown to lose: {some(losers)}."
        text += f" {len(losers)} of {counted(len(judged), 'judged group')}."
    elif judged:
        text += f" {NO_DIFFERENCE.capitalize()} for the worse in {counted(len(judged), 'judged group')}."
    winners = [f"{g.name} {points(g.moved.value)}" for a in model.attributes for g in a.winners]
    if winners:
        text += f" Shown to gain: {some(winners)}."
    return Remark(f"{model.name}.", text)


def _to_whom(audit: Audit, models: tuple[ModelLine, ...]) -> Remark:
    """Who lost more than everybody together."""
    known = [
        (m, a.attribute, g, Estimate.of(g.excess))
        for m in models[1:]
        for a in m.attributes
        for g in a.judged
        if g.excess is not None and g.excess.value is not None
    ]
    if not known:
        return Remark("", "")
    model, attribute, group, excess = max(known, key=lambda entry: entry[3].value or 0)
    interval = f"{percent(audit.confidence, 0)} interval {points_interval(excess)}"
    if judge(excess) is Verdict.BETTER:  # a positive excess gap is a loss
        text = (
            f"The loss was not shared evenly: {group.name} ({attribute}) lost {unsigned_points(excess.value)} points "
            f"more than everybody together under {model.name} ({interval}). This is the largest of "
            f"{counted(len(known), 'comparison')}, none of them corrected for their number."
        )
    else:
        text = (
            f"No group was shown to lose more than everybody together. The largest excess loss is "
            f"{points(excess.value).lstrip('+')} points ({group.name} under {model.name}, {interval})."
        )
    return Remark("To whom.", text)


def _evenness(audit: Audit, models: tuple[ModelLine, ...]) -> Remark:
    said = []
    dense = models[0]
    for model in models[1:]:
        for line in model.attributes:
            change = Estimate.of(line.gap_change)
            if change.excludes_zero and line.gap.value is not None:
                before = dense.attribute(line.attribute).gap.value
                wider = "widened" if (change.value or 0) > 0 else "narrowed"
                said.append(
                    f"by {line.attribute} under {model.name} it {wider} from {unsigned_points(before)} to "
                    f"{unsigned_points(line.gap.value)} points ({points_interval(change)} of change)"
                )
    if not said:
        return Remark(
            "Gaps.", "The difference between the best and the worst served group was not shown to change in any case."
        )
    return Remark("Gaps.", f"Between the best and the worst served group, {some(said)}.")


def _outputs(audit: Audit) -> Remark:
    """Which outputs lost."""
    if len(audit.outputs) < 2:
        return Remark("", "")
    alpha = 1 - audit.confidence
    shown = []
    tests = 0
    for model in audit.measures.pruned:
        for output in model.outputs:
            for attribute in output.attributes:
                for group in attribute.groups:
                    if group.test is None or group.change is None:
                        continue
                    tests += 1
                    change = group.change.accuracy.value
                    if group.test.holm < alpha and change is not None and change < 0:
                        shown.append((change, f"{output.name} for {group.name} under {model.name} {points(change)}"))
    if not tests:
        return Remark("", "")
    if not shown:
        text = f"In none of {counted(tests, 'test')} of one output in one group a loss was shown."
    else:
        worst = [text for _, text in sorted(shown)]
        text = (
            f"A loss was shown in {len(shown)} of {counted(tests, 'test')} of one output in one group: {some(worst)}."
        )
    return Remark("Output by output.", text)


def _flipped(changes: Changes) -> Remark:
    """Who is answered otherwise."""
    questions = [q for q in changes.questions if q.name == CLASS] or list(changes.questions)
    parts = [f"{percent(changes.touched.any.value)} of people have an answer that changed"]
    if len(questions) > 1:
        parts.append(f"{percent(changes.touched.answers.value)} of all answers")
    worst: list[tuple[float, str]] = []
    for attribute in changes.attributes:
        able = [t for t in attribute.touched if t.people >= changes.minimum and t.answers.value is not None]
        if len(able) > 1:
            most = max(able, key=lambda t: t.answers.value or 0)
            least = min(able, key=lambda t: t.answers.value or 0)
            worst.append(
                (
                    most.answers.value or 0,
                    f"by {attribute.attribute} from {percent(least.answers.value)} of answers ({least.group}) to "
                    f"{percent(most.answers.value)} ({most.group})",
                )
            )
    text = ", ".join(parts) + "."
    if worst:
        text += f" It ranges {some([said for _, said in worst])}."
    exemplars = sum(q.everyone.exemplars for q in questions)
    unsure = sum((q.everyone.unsure_exemplars.value or 0) * q.everyone.exemplars for q in questions)
    if exemplars:
        base = sum((q.everyone.unsure.value or 0) * q.everyone.people for q in questions)
        people = sum(q.everyone.people for q in questions)
        text += (
            f" The dense model had been unsure of {percent(unsure / exemplars)} of the answers that changed, and of "
            f"{percent(base / people)} of all answers."
        )
    lead = f"Who is answered otherwise by {changes.model}."
    return Remark(lead, text[:1].upper() + text[1:])


def _rare(audit: Audit) -> Remark:
    """Rare values that are under-predicted more."""
    if audit.task == "multiclass":
        return Remark("", "")
    fell = []
    for model in audit.measures.pruned:
        for output in model.outputs:
            change = None if output.everybody.change is None else Estimate.of(output.everybody.change.rare_value)
            if change is not None and change.excludes_zero and (change.value or 0) < 0:
                now = output.everybody.scores.rare_value.value
                before = None if now is None else now - (change.value or 0)
                said = f"{output.name} under {model.name} (ratio {decimal(before)} to {decimal(now)})"
                fell.append((change.value or 0, said))
    if not fell:
        return Remark(
            "Rare answers.", "No pruned model was shown to give the rarer answer of an output less often than before."
        )
    worst = [text for _, text in sorted(fell)]
    return Remark("Rare answers.", f"The rarer answer is given less often than before: {some(worst)}.")


def _forecast(audit: Audit) -> Remark:
    parts = [_foretold(quality) for quality in audit.quality]
    return Remark("What the dense model foretold.", " ".join(p for p in parts if p))


def _foretold(quality: ForecastQuality) -> str:
    if not quality.everyone:
        return ""
    everyone = quality.everyone[-1]
    auroc = Estimate.of(everyone.auroc)
    if auroc.value is None or auroc.low is None:
        changed = counted(everyone.exemplars, "answer")
        return f"Under {quality.model} {changed} changed, too few to judge the forecast by."
    good = "was not shown to tell"
    if auroc.low > 0.5:
        good = "told better than guessing" if auroc.value < 0.8 else "told well"
    return (
        f"Its uncertainty {good} whose answers {quality.model} would change: AUROC "
        f"{decimal(auroc.value)}, {decimal_interval(auroc)} (0.5 is guessing)."
    )


def _mended(audit: Audit) -> Remark:
    mended = audit.countermeasures
    if mended is None:
        return Remark("", "")
    parts = []
    for kind, called in (
        ("thresholds", "Calibrated thresholds"),
        ("dense overrides", f"Asking the dense model about the least sure {percent(mended.budget, 0)}"),
        ("human overrides", f"Asking a human about the least sure {percent(mended.budget, 0)}"),
    ):
        shifts = [
            a for r in mended.remedies if r.kind == kind for a in r.attributes if a.worst.change.value is not None
        ]
        if not shifts:
            continue
        verdicts = [judge(Estimate.of(a.worst.change)) for a in shifts]
        better, worse = verdicts.count(Verdict.BETTER), verdicts.count(Verdict.WORSE)
        parts.append(
            f"{called} was shown to help the worst group in {better} of {len(shifts)} cases and to harm it in {worse}."
            if kind != "thresholds"
            else f"{called} were shown to help the worst group in {better} of {len(shifts)} cases and to harm it in "
            f"{worse}."
        )
    return Remark("What would help.", " ".join(parts))


def _sure(audit: Audit, models: tuple[ModelLine, ...]) -> Remark:
    families = [g.test.family for m in models[1:] for a in m.attributes for g in a.groups if g.test is not None]
    text = (
        f"{audit.people} people; {percent(audit.confidence, 0)} intervals from {audit.resamples} resamples of people. "
    )
    if families:
        most = max(families)
        text += (
            f"A loss of a group is called shown only if its test holds after Holm's correction (up to "
            f"{counted(most, 'test')} at once). "
        )
    runs = {m.runs for m in models}
    text += (
        "Each model was trained once, so how much another training would differ is not known."
        if runs == {1}
        else "Numbers are means over training runs."
    )
    return Remark("How sure.", text)
