"""Criteria: fairgrape against a literal greedy, all criteria through one harness, and the registry's strictness."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria import keep_fraction_schedule, keep_fraction_steps, registry
from fair_prune_plugins.criteria.fairgrape import NO_DENSE_SHARE, greedy_order, shares
from fair_prune_plugins.criteria.taylor import EMPTY_GROUP, NO_GROUPS, SIGNED
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.statistics.store import UnitStatistics
from integration_tests.pruning_oracles import literal_greedy, per_person, unit_statistics

ALL = [
    "fairgrape", "fairprune", "group_balanced_taylor", "magnitude", "rank_mix", "snnl", "taylor", "worst_group_taylor",
]  # fmt: skip
BUILT_IN = [name for name in ALL if name != "snnl"]
"""Those that gates or weights are enough for."""
OVER_GROUPS = ["fairgrape", "group_balanced_taylor", "worst_group_taylor"]
"""Those that take any statistic of gates."""
COMPARING = [*OVER_GROUPS, "fairprune", "rank_mix"]


def people(samples: int = 40, units: int = 9, groups: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(samples, units, generator=generator, dtype=torch.float64)
    codes = torch.randint(-1, groups, (samples,), generator=generator)
    codes[: groups + 1] = torch.arange(-1, groups)  # everyone is there, the unknown too
    return s * (1 + torch.arange(units)) * (2.0 + codes)[:, None], codes


# --- fairgrape ----------------------------------------------------------------------------------------------------


def tables(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    sizes = st.tuples(st.integers(1, 12), st.integers(1, 14))
    return sizes.flatmap(
        lambda size: st.lists(st.lists(values, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0])
    )


# Whole numbers add up exactly in any order, so ties are the same ties for the oracle. Zero rows are frequent.
WHOLE = tables(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 7.0, 100.0]))


@settings(max_examples=250, deadline=None)
@given(WHOLE)
def test_the_order_is_the_literal_greedy_for_every_number_kept(table: list[list[float]]) -> None:
    importance = torch.tensor(table, dtype=torch.float64)
    order = greedy_order(importance, shares(importance)).tolist()
    assert sorted(order) == list(range(len(table[0])))
    for kept in range(len(order) + 1):
        assert set(order[:kept]) == literal_greedy(table, kept)


@settings(max_examples=100, deadline=None)
@given(tables(st.floats(0, 1e6, allow_subnormal=False)))
def test_every_pick_is_the_best_free_unit_of_a_most_underrepresented_group(table: list[list[float]]) -> None:
    importance = torch.tensor(table, dtype=torch.float64)
    order = greedy_order(importance, shares(importance)).tolist()
    exact = [[Fraction(v) for v in row] for row in table]
    groups = range(len(table))
    whole = sum(sum(row) for row in exact)
    target = [sum(row) / whole if whole else Fraction(1, len(table)) for row in exact]
    picked: list[int] = []
    for unit in order:
        total = [sum((exact[g][u] for u in picked), Fraction(0)) for g in groups]
        mass = sum(total)
        deficit = [(total[g] / mass if mass else Fraction(1, len(table))) - target[g] for g in groups]
        free = [u for u in range(len(table[0])) if u not in picked]
        # Which of two groups that differ by rounding comes first is not the paper's to say.
        close = [g for g in groups if deficit[g] - min(deficit) <= Fraction(1, 10**12)]
        assert any(exact[g][unit] == max(exact[g][u] for u in free) for g in close)
        picked.append(unit)


@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("statistic", ["square", "absolute"])
def test_scores_prune_what_the_literal_greedy_does_not_select(groups: int, statistic: str) -> None:
    s, codes = people(80, 17, groups)
    known = codes >= 0
    values = s.square() if statistic == "square" else s.abs()
    table = per_person(values[known], codes[known])
    scores = criteria.get("fairgrape")(unit_statistics(s, codes, groups), statistic=statistic)
    for removed in range(17):
        gone = torch.argsort(scores, stable=True)[:removed].tolist()
        assert set(range(17)) - set(gone) == literal_greedy(table.tolist(), 17 - removed)


def test_every_group_counts_by_its_own_people() -> None:
    """One person of group 1 against ten of group 0: sums would drown the one."""
    s = torch.tensor([[3.0, 1.0, 0.0]] * 10 + [[0.0, 1.0, 3.0]], dtype=torch.float64)
    codes = torch.tensor([0] * 10 + [1])
    scores = criteria.fairgrape(unit_statistics(s, codes, 2))
    assert set(torch.argsort(scores, descending=True)[:2].tolist()) == {0, 2}


def test_the_dense_target_keeps_the_first_shares_whatever_became_of_them() -> None:
    s, codes = people(60, 12, 3, seed=3)
    now = unit_statistics(s, codes, 3)
    drifted = s.clone()
    drifted[codes == 2] *= 30
    dense = unit_statistics(drifted, codes, 3)
    scores = criteria.get("fairgrape")(replace(now, dense=dense), target="dense")
    importance = now.square / now.weight[:, None]
    wanted = (dense.square / dense.weight[:, None]).sum(1)
    expected = greedy_order(importance, wanted / wanted.sum())
    assert torch.argsort(scores, descending=True).tolist() == expected.tolist()
    assert not torch.equal(scores, criteria.fairgrape(replace(now, dense=dense)))
    # By name, not by row: the same dense statistics in another order of groups.
    order = [2, 0, 1]
    shuffled = replace(
        dense,
        names=tuple(dense.names[i] for i in order),
        weight=dense.weight[order],
        square=dense.square[order],
    )
    assert torch.equal(scores, criteria.fairgrape(replace(now, dense=shuffled), target="dense"))


def test_the_dense_target_without_the_dense_model_or_with_other_groups_is_refused() -> None:
    now = unit_statistics(*people(), 3)
    with pytest.raises(ScoreError, match="first collection") as raised:
        criteria.fairgrape(now, target="dense")
    assert str(raised.value) == NO_DENSE_SHARE
    other = replace(now, names=("group 0", "group 1", "somebody else"))
    with pytest.raises(ScoreError, match="somebody else"):
        criteria.fairgrape(replace(now, dense=other), target="dense")
    with pytest.raises(InputError, match="'current' or 'dense'"):
        criteria.fairgrape(now, target="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "kappa", "steps"),
    [(0.9, 0.9, 22), (0.99, 0.9, 44), (0.5, 0.9, 7), (0.9, 0.975, 91), (0.99, 0.975, 182), (0.0, 0.9, 1)],
)
def test_iterations_are_the_papers(ratio: float, kappa: float, steps: int) -> None:
    assert keep_fraction_steps(ratio, kappa) == steps
    schedule = keep_fraction_schedule(kappa)(ratio, steps)
    assert len(schedule) == steps + 1
    assert schedule[0] == 0
    assert schedule[-1] == pytest.approx(ratio, abs=1e-12)
    assert schedule == [min(ratio, 1 - kappa**i) for i in range(steps + 1)]
    if steps > 1:
        with pytest.raises(InputError, match=f"at least {steps} steps"):
            keep_fraction_schedule(kappa)(ratio, steps - 1)


@pytest.mark.parametrize("power", range(1, 40))
def test_a_ratio_that_is_a_power_of_kappa_takes_that_many_steps(power: int) -> None:
    assert keep_fraction_steps(1 - 0.9**power, 0.9) == power


@pytest.mark.parametrize(("ratio", "kappa"), [(1.0, 0.9), (-0.1, 0.9), (0.5, 1.0), (0.5, 0.0), (math.nan, 0.9)])
def test_a_schedule_out_of_range_is_refused(ratio: float, kappa: float) -> None:
    with pytest.raises(InputError, match="must lie in"):
        keep_fraction_steps(ratio, kappa)


# --- one harness for all ------------------------------------------------------------------------------------------


def test_these_are_all_the_criteria() -> None:
    assert criteria.names() == ALL


@pytest.fixture(params=BUILT_IN)
def score(request: pytest.FixtureRequest) -> Callable[[UnitStatistics], torch.Tensor]:
    return criteria.get(request.param)


def test_scores_are_one_finite_float64_per_unit_and_repeat(score: Callable[[UnitStatistics], torch.Tensor]) -> None:
    statistics = unit_statistics(*people(), 3)
    before = [t.clone() for t in (statistics.sum, statistics.absolute, statistics.square, statistics.weight_square)]
    first = score(statistics)
    assert first.shape == (9,)
    assert first.dtype == torch.float64
    assert torch.isfinite(first).all()
    assert torch.equal(first, score(statistics))
    after = (statistics.sum, statistics.absolute, statistics.square, statistics.weight_square)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_single_unit_and_dead_units_have_finite_scores(score: Callable[[UnitStatistics], torch.Tensor]) -> None:
    for units in (1, 5):
        dead = unit_statistics(torch.zeros(6, units), torch.arange(6) % 2, 2, torch.zeros(units, dtype=torch.float64))
        assert torch.isfinite(score(dead)).all()


@pytest.mark.parametrize("seed", range(5))
def test_renumbering_units_renumbers_scores(score: Callable[[UnitStatistics], torch.Tensor], seed: int) -> None:
    s, codes = people(seed=seed)
    weights = torch.rand(9, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    shuffled = score(unit_statistics(s[:, order], codes, 3, weights[order]))
    torch.testing.assert_close(shuffled, score(unit_statistics(s, codes, 3, weights))[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_renumbering_groups_changes_nothing(score: Callable[[UnitStatistics], torch.Tensor], seed: int) -> None:
    s, codes = people(seed=seed)
    new = torch.tensor([2, 0, 1])
    renumbered = torch.where(codes < 0, codes, new[codes.clamp_min(0)])
    torch.testing.assert_close(
        score(unit_statistics(s, renumbered, 3)), score(unit_statistics(s, codes, 3)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_group_twice_as_large_counts_no_more_except_for_plain_taylor(name: str) -> None:
    s, codes = people()
    again = codes == 1
    doubled = unit_statistics(torch.cat([s, s[again]]), torch.cat([codes, codes[again]]), 3)
    same = torch.allclose(criteria.get(name)(doubled), criteria.get(name)(unit_statistics(s, codes, 3)), rtol=1e-12)
    assert same is (name != "taylor")


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("statistic", ["absolute", "square"])
def test_the_losses_scale_changes_no_order(name: str, statistic: str) -> None:
    options = {"statistic": statistic} if "statistic" in criteria.get(name).options else {}
    if name == "fairprune":
        options["statistic"] = statistic = "square"
    s, codes = people()
    plain = criteria.get(name)(unit_statistics(s, codes, 3), **options)
    scaled = criteria.get(name)(unit_statistics(s * 2.0**-30, codes, 3), **options)
    factor = (
        1.0 if name in ("magnitude", "fairgrape", "rank_mix") else 2.0**-30 if statistic == "absolute" else 2.0**-60
    )
    assert torch.equal(scaled, plain * factor)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_empty_group_is_an_error_where_groups_matter(name: str) -> None:
    statistics = unit_statistics(*people(), 4)  # nobody is in group 3
    if name in COMPARING:
        with pytest.raises(ScoreError, match="group 3: no person") as raised:
            criteria.get(name)(statistics)
        assert str(raised.value) == EMPTY_GROUP.format(groups="group 3")
    else:
        assert torch.isfinite(criteria.get(name)(statistics)).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_group_at_all_is_an_error_where_groups_matter(name: str) -> None:
    statistics = unit_statistics(torch.randn(4, 3), torch.full((4,), -1), 0)
    if name in COMPARING:
        with pytest.raises(ScoreError, match="name no sensitive group") as raised:
            criteria.get(name)(statistics)
        assert str(raised.value) == NO_GROUPS
    else:
        assert torch.isfinite(criteria.get(name)(statistics)).all()


def test_with_a_single_group_the_fair_criteria_are_plain_taylor() -> None:
    s, _ = people()
    statistics = unit_statistics(s, torch.zeros(len(s), dtype=torch.int64), 1)
    plain = criteria.taylor(statistics)
    torch.testing.assert_close(plain, s.abs().mean(0))
    torch.testing.assert_close(criteria.group_balanced_taylor(statistics), plain)
    torch.testing.assert_close(criteria.worst_group_taylor(statistics), plain)
    greedy = criteria.fairgrape(statistics, statistic="absolute")
    assert torch.argsort(greedy).tolist() == torch.argsort(plain).tolist()
    assert greedy.min() == pytest.approx(1 / 9)
    assert greedy.max() == 1


@pytest.mark.parametrize(("statistic", "power"), [("absolute", 1), ("square", 2)])
def test_taylor_scores_are_means_over_people_groups_or_the_worst_group(statistic: Any, power: int) -> None:
    s, codes = people()
    values = s.abs() ** power
    statistics = unit_statistics(s, codes, 3)
    by_group = torch.stack([values[codes == g].mean(0) for g in range(3)])
    torch.testing.assert_close(criteria.taylor(statistics, statistic=statistic), values.mean(0))
    torch.testing.assert_close(criteria.group_balanced_taylor(statistics, statistic=statistic), by_group.mean(0))
    torch.testing.assert_close(criteria.worst_group_taylor(statistics, statistic=statistic), by_group.amax(0))


@pytest.mark.parametrize("name", ["taylor", *OVER_GROUPS])
def test_signed_statistics_warn_and_unknown_statistics_are_refused(name: str) -> None:
    s, codes = people()
    with pytest.warns(UserWarning, match="driven to zero by training") as caught:
        signed = criteria.get(name)(unit_statistics(s, codes, 3), statistic="signed")
    assert [str(w.message) for w in caught] == [SIGNED]
    by_group = torch.stack([s[codes == g].mean(0).abs() for g in range(3)])
    expected = {
        "taylor": s.mean(0).abs(),
        "group_balanced_taylor": by_group.mean(0),
        "worst_group_taylor": by_group.amax(0),
    }
    if name in expected:
        torch.testing.assert_close(signed, expected[name])
    with pytest.raises(InputError, match="got 'Square'"):
        criteria.get(name)(unit_statistics(s, codes, 3), statistic="Square")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", COMPARING)
def test_statistics_that_are_not_finite_never_become_finite_scores(name: str, bad: float) -> None:
    """Ranks would hide them: a rank is finite whatever it is a rank of."""
    statistics = unit_statistics(*people(), 3)
    statistics.absolute[1, 4] = statistics.square[1, 4] = bad
    with pytest.raises(ScoreError, match="not finite"):
        criteria.get(name)(statistics)


@pytest.mark.parametrize("name", ["taylor", *OVER_GROUPS])
def test_values_are_refused_when_an_importance_is_made_not_after_the_data_pass(name: str) -> None:
    allowed = "'absolute' or 'square' or 'signed' or 'elementwise'"
    with pytest.raises(InputError) as raised:
        fpt.importance(name, statistic="foo")
    assert str(raised.value) == f"statistic must be {allowed} for the criterion {name!r}, got 'foo'"
    with pytest.raises(InputError, match="target must be 'current' or 'dense' for the criterion 'fairgrape'"):
        fpt.FairGRAPEImportance(target="foo")  # type: ignore[arg-type]
    for statistic in ("absolute", "square", "signed", "elementwise"):
        fpt.importance(name, statistic=statistic)


# --- registry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", registry._REGISTRY.copy())


def register(name: str, function: Callable[..., Any], **facts: Any) -> None:
    criteria.criterion(name, summary="for a test", source="nowhere", **facts)(function)


@pytest.mark.usefixtures("_own_registry")
def test_values_of_foreign_criteria_are_checked_where_they_are_literals() -> None:
    def foreign(
        statistics: UnitStatistics,
        *,
        mode: Literal["a", 2] | None = None,
        loose: Literal["a"] | float = 1.0,
        free: str = "",
    ) -> torch.Tensor:
        return statistics.weight_square

    def unresolved(statistics: Unheard, *, mode: Literal["a"] = "a") -> torch.Tensor:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    register("foreign", foreign)
    register("unresolved", unresolved)
    for options in ({"mode": "a"}, {"mode": 2}, {"mode": None}, {"loose": "b"}, {"free": 3}):
        assert fpt.importance("foreign", **options).options == options
    for value in ("b", [], torch.ones(2)):
        with pytest.raises(InputError, match="mode must be 'a' or 2 or None for the criterion 'foreign', got"):
            fpt.importance("foreign", mode=value)
    fpt.importance("unresolved", mode="b")  # nobody can tell: the criterion's own business


@pytest.mark.usefixtures("_own_registry")
def test_a_name_is_taken_once_and_both_places_are_named() -> None:
    def first(statistics: UnitStatistics) -> torch.Tensor:
        return statistics.weight_square

    def second(statistics: UnitStatistics) -> torch.Tensor:
        return statistics.weight_square

    register("mine", first)
    with pytest.raises(InputError, match="registered already") as raised:
        register("mine", second)
    for function in (first, second):
        assert function.__qualname__ in str(raised.value)
        assert f"test_criteria.py:{function.__code__.co_firstlineno}" in str(raised.value)
    assert criteria.get("mine").function is first
    with pytest.raises(InputError, match=r"fairgrape\.py"):
        register("fairgrape", second)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda: None, "takes no statistics"),
        (lambda *, statistics: None, "takes no statistics"),
        (lambda *statistics: None, "takes no statistics"),
        (lambda statistics, power=2: None, "'power' is not a keyword-only option"),
        (lambda statistics, *more: None, "'more' is not a keyword-only option"),
        (lambda statistics, **more: None, "'more' is not a keyword-only option"),
        (lambda statistics, *, power: None, "'power' has no default"),
    ],
)
def test_a_bad_signature_is_refused_when_registered(function: Callable[..., Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        register("mine", function)
    assert "test_criteria.py" in str(raised.value)
    assert "mine" not in criteria.names()


@pytest.mark.usefixtures("_own_registry")
def test_an_own_criterion_works_like_a_built_in_one() -> None:
    def mine(statistics: UnitStatistics, *, power: int = 2) -> torch.Tensor:
        return (statistics.weight_square**power).float()

    register("mine", mine, needs_data=False, comparable=False)
    own = criteria.get("mine")
    assert "mine" in criteria.names()
    assert (own.needs_data, own.comparable, own.options) == (False, False, {"power": 2})
    scores = own(unit_statistics(*people(), 3), power=1)
    assert scores.dtype == torch.float64
    assert scores.tolist() == list(range(1, 10))


@pytest.mark.parametrize("name", BUILT_IN)
def test_unknown_options_are_named_with_what_there_is(name: str) -> None:
    own = criteria.get(name)
    with pytest.raises(InputError, match=f"{name!r} has no option 'statistik'") as raised:
        own(unit_statistics(*people(), 3), statistik="square")
    assert str(sorted(own.options) or "none") in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "meant"), [("fairgrap", "fairgrape"), ("worst_group", "worst_group_taylor"), ("magnitud", "magnitude")]
)
def test_an_unknown_name_lists_all_and_suggests_the_nearest(asked: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{meant}'") as raised:
        criteria.get(asked)
    assert str(ALL) in str(raised.value)
    with pytest.raises(InputError, match="there is no criterion 'zzz'") as raised:
        criteria.get("zzz")
    assert "Did you mean" not in str(raised.value)


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.zeros(9, 1), r"shape \(9, 1\)"),
        ([1.0] * 9, "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_not_one_score_per_unit_is_refused(answer: Any, got: str) -> None:
    register("mine", lambda statistics: answer)
    with pytest.raises(ScoreError, match=got):
        criteria.get("mine")(unit_statistics(*people(), 3))


def test_every_criterion_says_what_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in criteria.names():
            own = criteria.get(name)
            assert own.summary.endswith(".")
            assert len(own.summary) < 120
            assert own.source
            assert own.needs_data is (name != "magnitude")
