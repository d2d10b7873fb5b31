"""The comparisons of the study, and what they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.fairface.effects import Contrast, Effect, Resampling, Table, effect, holm, shared_seeds, tables
from benchmarks.fairface.results import Cell, Study

MEASURES = ("worst", "everyone", "gap", "rho", "excess", "beyond", "gap race", "gap gender")
BALANCED = "group_balanced"


class Verdict(StrEnum):
    """What a comparison shows of the worst group's accuracy."""

    HELPED = "raises"
    HARMED = "lowers"
    OPEN = "not shown"


@dataclass(frozen=True)
class Comparison:
    """One choice against another.

    Attributes:
        name: the choice.
        against: the other.
        effects: by measure; those in which no network of both is finished are left out.
        adjusted: Holm's p over the comparison's family, for the worst group's accuracy; ``None`` outside a family.
    """

    name: str
    against: str
    effects: dict[str, Effect]
    adjusted: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Judged by the adjusted p where there is one, otherwise by the interval. A single seed shows nothing."""
        worst = self.effects["worst"]
        shown = worst.p < 0.05 if self.adjusted is None else self.adjusted < 0.05
        if not shown or worst.seeds < 2:
            return Verdict.OPEN
        return Verdict.HELPED if worst.value > 0 else Verdict.HARMED


@dataclass(frozen=True)
class Family:
    """Comparisons that are judged together.

    Attributes:
        title: what they compare.
        comparisons: those that have at least one seed.
        adjusted: whether Holm's correction was made over them (and over whatever else is in the same family).
    """

    title: str
    comparisons: tuple[Comparison, ...]
    adjusted: bool = False


@dataclass(frozen=True)
class Level:
    """A kind of network: its measures, as they are."""

    cell: Cell
    effects: dict[str, Effect]


@dataclass(frozen=True)
class Findings:
    """Everything that the page says, aggregated over people.

    Attributes:
        study: what was read.
        worst: the worst group's name, fixed on validation people.
        reference: the criterion that others are compared with.
        plain: the loss that others are compared with.
        criteria: main effects, and under the plain loss alone.
        losses: main effects, and under each criterion of the headline.
        by_share: main effects at each share of the MACs.
        pairs: every pair of criterion and loss against the reference with the balanced loss; ``None`` without that.
        levels: every kind of network that is there.
        whom: main effects on each group's accuracy.
    """

    study: Study
    worst: str
    reference: str
    plain: str
    criteria: tuple[Family, ...]
    losses: tuple[Family, ...]
    by_share: tuple[Family, ...]
    pairs: Family | None
    levels: tuple[Level, ...]
    whom: tuple[Comparison, ...]

    @property
    def main(self) -> list[Comparison]:
        """The comparisons that the study was made for: main effects of criteria and of losses."""
        return [*self.criteria[0].comparisons, *self.losses[0].comparisons]


@dataclass
class Comparer:
    """The tables, and how to make contrasts of them."""

    study: Study
    resampling: Resampling
    tables: dict[str, Table]

    def compare(
        self, name: str, against: str, pairs: Iterable[tuple[Cell, Cell]], measures: Sequence[str] = MEASURES
    ) -> Comparison | None:
        """``None`` where no seed has both networks of any pair.

        Pairs with a single seed take part only if no pair has more: they would make the whole a matter of one seed.
        """
        index = self.study.cells.index
        strata = [(index(plus), index(minus)) for plus, minus in pairs]
        shared = [shared_seeds(self.study.outcomes.present, stratum) for stratum in strata]
        needed = min(2, max(shared, default=0))
        kept = tuple(stratum for stratum, seeds in zip(strata, shared, strict=True) if needed and seeds >= needed)
        if not kept:
            return None
        contrast = Contrast(kept)
        return Comparison(name, against, {m: self.effect(m, contrast) for m in measures if m in self.tables})

    def effect(self, measure: str, contrast: Contrast) -> Effect:
        return effect(self.tables[measure], contrast, self.resampling)


def find(study: Study, *, resamples: int = 2000, seed: int = 0) -> Findings:
    """Make all comparisons.

    Args:
        study: what was read.
        resamples: of people and of seeds.
        seed: of the resampling.
    """
    hits, people = study.validation
    worst = int(np.argmin(hits.sum(0) / np.maximum(people, 1)))
    resampling = Resampling.draw(len(study.outcomes.codes), len(study.seeds), resamples, seed)
    bench = Comparer(study, resampling, tables(study.outcomes, resampling, worst))
    config = study.config
    methods = [m.title for m in config.prune.methods]
    losses = [loss.title for loss in config.finetune.losses]
    shares = list(config.prune.macs)
    reference, plain = methods[0], losses[0]

    def criteria(
        losses: Sequence[str], shares: Sequence[float], measures: Sequence[str] = MEASURES
    ) -> list[Comparison]:
        return found(
            bench.compare(
                m, reference, [(Cell(m, x, q), Cell(reference, x, q)) for x in losses for q in shares], measures
            )
            for m in methods[1:]
        )

    def by_loss(
        methods: Sequence[str], shares: Sequence[float], measures: Sequence[str] = MEASURES
    ) -> list[Comparison]:
        return found(
            bench.compare(x, plain, [(Cell(m, x, q), Cell(m, plain, q)) for m in methods for q in shares], measures)
            for x in losses[1:]
        )

    main = adjusted([*criteria(losses, shares), *by_loss(methods, shares)])
    families = {
        "criteria": [
            Family(f"Criteria against {reference}, mean over losses and MACs", tuple(main_of(main, methods)), True)
        ],
        "losses": [Family(f"Losses against {plain}, mean over criteria and MACs", tuple(main_of(main, losses)), True)],
    }
    families["criteria"].append(
        Family(f"Criteria against {reference}, under {plain}", tuple(criteria([plain], shares)))
    )
    for method in study.design.loss_criteria:
        if method in methods:
            families["losses"].append(
                Family(f"Losses against {plain}, under {method}", tuple(by_loss([method], shares)))
            )
    everybody = [name.removeprefix("accuracy ") for name in bench.tables if name.startswith("accuracy ")]
    per_group = ("worst", *(f"accuracy {name}" for name in everybody))
    return Findings(
        study=study,
        worst=study.outcomes.names[worst],
        reference=reference,
        plain=plain,
        criteria=tuple(families["criteria"]),
        losses=tuple(families["losses"]),
        by_share=tuple(
            Family(f"Main effects at {100 * q:g} % of the MACs", (*criteria(losses, [q]), *by_loss(methods, [q])))
            for q in shares
        ),
        pairs=_pairs(bench, methods, losses, shares),
        levels=tuple(levels(bench)),
        whom=(*criteria(losses, shares, per_group), *by_loss(methods, shares, per_group)),
    )


def main_of(comparisons: Sequence[Comparison], names: Sequence[str]) -> list[Comparison]:
    """Those of a family whose choice is among ``names``."""
    return [c for c in comparisons if c.name in names]


def found(comparisons: Iterable[Comparison | None]) -> list[Comparison]:
    """Those that have networks."""
    return [c for c in comparisons if c is not None]


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's p for the worst group's accuracy, over all of them together."""
    values = holm([c.effects["worst"].p for c in comparisons])
    return [Comparison(c.name, c.against, c.effects, p) for c, p in zip(comparisons, values, strict=True)]


def _pairs(bench: Comparer, methods: Sequence[str], losses: Sequence[str], shares: Sequence[float]) -> Family | None:
    if BALANCED not in losses:
        return None
    base = (methods[0], BALANCED)
    name = " + ".join(base)
    compared = found(
        bench.compare(f"{m} + {x}", name, [(Cell(m, x, q), Cell(*base, q)) for q in shares])
        for m in methods
        for x in losses
        if (m, x) != base
    )
    return Family(f"Every pair against {name}, mean over MACs", tuple(adjusted(compared)), True) if compared else None


def levels(bench: Comparer, measures: Sequence[str] = MEASURES) -> Iterable[Level]:
    """Every kind of network that is there, with these measures and every group's accuracy."""
    accuracies = [name for name in bench.tables if name.startswith("accuracy ")]
    for k, cell in enumerate(bench.study.cells):
        if bench.study.outcomes.present[:, k].any():
            names = [*(m for m in measures if m in bench.tables), *accuracies]
            yield Level(cell, {name: bench.effect(name, Contrast(((k, None),))) for name in names})
