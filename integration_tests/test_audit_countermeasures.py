"""Countermeasures of the audit against counting by hand, row bootstraps and fairlearn."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from sklearn.metrics import accuracy_score

from fair_prune_plugins.audit.countermeasures import Countermeasures, Remedy, counter
from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.postprocessing import OverridePolicy, ThresholdRule, judge
from integration_tests import audited_people
from integration_tests.audited_people import make_audit

LABELS = audited_people.LABELS[2:]


def pair(**how: Any) -> tuple[AuditData, AuditData]:
    return make_audit(700, seed=1, who="other", **how), make_audit(800, seed=2, **how)


@pytest.fixture(scope="module")
def both() -> tuple[AuditData, AuditData]:
    return pair(runs=2, unknown=9, pruned=1, outputs=LABELS)


@pytest.fixture(scope="module")
def found(both: tuple[AuditData, AuditData]) -> Countermeasures:
    return counter(*both, budget=0.07, resamples=400, progress=False)


def by_hand(both: tuple[AuditData, AuditData], kind: str, output: int, run: int) -> tuple[Any, Any]:
    """Decisions before and after, the published way: the k-th largest logit; the floor(budget n) smallest margins."""
    validation, test = both
    logits = [data.pruned[0].runs[run][:, output] for data in both]
    dense = [data.dense.runs[run][:, output] for data in both]
    before = logits[1] > 0
    if kind == "thresholds":
        k = int(validation.people.labels[:, output].sum())
        ranked = np.sort(logits[0])[::-1]
        return before, logits[1] > (ranked[k - 1] + ranked[k]) / 2
    margins = np.sort(np.abs(dense[0]))
    asked = int(0.07 * len(margins))
    unsure = np.abs(dense[1]) < (margins[asked - 1] + margins[asked]) / 2
    answers = dense[1] > 0 if kind == "dense overrides" else test.people.labels[:, output] == 1
    return before, np.where(unsure, answers, before)


def test_numbers_are_those_of_the_published_rules_counted_by_hand(
    both: tuple[AuditData, AuditData], found: Countermeasures
) -> None:
    validation, test = both
    assert len(found.remedies) == 3 * len(LABELS)
    for remedy in found.remedies:
        i = LABELS.index(remedy.output)
        truth = test.people.labels[:, i]
        pairs = [by_hand(both, remedy.kind, i, run) for run in range(2)]
        right = np.array([[decided == truth for decided in pair] for pair in pairs])  # [runs, before or after, N]
        assert remedy.accuracy.before.value == pytest.approx(right[:, 0].mean())
        assert remedy.accuracy.after.value == pytest.approx(right[:, 1].mean())
        assert remedy.accuracy.change.value == pytest.approx(right[:, 1].mean() - right[:, 0].mean())
        for groups, shift in zip(test.people.groups, remedy.attributes, strict=True):
            known = groups.codes >= 0
            frames = [
                [
                    MetricFrame(
                        metrics=accuracy_score,
                        y_true=truth[known],
                        y_pred=decided[known].astype(int),
                        sensitive_features=np.array(groups.names)[groups.codes[known]],
                    )
                    for decided in pair
                ]
                for pair in pairs
            ]
            theirs = validation.people.groups[test.people.groups.index(groups)]
            own = np.mean([validation.pruned[0].runs[r][:, i] > 0 for r in range(2)], axis=0)
            y = validation.people.labels[:, i]
            wrong = [np.mean(np.abs(own - y)[theirs.codes == g]) for g in range(len(theirs.names))]
            assert shift.worst_group == theirs.names[int(np.argmax(wrong))]
            for side, name in ((0, "before"), (1, "after")):
                worst = np.mean([f[side].by_group[shift.worst_group] for f in frames])
                gap = np.mean([f[side].difference() for f in frames])
                assert getattr(shift.worst, name).value == pytest.approx(worst)
                assert getattr(shift.gap, name).value == pytest.approx(gap)
        assert remedy.rare_value == int(truth.mean() <= 0.5)
        assert remedy.rare_ratio is not None
        for side, name in ((0, "before"), (1, "after")):
            answered = np.mean([(pair[side].astype(int) == remedy.rare_value).mean() for pair in pairs])
            expected = answered / (truth == remedy.rare_value).mean()
            assert getattr(remedy.rare_ratio, name).value == pytest.approx(expected)


def test_shares_overridden_are_near_the_budget_and_rules_can_be_applied(
    both: tuple[AuditData, AuditData], found: Countermeasures
) -> None:
    _, test = both
    for remedy in found.remedies:
        assert remedy.overridden == 0 if remedy.kind == "thresholds" else 0.03 < remedy.overridden < 0.11
    assert [(c.run, c.kind) for c in found.chosen] == [
        (f"run {r}", kind) for r in range(2) for kind in ("thresholds", "dense overrides", "human overrides")
    ]
    rule = found.chosen[0].rule
    assert isinstance(rule, ThresholdRule)
    assert not rule.uses_groups
    assert [o.name for o in rule.outputs] == list(LABELS)
    again = ThresholdRule.from_dict(json.loads(json.dumps(rule.as_dict())))
    for i in range(len(LABELS)):
        assert (again.decide(test.pruned[0].runs[0])[:, i] == by_hand(both, "thresholds", i, 0)[1]).all()
    assert isinstance(found.chosen[1].rule, OverridePolicy)


def test_intervals_are_those_of_resampled_rows(both: tuple[AuditData, AuditData], found: Countermeasures) -> None:
    _, test = both
    remedy = found.of("pruned 50 %", "thresholds")[1]
    truth = test.people.labels[:, 1]
    codes = test.people.groups[0].codes
    pairs = [by_hand(both, "thresholds", 1, run) for run in range(2)]
    right = np.array([[decided == truth for decided in pair] for pair in pairs]).mean(axis=0)
    g = test.people.groups[0].names.index(remedy.attributes[0].worst_group or "")
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(1500):
        rows = rng.integers(0, len(truth), len(truth))
        mine = right[:, rows][:, codes[rows] == g].mean(axis=1)
        draws.append(mine[1] - mine[0])
    low, high = np.quantile(draws, [0.025, 0.975])
    interval = remedy.attributes[0].worst.change.interval
    assert interval is not None
    assert interval.low == pytest.approx(low, abs=0.012)
    assert interval.high == pytest.approx(high, abs=0.012)


def test_one_run_is_judged_as_postprocessing_judges_it() -> None:
    validation, test = pair(pruned=1, task="binary", outputs=("smiles",))
    found = counter(validation, test, resamples=300, progress=False)
    for remedy, chosen in zip(found.remedies, found.chosen, strict=True):
        logits, dense = test.pruned[0].runs[0], test.dense.runs[0]
        if isinstance(chosen.rule, ThresholdRule):
            decided = chosen.rule.decide(logits)
        else:
            decided = chosen.rule.apply(logits, dense_logits=dense, labels=test.people.labels).decisions
        for groups, shift in zip(test.people.groups, remedy.attributes, strict=True):
            before = (logits > 0).astype(np.int64)
            effect = judge(
                test.people.labels, decided, before, groups, worst_group=shift.worst_group, resamples=300
            ).evaluation
            assert effect.dense is not None
            assert remedy.accuracy.after.value == pytest.approx(effect.accuracy.value)
            assert shift.worst.after.value == pytest.approx(effect.worst_group.accuracy.value)
            assert shift.gap.change.value == pytest.approx(effect.dense.gap_change.value)


def test_curves_are_accuracies_counted_by_hand(both: tuple[AuditData, AuditData], found: Countermeasures) -> None:
    assert len(found.curves) == 2 * 2 * 2 * len(LABELS)  # people, attributes, answerers, outputs
    for curve in found.curves:
        data = both[curve.people == "test"]
        groups = next(g for g in data.people.groups if g.attribute == curve.attribute)
        i = LABELS.index(curve.output)
        truth = data.people.labels[:, i]
        for point in curve.points[::3]:
            rights = []
            for run in range(2):
                dense, pruned = data.dense.runs[run][:, i], data.pruned[0].runs[run][:, i]
                unsure = np.argsort(np.abs(dense), kind="stable")[: int(round(point.budget * len(truth), 9))]
                decided = pruned > 0
                decided[unsure] = (dense > 0 if curve.answer_of == "dense" else truth == 1)[unsure]
                rights.append(decided == truth)
            assert point.accuracy == pytest.approx(np.mean(rights))
            by_group = np.array([[r[groups.codes == g].mean() for g in range(len(groups.names))] for r in rights])
            assert point.gap == pytest.approx((by_group.max(axis=1) - by_group.min(axis=1)).mean())
            assert point.worst == pytest.approx(by_group[:, groups.names.index(curve.worst_group or "")].mean())
        assert [p.budget for p in curve.points] == sorted(p.budget for p in curve.points)
        if curve.answer_of == "human":
            assert curve.points[-1].accuracy == 1
            assert curve.points[-1].gap == 0


def test_a_multiclass_task_has_overrides_of_the_class_and_says_that_there_is_no_threshold() -> None:
    validation, test = pair(task="multiclass", pruned=1)
    found = counter(validation, test, budget=0.1, resamples=200, progress=False)
    assert [r.kind for r in found.remedies] == ["dense overrides", "human overrides"]
    assert any("no threshold" in note for note in found.notes)
    logits, dense, truth = test.pruned[0].runs[0], test.dense.runs[0], test.people.labels
    top = [np.sort(data.dense.runs[0], axis=1)[:, -2:] for data in (validation, test)]
    margins = [t[:, 1] - t[:, 0] for t in top]
    asked = int(0.1 * len(margins[0]))
    cut = np.sort(margins[0])[asked - 1 : asked + 1].mean()
    unsure = margins[1] <= cut
    for remedy, answer in zip(found.remedies, (dense.argmax(axis=1), truth), strict=True):
        decided = np.where(unsure, answer, logits.argmax(axis=1))
        assert remedy.accuracy.after.value == pytest.approx(accuracy_score(truth, decided))
        assert remedy.overridden == pytest.approx(unsure.mean())
        assert remedy.rare_ratio is None


def test_undefined_stays_undefined() -> None:
    validation, test = pair(pruned=1, task="binary", outputs=("smiles",))
    nobody = dataclasses.replace(
        test,
        people=People(
            test.people.ids,
            np.zeros(len(test.people), dtype=np.int64),
            (GroupLabels(("Black", "East Asian", "Indian"), np.full(800, -1), "race"), test.people.groups[1]),
            test.people.outputs,
            "binary",
        ),
        training=None,
    )
    found = counter(validation, nobody, resamples=100, progress=False)
    for remedy in found.remedies:
        assert remedy.rare_value == 1
        assert remedy.rare_ratio is not None
        assert remedy.rare_ratio.before.value is None
        assert remedy.attributes[0].worst.before.value is None
        assert remedy.attributes[0].gap.after.value is None
        assert remedy.attributes[1].gap.after.value is not None
    assert any(p.worst is None and p.gap is None for c in found.curves for p in c.points)


def test_small_groups_cannot_be_the_worst_and_a_lone_dense_run_serves_all() -> None:
    validation, test = pair(pruned=1, runs=2, task="binary", outputs=("smiles",))
    lone = [
        dataclasses.replace(data, dense=ModelPredictions("dense", data.dense.runs[:1])) for data in (validation, test)
    ]
    found = counter(*lone, resamples=100, minimum=10_000, progress=False)
    assert all(a.worst_group is None and a.worst.change.value is None for r in found.remedies for a in r.attributes)
    assert any("pruned 50 %' has 2 runs and 'dense' has 1" in note for note in found.notes)
    assert any("under 10000 validation people" in note for note in found.notes)
    policy = found.chosen[1].rule
    assert isinstance(policy, OverridePolicy)
    assert policy.cutoffs == getattr(found.chosen[4].rule, "cutoffs", None)  # both by the one dense run


def remedy_key(remedy: Remedy) -> tuple[str, ...]:
    return remedy.model, remedy.output, remedy.kind


def test_same_seed_same_result_whatever_the_order_of_people(both: tuple[AuditData, AuditData]) -> None:
    validation, test = pair(pruned=1, task="binary", outputs=("smiles",))
    order = np.random.default_rng(3).permutation(len(test.people))
    people = test.people
    shuffled = AuditData(
        People(
            tuple(people.ids[i] for i in order),
            people.labels[order],
            tuple(g.take(order) for g in people.groups),
            people.outputs,
            "binary",
        ),
        ModelPredictions("dense", tuple(r[order] for r in test.dense.runs)),
        tuple(ModelPredictions(m.name, tuple(r[order] for r in m.runs)) for m in test.pruned),
        test.training,
    )
    one, two, three = (
        counter(validation, data, resamples=150, progress=False, seed=seed)
        for data, seed in ((test, 5), (shuffled, 5), (test, 6))
    )
    assert one.remedies == two.remedies
    assert one.remedies != three.remedies


def test_refusals() -> None:
    validation, test = pair(pruned=1, task="binary", outputs=("smiles",))
    with pytest.raises(InputError, match="700 of the validation people are among the test people"):
        counter(validation, validation, progress=False)
    with pytest.raises(InputError, match="the test people have none"):
        counter(validation, dataclasses.replace(test, pruned=()), progress=False)
    with pytest.raises(InputError, match="outputs differ"):
        counter(pair(pruned=1, task="binary", outputs=("frowns",))[0], test, progress=False)
    with pytest.raises(InputError, match="models and runs differ"):
        counter(pair(pruned=2, task="binary", outputs=("smiles",))[0], test, progress=False)
    with pytest.raises(InputError, match="groups differ"):
        counter(pair(pruned=1, task="binary", outputs=("smiles",), races=("a", "b"))[0], test, progress=False)
    with pytest.raises(InputError, match="budget"):
        counter(validation, test, budget=1.5, progress=False)
    # row numbers may be the same in two tables of different people
    numbered = dataclasses.replace(validation, people=dataclasses.replace(validation.people, ids=test.people.ids[:700]))
    assert counter(numbered, test, resamples=100, progress=False).remedies
