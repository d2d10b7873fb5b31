"""Dense against pruned, person by person."""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.audit.changes.entries import Comparison, Settings
from fair_prune_plugins.audit.changes.listing import list_changed
from fair_prune_plugins.audit.changes.result import AttributeChanges, Changes
from fair_prune_plugins.audit.changes.votes import BoolArray, Votes, unsure_of, vote
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimator
from fair_prune_plugins.groups import SMALL_GROUP

BAD_TOP = "top is the share of people who are called farthest, above 0 and at most 1; got {top}"
BAD_LISTED = "listed is how many people to list, 0 or more; got {listed}"
PLAIN = (
    "{dense!r} and {pruned!r} have one run each: exemplars are plain disagreement of two networks. Two trainings of "
    "the same network disagree as well; give several runs of both to tell the two apart."
)
ONE_SIDED = (
    "Only one of {dense!r} ({dense_runs} runs) and {pruned!r} ({pruned_runs}) has several runs: a majority is compared "
    "with a single network."
)
VOTES = "Answers are majority votes over {dense_runs} runs of {dense!r} and {pruned_runs} of {pruned!r}."
TIES = (
    "{dense} answers of {dense_name!r} and {pruned} of {pruned_name!r} had no majority: the mean probability over runs "
    "decided, or 0 where only decisions are known."
)
UNGRADED = "Of {dense!r} only decisions are known: whom it was unsure about is undefined."
INTERVALS = "Intervals say how much depends on which people were audited, not on which runs were made."
TESTS = (
    "McNemar's exact test asks of {what} whether as many people became right as wrong. Holm's correction is over the "
    "groups of an attribute (over_groups) and over its groups and questions together (over_all); groups under "
    "{minimum} people are not among the tests."
)
FAR = (
    "Taxicab exemplars are the {percent:.3g} % of people whose answers moved farthest; people of equal distance cannot "
    "be parted, so there may be more of them."
)


def compare(
    data: AuditData,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
    top: float = 0.01,
    listed: int = 100,
) -> tuple[Changes, ...]:
    """What compression did to single people: exemplars, flips, tests; one result per pruned model.

    Modal and taxicab exemplars as Hooker et al. (arXiv 1911.05248, 2010.03058) define them; "unsure" is
    ``|p - 0.5| < 0.4`` with ``p`` the dense runs' mean probability (Iofinova et al., arXiv 2304.12622; their published
    code has a misplaced parenthesis there and tests ``p < 0.9``). Intervals come from resampling people, paired.

    Args:
        data: people and models.
        confidence: coverage of the intervals.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        minimum: groups with fewer people are flagged, and not among the tests that Holm's correction counts.
        top: share of people who are taxicab exemplars, per question.
        listed: how many of the people who changed most are listed by id.

    Returns:
        in the order of ``data.pruned``; empty without a pruned model.

    Raises:
        InputError: ``confidence`` or ``top`` out of range, too few resamples, or a negative ``listed``.
        MissingDependencyError: scipy is not installed.
    """
    if not 0 < top <= 1:
        raise InputError(BAD_TOP.format(top=top))
    if listed < 0:
        raise InputError(BAD_LISTED.format(listed=listed))
    estimator = Estimator(confidence, resamples)
    if not data.pruned:
        return ()
    dense = vote(data, data.dense)
    unsure = unsure_of(data, dense)
    results = []
    for number, model in enumerate(data.pruned):
        pruned = vote(data, model)
        settings = Settings(
            estimator, resamples, minimum, data.people.task == "multiclass", 1.0 / (dense.runs * pruned.runs)
        )
        comparison = Comparison(data, dense, pruned, unsure, settings, top, np.random.SeedSequence([seed, number]))
        results.append(
            Changes(
                model=model.name,
                dense=data.dense.name,
                dense_runs=dense.runs,
                pruned_runs=pruned.runs,
                plain=dense.runs == pruned.runs == 1,
                questions=comparison.questions(),
                touched=comparison.touched(None)[0],
                attributes=tuple(
                    AttributeChanges(g.attribute, g.unknown, comparison.groups(g), comparison.touched(g))
                    for g in data.people.groups
                ),
                listed=list_changed(data, dense, pruned, comparison.distances, listed),
                confidence=confidence,
                resamples=resamples,
                seed=seed,
                minimum=minimum,
                notes=_notes(data.dense, model, dense, pruned, minimum, top),
            )
        )
    return tuple(results)


def exemplars(data: AuditData, pruned: ModelPredictions) -> BoolArray:
    """Who is a modal exemplar, bool ``[N, questions]``; of a multi-class task the class alone, ``[N, 1]``."""
    changed: BoolArray = vote(data, data.dense).answers != vote(data, pruned).answers
    return changed[:, :1] if data.people.task == "multiclass" else changed


def _notes(
    dense_model: ModelPredictions, pruned_model: ModelPredictions, dense: Votes, pruned: Votes, minimum: int, top: float
) -> tuple[str, ...]:
    names = {"dense": dense_model.name, "pruned": pruned_model.name}
    runs = {"dense_runs": dense.runs, "pruned_runs": pruned.runs}
    notes = []
    if dense.runs == pruned.runs == 1:
        notes.append(PLAIN.format(**names))
    else:
        notes.append(VOTES.format(**names, **runs))
        if 1 in (dense.runs, pruned.runs):
            notes.append(ONE_SIDED.format(**names, **runs))
    ties = int(dense.tied.sum()), int(pruned.tied.sum())
    if any(ties):
        notes.append(
            TIES.format(dense=ties[0], pruned=ties[1], dense_name=dense_model.name, pruned_name=pruned_model.name)
        )
    if dense.probabilities is None:
        notes.append(UNGRADED.format(**names))
    what = "the two networks" if dense.runs == pruned.runs == 1 else "the majority votes, not of single runs,"
    return (*notes, INTERVALS, TESTS.format(what=what, minimum=minimum), FAR.format(percent=100 * top))
