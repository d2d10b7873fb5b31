"""One output by the groups of one sensitive attribute: the entries of every model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from fair_prune_plugins.audit.measures.amplification import Association, amplification, amplified
from fair_prune_plugins.audit.measures.auroc import auroc_change_estimate, auroc_estimate
from fair_prune_plugins.audit.measures.chance import lucky_ece, lucky_gaps
from fair_prune_plugins.audit.measures.change_tests import Family
from fair_prune_plugins.audit.measures.estimates import UNDEFINED, Estimates
from fair_prune_plugins.audit.measures.group_result import Amplification, Disparity, Gaps, MeasuredGroup, Scores
from fair_prune_plugins.audit.measures.numbers import GapNumbers, Numbers, gap_numbers, measures, numbers
from fair_prune_plugins.audit.measures.result import MeasuredAttribute
from fair_prune_plugins.audit.measures.tables import GroupTables, Output
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray, PairedMeasures, Proportion
from fair_prune_plugins.groups import GroupLabels


@dataclass(frozen=True)
class Settings:
    """How sure to be and whom to judge; as the arguments of :func:`~.measuring.measure`."""

    estimates: Estimates
    resamples: int
    confidence: float
    minimum: int


@dataclass(frozen=True)
class Pooled:
    """Right answers of everybody, per model ``[R + 1]`` in all runs."""

    right: tuple[IntArray, ...]
    people: IntArray

    def proportion(self, model: int, resamples: slice) -> Proportion:
        """One model's in some resamples."""
        return Proportion(self.right[model][resamples], self.people[resamples])

    def change(self, model: int) -> FloatArray:
        """Accuracy of a model minus the first's, ``[R + 1]``."""
        return Proportion(self.right[model] - self.right[0], self.people).value


def pool(tables: GroupTables) -> Pooled:
    """Everybody's right answers, from the tables of everybody as one group."""
    people, hits = tables.totals()
    answers = people * tables.runs
    right = tuple(of_model[:, 1] + answers[:, 0] - of_model[:, 0] for of_model in hits)
    return Pooled(right, answers.sum(axis=1))


def measure_groups(
    output: Output,
    tables: GroupTables,
    groups: GroupLabels,
    rare: int,
    pooled: Pooled | None,
    families: tuple[Family | None, ...],
    row: int,
    settings: Settings,
    luck: FloatArray,
) -> list[list[MeasuredGroup]]:
    """Every group's entry, per model.

    Args:
        output: the output.
        tables: its sums by these groups.
        groups: the groups.
        rare: the value that is rarer in training.
        pooled: everybody's right answers, to tell excess gaps; ``None`` where the group is everybody.
        families: per model the tests of its changes; ``None`` for the dense model and for everybody.
        row: the output's row in the families.
        settings: how sure to be.
        luck: absolute standard normal draws ``[R, bins]``.
    """
    models = range(len(output.hits))
    lucky = [
        lucky_ece(p, groups.codes, tables.groups, settings.confidence, luck)
        if graded
        else np.full(tables.groups, np.nan)
        for p, graded in zip(output.probabilities, output.graded, strict=True)
    ]
    lost = [None if pooled is None else pooled.change(m) for m in models]
    entries: list[list[MeasuredGroup]] = [[] for _ in models]
    for chosen, view in tables.by_group():
        found = [numbers(view, m, output.runs, rare) for m in models]
        changed = [of_model.minus(found[0]) for of_model in found]
        for i in range(chosen.stop - chosen.start):
            group = chosen.start + i
            negatives, positives = (int(n) for n in view.people[0, i])
            sizes = _Sizes(negatives, positives, rare)
            for m in models:
                change = excess = None
                if m:
                    change = _scores(changed[m], i, sizes, settings, tables, m, group, change=True)
                    everybody = lost[m]
                    if everybody is not None:
                        gap = everybody - changed[m].accuracy[:, i]
                        excess = settings.estimates.bounded(gap, sizes.people, -2.0, 2.0)
                family = families[m]
                by_chance = float(lucky[m][group])
                entries[m].append(
                    MeasuredGroup(
                        name=groups.names[group],
                        n=sizes.people,
                        positives=positives,
                        too_small=sizes.people < settings.minimum,
                        scores=_scores(found[m], i, sizes, settings, tables, m, group, change=False),
                        ece_by_chance=None if np.isnan(by_chance) else by_chance,
                        change=change,
                        excess_gap=excess,
                        test=None if family is None else family.test(row, group),
                    )
                )
    return entries


def measure_attribute(
    output: Output,
    tables: GroupTables,
    groups: GroupLabels,
    entries: list[list[MeasuredGroup]],
    pooled: Pooled,
    association: Association,
    settings: Settings,
    rng: np.random.Generator,
) -> list[MeasuredAttribute]:
    """Comparisons between the groups, per model; arguments as :func:`measure_groups`, ``entries`` its result."""
    models = range(len(output.hits))
    gaps: list[list[GapNumbers]] = [[] for _ in models]
    disparities: list[list[tuple[FloatArray, ...]]] = [[] for _ in models]
    for chosen, view in tables.by_resample():
        paired = [measures(view.people, view.hits[m], output.runs, pooled.proportion(m, chosen)) for m in models]
        for m in models:
            gaps[m].append(gap_numbers(view, m, output.runs, tables.auroc[m].value))
            if m:
                pair = PairedMeasures(pruned=paired[m], dense=paired[0])
                disparities[m].append((pair.rho, pair.max_excess, pair.pairwise_excess))
        if not chosen.start:
            observed = [measures(view.people[0], view.hits[m][0], output.runs) for m in models]
    amplifications = _amplifications(tables, groups, association, settings)
    found = [_joined(of_model) for of_model in gaps]
    smallest = _smallest(entries[0])
    result = []
    for m in models:
        by_chance = lucky_gaps(observed[m], output.runs, settings.confidence, settings.resamples, rng)
        result.append(
            MeasuredAttribute(
                attribute=groups.attribute,
                groups=tuple(entries[m]),
                gaps=_gaps(found[m], smallest, settings.estimates, 0.0),
                gaps_by_chance=by_chance,
                gaps_change=_gaps(found[m].minus(found[0]), smallest, settings.estimates, -1.0) if m else None,
                disparity=disparity(disparities[m], smallest, settings.estimates) if m else None,
                amplification=tuple(amplifications[m]),
            )
        )
    return result


def disparity(drawn: list[tuple[FloatArray, ...]], people: int, estimates: Estimates) -> Disparity:
    """From rho, largest and pairwise excess gap ``[r]`` of some resamples after the other."""
    rho, largest, pairwise = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return Disparity(
        rho=estimates.centred(rho, people, 0.0, float(np.sqrt(2))),
        max_excess_gap=estimates.centred(largest, people, -2.0, 2.0),
        pairwise_excess_gap=estimates.centred(pairwise, people, 0.0, 2.0),
    )


@dataclass(frozen=True)
class _Sizes:
    """How many people each score is an average over, and how large it can be."""

    negatives: int
    positives: int
    rare: int

    @property
    def people(self) -> int:
        return self.negatives + self.positives

    @property
    def rarely(self) -> int:
        return self.positives if self.rare else self.negatives

    def of(self, name: str) -> int:
        if name == "true_positive":
            return self.positives
        return self.negatives if name in ("false_positive", "true_negative") else self.people

    def highest(self, name: str) -> float:
        return self.people / self.rarely if name == "rare_value" and self.rarely else 1.0


def _scores(
    found: Numbers,
    column: int,
    sizes: _Sizes,
    settings: Settings,
    tables: GroupTables,
    model: int,
    group: int,
    *,
    change: bool,
) -> Scores:
    estimates, confidence = settings.estimates, settings.confidence
    made: dict[str, Estimate] = {}
    for field in fields(found):
        drawn, people, highest = getattr(found, field.name)[:, column], sizes.of(field.name), sizes.highest(field.name)
        low = -highest if change else 0.0
        make = estimates.centred if field.name == "ece" else estimates.bounded
        made[field.name] = make(drawn, people, low, highest) if sizes.people else UNDEFINED
    if change:
        auroc = auroc_change_estimate(tables.auroc_change[model - 1], group, estimates, confidence)
    else:
        auroc = auroc_estimate(tables.auroc[model], group, estimates, confidence)
    return Scores(auroc=auroc, **made)


def _amplifications(
    tables: GroupTables, groups: GroupLabels, association: Association, settings: Settings
) -> list[list[Amplification]]:
    totals = tables.totals()
    positives = int(totals[0][0, 1])
    entries: list[list[Amplification]] = [[] for _ in totals[1]]
    for chosen, view in tables.by_group():
        found = amplified(view, totals, association, chosen)
        for i in range(chosen.stop - chosen.start):
            index = chosen.start + i
            for m, values in enumerate(found):
                change = values[:, i] - found[0][:, i] if m else None
                entries[m].append(
                    amplification(
                        groups.names[index], index, association, values[:, i], change, positives, settings.estimates
                    )
                )
    return entries


def _gaps(found: GapNumbers, people: int, estimates: Estimates, low: float) -> Gaps:
    return Gaps(**{f.name: estimates.centred(getattr(found, f.name), people, low, 1.0) for f in fields(found)})


def _joined(parts: list[GapNumbers]) -> GapNumbers:
    return GapNumbers(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(GapNumbers)})


def _smallest(entries: list[MeasuredGroup]) -> int:
    """People of the smallest group that has any: what one knows of all groups, one knows of no more people."""
    return min((entry.n for entry in entries if entry.n), default=0)
