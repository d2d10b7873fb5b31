"""Effects with intervals from networks of several seeds, all judged on the same people.

What varies are two things that cross: seeds (another seed gives other networks) and people (other test people). A
resample draws seeds with replacement, and one sample of people for all of them. The two are also resampled one at a
time, because a resample of both counts their interaction (this seed's networks are right on this person) three times
instead of once, and because a handful of seeds, resampled, varies too little:

    variance = k V(seeds) + V(people) - k V(both - seeds - people),

with ``k = S / (S - 1)`` for ``S`` seeds; the last term, taken resample by resample, is the interaction's. It is never
taken below ``k V(seeds)`` or ``V(people)``. The interval is Student's t with Satterthwaite's degrees of freedom.
For means this is two-way clustering (Cameron, Gelbach & Miller 2011; Owen, "The pigeonhole bootstrap", 2007); the
resampling carries it to gaps and deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats

from fair_prune_plugins.evaluation.metrics import difference, highest, sample_deviation

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

CHUNK = 250
"""Resamples of people at a time: bounds the memory."""


@dataclass(frozen=True)
class Outcomes:
    """Who was classified rightly by which network.

    Attributes:
        right: ``[S, K, P]``: seed, cell (kind of network), person. Cell 0 is the dense network.
        present: ``[S, K]``: whether there is such a network; where not, ``right`` means nothing.
        codes: ``[P]``, the people's group.
        names: of the groups, in order of the codes.
        margins: coarser groups by attribute: each group's coarse group, by name.
    """

    right: BoolArray
    present: BoolArray
    codes: IntArray
    names: tuple[str, ...]
    margins: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """One measure of every network.

    Attributes:
        observed: ``[S, K]``.
        resampled: ``[R, S, K]``, for resampled people.
    """

    observed: FloatArray
    resampled: FloatArray


@dataclass(frozen=True)
class Contrast:
    """A mean over strata of the paired difference between two cells, over the seeds that have both.

    Attributes:
        strata: pairs of cells (plus, minus); minus ``None`` takes plus as it is.
    """

    strata: tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class Effect:
    """A number and what is known of it.

    Attributes:
        value: the contrast.
        low: lower end of the 95 % interval.
        high: upper end.
        error: standard error.
        p: two-sided, of the value being 0, for this contrast alone.
        seeds: in the stratum that has the fewest.
        strata: that were averaged.
    """

    value: float
    low: float
    high: float
    error: float
    p: float
    seeds: int
    strata: int


@dataclass(frozen=True)
class Resampling:
    """Resamples, the same for all measures and contrasts.

    Attributes:
        people: counts ``[R, P]``.
        seeds: counts ``[R, S]``.
    """

    people: IntArray
    seeds: IntArray

    @classmethod
    def draw(cls, people: int, seeds: int, resamples: int, seed: int = 0) -> Resampling:
        """As many people, and as many seeds, as there are, with replacement."""
        rng = np.random.default_rng(seed)
        return cls(
            rng.multinomial(people, np.full(people, 1 / people), size=resamples).astype(np.int64),
            rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.int64),
        )


@dataclass(frozen=True)
class Measures:
    """All measures, from hits ``[..., S, K, G]`` and people ``[..., 1, 1, G]``.

    ``worst`` is the number of the worst group, fixed beforehand.
    """

    hits: FloatArray
    people: FloatArray
    worst: int

    @cached_property
    def by_group(self) -> FloatArray:
        """Accuracy ``[..., S, K, G]``; NaN for a group that a resample lacks."""
        out = np.full(self.hits.shape, np.nan)
        people = np.broadcast_to(self.people, self.hits.shape)
        result: FloatArray = np.divide(self.hits, people, out=out, where=people > 0)
        return result

    @cached_property
    def everyone(self) -> FloatArray:
        """Accuracy of all people ``[..., S, K]``."""
        result: FloatArray = self.hits.sum(-1) / self.people.sum(-1)
        return result

    @cached_property
    def _change(self) -> FloatArray:
        return self.by_group - self.by_group[..., :1, :]

    @cached_property
    def _excess(self) -> FloatArray:
        """Accuracy lost beyond what everyone lost, against the dense network of the same seed."""
        everyone = self.everyone - self.everyone[..., :1]
        return everyone[..., None] - self._change

    def all(self) -> dict[str, FloatArray]:
        """By name, each ``[..., S, K]``."""
        return {
            "everyone": self.everyone,
            "worst": self.by_group[..., self.worst],
            "gap": difference(self.by_group),
            "rho": sample_deviation(self._change),
            "excess": highest(self._excess),
            "beyond": self._excess[..., self.worst],
        }


def tables(outcomes: Outcomes, resampling: Resampling, worst: int) -> dict[str, Table]:
    """Every measure of every network, as observed and for every resample of people.

    Returns:
        ``everyone``, ``worst``, ``gap``, ``rho``, ``excess`` (the largest), ``beyond`` (the worst group's), for each
        margin ``gap ATTRIBUTE`` and ``rho ATTRIBUTE``, and ``accuracy NAME`` for each group and coarse group.
    """
    ones = np.ones((1, len(outcomes.codes)), dtype=np.int64)
    observed = {name: values[0] for name, values in _measured(outcomes, ones, worst).items()}
    chunks = [
        _measured(outcomes, resampling.people[start : start + CHUNK], worst)
        for start in range(0, len(resampling.people), CHUNK)
    ]
    return {name: Table(observed[name], np.concatenate([chunk[name] for chunk in chunks])) for name in observed}


def _measured(outcomes: Outcomes, weights: IntArray, worst: int) -> dict[str, FloatArray]:
    hits, people = _counts(outcomes, weights)
    fine = Measures(hits, people, worst)
    found = fine.all()
    found |= {f"accuracy {name}": fine.by_group[..., g] for g, name in enumerate(outcomes.names)}
    for attribute, coarse in outcomes.margins.items():
        names = sorted(set(coarse))
        belongs = np.array([[c == name for name in names] for c in coarse], dtype=np.float64)
        merged = Measures(hits @ belongs, people @ belongs, 0)
        found |= {f"{name} {attribute}": merged.all()[name] for name in ("gap", "rho")}
        found |= {f"accuracy {name}": merged.by_group[..., g] for g, name in enumerate(names)}
    return {name: np.where(outcomes.present, values, np.nan) for name, values in found.items()}


def _counts(outcomes: Outcomes, weights: IntArray) -> tuple[FloatArray, FloatArray]:
    """Right answers ``[R, S, K, G]`` and people ``[R, 1, 1, G]`` under weights ``[R, P]``."""
    seeds, cells, _ = outcomes.right.shape
    groups = len(outcomes.names)
    hits = np.zeros((len(weights), seeds, cells, groups))
    people = np.zeros((len(weights), 1, 1, groups))
    for g in range(groups):
        members = outcomes.codes == g
        # Whole numbers far below 2 ** 24: float32 is exact, and twice as fast.
        drawn = weights[:, members].astype(np.float32)
        flat = outcomes.right[:, :, members].reshape(seeds * cells, -1).astype(np.float32)
        hits[..., g] = (drawn @ flat.T).reshape(len(weights), seeds, cells)
        people[:, 0, 0, g] = drawn.sum(1)
    return hits, people


def contrast_value(values: FloatArray, contrast: Contrast, seeds: npt.NDArray[np.integer]) -> FloatArray:
    """A contrast under weights of the seeds.

    Args:
        values: ``[..., S, K]``, NaN where there is no network.
        contrast: which cells.
        seeds: weights ``[..., S]``; leading axes are broadcast.

    Returns:
        ``[...]``; NaN where a stratum has no seed of weight.
    """
    per_stratum = []
    for plus, minus in contrast.strata:
        paired = values[..., plus] if minus is None else values[..., plus] - values[..., minus]
        weight = np.where(np.isnan(paired), 0, seeds)
        total = weight.sum(-1)
        out = np.full(total.shape, np.nan)
        per_stratum.append(np.divide((np.nan_to_num(paired) * weight).sum(-1), total, out=out, where=total > 0))
    result: FloatArray = np.mean(per_stratum, axis=0)
    return result


def shared_seeds(present: BoolArray, stratum: tuple[int, int | None]) -> int:
    """Seeds that have both cells of a stratum."""
    plus, minus = stratum
    both = present[:, plus] if minus is None else present[:, plus] & present[:, minus]
    return int(both.sum())


def effect(table: Table, contrast: Contrast, resampling: Resampling, confidence: float = 0.95) -> Effect:
    """A contrast of one measure, with its interval; see the module's docstring.

    With a single seed the interval says what other people would change, and nothing of other seeds; p is then 1.
    """
    present = ~np.isnan(table.observed)
    number = min(shared_seeds(present, stratum) for stratum in contrast.strata)
    all_seeds = np.ones(table.observed.shape[0], dtype=np.int64)
    value = float(contrast_value(table.observed, contrast, all_seeds))
    people = contrast_value(table.resampled, contrast, all_seeds)
    by_people = float(np.nanvar(people))
    if number < 2:
        variance, freedom = by_people, np.inf
    else:
        seeds = contrast_value(table.observed, contrast, resampling.seeds)
        both = contrast_value(table.resampled, contrast, resampling.seeds)
        by_seeds, crossed = float(np.nanvar(seeds)), float(np.nanvar(both - seeds - people))
        few = number / (number - 1)
        variance = max(few * by_seeds + by_people - few * crossed, few * by_seeds, by_people)
        share = few * by_seeds / variance if variance else 1.0
        freedom = (number - 1) / share**2 if share else np.inf
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    if number < 2:
        return Effect(value, value - half, value + half, error, 1.0, number, len(contrast.strata))
    p = float(2 * stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    return Effect(value, value - half, value + half, error, p, number, len(contrast.strata))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: what is below 0.05 is shown with an error of 5 % over all comparisons together."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    highest_yet = 0.0
    for rank, index in enumerate(order):
        highest_yet = max(highest_yet, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest_yet
    return [float(value) for value in adjusted]
