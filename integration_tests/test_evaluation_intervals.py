"""Intervals: the cell bootstrap is the row bootstrap, has the variances of theory, and covers what it claims."""

from typing import Any, TypeVar

import fairlearn.metrics as flm
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from fair_prune_plugins.evaluation import Estimate, Interval, evaluate
from fair_prune_plugins.evaluation.evaluate import pick_worst_group
from fair_prune_plugins.evaluation.intervals import Estimator, gap_by_chance, resample
from fair_prune_plugins.evaluation.metrics import Proportion, count_cells, measure_pair
from fair_prune_plugins.evaluation.outcomes import check_outcomes
from fair_prune_plugins.groups import GroupLabels

T = TypeVar("T")
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Draws = dict[str, Floats]
People = tuple[Ints, Ints, Ints, GroupLabels]

RESAMPLES = 4000
# Chance of a false alarm per comparison, under a fixed seed: the tests either pass or fail for good.
ALARM = 1e-4


def sure(value: T | None) -> T:
    """What a result may leave undefined in general is defined here."""
    assert value is not None
    return value


def population(seed: int = 0, n: int = 240, sizes: tuple[float, ...] = (0.5, 0.3, 0.15, 0.05)) -> People:
    """Labels, dense and pruned classes that agree as two versions of a model do, and codes with unknown people."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    codes = rng.choice(len(sizes), n, p=sizes)
    dense = np.where(rng.random(n) < 0.9 - 0.05 * codes, labels, 1 - labels)
    pruned = np.where(rng.random(n) < 0.12, 1 - dense, dense)
    codes[rng.random(n) < 0.05] = -1
    return labels, dense, pruned, GroupLabels(tuple("abcd"[: len(sizes)]), codes)


def one_hot(classes: Ints, k: int = 2) -> Floats:
    logits: Floats = np.eye(k)[classes]
    return logits


def cells_of(labels: Ints, dense: Ints, pruned: Ints, groups: GroupLabels) -> Ints:
    return count_cells(check_outcomes(labels, one_hot(pruned), groups, one_hot(dense)), groups)


def row_bootstrap(
    labels: Ints, dense: Ints, pruned: Ints, groups: GroupLabels, resamples: int, rng: np.random.Generator
) -> Draws:
    """Resample rows one data set at a time and compute everything from the people drawn, in plain numpy."""
    out: dict[str, list[float]] = {
        key: [] for key in ("pooled", "a", "d", "change_a", "gap", "ratio", "rho", "max_excess", "tpr_gap")
    }
    for _ in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        y, d, p, g = labels[rows], dense[rows], pruned[rows], groups.codes[rows]
        present = [code for code in range(len(groups.names)) if (g == code).any()]
        accuracy = {code: (p == y)[g == code].mean() for code in present}
        change = {code: accuracy[code] - (d == y)[g == code].mean() for code in present}
        positives = [code for code in present if ((g == code) & (y == 1)).any()]
        rates = [p[(g == code) & (y == 1)].mean() for code in positives]
        overall = (p == y).mean() - (d == y).mean()
        out["pooled"].append((p == y).mean())
        out["a"].append(accuracy.get(0, np.nan))
        out["d"].append(accuracy.get(3, np.nan))
        out["change_a"].append(change.get(0, np.nan))
        out["gap"].append(max(accuracy.values()) - min(accuracy.values()))
        out["ratio"].append(min(accuracy.values()) / max(accuracy.values()))
        out["rho"].append(np.std(list(change.values()), ddof=1))
        out["max_excess"].append(max(overall - c for c in change.values()))
        out["tpr_gap"].append(max(rates) - min(rates))
    return {key: np.array(values) for key, values in out.items()}


@pytest.fixture(scope="module")
def both_bootstraps() -> tuple[Draws, Draws]:
    # 60 people: the smallest group has few, so that resamples lack it now and then.
    people = population(seed=4, n=60)
    rows = row_bootstrap(*people, RESAMPLES, np.random.default_rng(1))
    pair = measure_pair(resample(cells_of(*people), RESAMPLES, np.random.default_rng(2)))
    by_cells = {
        "pooled": pair.pruned.pooled.value,
        "a": pair.pruned.by_group.value[:, 0],
        "d": pair.pruned.by_group.value[:, 3],
        "change_a": pair.by_group[:, 0],
        "gap": pair.pruned.gap,
        "ratio": pair.pruned.ratio,
        "rho": pair.rho,
        "max_excess": pair.max_excess,
        "tpr_gap": sure(pair.pruned.rates).equal_opportunity_difference,
    }
    return rows, by_cells


@pytest.mark.parametrize("key", ["pooled", "a", "d", "change_a", "gap", "ratio", "rho", "max_excess", "tpr_gap"])
def test_cells_and_rows_give_the_same_distribution(both_bootstraps: tuple[Draws, Draws], key: str) -> None:
    rows, cells = both_bootstraps[0][key], both_bootstraps[1][key]
    lacking = np.isnan(rows).sum(), np.isnan(cells).sum()
    table = [[lacking[0], RESAMPLES - lacking[0]], [lacking[1], RESAMPLES - lacking[1]]]
    assert sum(lacking) == 0 or stats.fisher_exact(table).pvalue > ALARM
    rows, cells = rows[~np.isnan(rows)], cells[~np.isnan(cells)]
    assert stats.ks_2samp(rows, cells).pvalue > ALARM


def test_the_smallest_group_is_lacking_in_some_resamples_of_that_comparison(
    both_bootstraps: tuple[Draws, Draws],
) -> None:
    assert 0 < np.isnan(both_bootstraps[1]["d"]).sum() < RESAMPLES / 2


def test_intervals_are_those_of_fairlearns_bootstrap_within_its_monte_carlo_error() -> None:
    labels, _, pruned, groups = population(n=400, sizes=(0.6, 0.4))
    known = groups.codes >= 0
    boots = 300
    frame = flm.MetricFrame(
        metrics=accuracy_score,
        y_true=labels[known],
        y_pred=pruned[known],
        sensitive_features=groups.codes[known],
        n_boot=boots,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    result = evaluate(labels[known], one_hot(pruned[known]), groups.take(known), resamples=RESAMPLES)
    oracle: dict[Any, Any] = {
        "gap": frame.difference_ci(),
        **{code: [ci[code] for ci in frame.by_group_ci] for code in (0, 1)},
    }
    ours: dict[Any, Interval] = {
        "gap": sure(result.gap.interval),
        0: sure(result.groups[0].accuracy.interval),
        1: sure(result.groups[1].accuracy.interval),
    }
    for key, interval in ours.items():
        # Standard error of a 2.5 % quantile of a normal sample of this size, times 4.
        spread = (interval.high - interval.low) / (2 * stats.norm.ppf(0.975))
        slack = 4 * spread * np.sqrt(0.025 * 0.975 / boots) / stats.norm.pdf(stats.norm.ppf(0.025))
        assert [interval.low, interval.high] == pytest.approx(list(oracle[key]), abs=slack)


def variance_matches(draws: Floats, expected: float) -> None:
    """Compare a sample variance with the true one, by the standard error of a near-normal sample's variance."""
    draws = draws[~np.isnan(draws)]
    assert draws.var(ddof=1) == pytest.approx(expected, rel=5 * np.sqrt(2 / len(draws)))


def mean_of_reciprocal(n: int, share: float) -> float:
    """E[1 / m | m > 0] for the binomial size m of a group in a resample."""
    sizes = np.arange(1, n + 1)
    weights = stats.binom.pmf(sizes, n, share)
    return float((weights / sizes).sum() / weights.sum())


def test_variances_are_the_closed_forms() -> None:
    labels, dense, pruned, groups = population(n=500)
    n = len(labels)
    pair = measure_pair(resample(cells_of(labels, dense, pruned, groups), 20_000, np.random.default_rng(0)))

    accuracy = (pruned == labels).mean()
    variance_matches(pair.pruned.pooled.value, accuracy * (1 - accuracy) / n)
    flip = (pruned == labels).astype(float) - (dense == labels)
    variance_matches(pair.change, flip.var() / n)  # (b + c - (b - c)^2 / n) / n^2, McNemar's
    for code in range(4):
        rows = groups.codes == code
        size = mean_of_reciprocal(n, rows.mean())
        accuracy = (pruned == labels)[rows].mean()
        variance_matches(pair.pruned.by_group.value[:, code], accuracy * (1 - accuracy) * size)
        variance_matches(pair.by_group[:, code], flip[rows].var() * size)
        positive = rows & (labels == 1)
        rate = pruned[positive].mean()
        variance_matches(
            sure(pair.pruned.rates).true_positive.value[:, code],
            rate * (1 - rate) * mean_of_reciprocal(n, positive.mean()),
        )


def test_pairing_makes_the_interval_of_a_change_narrower_than_two_separate_ones() -> None:
    labels, dense, pruned, groups = population(n=2000)
    result = evaluate(labels, one_hot(pruned), groups, dense_logits=one_hot(dense))

    def width(estimate: Estimate | None) -> float:
        interval = sure(sure(estimate).interval)
        return interval.high - interval.low

    for entry in result.groups:
        assert width(entry.change) < 0.9 * np.hypot(width(entry.accuracy), width(entry.dense_accuracy))


def test_resamples_keep_the_number_of_people_and_leave_empty_cells_empty() -> None:
    cells = cells_of(*population(n=50))
    draws = resample(cells, 500, np.random.default_rng(0))
    assert (draws.reshape(500, -1).sum(axis=1) == 50).all()
    assert (draws[:, cells == 0] == 0).all()
    assert (cells == 0).any()


def test_resamples_without_a_group_are_counted_as_undefined() -> None:
    n, resamples = 40, 5000
    labels = np.zeros(n, dtype=int)
    codes = np.array([0] * (n - 2) + [1, 1])
    predicted = np.zeros(n, dtype=int)
    predicted[[0, 1, n - 1]] = 1  # one of the two is wrong: both outcomes occur, so the bootstrap speaks
    result = evaluate(labels, one_hot(predicted, 3), GroupLabels(("many", "two"), codes), resamples=resamples)
    chance = (1 - 2 / n) ** n
    undefined = sure(result.group("two").accuracy.interval).undefined
    assert undefined == pytest.approx(resamples * chance, abs=4 * np.sqrt(resamples * chance))
    assert sure(result.group("many").accuracy.interval).undefined == 0
    assert sure(result.gap.interval).undefined == undefined  # one group left: nothing to compare
    assert sure(result.accuracy.interval).undefined == 0


@pytest.mark.parametrize(("hits", "people"), [(0, 1), (1, 1), (0, 12), (12, 12), (500, 500)])
def test_where_all_or_nobody_is_right_the_interval_is_clopper_and_pearsons(hits: int, people: int) -> None:
    labels = np.zeros(people + 20, dtype=int)
    predicted = np.concatenate([np.ones(people - hits, dtype=int), np.zeros(hits, dtype=int), np.arange(20) % 2])
    codes = np.repeat([0, 1], [people, 20])
    result = evaluate(labels, one_hot(predicted, 3), GroupLabels(("same", "mixed"), codes), confidence=0.9)
    interval = sure(result.group("same").accuracy.interval)
    oracle = stats.binomtest(hits, people).proportion_ci(confidence_level=0.9, method="exact")
    assert interval.method == "exact"
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert sure(result.group("mixed").accuracy.interval).method == "bootstrap"


def test_where_nobody_flipped_the_change_is_bounded_by_the_largest_unseen_chance_of_a_flip() -> None:
    labels = np.arange(40) % 3
    codes = np.repeat([0, 1], [10, 30])
    dense = labels.copy()
    dense[::4] = (dense[::4] + 1) % 3
    pruned = dense.copy()
    pruned[35] = (labels[35] + 1) % 3  # the only change, in the second group
    result = evaluate(
        labels, one_hot(pruned, 3), GroupLabels(("kept", "changed"), codes), dense_logits=one_hot(dense, 3)
    )
    kept = sure(result.group("kept").change)
    interval = sure(kept.interval)
    bound = stats.binomtest(0, 10).proportion_ci(method="exact").high
    assert kept.value == 0
    assert (interval.low, interval.high) == pytest.approx((-bound, bound))
    assert interval.method == "exact"
    assert sure(sure(result.group("changed").change).interval).method == "bootstrap"
    identical = evaluate(labels, one_hot(dense, 3), GroupLabels(("a",), codes * 0), dense_logits=one_hot(dense, 3))
    assert sure(sure(identical.dense).change.interval).method == "exact"
    assert sure(identical.dense).reclassified == 0


def test_a_worst_group_picked_here_is_picked_anew_in_every_resample_among_groups_large_enough() -> None:
    # Two groups served alike, of which either may come out worst, and a tiny one that is wrong throughout.
    labels = np.zeros(2005, dtype=int)
    predicted = np.concatenate([np.arange(2000) % 5 == 0, np.ones(5, dtype=bool)]).astype(int)
    groups = GroupLabels(("a", "b", "tiny"), np.repeat([0, 1, 2], [1000, 1000, 5]))
    logits = one_hot(predicted, 3)
    picked = evaluate(labels, logits, groups, resamples=RESAMPLES).worst_group
    fixed = evaluate(labels, logits, groups, resamples=RESAMPLES, worst_group="a").worst_group
    assert picked.name == pick_worst_group(labels, logits, groups) == "a"
    assert picked.accuracy.value == fixed.accuracy.value == 0.8

    # The smaller of two independent normal draws is below x with chance 1 - (1 - F(x))^2.
    tails = stats.norm.ppf(1 - np.sqrt(1 - np.array([0.025, 0.975])))
    expected = 0.8 + tails * np.sqrt(0.8 * 0.2 / 1000)
    interval = sure(picked.accuracy.interval)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.002)
    assert interval.high < sure(fixed.accuracy.interval).high - 0.005


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # The truth: group a is right with 0.85 after and 0.9 before, flips coming from one latent draw per person.
    rng = np.random.default_rng(0)
    covered = {"accuracy": 0, "change": 0, "pooled": 0}
    runs, n = 300, 400
    for run in range(runs):
        codes = (rng.random(n) < 0.4).astype(int)
        latent = rng.random(n)
        pruned, dense = np.where(latent < 0.85, 0, 1), np.where(latent < 0.9, 0, 1)
        result = evaluate(
            np.zeros(n, dtype=int),
            one_hot(pruned, 3),
            GroupLabels(("a", "b"), codes),
            dense_logits=one_hot(dense, 3),
            resamples=400,
            seed=run,
        )
        entry = result.group("a")
        for key, estimate, truth in (
            ("accuracy", entry.accuracy, 0.85),
            ("change", entry.change, -0.05),
            ("pooled", result.accuracy, 0.85),
        ):
            interval = sure(sure(estimate).interval)
            covered[key] += interval.low <= truth <= interval.high
    for hits in covered.values():
        assert 0.90 < hits / runs < 0.985


def test_the_gap_by_chance_is_the_normal_one_for_two_large_groups() -> None:
    by_group = Proportion(np.array([8000, 8100]), np.array([10_000, 10_000]))
    chance = gap_by_chance(by_group, 0.95, 20_000, np.random.default_rng(0))
    accuracy = 0.805
    expected = stats.norm.ppf(0.975) * np.sqrt(2 * accuracy * (1 - accuracy) / 10_000)
    assert chance == pytest.approx(expected, rel=0.03)


def test_equally_served_groups_rarely_show_a_larger_gap_than_by_chance() -> None:
    rng = np.random.default_rng(0)
    larger, runs = 0, 300
    for run in range(runs):
        codes = rng.integers(0, 6, 600)
        right = rng.random(600) < 0.8
        result = evaluate(
            np.zeros(600, dtype=int), one_hot((~right).astype(int), 3), GroupLabels(tuple("abcdef"), codes), seed=run
        )
        larger += sure(result.gap.value) > sure(result.gap_by_chance)
    assert larger / runs < 0.09


def test_a_single_group_has_no_gap_by_chance() -> None:
    by_group = Proportion(np.array([5, 0]), np.array([9, 0]))
    assert gap_by_chance(by_group, 0.95, 100, np.random.default_rng(0)) is None


def test_quantiles_are_numpys_over_the_defined_values() -> None:
    draws = np.array([0.5, np.nan, 0.1, 0.9, np.nan, 0.3] * 20)
    interval = sure(Estimator(0.8, len(draws)).estimate(0.4, draws).interval)
    assert (interval.low, interval.high) == tuple(np.nanquantile(draws, [0.1, 0.9]))
    assert interval.undefined == 40
