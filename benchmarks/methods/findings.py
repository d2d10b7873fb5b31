"""The comparisons with plain Taylor, and what they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fairface.effects import Resampling, tables
from benchmarks.fairface.findings import Comparer, Comparison, Family, Level, adjusted, found, levels
from benchmarks.fairface.results import Cell
from benchmarks.methods.results import MethodsStudy

MEASURES = ("worst", "everyone", "rho", "excess", "beyond", "gap")
SMALLEST_GROUP = 50
"""Validation people that a group needs to be taken for the worst: fewer make its accuracy a matter of chance."""


@dataclass(frozen=True)
class MethodsFindings:
    """Everything that the page says, aggregated over people.

    Attributes:
        methods_study: what was read.
        worst: the worst group's name, fixed on validation people.
        reference: the method that others are compared with.
        plain: the loss that others are compared with.
        main: each method against the reference under the plain loss, mean over the MACs.
        by_share: the same at each share of the MACs; corrected over all shares together.
        combined: each pair of a method and another loss against the reference under the plain loss, mean over MACs.
        levels: every kind of network that is there.
    """

    methods_study: MethodsStudy
    worst: str
    reference: str
    plain: str
    main: Family
    by_share: tuple[tuple[float, Family], ...]
    combined: Family
    levels: tuple[Level, ...]

    def at(self, share: float) -> list[Comparison]:
        """The comparisons at one share of the MACs."""
        return [c for q, family in self.by_share if q == share for c in family.comparisons]


def find(read: MethodsStudy, *, resamples: int = 2000, seed: int = 0) -> MethodsFindings:
    """Make all comparisons.

    Args:
        read: what was read.
        resamples: of people and of seeds.
        seed: of the resampling.
    """
    study = read.study
    hits, people = study.validation
    large = people >= min(SMALLEST_GROUP, people.max())
    worst = int(np.argmin(np.where(large, hits.sum(0) / np.maximum(people, 1), np.inf)))
    resampling = Resampling.draw(len(study.outcomes.codes), len(study.seeds), resamples, seed)
    compared = Comparer(study, resampling, tables(study.outcomes, resampling, worst))
    methods = [m.title for m in study.config.prune.methods]
    reference, plain = methods[0], study.config.finetune.losses[0].title
    shares = list(study.config.prune.macs)

    def against(pairs: Iterable[tuple[str, str]], shares: Sequence[float]) -> list[Comparison]:
        return found(
            compared.compare(
                m if x == plain else f"{m} + {x}",
                reference,
                [(Cell(m, x, q), Cell(reference, plain, q)) for q in shares],
                MEASURES,
            )
            for m, x in pairs
        )

    alone = [(m, plain) for m in methods[1:]]
    pairs = list(dict.fromkeys((c.method, c.loss) for c in study.cells if c.method and c.loss != plain))
    single = {q: against(alone, [q]) for q in shares}
    corrected = iter(adjusted([c for q in shares for c in single[q]]))
    return MethodsFindings(
        methods_study=read,
        worst=study.outcomes.names[worst],
        reference=reference,
        plain=plain,
        main=Family(
            f"Methods against {reference}, mean over the MACs", tuple(adjusted(against(alone, shares))), adjusted=True
        ),
        by_share=tuple(
            (q, Family(f"At {100 * q:g} % of the MACs", tuple(next(corrected) for _ in single[q]), adjusted=True))
            for q in shares
        ),
        combined=Family(
            f"Methods with other losses against {reference} with {plain}, mean over the MACs",
            tuple(adjusted(against(pairs, shares))),
            adjusted=True,
        ),
        levels=tuple(levels(compared, MEASURES)),
    )
