"""Predictions from torch modules, ONNX files and run folders; the oracle asks ONNX Runtime by hand."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fair_prune_plugins.audit.reading import ModelFiles, predictions_of
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.workflow import config, job
from fair_prune_plugins.workflow.audit_inputs import read_onnx
from fair_prune_plugins.workflow.audit_runs import read_runs
from fair_prune_plugins.workflow.commands import app
from fair_prune_plugins.workflow.data import Part, Samples
from fair_prune_plugins.workflow.digits import load as load_digits

DATA = """
seed: 0
data:
  kind: function
  function: fair_prune_plugins.workflow.digits:load
  options: {validation: 0.3, test: 0.5, seed: 0}
  target: digit
"""
CONFIG = (
    DATA
    + """
threads: 1
model: {factory: digits_resnet, options: {widths: [4, 8]}}
training: {epochs: 1, batch_size: 32}
prune: {methods: [magnitude], ratios: [0.5], round_to: 2}
finetune: {epochs: 1}
evaluation: {resamples: 100}
export: {samples: 16}
benchmark: {rounds: 2, min_seconds: 0.01, warmup: 1}
"""
)
PRUNED = "magnitude 50 %"
FILES = {"dense": "models/dense/onnx/model.onnx", PRUNED: "models/magnitude-50/onnx/model.onnx"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "seed-0"
    threads = torch.get_num_threads()
    settings = config.parse(CONFIG, origin="test")
    job.run(settings, base=folder.parent, output=folder, console=Console(file=io.StringIO()))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_digits(validation=0.3, test=0.5, seed=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.yaml"
    path.write_text(DATA)
    return path


def asked_by_hand(file: Path, samples: Samples, part: Part) -> npt.NDArray[np.float64]:
    """Bytes to 0 to 1, the training mean and deviation, one call."""
    scaled = samples.inputs / 255.0
    train = scaled[samples.parts == "train"]
    inputs = ((scaled[samples.parts == str(part)] - train.mean()) / train.std()).astype(np.float32)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return np.asarray(logits, dtype=np.float64)


def test_run_folders_and_their_files_say_what_onnx_runtime_says(run: Path, samples: Samples, data: Path) -> None:
    files = [ModelFiles(name, (run / path,)) for name, path in FILES.items()]
    for inputs in (read_runs([run], [run]), read_onnx(data, files[0], files[1:]), read_onnx(run, files[0], files[1:])):
        for part, audited in ((Part.TEST, inputs.data), (Part.VALIDATION, inputs.validation)):
            assert audited is not None
            rows = np.flatnonzero(samples.parts == str(part))
            assert audited.people.ids == tuple(str(r) for r in rows)
            assert np.array_equal(audited.people.labels, samples.labels[rows])
            assert audited.people.outputs == tuple("0123456789")
            assert np.array_equal(audited.people.groups[0].codes, samples.groups.codes[rows])
            assert [m.name for m in audited.models] == list(FILES)
            for model in audited.models:
                expected = asked_by_hand(run / FILES[model.name], samples, part)
                np.testing.assert_allclose(audited.logits(model)[0], expected, rtol=1e-4, atol=1e-4)
            assert audited.training is not None
            assert np.array_equal(audited.training.labels, samples.labels[samples.parts == "train"])


def another_seed(run: Path, folder: Path, **data: Any) -> Path:
    """A copy whose networks said something else, as of another seed."""
    shutil.copytree(run, folder)
    asked = json.loads((folder / "run.json").read_text())
    asked["config"]["seed"] = 1
    asked["config"]["data"]["options"] |= data
    (folder / "run.json").write_text(json.dumps(asked))
    drawn = load_digits(**asked["config"]["data"]["options"])
    scaled = drawn.inputs[drawn.parts == "train"] / 255.0
    noted = json.loads((folder / "data/data.json").read_text())
    noted |= {"mean": [scaled.mean()], "std": [scaled.std()]}
    (folder / "data/data.json").write_text(json.dumps(noted))
    for i, file in enumerate(sorted(folder.glob("models/*/test_logits/logits.npy"))):
        said = np.random.default_rng(i).normal(size=(len(drawn.rows(Part.TEST)), 10))
        np.save(file, said.astype(np.float32))
    return folder


def test_several_run_folders_are_runs_of_each_model(run: Path, tmp_path: Path) -> None:
    other = another_seed(run, tmp_path / "seed-1")
    data = read_runs([run, other], [run, other]).data
    assert [m.name for m in data.models] == ["dense", PRUNED]
    assert [m.run_names for m in data.models] == [("seed-0", "seed-1")] * 2
    for model, place in zip(data.models, ("dense", "magnitude-50"), strict=True):
        for folder, logits in zip((run, other), data.logits(model), strict=True):
            assert np.array_equal(logits, np.load(folder / f"models/{place}/test_logits/logits.npy"))


def test_other_test_people_are_told_or_intersected(run: Path, samples: Samples, tmp_path: Path) -> None:
    other = another_seed(run, tmp_path / "seed-1", seed=7)
    with pytest.raises(InputError, match=r"seed-1 has other test people than .*data\.parts.*--only-common"):
        read_runs([run, other], [run])
    inputs = read_runs([run], [other], only_common=True)
    drawn = load_digits(validation=0.3, test=0.5, seed=7)
    both = np.flatnonzero((samples.parts == "test") & (drawn.parts == "test"))
    assert inputs.data.people.ids == tuple(str(r) for r in both)
    assert np.array_equal(inputs.data.people.labels, samples.labels[both])
    theirs = np.load(other / "models/magnitude-50/test_logits/logits.npy")
    where = {row: i for i, row in enumerate(np.flatnonzero(drawn.parts == "test"))}
    pruned = inputs.data.logits(inputs.data.pruned[0])[0]
    assert np.array_equal(pruned, theirs[[where[row] for row in both]])
    assert any(f"{len(both)} of {len(samples.rows(Part.TEST))} test people" in note for note in inputs.notes)
    assert any("belong to another group in" in note for note in inputs.notes), "limits are measured on training people"


def test_run_folders_that_do_not_fit_are_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        read_runs([tmp_path])
    with pytest.raises(InputError, match=r"no pruned model of the runs is called 'x'; there are \['magnitude 50 %'\]"):
        read_runs([run], [run], models=["x"])
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    np.save(broken / "models/dense/test_logits/logits.npy", np.zeros((3, 10)))
    with pytest.raises(InputError, match=r"logits\.npy is damaged: shape \(3, 10\)"):
        read_runs([broken])
    (broken / "models/dense/onnx/model.onnx").unlink()
    with pytest.raises(InputError, match="has no finished model 'dense'"):
        read_runs([broken])
    shutil.rmtree(broken / "models/magnitude-50")
    with pytest.raises(InputError, match="has no finished pruned model"):
        read_runs([run], [broken])
    with pytest.raises(InputError, match=r"'magnitude 50 %' is in .*seed-0 but not in|has no finished pruned model"):
        read_runs([run], [run, broken])
    said = broken / "data/data.json"
    noted = json.loads(said.read_text())
    noted["sizes"]["train"] += 1
    said.write_text(json.dumps(noted))
    with pytest.raises(InputError, match=r"the data is no longer what the run was made from \(the numbers of people"):
        read_runs([broken])


def changed(source: Path, target: Path, **metadata: str | None) -> Path:
    """A copy with other metadata; ``None`` takes an entry out."""
    proto = onnx.load(source)
    entries = {e.key: e.value for e in proto.metadata_props} | metadata
    del proto.metadata_props[:]
    for key, value in entries.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, target)
    return target


def test_files_are_asked_as_they_say_inputs_are_prepared(
    run: Path, samples: Samples, data: Path, tmp_path: Path
) -> None:
    source = run / FILES["dense"]
    silent = changed(source, tmp_path / "a.onnx", normalisation_mean=None)
    inputs = read_onnx(data, ModelFiles("dense", (silent,)))
    expected = asked_by_hand(source, samples, Part.TEST)
    np.testing.assert_allclose(inputs.data.logits(inputs.data.dense)[0], expected, rtol=1e-4, atol=1e-4)
    assert any("does not say how its inputs were normalised" in note for note in inputs.notes)
    plain = changed(source, tmp_path / "b.onnx", normalisation_mean="0", normalisation_std="1")
    got = read_onnx(data, ModelFiles("dense", (plain,))).data
    session = onnxruntime.InferenceSession(source)
    raw = (samples.inputs[samples.rows(Part.TEST)] / 255.0).astype(np.float32)
    (unscaled,) = session.run(None, {session.get_inputs()[0].name: raw})
    np.testing.assert_allclose(got.logits(got.dense)[0], unscaled, rtol=1e-4, atol=1e-4)


def test_everybody_can_be_audited(run: Path, samples: Samples, data: Path) -> None:
    inputs = read_onnx(data, ModelFiles("dense", (run / FILES["dense"],)), everybody=True)
    assert np.array_equal(inputs.data.people.labels, samples.labels)
    assert inputs.validation is None
    assert inputs.data.training is None
    assert any("training people included" in note for note in inputs.notes)


def test_onnx_files_that_do_not_fit_are_told(run: Path, data: Path, tmp_path: Path) -> None:
    source = run / FILES["dense"]
    other = changed(source, tmp_path / "other.onnx", classes=json.dumps(["cat", "dog"]))
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(source), apart, save_as_external_data=True, location="weights.bin", size_threshold=500)
    read_onnx(data, ModelFiles("dense", (apart,)))
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "text.onnx").write_text("no model")
    narrow = linear_file(tmp_path / "narrow.onnx", np.zeros((1024, 3), np.float32), (1, 32, 32))
    for path, said in (
        (other, r"other\.onnx tells the classes \['cat', 'dog'\] apart, the data has \['0', '1'"),
        (apart, r"apart\.onnx keeps its weights beside it in \['weights\.bin'\], which is not there"),
        (tmp_path / "text.onnx", r"text\.onnx is not a valid ONNX model"),
        (tmp_path / "none.onnx", "there is no ONNX model at"),
        (narrow, r"narrow\.onnx gives 3 outputs and the data has 10 classes"),
    ):
        with pytest.raises(InputError, match=said):
            read_onnx(data, ModelFiles("dense", (path,)))
    for text, said in (
        ("seed: 1", "the key 'data' is missing"),
        ("data: [", "is not valid YAML"),
        ("data: {kind: x}", "data.kind"),
    ):
        data.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_onnx(data, ModelFiles("dense", (source,)))


def linear_file(path: Path, weight: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Path:
    """An ONNX file of flatten and one product, written by hand."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", number, ["n", *shape])],
        [helper.make_tensor_value_info("y", number, ["n", weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_torch_modules_and_files_are_asked_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [torch.nn.Linear(5, 3) for _ in range(2)]
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    batches = np.array_split(inputs, 7)
    model = predictions_of("dense", nets, batches, progress=False)
    assert model.name == "dense"
    for net, logits in zip(nets, model.runs, strict=True):
        weight, bias = (p.detach().numpy().astype(np.float64) for p in (net.weight, net.bias))
        np.testing.assert_allclose(logits, inputs @ weight.T + bias, rtol=1e-5, atol=1e-5)
    weight = nets[0].weight.detach().numpy().T.copy()
    path = linear_file(tmp_path / "net.onnx", weight, (5,))
    both = predictions_of(
        "dense", {"file": path, "module": nets[0], "call": lambda x: x[:, :3]}, batches, progress=False
    )
    assert both.run_names == ("file", "module", "call")
    np.testing.assert_allclose(both.runs[0], inputs @ weight, rtol=1e-5, atol=1e-5)
    assert np.array_equal(both.runs[1], model.runs[0])
    assert np.array_equal(both.runs[2], inputs[:, :3])
    with pytest.raises(InputError, match="batches is an iterator, which 2 networks cannot all read"):
        predictions_of("dense", nets, iter(batches))
    with pytest.raises(InputError, match=r"net\.onnx: the ONNX model takes inputs of shape"):
        predictions_of("dense", path, [inputs[:, :4]], progress=False)


def test_the_gate_on_onnx_files_and_run_folders(run: Path, data: Path, tmp_path: Path) -> None:
    forms = {
        "files": ["--data", data, "--dense", run / FILES["dense"], "--pruned", f"{PRUNED}={run / FILES[PRUNED]}"],
        "runs": ["--dense", run, "--pruned", run, "--model", PRUNED],
    }
    for name, models in forms.items():
        arguments = [str(a) for a in ("check", *models, "--max-group-drop", 1, "--markdown", tmp_path / name)]
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert f"{PRUNED} passes: 3 holds" in done.stdout
    tables = [[line for line in (tmp_path / n).read_text().splitlines() if line.startswith("| acc")] for n in forms]
    assert sorted(tables[0]) == sorted(tables[1]), "the same people and networks, read in two ways"
    assert len(tables[0]) == 3
