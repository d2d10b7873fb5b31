"""Thresholds and label overrides as steps of a run: chosen on validation people, judged on the exported files."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn.metrics import equalized_odds_difference
from rich.console import Console
from sklearn.metrics import accuracy_score

from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.postprocessing import OverridePolicy, ThresholdRule
from fair_prune_plugins.workflow import config, digits, job
from fair_prune_plugins.workflow.data import Part, Samples
from fair_prune_plugins.workflow.explain import keys
from fair_prune_plugins.workflow.results import Postprocessed, RunResults
from fair_prune_plugins.workflow.stages import stage_count

STEPS = """
postprocess:
  thresholds:
    - match_labels
    - match_dense
    - {objective: equalized_odds, per_group: true, budget: 0.02}
    - {objective: worst_group, label: worst}
    - {objective: fairlearn, constraint: demographic_parity}
  overrides:
    - {budgets: [0.1]}
    - {uncertain_under: pruned, answer_of: human, budgets: [0.1, 0.3]}
"""
BASE = f"""
name: Afterwards
threads: 1
data:
  kind: function
  function: {__name__}:large_or_small
  target: size
model: {{factory: digits_resnet, options: {{widths: [4, 8]}}}}
training: {{epochs: 3, batch_size: 32}}
prune: {{methods: [magnitude], ratios: [0.5], round_to: 2}}
finetune: {{epochs: 0}}
evaluation: {{resamples: 200}}
export: {{samples: 16}}
benchmark: {{rounds: 2, min_seconds: 0.01, warmup: 1}}
"""

PRUNED = [
    "match_labels",
    "match_dense",
    "equalized_odds per group",
    "worst",
    "fairlearn demographic_parity",
    "unsure under dense, answered by dense, 10 %",
    "unsure under pruned, answered by human, 10 %",
    "unsure under pruned, answered by human, 30 %",
]
DENSE = [name for name in PRUNED if name != "match_dense" and "by dense" not in name]


def large_or_small() -> Samples:
    """A task of two classes: which digits are above 4, of which there are fewer after leaving most out."""
    samples = digits.load(validation=0.5, test=0.3)
    kept = (samples.labels <= 4) | (np.arange(len(samples)) % 3 == 0)
    return replace(
        samples,
        inputs=samples.inputs[kept],
        labels=(samples.labels[kept] > 4).astype(np.int64),
        classes=("small", "large"),
        groups=samples.groups.take(kept),
        parts=samples.parts[kept],
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def execute(output: Path, text: str, *overrides: str) -> tuple[RunResults, list[str]]:
    printed = io.StringIO()
    settings = config.parse(text, origin="test", overrides=overrides)
    results = job.run(settings, base=Path(), output=output, console=Console(file=printed, width=300))
    stages = re.findall(r"\] (\S+) (?:done in|kept)", printed.getvalue())
    assert len(stages) == stage_count(settings)
    return results, re.findall(r"\] (\S+) done in", printed.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults]:
    folder = tmp_path_factory.mktemp("after") / "run"
    results, _ = execute(folder, BASE + STEPS)
    return folder, results


def row(results: RunResults, model: str, name: str) -> Postprocessed:
    return next(p for p in results.postprocessed if (p.model, p.name) == (model, name))


def logits(folder: Path, place: str, part: str) -> Any:
    return np.load(folder / f"models/{place}/{part}_logits/logits.npy")


def test_every_network_has_a_row_for_every_step_that_concerns_it(finished: tuple[Path, RunResults]) -> None:
    _, results = finished
    assert [(p.model, p.name) for p in results.postprocessed] == [
        *(("dense", name) for name in DENSE),
        *(("magnitude 50 %", name) for name in PRUNED),
    ]
    uses = {p.name for p in results.postprocessed if p.uses_groups}
    assert uses == {"equalized_odds per group", "fairlearn demographic_parity"}
    assert {p.name for p in results.postprocessed if p.by_chance} <= {"fairlearn demographic_parity"}
    assert [m.name for m in results.models] == ["dense", "magnitude 50 %"], "the models' own rows stay as they are"
    assert not [p for p in results.postprocessed if (p.model == "dense") == bool(p.against_dense)]


@pytest.mark.parametrize(("model", "place"), [("dense", "dense"), ("magnitude 50 %", "magnitude-50")])
def test_the_figures_are_those_of_the_stored_rule_on_the_test_people(
    finished: tuple[Path, RunResults], model: str, place: str
) -> None:
    """Oracle: the rule's JSON and the stored logits alone; accuracies and odds by scikit-learn and fairlearn."""
    folder, results = finished
    samples = large_or_small()
    rows = {part: samples.rows(part) for part in (Part.VALIDATION, Part.TEST)}
    labels = {part: samples.labels[r] for part, r in rows.items()}
    groups = {part: samples.groups.take(r) for part, r in rows.items()}
    own = {part: logits(folder, place, str(part)) for part in rows}
    dense = {part: logits(folder, "dense", str(part)) for part in rows}
    for result in (p for p in results.postprocessed if p.model == model):
        slug = re.sub(r"[^\w.-]+", "-", result.name).strip("-")
        stored = json.loads((folder / f"models/{place}/postprocessed/{slug}/rule.json").read_text())
        assert stored == result.rule
        decided = {}
        for part in rows:
            if result.kind == "thresholds":
                decided[part] = ThresholdRule.from_dict(stored).decide(own[part], groups[part])
            else:
                policy = OverridePolicy.from_dict(stored)
                done = policy.apply(own[part], dense_logits=dense[part], labels=labels[part])
                decided[part] = done.decisions
                if part == Part.TEST:
                    assert result.overridden["share"] == pytest.approx(done.overridden.mean())
                else:
                    assert done.overridden.sum() == np.floor(round(policy.budget * len(rows[part]), 9))
        test = decided[Part.TEST]
        found = result.effect["evaluation"]
        assert found["accuracy"]["value"] == pytest.approx(accuracy_score(labels[Part.TEST], test))
        before = own[Part.TEST].argmax(1)
        assert found["dense"]["change"]["value"] == pytest.approx(
            accuracy_score(labels[Part.TEST], test) - accuracy_score(labels[Part.TEST], before)
        )
        codes = groups[Part.TEST].codes
        odds = [equalized_odds_difference(labels[Part.TEST], d, sensitive_features=codes) for d in (before, test)]
        assert result.effect["before"]["equalized_odds_difference"]["value"] == pytest.approx(odds[0])
        assert result.effect["change"]["equalized_odds_difference"]["value"] == pytest.approx(odds[1] - odds[0])
        after = result.validation["after"]["accuracy"]
        assert after == pytest.approx(accuracy_score(labels[Part.VALIDATION], decided[Part.VALIDATION]))
        assert found["worst_group"]["picked_on_this_data"] is False
        if result.name == "match_labels":
            assert decided[Part.VALIDATION].sum() == labels[Part.VALIDATION].sum()
        if result.name == "match_dense":
            assert decided[Part.VALIDATION].sum() == dense[Part.VALIDATION].argmax(1).sum()
        if result.name == "equalized_odds per group":
            assert after >= result.validation["before"]["accuracy"] - 0.02


def test_macs_count_the_dense_network_where_it_has_to_run(finished: tuple[Path, RunResults]) -> None:
    _, results = finished
    dense, pruned = results.models
    assert row(results, pruned.name, "match_labels").macs == pruned.macs
    assert row(results, pruned.name, "unsure under dense, answered by dense, 10 %").macs == pruned.macs + dense.macs
    assert row(results, pruned.name, "unsure under pruned, answered by human, 10 %").macs == pruned.macs


def test_the_report_and_a_table_of_its_own_show_the_rows(finished: tuple[Path, RunResults]) -> None:
    folder, results = finished
    html = (folder / "report/report.html").read_text()
    assert "Thresholds and label overrides" in html
    assert html.count("uses the group</span>") == 4
    assert "These rules need to know the group of a person" in html
    with (folder / "report/postprocessed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["step"]) for r in rows] == [(p.model, p.name) for p in results.postprocessed]
    for line, result in zip(rows, results.postprocessed, strict=True):
        assert float(line["accuracy"]) == result.effect["evaluation"]["accuracy"]["value"]
        change = result.effect["change"]["equalized_odds_difference"]
        assert float(line["equalized_odds_difference_change_low"]) == change["interval"]["low"]
    assert RunResults.read_json(folder / "report/results.json") == results


def test_a_second_run_repeats_only_what_depends_on_the_change(
    finished: tuple[Path, RunResults], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    again, worked = execute(folder, BASE + STEPS)
    assert worked == []
    assert again == finished[1]
    _, worked = execute(folder, BASE + STEPS.replace("budget: 0.02", "budget: 0.05"))
    places = [f"models/{m}/postprocessed/equalized_odds-per-group" for m in ("dense", "magnitude-50")]
    assert worked == [*places, "report"]
    off, worked = execute(folder, BASE)
    assert worked == ["report"]
    assert off.postprocessed == []
    assert "Thresholds and label overrides" not in (folder / "report/report.html").read_text()
    shown = (finished[0] / "report/results.csv").read_text()
    assert (folder / "report/results.csv").read_text() == shown, "the models' own numbers do not depend on it"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("{thresholds: [match_labels]}", "a threshold decides between two classes, this task has 10"),
        ("{thresholds: [nonsense]}", "should be 'match_labels'"),
        ("{thresholds: [{objective: match_labels, budget: 0.1}]}", "budget is set but does nothing"),
        ("{thresholds: [{objective: worst_group, constraint: equalized_odds}]}", "constraint is set but does nothing"),
        ("{thresholds: [{objective: fairlearn, per_group: false}]}", "always differ between groups"),
        ("{thresholds: [worst_group, worst_group]}", "steps must be different"),
        ("{overrides: [{budgets: [0]}]}", "greater than 0"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(tmp_path: Path, steps: str, message: str) -> None:
    ten = BASE.replace(f"{__name__}:large_or_small", "fair_prune_plugins.workflow.digits:load")
    with pytest.raises(ConfigError, match=message):
        execute(tmp_path / "run", ten + f"postprocess: {steps}")
    assert not (tmp_path / "run/models").exists()


def test_groups_that_cannot_be_compared_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="worst_group compares groups, and 1 of 3 groups by stroke can be"):
        execute(tmp_path / "run", BASE + "postprocess: {thresholds: [worst_group]}", "evaluation.minimum_group=200")
    assert not (tmp_path / "run/models").exists()


def test_overrides_take_ten_classes(tmp_path: Path) -> None:
    ten = BASE.replace(f"{__name__}:large_or_small", "fair_prune_plugins.workflow.digits:load")
    results, _ = execute(tmp_path / "run", ten + "postprocess: {overrides: [{budgets: [0.2, 1.0]}]}")
    some, everyone = results.postprocessed
    dense, pruned = (m.evaluation["accuracy"]["value"] for m in results.models)
    assert everyone.effect["evaluation"]["accuracy"]["value"] >= dense - 0.02, "all but surer people than on validation"
    assert pruned < some.effect["evaluation"]["accuracy"]["value"] < dense + 0.02
    assert some.effect["change"] is None
    assert "points apart" not in (tmp_path / "run/report/report.html").read_text()


def test_explain_documents_it() -> None:
    found = {k.name: k for k in keys("postprocess")}
    assert found["postprocess.thresholds"].default == found["postprocess.overrides"].default == "[]"
    assert "the group of a person is then used" in found["postprocess.thresholds.per_group"].meaning
    assert "match_dense" in found["postprocess.thresholds.objective"].allowed
    assert found["postprocess.overrides.budgets"].default == "[0.05, 0.1, 0.2]"
