"""The findings in sentences, each made from the numbers: nothing here knows beforehand what will come out."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.fairface.findings import Comparison, Level, Verdict
from benchmarks.fairface.results import Cell
from benchmarks.fairface.verdicts import counted, listed, percent, points, unfinished
from benchmarks.methods.findings import MethodsFindings
from benchmarks.methods.results import Cost


def paragraph(findings: MethodsFindings) -> str:
    """What the comparison shows, for somebody who has to choose a method."""
    sentences = [
        *_dense(findings),
        *_mean(findings),
        *_extreme(findings),
        *_losses(findings),
        *_evenness(findings),
        *_time(findings),
        *_caveats(findings),
    ]
    return " ".join(sentences)


def level(findings: MethodsFindings, cell: Cell) -> Level | None:
    """A kind of network, if there is one."""
    return next((x for x in findings.levels if x.cell == cell), None)


def shown(comparisons: Sequence[Comparison], verdict: Verdict) -> list[Comparison]:
    """Those with a verdict, the largest effect first."""
    return sorted((c for c in comparisons if c.verdict is verdict), key=lambda c: -abs(c.effects["worst"].value))


def seconds(number: float) -> str:
    """Seconds, with a decimal where they are few."""
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def worst_of(comparisons: Sequence[Comparison]) -> str:
    """Names with the change of the worst group's accuracy."""
    return listed([f"{c.name} ({points(c.effects['worst'])})" for c in comparisons])


def _dense(findings: MethodsFindings) -> list[str]:
    dense = level(findings, Cell())
    assert dense is not None  # read_study refuses a folder without one
    sentences = [
        f"The dense networks: everyone {percent(dense.effects['everyone'])}, {findings.worst}, the group worst off, "
        f"{percent(dense.effects['worst'])}."
    ]
    for share in findings.methods_study.study.config.prune.macs:
        plain = level(findings, Cell(findings.reference, findings.plain, share))
        if plain is not None:
            everyone, worst = (100 * (plain.effects[m].value - dense.effects[m].value) for m in ("everyone", "worst"))
            sentences.append(
                f"At {100 * share:g} % of the MACs {findings.reference} changes that by {everyone:+.1f} and "
                f"{worst:+.1f} points."
            )
    return sentences


def _mean(findings: MethodsFindings) -> list[str]:
    compared = findings.main.comparisons
    if not compared:
        return ["No method can be compared yet."]
    sentences = []
    for verdict, word in ((Verdict.HELPED, "raise"), (Verdict.HARMED, "lower")):
        if some := shown(compared, verdict):
            sentences.append(
                f"Shown to {word} that group's accuracy against {findings.reference}, at equal MACs and equal "
                f"training, mean over the MACs, in points: {worst_of(some)}."
            )
    if not shown(compared, Verdict.HELPED):
        sentences.append(
            f"None of {counted(len(compared), 'method')} is shown to raise that group's accuracy against "
            f"{findings.reference}."
        )
    paid = [c for c in shown(compared, Verdict.HELPED) if c.effects["everyone"].high < 0]
    if paid:
        what = listed([f"{c.name} ({points(c.effects['everyone'])})" for c in paid])
        sentences.append(f"Of those that raise it, these cost accuracy over everyone: {what}.")
    open_ones = [c for c in compared if c.verdict is Verdict.OPEN and c.effects["worst"].seeds > 1]
    if open_ones:
        least = min(100 * c.effects["worst"].low for c in open_ones)
        most = max(100 * c.effects["worst"].high for c in open_ones)
        who = "all of them" if len(open_ones) == len(compared) else listed([c.name for c in open_ones])
        sentences.append(
            f"For {who} no difference is shown; effects between {least:+.1f} and {most:+.1f} points remain possible."
        )
    return sentences


def _extreme(findings: MethodsFindings) -> list[str]:
    """Where papers say that the difference shows."""
    share = min(findings.methods_study.study.config.prune.macs)
    compared = findings.at(share)
    if not compared:
        return []
    where = f"At {100 * share:g} % of the MACs alone"
    helped, harmed = (shown(compared, v) for v in (Verdict.HELPED, Verdict.HARMED))
    if not helped and not harmed:
        return [f"{where}, no method is shown to differ from {findings.reference} for that group."]
    said = [f"{word} by {worst_of(some)}" for word, some in (("raised", helped), ("lowered", harmed)) if some]
    return [f"{where}, that group's accuracy is shown to be {' and '.join(said)}."]


def _losses(findings: MethodsFindings) -> list[str]:
    compared = findings.combined.comparisons
    if not compared:
        return []
    helped, harmed = (shown(compared, verdict) for verdict in (Verdict.HELPED, Verdict.HARMED))
    base = f"{findings.reference} with {findings.plain}"
    if helped:
        sentences = [f"With other losses, shown to serve that group better than {base}: {worst_of(helped)}."]
    else:
        pairs = counted(len(compared), "pair")
        sentences = [f"Of {pairs} of method and other loss none is shown to serve it better than {base}."]
    if harmed:
        sentences.append(f"With other losses, shown to serve it worse: {worst_of(harmed)}.")
    return sentences


def _evenness(findings: MethodsFindings) -> list[str]:
    even = [c for c in findings.main.comparisons if c.effects["rho"].seeds > 1 and c.effects["rho"].high < 0]
    if not even:
        return [f"No method spreads the loss over groups more evenly (rho) than {findings.reference} beyond doubt."]
    what = listed([f"{c.name} ({points(c.effects['rho'])})" for c in even])
    return [f"The loss is spread over groups more evenly (rho, single intervals, not adjusted) by {what}."]


def _time(findings: MethodsFindings) -> list[str]:
    read = findings.methods_study
    share = min(read.study.config.prune.macs)
    costs: dict[str, Cost] = {
        cell.method: cost for cell, cost in read.costs.items() if cell.loss == findings.plain and cell.share == share
    }
    base = costs.get(findings.reference)
    if base is None or len(costs) < 2:
        return []
    whole = {name: (c.ranking + c.training) / (base.ranking + base.training) for name, c in costs.items()}
    slow = sorted((name for name, times in whole.items() if times >= 1.5), key=lambda name: -whole[name])
    sentence = (
        f"From dense to {100 * share:g} % {findings.reference} takes {seconds(base.ranking + base.training)} s, "
        f"{seconds(base.ranking)} s of it for ranking and removal"
    )
    if not slow:
        return [f"{sentence}; no method takes half as long again."]
    return [f"{sentence}; longer take {listed([f'{name} ({whole[name]:.1f} times)' for name in slow])}."]


def _caveats(findings: MethodsFindings) -> list[str]:
    return [
        *unfinished(findings.methods_study.study),
        "One small network and one data set, in a structured form of each method and with short training: what a paper "
        "found on large networks, on single weights or after long training may differ.",
    ]
