"""The results of a run survive JSON and CSV, and refuse what they cannot hold."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import evaluate
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.latency.pareto import pareto_front
from fair_prune_plugins.workflow.readings import SAME_LATENCY, read_evaluation, read_run
from fair_prune_plugins.workflow.results import SCHEMA_VERSION, ModelResult, RunResults, json_ready
from fair_prune_plugins.workflow.table import csv_rows, read_csv, to_csv
from integration_tests.report_runs import FACE_GROUPS, face_run, make_run


@pytest.fixture(scope="module")
def run() -> RunResults:
    return face_run()


def test_json_round_trip_is_exact(run: RunResults, tmp_path: Path) -> None:
    run.write_json(tmp_path / "results.json")
    assert RunResults.read_json(tmp_path / "results.json") == run
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert (
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["schema_version"]
        == SCHEMA_VERSION
    )


def test_csv_round_trip_is_exact(run: RunResults, tmp_path: Path) -> None:
    reading = read_run(run)
    path = tmp_path / "results.csv"
    path.write_text(to_csv(reading), encoding="utf-8")
    assert read_csv(path) == csv_rows(reading)


def test_csv_agrees_with_the_parts_as_pandas_reads_it(run: RunResults, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(to_csv(read_run(run)), encoding="utf-8")
    frame = pd.read_csv(path).set_index("model")
    assert list(frame.index) == [m.name for m in run.models]
    for model in run.models:
        row, evaluation = frame.loc[model.name], model.evaluation
        worst = next(g for g in evaluation["groups"] if g["name"] == "Black x Female")
        assert row["accuracy"] == evaluation["accuracy"]["value"]
        assert row["worst_group_accuracy"] == worst["accuracy"]["value"]
        assert row["p50_ms"] == model.latency["p50_ms"]["value"]
        assert row["macs_relative"] == model.macs / run.dense.macs
        if not model.is_dense:
            assert row["worst_group_change_low"] == worst["change"]["interval"]["low"]
            assert row["rho"] == evaluation["dense"]["rho"]["value"]
        else:
            assert math.isnan(row["worst_group_change"])
    assert all(f"accuracy: {name}" in frame.columns for name in FACE_GROUPS)


def test_the_change_in_the_table_is_the_difference_of_accuracies(run: RunResults) -> None:
    rows = csv_rows(read_run(run))
    dense = rows[0]
    for row in rows[1:]:
        for name in FACE_GROUPS:
            change = row[f"accuracy: {name}"] - dense[f"accuracy: {name}"]  # type: ignore[operator]
            assert row[f"change: {name}"] == pytest.approx(change, abs=1e-12)


def test_front_is_of_p50_and_worst_group(run: RunResults) -> None:
    reading = read_run(run)
    points = [(m.latency.p50.value, m.evaluation.worst_accuracy.value) for m in reading.models]
    assert [i for i, m in enumerate(reading.models) if m.on_front] == sorted(
        pareto_front(points, tolerance=SAME_LATENCY)
    )


def test_undefined_numbers_become_null() -> None:
    assert json_ready({"a": float("nan"), 1: (np.float32(0.5), np.int64(3), np.array([1.0, np.inf]))}) == {
        "a": None,
        "1": [0.5, 3, [1.0, None]],
    }
    with pytest.raises(InputError, match="JSON values only, got object"):
        json_ready({"a": object()})


def test_numbers_of_an_absent_group_stay_empty() -> None:
    groups = GroupLabels(("a", "b"), np.zeros(40, dtype=np.int64), "g")
    labels = np.arange(40) % 2
    data = evaluate(labels, np.eye(2)[labels], groups, worst_group="a", resamples=100).as_dict()
    absent = read_evaluation(json.loads(json.dumps(data))).group("b")
    assert absent is not None
    assert (absent.n, absent.accuracy.value, absent.too_small) == (0, None, True)


def test_a_run_without_timing_or_export_reads_as_unmeasured() -> None:
    run = make_run()
    bare = [m.model_copy(update={"latency": {}, "parity": {}}) for m in run.models]
    reading = read_run(run.model_copy(update={"models": bare}))
    assert all(m.speedup is None and m.latency.p50.value is None and m.parity.error is None for m in reading.models)
    assert not any(m.on_front for m in reading.models)
    assert csv_rows(reading)[0]["p50_ms"] is None


def test_an_evaluation_of_another_shape_is_named() -> None:
    with pytest.raises(InputError, match=r"Evaluation.as_dict\(\), which has 'worst_group'; found \['acc'\]"):
        read_evaluation({"acc": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "exactly one model must be the dense one"),
        ({"created": "yesterday"}, "created"),
        ({"schema_version": 99}, "schema 99"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_file_of_another_shape_names_the_field(
    run: RunResults, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(run.to_json()) | change), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        RunResults.read_json(path)
    assert str(path) in str(caught.value)


def test_missing_and_broken_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no results file"):
        RunResults.read_json(tmp_path / "results.json")
    with pytest.raises(InputError, match="not a results file"):
        RunResults.from_json("{")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"results.csv of this package"):
        read_csv(tmp_path / "other.csv")


def test_two_models_of_one_name_are_refused() -> None:
    dense = ModelResult(name="m", macs=2, params=2)
    with pytest.raises(ValidationError, match="not unique"):
        RunResults(
            name="r",
            created="2025-01-01",
            seed=0,
            task={"target": "t", "classes": [], "attribute": "a", "groups": [], "statement": ""},
            models=[dense, dense],
        )


def test_unknown_model_names_those_there_are(run: RunResults) -> None:
    assert run.model("dense").is_dense
    with pytest.raises(InputError, match=r"no model is called 'x'.*'dense'"):
        run.model("x")


def test_csv_is_one_row_per_model(run: RunResults) -> None:
    rows = list(csv.reader(to_csv(read_run(run)).splitlines()))
    assert len(rows) == 1 + len(run.models)
    assert {len(r) for r in rows} == {len(rows[0])}
