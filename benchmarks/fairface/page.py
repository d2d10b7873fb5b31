"""The study's page: tables and sentences from the findings, aggregated over people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.fairface.findings import Comparison, Family, Findings, Level
from benchmarks.fairface.results import Study
from benchmarks.fairface.verdicts import (
    beside_dense,
    counted,
    manager,
    percent,
    points,
    smallest_effect,
    speed,
    whom,
)

MANNERS = (
    "Perceived binary gender is a test bed here and no product to recommend. Faces of real people; labels are "
    "perceived, given by annotators; not for identification. A run folder holds weights and what models said of single "
    "people, which is special-category data: keep it to yourself."
)
HEADINGS = {
    "worst": "worst group",
    "everyone": "everyone",
    "gap": "gap",
    "rho": "rho",
    "excess": "largest excess gap",
    "beyond": "unevenness",
    "gap race": "gap by race",
    "gap gender": "gap by gender",
}


def write(findings: Findings, path: Path) -> str:
    """Write the page.

    Returns:
        its text.
    """
    text = "\n".join(_lines(findings)) + "\n"
    path.write_text(text, encoding="utf-8")
    return text


def title(findings: Findings) -> str:
    """What the page is called; a partial result says so."""
    study = findings.study
    if study.complete:
        return study.config.name
    return f"{study.config.name}: partial result, {study.walks_done} of {study.walks_planned} walks"


def attribution(findings: Findings) -> list[str]:
    """Source, licence and change note of the data, for beside every figure."""
    return [*findings.study.config.data.attribution]


def _lines(findings: Findings) -> Iterable[str]:
    study = findings.study
    yield f"# {title(findings)}"
    yield ""
    yield "Written by `benchmarks/fairface/study.py analyse`; every sentence and number is made from the run."
    yield ""
    yield "## In short"
    yield ""
    yield manager(findings)
    yield ""
    yield "![Effects on the worst group and on everyone; accuracy against latency](study.png)"
    yield ""
    yield from attribution(findings)
    yield MANNERS
    yield ""
    yield from _how(findings)
    yield ""
    yield "## Main effects"
    yield ""
    main = findings.main
    if main:
        yield (
            f"Judged together: {len(main)} comparisons on the worst group's accuracy, Holm's p below 0.05 counts as "
            f"shown. A typical interval reaches {smallest_effect(main):.1f} points to either side: smaller effects "
            "cannot be seen. Columns other than the worst group's are not adjusted, and are a look."
        )
        yield ""
    for family in (findings.criteria[0], findings.losses[0]):
        yield from _family(family)
    yield "## The headline comparisons, which have the most seeds"
    yield ""
    yield "Not adjusted: a look at what the main effects are made of."
    yield ""
    for family in (*findings.criteria[1:], *findings.losses[1:]):
        yield from _family(family)
    yield "## At each share of the MACs"
    yield ""
    yield f"Not adjusted: {sum(len(f.comparisons) for f in findings.by_share)} comparisons, of which one in twenty"
    yield "excludes 0 by chance alone."
    yield ""
    for family in findings.by_share:
        yield from _family(family)
    if findings.pairs is not None:
        yield "## Does anything beat the plain criterion with a balanced loss?"
        yield ""
        yield from _family(findings.pairs)
    yield "## For whom"
    yield ""
    yield (
        "Groups whose accuracy is shown to change by the main effects, points; single intervals, not adjusted "
        f"({len(findings.whom)} choices x {_groups(findings)} groups and coarse groups)."
    )
    yield ""
    yield from whom(findings)
    yield ""
    yield from _by_group(findings)
    yield "## Every kind of network"
    yield ""
    yield beside_dense(findings)
    yield ""
    for share in study.config.prune.macs:
        yield from _levels(findings, share)
    yield from attribution(findings)


def people(study: Study) -> str:
    """Who was trained on, chosen on and judged on."""
    sizes = ", ".join(f"{size:,} {part}" for part, size in study.sizes.items())
    return f"- {sizes} people. {' '.join(study.notes)} The parts are the same for all seeds."


def _how(findings: Findings) -> Iterable[str]:
    study = findings.study
    config, finetune = study.config, study.config.finetune
    stops = ", ".join(f"{100 * share:g} %" for share in study.design.stops(config))
    seeds = counted(len(study.seeds), "seed")
    yield "## How it was made"
    yield ""
    yield people(study)
    yield (
        f"- {seeds}: fresh weights, order of people and augmentation. All criteria and losses of a seed start from its "
        f"dense network ({counted(config.training.epochs, 'epoch')}) and see people in the same order."
    )
    yield (
        f"- One walk prunes a network to {stops} of the MACs, one after the other, with fresh statistics on validation "
        f"people each time; it trains for {counted(finetune.epochs, 'epoch')} where it is judged, "
        f"{finetune.epochs_between} elsewhere. At each share all networks have the same widths, hence equal MACs and "
        "latency."
    )
    if study.step_size:
        tried = ", ".join(f"{size}: {100 * rho:.2f}" for size, rho in study.step_size["rho"].items())
        yield (
            f"- The dual step size of excess_gap, {study.step_size['chosen']:g}, was chosen on validation people of "
            f"seed 0 (rho in points by step size: {tried}); its default, 0.0001, hardly moves in so short a "
            "training. All other options are defaults."
        )
    yield (
        f"- The worst group, {findings.worst}, is that of the lowest accuracy among validation people, over the dense "
        "networks of all seeds. Test people are used for this page alone."
    )
    yield (
        "- Effects are paired by seed and person. Intervals (95 %) resample seeds and people, and rest on Student's t "
        "with as many degrees of freedom as the seeds give (`effects.py`)."
    )
    yield (
        "- rho: standard deviation over groups of the accuracy lost; excess gap: accuracy that a group lost beyond "
        "what everyone lost, the largest over groups; unevenness: that of the worst group. For these three and "
        "the gaps, less is better."
    )
    machine = study.cost["latency"]["machine"]
    yield (
        f"- Latency: ONNX Runtime, {counted(config.benchmark.threads, 'thread')}, batch of "
        f"{config.benchmark.batch_size}, {machine['cpu']}. "
        f"The finished networks took {study.hours:.1f} hours of work, over all processes."
    )


def _family(family: Family) -> Iterable[str]:
    yield f"### {family.title}"
    yield ""
    if not family.comparisons:
        yield "Nothing is finished that could be compared."
        yield ""
        return
    measures = [m for m in HEADINGS if all(m in c.effects for c in family.comparisons)]
    verdict = ["Holm's p", "shown"] if family.adjusted else []
    yield row(["", *(HEADINGS[m] for m in measures), *verdict, "seeds"])
    yield row(["---"] * (2 + len(measures) + len(verdict)))
    for comparison in family.comparisons:
        yield row(
            [
                comparison.name,
                *(points(comparison.effects[m]) for m in measures),
                *(_judged(comparison) if family.adjusted else []),
                str(comparison.effects["worst"].seeds),
            ]
        )
    yield ""


def _judged(comparison: Comparison) -> list[str]:
    return [f"{comparison.adjusted:.3f}", str(comparison.verdict)]


def _levels(findings: Findings, share: float) -> Iterable[str]:
    milliseconds, times, reached = speed(findings, share)
    widths = findings.study.cost["networks"][f"macs-{100 * share:.6g}"]["widths"]
    yield f"### {100 * share:g} % of the MACs"
    yield ""
    yield (
        f"{100 * reached:.2f} % reached; {milliseconds:.3f} ms, {times:.1f} times as fast as dense; channels of the "
        f"convolutions {', '.join(map(str, widths))}."
    )
    yield ""
    yield row(["criterion", "loss", "everyone", "worst group", *list(HEADINGS.values())[2:], "seeds"])
    yield row(["---"] * (5 + len(HEADINGS) - 2))
    for found in findings.levels:
        if found.cell.share == share and found.cell.method:
            yield row([found.cell.method, found.cell.loss, *_measured(found), str(found.effects["worst"].seeds)])
    yield ""


def _measured(found: Level) -> list[str]:
    others = [f"{100 * found.effects[m].value:.1f}" if m in found.effects else "" for m in list(HEADINGS)[2:]]
    return [percent(found.effects["everyone"]), percent(found.effects["worst"]), *others]


def _by_group(findings: Findings) -> Iterable[str]:
    """Each group: dense accuracy, what plain pruning does to it, and what the losses and criteria add."""
    by_cell = {(x.cell.method, x.cell.loss, x.cell.share): x for x in findings.levels}
    dense = by_cell["", "", 1.0]
    shares = [q for q in findings.study.config.prune.macs if (findings.reference, findings.plain, q) in by_cell]
    chosen = findings.whom
    yield row(
        [
            "group",
            "dense",
            *(f"plain at {100 * q:g} %" for q in shares),
            *(f"{c.name} against {c.against}" for c in chosen),
        ]
    )
    yield row(["---"] * (2 + len(shares) + len(chosen)))
    for name in (n for n in dense.effects if n.startswith("accuracy ")):
        cells = [by_cell[findings.reference, findings.plain, q].effects[name].value for q in shares]
        yield row(
            [
                name.removeprefix("accuracy "),
                f"{100 * dense.effects[name].value:.1f} %",
                *(f"{100 * value:.1f} %" for value in cells),
                *(points(c.effects[name]) for c in chosen),
            ]
        )
    yield ""


def _groups(findings: Findings) -> int:
    return sum(name.startswith("accuracy ") for name in findings.levels[0].effects)


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
