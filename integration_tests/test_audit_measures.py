"""Every number of an audit against scikit-learn, fairlearn, or a table worked out by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_negative_rate,
    true_positive_rate,
)
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People, TrainingPeople
from fair_prune_plugins.audit.measures import Measures, measure
from fair_prune_plugins.audit.measures.answers import Answers
from fair_prune_plugins.audit.measures.interdependence import explain
from fair_prune_plugins.audit.measures.resampling import FOLDS, Resampling
from fair_prune_plugins.evaluation.intervals import Estimate
from fair_prune_plugins.groups import GroupLabels
from integration_tests.audited_people import make_audit

SHARES = {
    "accuracy": accuracy_score,
    "true_positive": true_positive_rate,
    "false_positive": false_positive_rate,
    "true_negative": true_negative_rate,
    "predicted_positive": selection_rate,
}
TASKS: list[dict[str, Any]] = [
    {"task": "multilabel", "runs": 2, "unknown": 40},
    {"task": "binary", "outputs": ("Smiling",), "unknown": 40},
    {"task": "multiclass", "outputs": ("cat", "dog", "eel"), "runs": 2},
]


def measured(data: AuditData, **settings: Any) -> Measures:
    return measure(data, **{"resamples": 60, "progress": False, **settings})


def known(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.value is not None
    return estimate.value


def number(estimate: Estimate) -> float:
    return math.nan if estimate.value is None else estimate.value


def calibration_error(truth: Any, probability: Any) -> float:
    """The definition, person by person."""
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for y, p in zip(truth, probability, strict=True):
        by_bin.setdefault(math.floor(10 * p), []).append((p, y))
    gaps = [
        abs(statistics.fmean(p for p, _ in b) - statistics.fmean(y for _, y in b)) * len(b) for b in by_bin.values()
    ]
    return sum(gaps) / len(truth)


@pytest.fixture(scope="module", params=TASKS, ids=[t["task"] for t in TASKS])
def audited(request: pytest.FixtureRequest) -> tuple[AuditData, Measures]:
    data = make_audit(700, pruned=1, **request.param)
    return data, measured(data)


def test_columns_of_answers_are_the_data_s(audited: tuple[AuditData, Measures]) -> None:
    data, _ = audited
    for model in data.models:
        answers = Answers(data, model)
        for run in range(len(model.runs)):
            for output in range(len(data.people.outputs)):
                assert (answers.answered(output, run) == data.answers(model, run)[:, output]).all()
                expected = data.probabilities(model, run)[:, output]
                np.testing.assert_allclose(answers.probability(output, run), expected, rtol=1e-12)


def test_shares_per_group_and_pooled_as_fairlearn_has_them(audited: tuple[AuditData, Measures]) -> None:
    data, found = audited
    for model, entry in zip(data.models, found.models, strict=True):
        for a, output in enumerate(entry.outputs):
            truth = data.people.truths[:, a]
            for groups, attribute in zip(data.people.groups, output.attributes, strict=True):
                rows = groups.codes >= 0
                frames = [
                    MetricFrame(
                        metrics=SHARES,
                        y_true=truth[rows],
                        y_pred=data.answers(model, run)[rows, a],
                        sensitive_features=np.array(groups.names)[groups.codes[rows]],
                    )
                    for run in range(len(model.runs))
                ]
                for group in attribute.groups:
                    for name in SHARES:
                        expected = np.mean([frame.by_group.loc[group.name, name] for frame in frames])
                        assert known(getattr(group.scores, name)) == pytest.approx(expected)
            for name, metric in SHARES.items():
                expected = np.mean([metric(truth, data.answers(model, r)[:, a]) for r in range(len(model.runs))])
                assert known(getattr(output.everybody.scores, name)) == pytest.approx(expected)
            assert output.accuracy_by_run == pytest.approx(
                [accuracy_score(truth, data.answers(model, r)[:, a]) for r in range(len(model.runs))]
            )


def test_auroc_ece_and_uncertainty_per_group(audited: tuple[AuditData, Measures]) -> None:
    data, found = audited
    for model, entry in zip(data.models, found.models, strict=True):
        for a, output in enumerate(entry.outputs):
            truth = data.people.truths[:, a]
            chances = [data.probabilities(model, run)[:, a] for run in range(len(model.runs))]
            rows_of = [(output.everybody, np.ones(len(truth), bool))]
            for groups, attribute in zip(data.people.groups, output.attributes, strict=True):
                rows_of += [(group, groups.codes == i) for i, group in enumerate(attribute.groups)]
            for group, rows in rows_of:
                assert (group.n, group.positives) == (rows.sum(), truth[rows].sum())
                expected = np.mean([roc_auc_score(truth[rows], p[rows]) for p in chances])
                assert known(group.scores.auroc) == pytest.approx(expected)
                expected = np.mean([calibration_error(truth[rows], p[rows]) for p in chances])
                assert known(group.scores.ece) == pytest.approx(expected)
                expected = np.mean([(p[rows] > 0.1) & (p[rows] < 0.9) for p in chances])
                assert known(group.scores.uncertainty) == pytest.approx(expected)


def test_a_change_is_pruned_minus_dense(audited: tuple[AuditData, Measures]) -> None:
    _, found = audited
    for dense, pruned in zip(found.dense.outputs, found.pruned[0].outputs, strict=True):
        assert dense.everybody.change is None
        pairs = [(dense.everybody, pruned.everybody)]
        for before, after in zip(dense.attributes, pruned.attributes, strict=True):
            pairs += zip(before.groups, after.groups, strict=True)
            assert before.gaps_change is None
            for name in after.gaps.__slots__:
                expected = known(getattr(after.gaps, name)) - known(getattr(before.gaps, name))
                assert known(getattr(after.gaps_change, name)) == pytest.approx(expected)
        for first, second in pairs:
            for name in second.scores.__slots__:
                expected = known(getattr(second.scores, name)) - known(getattr(first.scores, name))
                assert known(getattr(second.change, name)) == pytest.approx(expected, abs=1e-12)


def test_gaps_as_fairlearn_has_them() -> None:
    data = make_audit(700, pruned=1)
    found = measured(data)
    for model, entry in zip(data.models, found.models, strict=True):
        for a, output in enumerate(entry.outputs):
            for groups, attribute in zip(data.people.groups, output.attributes, strict=True):
                arguments = (data.people.truths[:, a], data.answers(model, 0)[:, a])
                by = {"sensitive_features": groups.codes}
                gaps = attribute.gaps
                assert known(gaps.demographic_parity) == pytest.approx(demographic_parity_difference(*arguments, **by))
                assert known(gaps.equal_opportunity_1) == pytest.approx(equal_opportunity_difference(*arguments, **by))
                assert known(gaps.equalized_odds_worst) == pytest.approx(equalized_odds_difference(*arguments, **by))
                assert known(gaps.equalized_odds) == pytest.approx(
                    equalized_odds_difference(*arguments, **by, agg="mean")
                )
                frame = MetricFrame(
                    metrics={"accuracy": accuracy_score, "negative": true_negative_rate},
                    y_true=arguments[0],
                    y_pred=arguments[1],
                    **by,
                )
                assert known(gaps.accuracy) == pytest.approx(frame.difference()["accuracy"])
                assert known(gaps.equal_opportunity_0) == pytest.approx(frame.difference()["negative"])
                scores = [known(group.scores.auroc) for group in attribute.groups]
                assert known(gaps.auroc) == pytest.approx(max(scores) - min(scores))


def logits_that_answer(answers: list[int]) -> Any:
    return np.where(np.array(answers) == 1, 3.0, -3.0)


def two_groups(truth: list[int], first: list[int], second: list[int] | None = None, training: Any = None) -> AuditData:
    """Half the people are ``a``, the others ``b``; the dense model answers ``first``, the pruned one ``second``."""
    half = len(truth) // 2
    groups = GroupLabels(("a", "b"), np.repeat([0, 1], half), "side")
    people = People(tuple(str(i) for i in range(len(truth))), np.array(truth), (groups,), ("smiling",), "binary")
    pruned = () if second is None else (ModelPredictions("pruned", (logits_that_answer(second),)),)
    return AuditData(people, ModelPredictions("dense", (logits_that_answer(first),)), pruned, training)


def test_opposite_gaps_cancel_only_in_the_form_that_says_so() -> None:
    truth = [1, 1, 1, 1, 0, 0, 0, 0] * 2
    answers = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]  # TPR 1 and 1/2, FPR 0 and 1/2
    gaps = measured(two_groups(truth, answers)).dense.outputs[0].attributes[0].gaps
    assert known(gaps.equalized_odds_cancelling) == 0.0
    assert known(gaps.equalized_odds) == 0.5
    assert known(gaps.equalized_odds_worst) == 0.5


def test_disparities_by_hand() -> None:
    truth = [1] * 20
    first = [1] * 18 + [0] * 2  # a: 10 of 10, b: 8 of 10
    second = [1] * 9 + [0] + [1] * 5 + [0] * 5  # a: 9 of 10, b: 5 of 10
    output = measured(two_groups(truth, first, second)).pruned[0].outputs[0]
    attribute = output.attributes[0]
    disparity = attribute.disparity
    assert disparity is not None
    assert known(disparity.rho) == pytest.approx(statistics.stdev([-0.1, -0.3]))
    assert [known(g.excess_gap) for g in attribute.groups] == pytest.approx([-0.1, 0.1])  # everybody lost 0.2
    assert known(disparity.max_excess_gap) == pytest.approx(0.1)
    assert known(disparity.pairwise_excess_gap) == pytest.approx(0.2)


def test_rare_values_by_hand() -> None:
    training = TrainingPeople(np.array([1, 1, 1, 0]), (GroupLabels(("a", "b"), np.array([0, 0, 1, 1]), "side"),))
    truth = [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]
    answers = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    found = measured(two_groups(truth, answers, training=training))
    assert found.truths[0].rare == 0  # 1 in 4 in training, though half in test
    output = found.dense.outputs[0]
    assert known(output.everybody.scores.rare_value) == pytest.approx(3 / 6)
    assert [known(g.scores.rare_value) for g in output.attributes[0].groups] == pytest.approx([3 / 4, 0])
    without = measured(two_groups(truth, answers))
    assert without.truths[0].rare == 1
    assert known(without.dense.outputs[0].everybody.scores.rare_value) == pytest.approx(9 / 6)


def amplified(positive: tuple[int, int], answered: tuple[int, int], trained: tuple[int, int] | None) -> Any:
    """The audit of 40 people a side: so many of them truly 1, and answered 1; of 100 in training so many are 1."""
    truth = [1] * positive[0] + [0] * (40 - positive[0]) + [1] * positive[1] + [0] * (40 - positive[1])
    answers = [1] * answered[0] + [0] * (40 - answered[0]) + [1] * answered[1] + [0] * (40 - answered[1])
    training = None
    if trained is not None:
        labels = np.r_[np.arange(100) < trained[0], np.arange(100) < trained[1]].astype(np.int64)
        training = TrainingPeople(labels, (GroupLabels(("a", "b"), np.repeat([0, 1], 100), "side"),))
    return measured(two_groups(truth, answers, answers, training))


def test_amplification_by_hand() -> None:
    found = amplified((20, 12), (30, 6), (50, 30))
    for entry, sided in zip(found.dense.outputs[0].attributes[0].amplification, (True, False), strict=True):
        assert known(entry.value) == pytest.approx(30 / 36 - 20 / 32)  # with a, where it was truer, for either side
        assert (entry.with_group, entry.undefined, entry.change) == (sided, None, None)
    assert found.dense.outputs[0].attributes[0].amplification[0].training_share == 0.5
    assert found.dense.outputs[0].attributes[0].amplification[0].training_share_others == 0.3
    assert known(found.pruned[0].outputs[0].attributes[0].amplification[0].change) == 0.0
    against = amplified((20, 12), (30, 6), (30, 50))
    assert known(against.dense.outputs[0].attributes[0].amplification[0].value) == pytest.approx(6 / 36 - 12 / 32)


@pytest.mark.parametrize(
    ("positive", "answered", "trained", "reason"),
    [
        ((20, 9), (30, 6), (50, 30), "too few true cases"),
        ((20, 12), (30, 6), (50, 46), "as frequent in training among both"),
        ((20, 12), (30, 6), (0, 0), "as frequent in training among both"),
        ((20, 12), (0, 0), (50, 30), "never answered"),
    ],
)
def test_amplification_is_undefined_rather_than_zero(positive: Any, answered: Any, trained: Any, reason: str) -> None:
    for model in amplified(positive, answered, trained).models:
        for entry in model.outputs[0].attributes[0].amplification:
            assert entry.value == Estimate(None, None)
            assert entry.undefined == reason
            assert entry.change in (None, Estimate(None, None))


def test_an_output_is_not_judged_against_itself() -> None:
    data = make_audit(600, outputs=("Smiling", "Gender"), pruned=0)
    by_race, by_gender = measured(data).dense.output("Gender").attributes
    assert {entry.undefined for entry in by_gender.amplification} == {"the output is the attribute itself"}
    assert "the output is the attribute itself" not in {entry.undefined for entry in by_race.amplification}


def test_amplification_of_many_groups_is_each_against_the_rest() -> None:
    data = make_audit(900, pruned=0, unknown=50)
    attribute = measured(data).dense.outputs[0].attributes[0]
    groups, truth, answers = data.people.groups[0], data.people.truths[:, 0], data.answers(data.dense, 0)[:, 0]
    inside = groups.codes >= 0
    checked = 0
    for i, entry in enumerate(attribute.amplification):
        mine = groups.codes == i
        others = inside & ~mine
        assert entry.training_share == pytest.approx(truth[mine].mean())
        assert entry.training_share_others == pytest.approx(truth[others].mean())
        if entry.undefined:
            continue
        side = mine if truth[mine].mean() > truth[others].mean() else others
        expected = answers[side].sum() / answers[inside].sum() - truth[side].sum() / truth[inside].sum()
        assert known(entry.value) == pytest.approx(expected)
        checked += 1
    assert checked


def test_interdependence_as_scikit_learn_fits_it() -> None:
    rng = np.random.default_rng(0)
    factor = rng.random((1500, 4))
    answers = np.stack(
        [
            factor[:, 0] > 0.5,
            factor[:, 0] + 0.3 * factor[:, 1] > 0.6,
            factor[:, 2] > 0.9,
            factor[:, 2] > 0.9,  # twice the same
            factor[:, 3] + factor[:, 0] > 1.2,
            np.zeros(1500, bool),  # never answered
            factor[:, 2] > 0.85,
            factor[:, 1] > 0.001,  # constant in some folds
        ],
        axis=1,
    )
    resampling = Resampling(tuple(str(i) for i in range(1500)), 40, rng)
    found = explain(answers, resampling)
    for a in range(answers.shape[1]):
        y, others = answers[:, a].astype(float), np.delete(answers, a, axis=1).astype(float)
        if not y.any():
            assert np.isnan(found.in_sample[0, a])
            assert np.isnan(found.held_out[0, a])
            continue
        assert found.in_sample[0, a] == pytest.approx(LinearRegression().fit(others, y).score(others, y), abs=1e-7)
        predicted = cross_val_predict(LinearRegression(), others, y, cv=PredefinedSplit(resampling.block % FOLDS))
        assert found.held_out[0, a] == pytest.approx(r2_score(y, predicted), abs=1e-7)


def test_interdependence_is_of_answers_and_of_labels_and_a_mean_over_runs() -> None:
    data = make_audit(500, runs=2, pruned=1)
    found = measured(data)

    def fitted(outputs: Any, a: int) -> float:
        others = np.delete(outputs, a, axis=1)
        return float(LinearRegression().fit(others, outputs[:, a]).score(others, outputs[:, a]))

    for a, truth in enumerate(found.truths):
        assert truth.interdependence is not None
        assert known(truth.interdependence.in_sample) == pytest.approx(fitted(data.people.truths, a), abs=1e-7)
        levels = []
        for model, entry in zip(data.models, found.models, strict=True):
            expected = np.mean([fitted(data.answers(model, run), a) for run in range(2)])
            of_output = entry.outputs[a].interdependence
            assert of_output is not None
            assert known(of_output.in_sample) == pytest.approx(expected, abs=1e-7)
            levels.append(expected)
        change = found.pruned[0].outputs[a].interdependence_change
        assert change is not None
        assert known(change.in_sample) == pytest.approx(levels[1] - levels[0], abs=1e-7)
    assert measured(make_audit(200, task="multiclass", pruned=0)).truths[0].interdependence is None


def test_overall_accuracy_is_the_class_s_or_the_mean_over_outputs() -> None:
    classes = make_audit(600, task="multiclass", outputs=("cat", "dog", "eel"), runs=2, pruned=1, unknown=30)
    labels = make_audit(600, runs=2, pruned=1, unknown=30)
    assert measured(make_audit(200, task="binary", outputs=("Smiling",))).dense.overall is None
    for data in (classes, labels):
        truth = data.people.labels.reshape(len(data.people), -1)
        right = [np.mean([(data.decisions(m, r) == truth).mean(axis=1) for r in range(2)], axis=0) for m in data.models]
        found = measured(data)
        for mine, entry in zip(right, found.models, strict=True):
            overall = entry.overall
            assert overall is not None
            assert known(overall.everybody.accuracy) == pytest.approx(mine.mean())
            assert np.mean(overall.accuracy_by_run) == pytest.approx(mine.mean())
            for groups, attribute in zip(data.people.groups, overall.attributes, strict=True):
                by_group = [mine[groups.codes == i].mean() for i in range(len(groups.names))]
                assert [known(g.accuracy) for g in attribute.groups] == pytest.approx(by_group)
                assert known(attribute.gap) == pytest.approx(max(by_group) - min(by_group))
        pruned = found.pruned[0].overall
        assert pruned is not None
        for groups, attribute in zip(data.people.groups, pruned.attributes, strict=True):
            changes = [(right[1] - right[0])[groups.codes == i].mean() for i in range(len(groups.names))]
            assert [known(g.change) for g in attribute.groups] == pytest.approx(changes)
            assert attribute.disparity is not None
            assert known(attribute.disparity.rho) == pytest.approx(statistics.stdev(changes))
            worst = (right[1] - right[0]).mean() - min(changes)
            assert known(attribute.disparity.max_excess_gap) == pytest.approx(worst)
