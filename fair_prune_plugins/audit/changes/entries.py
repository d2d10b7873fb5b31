"""One pruned model against the dense one: every question, for everybody and for each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fair_prune_plugins.audit.changes.counting import (
    Counted,
    Tally,
    changed_answers,
    count,
    flag_codes,
    rows_of,
    tally,
)
from fair_prune_plugins.audit.changes.result import CLASS, Changed, Flips, McNemar, Question, Touched
from fair_prune_plugins.audit.changes.testing import mcnemar
from fair_prune_plugins.audit.changes.votes import (
    BoolArray,
    CountArray,
    Votes,
    farthest,
    question_names,
    taxicab,
    true_answers,
)
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.measures.change_tests import holm
from fair_prune_plugins.evaluation.intervals import Estimate, Estimator
from fair_prune_plugins.evaluation.metrics import Proportion
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing.scores import FloatArray


@dataclass(frozen=True)
class Settings:
    """How to count and to estimate.

    Attributes:
        estimator: makes intervals.
        resamples: bootstrap resamples.
        minimum: groups with fewer people are flagged.
        multiclass: whether the first question is the class.
        unit: what 1 of a taxicab distance stands for.
    """

    estimator: Estimator
    resamples: int
    minimum: int
    multiclass: bool
    unit: float


class Comparison:
    """One pruned model against the dense one."""

    def __init__(
        self,
        data: AuditData,
        dense: Votes,
        pruned: Votes,
        unsure: BoolArray | None,
        settings: Settings,
        top: float,
        seeds: np.random.SeedSequence,
    ) -> None:
        self._settings, self._dense, self._pruned, self._seeds = settings, dense, pruned, seeds
        self._names = question_names(data)
        self._people = len(data.people)
        self._knows_unsure = unsure is not None
        truth = true_answers(data)
        self.distances: list[CountArray] = []
        self.cutoffs: list[int | None] = []
        self._codes, self._changed = [], []
        for i in range(len(self._names)):
            was, now = dense.answers[:, i], pruned.answers[:, i]
            distance = taxicab(dense, pruned, i, multiclass=settings.multiclass)
            cutoff = farthest(distance, top)
            changed = was != now
            self.distances.append(distance)
            self.cutoffs.append(cutoff)
            self._changed.append(changed)
            self._codes.append(
                flag_codes(
                    {
                        "dense_right": was == truth[:, i],
                        "pruned_right": now == truth[:, i],
                        "changed": changed,
                        "dense_positive": was == 1,
                        "unsure": np.zeros(len(was), dtype=bool) if unsure is None else unsure[:, i],
                        "far": np.zeros(len(was), dtype=bool) if cutoff is None else distance >= cutoff,
                    }
                )
            )

    def questions(self) -> tuple[Question, ...]:
        """Everybody, question by question."""
        everyone = self._entries(None)
        unit = self._settings.unit
        return tuple(
            Question(
                name,
                everyone[i],
                int(self._dense.tied[:, i].sum()),
                int(self._pruned.tied[:, i].sum()),
                None if (cutoff := self.cutoffs[i]) is None else cutoff * unit,
            )
            for i, name in enumerate(self._names)
        )

    def groups(self, groups: GroupLabels) -> tuple[Changed, ...]:
        """Questions in order, and within each the groups."""
        return self._entries(groups)

    def touched(self, groups: GroupLabels | None) -> tuple[Touched, ...]:
        """People with any answer changed, per group; everybody without groups."""
        asked = self._changed[:1] if self._settings.multiclass else self._changed
        rows, n_groups = rows_of(groups, self._people)
        tallied = tally(changed_answers(asked), rows, n_groups, self._settings.resamples, self._rng())
        some, some_draws = tallied.above_zero()
        mean, mean_draws = tallied.mean(1.0 / len(asked))
        estimator = self._settings.estimator
        entries = []
        for i in range(n_groups):
            anyone = estimator.proportion(some.at(i), some_draws.at(i))
            # With nobody touched, the exact bound of that share holds for the mean share of answers too.
            answers = anyone if not some.hits[i] else estimator.estimate(mean[i], mean_draws[:, i])
            name = None if groups is None else groups.names[i]
            entries.append(Touched(name, int(some.people[i]), anyone, answers))
        return tuple(entries)

    def _entries(self, groups: GroupLabels | None) -> tuple[Changed, ...]:
        rows, n_groups = rows_of(groups, self._people)
        resamples = self._settings.resamples
        counted, distances = [], []
        for codes, distance in zip(self._codes, self.distances, strict=True):
            rng = self._rng()
            counted.append(count(codes, rows, n_groups, resamples, rng))
            distances.append(tally(distance, rows, n_groups, resamples, rng))
        tests = self._tests(counted, grouped=groups is not None)
        return tuple(
            self._entry(name, None if groups is None else groups.names[i], i, counted[q], distances[q], tests[q][i])
            for q, name in enumerate(self._names)
            for i in range(n_groups)
        )

    def _entry(self, name: str, group: str | None, i: int, counted: Counted, distance: Tally, test: McNemar) -> Changed:
        people = int(counted.observed["people"][i])
        found = int(counted.observed["exemplars"][i])
        mean, mean_draws = distance.mean(self._settings.unit)
        of_class = name == CLASS and self._settings.multiclass

        def share(what: str, among: str = "people") -> Estimate:
            hits = Proportion(counted.observed[what][i], counted.observed[among][i])
            draws = Proportion(counted.draws[what][:, i], counted.draws[among][:, i])
            return self._settings.estimator.proportion(hits, draws)

        return Changed(
            question=name,
            group=group,
            people=people,
            too_small=people < self._settings.minimum,
            exemplars=found,
            share=share("exemplars"),
            share_of_all=self._settings.estimator.proportion(
                Proportion(counted.observed["exemplars"][i], np.asarray(counted.all_exemplars)),
                Proportion(counted.draws["exemplars"][:, i], counted.all_exemplars_draws),
            ),
            share_of_people=people / self._people,
            flips=Flips(
                right_to_wrong=share("right_to_wrong"),
                wrong_to_right=share("wrong_to_right"),
                wrong_to_wrong=share("wrong_to_wrong") if of_class else None,
                positive_to_negative=None if of_class else share("positive_to_negative"),
                negative_to_positive=None if of_class else share("negative_to_positive"),
            ),
            unsure=share("unsure") if self._knows_unsure else Estimate(None, None),
            unsure_exemplars=share("unsure_exemplars", "exemplars") if self._knows_unsure else Estimate(None, None),
            dense_error=share("dense_error"),
            pruned_error=share("pruned_error"),
            dense_error_of_exemplars=share("dense_error_of_exemplars", "exemplars"),
            pruned_error_of_exemplars=share("pruned_error_of_exemplars", "exemplars"),
            distance=self._settings.estimator.estimate(mean[i], mean_draws[:, i]),
            far=share("far"),
            test=test,
        )

    def _tests(self, counted: list[Counted], *, grouped: bool) -> list[list[McNemar]]:
        """McNemar's test per question and group, with both corrections."""
        lost = np.stack([c.observed["right_to_wrong"] for c in counted])
        gained = np.stack([c.observed["wrong_to_right"] for c in counted])
        people = np.stack([c.observed["people"] for c in counted])
        p = mcnemar(lost, gained)
        counts = people >= max(self._settings.minimum, 1) if grouped else people > 0
        family: FloatArray = np.where(counts, p, np.nan)
        over_groups = np.stack([holm(row) for row in family]) if grouped else np.full(p.shape, np.nan)
        over_all = holm(family)
        return [
            [
                McNemar(
                    int(lost[q, i]),
                    int(gained[q, i]),
                    float(p[q, i]) if people[q, i] else None,
                    _number(over_groups[q, i]),
                    _number(over_all[q, i]),
                )
                for i in range(p.shape[1])
            ]
            for q in range(p.shape[0])
        ]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._seeds.spawn(1)[0])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
