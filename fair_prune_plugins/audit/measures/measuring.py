"""From an :class:`~fair_prune_plugins.audit.data.AuditData` to :class:`~.result.Measures`, output by output."""

from __future__ import annotations

from typing import Literal

import numpy as np
from tqdm import tqdm

from fair_prune_plugins.audit.data import AuditData
from fair_prune_plugins.audit.measures.amplification import associate
from fair_prune_plugins.audit.measures.answers import Answers, common_runs
from fair_prune_plugins.audit.measures.change_tests import Family, count_changes, sign_flip
from fair_prune_plugins.audit.measures.estimates import Estimates
from fair_prune_plugins.audit.measures.group_result import EVERYBODY
from fair_prune_plugins.audit.measures.grouping import Settings, measure_attribute, measure_groups, pool
from fair_prune_plugins.audit.measures.interdependence import Interdependences
from fair_prune_plugins.audit.measures.notes import notes
from fair_prune_plugins.audit.measures.overall import RightAnswers, measure_overall
from fair_prune_plugins.audit.measures.resampling import Resampling
from fair_prune_plugins.audit.measures.result import MeasuredModel, MeasuredOutput, Measures, OutputTruth, Overall
from fair_prune_plugins.audit.measures.tables import BINS, GroupTables, Output
from fair_prune_plugins.evaluation.metrics import FloatArray, IntArray
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels


def measure(
    data: AuditData,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
    progress: bool = True,
) -> Measures:
    """Measure every model on every output, for everybody and per sensitive group, and pruned models against the dense.

    Definitions: arXiv 2304.12622 (uncertainty, interdependence, rare values, calibration error, bias amplification),
    2207.10888 (rho), 2310.20673 (excess gaps), fairlearn (gaps; groups whose rate is undefined are skipped). Memory
    does not grow with the number of outputs beyond the data, nor with groups x resamples. The result does not depend on
    the order of people.

    Args:
        data: whom and what to measure.
        resamples: bootstrap resamples of people; the same ones for all numbers.
        confidence: coverage of the intervals.
        seed: seed of the resamples.
        minimum: groups with fewer people are flagged and not tested.
        progress: show a progress bar.

    Raises:
        InputError: ``confidence`` outside (0, 1) or too few ``resamples`` for it.
        MissingDependencyError: scipy is not installed.
    """
    settings = Settings(Estimates(confidence, resamples), resamples, confidence, minimum)
    resampling_rng, luck_rng, chance_rng = np.random.default_rng(seed).spawn(3)
    people = data.people
    resampling = Resampling(people.ids, resamples, resampling_rng)
    luck = np.abs(luck_rng.standard_normal((resamples, BINS)))
    models = tuple(Answers(data, model) for model in data.models)
    runs = common_runs(models)
    right, families = _tests(data, models, runs, minimum)
    explained = (
        Interdependences(people.truths, models, resampling, settings.estimates, progress=progress)
        if people.task == "multilabel" and len(people.outputs) > 1
        else None
    )

    entries: list[list[MeasuredOutput]] = [[] for _ in models]
    everybody = GroupLabels((EVERYBODY,), np.zeros(len(people), dtype=np.int64))
    truths = []
    for index, name in enumerate(
        tqdm(people.outputs, desc="measure", unit="output", leave=False, disable=not progress)
    ):
        truth = np.ascontiguousarray(people.truths[:, index])
        training = data.training_truths[:, index]
        prevalence = float(training.mean())
        rare: Literal[0, 1] = 1 if prevalence <= 0.5 else 0
        truths.append(
            OutputTruth(
                name=name,
                positives=int(truth.sum()),
                prevalence=float(truth.mean()),
                training_prevalence=prevalence,
                rare=rare,
                interdependence=None if explained is None else explained.of_labels(index),
            )
        )
        output = Output.read(models, index, truth, runs)
        whole = GroupTables(output, everybody.codes, 1, resampling)
        pooled = pool(whole)
        rows = measure_groups(output, whole, everybody, rare, None, tuple(None for _ in models), index, settings, luck)
        by_attribute = []
        for groups, family, trained in zip(people.groups, families, data.training_groups, strict=True):
            tables = GroupTables(output, groups.codes, len(groups.names), resampling)
            of_groups = measure_groups(output, tables, groups, rare, pooled, family, index, settings, luck)
            association = associate(name, training, trained, truth, groups)
            by_attribute.append(
                measure_attribute(output, tables, groups, of_groups, pooled, association, settings, chance_rng)
            )
        for m, model in enumerate(models):
            entries[m].append(
                MeasuredOutput(
                    name=name,
                    everybody=rows[m][0],
                    accuracy_by_run=tuple(
                        float((model.answered(index, run) == truth).mean()) for run in range(model.runs)
                    ),
                    interdependence=None if explained is None else explained.of_model(m, index),
                    interdependence_change=None if explained is None else explained.change(m, index),
                    attributes=tuple(measured[m] for measured in by_attribute),
                )
            )
    overall: list[Overall] | list[None] = [None for _ in models]
    if right is not None:
        overall = measure_overall(right, people.groups, families, resampling, settings, chance_rng)
    measured = [
        MeasuredModel(model.name, model.run_names, tuple(entries[m]), overall[m]) for m, model in enumerate(models)
    ]
    return Measures(
        task=people.task,
        n=len(people),
        attributes=tuple(groups.attribute for groups in people.groups),
        truths=tuple(truths),
        dense=measured[0],
        pruned=tuple(measured[1:]),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        minimum=minimum,
        notes=notes(data, tuple(truths), families, minimum),
    )


def _tests(
    data: AuditData, models: tuple[Answers, ...], runs: int, minimum: int
) -> tuple[RightAnswers | None, tuple[tuple[Family | None, ...], ...]]:
    """Right answers over all outputs, and per attribute and model the tests of all changes of accuracy."""
    people = data.people
    scale = [runs // model.runs for model in models]
    outputs = len(people.outputs)
    p: list[list[list[FloatArray]]] = [[[] for _ in models] for _ in people.groups]
    right = [np.zeros(len(people), dtype=np.int64) for _ in models]

    def test(told: list[IntArray], largest: int) -> None:
        for of_attribute, groups in zip(p, people.groups, strict=True):
            for m in range(1, len(models)):
                counts = count_changes(told[m] - told[0], groups.codes, len(groups.names), largest)
                of_attribute[m].append(sign_flip(counts, minimum))

    for index in range(outputs):
        told = [model.right_runs(index, people.truths[:, index]) * s for model, s in zip(models, scale, strict=True)]
        test(told, runs)
        if people.task == "multilabel":
            right = [total + mine for total, mine in zip(right, told, strict=True)]
    if people.task == "multiclass":
        right = [
            sum(((data.decisions(model, run)[:, 0] == people.labels) * s for run in range(len(model.runs))), total)
            for model, s, total in zip(data.models, scale, right, strict=True)
        ]
    found = None
    if people.task != "binary":
        answers = runs * (outputs if people.task == "multilabel" else 1)
        test(right, answers)
        found = RightAnswers(tuple(right), answers, _by_run(data), single=people.task == "multiclass")
    families = tuple((None, *(Family(np.stack(rows)) for rows in of_attribute[1:])) for of_attribute in p)
    return found, families


def _by_run(data: AuditData) -> tuple[tuple[float, ...], ...]:
    labels = data.people.labels
    truth = labels if labels.ndim == 2 else labels[:, None]
    return tuple(
        tuple(float((data.decisions(model, run) == truth).mean()) for run in range(len(model.runs)))
        for model in data.models
    )
