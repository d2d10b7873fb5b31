"""Choose countermeasures on validation people and judge them on test people (Iofinova et al., arXiv 2304.12622)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fair_prune_plugins.audit.changes.result import CLASS
from fair_prune_plugins.audit.countermeasures.counting import Table
from fair_prune_plugins.audit.countermeasures.curves import BUDGETS, curves
from fair_prune_plugins.audit.countermeasures.judging import Watched, judge_steps
from fair_prune_plugins.audit.countermeasures.result import Chosen, Countermeasures, Curve, Kind, Remedy
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimator
from fair_prune_plugins.groups import SMALL_GROUP, GroupLabels
from fair_prune_plugins.postprocessing import OverridePolicy, choose_override, choose_thresholds
from fair_prune_plugins.postprocessing.overrides import Answer, share_by_group
from fair_prune_plugins.postprocessing.scores import BoolArray, IntArray

BUDGET = 0.05
"""Share of answers that overrides may replace, unless another one is asked for."""

NO_PRUNED = "countermeasures treat a pruned model's answers; the test people have none"
SAME_PEOPLE = (
    "{count} of the validation people are among the test people too (first: {first!r}); what is chosen and judged on "
    "the same people looks better than it is. Give other people for validation"
)
DIFFERENT = (
    "validation and test people must answer the same question under the same models: {what} differ ({validation} and "
    "{test})"
)
ONE_DENSE = (
    "{model!r} has {pruned} runs and {dense!r} has {runs}: its overrides all ask {dense!r}'s {first}, whatever the run."
)
ONE_CLASS_NEEDED = (
    "There is no threshold to calibrate in a multi-class task: the largest logit decides. Label overrides are judged "
    "by whether the class is right."
)
HOW = (
    "Thresholds and cut-offs were chosen on {validation} validation people and judged once on {test} test people. The "
    "worst group is the one of the lowest accuracy on the validation people."
)
OWN_RULES = "Each run has thresholds and cut-offs of its own; numbers are means over runs."
UNGRADED = (
    "Only decisions are known of {model!r}, not how sure it was: it has no thresholds to calibrate, and it cannot say "
    "which answers to override."
)
HUMAN = "Human overrides take a human to be always right: they are the most that asking could bring."
SMALL = "Groups under {minimum} validation people cannot be the worst group; they count in gaps, as everywhere here."


@dataclass(frozen=True)
class _Plan:
    """What stays the same over outputs."""

    validation: AuditData
    test: AuditData
    budget: float
    minimum: int

    def kinds(self, model: ModelPredictions) -> tuple[Kind, ...]:
        """Thresholds need scores of the pruned model, overrides need to know how sure the dense one is."""
        thresholds: tuple[Kind, ...] = ("thresholds",) if model.graded and self.test.people.task != "multiclass" else ()
        return (*thresholds, "dense overrides", "human overrides") if self.test.dense.graded else thresholds

    @property
    def outputs(self) -> tuple[str, ...]:
        return (CLASS,) if self.test.people.task == "multiclass" else self.test.people.outputs


def counter(
    validation: AuditData,
    test: AuditData,
    *,
    budget: float = BUDGET,
    budgets: Sequence[float] = BUDGETS,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    minimum: int = SMALL_GROUP,
    progress: bool = True,
) -> Countermeasures:
    """What threshold calibration and label overrides would bring for groups, per pruned model and output.

    Args:
        validation: people to choose on, with the same models, runs, outputs and groups as the test people.
        test: people to judge on.
        budget: share of answers that overrides may replace, per output.
        budgets: of the curves.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
        minimum: groups with fewer validation people cannot be the worst.
        progress: show a bar.

    Raises:
        InputError: no pruned model, people who are in both, other models, runs, outputs or groups, a budget outside 0
            to 1, or too few resamples for the confidence.
    """
    _check(validation, test)
    estimator = Estimator(confidence, resamples)
    plan = _Plan(validation, test, budget, minimum)
    remedies: list[Remedy] = []
    chosen: list[Chosen] = []
    lines: list[Curve] = []
    notes = [HOW.format(validation=len(validation.people), test=len(test.people))]
    steps = len(test.pruned) * len(plan.outputs)
    with tqdm(total=steps, desc="countermeasures", unit="output", leave=False, disable=not progress) as bar:
        for m, model in enumerate(test.pruned):
            partners = _partners(test, model)
            if len(set(partners)) < len(partners):
                notes.append(_one_dense(test, model))
            rules = _choose(plan, model, partners)
            chosen += rules
            mine, worst = _judge(plan, m, model, rules, partners, estimator, resamples, seed, bar.update)
            remedies += mine
            if test.dense.graded:
                lines += curves(validation, test, model, partners, plan.outputs, worst, budgets)
            notes += [UNGRADED.format(model=m.name) for m in (test.dense, model) if not m.graded]
    if any(len(model.runs) > 1 for model in test.pruned):
        notes.append(OWN_RULES)
    if test.people.task == "multiclass":
        notes.append(ONE_CLASS_NEEDED)
    if any(groups.too_small(minimum) for groups in validation.people.groups):
        notes.append(SMALL.format(minimum=minimum))
    notes += [HUMAN] if test.dense.graded else []
    notes += [note for entry in chosen for note in entry.rule.notes]
    return Countermeasures(
        budget,
        tuple(remedies),
        tuple(chosen),
        tuple(lines),
        len(validation.people),
        len(test.people),
        confidence,
        resamples,
        seed,
        minimum,
        tuple(dict.fromkeys(notes)),
    )


def _check(validation: AuditData, test: AuditData) -> None:
    if not test.pruned:
        raise InputError(NO_PRUNED)
    for what, theirs, ours in (
        ("tasks", validation.people.task, test.people.task),
        ("outputs", validation.people.outputs, test.people.outputs),
        ("models and runs", *([(m.name, m.run_names) for m in data.models] for data in (validation, test))),
        ("groups", *([(g.attribute, g.names) for g in data.people.groups] for data in (validation, test))),
    ):
        if theirs != ours:
            raise InputError(DIFFERENT.format(what=what, validation=theirs, test=ours))
    both = sorted(set(validation.people.ids) & set(test.people.ids))
    if both and _are_the_same(validation, test, both):
        raise InputError(SAME_PEOPLE.format(count=len(both), first=both[0]))


def _are_the_same(validation: AuditData, test: AuditData, ids: list[str]) -> bool:
    """Whether ids stand for the same people in both: row numbers may repeat, labels and logits do not."""
    places = []
    for data in (validation, test):
        row = {name: i for i, name in enumerate(data.people.ids)}
        places.append([row[name] for name in ids])
    theirs, ours = places
    if not np.array_equal(validation.people.labels[theirs], test.people.labels[ours]):
        return False
    return all(
        np.array_equal(before[theirs], after[ours])
        for a, b in zip(validation.models, test.models, strict=True)
        for before, after in zip(validation.logits(a), test.logits(b), strict=True)
    )


def _partners(test: AuditData, model: ModelPredictions) -> tuple[int, ...]:
    """Which dense run stands by each pruned run: the same one where there are as many, else the first."""
    if len(test.dense.runs) == len(model.runs):
        return tuple(range(len(model.runs)))
    return (0,) * len(model.runs)


def _one_dense(test: AuditData, model: ModelPredictions) -> str:
    return ONE_DENSE.format(
        model=model.name,
        pruned=len(model.runs),
        dense=test.dense.name,
        runs=len(test.dense.runs),
        first=test.dense.run_names[0],
    )


def _choose(plan: _Plan, model: ModelPredictions, partners: tuple[int, ...]) -> list[Chosen]:
    validation, people = plan.validation, plan.validation.people
    ours = next(m for m in validation.pruned if m.name == model.name)
    everyone = GroupLabels(("everyone",), np.zeros(len(people), dtype=np.int64), "everyone")
    chosen = []
    for run, name in enumerate(model.run_names):
        logits, dense = validation.logits(ours)[run], validation.logits(validation.dense)[partners[run]]
        for kind in plan.kinds(model):
            if kind == "thresholds":
                # One threshold for everybody: whose group a person belongs to is not looked at.
                rule = choose_thresholds(people.labels, logits, everyone, "match_labels", names=plan.outputs)
                chosen.append(Chosen(model.name, name, kind, rule))
            else:
                answerer: Answer = "dense" if kind == "dense overrides" else "human"
                policy = choose_override(logits, dense, budget=plan.budget, answer_of=answerer, task=people.task)
                chosen.append(Chosen(model.name, name, kind, policy))
    return chosen


def _judge(
    plan: _Plan,
    place: int,
    model: ModelPredictions,
    rules: list[Chosen],
    partners: tuple[int, ...],
    estimator: Estimator,
    resamples: int,
    seed: int,
    tick: Callable[[], object],
) -> tuple[list[Remedy], dict[tuple[str, str], str | None]]:
    """Every output's remedies, and the group to watch by output and attribute."""
    test, people = plan.test, plan.test.people
    columns = people.labels.reshape(len(people), -1)
    rows = [np.where(groups.codes < 0, len(groups.names), groups.codes) for groups in people.groups]
    runs, kinds = range(len(model.runs)), plan.kinds(model)
    own = [_rows(test.decisions(model, run)) for run in runs]
    decided, overridden = {}, {}
    for entry in rules:
        run = model.run_names.index(entry.run)
        decided[entry.kind, run], overridden[entry.kind, run] = _apply(test, model, run, partners[run], entry)
    before = _right_on_validation(plan, model)
    remedies, watched = [], {}
    for i, output in enumerate(plan.outputs):
        truth = columns[:, i]
        steps = [[answers[:, i] == truth for answers in own]]
        steps += [[decided[kind, run][:, i] == truth for run in runs] for kind in kinds]
        watches = []
        for groups in people.groups:
            worst = _worst(before[:, :, i], _same(plan.validation, groups), plan.minimum)
            watched[output, groups.attribute] = worst
            watches.append(Watched(groups.attribute, worst, None if worst is None else groups.names.index(worst)))
        multiclass = people.task == "multiclass"
        sizes = [len(groups.names) for groups in people.groups]
        table = Table.of(rows, sizes, None if multiclass else truth, steps)
        rare = None if multiclass else int(test.training_truths[:, i].mean() <= 0.5)
        rng = np.random.default_rng([seed, place, i])
        judged = judge_steps(table, tuple(watches), rare, estimator, resamples, rng)
        for kind, result in zip(kinds, judged, strict=True):
            share = float(np.mean([overridden[kind, run][:, i].mean() for run in runs]))
            remedies.append(
                Remedy(model.name, output, kind, result.accuracy, result.rare_ratio, rare, share, result.attributes)
            )
        tick()
    return remedies, watched


def _apply(
    test: AuditData, model: ModelPredictions, run: int, partner: int, entry: Chosen
) -> tuple[IntArray, BoolArray]:
    """Decisions ``[N, outputs]``, and which of them are not the pruned model's own."""
    logits = test.logits(model)[run]
    if isinstance(entry.rule, OverridePolicy):
        result = entry.rule.apply(logits, dense_logits=test.logits(test.dense)[partner], labels=test.people.labels)
        return _rows(result.decisions), result.overridden.reshape(len(logits), -1)
    decisions = _rows(entry.rule.decide(logits))
    return decisions, np.zeros(decisions.shape, dtype=np.bool_)


def _rows(decisions: IntArray) -> IntArray:
    return decisions.reshape(len(decisions), -1)


def _same(data: AuditData, groups: GroupLabels) -> GroupLabels:
    return next(theirs for theirs in data.people.groups if theirs.attribute == groups.attribute)


def _right_on_validation(plan: _Plan, model: ModelPredictions) -> BoolArray:
    """Who the pruned model is right about by itself, ``[runs, N, outputs]``."""
    validation = plan.validation
    ours = next(m for m in validation.pruned if m.name == model.name)
    truth = validation.people.labels.reshape(len(validation.people), -1)
    right: BoolArray = np.array([_rows(validation.decisions(ours, run)) == truth for run in range(len(ours.runs))])
    return right


def _worst(right: BoolArray, groups: GroupLabels, minimum: int) -> str | None:
    """The group of the lowest accuracy, mean over runs ``[runs, N]``, among those that are large enough."""
    able = np.flatnonzero(groups.counts >= max(minimum, 1))
    if not len(able):
        return None
    accuracy = np.mean([share_by_group(run, groups) for run in right], axis=0)
    return groups.names[int(able[accuracy[able].argmin()])]
