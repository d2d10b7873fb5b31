"""The findings in sentences, each made from the numbers: nothing here knows beforehand what will come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.fairface.bench import level_name
from benchmarks.fairface.effects import Effect
from benchmarks.fairface.findings import Comparison, Findings, Level, Verdict
from benchmarks.fairface.results import Study

FEW_SEEDS = 5


def points(effect: Effect) -> str:
    """A change with its interval, in points."""
    return f"{100 * effect.value:+.1f} ({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"


def percent(effect: Effect) -> str:
    """A share with its interval."""
    return f"{100 * effect.value:.1f} % ({100 * effect.low:.1f} to {100 * effect.high:.1f})"


def counted(number: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def manager(findings: Findings) -> str:
    """A paragraph for somebody who decides about a product."""
    sentences = [*_price(findings), *_choices(findings), *_against_balanced(findings), *_caveats(findings)]
    return " ".join(sentences)


def speed(findings: Findings, share: float) -> tuple[float, float, float]:
    """Milliseconds, speed-up and share of MACs reached at a share that was asked for."""
    cost = findings.study.cost
    timed = {m["name"]: m for m in cost["latency"]["models"]}[level_name(share)]
    networks = cost["networks"]
    reached = networks[level_name(share)]["macs"] / networks["dense"]["macs"]
    return timed["p50_ms"]["value"], timed["speedup"]["value"], reached


def level(findings: Findings, method: str, loss: str, share: float) -> Level | None:
    """A kind of network, if there is one."""
    wanted = (method, loss, share)
    return next((x for x in findings.levels if (x.cell.method, x.cell.loss, x.cell.share) == wanted), None)


def _price(findings: Findings) -> list[str]:
    """What pruning buys and costs, with the plain criterion and the plain loss."""
    dense = level(findings, "", "", 1.0)
    sentences = []
    for share in findings.study.config.prune.macs:
        plain = level(findings, findings.reference, findings.plain, share)
        if dense is None or plain is None:
            continue
        _, times, _ = speed(findings, share)
        worst, everyone = (100 * (plain.effects[m].value - dense.effects[m].value) for m in ("worst", "everyone"))
        beyond = plain.effects["beyond"]
        if beyond.seeds < 2:
            how = "from one seed"
        elif beyond.low > 0:
            how = "which is shown to be uneven"
        elif beyond.high < 0:
            how = "which is shown to be uneven, in this group's favour"
        else:
            how = "which is not shown to be uneven"
        sentences.append(
            f"At {100 * share:g} % of the arithmetic the network runs {times:.1f} times as fast; pruned plainly, "
            f"everyone together changes by {everyone:+.1f} points of accuracy and the group that was worst off before "
            f"({findings.worst}) by {worst:+.1f}, {how}."
        )
    return sentences


def _choices(findings: Findings) -> list[str]:
    """What the fairness-aware choices did."""
    main = findings.main
    if not main:
        return ["No fairness-aware choice can be compared yet."]
    sentences = []
    for verdict, words in ((Verdict.HELPED, "raise"), (Verdict.HARMED, "lower")):
        shown = [c for c in main if c.verdict is verdict]
        if shown:
            what = listed([f"{c.name} against {c.against} ({points(c.effects['worst'])} points)" for c in shown])
            sentences.append(f"Shown to {words} that group's accuracy, at equal cost: {what}.")
    if not any(c.verdict is Verdict.HELPED for c in main):
        sentences.append(
            f"None of the {len(main)} choices compared is shown to raise that group's accuracy at equal cost."
        )
    open_ones = [c for c in main if c.verdict is Verdict.OPEN and c.effects["worst"].seeds > 1]
    if open_ones:
        most = max(100 * c.effects["worst"].high for c in open_ones)
        least = min(100 * c.effects["worst"].low for c in open_ones)
        sentences.append(
            f"For {listed([c.name for c in open_ones])} no difference is shown; effects between {least:+.1f} and "
            f"{most:+.1f} points remain possible."
        )
    paid = [c for c in main if c.verdict is Verdict.HELPED and c.effects["everyone"].high < 0]
    if paid:
        what = listed([f"{c.name} ({points(c.effects['everyone'])})" for c in paid])
        sentences.append(f"What helped the group and is shown to cost accuracy over everyone: {what}.")
    return sentences


def _against_balanced(findings: Findings) -> list[str]:
    if findings.pairs is None:
        return []
    compared = findings.pairs.comparisons
    base = compared[0].against
    better = [c for c in compared if c.verdict is Verdict.HELPED]
    if better:
        what = listed([f"{c.name} ({points(c.effects['worst'])})" for c in better])
        return [f"Shown to serve that group better than {base}, the simplest remedy: {what}."]
    worse = sum(c.verdict is Verdict.HARMED for c in compared)
    return [
        f"Nothing is shown to serve that group better than {base}, the simplest remedy: of {len(compared)} other "
        f"pairs, {worse} are shown to be worse and {len(compared) - worse} not to differ."
    ]


def unfinished(study: Study) -> list[str]:
    """What is not there yet, in sentences: walks, or seeds to decide by."""
    sentences = []
    if not study.complete:
        sentences.append(f"This is a partial result: {study.walks_done} of {study.walks_planned} walks are finished.")
    if len(study.seeds) < FEW_SEEDS:
        sentences.append(f"It rests on {counted(len(study.seeds), 'seed')}, too few to decide by.")
    return sentences


def _caveats(findings: Findings) -> list[str]:
    return [
        *unfinished(findings.study),
        "One small network, one data set of small pictures, perceived binary gender: a test bed, and no product to "
        "recommend.",
    ]


def whom(findings: Findings) -> list[str]:
    """Who gains and who pays by each main effect, as far as single groups' intervals show it."""
    lines = []
    for comparison in findings.whom:
        parts = []
        for sign, word in ((1, "gain"), (-1, "lose")):
            named = [
                f"{name.removeprefix('accuracy ')} {points(e)}"
                for name, e in comparison.effects.items()
                if name.startswith("accuracy ") and e.seeds > 1 and (e.low > 0 if sign > 0 else e.high < 0)
            ]
            if named:
                parts.append(f"{word}: {'; '.join(named)}")
        lines.append(f"- {comparison.name} against {comparison.against}: {'. '.join(parts) or 'nobody is shown to'}.")
    return lines


def beside_dense(findings: Findings) -> str:
    """The dense networks, in one sentence."""
    dense = level(findings, "", "", 1.0)
    assert dense is not None  # read_study refuses a folder without one
    return (
        f"The dense networks: everyone {percent(dense.effects['everyone'])}, {findings.worst} "
        f"{percent(dense.effects['worst'])}, gap {100 * dense.effects['gap'].value:.1f} points."
    )


def smallest_effect(comparisons: Sequence[Comparison]) -> float:
    """Half the width of the typical interval of the worst group's accuracy, in points: what could be seen."""
    return float(np.median([100 * (c.effects["worst"].high - c.effects["worst"].low) / 2 for c in comparisons]))
