"""Importance classes for any ``torch_pruning`` pruner: one per criterion, all the same machinery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fair_prune_plugins.criteria import get, most_sensitive_group
from fair_prune_plugins.criteria.fairprune import AUTO, BETA
from fair_prune_plugins.criteria.taylor import Statistic
from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.torch_pruning.importances import NOT_COLLECTED, FairImportance, OnStale


class MagnitudeImportance(FairImportance):
    """Euclidean norm of the unit's weights (arXiv:1608.08710); needs no data, sees no groups."""

    def __init__(self, *, on_stale: OnStale = "error") -> None:
        super().__init__("magnitude", on_stale=on_stale)


class TaylorImportance(FairImportance):
    """Mean absolute first-order effect over all people (arXiv:1906.10771), measured on gates.

    Args:
        statistic: ``"absolute"``, ``"square"`` or ``"signed"`` (which warns) of gates, or ``"elementwise"`` of weights.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(self, *, statistic: Statistic = "absolute", on_stale: OnStale = "error") -> None:
        super().__init__("taylor", on_stale=on_stale, statistic=statistic)


class GroupBalancedTaylorImportance(FairImportance):
    """Taylor importance in which every sensitive group counts the same, whatever its size.

    Args:
        statistic: ``"absolute"``, ``"square"`` or ``"signed"`` (which warns) of gates, or ``"elementwise"`` of weights.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(self, *, statistic: Statistic = "absolute", on_stale: OnStale = "error") -> None:
        super().__init__("group_balanced_taylor", on_stale=on_stale, statistic=statistic)


class WorstGroupTaylorImportance(FairImportance):
    """The largest of the sensitive groups' own Taylor importances.

    Args:
        statistic: ``"absolute"``, ``"square"`` or ``"signed"`` (which warns) of gates, or ``"elementwise"`` of weights.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(self, *, statistic: Statistic = "absolute", on_stale: OnStale = "error") -> None:
        super().__init__("worst_group_taylor", on_stale=on_stale, statistic=statistic)


class FairGRAPEImportance(FairImportance):
    """FairGRAPE's greedy selection on units (arXiv:2207.10888): every group keeps its share of each layer's importance.

    Args:
        statistic: the importance whose shares are kept: ``"square"``, or the paper's own, ``"elementwise"``, from every
            weight's gradient.
        target: keep the shares of the model as it is (``"current"``, the paper) or of the dense one (``"dense"``).
        on_stale: see :class:`FairImportance`.
    """

    def __init__(
        self,
        *,
        statistic: Statistic = "square",
        target: Literal["current", "dense"] = "current",
        on_stale: OnStale = "error",
    ) -> None:
        super().__init__("fairgrape", on_stale=on_stale, statistic=statistic, target=target)


class FairPruneImportance(FairImportance):
    """FairPrune on units (arXiv:2203.02110): what the unprivileged group needs stays, what only others need goes.

    Scores are signed, and go to the host as they are: none of its normalisers is used, which could turn their order
    around.

    Args:
        statistic: Fisher information by gates (``"square"``) or by weights, the paper's own (``"elementwise"``); both
            from every person's own derivatives.
        unprivileged: name of the group to protect, or names; ``"auto"`` takes the one with the largest mean squared
            derivative over the model (our choice), see :attr:`unprivileged`.
        beta: how much the others' need counts for removal.
        weighting: ``(a, b)`` instead of ``(1, -beta)``; StructuredFairPrune has ``(9, -5)``.
        over: a side of several groups is their mean over ``"groups"`` or over all their ``"people"``.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(
        self,
        *,
        statistic: Literal["square", "elementwise"] = "square",
        unprivileged: str | Sequence[str] = AUTO,
        beta: float = BETA,
        weighting: Sequence[float] | None = None,
        over: Literal["groups", "people"] = "groups",
        on_stale: OnStale = "error",
    ) -> None:
        super().__init__(
            "fairprune",
            on_stale=on_stale,
            statistic=statistic,
            unprivileged=unprivileged,
            beta=beta,
            weighting=weighting,
            over=over,
        )

    @property
    def unprivileged(self) -> tuple[str, ...]:
        """The groups that are protected, known before collecting unless it is ``"auto"``.

        Raises:
            ScoreError: ``"auto"``, and nothing was collected yet.
        """
        asked = self.options["unprivileged"]
        if asked != AUTO:
            return (asked,) if isinstance(asked, str) else tuple(asked)
        if self.statistics is None:
            raise ScoreError(NOT_COLLECTED.format(importance=self))
        any_units = self.statistics.of(next(iter(self.statistics.columns)))
        return (most_sensitive_group(any_units, self.options["statistic"]),)


class SNNLImportance(FairImportance):
    """SCP's channel sensitivity on units (arXiv:2405.08681): those that tell sensitive groups apart go first.

    ``collect`` needs groups and no loss.

    Args:
        temperature: of the soft nearest neighbour loss.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(self, *, temperature: float = 1.0, on_stale: OnStale = "error") -> None:
        super().__init__("snnl", on_stale=on_stale, temperature=temperature)


class RankMixImportance(FairImportance):
    """The weighted mean of several criteria's ranks; ``collect`` measures what all of them need.

    Args:
        weights: names of registered criteria and what they count; half ``group_balanced_taylor``, half ``fairprune`` if
            absent.
        options: options of members, by name.
        on_stale: see :class:`FairImportance`.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        on_stale: OnStale = "error",
    ) -> None:
        super().__init__("rank_mix", on_stale=on_stale, weights=weights, options=options)


IMPORTANCES: dict[str, type[FairImportance]] = {
    "magnitude": MagnitudeImportance,
    "taylor": TaylorImportance,
    "group_balanced_taylor": GroupBalancedTaylorImportance,
    "worst_group_taylor": WorstGroupTaylorImportance,
    "fairgrape": FairGRAPEImportance,
    "fairprune": FairPruneImportance,
    "snnl": SNNLImportance,
    "rank_mix": RankMixImportance,
}


def importance(name: str, *, on_stale: OnStale = "error", **options: Any) -> FairImportance:
    """The importance of any registered criterion, by name.

    Raises:
        InputError: no such criterion or option.
    """
    get(name).check_options(options)
    if name in IMPORTANCES:
        return IMPORTANCES[name](on_stale=on_stale, **options)
    return FairImportance(name, on_stale=on_stale, **options)
