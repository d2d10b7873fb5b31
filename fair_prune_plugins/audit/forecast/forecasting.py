"""From the dense model alone to a :class:`~.result.RiskReport`: what compression will probably cost, and whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.forecast import signals
from fair_prune_plugins.audit.forecast.nearness import Nearness, dense_margins, nearest, stamp_of
from fair_prune_plugins.audit.forecast.ordering import place
from fair_prune_plugins.audit.forecast.result import (
    AttributeRisk,
    Gradients,
    GroupGradient,
    GroupOutputRisk,
    GroupRisk,
    OutputRisk,
    RiskReport,
)
from fair_prune_plugins.audit.measures import Amplification, MeasuredModel, Measures, measure
from fair_prune_plugins.audit.measures.estimates import UNDEFINED, Estimates
from fair_prune_plugins.audit.measures.resampling import Resampling
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels

T = TypeVar("T")

OTHER_MEASURES = (
    "the measures are not of this data: they are of {model!r}, {n} people and the attributes {attributes}, the data of "
    "{expected}; pass what measures.measure made of the same data"
)
OTHER_GRADIENTS = (
    "there are group gradients by {attribute} for the groups {got}, the data has {expected}; make them with the same "
    "groups"
)
BAD_LIKELY = "likely is how many answers to list, 0 or more; got {likely}"
ORDER = (
    "Risks are in the order of the mean place that the signals give; every signal counts alike. There is no published "
    "threshold from which on a risk is real: the order says who first, not how much."
)
RUNS = "Numbers are means over {runs} runs of {model!r}."
NO_TRAINING = (
    "The training people are not known: prevalences and correlations are those of the audited people themselves."
)
UNGRADED = (
    "Of {model!r} only decisions are known: uncertainty, nearness to the boundary and likely flips are undefined."
)
UNRANKED = "By {attribute}, groups under {minimum} people are not ranked: {names}."
NO_GRADIENTS = "Group gradients need the network itself and were not given."


def forecast(
    data: AuditData,
    *,
    measures: Measures | None = None,
    gradients: Sequence[Gradients] = (),
    likely: int = 100,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
    progress: bool = True,
) -> RiskReport:
    """What the dense model alone tells of the risks of compression; pruned models are not looked at.

    Signals: uncertainty, interdependence, imbalance, the training labels' association with groups (Iofinova, Peste &
    Alistarh, arXiv 2304.12622), nearness to the boundary, gradient norm and Hessian eigenvalue (Tran et al., arXiv
    2205.13574), and the dense model's error.

    Args:
        data: people and the dense model.
        measures: what was measured of the same data, where that is done already; ``resamples``, ``confidence``,
            ``seed`` and ``minimum`` are then taken from it.
        gradients: of the dense network, by any of the sensitive attributes (:func:`gradients`, :func:`average`).
        likely: how many of the answers nearest to the boundary to list.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the resamples.
        minimum: groups with fewer people are flagged and not ranked.
        progress: show a progress bar.

    Raises:
        InputError: measures or gradients of something else, ``confidence`` out of range, or too few resamples.
        MissingDependencyError: scipy is not installed.
    """
    if likely < 0:
        raise InputError(BAD_LIKELY.format(likely=likely))
    if measures is None:
        alone = replace(data, pruned=())
        measures = measure(
            alone, resamples=resamples, confidence=confidence, seed=seed, minimum=minimum, progress=progress
        )
    _check_measures(measures, data)
    by_attribute = _checked_gradients(gradients, data)
    near = _nearness(data, measures)
    outputs = _outputs(data, measures, near)
    attributes = tuple(
        _attribute(data, measures, near, i, by_attribute.get(groups.attribute))
        for i, groups in enumerate(data.people.groups)
    )
    ranked_by = signals.OF_GROUPS + (signals.OF_GRADIENTS if gradients else ())
    return RiskReport(
        model=data.dense.name,
        runs=len(data.dense.runs),
        people=len(data.people),
        stamp=stamp_of(data),
        outputs=outputs,
        attributes=attributes,
        likely=nearest(data, dense_margins(data), likely) if data.dense.graded else (),
        signals={"outputs": signals.OF_OUTPUTS, "groups": ranked_by, "pairs": signals.OF_PAIRS},
        training=data.training is not None,
        confidence=measures.confidence,
        resamples=measures.resamples,
        seed=measures.seed,
        minimum=measures.minimum,
        notes=_notes(data, attributes, gradients, measures.minimum),
    )


def _nearness(data: AuditData, measures: Measures) -> Nearness | None:
    if not data.dense.graded:
        return None
    # The same resamples as those of the measures: numbers of one table rest on the same draws.
    rng = np.random.default_rng(measures.seed).spawn(1)[0]
    resampling = Resampling(data.people.ids, measures.resamples, rng)
    return Nearness(data, Estimates(measures.confidence, measures.resamples), resampling)


def _outputs(data: AuditData, measures: Measures, near: Nearness | None) -> tuple[OutputRisk, ...]:
    measured = measures.dense.outputs
    scores = [output.everybody.scores for output in measured]
    tied = [output.interdependence for output in measured]
    prevalence = [truth.training_prevalence for truth in measures.truths]
    rare = [min(p, 1 - p) for p in prevalence]
    together = [None if ties is None else ties.in_sample.value for ties in tied]
    everybody = np.zeros(len(data.people), dtype=np.int64)
    placed = place(
        [
            signals.uncertainty([s.uncertainty for s in scores]),
            signals.interdependence(together),
            signals.error([s.accuracy for s in scores]),
            signals.imbalance(rare),
        ],
        len(measured),
    )
    return tuple(
        OutputRisk(
            output=output.name,
            rank=placed[i].rank or 1,
            score=placed[i].score,
            reason=placed[i].reason,
            uncertainty=scores[i].uncertainty,
            interdependence=together[i],
            held_out_interdependence=None if (ties := tied[i]) is None else ties.held_out.value,
            boundary=UNDEFINED if near is None else near.of_output(i, everybody, 1)[0],
            prevalence=prevalence[i],
            rare=rare[i],
            accuracy=scores[i].accuracy,
        )
        for i, output in enumerate(measured)
    )


def _attribute(
    data: AuditData, measures: Measures, near: Nearness | None, which: int, gradients: Gradients | None
) -> AttributeRisk:
    groups = data.people.groups[which]
    names = groups.names
    large = [bool(n >= max(measures.minimum, 1)) for n in groups.counts]
    accuracy = _accuracy(measures.dense, which, len(names))
    undefined = [UNDEFINED] * len(names)
    unsure = undefined if near is None else near.unsure_of_people(groups.codes, len(names))
    boundary = undefined if near is None else near.of_people(groups.codes, len(names))
    curved: list[GroupGradient | None] = [None] * len(names) if gradients is None else _by_name(gradients, groups)
    kinds = [
        signals.uncertainty(_if(large, unsure)),
        signals.boundary(_if(large, boundary)),
        signals.error(_if(large, accuracy)),
    ]
    if gradients is not None:
        kinds += [
            signals.gradient_norm(_if(large, [None if c is None else c.norm for c in curved])),
            signals.eigenvalue(_if(large, [None if c is None else c.eigenvalue for c in curved])),
        ]
    placed = place(kinds, len(names))
    trained = data.training_groups[which].counts
    return AttributeRisk(
        groups.attribute,
        tuple(
            GroupRisk(
                group=name,
                people=int(groups.counts[g]),
                too_small=not large[g],
                rank=placed[g].rank,
                score=placed[g].score,
                reason=placed[g].reason,
                uncertainty=unsure[g],
                boundary=boundary[g],
                accuracy=accuracy[g],
                training_people=int(trained[g]),
                gradient=curved[g],
            )
            for g, name in enumerate(names)
        ),
        _pairs(data, measures, near, which, large),
    )


def _pairs(
    data: AuditData, measures: Measures, near: Nearness | None, which: int, large: Sequence[bool]
) -> tuple[GroupOutputRisk, ...]:
    groups, trained = data.people.groups[which], data.training_groups[which].counts
    count = len(groups.names)
    scores = [[g.scores for g in output.attributes[which].groups] for output in measures.dense.outputs]
    prior = [output.attributes[which].amplification for output in measures.dense.outputs]
    undefined = [UNDEFINED] * count
    boundary = [
        undefined if near is None else near.of_output(i, groups.codes, count) for i in range(len(data.people.outputs))
    ]
    correlation = [[_phi(entry, int(trained[g]), int(trained.sum())) for g, entry in enumerate(row)] for row in prior]
    pairs = [(g, i) for g in range(count) for i in range(len(data.people.outputs))]
    compared = [large[g] for g, _ in pairs]
    placed = place(
        [
            signals.uncertainty(_if(compared, [scores[i][g].uncertainty for g, i in pairs])),
            signals.error(_if(compared, [scores[i][g].accuracy for g, i in pairs])),
            signals.association(_if(compared, [correlation[i][g] for g, i in pairs])),
        ],
        len(pairs),
    )
    return tuple(
        GroupOutputRisk(
            attribute=groups.attribute,
            group=groups.names[g],
            output=data.people.outputs[i],
            people=int(groups.counts[g]),
            too_small=not large[g],
            rank=placed[k].rank,
            score=placed[k].score,
            reason=placed[k].reason,
            uncertainty=scores[i][g].uncertainty,
            boundary=boundary[i][g],
            accuracy=scores[i][g].accuracy,
            prevalence=prior[i][g].training_share,
            elsewhere=prior[i][g].training_share_others,
            ratio=_ratio(prior[i][g]),
            correlation=correlation[i][g],
        )
        for k, (g, i) in enumerate(pairs)
    )


def _accuracy(model: MeasuredModel, which: int, count: int) -> list[Estimate]:
    if model.overall is not None:
        return [group.accuracy for group in model.overall.attributes[which].groups]
    return [model.outputs[0].attributes[which].groups[g].scores.accuracy for g in range(count)]


def _ratio(prior: Amplification) -> float | None:
    inside, outside = prior.training_share, prior.training_share_others
    return None if inside is None or not outside else inside / outside


def _phi(prior: Amplification, people: int, everybody: int) -> float | None:
    """Correlation of two yes-or-no variables, label and membership, among people of known group."""
    inside, outside = prior.training_share, prior.training_share_others
    if inside is None or outside is None or prior.undefined == "the output is the attribute itself":
        return None
    member = people / everybody
    overall = member * inside + (1 - member) * outside
    if not 0 < overall < 1:
        return None
    return float((inside - outside) * np.sqrt(member * (1 - member) / (overall * (1 - overall))))


def _if(wanted: Sequence[bool], values: Sequence[T | None]) -> list[T | None]:
    return [value if keep else None for keep, value in zip(wanted, values, strict=True)]


def _by_name(gradients: Gradients, groups: GroupLabels) -> list[GroupGradient | None]:
    found = {entry.group: entry for entry in gradients.groups}
    return [found.get(name) for name in groups.names]


def _check_measures(measures: Measures, data: AuditData) -> None:
    attributes = tuple(groups.attribute for groups in data.people.groups)
    got = (measures.dense.name, measures.n, measures.attributes)
    expected = (data.dense.name, len(data.people), attributes)
    if got != expected:
        raise InputError(OTHER_MEASURES.format(model=got[0], n=got[1], attributes=got[2], expected=expected))


def _checked_gradients(gradients: Sequence[Gradients], data: AuditData) -> dict[str, Gradients]:
    known = {groups.attribute: groups.names for groups in data.people.groups}
    for entry in gradients:
        names = [group.group for group in entry.groups]
        expected = known.get(entry.attribute)
        if expected is None or not set(names) <= set(expected):
            raise InputError(OTHER_GRADIENTS.format(attribute=entry.attribute, got=names, expected=known))
    return {entry.attribute: entry for entry in gradients}


def _notes(
    data: AuditData, attributes: Sequence[AttributeRisk], gradients: Sequence[Gradients], minimum: int
) -> tuple[str, ...]:
    notes = [ORDER]
    if len(data.dense.runs) > 1:
        notes.append(RUNS.format(runs=len(data.dense.runs), model=data.dense.name))
    if data.training is None:
        notes.append(NO_TRAINING)
    if not data.dense.graded:
        notes.append(UNGRADED.format(model=data.dense.name))
    for attribute in attributes:
        small = [group.group for group in attribute.groups if group.too_small]
        if small:
            notes.append(UNRANKED.format(attribute=attribute.attribute, minimum=minimum, names=", ".join(small)))
    if not gradients:
        notes.append(NO_GRADIENTS)
    return (*notes, *dict.fromkeys(note for entry in gradients for note in entry.notes))
