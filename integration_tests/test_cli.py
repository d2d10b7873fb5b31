"""The command line as a user meets it: commands, help, exit codes, and one clear message instead of a traceback."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow.commands import app

CONFIG = """
name: Faces that are not there
threads: 1
data:
  kind: table
  images: images.zip
  table: labels.csv
  target: smile
  groups: [skin, sex]
  parts: {column: part}
  validation: 0.3
model: {factory: face_mobilenet}
training: {epochs: 2, batch_size: 16, flip: true, shift: 1}
prune: {methods: [taylor, fairgrape], ratios: [0.5], steps: 2}
finetune: {epochs: 1, batch_size: 16}
evaluation: {resamples: 100, minimum_group: 5}
export: {samples: 20}
benchmark: {rounds: 2, min_seconds: 0.01, warmup: 1}
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def invoke(*arguments: str | Path, width: int = 200) -> Any:
    return CliRunner(env={"COLUMNS": str(width), "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration beside an archive of drawn pictures: bright ones are smiles; two people have no known group."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    count = 180
    table = pd.DataFrame(
        {
            "file": [f"{i}.jpg" for i in range(count)],
            "smile": np.where(np.arange(count) % 2 == 0, "yes", "no"),
            "skin": rng.choice(["dark", "light"], count),
            "sex": rng.choice(["f", "m"], count),
            "part": np.where(np.arange(count) % 3 == 0, "test", "train"),
        }
    )
    table.loc[[5, 6], "sex"] = None
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("labels.csv", table.to_csv(index=False))
        for name, smile in zip(table["file"], table["smile"], strict=True):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 140, (32, 32, 3)) + (100 if smile == "yes" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
            archive.writestr(name, buffer.getvalue())
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, Any]:
    return place / "out", invoke("run", place / "config.yaml", "-o", place / "out")


def test_run_ends_with_a_table_in_words(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    assert result.exit_code == 0, result.output
    # Names are on two lines in the table; who is named elsewhere depends on what was measured.
    for said in ("taylor", "fairgrape", "50 %", "What it means", "What cannot be concluded", "report.html"):
        assert said in result.stdout
    results = json.loads((folder / "report/results.json").read_text())
    assert results["task"]["attribute"] == "skin x sex"
    assert results["task"]["classes"] == ["no", "yes"]
    assert [m["name"] for m in results["models"]] == ["dense", "taylor 50 %", "fairgrape 50 %"]
    assert sum(g["n"] for g in results["models"][0]["evaluation"]["groups"]) < results["data"]["sizes"]["test"] == 60
    assert results["models"][0]["evaluation"]["unknown"] > 0


def test_a_second_run_keeps_every_stage(place: Path, finished: tuple[Path, Any]) -> None:
    result = invoke("run", place / "config.yaml", "-o", finished[0])
    assert result.exit_code == 0
    assert "done in" not in result.stdout
    assert "kept" in result.stdout


def test_report_export_and_benchmark_work_on_a_run(finished: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = finished
    report = invoke("report", folder)
    assert report.exit_code == 0, report.output
    assert "What it means" in report.stdout

    export = invoke("export", folder, "--model", "fairgrape 50 %", "-o", tmp_path / "small.onnx")
    assert export.exit_code == 0, export.output
    assert "ONNX Runtime equals torch" in export.stdout

    dense = folder / "models/dense/onnx/model.onnx"
    timed = invoke(
        "benchmark", dense, tmp_path / "small.onnx", "--rounds", "2", "--seconds", "0.01",
        "--json", tmp_path / "t.json", "--csv", tmp_path / "t.csv",
    )  # fmt: skip
    assert timed.exit_code == 0, timed.output
    assert "small" in timed.stdout
    assert [m["name"] for m in json.loads((tmp_path / "t.json").read_text())["models"]] == ["model", "small"]
    assert pd.read_csv(tmp_path / "t.csv")["model"].tolist() == ["model", "small"]


def test_files_of_one_name_are_told_apart_by_their_paths(finished: tuple[Path, Any]) -> None:
    files = [finished[0] / f"models/{m}/onnx/model.onnx" for m in ("dense", "taylor-50")]
    timed = invoke("benchmark", *files, "--rounds", "2", "--seconds", "0.01", width=500)
    assert timed.exit_code == 0, timed.output
    again = invoke("benchmark", files[0], files[0])
    assert again.exit_code == 2
    assert "the same file is given twice" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "{place}/none.yaml"], "there is no configuration file at"),
        (["run", "{place}/config.yaml", "--set", "prune.ration=[1]"], "did you mean 'ratios'?"),
        (["run", "{place}/config.yaml", "--set", "data.groups=[race]"], "data.groups: the data has no column 'race'"),
        (
            ["run", "{place}/config.yaml", "--set", "data.images=none.zip"],
            "data.images: there is no folder or zip archive",
        ),
        (["quickstart", "--set", "sed=1"], "quickstart.yaml: unknown key 'sed'; did you mean 'seed'?"),
        (["explain", "prune.ratio"], "did you mean 'prune.ratios'?"),
        (["export", "{place}", "-m", "x", "-o", "x.onnx"], "is not a run folder"),
        (["report", "{place}"], "is not a run folder"),
        (["benchmark", "{place}/none.onnx"], "none.onnx"),
    ],
)
def test_errors_are_one_clear_message_with_exit_code_2(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*[a.format(place=place) for a in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_error_itself() -> None:
    result = invoke("quickstart", "--set", "sed=1", "--debug")
    assert isinstance(result.exception, InputError)


def test_a_corrupt_image_names_the_file_and_the_way_out(place: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(place / "images.zip") as source, zipfile.ZipFile(tmp_path / "images.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[: 300 if name == "41.jpg" else None])
    (tmp_path / "config.yaml").write_text(CONFIG)
    result = invoke("run", tmp_path / "config.yaml", "-o", tmp_path / "out", width=1000)
    assert result.exit_code == 2
    assert "'41.jpg' in" in result.stderr
    assert "skip_corrupt: true" in result.stderr


def test_ctrl_c_says_that_the_run_can_go_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fair_prune_plugins.workflow.training.fit", stop)
    result = invoke("run", place / "config.yaml", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "goes on from here" in result.stderr
    assert (tmp_path / "out/data/stamp.json").exists()
    assert not list((tmp_path / "out").rglob(".unfinished-*"))


def test_explain_shows_keys_with_default_and_meaning() -> None:
    every = invoke("explain", width=300)
    assert every.exit_code == 0
    for said in ("prune.ratios", "data.skip_corrupt", "data.kind: table", "benchmark.rounds", "required"):
        assert said in every.stdout
    one = invoke("explain", "prune.round_to", width=300)
    assert "which widths are kept" in one.stdout
    assert "prune.ratios" not in one.stdout


@pytest.mark.parametrize("command", ["quickstart", "run", "explain", "export", "benchmark", "report"])
def test_every_command_has_help(command: str) -> None:
    assert command in invoke("--help").stdout
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout


@pytest.mark.parametrize(("missing", "arguments"), [("typer", []), ("yaml", ["explain"])])
def test_without_the_extra_there_is_a_message_instead_of_a_traceback(missing: str, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fair_prune_plugins.cli import main\n"
        f"sys.argv = ['fair-prune', *{arguments!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.split()
        == (
            f"Error: {missing} is needed for fair-prune; install it with: pip install 'fair-prune-plugins[workflow]'"
        ).split()
    )


@pytest.mark.parametrize(
    ("file", "change", "command", "said"),
    [
        ("run.json", "{", "report", "not JSON"),
        ("run.json", "[]", "export", "cannot be read as the configuration of a run"),
        ("run.json", '{"base": "."}', "export", "it has no 'config'"),
        ("run.json", '{"config": {"sed": 1}, "base": "."}', "report", "data: Field required"),
        ("report/results.json", "{}", "report", "is not a results file of this version"),
        ("report/results.json", None, "report", "there is no results file at"),
        ("models/dense/trained/model.json", "{}", "export", "model.json is damaged ('schema_version')"),
        ("models/dense/trained/model.json", "{", "export", "model.json is damaged"),
    ],
)
def test_damaged_run_folders_are_told(
    finished: tuple[Path, Any], tmp_path: Path, file: str, change: str | None, command: str, said: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(change)
    further = ["-m", "dense", "-o", tmp_path / "x.onnx"] if command == "export" else []
    result = invoke(command, folder, *further, width=1000)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr


def test_an_opset_that_onnx_does_not_know_is_told(finished: tuple[Path, Any], tmp_path: Path) -> None:
    result = invoke("export", finished[0], "-m", "dense", "-o", tmp_path / "x.onnx", "--opset", "99", width=1000)
    assert result.exit_code == 2
    assert "export.opset: this version of onnx knows the opsets 11 to" in result.stderr


def test_groups_that_cannot_be_judged_stop_the_run_before_the_training(place: Path, tmp_path: Path) -> None:
    for override, said in (
        ("evaluation.minimum_group=100", "evaluation.minimum_group: no group by skin x sex has 100 validation people"),
        ("data.groups=[file]", "prune.collect_on: the groups ["),
    ):
        result = invoke("run", place / "config.yaml", "-o", tmp_path / "out", "--set", override, width=5000)
        assert result.exit_code == 2
        assert said in result.stderr
        assert not (tmp_path / "out/models").exists()


def test_the_command_line_starts_without_torch() -> None:
    """Help must come at once: nothing heavy is imported before a command needs it."""
    code = (
        "import sys; from fair_prune_plugins.workflow.commands import app; "
        "heavy = [m for m in ('torch', 'pandas', 'sklearn', 'onnxruntime', 'matplotlib') if m in sys.modules]; "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
