"""The proof: what it measures, what it refuses, what it says."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fair_prune_plugins.errors import ExportError, InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.onnx import prove

INPUTS, CLASSES = 6, 3


@pytest.fixture
def samples():
    return np.random.default_rng(0).standard_normal((50, INPUTS)).astype(np.float32)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(INPUTS, CLASSES)


def write(path, linear, *, change=0.0, batch="n", tail=(), outputs=("y",), external=False):
    """A linear layer written by hand, so that the proof is tested without the exporter."""
    weight = linear.weight.detach().numpy()
    bias = linear.bias.detach().numpy() + np.float32(change)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), *tail]
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(model, str(path), save_as_external_data=external, location=path.name + ".data", size_threshold=0)
    return path


def test_the_difference_is_relative_to_the_outputs_scale(linear, samples, tmp_path):
    change = np.float32(2.0**-13)
    path = write(tmp_path / "m.onnx", linear, change=change)
    expected = linear(torch.as_tensor(samples)).detach().numpy()
    report = prove(linear, path, samples, tolerance=1e-2)
    (output,) = report.outputs
    assert output.scale == pytest.approx(np.abs(expected).max(), rel=1e-6)
    assert output.difference == pytest.approx(change, rel=1e-2)
    assert report.relative == pytest.approx(change / np.abs(expected).max(), rel=1e-2)
    assert output.spread == pytest.approx(np.ptp(expected, 0).max() / np.abs(expected).max(), rel=1e-5)
    assert any("clean exports stay below" in note for note in report.notes)
    with pytest.raises(ExportError, match=r"differs from torch by .* of the scale of output 'y' at batch size"):
        prove(linear, path, samples, tolerance=1e-5)


def test_differing_classes_are_counted_per_group(linear, samples, tmp_path):
    path = write(tmp_path / "m.onnx", linear, change=np.array([0.0, 0.2, 0.0]))
    rng = np.random.default_rng(1)
    codes, labels = rng.integers(-1, 3, len(samples)), rng.integers(0, CLASSES, len(samples))
    groups = GroupLabels(("a", "b", "c", "nobody"), codes, "age")
    report = prove(linear, path, samples, groups, labels=labels, tolerance=1.0)
    logits = linear(torch.as_tensor(samples)).detach().numpy()
    ours, theirs = logits.argmax(1), (logits + np.array([0.0, 0.2, 0.0])).argmax(1)
    assert (ours != theirs).any()
    masks = {name: codes == code for code, name in enumerate(groups.names)} | {"(unknown)": codes < 0}
    assert [g.name for g in report.classes.groups] == list(masks)
    for group in (*report.classes.groups, report.classes.overall):
        rows = masks.get(group.name, np.ones(len(samples), bool))
        assert group.count == rows.sum()
        assert group.differ == (ours != theirs)[rows].sum()
        assert group.correct_torch == (ours == labels)[rows].sum()
        assert group.correct_onnx == (theirs == labels)[rows].sum()
    assert f"{(ours != theirs).sum()} of 50 predicted classes differ" in report.statement()
    assert report.attribute == "age"


def test_a_single_logit_is_judged_at_zero(samples, tmp_path):
    model = nn.Linear(INPUTS, 1)
    report = prove(model, write(tmp_path / "m.onnx", model, change=0.3), samples, tolerance=1.0)
    logits = model(torch.as_tensor(samples)).detach().numpy()[:, 0]
    assert report.classes.overall.differ == ((logits > 0) != (logits + np.float32(0.3) > 0)).sum() > 0


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_every_batch_size_is_run_whatever_the_number_of_samples(rows, linear, samples, tmp_path):
    seen = []
    linear.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    report = prove(linear, write(tmp_path / "m.onnx", linear), samples[:rows], batch_sizes=(7, 1, 20))
    assert set(seen) >= {1, 7, 20}
    assert report.batch_sizes == (1, 7, 20)
    assert report.classes.overall.count == report.samples == rows


def test_a_fixed_batch_is_found_out(linear, samples, tmp_path):
    path = write(tmp_path / "m.onnx", linear, batch=2)
    with pytest.raises(ExportError, match=r"cannot run m.onnx at batch size 1: .*bakes its batch size in"):
        prove(linear, path, samples)
    prove(linear, path, samples, batch_sizes=(2,))


def test_a_file_that_ignores_its_input_cannot_hide_behind_a_large_constant(samples, tmp_path):
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        model.weight.mul_(1e-7)
    report = prove(model, write(tmp_path / "m.onnx", model), samples)
    assert any("hardly depends on the sample" in note for note in report.notes)


def test_another_shape_or_number_of_outputs_is_refused(linear, samples, tmp_path):
    transposed = write(tmp_path / "t.onnx", linear, tail=[helper.make_node("Transpose", ["y"], ["z"])], outputs=("z",))
    with pytest.raises(ExportError, match=r"output 'z' has shape \(3, 1\) in ONNX Runtime and \(1, 3\) in torch"):
        prove(linear, transposed, samples)
    two = write(tmp_path / "2.onnx", linear, tail=[helper.make_node("Abs", ["y"], ["z"])], outputs=("y", "z"))
    with pytest.raises(ExportError, match=r"outputs \['y', 'z'\], the torch model returns \['output'\]"):
        prove(linear, two, samples)


def test_outputs_that_are_not_finite_are_an_error_on_either_side(linear, samples, tmp_path):
    path = write(tmp_path / "m.onnx", linear, tail=[helper.make_node("Log", ["y"], ["z"])], outputs=("z",))
    with pytest.raises(ExportError, match="the ONNX file gives outputs that are not finite"):
        prove(linear, path, samples)
    samples[3, 0] = np.inf
    with pytest.raises(ExportError, match="the torch model gives outputs that are not finite"):
        prove(linear, path, samples)


def test_a_missing_sidecar_is_named(linear, samples, tmp_path):
    path = write(tmp_path / "m.onnx", linear, external=True)
    assert prove(linear, path, samples).relative < 1e-6
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"keeps its weights beside it in \['m.onnx.data'\]"):
        prove(linear, path, samples)


def test_files_that_are_no_models_are_refused(linear, samples, tmp_path):
    with pytest.raises(InputError, match="there is no ONNX file"):
        prove(linear, tmp_path / "missing.onnx", samples)
    good = write(tmp_path / "m.onnx", linear)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.raises(ExportError, match="not a valid ONNX model"):
        prove(linear, cut, samples)
    unsorted = onnx.load(good)
    unsorted.graph.node[0].input[1] = "nowhere"
    onnx.save(unsorted, tmp_path / "bad.onnx")
    with pytest.raises(ExportError, match="not a valid ONNX model"):
        prove(linear, tmp_path / "bad.onnx", samples)


def test_inputs_are_matched_by_number(linear, samples, tmp_path):
    class Two(nn.Module):
        def forward(self, a, b):
            return linear(a) + b

    with pytest.raises(ExportError, match=r"the file has the inputs \['x'\]"):
        prove(Two(), write(tmp_path / "m.onnx", linear), (samples, samples[:, :3].copy()))


def test_integer_and_dense_outputs_are_compared_but_are_no_classes(samples, tmp_path):
    class Dense(nn.Module):
        def forward(self, x):
            return x[:, :, None].expand(-1, -1, 4).contiguous(), x.argmax(1)

    from fair_prune_plugins.onnx import export

    report = export(Dense(), samples[:2], tmp_path / "m.onnx", samples=samples)
    assert [o.relative for o in report.parity.outputs] == [0.0, 0.0]
    assert report.parity.classes is None
    assert "predicted classes" not in report.statement()


def test_the_model_is_left_in_training_mode_with_its_statistics(samples, tmp_path):
    model = nn.Sequential(nn.Linear(INPUTS, CLASSES), nn.Dropout(0.9))
    model.train()
    path = write(tmp_path / "m.onnx", model[0])
    assert prove(model, path, samples).relative < 1e-6
    assert all(module.training for module in model.modules())
