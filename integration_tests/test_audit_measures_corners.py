"""Where a number is undefined, or nearly: an audit says so, and never 0 instead."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.audit.measures import EVERYBODY, MeasuredGroup, Measures, measure
from fair_prune_plugins.audit.measures.result import NO_SUCH
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import Estimate, Interval
from fair_prune_plugins.groups import GroupLabels
from integration_tests.audited_people import make_audit

NOTHING = Estimate(None, None)


def binary(
    truth: Any, logits: Any, codes: Any, *, names: tuple[str, ...] = ("a", "b"), pruned: Any = None
) -> AuditData:
    people = People(
        tuple(str(i) for i in range(len(truth))),
        np.array(truth),
        (GroupLabels(names, np.array(codes), "side"),),
        ("smiling",),
        "binary",
    )
    others = () if pruned is None else (ModelPredictions("pruned", (np.array(pruned, dtype=float),)),)
    return AuditData(people, ModelPredictions("dense", (np.array(logits, dtype=float),)), others)


def measured(data: AuditData, **settings: Any) -> Measures:
    return measure(data, **{"resamples": 60, "progress": False, **settings})


def groups_of(found: Measures, model: int = 0) -> tuple[MeasuredGroup, ...]:
    return found.models[model].outputs[0].attributes[0].groups


def test_a_group_with_one_class_has_no_auroc_and_one_rate_and_is_left_out_of_gaps_in_the_other() -> None:
    truth = [1] * 20 + [0, 1] * 20
    logits = np.random.default_rng(0).normal(size=60) + np.array(truth)
    found = measured(binary(truth, logits, [0] * 20 + [1] * 40, pruned=logits + 0.3))
    for model in (0, 1):
        one, both = groups_of(found, model)
        assert one.scores.auroc == one.scores.false_positive == one.scores.true_negative == NOTHING
        assert one.scores.true_positive.value is not None
        assert both.scores.auroc.value is not None
        gaps = found.models[model].outputs[0].attributes[0].gaps
        assert (
            gaps.auroc == gaps.equal_opportunity_0 == gaps.equalized_odds == gaps.equalized_odds_cancelling == NOTHING
        )
        assert gaps.equal_opportunity_1.value is not None
    assert one.change is not None
    assert one.change.auroc == one.change.false_positive == NOTHING
    assert found.dense.outputs[0].attributes[0].gaps_by_chance.equal_opportunity_0 is None


def test_no_answer_of_1_is_a_share_of_0_and_no_amplification() -> None:
    truth = [0, 1] * 30
    found = measured(binary(truth, [-1.0] * 60, [0] * 30 + [1] * 30))
    for group in groups_of(found):
        bound = 1 - 0.025 ** (1 / 30)
        assert group.scores.predicted_positive == Estimate(0.0, Interval(0.0, pytest.approx(bound), method="exact"))
        assert group.scores.rare_value.value == 0.0
        assert group.scores.rare_value.interval is not None
        assert group.scores.rare_value.interval.high == pytest.approx(2 * bound)
        assert group.scores.auroc == Estimate(
            0.5,
            Interval(
                pytest.approx(0.5 * 0.025 ** (1 / 15)), pytest.approx(1 - 0.5 * 0.025 ** (1 / 15)), method="exact"
            ),
        )
    for entry in found.dense.outputs[0].attributes[0].amplification:
        assert entry.value == NOTHING
        assert entry.undefined is not None


def test_a_logit_of_0_is_answered_0_and_tied_scores_count_half() -> None:
    truth = np.array([0, 1] * 25)
    logits = np.random.default_rng(1).integers(-1, 2, 50).astype(float)
    codes = np.arange(50) // 25
    found = measured(binary(truth, logits, codes))
    assert found.dense.outputs[0].everybody.scores.predicted_positive.value == (logits > 0).mean()
    for i, group in enumerate(groups_of(found)):
        assert group.scores.auroc.value == pytest.approx(roc_auc_score(truth[codes == i], logits[codes == i]))


def test_classes_fully_apart_leave_room_below_1() -> None:
    truth = np.array([0, 1] * 20)
    scores = measured(binary(truth, truth - 0.5, [0] * 40)).dense.outputs[0].everybody.scores
    assert scores.auroc == Estimate(1.0, Interval(pytest.approx(0.025 ** (1 / 20)), 1.0, method="exact"))
    assert scores.accuracy == Estimate(1.0, Interval(pytest.approx(0.025 ** (1 / 40)), 1.0, method="exact"))


def test_one_person_of_a_class_gives_an_auroc_without_interval() -> None:
    scores = measured(binary([1] + [0] * 30, np.arange(31.0), [0] * 31)).dense.outputs[0].everybody.scores
    assert scores.auroc == Estimate(0.0, None)


@pytest.mark.parametrize("value", [0, 1])
def test_a_class_that_is_missing_in_test(value: int) -> None:
    logits = np.random.default_rng(2).normal(size=60)
    found = measured(binary([value] * 60, logits, [0, 1] * 30, pruned=-logits))
    output = found.pruned[0].outputs[0]
    for entry in (output.everybody, *output.attributes[0].groups):
        missing = entry.scores.false_positive if value else entry.scores.true_positive
        assert missing == entry.scores.auroc == NOTHING
        assert entry.change is not None
        assert entry.change.auroc == NOTHING
        assert entry.scores.ece.value is not None
        assert (entry.scores.rare_value == NOTHING) == (found.truths[0].rare != value)
    assert any("smiling" in note and "undefined" in note for note in found.notes)


def test_nobody_in_a_group() -> None:
    rng = np.random.default_rng(3)
    data = binary(
        rng.integers(0, 2, 80), rng.normal(size=80), [0, 2] * 40, names=("a", "b", "c"), pruned=rng.normal(size=80)
    )
    for found in (measured(data), measured(data, minimum=0)):
        empty = groups_of(found, 1)[1]
        assert (empty.n, empty.too_small, empty.test, empty.ece_by_chance) == (0, found.minimum > 0, None, None)
        assert empty.change is not None
        for field in fields(empty.scores):
            assert getattr(empty.scores, field.name) == getattr(empty.change, field.name) == NOTHING
        assert empty.excess_gap == NOTHING
        assert found.pruned[0].outputs[0].attributes[0].gaps.accuracy.value is not None


def test_people_of_unknown_group_count_in_pooled_numbers_only() -> None:
    rng = np.random.default_rng(4)
    truth, logits, other = rng.integers(0, 2, 200), rng.normal(size=200), rng.normal(size=200)
    codes = rng.integers(-1, 2, 200)
    found, without = (
        measured(binary(truth[rows], logits[rows], codes[rows], pruned=other[rows]))
        for rows in (np.ones(200, bool), codes >= 0)
    )
    right = (logits > 0) == truth
    assert found.dense.outputs[0].everybody.n == 200
    assert found.dense.outputs[0].everybody.name == EVERYBODY
    assert found.dense.outputs[0].everybody.scores.accuracy.value == right.mean()
    for model in (0, 1):
        for mine, theirs in zip(groups_of(found, model), groups_of(without, model), strict=True):
            assert mine.n == theirs.n
            for field in fields(mine.scores):
                if field.name == "rare_value":
                    continue  # without training people, which value is rare is asked of everybody
                assert getattr(mine.scores, field.name).value == pytest.approx(getattr(theirs.scores, field.name).value)
        ours, plain = (f.models[model].outputs[0].attributes[0] for f in (found, without))
        for field in fields(ours.gaps):
            assert getattr(ours.gaps, field.name).value == pytest.approx(getattr(plain.gaps, field.name).value)
    lost = right.mean() - ((other > 0) == truth).mean()
    for i, group in enumerate(groups_of(found, 1)):
        mine = codes == i
        expected = right[mine].mean() - ((other > 0) == truth)[mine].mean() - lost
        assert group.excess_gap is not None
        assert group.excess_gap.value == pytest.approx(expected)


def test_everybody_of_unknown_group() -> None:
    rng = np.random.default_rng(5)
    data = binary(rng.integers(0, 2, 50), rng.normal(size=50), [-1] * 50, pruned=rng.normal(size=50))
    output = measured(data).pruned[0].outputs[0]
    assert output.everybody.scores.accuracy.value is not None
    assert output.attributes[0].gaps.accuracy == NOTHING
    assert output.attributes[0].disparity is not None
    assert output.attributes[0].disparity.rho == NOTHING


def test_small_groups_are_flagged_and_not_tested_and_count_in_gaps() -> None:
    truth, logits = [1] * 100, [1.0] * 95 + [-1.0] * 5
    found = measured(binary(truth, logits, [0] * 95 + [1] * 5, pruned=[1.0] * 100))
    large, small = groups_of(found, 1)
    assert (large.too_small, small.too_small) == (False, True)
    assert large.test is not None
    assert small.test is None
    assert found.dense.outputs[0].attributes[0].gaps.accuracy.value == 1.0  # as evaluation has it
    assert any("Too small to judge" in note and "b (5)" in note for note in found.notes)


def test_thousands_of_groups() -> None:
    rng = np.random.default_rng(6)
    n, many = 8000, 2000
    codes = rng.integers(-1, many, n)
    truth = rng.integers(0, 2, n)
    logits, other = truth - 0.5 + rng.normal(size=n), truth - 0.5 + rng.normal(size=n)
    names = tuple(f"group {i}" for i in range(many))
    found = measured(binary(truth, logits, codes, names=names, pruned=other), resamples=60, minimum=5)
    groups = groups_of(found, 1)
    right = [((z > 0) == truth) * 1.0 for z in (logits, other)]
    changes = []
    for i in range(many):
        rows = codes == i
        assert groups[i].n == rows.sum()
        if rows.any():
            change = groups[i].change
            assert change is not None
            changes.append((right[1] - right[0])[rows].mean())
            assert change.accuracy.value == pytest.approx(changes[-1], abs=1e-12)
        if i < 100 and 0 < truth[rows].sum() < rows.sum():
            assert groups[i].scores.auroc.value == pytest.approx(roc_auc_score(truth[rows], other[rows]))
    disparity = found.pruned[0].outputs[0].attributes[0].disparity
    assert disparity is not None
    assert disparity.rho.value == pytest.approx(np.std(changes, ddof=1))
    assert disparity.pairwise_excess_gap.value == pytest.approx(max(changes) - min(changes))
    # many more sums than people: kept sparse, and the same resamples as of few groups
    few = measured(binary(truth, logits, np.where(codes == 7, 0, -1), pruned=other), resamples=60, minimum=5)
    for field in fields(groups[7].scores):
        mine, theirs = getattr(groups[7].scores, field.name), getattr(groups_of(few, 1)[0].scores, field.name)
        assert mine.value == pytest.approx(theirs.value)
        assert mine.interval is None or (mine.interval.low, mine.interval.high) == pytest.approx(
            (theirs.interval.low, theirs.interval.high)
        )


def test_models_may_have_different_numbers_of_runs() -> None:
    data = make_audit(300, runs=3, pruned=1)
    mixed = AuditData(data.people, ModelPredictions("dense", data.dense.runs[:2]), data.pruned, data.training)
    found = measured(mixed)
    for a, output in enumerate(found.pruned[0].outputs):
        truth = data.people.truths[:, a]
        shares = [
            np.mean([(mixed.answers(model, r)[:, a] == truth).mean() for r in range(len(model.runs))])
            for model in mixed.models
        ]
        assert output.everybody.scores.accuracy.value == pytest.approx(shares[1])
        assert output.everybody.change is not None
        assert output.everybody.change.accuracy.value == pytest.approx(shares[1] - shares[0])
        assert len(output.accuracy_by_run) == 3
    assert any("dense: 2, pruned" in note for note in found.notes)


def test_several_runs_of_the_same_answers_are_no_more_people() -> None:
    data = make_audit(300, runs=1, pruned=1)
    thrice = AuditData(
        data.people,
        ModelPredictions("dense", data.dense.runs * 3),
        tuple(ModelPredictions(m.name, m.runs * 3) for m in data.pruned),
        data.training,
    )
    for one, three in zip(measured(data).pruned[0].outputs, measured(thrice).pruned[0].outputs, strict=True):
        for mine, theirs in zip(one.attributes[0].groups, three.attributes[0].groups, strict=True):
            assert mine.test == theirs.test
            for record, other in ((mine.scores, theirs.scores), (mine.change, theirs.change)):
                assert record is not None
                for field in fields(record):
                    first, second = getattr(record, field.name), getattr(other, field.name)
                    assert first.value == pytest.approx(second.value)
                    if first.interval is not None:
                        assert first.interval.method == second.interval.method
                        assert (first.interval.low, first.interval.high) == pytest.approx(
                            (second.interval.low, second.interval.high), abs=1e-9
                        )


def test_the_dense_model_alone() -> None:
    found = measured(make_audit(200, pruned=0))
    assert found.pruned == ()
    group = found.dense.outputs[0].attributes[0].groups[0]
    assert (group.change, group.excess_gap, group.test) == (None, None, None)
    assert found.dense.overall is not None
    assert found.dense.overall.attributes[0].disparity is None


def test_records_are_strict_json() -> None:
    rng = np.random.default_rng(8)
    data = binary([1] * 40, rng.normal(size=40), [0, 2] * 20, names=("a", "b", "c"), pruned=rng.normal(size=40))
    for found in (measured(data), measured(make_audit(200, pruned=1, trained=False))):
        text = json.dumps(asdict(found), allow_nan=False)
        assert not any(isinstance(value, float) and math.isnan(value) for value in json.loads(text).values())


def test_unknown_names_are_refused_with_what_there_is() -> None:
    found = measured(make_audit(200, pruned=1))
    assert found.model("dense").output("Smiling").attribute("gender").group("Male").name == "Male"
    for what, call in {
        "model": lambda: found.model("x"),
        "output": lambda: found.dense.output("x"),
        "sensitive attribute": lambda: found.dense.outputs[0].attribute("x"),
        "group": lambda: found.dense.outputs[0].attributes[0].group("x"),
    }.items():
        with pytest.raises(InputError) as refused:
            call()
        assert str(refused.value).startswith(NO_SUCH.split("among")[0].format(what=what, name="x"))


def test_of_decisions_alone_nothing_is_told_that_needs_more() -> None:
    """The same people once with logits, once with nothing but the decisions of the pruned model."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 120)
    dense, pruned = rng.normal(size=120) + truth - 0.5, rng.normal(size=120) + truth - 0.5
    sharp = binary(truth, dense, [0] * 60 + [1] * 60, pruned=pruned)
    decided = ModelPredictions("pruned", (np.where(pruned > 0, 1.0, -1.0),), graded=False)
    blunt = AuditData(sharp.people, sharp.dense, (decided,))
    known, found = measured(sharp), measured(blunt)
    for with_logits, without in zip(groups_of(known, 1), groups_of(found, 1), strict=True):
        assert without.change is not None
        assert without.ece_by_chance is None
        for scores in (without.scores, without.change):
            assert scores.auroc == scores.ece == scores.uncertainty == NOTHING
        for name in ("accuracy", "true_positive", "false_positive", "predicted_positive", "rare_value"):
            assert getattr(without.scores, name) == getattr(with_logits.scores, name)
        assert without.test == with_logits.test
    attribute = found.models[1].outputs[0].attributes[0]
    assert attribute.gaps_change is not None
    assert attribute.gaps.auroc == attribute.gaps_change.auroc == NOTHING
    assert attribute.gaps.accuracy == known.models[1].outputs[0].attributes[0].gaps.accuracy
    assert groups_of(found, 0) == groups_of(known, 0)
