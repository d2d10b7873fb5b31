"""Sweeps: what is refused, what is tried, one NNI experiment that is killed, stopped and finished, and what it says."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner

from fair_prune_plugins.errors import ConfigError, InputError, MissingDependencyError
from fair_prune_plugins.workflow import config, job, model_store
from fair_prune_plugins.workflow.commands import app
from fair_prune_plugins.workflow.data import Normalisation, Part
from fair_prune_plugins.workflow.digits import load as load_digits
from fair_prune_plugins.workflow.readings import read_run
from fair_prune_plugins.workflow.results import RunResults
from fair_prune_plugins.workflow.run_folder import write_json
from fair_prune_plugins.workflow.sweep import host, processes, trial
from fair_prune_plugins.workflow.sweep.engine import check_port, experiment_configuration, free_port, preload_script
from fair_prune_plugins.workflow.sweep.outcome import Accuracies, FinishedPoint, Outcome, finished_trials
from fair_prune_plugins.workflow.sweep.report import choices, remarks, write_report
from fair_prune_plugins.workflow.sweep.running import Course, Crash, run_sweep
from fair_prune_plugins.workflow.sweep.space import Point, Setting, Space
from fair_prune_plugins.workflow.sweep.summary import Spread, summarise
from fair_prune_plugins.workflow.sweep.tuner import ContinuedTuner
from fair_prune_plugins.workflow.sweep.turns import ask_in_turn, received
from integration_tests.report_runs import make_run

ROOT = Path(__file__).parents[1]

CONFIG = """
name: A small sweep
threads: 1
data:
  kind: function
  function: fair_prune_plugins.workflow.digits:load
  target: digit
model: {factory: digits_resnet, options: {widths: [8, 16]}}
training: {epochs: 2, batch_size: 32}
prune: {methods: [magnitude, group_balanced_taylor], ratios: [0.5], round_to: 2}
finetune: {epochs: 1}
evaluation: {resamples: 200}
export: {samples: 16}
benchmark: {rounds: 2, min_seconds: 0.01, warmup: 1}
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def parse(*overrides: str) -> config.RunConfig:
    return config.parse(CONFIG, origin="c.yaml", overrides=overrides)


def space(*overrides: str) -> Space:
    return Space(parse(*overrides))


# -- configuration and space


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sweep.sed=1", ["unknown key 'sweep.sed'", "did you mean 'seeds'?", "concurrency"]),
        ("sweep.seeds=[]", ["sweep.seeds", "at least 1 item"]),
        ("sweep.seeds=[1, 2, 1]", ["sweep.seeds", "seeds must be different", "got [1, 2, 1]"]),
        ("sweep.seeds=[-1]", ["sweep.seeds.0", "greater than or equal to 0"]),
        ("sweep.concurrency=0", ["sweep.concurrency", "greater than or equal to 1"]),
        ("sweep.tuner=Tpe", ["sweep.tuner.name", "'GridSearch', 'Random' or 'TPE'", "got 'Tpe'"]),
        ("sweep.tuner=TPE", ["sweep", "max_trials is missing", "TPE has no end of its own"]),
        ("sweep.tuner={name: TPE, option: 1}", ["'sweep.tuner.option'", "did you mean 'options'?"]),
        (
            "sweep={tuner: {name: TPE, options: {optimize_mode: minimize}}, max_trials: 3}",
            ["sweep.tuner", "'minimize'", "larger is better"],
        ),
        ("sweep.vary={finetune.epochs: []}", ["sweep.vary", "'finetune.epochs' has an empty list"]),
        ("sweep.vary={finetune.epochs: [1, 1]}", ["sweep.vary", "the values of 'finetune.epochs' must be different"]),
        ("sweep.vary={finetune.epochs: 3}", ["sweep.vary", "needs a list of values", "loguniform", "got 3"]),
        ("sweep.vary={prune.x: [[1]]}", ["sweep.vary", "numbers, texts, true and false, got [1]"]),
        ("sweep.vary={prune.methods: [taylor]}", ["sweep.vary", "list the criteria in prune.methods"]),
        ("sweep.vary={training.epochs: [1, 2]}", ["sweep.vary", "'training.epochs' cannot be varied", "share"]),
        (
            "sweep.vary={finetune.learning_rate: {_type: uniform, _value: [0.1, 0.2]}}",
            ["sweep", "a grid takes lists", "sweep.tuner: TPE"],
        ),
        (
            "sweep={tuner: TPE, max_trials: 2, vary: {finetune.learning_rate: {_type: uniform, _value: [1]}}}",
            ["sweep.vary", "uniform takes _value: [low, high], got [1]"],
        ),
        (
            "sweep={tuner: TPE, max_trials: 2, vary: {finetune.learning_rate: {_type: uniform, _value: [2, 1]}}}",
            ["sweep.vary", "a lower end below the upper one"],
        ),
        ("sweep.training_service={host: a}", ["sweep.training_service", "needs platform", "NNI has local, remote"]),
        ("sweep.training_service={platform: remot}", ["did you mean 'remote'?", "kubeflow"]),
        ("prune.ratios=[0.5, 1.5]", ["prune.ratios.1", "less than 1"]),
        ("prune.ratios=[0.5, 0.5]", ["must be different"]),
        ("prune.methods=[tailor]", ["no criterion 'tailor'", "did you mean 'taylor'?"]),
        ("finetune.losses=[grup_dro]", ["no loss 'grup_dro'", "did you mean 'group_dro'?"]),
        # what only the combinations show
        ("sweep.vary={finetune.learnin_rate: [0.1]}", ["sweep.vary", "unknown key", "did you mean 'learning_rate'?"]),
        ("sweep.vary={finetune.epochs: [1, -2]}", ["sweep.vary (finetune.epochs: -2)", "greater than or equal to 0"]),
        (
            "sweep={tuner: TPE, max_trials: 2, vary: {prune.max_pruning_ratio: {_type: uniform, _value: [0.5, 1.5]}}}",
            ["sweep.vary (prune.max_pruning_ratio: 1.5)", "less than or equal to 1"],
        ),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        space(override)
    for part in parts:
        assert part in str(caught.value)


def test_powers_of_ten_are_numbers() -> None:
    (point,) = space("sweep.vary={finetune.learning_rate: [2e-3]}", "prune.methods=[magnitude]").points()
    assert point.setting.varied == (("finetune.learning_rate", 0.002),)
    drawn = "{finetune.learning_rate: {_type: loguniform, _value: [1e-4, 1e-2]}}"
    made = space(f"sweep={{tuner: TPE, max_trials: 2, vary: {drawn}}}")
    assert made.search_space()["finetune.learning_rate"]["_value"] == [0.0001, 0.01]
    named = space("sweep.vary={finetune.optimizer: [adamw, sgd]}").sweep.vary
    assert named == {"finetune.optimizer": ["adamw", "sgd"]}


def test_the_grid_is_every_combination_with_every_seed() -> None:
    made = space(
        "prune.ratios=[0.25, 0.5]",
        "finetune.losses=[cross_entropy, group_dro]",
        "sweep.seeds=[3, 0]",
        "sweep.vary={finetune.learning_rate: [0.001, 0.002]}",
    )
    points = made.points()
    assert made.trials() == len(points) == len({p.folder for p in points}) == len({p.name for p in points}) == 32
    told = made.search_space()
    assert {k: v["_value"] for k, v in told.items()} == {
        "criterion": ["magnitude", "group_balanced_taylor"],
        "ratio": [0.25, 0.5],
        "loss": ["cross_entropy", "group_dro"],
        "finetune.learning_rate": [0.001, 0.002],
        "seed": [3, 0],
    }
    for point in points:
        (again,) = made.points_of(json.loads(json.dumps(made.parameters_of(point.setting, point.seed))))
        assert again == point
        one = made.config_of(point)
        assert [m.title for m in one.prune.methods] == [point.setting.variant.method.title]
        assert one.prune.ratios == [point.setting.variant.amount.value]
        assert [loss.title for loss in one.finetune.losses] == [point.setting.variant.loss.title]
        assert one.finetune.learning_rate == dict(point.setting.varied)["finetune.learning_rate"]
        assert (one.seed, one.prune.round_to, one.evaluation.resamples) == (point.seed, 2, 200)
    assert len({made.stamp(p) for p in points}) == 32


def test_a_stamp_changes_with_what_a_result_depends_on_alone() -> None:
    point = space().points()[0]
    stamp = space().stamp(point)
    same = ["name=x", "threads=2", "sweep.concurrency=3", "sweep.seeds=[0, 1]", "prune.ratios=[0.5, 0.7]"]
    assert all(space(s).stamp(point) == stamp for s in same)
    other = ["finetune.epochs=2", "training.epochs=1", "prune.round_to=4", "benchmark.rounds=3"]
    assert len({stamp, *(space(s).stamp(point) for s in other)}) == 5


def test_costs_are_varied_like_ratios() -> None:
    made = space("prune={methods: [magnitude], macs: [0.3, 0.6]}")
    assert made.search_space()["macs"]["_value"] == [0.3, 0.6]
    assert [made.config_of(p).prune.macs for p in made.points()] == [[0.3], [0.6]]
    assert made.points()[0].name == "magnitude 30 % of MACs, seed 0"


def test_a_tuner_chooses_settings_and_no_seeds() -> None:
    """Otherwise it would learn which seed is lucky."""
    made = space("sweep={tuner: TPE, max_trials: 5, seeds: [4, 5], vary: {finetune.epochs: [1, 2]}}")
    assert "seed" not in made.search_space()
    assert made.trials() == 5
    points = made.points_of({"criterion": "magnitude", "ratio": 0.5, "loss": "cross_entropy", "finetune.epochs": 2})
    assert [p.seed for p in points] == [4, 5]
    with pytest.raises(ConfigError, match=r"is no trial of this sweep \(no 'finetune.epochs'\)"):
        made.points_of({"criterion": "magnitude", "ratio": 0.5, "loss": "cross_entropy"})


def test_a_tuner_is_not_asked_to_choose_how_much_to_prune() -> None:
    with pytest.raises(ConfigError, match=r"TPE compares trials by accuracy alone .*got 50 %, 70 %"):
        space("sweep={tuner: TPE, max_trials: 5}", "prune.ratios=[0.5, 0.7]")


def test_an_ordinary_run_does_not_look_at_it() -> None:
    assert config.RunConfig.model_validate(parse("sweep.seeds=[1, 2]").model_dump(mode="json")).seed == 0


# -- tuners


def proposals(tuner: ContinuedTuner, told: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tuner.update_search_space(told)
    return [tuner.generate_parameters(i) for i in range(count)]


def test_a_grid_goes_on_with_what_is_left() -> None:
    import nni

    made = space("sweep.seeds=[0, 1]")
    every = [made.parameters_of(p.setting, p.seed) for p in made.points()]
    finished = [{"parameter": every[2], "value": 0.5}, {"parameter": every[0], "value": 0.5}]
    tuner = ContinuedTuner("GridSearch", {}, 0, finished)
    left = proposals(tuner, made.search_space(), 2)
    assert sorted(map(str, left)) == sorted(map(str, [every[1], every[3]]))
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(2)


def test_a_random_search_goes_on_where_it_was() -> None:
    told = {"x": {"_type": "uniform", "_value": [0, 1]}}
    whole = proposals(ContinuedTuner("Random", {}, 3, []), told, 4)
    finished = [{"parameter": p, "value": 0.1} for p in whole[:2]]
    assert proposals(ContinuedTuner("Random", {}, 3, finished), told, 2) == whole[2:]


def test_tpe_learns_from_finished_trials_that_more_is_better() -> None:
    """NNI lets it minimise by default: half of what is proposed at random is above a half, nearly all of this is."""
    told = {"x": {"_type": "uniform", "_value": [0, 1]}}
    finished = [{"parameter": {"x": i / 40}, "value": i / 40} for i in range(40)]
    proposed = proposals(ContinuedTuner("TPE", {}, 0, finished), told, 20)
    assert np.mean([p["x"] for p in proposed]) > 0.65


def test_wrong_options_of_a_tuner_are_told_before_anything_starts(tmp_path: Path) -> None:
    made = parse("sweep={tuner: {name: TPE, options: {nonsense: 1}}, max_trials: 2}")
    with pytest.raises(ConfigError, match=r"sweep\.tuner\.options: NNI's TPE does not take .*nonsense"):
        run_sweep(made, base=tmp_path, output=tmp_path / "out", console=Console(file=io.StringIO()), port=None)
    assert not (tmp_path / "out").exists()


# -- who gets which parameters


def test_trials_ask_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """NNI hands parameters out to whoever asks first: here the last trial asks half a second before the first."""
    queue = [{"n": 0}, {"n": 1}, {"n": 2}]
    got: dict[int, Any] = {}

    def one(number: int) -> None:
        got[number] = ask_in_turn(lambda: queue.pop(0), tmp_path, trial=f"t{number}", number=number)

    threads = [threading.Thread(target=one, args=(n,)) for n in (2, 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert got == {}
    one(0)
    for thread in threads:
        thread.join()
    assert got == {n: {"n": n} for n in range(3)}
    assert received(tmp_path, "t1") == {"n": 1}
    assert received(tmp_path, "t9") is None


def test_nobody_waits_for_ever_for_a_trial_that_died(tmp_path: Path) -> None:
    assert ask_in_turn(lambda: {"n": 5}, tmp_path, trial="t", number=5, longest=0.1) == {"n": 5}


# -- other training services


def test_what_a_training_service_is_told_is_given_to_nni(tmp_path: Path) -> None:
    """NNI itself reads it; trials elsewhere are started by whatever Python is there."""
    (tmp_path / "key").touch()
    machine = f"{{host: 192.0.2.1, user: u, ssh_key_file: {tmp_path / 'key'}}}"
    made = space(f"sweep.training_service={{platform: remote, machine_list: [{machine}], reuse_mode: false}}")
    read = experiment_configuration(made, tmp_path, trials=7, finished=[])
    assert (read.training_service.platform, read.training_service.machine_list[0].host) == ("remote", "192.0.2.1")
    assert read.trial_command == f"python3 -m {processes.TRIAL_MODULE} {tmp_path}"
    assert (read.max_trial_number, read.trial_concurrency) == (7, 1)
    with pytest.raises(ConfigError, match=r"sweep\.training_service: NNI does not take it: .*nonsense"):
        experiment_configuration(
            space("sweep.training_service={platform: local, nonsense: 1}"), tmp_path, trials=1, finished=[]
        )


# -- processes


@pytest.mark.skipif(sys.platform == "win32", reason="sleeping processes are made with a shell")
def test_only_this_folders_processes_are_stopped(tmp_path: Path) -> None:
    def sleeper(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments])

    mine, other = tmp_path / "a", tmp_path / "ab"
    started = [
        sleeper("main.js", "--experiments-directory", str(mine / "nni")),
        sleeper("-m", processes.TRIAL_MODULE, str(mine)),
        sleeper("main.js", "--experiments-directory", str(other / "nni")),
        sleeper("-m", processes.TRIAL_MODULE, str(other)),
        sleeper(str(mine / "nni")),
    ]
    try:
        for process in started:  # until each is what it is to be, and no longer a copy of this one
            while psutil.Process(process.pid).cmdline()[1:2] != ["-c"]:
                time.sleep(0.01)
        assert processes.stop_left_over(mine) == (1, 1)
        assert [p.poll() is None for p in started] == [False, False, True, True, True]
        assert processes.stop_left_over(mine) == (0, 0)
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"listens on port {port}; choose another"):
            check_port(port)
        assert free_port(beside=1) != port


def test_the_manager_waits_longer_for_its_tuner_and_for_nothing_else(tmp_path: Path) -> None:
    """By the order in which timers of NNI's manager end: the tuner's own, of no time at all, comes after all others."""
    node = Path(str(pytest.importorskip("nni_node").__path__[0])) / "node"
    (tmp_path / "preload.cjs").write_text(preload_script(tmp_path, None), encoding="utf-8")
    (tmp_path / "told.cjs").write_text(
        """
        const tuner = setTimeout(() => console.log('Tuner did not connect in 10 seconds.'), 0);
        setTimeout((word) => { console.log(word); clearTimeout(tuner); }, 200, 'plain');
        require('util').promisify(setTimeout)(100, 'promised').then((word) => console.log(word));
        """,
        encoding="utf-8",
    )
    command = [str(node), "--require", str(tmp_path / "preload.cjs"), str(tmp_path / "told.cjs")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["promised", "plain"]


def test_another_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"not a sweep folder \(it has no sweep\.json\)"):
        run_sweep(parse(), base=tmp_path, output=tmp_path, console=Console(file=io.StringIO()), port=None)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_without_nni_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name.split(".")[0] == "nni":
            raise ModuleNotFoundError("No module named 'nni'", name="nni")
        return real(name, package)

    monkeypatch.setattr(host.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fair-prune-plugins\[nni\]'"):
        host.require_nni()
    outcome = CliRunner().invoke(app, ["sweep", str(tmp_path / "c.yaml")])
    assert outcome.exit_code == 2
    assert "fair-prune-plugins[nni]" in outcome.stderr


# -- trials without the engine


@pytest.fixture(scope="module")
def two_trials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]], list[list[float]]]:
    """Both criteria with one seed, as NNI would start them, in one process."""
    base = tmp_path_factory.mktemp("trials")
    made = parse()
    folder = base / "out"
    folder.mkdir()
    asked = made.model_dump(mode="json", exclude_unset=True)
    write_json(folder / trial.ASKED, {"config": asked, "base": str(base)})
    finals, reported = [], []
    for point in Space(made).points():
        told: list[float] = []
        finals.append(
            trial.run_trial(folder, Space(made).parameters_of(point.setting, point.seed), lambda v, t=told: t.append(v))
        )
        reported.append(told)
    return folder, finals, reported


def test_a_trial_reports_the_worst_groups_validation_accuracy(
    two_trials: tuple[Path, list[dict[str, float]], list[list[float]]],
) -> None:
    """Oracle: the stored networks, their own normalisation, accuracy by scikit-learn."""
    folder, finals, reported = two_trials
    samples = load_digits(seed=0)
    rows = samples.rows(Part.VALIDATION)
    inputs = Normalisation.of_training(samples)(torch.from_numpy(samples.inputs[rows]))
    labels, codes = samples.labels[rows], samples.groups.codes[rows]

    def accuracies(stored: Path) -> list[float]:
        model, _ = model_store.load(stored, beside=None)
        with torch.no_grad():
            predicted = model(inputs).argmax(1).numpy()
        groups = [accuracy_score(labels[codes == g], predicted[codes == g]) for g in range(3)]
        return [*groups, accuracy_score(labels, predicted)]

    for name, final, told in zip(("magnitude", "group_balanced_taylor"), finals, reported, strict=True):
        run = folder / f"trials/{name}-50/seed-0/run/models"
        dense, pruned, tuned = (
            accuracies(run / p) for p in ("dense/trained", f"{name}-50/pruned", f"{name}-50/finetuned")
        )
        worst = int(np.argmin(dense[:3]))
        assert told == pytest.approx([dense[worst], pruned[worst], tuned[worst]], abs=1e-12)
        assert final == pytest.approx({"default": tuned[worst], "everyone": tuned[3], "dense": dense[worst]}, abs=1e-12)
    assert len(set(reported[0])) > 1, "nothing would be tested if all were equal"


def test_the_dense_network_is_made_once(
    two_trials: tuple[Path, list[dict[str, float]], list[list[float]]],
) -> None:
    folder, _, _ = two_trials
    first, second = (
        folder / f"trials/{name}-50/seed-0/run/models/dense" for name in ("magnitude", "group_balanced_taylor")
    )
    for stage in ("trained", "worst_group", "onnx", "test_logits", "evaluation"):
        assert (first / stage / "stamp.json").read_bytes() == (second / stage / "stamp.json").read_bytes(), stage


def test_a_finished_trial_is_read_and_not_repeated(
    two_trials: tuple[Path, list[dict[str, float]], list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, finals, _ = two_trials
    made = space()
    monkeypatch.setitem(sys.modules, "fair_prune_plugins.workflow.sweep.point_run", None)  # what would do the work
    told: list[float] = []
    for point, final in zip(made.points(), finals, strict=True):
        assert trial.run_trial(folder, made.parameters_of(point.setting, point.seed), told.append) == final
    assert told == []
    assert [t["value"] for t in finished_trials(made, folder)] == [f["default"] for f in finals]
    assert finished_trials(space("finetune.epochs=2"), folder) == [], "made from another configuration"


def test_the_report_of_a_seed_is_that_of_one_run(
    two_trials: tuple[Path, list[dict[str, float]], list[list[float]]], tmp_path: Path
) -> None:
    """Oracle: `fair-prune run` with both criteria at once; all but times and the name must be equal."""
    folder, _, _ = two_trials
    silent = Console(file=io.StringIO())
    whole = job.run(parse(), base=folder.parent, output=tmp_path / "run", console=silent)
    summary = write_report(space(), folder, folder.parent, Course(), silent)
    together = RunResults.read_json(folder / "report/seed-0/results.json")
    assert stable(together) == stable(whole)
    assert all(m.latency["p50_ms"]["value"] > 0 for m in together.models)
    assert {p.name for p in (folder / "report").iterdir()} == {
        "report.html", "results.json", "results.csv", "pareto.svg", "pareto.png", "seed-0",
    }  # fmt: skip
    for row, model in zip(summary.rows, read_run(whole).models, strict=True):
        assert row.name == model.name
        assert row.worst.mean == model.evaluation.worst_accuracy.value
        assert row.accuracy.mean == model.evaluation.accuracy.value
    html = (folder / "report/report.html").read_text()
    assert "seed-0/report.html" in html
    assert "One seed" in html
    printed = io.StringIO()
    write_report(space(), folder, folder.parent, Course(), Console(file=printed))
    assert "seed-0 kept" in printed.getvalue()


def stable(results: RunResults) -> dict[str, Any]:
    values = json.loads(results.to_json())
    for key in ("created", "timing", "machine", "name"):
        del values[key]
    for model in values["models"]:
        for key in ("latency", "seconds", "file_bytes"):
            del model[key]
    return values


# -- several seeds


def finished(setting: Setting, seed: int, value: float) -> FinishedPoint:
    own = Accuracies(worst_group=value, everyone=value)
    outcome = Outcome(
        stamp="", parameters={}, seed=seed, worst_group="thin", validation={"dense": own, "finetuned": own}
    )
    return FinishedPoint(Point(setting, seed), outcome)


def test_seeds_are_averaged_and_the_choice_is_made_on_validation_people() -> None:
    made = space("prune={methods: [taylor, fairgrape], ratios: [0.3, 0.5]}")
    runs = {}
    for seed in (0, 1):
        whole = make_run(methods=("taylor", "fairgrape"), seed=seed)
        models = [m.model_copy(update={"name": m.name.replace("%", " %")}) for m in whole.models]
        runs[seed] = whole.model_copy(update={"models": models})
    readings = {seed: read_run(run) for seed, run in runs.items()}
    values = {"taylor 30 %": (0.8, 0.9), "fairgrape 30 %": (0.95, 0.7), "taylor 50 %": (0.5, 0.5)}
    settings = {s.name: s for s in made.settings()}
    found = [finished(settings[n], seed, v) for n, both in values.items() for seed, v in enumerate(both)]
    found.append(finished(settings["fairgrape 50 %"], 0, 0.99))
    crash = Crash("fairgrape 50 %, seed 1", "FAILED", ["boom"])
    summary = summarise("s", [0, 1], found, readings, Course(done=7, crashed=[crash]), 8)

    rows = {row.name: row for row in summary.rows}
    assert set(rows) == {"dense", *settings}
    for name, both in values.items():
        assert rows[name].validation == Spread(pytest.approx(sum(both) / 2), min(both), max(both))
        worst = [runs[s].model(name).evaluation["worst_group"]["accuracy"]["value"] for s in (0, 1)]
        assert rows[name].worst == Spread(pytest.approx(sum(worst) / 2), min(worst), max(worst))
    assert rows["taylor 30 %"].chosen, "0.85 is more than 0.825, whatever the test people say"
    assert not rows["fairgrape 30 %"].chosen
    assert rows["taylor 50 %"].chosen, "one lucky seed is not chosen over two"
    assert rows["fairgrape 50 %"].seeds == (0,)
    first, second = choices(summary)
    assert first.startswith("At 30 %, taylor served the worst group best on validation people (85.0")
    assert second.startswith("At 50 %, taylor served the worst group best on validation people (50.0")
    said = " ".join(remarks(summary))
    assert "means over up to 2 seeds" in said
    assert "Fewer seeds than others, and not chosen where others have more: fairgrape 50 %." in said
    assert "1 trial of 8 not finished, 1 of them crashed in this call" in said

    equal = [finished(settings[f"{n} 50 %"], seed, 0.5) for n in ("taylor", "fairgrape") for seed in (0, 1)]
    (said,) = choices(summarise("s", [0, 1], equal, readings, Course(done=4), 4))
    assert said.startswith("At 50 %, taylor and fairgrape served the worst group equally well on validation people")
    assert "the first of them is taken, taylor (50.0" in said


def test_a_number_that_no_seed_has_stays_undefined() -> None:
    assert Spread.of([None, None]) == Spread(None, None, None)
    assert Spread.of([None, 0.5]) == Spread(0.5, 0.5, 0.5)
    assert Spread.of([None, 0.5]).estimate.low is None


# -- the engine: killed, interrupted, finished


@dataclass
class Story:
    """What was seen while a sweep was killed, taken up and interrupted, and taken up again."""

    folder: Path
    home: Path
    orphans: tuple[int, int]
    reachable: dict[str, bool]
    interrupted: str
    interrupted_code: int
    left_after_interrupt: tuple[int, int]
    tuners_after_interrupt: list[int]
    finished_before: dict[str, float]
    output: str
    code: int
    left_at_end: tuple[int, int]


def left(folder: Path) -> tuple[int, int]:
    managers, trials = processes.left_over(folder)
    return len(managers), len(trials)


def tuners(folder: Path) -> list[int]:
    """NNI's processes that work in the folder and do not say so on their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in process.environ().get("NNI_CONFIG_DIR", ""):
                found.append(process.pid)
    return found


def answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) == 0


def outcomes(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): p.stat().st_mtime for p in folder.glob("trials/*/*/outcome.json")}


@pytest.fixture(scope="module")
def story(two_trials: tuple[Path, list[dict[str, float]], list[list[float]]]) -> Iterator[Story]:
    """The folder has one finished trial of four; of the others one can finish, and two have a criterion that fails."""
    folder = two_trials[0]
    base, home = folder.parent, folder.parent / "home"
    home.mkdir()
    (base / "c.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "fair_prune_plugins.cli", "sweep", str(base / "c.yaml"), "-o", str(folder)]
    broken = "{name: taylor, label: broken, options: {statistic: nonsense}}"
    command += ["--set", f"prune.methods=[magnitude, {broken}]", "--set", "prune.ratios=[0.5, 0.25]"]
    command += ["--set", "sweep.concurrency=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def start(log: Path) -> subprocess.Popen[bytes]:
        # Where tests run in the background interrupts may be ignored, and a new process takes that over; what is
        # handled here is at its default there.
        ours = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with log.open("w") as file:
                return subprocess.Popen(command, cwd=base, env=environment, stdout=file, stderr=subprocess.STDOUT)
        finally:
            signal.signal(signal.SIGINT, ours)

    def wait_for(process: subprocess.Popen[bytes], what: Callable[[], bool], log: Path) -> None:
        while not what():
            assert process.poll() is None, f"the sweep ended too early: {log.read_text()}"
            time.sleep(0.05)

    logs = [base / f"{name}.log" for name in ("killed", "interrupted", "finished")]
    before = outcomes(folder)
    try:
        process = start(logs[0])
        wait_for(process, lambda: min(left(folder)) > 0, logs[0])
        process.send_signal(signal.SIGKILL)
        process.wait()
        orphans = left(folder)
        (manager,), _ = processes.left_over(folder)
        port = int(manager.cmdline()[manager.cmdline().index("--port") + 1])
        own = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
        reachable = {address: answers(address, port) for address in {"127.0.0.1", "127.0.0.2", *own}}

        process = start(logs[1])
        wait_for(process, lambda: "portal" in logs[1].read_text(), logs[1])
        process.send_signal(signal.SIGINT)
        interrupted_code = process.wait()
        left_after_interrupt, tuners_after_interrupt = left(folder), tuners(folder)

        process = start(logs[2])
        code = process.wait()
        yield Story(
            folder=folder,
            home=home,
            orphans=orphans,
            reachable=reachable,
            interrupted=logs[1].read_text(),
            interrupted_code=interrupted_code,
            left_after_interrupt=left_after_interrupt,
            tuners_after_interrupt=tuners_after_interrupt,
            finished_before=before,
            output=logs[2].read_text(),
            code=code,
            left_at_end=left(folder),
        )
    finally:
        process.kill()
        process.wait()
        processes.stop_left_over(folder)


needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL and SIGINT")


@needs_posix
def test_a_killed_sweep_leaves_manager_and_trials_that_the_next_call_stops(story: Story) -> None:
    assert story.orphans[0] == 1, "nothing would be tested without an orphan"
    assert story.orphans[1] >= 1
    assert "a killed sweep had left 1 manager of NNI" in story.interrupted


@needs_posix
def test_the_portal_answers_on_loopback_alone(story: Story) -> None:
    assert story.reachable["127.0.0.1"]
    assert [a for a, reached in story.reachable.items() if reached] == ["127.0.0.1"]
    assert "(this machine only)" in story.output


@needs_posix
def test_ctrl_c_stops_manager_and_trials(story: Story) -> None:
    assert story.interrupted_code == 130
    assert "Stopped. What is finished is kept" in story.interrupted
    assert story.left_after_interrupt == story.left_at_end == (0, 0)
    assert story.tuners_after_interrupt == []


@needs_posix
def test_finished_trials_are_kept_and_the_others_done(story: Story) -> None:
    assert "1 trial of 4 kept from before" in story.output
    after = outcomes(story.folder)
    assert after.items() > story.finished_before.items(), "kept, and not written again"
    assert set(after) - set(story.finished_before) == {"trials/magnitude-25/seed-0/outcome.json"}
    with (story.folder / "report/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["name"], r["seeds"], r["chosen"]) for r in rows] == [
        ("dense", "0", "False"),
        ("magnitude 50 %", "0", "True"),
        ("magnitude 25 %", "0", "True"),
    ]


@needs_posix
def test_what_nni_was_told_is_the_validation_accuracy(story: Story) -> None:
    """Read from NNI's own database: intermediate results of dense, pruned and fine-tuned, and the final one."""
    kept = json.loads((story.folder / "trials/magnitude-25/seed-0/outcome.json").read_text())["validation"]
    metrics: list[tuple[str, int, Any]] = []
    for path in story.folder.glob("nni/*/db/nni.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            metrics += database.execute("select type, sequence, data from MetricData").fetchall()
    told = {(kind, number): json.loads(json.loads(data)) for kind, number, data in metrics}
    worst = [kept[name]["worst_group"] for name in ("dense", "pruned", "finetuned")]
    assert [told["PERIODICAL", n] for n in range(3)] == worst
    assert told["FINAL", 0] == {"default": worst[2], "everyone": kept["finetuned"]["everyone"], "dense": worst[0]}


@needs_posix
def test_crashed_trials_are_named_with_their_last_words(story: Story) -> None:
    assert story.code == 1
    for percent in (50, 25):
        assert f"broken {percent} %, seed 0: crashed" in story.output
    assert story.output.count("nonsense") >= 2
    assert "2 trials of 4 not finished, 2 of them crashed in this call" in story.output
    assert "nonsense" in (story.folder / "report/report.html").read_text()


@needs_posix
def test_everything_of_nni_lies_in_the_sweep_folder(story: Story) -> None:
    assert [p.name for p in story.home.iterdir() if "nni" in p.name] == []
    assert (story.folder / "nni/home/nni-experiments/.experiment").is_file()
    assert list(story.folder.glob("nni/*/db/nni.sqlite"))


def test_a_run_does_not_import_nni() -> None:
    """`fair-prune run` must work without NNI, although its configuration may have a section `sweep`."""
    code = (
        "import sys, fair_prune_plugins.workflow.job; assert not [m for m in sys.modules if m.split('.')[0] == 'nni']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
