"""Predictors: a torch module and its ONNX export answer alike, and the module is left as it was."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.evaluation import OnnxPredictor, Predictor, TorchPredictor, evaluate, predict
from fair_prune_plugins.evaluation.predict import (
    CLASSES_DIFFER,
    INPUT_SHAPE,
    NO_BATCHES,
    NO_MODEL_FILE,
    NO_ONNXRUNTIME,
    NOT_A_TENSOR,
    NOT_AN_ARRAY,
    ONE_INPUT,
    OUTPUT_SHAPE,
    WHICH_OUTPUT,
    WHOLE_ARRAY,
)
from fair_prune_plugins.groups import GroupLabels

FEATURES, CLASSES = 6, 3


class Returning(nn.Module):
    """A module that returns whatever a function makes of its logits."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.linear(x))


def inputs(n: int = 10, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)


def linear_onnx(
    layer: nn.Linear,
    *,
    batch: int | str = "batch",
    dtype: type[np.floating] = np.float32,
    outputs: Sequence[str] = ("logits",),
    external: Path | None = None,
    extra_input: bool = False,
) -> bytes:
    """The ONNX model of a linear layer, built by hand so that its shapes and types are known."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [
        numpy_helper.from_array(p.detach().numpy().astype(dtype), name)
        for p, name in ((layer.weight, "weight"), (layer.bias, "bias"))
    ]
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], [outputs[0]], transB=1)]
    nodes += [helper.make_node("Identity", [outputs[0]], [name]) for name in outputs[1:]]
    taken = [helper.make_tensor_value_info("x", kind, [batch, layer.in_features])]
    if extra_input:
        taken.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch]))
    given = [helper.make_tensor_value_info(name, kind, [batch, layer.out_features]) for name in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "linear", taken, given, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    if external is not None:
        onnx.save_model(model, external, save_as_external_data=True, size_threshold=0, location="weights.data")
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def test_torch_and_onnx_predict_the_same_in_any_batches(layer: nn.Linear, tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_onnx(layer))
    x = inputs(23)
    expected = layer(torch.from_numpy(x)).detach().numpy()
    predictors: list[Predictor] = [
        TorchPredictor(layer),
        OnnxPredictor(path),
        OnnxPredictor(str(path), threads=2),
        OnnxPredictor(path.read_bytes()),
        OnnxPredictor(onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])),
    ]
    for predictor in predictors:
        for sizes in ([23], [1, 2, 20], [7, 0, 16]):
            batches = np.split(x, np.cumsum(sizes)[:-1])
            logits = predict(predictor, batches, progress=False)
            assert logits.shape == (23, CLASSES)
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_batches_that_lack_groups_give_the_evaluation_of_the_whole(layer: nn.Linear) -> None:
    x = inputs(60)
    labels = np.random.default_rng(1).integers(0, CLASSES, 60)
    groups = GroupLabels(("a", "b", "c"), np.repeat([2, 0, 1], 20))  # each batch of 20 holds one group
    whole = evaluate(labels, predict(TorchPredictor(layer), [x], progress=False), groups)
    batched = evaluate(labels, predict(TorchPredictor(layer), np.array_split(x, 3), progress=False), groups)
    assert batched == whole


def test_threads_reach_the_session_and_operators_run_one_after_the_other(layer: nn.Linear) -> None:
    options = OnnxPredictor(linear_onnx(layer), threads=2).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_predicts_in_evaluation_mode_and_keeps_every_modules_own_mode(training: bool) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    model.train(training)
    model[1].eval()  # a frozen norm
    model[2].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = TorchPredictor(model)(inputs())
    assert [m.training for m in model] == [training, False, True, training]
    assert model.training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    np.testing.assert_array_equal(logits, model.eval()(torch.from_numpy(inputs())).detach().numpy())


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_modes_come_back_after_an_exception(interruption: type[BaseException]) -> None:
    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise interruption

    model = Returning(fail).train()
    with pytest.raises(interruption):
        TorchPredictor(model)(inputs())
    assert all(m.training for m in model.modules())


def test_a_module_that_works_on_changes_of_mode_is_told_of_both() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Self:
            self.merged = not mode
            return super().train(mode)

    model = Merging(FEATURES, CLASSES).train()
    seen = []
    model.register_forward_hook(lambda module, _, __: seen.append(module.merged))
    TorchPredictor(model)(inputs())
    assert seen == [True]
    assert not model.merged


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda y: {"logits": y, "features": y * 0}, "logits"),
        (lambda y: (y * 0, y), 1),
        (lambda y: [y], -1),
        (lambda y: {"heads": [y, y * 0]}, lambda outputs: outputs["heads"][0]),
        (lambda y: y, None),
    ],
)
def test_logits_are_found_in_what_forward_returns(wrap: Callable[[torch.Tensor], Any], output: Any) -> None:
    model = Returning(wrap)
    expected = model.linear(torch.from_numpy(inputs())).detach().numpy()
    np.testing.assert_array_equal(TorchPredictor(model, output=output)(inputs()), expected)


@pytest.mark.parametrize(
    ("wrap", "described"),
    [
        (lambda y: {"logits": y, "aux": y}, "a dict with the keys ['aux', 'logits']"),
        (lambda y: (y, y), "a tuple of 2 items"),
    ],
)
@pytest.mark.parametrize("output", [None, "class", 5, lambda outputs: "text"])
def test_outputs_without_logits_are_refused_saying_what_came(
    wrap: Callable[[torch.Tensor], Any], described: str, output: Any
) -> None:
    with pytest.raises(InputError) as error:
        TorchPredictor(Returning(wrap), output=output)(inputs())
    assert described in str(error.value)
    if output is None:
        assert str(error.value) == NOT_A_TENSOR.format(got=described)


def test_single_logits_may_be_flat() -> None:
    logits = TorchPredictor(Returning(lambda y: y[:, 0]))(inputs(4))
    assert logits.shape == (4, 1)


@pytest.mark.parametrize("wrap", [lambda y: y[None], lambda y: y[:2], lambda y: y.mean(), lambda y: y[:, :0]])
def test_logits_of_another_shape_are_refused(wrap: Callable[[torch.Tensor], Any]) -> None:
    model = Returning(wrap)
    shape = tuple(model(torch.zeros(4, FEATURES)).shape)
    with pytest.raises(InputError) as error:
        TorchPredictor(model)(inputs(4))
    assert str(error.value) == OUTPUT_SHAPE.format(what="the model", n=4, shape=shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_take_the_models_dtype_and_logits_are_what_numpy_knows(dtype: Any) -> None:
    model = nn.Linear(FEATURES, CLASSES).to(dtype)
    logits = TorchPredictor(model)(inputs())
    assert logits.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(logits, model(torch.from_numpy(inputs()).to(dtype)).detach().to(torch.float64))


def test_integer_inputs_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(5, CLASSES), nn.Flatten())
    assert TorchPredictor(model)(np.array([[1], [4]])).shape == (2, CLASSES)


def test_read_only_reversed_and_strided_inputs_are_taken(layer: nn.Linear) -> None:
    x = inputs(8)
    x.flags.writeable = False
    expected = TorchPredictor(layer)(x)
    np.testing.assert_array_equal(TorchPredictor(layer)(x[::-1]), expected[::-1])
    onnx_predictor = OnnxPredictor(linear_onnx(layer))
    np.testing.assert_array_equal(onnx_predictor(x[::-2]), onnx_predictor(x[::-2].copy()))


def test_tensors_may_be_batches(layer: nn.Linear) -> None:
    x = inputs(8)
    np.testing.assert_array_equal(
        predict(TorchPredictor(layer), torch.split(torch.from_numpy(x), 3), progress=False),
        predict(TorchPredictor(layer), np.split(x, [3, 6]), progress=False),
    )


def test_inputs_are_put_on_the_device_asked_for() -> None:
    seen = []

    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.device.type)
            return torch.zeros(len(x), CLASSES)

    TorchPredictor(Probe(), device="meta")(inputs())
    TorchPredictor(Probe())(inputs())
    assert seen == ["meta", "cpu"]


def test_predicting_shows_progress_unless_told_not_to(layer: nn.Linear, capfd: pytest.CaptureFixture[str]) -> None:
    predict(TorchPredictor(layer), [inputs()], progress=False)
    assert capfd.readouterr().err == ""
    predict(TorchPredictor(layer), [inputs()])
    assert "predict" in capfd.readouterr().err


def test_not_finite_logits_are_passed_on_and_refused_by_the_evaluation(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.bias[0] = torch.nan
    logits = predict(TorchPredictor(layer), [inputs(4)], progress=False)
    assert np.isnan(logits[:, 0]).all()
    with pytest.raises(InputError, match="4 of 4 people, first in row 0"):
        evaluate([0, 1, 2, 0], logits, GroupLabels(("a",), np.zeros(4, dtype=int)))


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_onnx_models_of_other_precision_are_fed_in_theirs(layer: nn.Linear, dtype: Any) -> None:
    logits = OnnxPredictor(linear_onnx(layer, dtype=dtype))(inputs())
    assert logits.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(logits, TorchPredictor(layer)(inputs()), atol=1e-2)


def test_an_output_of_several_is_taken_by_name(layer: nn.Linear) -> None:
    content = linear_onnx(layer, outputs=("features", "logits"))
    np.testing.assert_allclose(OnnxPredictor(content, output="logits")(inputs()), TorchPredictor(layer)(inputs()), 1e-5)
    for output in (None, "classes"):
        with pytest.raises(InputError) as error:
            OnnxPredictor(content, output=output)
        assert str(error.value) == WHICH_OUTPUT.format(names=["features", "logits"])


def test_onnx_models_with_several_inputs_are_refused(layer: nn.Linear) -> None:
    with pytest.raises(InputError) as error:
        OnnxPredictor(linear_onnx(layer, extra_input=True))
    assert str(error.value) == ONE_INPUT.format(names=["x", "mask"])


@pytest.mark.parametrize(
    ("batch", "x"), [(1, inputs(4)), ("batch", inputs(4)[:, :3]), ("batch", inputs(4)[:, :, None])]
)
def test_inputs_that_do_not_fit_the_onnx_model_are_refused(
    layer: nn.Linear, batch: int | str, x: npt.NDArray[np.float32]
) -> None:
    with pytest.raises(InputError) as error:
        OnnxPredictor(linear_onnx(layer, batch=batch))(x)
    assert str(error.value) == INPUT_SHAPE.format(expected=[batch, FEATURES], got=list(x.shape))


def test_a_missing_a_corrupt_and_a_stripped_model_file_are_told_apart(layer: nn.Linear, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        OnnxPredictor(tmp_path / "absent.onnx")
    assert str(error.value) == NO_MODEL_FILE.format(path=tmp_path / "absent.onnx")

    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(linear_onnx(layer)[:-20])
    for model in (corrupt, corrupt.read_bytes()):
        with pytest.raises(InputError, match="ONNX Runtime cannot load"):
            OnnxPredictor(model)

    stripped = tmp_path / "stripped.onnx"
    linear_onnx(layer, external=stripped)
    OnnxPredictor(stripped)
    (tmp_path / "weights.data").unlink()
    with pytest.raises(InputError, match=r"weights\.data"):
        OnnxPredictor(stripped)


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, layer: nn.Linear) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError) as error:
        OnnxPredictor(b"")
    assert str(error.value) == NO_ONNXRUNTIME
    assert "pip install 'fair-prune-plugins[onnx]'" in NO_ONNXRUNTIME


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], NO_BATCHES),
        (iter([inputs(0)]), NO_BATCHES),
        (inputs(4), WHOLE_ARRAY.format(shape=(4, FEATURES))),
        (torch.zeros(4, FEATURES), WHOLE_ARRAY.format(shape=(4, FEATURES))),
        ([inputs(2), {"inputs": inputs(2)}], NOT_AN_ARRAY.format(index=1, got="dict")),
        ([(inputs(2), [0, 1])], NOT_AN_ARRAY.format(index=0, got="tuple")),
    ],
)
def test_batches_that_are_none_are_refused(layer: nn.Linear, batches: Iterable[Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        predict(TorchPredictor(layer), batches, progress=False)
    assert str(error.value) == message


def test_batches_with_other_numbers_of_logits_are_refused() -> None:
    with pytest.raises(InputError) as error:
        predict(lambda x: x, [inputs(2), inputs(2)[:, :4]], progress=False)
    assert str(error.value) == CLASSES_DIFFER.format(index=1, got=4, expected=FEATURES)
