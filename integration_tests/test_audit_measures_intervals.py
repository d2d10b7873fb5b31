"""Intervals and p-values of an audit against bootstraps of rows, sums over all pairs, and enumeration."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from fair_prune_plugins.audit.data import AuditData, ModelPredictions, People
from fair_prune_plugins.audit.measures import Measures, measure
from fair_prune_plugins.audit.measures.auroc import delong, placements
from fair_prune_plugins.audit.measures.change_tests import count_changes, holm, sign_flip
from fair_prune_plugins.audit.measures.resampling import BLOCKS, Resampling
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation.intervals import CONFIDENCE_RANGE, Estimate, Interval
from fair_prune_plugins.groups import GroupLabels
from integration_tests.audited_people import make_audit

RESAMPLES = 1500


def calibration_error(truth: Any, chance: Any) -> float:
    bins = np.floor(10 * chance).astype(int)
    return float(np.abs(np.bincount(bins, chance - truth, 11)).sum() / len(truth))


def explained(answers: Any) -> float:
    return float(LinearRegression().fit(answers[:, 1:], answers[:, 0]).score(answers[:, 1:], answers[:, 0]))


def as_numbers(data: AuditData, rows: Any) -> dict[str, float]:
    """The same numbers, of these rows and by other means."""
    truth, codes = data.people.truths[rows], data.people.groups[0].codes[rows]
    dense, pruned = (data.answers(model, 0)[rows] for model in data.models)
    chances = [data.probabilities(model, 0)[rows][:, 0] for model in data.models]
    mine, y = codes == 1, truth[:, 0]
    rates = [[(said[:, 0] == 1)[(codes == g) & (y == 1)].mean() for g in range(3)] for said in (dense, pruned)]
    changes = [((pruned == truth)[:, 0] * 1.0 - (dense == truth)[:, 0])[codes == g].mean() for g in range(3)]
    change = float(((pruned == truth)[:, 0] * 1.0 - (dense == truth)[:, 0]).mean())
    said = pruned[:, 0] == 1
    return {
        "accuracy": float((pruned == truth)[mine, 0].mean()),
        "change": changes[1],
        "excess": change - changes[1],
        "rate": rates[1][1],
        "ece": calibration_error(y, chances[1]),
        "ece change": calibration_error(y, chances[1]) - calibration_error(y, chances[0]),
        "rare": pruned[mine, 0].sum() / y[mine].sum(),
        "uncertain": float((np.abs(chances[1] - 0.5) < 0.4)[mine].mean()),
        "gap": max(rates[1]) - min(rates[1]),
        "gap change": max(rates[1]) - min(rates[1]) - max(rates[0]) + min(rates[0]),
        "amplified": (said & (codes == 2)).sum() / said.sum() - y[codes == 2].sum() / y.sum(),
        "explained": explained(pruned),
        "overall": float((pruned == truth).mean() - (dense == truth).mean()),
    }


def as_measured(found: Measures) -> dict[str, Estimate]:
    model = found.pruned[0]
    output = model.outputs[0]
    attribute = output.attributes[0]
    group = attribute.groups[1]
    assert group.change is not None
    assert output.everybody.change is not None
    assert attribute.gaps_change is not None
    assert output.interdependence is not None
    assert model.overall is not None
    entries = {
        "accuracy": group.scores.accuracy,
        "change": group.change.accuracy,
        "excess": group.excess_gap,
        "rate": group.scores.true_positive,
        "ece": output.everybody.scores.ece,
        "ece change": output.everybody.change.ece,
        "rare": group.scores.rare_value,
        "uncertain": group.scores.uncertainty,
        "gap": attribute.gaps.equal_opportunity_1,
        "gap change": attribute.gaps_change.equal_opportunity_1,
        "amplified": attribute.amplification[2].value,
        "explained": output.interdependence.in_sample,
        "overall": model.overall.everybody.change,
    }
    return {name: estimate for name, estimate in entries.items() if estimate is not None}


def correlated(n: int) -> AuditData:
    """Three groups of different sizes, three outputs that go together, and training shares that differ by group."""
    rng = np.random.default_rng(5)
    codes = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    factor = rng.normal(size=n)
    truth = (0.7 * factor[:, None] + 0.3 * codes[:, None] + rng.normal(size=(n, 3)) > 0.6).astype(np.int64)
    dense = 3 * truth - 1.5 + rng.normal(0, 1.2, truth.shape)
    pruned = 0.8 * dense + rng.normal(0, 0.6 + 0.4 * codes[:, None], truth.shape) + 0.4 * factor[:, None]
    people = People(
        tuple(str(i) for i in range(n)),
        truth,
        (GroupLabels(("a", "b", "c"), codes, "side"),),
        ("x", "y", "z"),
        "multilabel",
    )
    return AuditData(people, ModelPredictions("dense", (dense,)), (ModelPredictions("pruned", (pruned,)),))


@pytest.mark.parametrize("n", [800, 3 * BLOCKS], ids=["a person a block", "several people a block"])
def test_intervals_are_those_of_a_bootstrap_of_rows(n: int) -> None:
    data = correlated(n)
    found = as_measured(measure(data, resamples=RESAMPLES, progress=False))
    rng = np.random.default_rng(1)
    rows = [as_numbers(data, rng.integers(0, n, n)) for _ in range(500)]
    observed = as_numbers(data, np.arange(n))
    for name, estimate in found.items():
        draws = np.array([row[name] for row in rows])
        assert estimate.value == pytest.approx(observed[name], abs=1e-7), name
        assert estimate.interval is not None
        low, high = np.quantile(draws, [0.025, 0.975])
        if name in ("ece", "ece change", "gap", "gap change", "explained"):  # spread about the number
            shift = estimate.value - np.median(draws)
            low, high = low + shift, high + shift
        width = high - low
        assert estimate.interval.low == pytest.approx(low, abs=0.13 * width), name
        assert estimate.interval.high == pytest.approx(high, abs=0.13 * width), name
        assert estimate.interval.low <= estimate.value <= estimate.interval.high


@pytest.mark.parametrize("each", [1, 3])
def test_people_are_dealt_evenly_and_blocks_drawn_with_replacement(each: int) -> None:
    people = each * BLOCKS
    found = Resampling(tuple(str(i) for i in range(people)), 400, np.random.default_rng(0))
    assert np.bincount(found.block).tolist() == [each] * BLOCKS
    assert (found.weights[:, 0] == 1).all()
    drawn = found.weights[:, 1:]
    assert (drawn.sum(axis=0) == BLOCKS).all()
    assert drawn.var() == pytest.approx(1 - 1 / BLOCKS, abs=0.01)  # multinomial with equal chances


def test_the_auroc_gap_s_interval_is_that_of_a_bootstrap_of_rows() -> None:
    data = correlated(900)
    found = measure(data, resamples=RESAMPLES, progress=False).pruned[0].outputs[0].attributes[0]
    codes, truth = data.people.groups[0].codes, data.people.truths[:, 0]
    logits = [data.logits(model)[0][:, 0] for model in data.models]
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(250):
        rows = rng.integers(0, 900, 900)
        by_model = [
            [roc_auc_score(truth[rows][codes[rows] == g], z[rows][codes[rows] == g]) for g in range(3)] for z in logits
        ]
        gaps = [max(scores) - min(scores) for scores in by_model]
        draws.append((gaps[1], gaps[1] - gaps[0]))
    assert found.gaps_change is not None
    for estimate, drawn in zip((found.gaps.auroc, found.gaps_change.auroc), np.array(draws).T, strict=True):
        assert estimate.interval is not None
        width = np.ptp(np.quantile(drawn, [0.025, 0.975]))
        assert estimate.interval.high - estimate.interval.low == pytest.approx(width, rel=0.25)


def pairwise(score: Any, truth: Any) -> Any:
    """Whether each positive scores above each negative, ties half."""
    positive, negative = score[truth == 1][:, None], score[truth == 0][None, :]
    return (positive > negative) + 0.5 * (positive == negative)


def test_delong_is_the_formula_over_all_pairs() -> None:
    rng = np.random.default_rng(2)
    truth, codes = rng.integers(0, 2, 300), rng.integers(-1, 3, 300)
    scores = [np.round(truth + rng.normal(0, 1.5, 300), 1) for _ in range(3)]  # rounded: with ties
    placed = [placements(s, np.argsort(s), truth, codes, 3) for s in scores]
    mean, change = (placed[0] + placed[1]) / 2, placed[2] - (placed[0] + placed[1]) / 2
    for group in range(3):
        rows = codes == group
        kernels = [pairwise(s[rows], truth[rows]) for s in scores]
        for values, kernel in (
            (placed[0], kernels[0]),
            (mean, (kernels[0] + kernels[1]) / 2),
            (change, kernels[2] - (kernels[0] + kernels[1]) / 2),
        ):
            found = delong(values, truth, codes, 3)
            by_positive, by_negative = kernel.mean(axis=1), kernel.mean(axis=0)
            variance = by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
            assert found.value[group] == pytest.approx(kernel.mean())
            assert found.variance[group] == pytest.approx(variance)


def test_the_auroc_interval_is_symmetric_in_logits_and_its_change_in_itself() -> None:
    data = correlated(600)
    output = measure(data, resamples=RESAMPLES, confidence=0.9, progress=False).pruned[0].outputs[0]
    truth = data.people.truths[:, 0]
    kernels = [pairwise(data.logits(model)[0][:, 0], truth) for model in data.models]

    def deviation(kernel: Any) -> float:
        by_positive, by_negative = kernel.mean(axis=1), kernel.mean(axis=0)
        return float(np.sqrt(by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)))

    value, reach = kernels[1].mean(), norm.ppf(0.95) * deviation(kernels[1])
    ends = [1 / (1 + np.exp(-(np.log(value / (1 - value)) + s * reach / value / (1 - value)))) for s in (-1, 1)]
    assert output.everybody.scores.auroc.interval == Interval(
        pytest.approx(ends[0]), pytest.approx(ends[1]), method="delong"
    )
    assert output.everybody.change is not None
    value, reach = (kernels[1] - kernels[0]).mean(), norm.ppf(0.95) * deviation(kernels[1] - kernels[0])
    assert output.everybody.change.auroc.interval == Interval(
        pytest.approx(value - reach), pytest.approx(value + reach), method="delong"
    )


def test_two_equal_models_changed_nothing_and_the_interval_says_how_surely() -> None:
    data = make_audit(400, runs=2, pruned=1)
    same = AuditData(data.people, data.dense, (ModelPredictions("copy", data.dense.runs),), data.training)
    for output in measure(same, resamples=100, progress=False).pruned[0].outputs:
        for entry in (output.everybody, *(g for a in output.attributes for g in a.groups)):
            assert entry.change is not None
            for field in fields(entry.change):
                estimate = getattr(entry.change, field.name)
                assert estimate.value == 0.0
                assert estimate.interval is not None
                assert estimate.interval.method == "exact"
                assert estimate.interval.low < 0 < estimate.interval.high
            # nobody among n changed: the chance of a change that goes unseen 1 time in 40
            assert entry.change.accuracy.interval.high == pytest.approx(1 - 0.025 ** (1 / entry.n))
            assert entry.test is None or (entry.test.p, entry.test.holm) == (1.0, 1.0)
        for attribute in output.attributes:
            assert attribute.gaps_change is not None
            assert attribute.disparity is not None
            for record in (attribute.gaps_change, attribute.disparity):
                for field in fields(record):
                    estimate = getattr(record, field.name)
                    assert estimate.value == 0.0
                    assert estimate.interval.high > 0


def test_the_order_of_people_changes_nothing() -> None:
    data = make_audit(300, pruned=1)
    order = np.random.default_rng(3).permutation(300)
    people = data.people
    shuffled = AuditData(
        People(
            tuple(people.ids[i] for i in order),
            people.labels[order],
            tuple(groups.take(order) for groups in people.groups),
            people.outputs,
            people.task,
        ),
        ModelPredictions("dense", tuple(run[order] for run in data.dense.runs)),
        tuple(ModelPredictions(m.name, tuple(run[order] for run in m.runs)) for m in data.pruned),
    )
    first, second = (measure(d, resamples=80, progress=False).pruned[0] for d in (data, shuffled))
    for before, after in zip(first.outputs, second.outputs, strict=True):
        assert before.interdependence is not None
        assert after.interdependence is not None
        compared = [(before.interdependence.held_out, after.interdependence.held_out)]
        for one, other in zip(before.attributes[0].groups, after.attributes[0].groups, strict=True):
            compared += [(getattr(one.scores, f.name), getattr(other.scores, f.name)) for f in fields(one.scores)]
        for mine, theirs in compared:
            assert mine.value == pytest.approx(theirs.value)
            assert (mine.interval is None) == (theirs.interval is None)
            if mine.interval is not None and theirs.interval is not None:
                assert (mine.interval.low, mine.interval.high) == pytest.approx(
                    (theirs.interval.low, theirs.interval.high)
                )


def test_the_seed_decides_and_bad_confidence_is_refused() -> None:
    data = make_audit(200, pruned=1)
    assert measure(data, resamples=60, progress=False) == measure(data, resamples=60, progress=False)
    assert measure(data, resamples=60, progress=False) != measure(data, resamples=60, seed=1, progress=False)
    with pytest.raises(InputError, match=CONFIDENCE_RANGE.format(confidence=2).split(",")[0]):
        measure(data, confidence=2, progress=False)


def test_with_one_run_the_test_is_mcnemar_s() -> None:
    rng = np.random.default_rng(4)
    changes, codes = rng.choice([-1, 0, 1], 600, p=[0.06, 0.9, 0.04]), rng.integers(-1, 3, 600)
    found = sign_flip(count_changes(changes, codes, 3, 1))
    for group in range(3):
        mine = changes[codes == group]
        expected = binomtest(int((mine == 1).sum()), int((mine != 0).sum()), 0.5).pvalue
        assert found[group] == pytest.approx(expected)


def test_with_several_runs_every_pattern_of_signs_is_counted() -> None:
    changes = np.array([3, -1, 2, 2, 1, -2, 0, 3, 1, 1])
    sums = [abs(int(np.dot(signs, changes))) for signs in itertools.product((-1, 1), repeat=10)]
    expected = np.mean([s >= abs(changes.sum()) for s in sums])
    assert sign_flip(count_changes(changes, np.zeros(10, int), 1, 3))[0] == pytest.approx(expected)


def test_with_many_people_signs_are_taken_as_normal() -> None:
    rng = np.random.default_rng(6)
    changes = rng.choice([-3, -1, 0, 1, 3], 6000, p=[0.2, 0.15, 0.32, 0.14, 0.19])
    found = sign_flip(count_changes(changes, np.zeros(6000, int), 1, 3))[0]
    sizes = np.abs(changes[changes != 0])
    ups = sum(size * (2 * rng.binomial((sizes == size).sum(), 0.5, 200_000) - (sizes == size).sum()) for size in (1, 3))
    assert found == pytest.approx(np.mean(np.abs(ups) >= abs(changes.sum())), abs=0.005)


def test_holm_by_hand() -> None:
    p = np.array([[0.01, np.nan, 0.04], [0.03, 0.005, 0.5]])
    # sorted .005 x 5, .01 x 4, .03 x 3, .04 x 2 (below the one before it), .5 x 1
    expected = np.array([[0.04, np.nan, 0.09], [0.09, 0.025, 0.5]])
    np.testing.assert_allclose(holm(p), expected)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_the_family_is_all_judgeable_groups_of_an_attribute_on_all_outputs() -> None:
    data = make_audit(400, pruned=2)
    found = measure(data, resamples=60, minimum=100, progress=False)
    for model in found.pruned:
        assert model.overall is not None
        for a, groups in enumerate(data.people.groups):
            rows = [[g.test for g in o.attributes[a].groups] for o in model.outputs]
            rows.append([g.test for g in model.overall.attributes[a].groups])
            tests = [test for row in rows for test in row if test is not None]
            judged = groups.counts >= 100
            assert judged.sum() > 0
            assert all([test is not None for test in row] == judged.tolist() for row in rows)
            assert {test.family for test in tests} == {len(tests)}
            np.testing.assert_allclose([t.holm for t in tests], holm(np.array([t.p for t in tests])))
            said = f"Holm's correction is over the {len(tests)} tests"
            assert any(said in note and groups.attribute in note for note in found.notes)
            # the group's own people, one run: McNemar's exact test
            truth, codes = data.people.truths, groups.codes
            pruned = data.pruned[found.pruned.index(model)]
            change = (data.answers(pruned, 0) == truth).astype(int) - (data.answers(data.dense, 0) == truth)
            for o in range(len(model.outputs)):
                for g in np.flatnonzero(judged):
                    mine = change[codes == g, o]
                    test = rows[o][g]
                    assert test is not None
                    expected = binomtest(int((mine == 1).sum()), max(int((mine != 0).sum()), 1), 0.5).pvalue
                    assert test.p == pytest.approx(expected if mine.any() else 1.0)


def test_chance_levels_are_what_luck_shows() -> None:
    rng = np.random.default_rng(7)
    n, codes = 1200, np.repeat([0, 1, 2], 400)
    chance = rng.uniform(0.02, 0.98, n)
    data = AuditData(
        People(
            tuple(str(i) for i in range(n)),
            (rng.random(n) < chance).astype(np.int64),
            (GroupLabels(("a", "b", "c"), codes, "side"),),
            ("x",),
            "binary",
        ),
        ModelPredictions("dense", (np.log(chance / (1 - chance)),)),
    )
    output = measure(data, resamples=RESAMPLES, progress=False).dense.outputs[0]
    lucky = [calibration_error(rng.random(n) < chance, chance) for _ in range(1500)]
    assert output.everybody.ece_by_chance == pytest.approx(np.quantile(lucky, 0.95), rel=0.05)
    accuracy = output.everybody.scores.accuracy.value
    assert accuracy is not None
    gaps = np.ptp(rng.binomial(400, accuracy, (4000, 3)) / 400, axis=1)
    assert output.attributes[0].gaps_by_chance.accuracy == pytest.approx(np.quantile(gaps, 0.95), rel=0.08)
