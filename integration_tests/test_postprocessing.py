"""Thresholds and label overrides against brute force over every threshold, tables worked by hand, and fairlearn."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame, equalized_odds_difference
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score, recall_score

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import OnnxPredictor, TorchPredictor, evaluate, predict
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.onnx import export
from fair_prune_plugins.postprocessing import (
    OverridePolicy,
    ThresholdedPredictor,
    ThresholdRule,
    choose_override,
    choose_thresholds,
    choose_with_fairlearn,
    judge,
    override_curve,
)

Array = np.ndarray[Any, Any]


def people(seed: int, n: int = 24, groups: int = 3, levels: int | None = None) -> tuple[Array, Array, GroupLabels]:
    """Labels, scores that know something of them, groups that differ in how much; few levels make ties."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % groups
    labels = np.where(np.arange(n) < 2 * groups, np.arange(n) // groups, rng.integers(0, 2, n))
    scores = rng.normal(size=n) + labels * (0.4 + 0.5 * codes) - 0.3 * codes
    if levels is not None:
        scores = np.round(scores * levels) / levels
    return labels, scores.astype(np.float32), GroupLabels(tuple("abcdefgh"[:groups]), codes, "group")


def every_cut(scores: Array) -> list[float]:
    """A threshold for every way to call those of a high score positive."""
    return [math.inf, *sorted(set(scores.tolist()), reverse=True)]


def gap_of(labels: Array, decided: Array, codes: Array, *, false_positives: bool) -> float:
    kinds = (1, 0) if false_positives else (1,)
    rates = [[decided[(codes == g) & (labels == k)].mean() for g in np.unique(codes)] for k in kinds]
    return max(max(r) - min(r) for r in rates)


def outcome(objective: str, labels: Array, decided: Array, codes: Array) -> tuple[float, ...]:
    """What is to be as large as possible, as the docstring of choose_thresholds says."""
    right = float((decided == labels).mean())
    if objective == "worst_group":
        return min((decided == labels)[codes == g].mean() for g in np.unique(codes)), right
    gap = gap_of(labels, decided, codes, false_positives=objective == "equalized_odds")
    return -round(gap, 12), right  # equal fractions must be equal numbers, or accuracy would not decide


def allowed(objective: str, labels: Array, decided: Array, own: Array, budget: float) -> bool:
    if objective == "worst_group":
        return True
    return int((decided == labels).sum()) >= int((own == labels).sum()) - math.floor(round(budget * len(labels), 9))


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("budget", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("objective", ["equal_opportunity", "equalized_odds", "worst_group"])
def test_one_threshold_is_the_best_of_all(objective: Any, budget: float, levels: int | None) -> None:
    for seed in range(6):
        labels, scores, groups = people(seed, levels=levels)
        own = scores > 0
        tried = [scores >= cut for cut in every_cut(scores)]
        best = max(
            outcome(objective, labels, d, groups.codes) for d in tried if allowed(objective, labels, d, own, budget)
        )
        rule = choose_thresholds(labels, scores, groups, objective, budget=budget, minimum=1)
        assert not rule.uses_groups
        decided = rule.decide(scores)
        assert allowed(objective, labels, decided, own, budget)
        assert outcome(objective, labels, decided, groups.codes) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("budget", [0.0, 0.125])
@pytest.mark.parametrize("objective", ["equal_opportunity", "equalized_odds", "worst_group"])
def test_thresholds_per_group_are_the_best_of_all_combinations(
    objective: Any, budget: float, levels: int | None
) -> None:
    """7 or 8 people in each of 3 groups: up to 9 ** 3 combinations, each counted anew."""
    for seed in range(4):
        labels, scores, groups = people(seed, n=23, levels=levels)
        own = scores > 0
        cuts = [every_cut(scores[groups.codes == g]) for g in range(3)]
        tried = [scores >= np.array(combination)[groups.codes] for combination in itertools.product(*cuts)]
        best = max(
            outcome(objective, labels, d, groups.codes) for d in tried if allowed(objective, labels, d, own, budget)
        )
        rule = choose_thresholds(labels, scores, groups, objective, per_group=True, budget=budget, minimum=1)
        decided = rule.decide(scores, groups)
        assert allowed(objective, labels, decided, own, budget)
        assert outcome(objective, labels, decided, groups.codes) == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("objective", ["equal_opportunity", "equalized_odds"])
def test_windows_of_many_cuts_are_searched_for_their_best(objective: Any) -> None:
    """20 people in each of 3 groups, 21 ** 3 combinations, the model's own cut the most accurate in each group.

    What accuracy asks for then lies deep inside the windows, at least for the group in the middle.
    """
    odds = objective == "equalized_odds"
    for seed, budget in itertools.product(range(4), (0.0, 0.05)):
        labels, scores, groups = people(seed, n=60)
        codes, tables = groups.codes, []
        for g in range(3):
            y, s = labels[codes == g], scores[codes == g]
            tried = [s >= cut for cut in every_cut(s)]
            best = max(every_cut(s)[1:], key=lambda cut, y=y, s=s: int(((s >= cut) == y).sum()))
            scores[codes == g] -= np.float32(best - 1e-3)
            tables.append([(d[y == 1].mean(), d[y == 0].mean(), int((d == y).sum())) for d in tried])
        need = int(((scores > 0) == labels).sum()) - math.floor(round(budget * 60, 9))
        worth = (-math.inf, 0)
        for cuts in itertools.product(*tables):
            true, false, right = zip(*cuts, strict=True)
            if sum(right) >= need:
                gap = max(np.ptp(true), np.ptp(false) if odds else 0.0)
                worth = max(worth, (-round(float(gap), 12), sum(right)))
        rule = choose_thresholds(labels, scores, groups, objective, per_group=True, budget=budget, minimum=10)
        decided = rule.decide(scores, groups)
        assert gap_of(labels, decided, codes, false_positives=odds) == pytest.approx(-worth[0], abs=1e-8)
        assert int((decided == labels).sum()) == worth[1]


@pytest.mark.parametrize("seed", range(8))
def test_a_group_too_small_counts_in_accuracy_and_nowhere_else(seed: int) -> None:
    """Brute force again, the small group decided by the threshold for everybody, which is brute-forced first."""
    labels, scores, groups = people(seed, n=21)
    rng = np.random.default_rng(seed)
    labels = np.append(labels, rng.integers(0, 2, 8))
    scores = np.append(scores, rng.normal(size=8)).astype(np.float32)
    codes = np.append(groups.codes, [3, 3, 3, 3, -1, -1, -1, -1])
    compared = np.arange(29) < 21
    groups = GroupLabels(("a", "b", "c", "few"), codes, "group")
    rule = choose_thresholds(labels, scores, groups, "equal_opportunity", per_group=True, budget=0.0, minimum=5)
    assert set(rule.outputs[0].groups) == {"a", "b", "c"}
    assert "few is too small (under 5 people)" in rule.notes[0]

    def worth(decided: Array) -> tuple[float, float]:
        if not allowed("equal_opportunity", labels, decided, scores > 0, 0.0):
            return -math.inf, 0
        gap = gap_of(labels[compared], decided[compared], codes[compared], false_positives=False)
        return -round(gap, 12), float((decided == labels).mean())

    everyone = rule.outputs[0].everyone.chance(scores.astype(np.float64)).astype(np.int64)
    assert worth(everyone) == max(worth(scores >= cut) for cut in every_cut(scores))
    decided = rule.decide(scores, groups)
    np.testing.assert_array_equal(decided[~compared], everyone[~compared])
    best = (-math.inf, 0.0)
    for combination in itertools.product(*(every_cut(scores[codes == g]) for g in range(3))):
        tried = everyone.copy()
        tried[compared] = scores[compared] >= np.array(combination)[codes[compared]]
        best = max(best, worth(tried))
    assert worth(decided) == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("per_group", [False, True])
def test_matching_calls_the_k_highest_positive(per_group: bool) -> None:
    """Threshold calibration: the k-th largest validation logit, k the number of true positives."""
    labels, scores, groups = people(5, n=60)
    rule = choose_thresholds(labels, scores, groups, "match_labels", per_group=per_group, minimum=1)
    decided = rule.decide(scores, groups)
    for rows in [groups.codes == g for g in range(3)] if per_group else [np.ones(60, dtype=bool)]:
        count = int(labels[rows].sum())
        np.testing.assert_array_equal(decided[rows], scores[rows] >= np.sort(scores[rows])[-count])
        assert decided[rows].sum() == count
    assert rule.notes == ()
    dense = np.random.default_rng(0).normal(size=60).astype(np.float32)
    matched = choose_thresholds(labels, scores, groups, "match_dense", dense_logits=dense)
    assert matched.decide(scores).sum() == (dense > 0).sum()


def test_a_table_worked_by_hand() -> None:
    """Scores 3, 2, 2, -1 with one true positive: the tie leaves 1, 3 or 4 to choose from; then with two."""
    groups = GroupLabels(("a",), np.zeros(4, dtype=np.int64))
    scores = np.array([3.0, 2.0, 2.0, -1.0])
    rule = choose_thresholds(np.array([1, 0, 0, 0]), scores, groups, "match_labels")
    assert rule.outputs[0].everyone.thresholds == (2.5,)
    rule = choose_thresholds(np.array([1, 1, 0, 0]), scores, groups, "match_labels")
    assert rule.decide(scores).tolist() == [1, 1, 1, 0], "1 and 3 are equally near to 2; 3 is what the model says"
    assert rule.decide(np.array([[0.0, 0.0], [0.0, 1e-30]])).tolist() == [0, 1], "the model's own threshold is kept"
    assert "3 people are decided 1, asked were 2" in rule.notes[0]
    assert choose_thresholds(np.zeros(4, dtype=int), scores, groups, "match_labels").as_dict()["outputs"][0] == {
        "name": "output 0",
        "everyone": "never",
        "groups": {},
    }


def test_each_label_of_a_multi_label_task_is_its_own_binary_task() -> None:
    parts = [people(seed, n=48) for seed in range(3)]
    labels, scores = np.stack([p[0] for p in parts], axis=1), np.stack([p[1] for p in parts], axis=1)
    groups = parts[0][2]
    for objective, per_group in (("match_labels", True), ("equalized_odds", True), ("worst_group", False)):
        settings: dict[str, Any] = {"objective": objective, "per_group": per_group, "minimum": 5}
        rule = choose_thresholds(labels, scores, groups, names=["smile", "hat", "tie"], **settings)
        alone = [choose_thresholds(y, s, g, **settings) for y, s, g in parts]
        assert [o.name for o in rule.outputs] == ["smile", "hat", "tie"]
        expected = np.stack([a.decide(s, groups) for a, (_, s, _) in zip(alone, parts, strict=True)], axis=1)
        np.testing.assert_array_equal(rule.decide(scores, groups), expected)


def test_two_logits_decide_as_their_difference_does() -> None:
    labels, scores, groups = people(1, n=90)
    pair = np.stack([0.25 - scores / 2, 0.25 + scores / 2], axis=1)
    for per_group in (False, True):
        single = choose_thresholds(labels, scores, groups, "worst_group", per_group=per_group, minimum=10)
        double = choose_thresholds(labels, pair, groups, "worst_group", per_group=per_group, minimum=10)
        np.testing.assert_array_equal(single.decide(scores, groups), double.decide(pair, groups))


class Scored(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    classes_ = np.array([0, 1])

    def fit(self, inputs: Array, targets: Array) -> Scored:
        return self

    def decision_function(self, inputs: Array) -> Array:
        return inputs[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("constraint", "tolerance"),
    [
        ("demographic_parity", None),
        ("demographic_parity", 0.1),
        ("equalized_odds", None),
        ("true_positive_rate_parity", None),
        ("false_positive_rate_parity", None),
    ],
)
def test_fairlearns_rule_gives_fairlearns_chances(constraint: Any, tolerance: float | None) -> None:
    """On new people, the probability of a positive answer is that of ThresholdOptimizer, without it."""
    labels, scores, groups = people(2, n=240)
    optimizer = ThresholdOptimizer(
        estimator=Scored(), constraints=constraint, prefit=True, predict_method="decision_function", tol=tolerance
    )
    optimizer.fit(scores[:, None].astype(np.float64), labels, sensitive_features=groups.codes)
    found = choose_with_fairlearn(labels, scores, groups, constraint, tolerance=tolerance)
    rule = ThresholdRule.from_dict(json.loads(found.to_json()))
    _, fresh, others = people(7, n=300)
    expected = optimizer._pmf_predict(fresh[:, None].astype(np.float64), sensitive_features=others.codes)[:, 1]
    np.testing.assert_allclose(rule.chances(fresh, others)[:, 0], expected, atol=1e-12)
    drawn = np.mean([_reseeded(rule, seed).decide(fresh, others) for seed in range(400)], axis=0)
    np.testing.assert_allclose(drawn, expected, atol=0.13)
    np.testing.assert_array_equal(rule.decide(fresh, others), rule.decide(fresh, others))


def _reseeded(rule: ThresholdRule, seed: int) -> ThresholdRule:
    return ThresholdRule.from_dict({**rule.as_dict(), "seed": seed})


def test_what_fairlearn_cannot_compare_keeps_the_models_own_threshold() -> None:
    labels, scores, groups = people(2, n=90)
    labels = np.where(groups.codes == 2, 1, labels)
    rule = choose_with_fairlearn(labels, scores, groups, "demographic_parity", minimum=10)
    assert set(rule.outputs[0].groups) == {"a", "b"}
    assert "c is too small (under 10 people) or without people of both labels" in rule.notes[0]
    np.testing.assert_array_equal(rule.decide(scores, groups)[groups.codes == 2], (scores > 0)[groups.codes == 2])


@pytest.mark.parametrize("per_group", [False, True])
def test_a_rule_read_from_json_decides_alike(per_group: bool) -> None:
    labels, scores, groups = people(9, n=120)
    for objective in ("match_labels", "equal_opportunity", "equalized_odds", "worst_group"):
        rule = choose_thresholds(labels, scores, groups, objective, per_group=per_group, minimum=10)
        again = ThresholdRule.from_dict(json.loads(rule.to_json()))
        assert again == rule
        edges = np.array([t for o in rule.outputs for c in (o.everyone, *o.groups.values()) for t in c.thresholds])
        edges = edges[np.isfinite(edges)]
        values = np.concatenate([scores, edges, np.nextafter(edges, -np.inf)])
        codes = np.arange(len(values)) % 4 - 1
        others = GroupLabels(groups.names, codes, "group")
        np.testing.assert_array_equal(again.decide(values, others), rule.decide(values, others))
    with pytest.raises(InputError, match="not a threshold rule"):
        ThresholdRule.from_dict({"kind": "thresholds"})


def test_groups_are_told_apart_by_name() -> None:
    """The same people under another order of names, and a group that nobody knew on validation."""
    labels, scores, groups = people(4, n=120)
    rule = choose_thresholds(labels, scores, groups, "worst_group", per_group=True, minimum=10)
    turned = GroupLabels(("new", "c", "b", "a"), 3 - groups.codes, "group")
    np.testing.assert_array_equal(rule.decide(scores, turned), rule.decide(scores, groups))
    strangers = GroupLabels(("new",), np.zeros(120, dtype=np.int64), "group")
    unknown = GroupLabels(("a",), np.full(120, -1), "group")
    np.testing.assert_array_equal(rule.decide(scores, strangers), rule.decide(scores, unknown))
    with pytest.raises(InputError, match="deciding about people needs their group"):
        rule.decide(scores)
    with pytest.raises(InputError, match="chosen per group, the groups given are by age"):
        rule.decide(scores, GroupLabels(groups.names, groups.codes, "age"))


def test_torch_numpy_and_onnx_runtime_decide_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 6)).astype(np.float32)
    labels = (inputs[:, 0] + rng.normal(size=400) > 0.8).astype(np.int64)
    groups = GroupLabels(("a", "b"), rng.integers(0, 2, 400), "group")
    export(model, torch.zeros(2, 6), tmp_path / "m.onnx", samples=torch.from_numpy(inputs[:32]))
    by_torch, by_onnx = TorchPredictor(model), OnnxPredictor(tmp_path / "m.onnx")
    first, second = inputs[:200], inputs[200:]
    logits = by_torch(first)
    rule = choose_thresholds(labels[:200], logits, groups.take(np.arange(200)), "match_labels")
    batches = np.array_split(second, 3)
    decided = [predict(ThresholdedPredictor(p, rule), batches, progress=False) for p in (by_torch, by_onnx)]
    np.testing.assert_array_equal(*decided)
    np.testing.assert_array_equal(decided[0].argmax(1), rule.decide(by_torch(second)))
    found = evaluate(labels[200:], decided[1], groups.take(np.arange(200, 400)))
    assert found.accuracy.value == accuracy_score(labels[200:], rule.decide(by_onnx(second)))
    assert not np.array_equal(decided[0].argmax(1), by_torch(second).argmax(1)), "the threshold changes something"
    own = choose_thresholds(labels[:200], logits, groups.take(np.arange(200)), "worst_group", per_group=True)
    with pytest.raises(InputError, match="needs their group"):
        ThresholdedPredictor(by_torch, own)(second)
    mine = groups.take(np.arange(200, 400))
    np.testing.assert_array_equal(
        ThresholdedPredictor(by_onnx, own)(second, groups=mine).argmax(1), own.decide(by_torch(second), mine)
    )


def test_what_cannot_be_chosen_is_said() -> None:
    labels, scores, groups = people(0)
    with pytest.raises(InputError, match="this task has 3 classes"):
        choose_thresholds(labels, np.zeros((24, 3), dtype=np.float32), groups, "match_labels")
    with pytest.raises(InputError, match="needs dense_logits="):
        choose_thresholds(labels, scores, groups, "match_dense")
    one = np.where(groups.codes == 0, labels, 1)
    with pytest.raises(InputError, match="1 of 3 groups by group can be: each needs 5 people and people of both"):
        choose_thresholds(one, scores, groups, "equalized_odds", minimum=5)
    with pytest.raises(InputError, match="0 of 3 groups"):
        choose_thresholds(labels, scores, groups, "worst_group", minimum=9)
    with pytest.raises(InputError, match="budget is the share"):
        choose_thresholds(labels, scores, groups, "equalized_odds", budget=1.0)
    with pytest.raises(InputError, match="whole numbers from 0 to 1"):
        choose_thresholds(labels + 1, scores, groups, "worst_group")
    with pytest.raises(InputError, match="NaN or infinite for 1 of 24 people, first in row 3"):
        choose_thresholds(labels, np.where(np.arange(24) == 3, np.nan, scores), groups, "worst_group")
    with pytest.raises(InputError, match="must describe the same people"):
        choose_thresholds(labels, scores, groups.take(np.arange(20)), "worst_group")


def test_overrides_by_hand() -> None:
    """Five people; the dense model is least sure of the third, then of the first, then of the fourth."""
    labels = np.array([0, 1, 1, 1, 0])
    dense = np.array([-0.5, 4.0, 0.1, 1.0, -9.0])
    pruned = np.array([0.5, 3.0, -2.0, -1.5, -0.1])
    groups = GroupLabels(("a", "b"), np.array([0, 0, 1, 1, 1]))
    (curve,) = override_curve(labels, pruned, groups, dense, budgets=[0, 0.2, 0.4, 0.6, 1])
    assert [p.overridden for p in curve] == [0, 1, 2, 3, 5]
    assert [p.accuracy for p in curve] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    assert curve[2].by_group.tolist() == pytest.approx([1.0, 2 / 3])
    assert curve[2].overridden_by_group.tolist() == pytest.approx([0.5, 1 / 3])
    assert curve[2].worst == pytest.approx(2 / 3)
    assert curve[2].gap == pytest.approx(1 / 3)
    policy = choose_override(pruned, dense, budget=0.4)
    assert policy.cutoffs == (0.75,)
    done = policy.apply(pruned, dense_logits=dense)
    assert done.overridden.tolist() == [True, False, True, False, False]
    assert done.decisions.tolist() == [0, 1, 1, 0, 0]
    unsure = choose_override(pruned, budget=0.2, uncertain_under="pruned", answer_of="human")
    assert unsure.apply(pruned, labels=1 - labels).decisions.tolist() == [1, 1, 0, 0, 1]
    assert OverridePolicy.from_dict(json.loads(json.dumps(unsure.as_dict(), allow_nan=False))) == unsure
    with pytest.raises(InputError, match="takes the dense model's answers"):
        choose_override(pruned, budget=0.2, uncertain_under="pruned").apply(pruned)
    with pytest.raises(InputError, match="pass labels="):
        unsure.apply(pruned)
    with pytest.raises(InputError, match=r"from 0 to 1; got 1\.5"):
        choose_override(pruned, dense, budget=1.5)


@pytest.mark.parametrize("uncertain_under", ["dense", "pruned"])
@pytest.mark.parametrize("answer_of", ["dense", "human"])
@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass"])
def test_curve_and_policy_against_a_loop_over_people(task: Any, answer_of: Any, uncertain_under: Any) -> None:
    rng = np.random.default_rng(3)
    n, width = 40, {"binary": 2, "multilabel": 3, "multiclass": 4}[task]
    dense, pruned = (rng.normal(size=(n, width)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 4 if task == "multiclass" else 2, (n, 3) if task == "multilabel" else n)
    groups = GroupLabels(("a", "b"), rng.integers(0, 2, n))
    budgets = [0.0, 0.1, 0.33, 1.0]
    choices: dict[str, Any] = {"uncertain_under": uncertain_under, "answer_of": answer_of}
    curves = override_curve(labels, pruned, groups, dense, budgets=budgets, **choices)
    unsure = dense if uncertain_under == "dense" else pruned
    for output in range(3 if task == "multilabel" else 1):

        def answer(logits: Array, i: int, output: int = output) -> int:
            return int(logits[i, output] > 0) if task == "multilabel" else int(logits[i].argmax())

        def margin(i: int, output: int = output) -> float:
            ordered = sorted(unsure[i].tolist())
            return float(abs(unsure[i, output])) if task == "multilabel" else ordered[-1] - ordered[-2]

        order = sorted(range(n), key=margin)
        truth = labels[:, output] if task == "multilabel" else labels
        for budget, point in zip(budgets, curves[output], strict=True):
            picked = set(order[: int(budget * n + 1e-9)])
            given = [
                (truth[i] if answer_of == "human" else answer(dense, i)) if i in picked else answer(pruned, i)
                for i in range(n)
            ]
            assert point.overridden == len(picked)
            assert point.accuracy == pytest.approx(accuracy_score(truth, given))
            frame = MetricFrame(metrics=accuracy_score, y_true=truth, y_pred=given, sensitive_features=groups.codes)
            assert point.by_group.tolist() == pytest.approx(frame.by_group.tolist())
            policy = choose_override(pruned, dense, budget=budget, task=task, **choices)
            done = policy.apply(pruned, dense_logits=dense, labels=labels)
            decided = done.decisions[:, output] if task == "multilabel" else done.decisions
            assert decided.tolist() == given
            assert done.overridden.shape == labels.shape
    end = [curve[-1].accuracy for curve in curves]
    alone = (dense > 0).astype(int) == labels if task == "multilabel" else (dense.argmax(1) == labels)[:, None]
    assert end == pytest.approx([1.0] * len(end) if answer_of == "human" else alone.mean(axis=0).tolist())


def test_equal_margins_stay_together_within_the_budget() -> None:
    margins = np.array([1.0, 1.0, -1.0, 0.5, 2.0])
    policy = choose_override(margins, margins, budget=0.6)
    assert policy.apply(margins, dense_logits=margins).overridden.tolist() == [False, False, False, True, False]
    assert "1 of the budget of 3 people" in policy.notes[0]
    nobody = choose_override(np.ones(5), np.ones(5), budget=0.6)
    assert not nobody.apply(np.zeros(5), dense_logits=np.zeros(5)).overridden.any(), "not even people of margin 0"
    assert choose_override(np.ones(5), np.ones(5), budget=1.0).cutoffs == (1.0,)


def test_an_effect_is_what_fairlearn_measures_before_and_after() -> None:
    labels, scores, groups = people(6, n=600)
    rule = choose_thresholds(labels, scores, groups, "equalized_odds", per_group=True, budget=0.05)
    before, after = (scores > 0).astype(np.int64), rule.decide(scores, groups)
    effect = judge(labels, after, before, groups, resamples=400)
    old, new = (
        equalized_odds_difference(labels, decided, sensitive_features=groups.codes) for decided in (before, after)
    )
    assert effect.before is not None
    assert effect.change is not None
    assert effect.evaluation.binary is not None
    assert effect.before.equalized_odds_difference.value == pytest.approx(old)
    assert effect.evaluation.binary.equalized_odds_difference.value == pytest.approx(new)
    change = effect.change.equalized_odds_difference
    assert change.value == pytest.approx(new - old)
    assert change.interval is not None
    assert change.interval.low < new - old < change.interval.high
    recalls = [recall_score(labels[groups.codes == g], after[groups.codes == g]) for g in range(3)]
    difference = effect.evaluation.binary.equal_opportunity_difference.value
    assert difference == pytest.approx(max(recalls) - min(recalls))
    json.dumps(effect.as_dict(), allow_nan=False)
    same = judge(labels, before, before, groups, resamples=400)
    assert same.change is not None
    assert (same.change.equalized_odds_difference.value, same.change.equalized_odds_difference.interval) != (None, None)
    interval = same.change.equalized_odds_difference.interval
    assert interval is not None
    assert interval.low == interval.high == 0, "paired: both sides fall on the same resamples"


def test_paired_resampling_against_resampling_rows() -> None:
    """The interval of a change of differences, by drawing rows one by one."""
    labels, scores, groups = people(8, n=400)
    before, after = (scores > 0).astype(np.int64), (scores > 0.6).astype(np.int64)
    effect = judge(labels, after, before, groups, resamples=2000)
    rng = np.random.default_rng(5)
    changes = []
    for _ in range(2000):
        rows = rng.integers(0, 400, 400)
        rates = [[d[rows][groups.codes[rows] == g].mean() for g in range(3)] for d in (after, before)]
        changes.append(np.ptp(rates[0]) - np.ptp(rates[1]))
    assert effect.change is not None
    interval = effect.change.demographic_parity_difference.interval
    assert interval is not None
    assert [interval.low, interval.high] == pytest.approx(np.quantile(changes, [0.025, 0.975]).tolist(), abs=0.015)
