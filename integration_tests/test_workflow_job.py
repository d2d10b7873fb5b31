"""A whole small run: what it leaves behind, what a second run repeats, and that a killed one resumes."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.workflow import config, job, model_store
from fair_prune_plugins.workflow.data import Normalisation, Part
from fair_prune_plugins.workflow.digits import load as load_digits
from fair_prune_plugins.workflow.results import RunResults

CONFIG = """
name: A small run
threads: 1
data:
  kind: function
  function: fair_prune_plugins.workflow.digits:load
  options: {validation: 0.5, test: 0.3}
  target: digit
model: {factory: digits_resnet, options: {widths: [8, 16]}}
training: {epochs: 2, batch_size: 32}
prune: {methods: [magnitude, group_balanced_taylor], ratios: [0.5], round_to: 2}
finetune: {epochs: 1}
evaluation: {resamples: 200}
export: {samples: 16}
benchmark: {rounds: 2, min_seconds: 0.01, warmup: 1}
"""

MODELS = ["dense", "magnitude 50 %", "group_balanced_taylor 50 %"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def execute(output: Path, *overrides: str) -> tuple[RunResults, list[str]]:
    """Run the configuration; the results and the stages that had to work."""
    printed = io.StringIO()
    settings = config.parse(CONFIG, origin="test", overrides=overrides)
    results = job.run(settings, base=Path(), output=output, console=Console(file=printed, width=200))
    return results, re.findall(r"\] (\S+) done in", printed.getvalue())


def stable(results: RunResults) -> dict[str, Any]:
    """All that the same seed must give again: everything but times."""
    values = json.loads(results.to_json())
    for key in ("created", "timing", "machine"):
        del values[key]
    for model in values["models"]:
        for key in ("latency", "seconds", "file_bytes"):
            del model[key]
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResults, list[str]]:
    folder = tmp_path_factory.mktemp("job") / "run"
    results, worked = execute(folder)
    return folder, results, worked


def test_a_run_leaves_report_numbers_and_proven_files(finished: tuple[Path, RunResults, list[str]]) -> None:
    folder, results, worked = finished
    assert len(worked) == len(set(worked)) == 18
    assert [m.name for m in results.models] == MODELS
    assert {p.name for p in (folder / "report").iterdir()} >= {"report.html", "results.json", "results.csv"}
    assert results.data.sizes == {"train": 360, "validation": 898, "test": 539}
    for model in results.models:
        assert model.parity["relative"] < 1e-4
        assert model.latency["p50_ms"]["value"] > 0
        assert model.evaluation["n"] == 539
    dense, plain, balanced = results.models
    assert plain.macs == balanced.macs < 0.3 * dense.macs, "local pruning gives all methods the same cost"
    assert all(w.kept == w.asked == w.total // 2 for w in plain.widths)
    assert list(balanced.against) == [plain.name]
    assert plain.against == {}
    assert not any(".unfinished" in str(p) for p in folder.rglob("*"))
    assert not [p for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".pkl")]


def test_every_criterion_is_combined_with_every_loss(tmp_path: Path) -> None:
    """Losses change the weights and never how much is pruned; each asks for what it needs by itself."""
    losses = "[cross_entropy, group_dro, {name: excess_gap, label: ceag}, performance_weighted, distillation]"
    overrides = [f"finetune.losses={losses}", "prune.steps=2", "prune.methods=[magnitude, fairgrape]"]
    results, _ = execute(tmp_path / "run", *overrides)
    titles = ["magnitude", "fairgrape"]
    fair = ("group_dro", "ceag", "performance_weighted", "distillation")
    titles += [f"{method} + {loss}" for loss in fair for method in titles]
    assert [m.name for m in results.models] == ["dense", *(f"{title} 50 %" for title in titles)]
    assert [m.method for m in results.models[1:]] == titles
    assert len({m.macs for m in results.models[1:]}) == 1
    weights = {
        title: load_file(tmp_path / f"run/models/{title.replace(' + ', '-')}-50/finetuned/model.safetensors")
        for title in titles
    }
    first = {title: next(w for w in state.values() if w.ndim == 2) for title, state in weights.items()}
    assert all(not torch.equal(first[a], first[b]) for a, b in itertools.combinations(titles, 2))
    assert all(list(m.against) == ["magnitude 50 %"] for m in results.models[2:])
    shares = load_file(tmp_path / "run/models/magnitude-group_dro-50/pruned/loss.safetensors")
    assert shares["log_shares"].exp().sum().item() == pytest.approx(1)
    assert len(set(shares["log_shares"].tolist())) > 1, "what the loss learned between steps is kept"


def test_losses_that_compare_with_the_dense_network_cannot_train_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training: the loss 'distillation' compares with the dense network"):
        execute(tmp_path / "run", "training.loss=distillation")
    with pytest.raises(ConfigError, match=r"finetune\.losses.*has no option 'stepsize'"):
        execute(tmp_path / "run", "finetune.losses=[{name: group_dro, options: {stepsize: 1}}]")


def test_the_worst_group_is_fixed_on_validation_people(finished: tuple[Path, RunResults, list[str]]) -> None:
    folder, results, _ = finished
    picked = json.loads((folder / "models/dense/worst_group/worst_group.json").read_text())["worst_group"]
    samples = load_digits(validation=0.5, test=0.3)
    rows = samples.rows(Part.VALIDATION)
    model, _ = model_store.load(folder / "models/dense/trained", beside=None)
    with torch.no_grad():
        right = model(Normalisation.of_training(samples)(torch.from_numpy(samples.inputs[rows]))).argmax(1).numpy()
    right = right == samples.labels[rows]
    codes = samples.groups.codes[rows]
    accuracies = {name: right[codes == code].mean() for code, name in enumerate(samples.groups.names)}
    assert picked == min(accuracies, key=lambda n: accuracies[n])
    for result in results.models:
        assert result.evaluation["worst_group"]["name"] == picked
        assert result.evaluation["worst_group"]["picked_on_this_data"] is False


@pytest.mark.parametrize("place", ["dense", "magnitude-50"])
def test_the_numbers_are_those_of_the_onnx_file_used_by_its_own_metadata(
    finished: tuple[Path, RunResults, list[str]], place: str
) -> None:
    """Oracle: the file alone, inputs prepared as its metadata says, accuracy by scikit-learn."""
    folder, results, _ = finished
    path = folder / f"models/{place}/onnx/model.onnx"
    entries = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert entries["normalisation"] == "input = (x - mean) / std per channel, x in 0 to 1 (bytes divided by 255)"
    assert json.loads(entries["classes"]) == [str(d) for d in range(10)]
    mean, std = float(entries["normalisation_mean"]), float(entries["normalisation_std"])
    samples = load_digits(validation=0.5, test=0.3)
    rows = samples.rows(Part.TEST)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = ((samples.inputs[rows] / 255 - mean) / std).astype(np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    result = results.models[0 if place == "dense" else 1]
    expected = accuracy_score(samples.labels[rows], logits.argmax(1))
    assert result.evaluation["accuracy"]["value"] == pytest.approx(expected, abs=1e-12)
    for group in result.evaluation["groups"]:
        mine = samples.groups.codes[rows] == samples.groups.names.index(group["name"])
        expected = accuracy_score(samples.labels[rows][mine], logits[mine].argmax(1))
        assert group["accuracy"]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("override", "repeated"),
    [
        ("seed=0", []),
        ("threads=2", []),
        ("name=Another", ["report"]),
        ("benchmark.rounds=3", ["latency", "report"]),
        ("evaluation.resamples=300", [*(f"models/{m}/evaluation" for m in ("d", "m", "g")), "report"]),
        ("finetune.epochs_between=3", []),
    ],
)
def test_a_second_run_repeats_only_what_depends_on_the_change(
    finished: tuple[Path, RunResults, list[str]], tmp_path: Path, override: str, repeated: list[str]
) -> None:
    folder = tmp_path / "copy"
    _copy(finished[0], folder)
    results, worked = execute(folder, override)
    short = [re.sub(r"models/(.)[^/]*/", r"models/\1/", w) for w in worked]
    assert short == repeated
    if override == "seed=0":
        assert results == finished[1]


def test_another_method_is_added_without_touching_the_others(
    finished: tuple[Path, RunResults, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    _copy(finished[0], folder)
    _, worked = execute(folder, "prune.methods=[magnitude, group_balanced_taylor, taylor]", "finetune.epochs=0")
    stages = {w.rsplit("/", 1)[-1] for w in worked if "/taylor-50/" in w}
    assert stages == {"pruned", "finetuned", "onnx", "test_logits", "evaluation"}
    assert "models/dense/trained" not in worked
    assert "models/magnitude-50/pruned" not in worked
    assert "models/magnitude-50/finetuned" in worked, "fewer epochs of fine-tuning concern every pruned network"
    pruned, kept = (folder / f"models/magnitude-50/{s}/model.safetensors" for s in ("pruned", "finetuned"))
    assert pruned.read_bytes() == kept.read_bytes(), "no epochs leave the network as it was pruned"


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_run_resumes_to_the_same_numbers(finished: tuple[Path, RunResults, list[str]], tmp_path: Path) -> None:
    """Killed with SIGKILL as soon as the first pruned network is stored; what was finished by then is not repeated."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    root = Path(__file__).parents[1]
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fair_prune_plugins.cli", "run", str(tmp_path / "run.yaml"), "-o", str(folder)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(root)}
    )
    try:
        while not (folder / "models/magnitude-50/pruned").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "report").exists()
    results, worked = execute(folder)
    assert "models/dense/trained" not in worked
    assert "models/magnitude-50/pruned" not in worked
    assert "report" in worked
    assert stable(results) == stable(finished[1])


def test_a_checkpoint_takes_the_place_of_training(finished: tuple[Path, RunResults, list[str]], tmp_path: Path) -> None:
    weights = finished[0] / "models/dense/trained/model.safetensors"
    results, _ = execute(tmp_path / "run", f"model.checkpoint={weights}", "prune.methods=[magnitude]")
    assert stable(results)["models"][0] == stable(finished[1])["models"][0]


def test_a_wrong_option_of_a_method_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nonsense"):
        execute(tmp_path / "run", "prune.methods=[{name: taylor, options: {nonsense: 1}}]")
    assert not (tmp_path / "run/models").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: cuda is not available here"):
        execute(tmp_path / "run", "device=cuda")


def test_a_model_is_exported_again(finished: tuple[Path, RunResults, list[str]], tmp_path: Path) -> None:
    path = tmp_path / "again.onnx"
    written = job.export_model(finished[0], "magnitude 50 %", path, opset=18)
    assert written["report"]["opset"] == 18
    assert written["macs"] == finished[1].models[1].macs
    inputs = np.random.default_rng(0).standard_normal((3, 1, 32, 32)).astype(np.float32)
    outputs = []
    for file in (path, finished[0] / "models/magnitude-50/onnx/model.onnx"):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    with pytest.raises(InputError, match=r"no finished model 'x'; it has \['dense', 'magnitude 50 %'"):
        job.export_model(finished[0], "x", path, opset=None)
    with pytest.raises(InputError, match="is not a run folder"):
        job.export_model(tmp_path, "dense", path, opset=None)


def test_a_report_is_written_again(finished: tuple[Path, RunResults, list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    _copy(finished[0], folder)
    (folder / "report/report.html").unlink()
    assert job.rewrite_report(folder).html.is_file()
    with pytest.raises(InputError, match="is not a run folder"):
        job.rewrite_report(tmp_path)
