"""Typed readings of the results: the numbers that the table, the pictures and the words share.

``results.json`` keeps each part's own dict. Here, and only here, is known where in those dicts a number stands; a
number that is not there (a run without timing, a group without people) reads as ``None``, never as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.pareto import pareto_front
from fair_prune_plugins.reporting.estimates import UNMEASURED, Estimate
from fair_prune_plugins.workflow.results import JsonDict, ModelResult, RunResults

SAME_LATENCY = 0.03
"""Latencies that differ by no more than this share count as equal on the Pareto front: pruned networks of the same
widths differ by as much through noise alone."""

NOT_AN_EVALUATION = "expected the dict of Evaluation.as_dict(), which has {key!r}; found {found}"


@dataclass(frozen=True)
class GroupReading:
    """One sensitive group under one model; accuracies and changes are shares, 0 to 1.

    Attributes:
        name: of the group.
        n: test people in it.
        accuracy: with its interval.
        change: from the reference model, with the paired interval.
        excess_gap: what the group lost beyond what everyone lost (CEAG's psi).
        too_small: too few people to judge.
    """

    name: str
    n: int
    accuracy: Estimate
    change: Estimate
    excess_gap: Estimate
    too_small: bool


@dataclass(frozen=True)
class EvaluationReading:
    """What ``Evaluation.as_dict()`` says.

    Attributes:
        n: test people.
        unknown: of these, people whose group is not known.
        accuracy: of everyone.
        change: of everyone, from the reference model, with the paired interval.
        groups: in the run's order.
        worst_group: its name.
        worst_on_this_data: whether the worst group was picked on the test people themselves.
        worst_accuracy: of the worst group.
        gap: largest minus smallest accuracy over the groups.
        gap_change: gap minus the reference model's, with the paired interval; positive is wider.
        gap_by_chance: the gap that equally well served groups of these sizes stay below.
        rho: sample standard deviation over groups of the change (FairGRAPE's disparity).
        max_excess_gap: the most that any group lost beyond what everyone lost (CEAG's max psi).
        confidence: of the intervals.
        resamples: of the bootstrap.
        minimum: fewer people than this is too small to judge.
        notes: what a reader must know before reading the numbers.
    """

    n: int
    unknown: int
    accuracy: Estimate
    change: Estimate
    groups: tuple[GroupReading, ...]
    worst_group: str | None
    worst_on_this_data: bool
    worst_accuracy: Estimate
    gap: Estimate
    gap_change: Estimate
    gap_by_chance: float | None
    rho: Estimate
    max_excess_gap: Estimate
    confidence: float
    resamples: int
    minimum: int
    notes: tuple[str, ...]

    def group(self, name: str | None) -> GroupReading | None:
        """The group of that name, if it is there."""
        return next((g for g in self.groups if g.name == name), None)

    @property
    def worst(self) -> GroupReading | None:
        """The worst group's numbers."""
        return self.group(self.worst_group)

    @property
    def judged(self) -> tuple[GroupReading, ...]:
        """The groups that are large enough to judge and have a change with an interval."""
        return tuple(g for g in self.groups if not g.too_small and g.change.half_width is not None)

    @property
    def losers(self) -> tuple[GroupReading, ...]:
        """Judged groups whose whole interval lies below zero, the largest loss first."""
        lost = [g for g in self.judged if g.change.excludes_zero and (g.change.high or 0) < 0]
        return tuple(sorted(lost, key=lambda g: g.change.value or 0))

    @property
    def winners(self) -> tuple[GroupReading, ...]:
        """Judged groups whose whole interval lies above zero, the largest gain first."""
        won = [g for g in self.judged if g.change.excludes_zero and (g.change.low or 0) > 0]
        return tuple(sorted(won, key=lambda g: -(g.change.value or 0)))


@dataclass(frozen=True)
class LatencyReading:
    """One model's part of ``LatencyReport.as_dict()``; milliseconds.

    Attributes:
        p50: median with its interval.
        p90: 90th percentile with its interval.
        p99: 99th percentile with its interval.
        speedup: the dense model's p50 over this one's, with the interval from paired rounds.
        theoretical: the dense model's MACs over this one's.
        realised: realised over theoretical speed-up (1: every MAC saved is time saved).
        fast_layout: share of convolutions in the runtime's fast layout, ``None`` where there is none.
        dispersion: how much the rounds' medians vary, relative to their mean.
    """

    p50: Estimate = UNMEASURED
    p90: Estimate = UNMEASURED
    p99: Estimate = UNMEASURED
    speedup: Estimate = UNMEASURED
    theoretical: float | None = None
    realised: float | None = None
    fast_layout: float | None = None
    dispersion: float | None = None


@dataclass(frozen=True)
class ParityReading:
    """What ``ParityReport.as_dict()`` says.

    Attributes:
        error: largest difference between ONNX Runtime and torch over the outputs' scale.
        differing: samples on which the predicted class differs.
        samples: compared.
        batch_sizes: at which it was compared.
        tolerance: largest accepted error.
    """

    error: float | None = None
    differing: int | None = None
    samples: int | None = None
    batch_sizes: tuple[int, ...] = ()
    tolerance: float | None = None


@dataclass(frozen=True)
class ModelReading:
    """One model with everything relative to the dense one.

    Attributes:
        result: what the run recorded.
        evaluation: against the dense model.
        against: against other pruned models, by their names.
        latency: how fast it answers.
        parity: how exactly the ONNX file follows the torch model.
        macs_share: MACs over the dense model's.
        params_share: parameters over the dense model's.
        on_front: whether no other model is at least as fast and as accurate for its worst group, and better in one of
            them.
    """

    result: ModelResult
    evaluation: EvaluationReading
    against: Mapping[str, EvaluationReading]
    latency: LatencyReading
    parity: ParityReading
    macs_share: float
    params_share: float
    on_front: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return self.result.name

    @property
    def is_dense(self) -> bool:
        """Whether it is the model before pruning."""
        return self.result.is_dense

    @property
    def speedup(self) -> float | None:
        """The dense model's p50 over this one's, ``None`` where this one was not timed."""
        return 1.0 if self.is_dense and self.latency.p50.value is not None else self.latency.speedup.value

    @property
    def is_faster(self) -> bool:
        """Whether it was shown to be faster than dense: the whole interval of its speed-up lies above 1."""
        return self.latency.speedup.low is not None and self.latency.speedup.low > 1


@dataclass(frozen=True)
class RunReading:
    """A whole run, ready to be shown."""

    results: RunResults
    models: tuple[ModelReading, ...]

    @property
    def dense(self) -> ModelReading:
        """The model before pruning."""
        return next(m for m in self.models if m.is_dense)

    @property
    def pruned(self) -> tuple[ModelReading, ...]:
        """The pruned models, in the order of the results."""
        return tuple(m for m in self.models if not m.is_dense)

    @property
    def methods(self) -> tuple[str, ...]:
        """Every criterion, in order of appearance."""
        return tuple(dict.fromkeys(m.result.method for m in self.pruned if m.result.method is not None))

    @property
    def worst_groups(self) -> tuple[str, ...]:
        """The names of the models' worst groups; one name when it was fixed for all."""
        names = (m.evaluation.worst_group for m in self.models)
        return tuple(dict.fromkeys(n for n in names if n is not None))


def read_evaluation(data: JsonDict) -> EvaluationReading:
    """Read ``Evaluation.as_dict()``.

    Args:
        data: the dict.

    Raises:
        InputError: it lacks a field that every evaluation has.
    """
    try:
        against, worst = data.get("dense") or {}, data["worst_group"]
        groups = tuple(
            GroupReading(
                name=g["name"],
                n=g["n"],
                accuracy=read_estimate(g["accuracy"]),
                change=read_estimate(g["change"]),
                excess_gap=read_estimate(g["excess_gap"]),
                too_small=g["too_small"],
            )
            for g in data["groups"]
        )
        return EvaluationReading(
            n=data["n"],
            unknown=data["unknown"],
            accuracy=read_estimate(data["accuracy"]),
            change=read_estimate(against.get("change")),
            groups=groups,
            worst_group=worst["name"],
            worst_on_this_data=worst["picked_on_this_data"],
            worst_accuracy=read_estimate(worst["accuracy"]),
            gap=read_estimate(data["gap"]),
            gap_change=read_estimate(against.get("gap_change")),
            gap_by_chance=data["gap_by_chance"],
            rho=read_estimate(against.get("rho")),
            max_excess_gap=read_estimate(against.get("max_excess_gap")),
            confidence=data["confidence"],
            resamples=data["resamples"],
            minimum=data["minimum"],
            notes=tuple(data["notes"]),
        )
    except KeyError as error:
        raise InputError(NOT_AN_EVALUATION.format(key=error.args[0], found=sorted(data))) from None


def read_parity(data: JsonDict) -> ParityReading:
    """Read ``ParityReport.as_dict()``; an empty dict is a model that was not exported."""
    if not data:
        return ParityReading()
    classes = data.get("classes")
    return ParityReading(
        error=data["relative"],
        differing=classes["overall"]["differ"] if classes else None,
        samples=classes["overall"]["count"] if classes else data["samples"],
        batch_sizes=tuple(data["batch_sizes"]),
        tolerance=data["tolerance"],
    )


def read_latency(data: JsonDict) -> LatencyReading:
    """Read one model's part of ``LatencyReport.as_dict()``; an empty dict is a model that was not timed."""
    if not data:
        return LatencyReading()
    return LatencyReading(
        p50=read_estimate(data["p50_ms"]),
        p90=read_estimate(data["p90_ms"]),
        p99=read_estimate(data["p99_ms"]),
        speedup=read_estimate(data["speedup"]),
        theoretical=data["theoretical"],
        realised=data["realised_share"],
        fast_layout=data["fast_share"],
        dispersion=data["dispersion"],
    )


def read_run(results: RunResults) -> RunReading:
    """Read a whole run: every number of every model, relative to the dense one, and the Pareto front.

    Raises:
        InputError: an evaluation, a latency or a parity lacks a field.
    """
    evaluations = [read_evaluation(m.evaluation) for m in results.models]
    latencies = [read_latency(m.latency) for m in results.models]
    marks = [(t.p50.value, e.worst_accuracy.value) for t, e in zip(latencies, evaluations, strict=True)]
    front = set(pareto_front(marks, tolerance=SAME_LATENCY))
    models = []
    for place, (result, evaluation, latency) in enumerate(zip(results.models, evaluations, latencies, strict=True)):
        models.append(
            ModelReading(
                result=result,
                evaluation=evaluation,
                against={name: read_evaluation(data) for name, data in result.against.items()},
                latency=latency,
                parity=read_parity(result.parity),
                macs_share=result.macs / results.dense.macs,
                params_share=result.params / results.dense.params,
                on_front=place in front,
            )
        )
    return RunReading(results, tuple(models))


def read_estimate(data: JsonDict | None) -> Estimate:
    """Read a number of an accuracy (ends in ``interval``) or of a latency (ends beside the value)."""
    if data is None:
        return Estimate()
    ends = (data["interval"] or {}) if "interval" in data else data
    return Estimate(data["value"], ends.get("low"), ends.get("high"))
