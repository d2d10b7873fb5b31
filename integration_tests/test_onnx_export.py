"""Exports are proven, single files; what cannot be proven is not written."""

import copy
import importlib
import json
import logging
import threading
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fair_prune_plugins.errors import ExportError, InputError
from fair_prune_plugins.evaluation import OnnxPredictor, TorchPredictor
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.onnx import export, read_metadata
from fair_prune_plugins.onnx.calling import Call

# The package gives the name `export` to the function; the module of that name is needed to sabotage it.
export_module = importlib.import_module("fair_prune_plugins.onnx.export")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def lively(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights that are not 0 and 1, as after training."""
    for module in model.modules():
        for name in ("running_mean", "weight", "bias"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
                nn.init.normal_(tensor, mean=float(name == "weight"), std=0.3)
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Attention(nn.Module):
    """A vision transformer in small: patches, a class token, attention, LayerNorm."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        return self.head((x + self.out(y))[:, 0])


def plain_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 13, 3),
        nn.BatchNorm2d(13),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(13, 5),
    )


def depthwise_net():
    return nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        SqueezeExcite(12),
        nn.Conv2d(12, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def group_norm_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )


def layer_norm_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=4), nn.LayerNorm([6, 4, 4]), nn.GELU(), nn.Flatten(), nn.Linear(96, 5)
    )


def single_logit_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))


NETS = [plain_cnn, depthwise_net, group_norm_net, layer_norm_net, Attention, single_logit_net]


@pytest.fixture
def images():
    return np.random.default_rng(1).standard_normal((45, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("make", NETS)
def test_nets_are_exported_and_agree_with_an_independent_prediction(make, images, tmp_path):
    model = lively(make())
    report = export(model, torch.randn(1, 3, 16, 16), tmp_path / "net.onnx", samples=images)
    assert report.exporter == "dynamo"
    assert report.fallback_reason is None
    assert report.parity.relative < 1e-5
    assert report.inputs == {"input": ("batch", 3, 16, 16)}
    assert report.outputs["output"][0] == "batch"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]  # one file, no sidecar, no leftovers
    assert report.size == report.path.stat().st_size
    for rows in (1, 2, 3, 45):
        expected, got = TorchPredictor(model)(images[:rows]), OnnxPredictor(report.path)(images[:rows])
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert report.parity.classes.overall.count == len(images)
    assert report.parity.classes.overall.differ == 0
    json.dumps(report.as_dict(), allow_nan=False)


def test_the_model_is_left_exactly_as_it_was(images, tmp_path):
    model = lively(plain_cnn()).double()
    model.train()
    model[1].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    gradients = [p.requires_grad for p in model.parameters()]
    export(model, torch.randn(2, 3, 16, 16), tmp_path / "net.onnx", samples=images)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert all(p.grad is None for p in model.parameters())
    assert len(model[0]._forward_hooks) == 1
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def test_half_precision_models_are_exported_in_float32(images, tmp_path):
    model = group_norm_net().to(torch.bfloat16)
    report = export(model, images[:2], tmp_path / "net.onnx", samples=images)
    assert next(model.parameters()).dtype == torch.bfloat16
    kinds = {t.data_type for t in onnx.load(report.path).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.table, self.scale = nn.Linear(6, 4), nn.Embedding(10, 4), nn.Parameter(torch.tensor(1.5))

    def forward(self, image, code, offset=None):
        y = self.scale * self.image(image) + self.table(code)
        return y if offset is None else y + offset


@pytest.mark.parametrize("form", ["tuple", "dict", "dict in another order", "with a fixed input"])
def test_several_inputs(form, tmp_path):
    rng = np.random.default_rng(0)
    image, code = rng.standard_normal((9, 6)).astype(np.float32), rng.integers(0, 10, 9)
    offset = np.arange(4, dtype=np.float32)
    example, samples = (image[:2], code[:2]), (image, code)
    if form.startswith("dict"):
        example = {"image": image[:2], "code": code[:2]}
        samples = {"image": image, "code": code} if form == "dict" else {"code": code, "image": image}
    if form == "with a fixed input":
        example, samples = (*example, offset), (*samples, offset)
    model = TwoInputs()
    report = export(model, example, tmp_path / "net.onnx", samples=samples)
    shapes = {"image": ("batch", 6), "code": ("batch",)}
    assert report.inputs == (shapes if form != "with a fixed input" else {**shapes, "offset": (4,)})
    assert report.parity.relative < 1e-5
    session = OnnxSession(report.path)
    feed = {"image": image[:3], "code": code[:3]} | ({"offset": offset} if "offset" in report.inputs else {})
    arguments = [torch.as_tensor(value) for value in feed.values()]
    np.testing.assert_allclose(session(feed)[0], model(*arguments).detach().numpy(), rtol=1e-4, atol=1e-5)


class OnnxSession:
    def __init__(self, path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, feed):
        return self.session.run(None, feed)


class Outputs(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(6, 7), nn.Linear(7, 3), form

    def forward(self, x):
        h = torch.tanh(self.body(x))
        z = self.head(h)
        return {
            "tuple": lambda: (z, h),
            "list": lambda: [z, h],
            "dict": lambda: {"logits": z, "features": h, "loss": None},
            "nested": lambda: {"b": (z, [h]), "a": h.argmax(1)},
        }[self.form]()


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("tuple", ["output_0", "output_1"]),
        ("list", ["output_0", "output_1"]),
        ("dict", ["logits", "features"]),
        ("nested", ["b_0", "b_1_0", "a"]),
    ],
)
def test_all_outputs_are_compared(form, names, tmp_path):
    samples = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
    model = Outputs(form)
    report = export(model, samples[:2], tmp_path / "net.onnx", samples=samples)
    assert list(report.outputs) == names
    assert [o.name for o in report.parity.outputs] == names
    assert report.parity.classes.output == names[0]
    got = dict(zip(names, OnnxSession(report.path)({"input": samples}), strict=True))
    h = torch.tanh(model.body(torch.as_tensor(samples)))
    logits = model.head(h).detach().numpy()
    np.testing.assert_allclose(got[names[0]], logits, atol=1e-5)
    np.testing.assert_allclose(got[names[1]], h.detach().numpy(), atol=1e-5)


def sabotage(monkeypatch, change):
    """Both exporters write the graph of a changed model."""
    for name, write in dict(export_module.EXPORTERS).items():

        def changed(model, *rest, write=write):
            with torch.no_grad():
                change(model)
            return write(model, *rest)

        monkeypatch.setitem(export_module.EXPORTERS, name, changed)


def test_a_wrong_export_is_refused_and_an_earlier_file_stays(monkeypatch, images, tmp_path):
    model = lively(plain_cnn())
    path = tmp_path / "deep" / "net.onnx"
    export(model, images[:2], path, samples=images)
    good = path.read_bytes()
    sabotage(monkeypatch, lambda m: m[-1].weight.mul_(1.001))
    with pytest.raises(ExportError, match="differs from torch by") as caught:
        export(model, images[:2], path, samples=images)
    assert "[dynamo]" in str(caught.value)
    assert "[torchscript]" in str(caught.value)
    assert path.read_bytes() == good
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    with pytest.raises(ExportError):
        export(model, images[:2], tmp_path / "other.onnx", samples=images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_tiny_outputs_do_not_hide_a_wrong_export(monkeypatch, images, tmp_path):
    model = lively(plain_cnn())
    with torch.no_grad():
        model[-1].weight.mul_(1e-9)
        model[-1].bias.mul_(1e-9)
    assert export(model, images[:2], tmp_path / "net.onnx", samples=images).parity.relative < 1e-5
    sabotage(monkeypatch, lambda m: m[-1].bias.add_(1e-11))
    with pytest.raises(ExportError, match="differs from torch"):
        export(model, images[:2], tmp_path / "net.onnx", samples=images)


def test_an_exporter_that_only_the_proof_can_fault_is_replaced_by_the_older(monkeypatch, images, tmp_path):
    write = export_module.EXPORTERS["dynamo"]

    def wrong(model, *rest):
        model[-1].bias.add_(1.0)
        return write(model, *rest)

    monkeypatch.setitem(export_module.EXPORTERS, "dynamo", wrong)
    report = export(plain_cnn(), images[:2], tmp_path / "net.onnx", samples=images)
    assert report.exporter == "torchscript"
    assert "differs from torch" in report.fallback_reason
    assert report.parity.relative < 1e-5


class DataDependent(nn.Module):
    """A check on values, as assertions in real models are: the current exporter cannot trace it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        if x.abs().sum() < 0:
            raise ValueError("never")
        return self.linear(x)


@pytest.mark.parametrize("keywords", [False, True])
def test_the_older_exporter_is_used_where_the_current_cannot_and_it_says_so(keywords, tmp_path, capfd):
    samples = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
    example = {"x": samples[:1]} if keywords else samples[:1]
    report = export(DataDependent(), example, tmp_path / "n.onnx", samples={"x": samples} if keywords else samples)
    assert report.exporter == "torchscript"
    assert "GuardOnDataDependentSymNode" in report.fallback_reason
    assert any("older torchscript exporter" in note for note in report.notes)
    assert any("took a choice for a constant" in note for note in report.notes)
    assert "older torchscript exporter" in report.statement()
    assert report.inputs == {("x" if keywords else "input"): ("batch", 6)}
    assert read_metadata(report.path)["fair_prune.exporter"] == "torchscript"
    assert [p.name for p in tmp_path.iterdir()] == ["n.onnx"]
    assert capfd.readouterr() == ("", "")  # the exporters' pages of advice stay out of the way
    assert logging.root.manager.disable == 0


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x) + torch.arange(len(x.tolist()), dtype=torch.float32)[:, None]


def test_a_batch_size_baked_in_is_refused(tmp_path):
    samples = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
    with pytest.raises(ExportError, match="batch size"):
        export(FixedBatch(), samples[:2], tmp_path / "net.onnx", samples=samples)
    assert not list(tmp_path.iterdir())


def test_models_that_fail_or_diverge_are_refused_before_anything_is_exported(images, tmp_path):
    broken = lively(plain_cnn())
    with torch.no_grad():
        broken[-1].bias[1] = float("nan")
    with pytest.raises(ExportError, match=r"the torch model gives outputs that are not finite.*'output'"):
        export(broken, images[:2], tmp_path / "net.onnx", samples=images)
    with pytest.raises(ExportError, match="the torch model itself fails at batch size"):
        export(nn.Linear(5, 2), images[:2], tmp_path / "net.onnx", samples=images)
    uncopyable = nn.Linear(16, 2)
    uncopyable.lock = threading.Lock()
    with pytest.raises(ExportError, match="cannot be copied"):
        export(uncopyable, images[:2], tmp_path / "net.onnx", samples=images)

    class Nothing(nn.Linear):
        def forward(self, x):
            return {"loss": None}

    with pytest.raises(InputError, match="no tensor"):
        export(Nothing(16, 2), images[:2], tmp_path / "net.onnx", samples=images)
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_for_one_file_is_refused(monkeypatch, images, tmp_path):
    monkeypatch.setattr(export_module, "ONE_FILE_LIMIT", 100)
    with pytest.raises(ExportError, match="at most 100"):
        export(plain_cnn(), images[:2], tmp_path / "net.onnx", samples=images)


def test_interrupted_exports_leave_nothing(monkeypatch, images, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(export_module.EXPORTERS, "dynamo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(plain_cnn(), images[:2], tmp_path / "net.onnx", samples=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example_inputs": "image"}, "example_inputs must be a tensor"),
        ({"example_inputs": ()}, "an empty tuple"),
        ({"example_inputs": (torch.zeros(2, 3, 16, 16), 3)}, "got int"),
        ({"example_inputs": np.array(["a"])}, "an array of <U1"),
        ({"example_inputs": torch.zeros(0, 3, 16, 16)}, "has no rows"),
        ({"example_inputs": torch.tensor(1.0)}, "has no rows"),
        ({"samples": np.zeros((4, 3, 8, 8), np.float32)}, "samples does not fit example_inputs"),
        ({"samples": (np.zeros((4, 3, 16, 16), np.float32),) * 2}, "must be like example_inputs"),
        ({"samples": np.zeros((4, 3, 16, 16), np.uint8)}, "uint8"),
        ({"samples": np.zeros((0, 3, 16, 16), np.float32)}, "has no rows"),
        ({"groups": GroupLabels(("a",), np.zeros(3, int))}, "3 people for 45 samples"),
        ({"labels": np.zeros(3, int)}, "labels must be integers of shape"),
        ({"labels": np.zeros(45)}, "labels must be integers of shape"),
        ({"samples": None, "labels": np.zeros(45, int)}, "pass samples= as well"),
        ({"opset": 3}, "opset must be"),
        ({"opset": 10_000}, "opset must be"),
        ({"opset": "18"}, "opset must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"tolerance": float("nan")}, "tolerance must be"),
        ({"batch_sizes": ()}, "batch_sizes must be"),
        ({"batch_sizes": (0,)}, "batch_sizes must be"),
        ({"batch_sizes": (1.5,)}, "batch_sizes must be"),
        ({"input_names": ["a", "b"]}, "input_names must be 1 different names"),
        ({"output_names": "logits"}, "output_names must be 1 different names"),
        ({"input_names": ["same"], "output_names": ["same"]}, "different names"),
        ({"metadata": {"a": 1}}, "'a' is int"),
        ({"metadata": {"fair_prune.model": "x"}}, "written by the export itself"),
    ],
)
def test_bad_arguments_are_named_and_write_nothing(change, message, images, tmp_path):
    arguments = {"example_inputs": images[:2], "samples": images, **change}
    with pytest.raises(InputError, match=message):
        export(plain_cnn(), arguments.pop("example_inputs"), tmp_path / "net.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(images, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        export(plain_cnn(), images[:2], tmp_path)


def test_without_samples_inputs_are_made_up_and_it_says_so(tmp_path):
    report = export(plain_cnn(), torch.rand(1, 3, 16, 16), tmp_path / "net.onnx")
    assert any("made-up inputs" in note for note in report.notes)
    made_up = export_module._made_up(Call.of((torch.rand(2, 3), torch.tensor([4, 5])), "x"), 6)
    assert made_up.rows == 6
    assert 0 <= made_up.tensors[0].min() <= made_up.tensors[0].max() <= 1
    assert made_up.tensors[1].tolist() == [4, 5, 4, 5, 4, 5]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_the_opset_asked_for_is_the_one_written(opset, images, tmp_path):
    report = export(plain_cnn(), images[:2], tmp_path / "net.onnx", samples=images, opset=opset)
    written = {o.domain: o.version for o in onnx.load(report.path).opset_import}[""]
    assert written == report.opset == opset


def test_names_metadata_and_no_trace_of_this_machine(images, tmp_path):
    report = export(
        plain_cnn(),
        images[:2],
        tmp_path / "net.onnx",
        samples=images,
        input_names=["image"],
        output_names=["logits"],
        metadata={"classes": "a,b"},
    )
    metadata = read_metadata(report.path)
    assert metadata == report.metadata
    assert metadata["classes"] == "a,b"
    assert metadata["fair_prune.model"] == "Sequential"
    assert json.loads(metadata["fair_prune.inputs"]) == ["image"]
    assert json.loads(metadata["fair_prune.outputs"]) == ["logits"]
    assert json.loads(metadata["fair_prune.packages"])["torch"] == torch.__version__
    content = report.path.read_bytes()
    assert b"stack_trace" not in content
    assert b".py" not in content
    assert str(tmp_path).encode() not in json.dumps(report.as_dict()).encode()
    with pytest.raises(InputError, match="there is no ONNX file"):
        read_metadata(tmp_path / "missing.onnx")


def test_the_same_model_gives_the_same_bytes(images, tmp_path):
    model = lively(depthwise_net())
    files = [export(model, images[:2], tmp_path / f"{i}.onnx", samples=images).path.read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_the_caller_s_warning_filters_are_as_before(images, tmp_path):
    before = list(warnings.filters)
    export(plain_cnn(), images[:2], tmp_path / "net.onnx", samples=images)
    assert warnings.filters == before
