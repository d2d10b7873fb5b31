"""Choose thresholds on validation people.

Nothing here may see test people: choose, keep the rule, then judge it once elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels
from fair_prune_plugins.postprocessing.cuts import Cuts
from fair_prune_plugins.postprocessing.equal_rates import gaps, narrowest, rates
from fair_prune_plugins.postprocessing.rules import Cut, OutputCuts, ThresholdRule, output_names
from fair_prune_plugins.postprocessing.scores import BoolArray, IntArray, check_rows, scores, thresholdable

Objective = Literal["match_labels", "match_dense", "equal_opportunity", "equalized_odds", "worst_group"]

BAD_OBJECTIVE = "objective must be one of {allowed}, got {got!r}"
DENSE_NEEDED = "the objective match_dense needs dense_logits=, the dense model's logits for the same people"
BUDGET_RANGE = "budget is the share of people who may be decided wrongly in addition, from 0 up to 1; got {budget}"
TOO_FEW_GROUPS = (
    "{objective} compares groups, and {have} of {total} groups by {attribute} can be: each needs {minimum} people"
    "{labels}. Choose on more people, use coarser groups or lower minimum="
)
BOTH_LABELS = " and people of both labels"
OWN_CUT = (
    "{output}: {names} too small (under {minimum} people){labels} to have a threshold of their own or to be compared."
)
NOT_EXACT = "{output}{who}: people of equal score cannot be parted: {got} people are decided 1, asked were {target}."


def choose_thresholds(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    groups: GroupLabels,
    objective: Objective,
    *,
    per_group: bool = False,
    dense_logits: npt.ArrayLike | None = None,
    budget: float = 0.01,
    minimum: int = SMALL_GROUP,
    names: Sequence[str] | None = None,
) -> ThresholdRule:
    """Choose thresholds of a binary or multi-label model, each output by itself.

    - ``match_labels``: as many people are decided 1 as are 1, the threshold calibration of Iofinova, Peste & Alistarh
      (arXiv 2304.12622), which undoes the under-prediction of rare labels that pruning brings.
    - ``match_dense``: as many as the dense model decides 1; ``labels`` are not looked at.
    - ``equal_opportunity``, ``equalized_odds``: the smallest difference between groups in true positive rates, or in
      true and false positive rates, at which no more than ``budget`` of all people are lost in accuracy against the
      model's own threshold. Decisions stay certain; :func:`~fair_prune_plugins.postprocessing.choose_with_fairlearn`
      makes the rates equal by lottery.
    - ``worst_group``: the highest accuracy of the worst group.

    Equally good thresholds: the most accurate one (where accuracy is not itself the goal), then the one that changes
    fewest decisions, then the stricter one. People of equal score are never parted.

    Args:
        labels: of validation people: 0 or 1, ``[N]``, or ``[N, A]`` for multi-label tasks.
        logits: the model's: ``[N]``, ``[N, 1]``, ``[N, 2]``, or ``[N, A]``.
        groups: the sensitive group of each person.
        objective: what to choose for.
        per_group: a threshold for each group instead of one for everybody. **The group of a person is then used when a
            decision is made about that person**, which the law or good taste may forbid. People of unknown group, and
            of groups that are too small, get the threshold for everybody.
        dense_logits: the dense model's, for ``match_dense``.
        budget: share of people, for ``equal_opportunity`` and ``equalized_odds``.
        minimum: groups of fewer people get no threshold of their own and are not compared.
        names: of the outputs.

    Raises:
        InputError: unusable inputs, more than two classes, or fewer than two groups that can be compared where the
            objective compares groups.
    """
    if objective not in get_args(Objective):
        raise InputError(BAD_OBJECTIVE.format(allowed=list(get_args(Objective)), got=objective))
    if not 0 <= budget < 1:
        raise InputError(BUDGET_RANGE.format(budget=budget))
    task, score, truth = thresholdable(labels, logits, groups)
    wanted = truth
    if objective == "match_dense":
        if dense_logits is None:
            raise InputError(DENSE_NEEDED)
        dense = scores(dense_logits, task, "dense_logits")
        check_rows(logits=score, dense_logits=dense)
        if dense.shape != score.shape:
            raise InputError(f"the dense model has {dense.shape[1]} outputs, the pruned one {score.shape[1]}")
        wanted = (dense > 0).astype(np.int64)
    outputs, notes = [], []
    for i, name in enumerate(output_names(names, score.shape[1])):
        one = _Output(name, score[:, i], truth[:, i], wanted[:, i], groups, objective, per_group, budget, minimum)
        outputs.append(one.choose())
        notes += one.notes
    return ThresholdRule(
        task, objective, tuple(outputs), groups.attribute if per_group else None, notes=tuple(dict.fromkeys(notes))
    )


def comparable(labels: IntArray, groups: GroupLabels, minimum: int, *, both_labels: bool) -> BoolArray:
    """Which groups have ``minimum`` people, and people of both labels where that is asked for; bool ``[G]``."""
    enough: BoolArray = groups.counts >= max(minimum, 1)
    if both_labels:
        for label in (0, 1):
            mine = groups.codes[(labels == label) & (groups.codes >= 0)]
            enough &= np.bincount(mine, minlength=len(groups.names)) > 0
    return enough


class _Output:
    """The choice for one output."""

    def __init__(
        self,
        name: str,
        score: npt.NDArray[np.float64],
        labels: IntArray,
        wanted: IntArray,
        groups: GroupLabels,
        objective: Objective,
        per_group: bool,
        budget: float,
        minimum: int,
    ) -> None:
        self.name, self.objective, self.groups, self.minimum = name, objective, groups, minimum
        self.per_group = per_group
        self.notes: list[str] = []
        self.needs_both = objective in ("equal_opportunity", "equalized_odds")
        self.comparing = self.needs_both or objective == "worst_group"
        rows = np.where(groups.codes < 0, len(groups.names), groups.codes)
        self.all = Cuts.of(score, labels, rows, len(groups.names) + 1)
        self.own = [Cuts.of(score[mine], labels[mine]) for mine in (rows == g for g in range(len(groups.names)))]
        self.targets = [int(wanted[rows == g].sum()) for g in range(len(groups.names))]
        self.target = int(wanted.sum())
        self.eligible = comparable(labels, groups, minimum, both_labels=self.needs_both)
        # Rounded first: 0.29 of 100 people is 28.999... of them in floating point.
        self.need = int(self.all.right[:, self.all.own].sum()) - int(np.floor(round(budget * len(score), 9)))

    def choose(self) -> OutputCuts:
        if self.comparing or self.per_group:
            self._say_who_is_left_out()
        if self.comparing and self.eligible.sum() < 2:
            raise InputError(
                TOO_FEW_GROUPS.format(
                    objective=self.objective,
                    have=int(self.eligible.sum()),
                    total=len(self.eligible),
                    attribute=self.groups.attribute,
                    minimum=self.minimum,
                    labels=BOTH_LABELS if self.needs_both else "",
                )
            )
        common = self._common()
        chosen: dict[str, Cut] = {}
        if self.per_group:
            for g, index in self._each(common).items():
                chosen[self.groups.names[g]] = self.own[g].cut(index)
        return OutputCuts(self.name, self.all.cut(common), chosen)

    def _common(self) -> int:
        """One cut for everybody."""
        cuts, right = self.all, self.all.right.sum(axis=0)
        if not self.comparing:
            return self._matched(cuts, self.target, "" if not self.per_group else ", everybody")
        mine = Cuts(cuts.values, cuts.true_positives[:-1][self.eligible], cuts.false_positives[:-1][self.eligible])
        if self.objective == "worst_group":
            return cuts.best((mine.right / mine.people[:, None]).min(axis=0).round(12), right)
        spread = gaps(rates(mine, false_positives=self.objective == "equalized_odds"))
        return cuts.best(np.where(right >= self.need, -spread, -np.inf), right)

    def _each(self, common: int) -> dict[int, int]:
        """A cut per group that may have one."""
        able = np.flatnonzero(self.eligible).tolist()
        if not self.comparing:
            return {g: self._matched(self.own[g], self.targets[g], f", {self.groups.names[g]}") for g in able}
        if self.objective == "worst_group":
            return {g: self.own[g].best(self.own[g].right[0]) for g in able}
        others = int(self.all.right[np.append(~self.eligible, True), common].sum())
        found = narrowest(
            [self.own[g] for g in able],
            self.need - others,
            false_positives=self.objective == "equalized_odds",
        )
        return dict(zip(able, found, strict=True))

    def _matched(self, cuts: Cuts, target: int, who: str) -> int:
        index = cuts.best(-np.abs(cuts.selected - target))
        got = int(cuts.selected[index])
        if got != target:
            self.notes.append(NOT_EXACT.format(output=self.name, who=who, got=got, target=target))
        return index

    def _say_who_is_left_out(self) -> None:
        left_out = [name for name, able in zip(self.groups.names, self.eligible, strict=True) if not able]
        if left_out:
            labels = " or without people of both labels" if self.needs_both else ""
            names = f"{', '.join(left_out)} {'is' if len(left_out) == 1 else 'are'}"
            self.notes.append(OWN_CUT.format(output=self.name, names=names, minimum=self.minimum, labels=labels))
