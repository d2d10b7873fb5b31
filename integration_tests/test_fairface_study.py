"""The study on faces: design, statistics against independent oracles, and the whole of it on made-up pictures."""

from __future__ import annotations

import io
import itertools
import statistics
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks.fairface import people, study
from benchmarks.fairface.bench import level_name
from benchmarks.fairface.design import (
    EXCESS_GAP,
    QUICK,
    QUICK_SETTINGS,
    DenseTask,
    Design,
    WalkTask,
    tasks,
    tuning,
    walks,
)
from benchmarks.fairface.effects import (
    Contrast,
    Outcomes,
    Resampling,
    Table,
    contrast_value,
    effect,
    holm,
    tables,
)
from benchmarks.fairface.findings import Verdict, find
from benchmarks.fairface.page import title
from benchmarks.fairface.results import Cell, Study
from benchmarks.fairface.running import choose_step_size
from benchmarks.fairface.verdicts import manager
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.evaluation import evaluate
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow.config import RunConfig, read
from fair_prune_plugins.workflow.data import Part

RACES = ("Black", "East Asian", "White")
GENDERS = ("Female", "Male")


def config(*overrides: str) -> RunConfig:
    return read(study.HERE / "study.yaml", overrides)


# --- design ---


def test_every_pair_gets_the_seeds_it_must_have() -> None:
    settings, design = config(), Design(seeds=3, headline_seeds=5)
    seeds: dict[tuple[str, str], list[int]] = {}
    for walk in walks(settings, design):
        seeds.setdefault((walk.method.title, walk.loss.title), []).append(walk.seed)
    assert len(seeds) == 20
    for (method, loss), found in seeds.items():
        headline = loss == "cross_entropy" or method in ("taylor", "fairgrape")
        assert sorted(found) == list(range(5 if headline else 3)), (method, loss)


def test_criteria_under_the_plain_loss_come_first_over_all_first_seeds() -> None:
    settings, design = config(), Design(seeds=3, headline_seeds=5)
    first = walks(settings, design)[: 3 * 5]
    expected = itertools.product(range(3), (m.title for m in settings.prune.methods), ["cross_entropy"])
    assert [(w.seed, w.method.title, w.loss.title) for w in first] == list(expected)


def test_nothing_is_done_twice_or_before_what_it_needs() -> None:
    settings, design = config(), Design(seeds=2, headline_seeds=4)
    done: list[str] = []
    for task in tasks(settings, design):
        assert set(task.needs()) <= set(done), task.name
        assert task.name not in done
        done.append(task.name)
    assert {f"seed-{s}/dense" for s in range(4)} <= set(done)
    tuned = {task.name for task in tuning(settings, design)}
    assert len(tuned) == len(design.step_sizes)
    for task in tasks(settings, design):
        if isinstance(task, WalkTask) and task.loss == next(
            x for x in settings.finetune.losses if x.name == EXCESS_GAP
        ):
            assert tuned <= set(task.needs())


def test_a_given_step_size_is_not_tuned() -> None:
    settings = config("finetune.losses=[cross_entropy, {name: excess_gap, options: {step_size: 0.05}}]")
    assert tuning(settings, Design()) == []


def test_the_quick_variant_is_small() -> None:
    planned = tasks(config(*QUICK_SETTINGS), QUICK)
    assert sum(isinstance(task, DenseTask) for task in planned) == 2
    walked = {(w.method.title, w.loss.title) for w in planned if isinstance(w, WalkTask)}
    plain = {(m, "cross_entropy") for m in ("taylor", "magnitude", "fairgrape")}
    assert walked == plain | {("taylor", "group_balanced")}
    assert len(planned) == 2 + 2 * 4


# --- people ---


def made_up_archive(folder: Path, train_each: int = 12, test_each: int = 2) -> None:
    """Noise with a bright half for one gender: learned in a few steps."""
    rng = np.random.default_rng(0)
    rows = ["file,part,age,gender,race"]
    with zipfile.ZipFile(folder / "fairface-bench-64.zip", "w") as archive:
        for part, count in (("train", train_each), ("test", test_each)):
            for race, gender, number in itertools.product(RACES, GENDERS, range(count)):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[: 8 if gender == "Male" else 0] += 100
                name = f"{part}/{race}-{gender}-{number}.png"
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                archive.writestr(name, buffer.getvalue())
                rows.append(f"{name},{part},30,{gender},{race}")
        archive.writestr("labels.csv", "\n".join(rows))


def test_parts_are_fixed_stratified_and_keep_the_official_test_part(tmp_path: Path) -> None:
    made_up_archive(tmp_path)
    path = str(tmp_path / "fairface-bench-64.zip")
    samples = people.fairface(images=path, held_out=24, validation=12)
    assert samples.sizes == {"train": 36, "validation": 12, "test": 24 + 12}
    for part, each in ((Part.TRAIN, 6), (Part.VALIDATION, 2), (Part.TEST, 4 + 2)):
        assert samples.groups.take(samples.rows(part)).counts.tolist() == [each] * 6
    genders = [samples.groups.names[code].split(" x ")[1] for code in samples.groups.codes]
    assert [samples.classes[label] for label in samples.labels] == genders
    assert (samples.parts[72:] == "test").all()  # the official test part stands last in the made-up table
    again = people.fairface(images=path, held_out=24, validation=12)
    assert (again.parts == samples.parts).all()
    with pytest.raises(InputError, match="held out"):
        people.fairface(images=path, held_out=60, validation=12)


# --- statistics ---


def made_up(
    seeds: int,
    people_each: int,
    effects: dict[int, float],
    *,
    cells: int = 3,
    wobble: float = 0.0,
    agreement: float = 0.0,
    key: int = 0,
) -> Outcomes:
    """Networks that are right by chance; ``effects`` adds to cells, ``wobble`` varies over seeds and cells."""
    rng = np.random.default_rng(key)
    names = tuple(f"{r} x {g}" for r in RACES for g in GENDERS)
    codes = np.repeat(np.arange(len(names)), people_each)
    ease = rng.normal(0, 0.15, len(codes))
    base = 0.75 - 0.1 * (codes == 1) + ease
    shift = np.array([effects.get(k, 0.0) for k in range(cells)]) + rng.normal(0, wobble, (seeds, cells))
    right = rng.random((seeds, cells, len(codes))) < np.clip(base + shift[..., None], 0, 1)
    if agreement:  # people whom the last cell's networks are right on in every seed: an effect of people
        right[:, -1] |= rng.random(len(codes)) < agreement
    margins = {"race": tuple(n.split(" x ")[0] for n in names), "gender": tuple(n.split(" x ")[1] for n in names)}
    return Outcomes(right, np.ones((seeds, cells), dtype=bool), codes, names, margins)


def test_measures_are_those_of_the_evaluation() -> None:
    outcomes = made_up(2, 40, {1: -0.1, 2: 0.05})
    found = tables(outcomes, Resampling.draw(len(outcomes.codes), 2, 3), worst=4)
    labels = np.random.default_rng(1).integers(0, 2, len(outcomes.codes))
    race = GroupLabels.from_columns({"race": [outcomes.margins["race"][code] for code in outcomes.codes]})
    groups = GroupLabels(outcomes.names, outcomes.codes, "race x gender")
    for s, k in itertools.product(range(2), (1, 2)):
        logits, dense = (np.eye(2)[np.where(outcomes.right[s, cell], labels, 1 - labels)] for cell in (k, 0))
        judged, by_race = (
            evaluate(labels, logits, g, dense_logits=dense, worst_group=worst, resamples=100)
            for g, worst in ((groups, outcomes.names[4]), (race, "White"))
        )
        expected = judged.as_dict()
        assert found["everyone"].observed[s, k] == pytest.approx(expected["accuracy"]["value"])
        by_name = {group["name"]: group for group in expected["groups"]}
        change = [
            float(outcomes.right[s, k, outcomes.codes == g].mean() - outcomes.right[s, 0, outcomes.codes == g].mean())
            for g in range(6)
        ]
        excess = [float(outcomes.right[s, k].mean() - outcomes.right[s, 0].mean()) - c for c in change]
        assert found["rho"].observed[s, k] == pytest.approx(statistics.stdev(change))
        assert found["worst"].observed[s, k] == pytest.approx(by_name[outcomes.names[4]]["accuracy"]["value"])
        assert found["beyond"].observed[s, k] == pytest.approx(by_name[outcomes.names[4]]["excess_gap"]["value"])
        assert found["gap"].observed[s, k] == pytest.approx(expected["gap"]["value"])
        assert found["rho"].observed[s, k] == pytest.approx(expected["dense"]["rho"]["value"])
        assert found["excess"].observed[s, k] == pytest.approx(max(excess))
        assert found["gap race"].observed[s, k] == pytest.approx(by_race.as_dict()["gap"]["value"])


def test_resampling_is_the_literal_loop() -> None:
    outcomes = made_up(4, 12, {2: 0.1})
    present = outcomes.present.copy()
    present[3, 2] = present[0, 1] = False
    outcomes = replace(outcomes, present=present)
    draws = Resampling.draw(len(outcomes.codes), 4, 6, seed=3)
    found = tables(outcomes, draws, worst=1)
    contrast = Contrast(((2, 1), (2, 0)))
    fast = contrast_value(found["worst"].resampled, contrast, draws.seeds)
    for r in range(6):
        drawn_people = [p for p, times in enumerate(draws.people[r]) for _ in range(times) if outcomes.codes[p] == 1]
        strata = []
        for plus, minus in contrast.strata:
            differences = [
                np.mean([float(outcomes.right[s, plus, p]) - float(outcomes.right[s, minus, p]) for p in drawn_people])
                for s, times in enumerate(draws.seeds[r])
                for _ in range(times)
                if minus is not None and present[s, plus] and present[s, minus]
            ]
            strata.append(np.mean(differences) if differences else np.nan)
        assert fast[r] == pytest.approx(np.mean(strata), nan_ok=True)
    assert np.isfinite(fast).sum() >= 4


@pytest.mark.parametrize(("wobble", "agreement"), [(0.0, 0.3), (0.06, 0.0), (0.03, 0.5)])
def test_variance_of_a_mean_is_that_of_two_way_clustering(wobble: float, agreement: float) -> None:
    outcomes = made_up(8, 60, {2: 0.1}, wobble=wobble, agreement=agreement, key=5)
    draws = Resampling.draw(len(outcomes.codes), 8, 4000, seed=1)
    found = effect(tables(outcomes, draws, worst=0)["everyone"], Contrast(((2, 1),)), draws)
    d = outcomes.right[:, 2].astype(float) - outcomes.right[:, 1]
    seeds, persons = d.shape
    rest = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
    by_seeds, by_people = d.mean(1).var(ddof=1) / seeds, d.mean(0).var() / persons
    variance = max(by_seeds + by_people - rest.var() / (seeds - 1) / persons, by_seeds, by_people)
    freedom = (seeds - 1) * (variance / by_seeds) ** 2
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert found.error == pytest.approx(np.sqrt(variance), rel=0.03)
    assert found.value == pytest.approx(d.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("wobble", [0.0, 0.03])
def test_intervals_cover_the_truth_as_often_as_they_say(wobble: float) -> None:
    """Fresh seeds and fresh people each time; a bootstrap over people alone covers three quarters with a wobble."""
    covered, excluded = 0, 0
    rounds = 150
    for key in range(rounds):
        outcomes = made_up(5, 60, {2: 0.0}, wobble=wobble, key=key)
        draws = Resampling.draw(len(outcomes.codes), 5, 200, seed=key)
        found = effect(tables(outcomes, draws, worst=0)["everyone"], Contrast(((2, 1),)), draws)
        covered += found.low <= 0 <= found.high
        excluded += found.p < 0.05
    assert 0.90 <= covered / rounds <= 1.0
    assert excluded / rounds <= 0.10


def test_one_seed_shows_nothing() -> None:
    outcomes = made_up(1, 60, {2: 0.2})
    draws = Resampling.draw(len(outcomes.codes), 1, 200)
    found = effect(tables(outcomes, draws, worst=0)["everyone"], Contrast(((2, 1),)), draws)
    assert found.seeds == 1
    assert found.low > 0
    assert found.p == 1


def test_a_difference_that_never_varies_has_no_doubt() -> None:
    values = np.full((3, 2), 0.5)
    draws = Resampling.draw(10, 3, 50)
    table = Table(values, np.full((50, 3, 2), 0.5))
    assert effect(table, Contrast(((1, 0),)), draws).p == 1
    assert effect(table, Contrast(((1, None),)), draws).p == 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_the_step_size_with_the_most_even_losses_is_chosen(tmp_path: Path) -> None:
    settings, design = config("prune.macs=[0.25]"), Design(step_sizes=(0.1, 0.2, 0.3))
    labels, codes = np.tile([0, 1], 30), np.repeat([0, 1, 2], 20)

    def write(name: str, wrong: tuple[int, int, int]) -> None:
        predicted = labels.copy()
        for g, count in enumerate(wrong):
            predicted[np.flatnonzero(codes == g)[:count]] ^= 1
        (tmp_path / name).mkdir(parents=True)
        np.savez(tmp_path / name / "logits.npz", validation=np.eye(2)[predicted])

    (tmp_path / "people").mkdir()
    np.savez(tmp_path / "people" / "people.npz", validation_labels=labels, validation_groups=codes)
    write("seed-0/dense", (2, 4, 6))
    candidates = tuning(settings, design)
    for walk, wrong in zip(candidates, [(4, 4, 10), (6, 8, 10), (3, 3, 3)], strict=True):
        write(f"{walk.name}/macs-25", wrong)  # the second loses 4 of 20 in each group, the third most alike in accuracy
    assert choose_step_size(settings, candidates, tmp_path) == 0.2


# --- findings ---


def made_up_study(effects: dict[tuple[str, str], float], *, seeds: int = 6, missing: int = 0) -> Study:
    """Networks of the whole design; ``effects`` by kind of choice and name, on everybody's accuracy."""
    settings = config("prune.macs=[0.25, 0.04]")
    pairs = [(m.title, x.title) for x in settings.finetune.losses for m in settings.prune.methods]
    cells = (Cell(), *(Cell(m, x, q) for q in (0.25, 0.04) for m, x in pairs))
    added = {k: effects.get(("method", c.method), 0) + effects.get(("loss", c.loss), 0) for k, c in enumerate(cells)}
    outcomes = made_up(seeds, 150, added, cells=len(cells), wobble=0.01)
    if missing:
        outcomes.present[:, -missing:] = False
    timed = [
        {"name": name, "p50_ms": {"value": ms}, "speedup": {"value": 1 / ms}}
        for name, ms in (("dense", 1.0), ("macs-25", 0.4), ("macs-4", 0.1))
    ]
    cost: dict[str, Any] = {
        "networks": {
            name: {"macs": macs, "widths": [4]} for name, macs in (("dense", 100), ("macs-25", 25), ("macs-4", 4))
        },
        "latency": {"models": timed, "machine": {"cpu": "made up"}},
    }
    hits = np.full((seeds, 6), 80)
    hits[:, 1] = 70
    hits[0, 4] = 60  # worse in one seed alone
    return Study(
        config=settings,
        design=Design(),
        seeds=tuple(range(seeds)),
        cells=cells,
        outcomes=outcomes,
        validation=(hits, np.full(6, 100)),
        cost=cost,
        sizes={"train": 1, "validation": 600, "test": 900},
        notes=(),
        step_size={},
        walks_done=10 if missing else 20,
        walks_planned=20,
        hours=1.0,
    )


def test_known_effects_are_found_and_said() -> None:
    findings = find(made_up_study({("method", "fairgrape"): 0.08, ("loss", "excess_gap"): -0.08}), resamples=300)
    assert findings.worst == "Black x Male"
    verdicts = {c.name: c.verdict for c in findings.main}
    assert verdicts.pop("fairgrape") is Verdict.HELPED
    assert verdicts.pop("excess_gap") is Verdict.HARMED
    assert set(verdicts.values()) == {Verdict.OPEN}
    assert len(findings.main) == 7
    found = {c.name: c.effects["everyone"] for c in findings.main}
    assert found["fairgrape"].low < 0.08 < found["fairgrape"].high
    assert found["excess_gap"].low < -0.08 < found["excess_gap"].high
    assert found["fairgrape"].strata == 4 * 2
    text = manager(findings)
    assert "Shown to raise that group's accuracy, at equal cost: fairgrape against taylor" in text
    assert "Shown to lower that group's accuracy, at equal cost: excess_gap against cross_entropy" in text
    assert "Shown to serve that group better than taylor + group_balanced" in text
    assert "partial" not in text


def test_without_effects_that_is_the_finding() -> None:
    findings = find(made_up_study({}), resamples=300)
    text = manager(findings)
    assert "None of the 7 choices compared is shown to raise" in text
    assert "Nothing is shown to serve that group better than taylor + group_balanced" in text


def test_missing_networks_are_left_out_and_said() -> None:
    findings = find(made_up_study({("method", "fairgrape"): 0.08}, missing=7), resamples=200)
    gone = {Cell(x.cell.method, x.cell.loss, x.cell.share) for x in findings.levels}
    assert Cell("fairgrape", "excess_gap", 0.04) not in gone
    assert {c.name: c.effects["worst"].strata for c in findings.main}["fairgrape"] == 8 - 2
    assert "partial result, 10 of 20 walks" in title(findings)
    assert "10 of 20 walks are finished" in manager(findings)


# --- the whole ---


TINY = (
    "data.options={held_out: 24, validation: 12}",
    "model.options={widths: [16, 16], blocks: 1}",
    "training={epochs: 2, batch_size: 12, flip: true}",
    "prune.methods=[taylor, magnitude]",
    "prune.macs=[0.3]",
    "finetune={losses: [cross_entropy, performance_weighted, excess_gap], epochs: 1, batch_size: 12, flip: true}",
    "benchmark={rounds: 2, min_seconds: 0.01, warmup: 1}",
)


def test_from_pictures_to_page_and_on_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_archive(tmp_path)
    monkeypatch.setenv("FAIR_PRUNE_DATA", str(tmp_path))
    run = tmp_path / "run"

    def command(seeds: int) -> list[str]:
        settings = [argument for setting in TINY for argument in ("--set", setting)]
        return ["run", "-o", str(run), "--workers", "1", "--seeds", "1", "--headline-seeds", str(seeds), *settings]

    study.main(command(1))
    first = {path: path.stat().st_mtime_ns for path in run.rglob("stamp.json")}
    assert run.joinpath("tuning.json").is_file()
    assert run.joinpath("seed-0/taylor/excess_gap", level_name(0.3), "logits.npz").is_file()
    capsys.readouterr()
    study.main(command(2))
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert (
        said.count(": kept;") == len(first) - 2
    )  # all tasks of the first run; people and cost are stages of their own
    # As if one walk were not finished yet.
    (run / WalkTask(1, *_pair("magnitude", "cross_entropy")).name / "stamp.json").unlink()
    study.main(["analyse", str(run), "--to", str(tmp_path / "out"), "--resamples", "100"])
    page = (tmp_path / "out" / "study.md").read_text()
    planned = len(walks(config(*TINY), Design(seeds=1, headline_seeds=2)))
    assert f"partial result, {planned - 1} of {planned} walks" in page
    assert "CC BY 4.0" in page
    assert ".png-" not in page
    for name in zipfile.ZipFile(tmp_path / "fairface-bench-64.zip").namelist():
        assert name not in page
    assert (tmp_path / "out" / "study.png").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["study.md", "study.png"]
    assert (run / DenseTask(1).name / "logits.npz").is_file()


def _pair(method: str, loss: str) -> tuple[Any, Any]:
    settings = config()
    return (
        next(m for m in settings.prune.methods if m.title == method),
        next(x for x in settings.finetune.losses if x.title == loss),
    )


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no study"):
        study.main(["analyse", str(tmp_path)])
