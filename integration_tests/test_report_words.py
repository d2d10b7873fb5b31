"""The sentences follow from the numbers: each rule against hand-made numbers that call for it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fair_prune_plugins.reporting.estimates import Estimate, Verdict, judge
from fair_prune_plugins.reporting.wording import (
    listed,
    milliseconds,
    percent,
    percent_interval,
    points,
    points_interval,
    quantity,
    times,
)
from fair_prune_plugins.workflow.closing import print_closing
from fair_prune_plugins.workflow.measured import measured
from fair_prune_plugins.workflow.readings import RunReading, read_run
from fair_prune_plugins.workflow.results import ModelResult, RunResults, Task
from fair_prune_plugins.workflow.words import headline, in_short, limits, meaning
from integration_tests.report_runs import face_run, interval, make_run, parity

Change = tuple[float, float, float]
SMALL, FLAT, LOSS, GAIN = (-0.05, -0.2, 0.1), (-0.004, -0.02, 0.012), (-0.03, -0.05, -0.01), (0.03, 0.01, 0.05)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    ends = None if low is None else {"low": low, "high": high, "undefined": 0, "method": "bootstrap"}
    return {"value": value, "interval": ends}


def evaluation(
    changes: dict[str, Change] | None,
    *,
    pooled: Change = FLAT,
    small: tuple[str, ...] = (),
    worst: str = "b",
    picked: bool = False,
) -> dict[str, Any]:
    names = list(changes) if changes else ["a", "b"]
    groups = []
    for name in names:
        change = None if changes is None else estimate(*changes[name])
        level = 0.9 + (changes[name][0] if changes else 0.0)
        groups.append(
            {
                "name": name,
                "n": 12 if name in small else 200,
                "too_small": name in small,
                "accuracy": estimate(level, level - 0.04, level + 0.03),
                "change": change,
                "excess_gap": None if changes is None else estimate(-changes[name][0], -0.01, 0.06),
            }
        )
    against = {
        "change": estimate(*pooled),
        "gap_change": estimate(0.0, -0.01, 0.01),
        "rho": estimate(0.01, 0.0, 0.02),
        "max_excess_gap": estimate(0.02, 0.0, 0.04),
    }
    return {
        "n": 400,
        "unknown": 0,
        "accuracy": estimate(0.92, 0.9, 0.94),
        "groups": groups,
        "gap": estimate(0.02, 0.0, 0.05),
        "gap_by_chance": 0.04,
        "worst_group": {"name": worst, "picked_on_this_data": picked, "accuracy": estimate(0.9, 0.86, 0.93)},
        "dense": None if changes is None else against,
        "resamples": 1000,
        "confidence": 0.95,
        "minimum": 30,
        "notes": [],
    }


def timed(p50: float, speedup: Change | None, dispersion: float = 0.01) -> dict[str, Any]:
    return {
        "p50_ms": interval(p50, 0.01),
        "p90_ms": interval(p50, 0.02),
        "p99_ms": interval(p50, 0.03),
        "speedup": None if speedup is None else dict(zip(("value", "low", "high"), speedup, strict=True)),
        "theoretical": None if speedup is None else 4.0,
        "realised_share": None if speedup is None else speedup[0] / 4,
        "fast_share": None,
        "dispersion": dispersion,
    }


def pruned(name: str, speedup: float, changes: dict[str, Change], *, slack: float = 0.1, **options: Any) -> ModelResult:
    extra = {key: options.pop(key) for key in ("against", "parity", "method") if key in options}
    return ModelResult(
        name=name,
        method=extra.pop("method", "taylor"),
        pruning_ratio=0.5,
        asked="50 %",
        macs=25,
        params=50,
        evaluation=evaluation(changes, **options),
        latency=timed(1 / speedup, (speedup, speedup - slack, speedup + slack)),
        **extra,
    )


def reading(*models: ModelResult, dense: dict[str, Any] | None = None, **options: Any) -> RunReading:
    first = ModelResult(
        name="dense", macs=100, params=100, evaluation=evaluation(None, **options), latency=timed(1.0, None)
    )
    first = first.model_copy(update=dense or {})
    task = Task(target="t", classes=["0", "1"], attribute="g", groups=["a", "b"], statement="")
    return read_run(RunResults(name="r", created="2025-01-01", seed=3, task=task, models=[first, *models]))


def text(remarks: list[Any]) -> str:
    return "\n".join(f"{r.lead} {r.text}" for r in remarks).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (Estimate(-0.03, -0.05, -0.01), Verdict.WORSE),
        (Estimate(0.03, 0.01, 0.05), Verdict.BETTER),
        (Estimate(-0.03, -0.06, 0.0), Verdict.NO_DIFFERENCE),
        (Estimate(0.0, 0.0, 0.0), Verdict.NO_DIFFERENCE),
        (Estimate(-0.03), Verdict.UNDEFINED),
        (Estimate(), Verdict.UNDEFINED),
    ],
)
def test_a_difference_is_shown_only_when_its_interval_excludes_zero(change: Estimate, verdict: Verdict) -> None:
    assert judge(change) is verdict
    assert judge(change, too_small=True) is Verdict.TOO_SMALL


def test_headline_names_the_fastest_model_without_a_shown_loss_and_what_is_not_ruled_out() -> None:
    slow = pruned("slow", 1.5, {"a": FLAT, "b": FLAT})
    good = pruned("good", 2.0, {"a": FLAT, "b": (-0.01, -0.031, 0.011)})
    harsh = pruned("harsh", 3.0, {"a": LOSS, "b": FLAT})
    found = headline(reading(slow, good, harsh))
    assert found.model is not None
    assert found.model.name == "good"
    assert "good answers 2.0 times as fast" in found.text
    assert "no group was shown to lose accuracy, but a loss of up to 3.1 points (b) cannot be ruled out" in found.text
    assert "no difference shown" in found.detail


def test_headline_says_when_every_faster_model_costs_accuracy() -> None:
    found = headline(reading(pruned("x", 3.0, {"a": FLAT, "b": LOSS}), pruned("y", 2.0, {"a": LOSS, "b": FLAT})))
    assert found.text.startswith("Every faster model costs accuracy. y, the gentlest on the worst group")
    assert "Also loses: a (−3.0)." in found.detail


def test_a_loss_over_everyone_counts_although_no_single_group_shows_it() -> None:
    found = headline(reading(pruned("x", 2.0, {"a": FLAT, "b": FLAT}, pooled=LOSS)))
    assert found.text.startswith("Every faster model costs accuracy")
    assert "Everyone together: −3.0 points" in found.detail
    assert "worse" in found.detail


def test_a_speedup_whose_interval_reaches_one_is_not_called_faster() -> None:
    run = reading(pruned("x", 1.05, {"a": FLAT, "b": FLAT}, slack=0.06))
    assert headline(run).text == "No pruned model was shown to answer faster than the dense one on this machine."
    assert headline(run).model is None
    assert "Speed. No pruned model was shown to be faster" in text(meaning(run))


def test_headlines_of_runs_that_lack_something() -> None:
    assert headline(reading()).text == "Only the dense model was measured."
    untimed = pruned("x", 2.0, {"a": FLAT, "b": FLAT}).model_copy(update={"latency": {}})
    assert "not timed" in headline(reading(untimed)).text
    tiny = pruned("x", 2.0, {"a": SMALL, "b": SMALL}, small=("a", "b"))
    assert "cannot be judged" in headline(reading(tiny)).text


def test_a_small_group_is_never_judged() -> None:
    model = pruned("x", 2.0, {"a": FLAT, "b": FLAT, "c": (-0.4, -0.6, -0.2)}, small=("c",))
    run = reading(model)
    assert in_short(run.pruned[0]) == "no difference shown in both groups; 1 group not judged"
    found = headline(run)
    assert "(c)" not in found.text
    assert "no group was shown to lose accuracy" in found.text
    assert "60.0" not in found.text + found.detail + text(meaning(run))


def test_in_short_names_losers_and_winners_and_counts_the_rest() -> None:
    run = reading(pruned("x", 2.0, {"a": LOSS, "b": FLAT, "c": GAIN, "d": FLAT}, pooled=LOSS))
    assert in_short(run.pruned[0]) == (
        "loses: a −3.0; gains: c +3.0; no difference shown in 2 of 4 groups; everyone together −3.0"
    )
    many = reading(pruned("x", 2.0, dict.fromkeys("abcd", LOSS)))
    assert in_short(many.pruned[0]) == "loses: a −3.0, b −3.0 and 2 more"
    assert in_short(many.dense) == "the model before pruning"


def test_one_seed_and_many_comparisons_are_stated_as_limits() -> None:
    run = reading(*(pruned(f"m{i}", 2.0, dict.fromkeys("abcd", FLAT)) for i in range(6)))
    said = text(limits(run))
    assert "One seed. Each model was trained and pruned once (seed 3)" in said
    assert "24 changes were each judged at 95 %, without correction: about 1 would look like a difference" in said
    assert "“No difference shown” is not “no difference”." in said
    assert "picked by the same test people" in said


def test_methods_are_compared_only_by_paired_intervals_between_them() -> None:
    plain = pruned("taylor 50%", 2.0, {"a": FLAT, "b": LOSS})
    alone = pruned("fair 50%", 2.0, {"a": FLAT, "b": FLAT}, method="fair")
    assert "cannot be read from intervals that overlap or do not" in text(limits(reading(plain, alone)))
    assert "Method against method" not in text(meaning(reading(plain, alone)))
    won = pruned(
        "fair 50%",
        2.0,
        {"a": FLAT, "b": FLAT},
        method="fair",
        against={"taylor 50%": evaluation({"a": FLAT, "b": GAIN})},
    )
    said = text(meaning(reading(plain, won)))
    assert (
        "Of 1 paired comparison of two pruned models on the worst group, 1 showed the first one better, 0 worse."
        in said
    )
    assert "fair 50% against taylor 50%: +3.0 points (95 % interval +1.0 to +5.0)." in said
    assert "cannot be read from intervals" not in text(limits(reading(plain, won)))


def test_worst_group_picked_on_the_test_people_is_a_limit_and_not_called_fixed() -> None:
    run = reading(pruned("x", 2.0, {"a": FLAT, "b": FLAT}, picked=True), picked=True)
    assert "Worst group not fixed beforehand." in text(limits(run))
    assert "named on validation data" not in text(measured(run))
    fixed = reading(pruned("x", 2.0, {"a": FLAT, "b": FLAT}))
    assert "named on validation data" in text(measured(fixed))


def test_a_noisy_machine_is_a_limit() -> None:
    run = reading(pruned("x", 2.0, {"a": FLAT, "b": FLAT}), dense={"latency": timed(1.0, None, dispersion=0.2)})
    assert "rounds differed by more than 5 % for dense" in text(limits(run))


def test_predictions_that_differ_are_said_with_their_number() -> None:
    same = pruned("x", 2.0, {"a": FLAT, "b": FLAT}, parity=parity(400))
    other = pruned("y", 2.0, {"a": FLAT, "b": FLAT}, parity=parity(400, differ=3))
    assert "Every exported file gives the predictions of its torch model" in text(meaning(reading(same)))
    assert "differs from the torch model's: y (3 of 400)" in text(meaning(reading(same, other)))


def test_numbers_are_written_for_people() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert percent(0.93149) == f"93.1{space}%"
    assert percent(None) == points(None) == "–"
    assert (points(-0.0212), points(0.003), points(-0.0001), points(0.0)) == ("−2.1", "+0.3", "0.0", "0.0")
    assert percent_interval(Estimate(0.5, 0.4, 0.6)) == f"40.0{space}to{space}60.0{space}%"
    assert points_interval(Estimate(0.0, -0.01, 0.02)) == f"−1.0{space}to{space}+2.0"
    assert points_interval(Estimate(0.1)) == "–"
    assert [milliseconds(v) for v in (0.0412, 0.4, 1.234, 45.67, 123.4)] == ["0.041", "0.400", "1.23", "45.7", "123"]
    assert (times(1.04), times(1.87)) == ("1.04x", "1.9x")
    assert [quantity(v) for v in (7, 4180, 4.18e6, 2e9)] == ["7", f"4.18{space}k", f"4.18{space}M", f"2{space}G"]
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("run", [make_run(), face_run()], ids=["3 groups", "14 groups"])
def test_closing_table_fits_the_terminal_and_says_the_same(run: RunResults, width: int) -> None:
    out = io.StringIO()
    print_closing(run, Console(file=out, width=width, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    said = " ".join(out.getvalue().replace("\N{NO-BREAK SPACE}", " ").split())
    found = headline(read_run(run))
    assert found.text.replace("\N{NO-BREAK SPACE}", " ") in said
    for part in ("What it means", "What cannot be concluded", "One seed.", "Many comparisons."):
        assert part in said
    for model in read_run(run).models:
        assert set(in_short(model).split()) <= set(said.split()), "a cell was cut off"


def test_closing_table_does_not_read_names_as_markup() -> None:
    run = reading(pruned("[bold]x[/bold]", 2.0, {"a": FLAT, "b": LOSS}))
    out = io.StringIO()
    print_closing(run.results, Console(file=out, width=200, color_system=None))
    assert "[bold]x[/bold]" in out.getvalue()
