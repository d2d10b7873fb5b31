"""The comparison's page: tables and sentences from the findings, aggregated over people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.fairface.findings import Family
from benchmarks.fairface.page import HEADINGS, people, row
from benchmarks.fairface.results import Cell
from benchmarks.fairface.verdicts import counted, percent, points, smallest_effect
from benchmarks.methods.findings import MEASURES, MethodsFindings
from benchmarks.methods.verdicts import level, paragraph, seconds

TITLES = {m: HEADINGS[m] for m in MEASURES}
FAR = 0.05


def write(findings: MethodsFindings, path: Path) -> str:
    """Write the page, which shows the picture of the same name.

    Returns:
        its text.
    """
    text = "\n".join(_lines(findings, path.with_suffix(".png").name)) + "\n"
    path.write_text(text, encoding="utf-8")
    return text


def title(findings: MethodsFindings) -> str:
    """What the page is called; a partial result says so."""
    study = findings.methods_study.study
    if study.complete:
        return study.config.name
    return f"{study.config.name}: partial result, {study.walks_done} of {study.walks_planned} walks"


def _lines(findings: MethodsFindings, picture: str) -> Iterable[str]:
    data = findings.methods_study.study.config.data
    yield f"# {title(findings)}"
    yield ""
    yield "Written by `benchmarks/methods/compare.py analyse`; every sentence and number is made from the run."
    yield ""
    yield "## In short"
    yield ""
    yield paragraph(findings)
    yield ""
    yield f"![Each method against {findings.reference}; accuracy against latency]({picture})"
    yield ""
    yield data.description
    yield from data.attribution
    yield ""
    yield from _how(findings)
    yield ""
    yield "## Against plain Taylor"
    yield ""
    if findings.main.comparisons:
        yield (
            f"Points, with 95 % intervals. {len(findings.main.comparisons)} comparisons on the worst group's accuracy "
            "are judged together: Holm's p below 0.05 counts as shown. A typical interval reaches "
            f"{smallest_effect(findings.main.comparisons):.1f} points to either side: smaller effects cannot be seen. "
            "Columns other than the worst group's are not adjusted, and are a look. Of rho, excess gap, unevenness and "
            "gap, less is better."
        )
        yield ""
    yield from _family(findings.main)
    yield "## At each share of the MACs"
    yield ""
    yield "Holm's p is over the methods and the shares together."
    yield ""
    for _, family in findings.by_share:
        yield from _family(family)
    yield "## With other losses"
    yield ""
    yield from _family(findings.combined)
    yield "## Every kind of network"
    yield ""
    for share in findings.methods_study.study.config.prune.macs:
        yield from _levels(findings, share)
    yield from data.attribution


def _how(findings: MethodsFindings) -> Iterable[str]:
    read = findings.methods_study
    study, design = read.study, read.design
    config, finetune = study.config, study.config.finetune
    stops = ", ".join(f"{100 * share:g} %" for share in design.stops(config))
    yield "## How it was made"
    yield ""
    yield people(study)
    yield (
        f"- {counted(len(study.seeds), 'seed')}: fresh weights, order of people and augmentation. All walks of a seed "
        f"start from its dense network ({counted(config.training.epochs, 'epoch')}) and fine-tune on people in the "
        "same order."
    )
    yield (
        f"- One walk prunes a network to {stops} of the MACs, one after the other, and ranks anew each time, on "
        f"validation people; {counted(finetune.epochs, 'epoch')} of training where it is judged, "
        f"{finetune.epochs_between} elsewhere."
    )
    steps = {q: {c.steps for cell, c in read.costs.items() if cell.share == q} for q in config.prune.macs}
    counts = "; ".join(f"{100 * q:g} %: {', '.join(f'{n:,}' for n in sorted(found))}" for q, found in steps.items())
    yield (
        "- Equal training: steps of the optimizer on the weights from the dense network on, the same for all methods "
        f"({counts}). BiP and BiFP train the weights while they learn gates (SGD, inputs as they are, under the loss "
        f"of fine-tuning): at each stop {design.learned_share:.2g} of the epochs, rounded and at least one, are that, "
        "and fine-tuning has the rest. Steps on gates and passes for statistics move no weight; they count as time."
    )
    own = sorted({cell.method for cell, cost in read.costs.items() if cost.own_widths})
    yield (
        "- Equal MACs: where a method leaves widths open, all layers lose alike, so that these methods share one "
        "vector of widths at each share. With widths of their own, under the same budget of MACs, so that latency "
        f"differs: {', '.join(own) or 'no finished method'}."
    )
    far = sorted({cell.method for cell, cost in read.costs.items() if cost.own_widths and cost.furthest > FAR})
    if far:
        yield f"- More than {100 * FAR:g} % away from the MACs asked for, in some network: {', '.join(far)}."
    if read.chosen:
        yield (
            f"- Options were chosen on a seed of its own ({design.tuning_seed}) by the mean accuracy of the third of "
            "the groups that its dense network serves worst, on the half of the validation people on whom no channel "
            f"was ranked, at {', '.join(f'{100 * q:g} %' for q in design.tuning_macs)} of the MACs:"
        )
        for name, found in read.chosen.items():
            tried = "; ".join(f"{_told(x['options'])}: {100 * x['accuracy']:.1f} %" for x in found["accuracy"])
            yield f"  - {name}: {_told(found['options'])} (of {tried})"
        yield "- All other options are defaults."
    yield (
        f"- The worst group, {findings.worst}, is that of the lowest accuracy among validation people, over the dense "
        "networks of all seeds. Test people are used for this page alone."
    )
    yield (
        "- Effects are paired by seed and person. Intervals resample seeds and people, and rest on Student's t with as "
        "many degrees of freedom as the seeds give (`benchmarks/fairface/effects.py`)."
    )
    yield (
        "- rho: standard deviation over groups of the accuracy lost; excess gap: accuracy that a group lost beyond "
        "what everyone lost, the largest over groups; unevenness: that of the worst group; gap: largest difference "
        "between groups."
    )
    yield (
        f"- Latency: ONNX Runtime, {counted(config.benchmark.threads, 'thread')}, batch of "
        f"{config.benchmark.batch_size}, {study.cost['latency']['machine']['cpu']}. Ranking: seconds from the dense "
        "network on for statistics, gates and removal, of BiP and BiFP with the training in it; with training: all of "
        f"it. Processes ran side by side. The finished networks took {study.hours:.1f} hours of work."
    )


def _told(options: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"


def _family(family: Family) -> Iterable[str]:
    yield f"### {family.title}"
    yield ""
    if not family.comparisons:
        yield "Nothing is finished that could be compared."
        yield ""
        return
    yield row(["", *TITLES.values(), "Holm's p", "shown", "seeds"])
    yield row(["---"] * (len(TITLES) + 4))
    for c in sorted(family.comparisons, key=lambda c: -c.effects["worst"].value):
        judged = [f"{c.adjusted:.3f}", str(c.verdict), str(c.effects["worst"].seeds)]
        yield row([c.name, *(points(c.effects[m]) for m in TITLES), *judged])
    yield ""


def _levels(findings: MethodsFindings, share: float) -> Iterable[str]:
    read = findings.methods_study
    dense_ms = {m["name"]: m["p50_ms"]["value"] for m in read.study.cost["latency"]["models"]}["dense"]
    yield f"### {100 * share:g} % of the MACs"
    yield ""
    others = [TITLES[m] for m in MEASURES[2:]]
    columns = ["method", "loss", "everyone", "worst group", *others]
    columns += ["MACs", "latency, ms (speed-up)", "ranking, s", "with training, s", "seeds"]
    yield row(columns)
    yield row(["---"] * len(columns))
    dense = level(findings, Cell())
    assert dense is not None
    values = [percent(dense.effects["everyone"]), percent(dense.effects["worst"])]
    gaps = ["" if m != "gap" else f"{100 * dense.effects[m].value:.1f}" for m in MEASURES[2:]]
    yield row(["dense", "", *values, *gaps, "100 %", f"{dense_ms:.3f}", "", "", str(dense.effects["worst"].seeds)])
    for found in findings.levels:
        if found.cell.share != share or not found.cell.method:
            continue
        cost = read.costs[found.cell]
        mark = " (own widths)" if cost.own_widths else ""
        yield row(
            [
                found.cell.method + mark,
                found.cell.loss,
                percent(found.effects["everyone"]),
                percent(found.effects["worst"]),
                *(f"{100 * found.effects[m].value:.1f}" for m in MEASURES[2:]),
                f"{100 * cost.macs:.2f} %",
                f"{dense_ms / cost.speedup:.3f} ({cost.speedup:.1f}x)",
                seconds(cost.ranking),
                seconds(cost.ranking + cost.training),
                str(found.effects["worst"].seeds),
            ]
        )
    yield ""
