"""The comparison of methods: its order, its choices, equal budgets and MACs, and the whole of it on made-up people."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.fairface.bench import level_name
from benchmarks.fairface.design import DenseTask, WalkTask
from benchmarks.fairface.effects import IntArray, Outcomes
from benchmarks.fairface.findings import Verdict
from benchmarks.fairface.results import Cell, Study
from benchmarks.methods import compare, tabular
from benchmarks.methods.bench import MethodsBench, learned_epochs, without_test
from benchmarks.methods.design import (
    FACES,
    QUICK,
    QUICK_SETTINGS,
    Choice,
    MethodsDesign,
    candidates,
    choices,
    tasks,
    walks,
)
from benchmarks.methods.findings import find
from benchmarks.methods.page import title
from benchmarks.methods.results import Cost, MethodsStudy, read_comparison
from benchmarks.methods.tuning import best, with_chosen
from benchmarks.methods.verdicts import paragraph
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import methods, training
from fair_prune_plugins.workflow.config import RunConfig, read
from fair_prune_plugins.workflow.data import Part
from fair_prune_plugins.workflow.prune_config import MethodConfig


def config(*overrides: str, data: str = "adult") -> RunConfig:
    return read(compare.HERE / f"{data}.yaml", overrides)


# --- design ---


@pytest.mark.parametrize("data", ["faces", "adult"])
def test_every_method_is_compared_on_both_data_sets(data: str) -> None:
    titles = {m.title for m in config(data=data).prune.methods}
    named = {m.name for m in config(data=data).prune.methods}
    assert named == set(methods.names())
    assert titles >= {"fairgrape elementwise", "fairprune elementwise", "PW-Taylor", "PW-AutoBot"}
    assert config(data=data).prune.methods[0].title == "taylor"
    assert config(data=data).prune.macs == [0.25, 0.1, 0.04]


def test_faces_are_those_of_the_face_study() -> None:
    ours, study = config(data="faces"), read(compare.HERE.parent / "fairface" / "study.yaml")
    for key in ("model", "training"):
        assert getattr(ours, key) == getattr(study, key)
    assert ours.data.options == study.data.options  # type: ignore[union-attr]
    assert ours.finetune == study.finetune
    assert (ours.prune.batch_size, ours.prune.round_to) == (study.prune.batch_size, study.prune.round_to)


def test_all_methods_of_the_first_seed_come_first_and_nothing_before_what_it_needs() -> None:
    settings = config()
    planned = tasks(settings, FACES)
    done: list[str] = []
    for task in planned:
        assert set(task.needs()) <= set(done), task.name
        assert task.name not in done
        done.append(task.name)
    compared = [t for t in planned if isinstance(t, WalkTask) and t.seed != FACES.tuning_seed]
    count = len(settings.prune.methods)
    assert {t.seed for t in compared[:count]} == {0}
    assert {t.method.title for t in compared[:count]} == {m.title for m in settings.prune.methods}
    assert [t.seed for t in compared[count : 3 * count]] == [1] * count + [2] * count
    assert not any(t.after for t in compared[: count - sum(bool(t.after) for t in compared[:count])])
    losses = {(t.method.title, t.loss.title) for t in compared[3 * count :]}
    assert losses == set(itertools.product(FACES.loss_criteria, [x.title for x in settings.finetune.losses[1:]]))
    assert sorted(t.name for t in compared) == sorted(t.name for t in walks(settings, FACES))


def test_without_tuning_nothing_is_chosen() -> None:
    settings = config(*QUICK_SETTINGS)
    assert choices(settings, QUICK) == []
    assert {t.seed for t in tasks(settings, QUICK)} == {0, 1}
    assert not any(w.after for w in walks(settings, QUICK))


@pytest.mark.parametrize(("name", "epochs", "share", "learned"), [
    ("bifp", 3, 2 / 3, 2), ("bip", 3, 1 / 3, 1), ("bifp", 1, 2 / 3, 1), ("bifp", 3, 1.0, 3),
    ("autobot", 3, 2 / 3, 0), ("taylor", 3, 2 / 3, 0), ("bifp", 0, 0.5, 0),
])  # fmt: skip
def test_what_bilevel_methods_learn_is_taken_from_the_budget(
    name: str, epochs: int, share: float, learned: int
) -> None:
    assert learned_epochs(MethodConfig(name=name), epochs, share) == learned


# --- choices ---


def test_choices_are_made_by_the_groups_that_the_dense_network_serves_worst(tmp_path: Path) -> None:
    settings = config()
    design = replace(FACES, tuning_macs=(0.25, 0.1))
    choice = Choice("fairprune", ({}, {"beta": 0.1}, {"beta": 0.8}))
    labels, codes = np.tile([0, 1], 30), np.repeat([0, 1, 2], 20)

    def write(name: str, wrong: tuple[int, int, int]) -> None:
        predicted = labels.copy()
        for g, count in enumerate(wrong):
            predicted[np.flatnonzero(codes == g)[:count]] ^= 1
        (tmp_path / name).mkdir(parents=True)
        np.savez(tmp_path / name / "logits.npz", test=np.eye(2)[predicted], validation=np.zeros((1, 2)))

    (tmp_path / "tuning").mkdir()
    np.savez(tmp_path / "tuning" / "people.npz", labels=labels, groups=codes)
    write(DenseTask(design.tuning_seed).name, (2, 8, 4))
    planned = candidates(settings, design, choice)
    # The second is best for everyone and for its own worst group, the third for the group that was worst before.
    for walk, both in zip(planned, [((0, 10, 0), (0, 10, 0)), ((0, 9, 0), (0, 9, 0)), ((15, 9, 15), (15, 6, 15))],
                          strict=True):  # fmt: skip
        for share, wrong in zip(design.tuning_macs, both, strict=True):
            write(f"{walk.name}/{level_name(share)}", wrong)
    found = best(choice, planned, tmp_path, design.tuning_macs)
    assert found["options"] == {"beta": 0.8}
    assert found["groups"] == [1]
    assert [x["accuracy"] for x in found["accuracy"]] == pytest.approx([0.5, 0.55, (11 + 14) / 40])


def test_walks_take_what_was_chosen_for_their_method_and_their_loss() -> None:
    settings = config()
    made = choices(settings, FACES)
    chosen = {
        "PW-Taylor": {"options": {"theta": 0.3}},
        "loss performance_weighted": {"options": {"gamma": 3.0}},
        "fairprune elementwise": {"options": {"beta": 0.1}},
    }
    by_pair = {
        (t.method.title, t.loss.title): with_chosen(t, made, chosen) for t in walks(settings, FACES) if t.seed == 0
    }
    both = by_pair["PW-Taylor", "performance_weighted"]
    assert both.method.collect_loss is not None
    assert (both.method.options, both.method.collect_loss.options) == ({}, {"theta": 0.3})
    assert both.loss.options == {"gamma": 3.0}
    assert by_pair["fairprune elementwise", "cross_entropy"].method.options == {
        "statistic": "elementwise",
        "beta": 0.1,
    }
    assert by_pair["fairprune", "cross_entropy"].method.options == {}
    assert by_pair["taylor", "cross_entropy"].method == settings.prune.methods[0]


# --- people ---


CELLS = list(itertools.product(("Female", "Male"), ("Black", "White")))


def made_up_census(folder: Path, each: int = 60) -> int:
    """People whose income is told by their age, less surely for some; returns the number of inputs."""
    rng = np.random.default_rng(0)
    rows = []
    for (sex, race), _ in itertools.product(CELLS, range(each)):
        age = int(rng.integers(20, 70))
        noise = 20 if (sex, race) == ("Male", "Black") else 4
        rows.append(
            {
                "age": age, "education-num": int(rng.integers(1, 16)), "hours-per-week": int(rng.integers(10, 60)),
                "capital-gain": 0, "capital-loss": 0, "workclass": rng.choice(["a", "b"]),
                "marital-status": rng.choice(["c", "d"]), "occupation": rng.choice(["e", "f"]),
                "relationship": rng.choice(["g", "h"]), "native-country": rng.choice(["United-States", "Cuba"]),
                "sex": sex, "race": race, "fnlwgt": int(rng.integers(1, 9)),
                "income-per-year": ">50K" if age + rng.normal(0, noise) > 45 else "<=50K",
            }
        )  # fmt: skip
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_parquet(folder / "adult.parquet")
    return 3 + 2 + 8 + 1


def test_people_of_the_census(tmp_path: Path) -> None:
    inputs = made_up_census(tmp_path)
    path = tmp_path / "adult.parquet"
    samples = tabular.adult(str(path))
    assert samples.inputs.shape == (240, inputs)
    assert samples.sizes == {"train": 96, "validation": 72, "test": 72}
    assert samples.groups.take(samples.rows(Part.TEST)).counts.tolist() == [18] * 4
    table = pd.read_parquet(path)
    for column in ("sex", "race"):  # no input tells of them: those that do not depend on them are all there is
        told = [np.corrcoef(samples.inputs[:, i], table[column] == table[column][0])[0, 1] for i in (0, 1, 2, 5)]
        assert max(map(abs, told)) < 0.3
    assert (tabular.adult(str(path)).parts == samples.parts).all()
    with pytest.raises(InputError, match=r"adult\.parquet"):
        tabular.adult(str(tmp_path / "nothing.parquet"))
    table.drop(columns="sex").to_parquet(path)
    with pytest.raises(InputError, match="lacks the columns"):
        tabular.adult(str(path))


def test_those_who_are_chosen_on_rank_no_channel_and_are_no_test_people(tmp_path: Path) -> None:
    made_up_census(tmp_path)
    samples = tabular.adult(str(tmp_path / "adult.parquet"))
    view = without_test(samples)
    assert view.sizes == {"train": 96, "validation": 36, "test": 36}
    assert view.groups.take(view.rows(Part.TEST)).counts.tolist() == [9] * 4
    marks = {part: {row.tobytes() for row in samples.inputs[samples.rows(part)]} for part in Part}
    now = {part: {row.tobytes() for row in view.inputs[view.rows(part)]} for part in Part}
    assert now[Part.TRAIN] == marks[Part.TRAIN]
    assert now[Part.VALIDATION] | now[Part.TEST] == marks[Part.VALIDATION]
    assert not now[Part.VALIDATION] & now[Part.TEST]


# --- findings ---


def made_up_study(effects: dict[str, float], *, seeds: int = 5, done: bool = True) -> MethodsStudy:
    """Networks of the whole design, right by chance; ``effects`` on everybody's accuracy by method or loss."""
    settings = config("prune.methods=[taylor, random, fairgrape, autobot]", "prune.macs=[0.25, 0.04]",
                      "finetune.losses=[cross_entropy, group_balanced]")  # fmt: skip
    design = replace(FACES, loss_criteria=("taylor",), seeds=seeds, headline_seeds=seeds, tune=False)
    pairs = [(m.title, "cross_entropy") for m in settings.prune.methods] + [("taylor", "group_balanced")]
    cells = (Cell(), *(Cell(m, x, q) for q in (0.25, 0.04) for m, x in pairs))
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), 300)
    ease = 0.8 - 0.1 * (codes == 2) + rng.normal(0, 0.1, len(codes))
    shift = np.array([effects.get(c.method, 0) + effects.get(c.loss, 0) for c in cells])
    right = rng.random((seeds, len(cells), len(codes))) < ease + shift[:, None] + rng.normal(0, 0.005, (seeds, 1, 1))
    names = tuple(f"{sex} x {race}" for sex, race in CELLS)
    outcomes = Outcomes(right, np.ones((seeds, len(cells)), dtype=bool), codes, names, {})
    timed = [{"name": "dense", "p50_ms": {"value": 1.0}, "speedup": None}]
    people: IntArray = np.array([100, 100, 100, 10])
    study = Study(
        config=settings, design=design, seeds=tuple(range(seeds)), cells=cells, outcomes=outcomes,
        validation=(np.tile([80, 80, 70, 1], (seeds, 1)), people),  # the last group is too small to be the worst
        cost={"latency": {"models": timed, "machine": {"cpu": "made up"}}},
        sizes={"train": 1, "validation": 310, "test": 1200}, notes=(), step_size={},
        walks_done=5 if done else 4, walks_planned=5, hours=1.0,
    )  # fmt: skip
    costs = {
        c: Cost(c.share, 0.0, 4.0, 20.0 if c.method == "autobot" else 1.0, 9.0, 300, c.method == "autobot")
        for c in cells[1:]
    }
    return MethodsStudy(study, design, costs, {})


def test_known_effects_are_found_and_said() -> None:
    findings = find(made_up_study({"fairgrape": 0.12, "random": -0.12, "group_balanced": 0.12}), resamples=300)
    assert findings.worst == "Male x Black"
    verdicts = {c.name: c.verdict for c in findings.main.comparisons}
    assert verdicts == {"random": Verdict.HARMED, "fairgrape": Verdict.HELPED, "autobot": Verdict.OPEN}
    by_name = {c.name: c.effects["worst"] for c in findings.main.comparisons}
    assert by_name["fairgrape"].low < 0.12 < by_name["fairgrape"].high
    assert by_name["fairgrape"].strata == 2
    assert [c.name for c in findings.combined.comparisons] == ["taylor + group_balanced"]
    assert [len(family.comparisons) for _, family in findings.by_share] == [3, 3]
    single = [{c.name: c.effects["worst"] for c in findings.at(q)}["random"] for q in (0.25, 0.04)]
    assert [found.strata for found in single] == [1, 1]
    assert np.mean([found.value for found in single]) == pytest.approx(by_name["random"].value)
    p = sorted(c.effects["worst"].p for q in (0.25, 0.04) for c in findings.at(q))
    assert min(c.adjusted or 0 for q in (0.25, 0.04) for c in findings.at(q)) == pytest.approx(6 * p[0])
    text = paragraph(findings)
    assert "Shown to raise that group's accuracy against taylor, at equal MACs and equal training" in text
    assert "in points: fairgrape (+1" in text
    assert "in points: random (-1" in text
    assert "For autobot no difference is shown" in text
    assert "shown to serve that group better than taylor with cross_entropy: taylor + group_balanced" in text
    assert "longer take autobot (2.9 times)" in text
    assert "partial" not in text


def test_a_loss_that_harms_is_named() -> None:
    text = paragraph(find(made_up_study({"group_balanced": -0.12}), resamples=300))
    assert "Of 1 pair of method and other loss none is shown to serve it better" in text
    assert "With other losses, shown to serve it worse: taylor + group_balanced (-1" in text


def test_without_effects_that_is_the_finding() -> None:
    findings = find(made_up_study({}, done=False), resamples=300)
    text = paragraph(findings)
    assert "None of 3 methods is shown to raise that group's accuracy against taylor." in text
    assert "partial result: 4 of 5 walks" in text
    assert "partial result, 4 of 5 walks" in title(findings)


# --- the whole ---


TINY = (
    "training={epochs: 2, batch_size: 12}",
    "prune.methods=[taylor, random, {name: fairprune, options: {statistic: elementwise}}, bifp, autobot, "
    "{name: taylor, label: PW-Taylor, collect_loss: performance_weighted}]",
    "prune.macs=[0.3]",
    "prune.batch_size=12",
    "finetune={losses: [cross_entropy, group_balanced], epochs: 2, batch_size: 12}",
    "benchmark={rounds: 2, min_seconds: 0.01, warmup: 1}",
    "device=cpu",
)


def tiny(inputs: int) -> tuple[str, ...]:
    return (*TINY, f"model.options={{inputs: {inputs}, widths: [32, 32]}}")


def test_steps_on_the_weights_are_equal_and_every_seed_draws_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where they are made: in the optimizers of fine-tuning and of the bi-level loop."""
    settings = config(*tiny(made_up_census(tmp_path)))
    monkeypatch.setenv("FAIR_PRUNE_DATA", str(tmp_path))
    design = MethodsDesign(seeds=2, headline_seeds=2, loss_criteria=("taylor",), tune=False)
    bench = MethodsBench(settings, design, tmp_path / "run", compare.HERE)
    bench.people()
    bench.cost()
    bench.do(DenseTask(0))
    steps: list[int] = []

    def counting(optimizer: type[torch.optim.Optimizer]) -> None:
        step = optimizer.step

        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            weights = sum(len(g["params"]) for g in self.param_groups)
            if weights > 1:  # the gates are one tensor
                steps[-1] += 1
            return step(self, *arguments, **options)

        monkeypatch.setattr(optimizer, "step", counted)

    counting(torch.optim.SGD)
    counting(torch.optim.AdamW)
    fits: list[int] = []
    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda *a, **k: (fits.append(k["epochs"]), fit(*a, **k))[1])
    planned = walks(settings, design)
    told = {}
    for name in ("taylor", "bifp", "autobot"):
        task = next(t for t in planned if t.method.title == name and t.seed == 0)
        steps.append(0)
        fits.clear()
        told[name] = json.loads((bench.do(task).folder / "task.json").read_text())["levels"][level_name(0.3)]
        assert fits == ([0, 1] if name == "bifp" else [1, 2])
    assert steps == [3 * 8] * 3  # 96 people, 12 at a time; an epoch on the way and two at the end
    assert {level["weight_steps"] for level in told.values()} == {24}
    assert told["bifp"]["widths"] == told["taylor"]["widths"]
    dense = json.loads((tmp_path / "run/cost/cost.json").read_text())["networks"]["dense"]["macs"]
    for level in told.values():
        assert level["macs"] <= 0.3 * dense
    assert told["autobot"]["speedup"]["value"] > 0
    assert "speedup" not in told["taylor"]
    kept = []
    for seed in (0, 1):
        task = next(t for t in planned if t.method.title == "random" and t.seed == seed)
        # The same dense network under both seeds: what differs is what is drawn.
        model = copy.deepcopy(bench._recipe().build(compare.HERE))
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p)
        pruned = bench._prune(model, task.method, 0.3, dense, seed=seed * 100 + 1)
        kept.append(pruned.history.as_dict())
    assert kept[0] != kept[1]


def test_other_batch_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(*tiny(made_up_census(tmp_path)), "prune.batch_size=24")
    monkeypatch.setenv("FAIR_PRUNE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"prune\.batch_size is 24 and finetune\.batch_size 12: bifp trains"):
        MethodsBench(settings, FACES, tmp_path / "run", compare.HERE)


def test_from_a_table_to_the_page_and_on_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = made_up_census(tmp_path)
    monkeypatch.setenv("FAIR_PRUNE_DATA", str(tmp_path))
    monkeypatch.setitem(compare.DESIGNS, "adult", replace(FACES, tuning_macs=(0.3,), loss_criteria=("taylor",)))
    run = tmp_path / "run"

    def command(seeds: int) -> list[str]:
        settings = [argument for setting in tiny(inputs) for argument in ("--set", setting)]
        settings += ["--set", "prune.methods=[taylor, {name: autobot, options: {iterations: 5}}, "
                     "{name: taylor, label: PW-Taylor, collect_loss: performance_weighted}]"]  # fmt: skip
        sizes = ["--seeds", str(seeds), "--headline-seeds", str(seeds)]
        return ["run", "adult", "-o", str(run), "--workers", "1", *sizes, *settings]

    compare.main(command(1))
    first = {path: path.stat().st_mtime_ns for path in run.rglob("stamp.json")}
    chosen = json.loads((run / "adult/chosen.json").read_text())
    assert set(chosen) == {"autobot", "PW-Taylor"}
    walk = json.loads((run / "adult/seed-0/PW-Taylor/cross_entropy/task.json").read_text())
    assert walk["method"]["collect_loss"]["options"] == chosen["PW-Taylor"]["options"]
    capsys.readouterr()
    compare.main(command(2))
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert said.count(": kept;") == len(first) - 3  # people, those of the tuning, and cost are stages of their own
    # As if one walk were not finished yet.
    (run / "adult/seed-1/autobot/cross_entropy/stamp.json").unlink()
    compare.main(["analyse", str(run), "--to", str(tmp_path / "out"), "--resamples", "100"])
    page = (tmp_path / "out" / "adult.md").read_text()
    assert "partial result, 7 of 8 walks" in page
    assert "autobot (own widths)" in page
    assert "CC BY 4.0" in page
    assert "30 %: 24)" in page  # steps on the weights
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adult.md", "adult.png"]
    assert (tmp_path / "out" / "adult.png").stat().st_size > 10_000
    found = read_comparison(run / "adult")
    assert found.study.seeds == (0, 1)
    assert {cost.steps for cost in found.costs.values()} == {24}
    with np.load(run / "adult" / DenseTask(FACES.tuning_seed).name / "logits.npz") as logits:
        assert len(logits["test"]) == len(logits["validation"]) == 36  # halves of the validation people, no test people


def test_a_folder_without_a_comparison_and_unknown_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no comparison"):
        compare.main(["analyse", str(tmp_path)])
    with pytest.raises(SystemExit):
        compare.main(["run", "nobody", "-o", str(tmp_path)])
