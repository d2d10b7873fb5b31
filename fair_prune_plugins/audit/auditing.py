"""One call for the whole audit: measures, changes, forecast and countermeasures over the same people."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit import changes, forecast, measures
from fair_prune_plugins.audit.countermeasures import Countermeasures, counter
from fair_prune_plugins.audit.countermeasures.countering import BUDGET
from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.forecast.result import Gradients
from fair_prune_plugins.audit.result import AttributeSizes, Audit
from fair_prune_plugins.groups import SMALL_GROUP

ONE_RUN = (
    "One run of each model was given, so people who are answered otherwise are plain disagreement of two networks: two "
    "trainings of the same network would disagree on some people, too. Give several runs (training seeds) to tell."
)
FEW_RUNS = (
    "Several runs are averaged ({runs}). Intervals say how far other people, not other training runs, would change a "
    "number."
)
OWN_PREVALENCE = (
    "Nothing is known of the training people: which value of an output is rare, and among whom, is taken from the "
    "audited people themselves."
)
TOO_SMALL = "By {attribute}, {names} {have} fewer than {minimum} people: too few to judge. They are shown, not judged."
UNKNOWN = "By {attribute}, {count} people have no known group. They count over everybody and in no group."
NO_VALIDATION = (
    "No validation people were given, so no thresholds or label overrides could be chosen: that needs other "
    "people than those it is judged on."
)
ONLY_DENSE = "Only the dense model was given: this says what may happen, not what did."


def audit(
    data: AuditData,
    *,
    validation: AuditData | None = None,
    gradients: Sequence[Gradients] = (),
    budget: float = BUDGET,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
    progress: bool = True,
) -> Audit:
    """Say what compression did, to whom, how sure that is, and what the dense model alone already told.

    Args:
        data: people and models.
        validation: other people under the same models, to choose thresholds and overrides on. Without them there are no
            countermeasures, and the audit says so.
        gradients: of the dense model's loss per group, from :func:`fair_prune_plugins.audit.forecast.gradients`.
        budget: share of answers that label overrides may replace.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
        minimum: groups with fewer people are flagged and never judged.
        progress: show bars.

    Raises:
        InputError: validation people who do not fit, ``confidence`` outside (0, 1), or too few resamples for it.
    """
    measured = measures.measure(
        data, resamples=resamples, confidence=confidence, seed=seed, minimum=minimum, progress=progress
    )
    changed = changes.compare(data, confidence=confidence, resamples=resamples, seed=seed, minimum=minimum)
    risk = forecast.forecast(data, measures=measured, gradients=gradients, progress=progress)
    mended: Countermeasures | None = None
    if validation is not None and data.pruned:
        mended = counter(
            validation,
            data,
            budget=budget,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
            minimum=minimum,
            progress=progress,
        )
    people = data.people
    return Audit(
        task=people.task,
        people=len(people),
        outputs=people.outputs,
        attributes=tuple(
            AttributeSizes(
                groups.attribute,
                dict(zip(groups.names, groups.counts.tolist(), strict=True)),
                groups.unknown,
                groups.too_small(minimum),
            )
            for groups in people.groups
        ),
        dense=data.dense.name,
        pruned=tuple(model.name for model in data.pruned),
        measures=measured,
        changes=changed,
        risk=risk,
        quality=forecast.judge(risk, data),
        countermeasures=mended,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        minimum=minimum,
        notes=_notes(data, validation is not None, minimum),
    )


def _notes(data: AuditData, validated: bool, minimum: int) -> tuple[str, ...]:
    notes = []
    runs = {model.name: len(model.runs) for model in data.models}
    if not data.pruned:
        notes.append(ONLY_DENSE)
    elif set(runs.values()) == {1}:
        notes.append(ONE_RUN)
    if max(runs.values()) > 1:
        notes.append(FEW_RUNS.format(runs=", ".join(f"{name}: {count}" for name, count in runs.items())))
    if data.training is None:
        notes.append(OWN_PREVALENCE)
    for groups in data.people.groups:
        small = groups.too_small(minimum)
        if small:
            notes.append(
                TOO_SMALL.format(
                    attribute=groups.attribute,
                    names=", ".join(small),
                    have="has" if len(small) == 1 else "have",
                    minimum=minimum,
                )
            )
        if groups.unknown:
            notes.append(UNKNOWN.format(attribute=groups.attribute, count=groups.unknown))
    if data.pruned and not validated:
        notes.append(NO_VALIDATION)
    return tuple(notes)
