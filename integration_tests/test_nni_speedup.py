"""Speedup in the forms people call it: names, arguments, masks of real pruners, what stays, and bad input."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.nni import host
from fair_prune_plugins.nni.speedup import ModelSpeedup, speedup
from integration_tests.networks import build

host.load()

Masks = dict[str, dict[str, torch.Tensor | None]]


class Net(nn.Module):
    """Two convolutions with norms and a head; ``scale`` is a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 10), nn.Linear(10, 3)
        with torch.no_grad():
            for bn in (self.bn1, self.bn2):
                bn.running_mean.uniform_(-0.5, 0)  # type: ignore[union-attr]
                bn.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                bn.weight.uniform_(0.5, 1.5)
                bn.bias.uniform_(0.1, 0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))
        return x if scale is None else x * scale


def inputs() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rows(layer: nn.Conv2d | nn.Linear, gone: list[int]) -> dict[str, torch.Tensor | None]:
    weight = torch.ones_like(layer.weight)
    weight[gone] = 0
    bias = None
    if layer.bias is not None:
        bias = torch.ones_like(layer.bias)
        bias[gone] = 0
    return {"weight": weight, "bias": bias}


def of_norm(norm: nn.BatchNorm2d, gone: list[int]) -> dict[str, torch.Tensor | None]:
    keep = torch.ones_like(norm.weight)
    keep[gone] = 0
    return {"weight": keep, "bias": keep.clone()}


def masks_of(model: Net) -> Masks:
    return {"conv1": rows(model.conv1, [0, 3]), "conv2": rows(model.conv2, [5]), "fc1": rows(model.fc1, [1, 2, 9])}


@pytest.fixture
def model() -> Net:
    return Net().eval()


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()},
        "objects": {n: id(p) for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "gradients": [p.requires_grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
    }


@pytest.fixture
def untouched(model: Net) -> Iterator[Net]:
    """The model, which must be as it was at the end of the test."""
    before = state(model)
    yield model
    after = state(model)
    for name, (pointer, values) in before.pop("tensors").items():
        found, now = after["tensors"][name]
        assert pointer == found, name
        assert torch.equal(values, now), name
    del after["tensors"]
    assert before == after


def test_the_host_s_call(model: Net) -> None:
    expected = {"conv1": (6, 3), "conv2": (5, 6), "fc1": (7, 5 * 4), "fc2": (3, 7)}
    found = ModelSpeedup(model, inputs(), masks_of(model)).speedup_model()
    assert found is model
    assert type(found) is Net
    assert {n: tuple(model.get_submodule(n).weight.shape[:2]) for n in expected} == expected
    assert (model.bn1.num_features, model.bn2.num_features) == (6, 5)
    assert (model.conv1.out_channels, model.conv2.in_channels, model.fc1.in_features) == (6, 6, 20)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    model(inputs()).sum().backward()


def test_a_function_and_every_argument_of_the_host(model: Net) -> None:
    twin = copy.deepcopy(model)
    assert speedup(twin, masks_of(twin), inputs()) is twin
    logger = logging.getLogger("somebody's")
    trace = torch.fx.symbolic_trace(model)
    given = ModelSpeedup(model, inputs(), masks_of(model), "cpu", 0, 4, [], None, trace, False, logger)
    assert given.report is None
    given.run()
    assert torch.equal(model(inputs()), twin(inputs()))


@pytest.mark.parametrize(
    "form",
    [
        lambda x, s: (x, s),
        lambda x, s: [x, s],
        lambda x, s: {"x": x, "scale": s},
        lambda x, s: {"scale": s, "x": x},
    ],
)
def test_dummy_inputs(model: Net, form: Any) -> None:
    scale = torch.full((2, 1), 3.0)
    ModelSpeedup(model, form(inputs(), scale), masks_of(model)).speedup_model()
    assert model.conv1.out_channels == 6
    assert model(inputs(), scale).shape == (2, 3)


@pytest.mark.parametrize("zipped", [True, False])
def test_masks_in_a_file_as_the_host_saves_them(model: Net, tmp_path: Path, zipped: bool) -> None:
    masks: Any = defaultdict(dict)
    masks.update(masks_of(model))
    torch.save(masks, tmp_path / "masks.pt", _use_new_zipfile_serialization=zipped)
    ModelSpeedup(model, inputs(), tmp_path / "masks.pt", map_location="cpu").speedup_model()
    assert model.conv1.out_channels == 6


def test_a_file_that_would_run_something(model: Net, tmp_path: Path) -> None:
    torch.save({"conv1": {"weight": torch.nn.Conv2d(3, 8, 3)}}, tmp_path / "masks.pt")
    with pytest.raises(InputError, match="Conv2d"):
        ModelSpeedup(model, inputs(), str(tmp_path / "masks.pt"))


def test_what_is_not_structure_is_preserved(model: Net) -> None:
    calls: list[int] = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    model.conv2.weight.requires_grad_(False)
    model.train()
    model.bn2.eval()
    model.double()
    modules = list(model.modules())
    masks = {n: {t: m if m is None else m.double() for t, m in ts.items()} for n, ts in masks_of(model).items()}
    speedup(model, masks, inputs().double())
    assert list(model.modules()) == modules
    assert model.training
    assert model.bn1.training
    assert not model.bn2.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv2.weight"]
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    calls.clear()
    model(inputs().double())
    assert calls == [1]


def test_modules_of_a_larger_model() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    wrapper = Wrapper()
    masks = {f"model.{n}": m for n, m in masks_of(wrapper.model).items()}
    ModelSpeedup(wrapper, inputs(), masks).speedup_model()
    assert wrapper.model.conv1.out_channels == 6
    assert wrapper.training


def test_inputs_that_are_masked_everywhere_go(model: Net) -> None:
    """``granularity="in_channel"``: nobody reads channels 2 and 4 of the first convolution."""
    weight = torch.ones_like(model.conv2.weight)
    weight[:, [2, 4]] = 0
    expected = copy.deepcopy(model)
    expected.conv2.weight.data.mul_(weight)
    given = ModelSpeedup(model, inputs(), {"conv2": {"weight": weight, "bias": torch.ones(6)}})
    given.speedup_model()
    assert model.conv1.out_channels == model.bn1.num_features == 6
    torch.testing.assert_close(model(inputs()), expected(inputs()))
    assert given.report is not None
    assert given.report.shifts == ()


@pytest.mark.parametrize(
    ("layer", "target", "mask", "width"),
    [
        ("conv1", "_output_0", torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 0]).reshape(1, 8, 1, 1), 6),
        ("conv2", "_input_0", torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 0]).reshape(1, 8, 1, 1).expand(2, 8, 6, 6), 6),
        ("bn1", "_output_0", torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 1]).reshape(1, 8, 1, 1), 7),
    ],
)
def test_masks_of_activations(model: Net, layer: str, target: str, mask: torch.Tensor, width: int) -> None:
    ModelSpeedup(model, inputs(), {layer: {target: mask}}).speedup_model()
    assert model.conv1.out_channels == model.conv2.in_channels == width


def test_a_mask_of_an_activation_function() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    expected = copy.deepcopy(net)
    expected[2].weight.data[:, 1] = 0
    speedup(net, {"1": {"_output_0": torch.tensor([1.0, 0, 1, 1]).reshape(1, 4, 1, 1)}}, inputs())
    assert net[0].out_channels == 3
    torch.testing.assert_close(net(inputs()), expected(inputs()))


def test_a_norm_s_scale_alone_is_enough(model: Net) -> None:
    """SlimPruner masks the scales of BatchNorm, not the shifts."""
    keep = torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 1])
    speedup(model, {"bn1": {"weight": keep, "bias": torch.ones(8)}}, inputs())
    assert model.conv1.out_channels == model.bn1.num_features == 6


def test_members_that_disagree_stay_and_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)
            self.d = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.d(F.relu(self.c(x + self.b(x))))

    net = Residual()
    masks = {"a": rows(net.a, [0, 1, 2]), "b": rows(net.b, [1, 2, 4]), "c": rows(net.c, [3])}
    expected = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            expected.get_parameter(f"{name}.{target}").data.mul_(mask)  # type: ignore[arg-type]
    given = ModelSpeedup(net, inputs(), masks)
    with caplog.at_level(logging.WARNING):
        given.speedup_model()
    assert (net.a.out_channels, net.b.out_channels, net.c.in_channels, net.c.out_channels) == (4, 4, 4, 3)
    torch.testing.assert_close(net(inputs()), expected(inputs()))
    report = given.report
    assert report is not None
    assert report.removed == {"a": 2, "c": 1}
    assert {(k.coupled_group, k.units, k.masked) for k in report.kept} == {("a", 1, ("a",)), ("a", 1, ("b",))}
    assert any("b makes them too" in k.reason for k in report.kept)
    assert report.zeros == {"a.weight": 0.25, "a.bias": 0.25, "b.weight": 0.25, "b.bias": 0.25}
    assert len(caplog.records) == 1
    assert "2 units" in caplog.text


def test_fine_masks_stay_as_zeros(model: Net) -> None:
    masks = masks_of(model)
    masks["fc2"] = {"weight": torch.ones_like(model.fc2.weight)}
    masks["fc2"]["weight"][0, ::2] = 0  # type: ignore[index]
    given = ModelSpeedup(model, inputs(), masks)
    given.speedup_model()
    assert given.report is not None
    assert given.report.zeros == {"fc2.weight": 4 / 21}  # inputs 0, 4, 6, 8 of the seven that stay
    assert int((model.fc2.weight == 0).sum()) == 4


def test_a_gate_that_is_masked_does_not_shut_what_it_gates() -> None:
    """``sigmoid(0)`` lets half through; a product is zero only where something is."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.gate, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(x) * torch.sigmoid(self.gate(x)))

    net = Gated()
    masks = {"gate": rows(net.gate, [0, 1]), "body": rows(net.body, [1, 2])}
    expected = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            expected.get_parameter(f"{name}.{target}").data.mul_(mask)  # type: ignore[arg-type]
    speedup(net, masks, inputs())
    assert net.body.out_channels == net.gate.out_channels == net.out.in_channels == 4
    torch.testing.assert_close(net(inputs()), expected(inputs()))


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, F.softplus, torch.exp, lambda x: F.relu(x) + 1, lambda x: torch.add(x, 0.5).sigmoid_()],
    ids=["sigmoid", "softplus", "exp", "relu + 1", "in place"],
)
@pytest.mark.parametrize("layers", ["convolutions", "linear"])
def test_functions_that_make_something_of_nothing(function: Any, layers: str) -> None:
    """The constant they leave of a unit that is masked wherever it is made is dropped, or folded."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = layers == "convolutions"
            self.a: Any = nn.Conv2d(3, 6, 1) if conv else nn.Linear(8, 6)
            self.b: Any = nn.Conv2d(6, 4, 3) if conv else nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(function(self.a(x)))  # type: ignore[no-any-return]

    net = Between().double()
    masks: Masks = {"a": rows(net.a, [0, 3, 4])}
    expected = masked_copy(net, masks)(inputs().double())
    folded, given = copy.deepcopy(net), ModelSpeedup(net, inputs().double(), masks)
    given.speedup_model()
    assert net.a.weight.shape[0] == net.b.weight.shape[1] == 3
    assert given.report is not None
    assert given.report.difference is not None
    assert given.report.difference.expected
    assert given.report.difference.max_abs > 1e-3
    speedup(folded, masks, inputs().double(), norm_shift="fold")
    assert folded.a.weight.shape[0] == 3
    torch.testing.assert_close(folded(inputs().double()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_units_in_front_of_a_softmax(softmax: nn.Module) -> None:
    """No constant is left of them, since a softmax mixes all units; they go as NNI's own test has it."""
    net = nn.Sequential(nn.Linear(8, 6), softmax, nn.Linear(6, 3))
    given = ModelSpeedup(net, torch.randn(4, 8), {"0": rows(net[0], [1, 2, 5])}, norm_shift="fold")  # type: ignore[arg-type]
    given.speedup_model()
    assert (net[0].out_features, net[2].in_features) == (3, 3)
    assert given.report is not None
    assert [(s.layer, s.folded, s.dropped) for s in given.report.shifts] == [("2", 0, 3)]


def test_a_function_behind_what_others_make_too() -> None:
    """A parameter or another layer that adds to a masked unit keeps it alive, whatever function follows."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 3)
            self.position = nn.Parameter(torch.randn(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.sigmoid(self.a(x)) * self.b(x) + torch.sigmoid(self.position))  # type: ignore[no-any-return]

    net, x = Added(), torch.randn(4, 8)
    with pytest.raises(InputError, match="still reads"):
        speedup(net, {"a": rows(net.a, [1, 2]), "b": rows(net.b, [2, 3])}, x)


class Auxiliary(Net):
    """An auxiliary head that runs in training mode only, behind a dropout that would hide channels at random."""

    def __init__(self) -> None:
        super().__init__()
        self.aux, self.aux_fc = nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
        if not self.training:
            return super().forward(x)
        hidden = F.dropout(F.relu(self.bn1(self.conv1(x))), 0.9, self.training)
        return super().forward(x), self.aux_fc(F.relu(self.aux(hidden)).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_layers_that_run_in_training_mode_only(training: bool) -> None:
    net = Auxiliary().train(training)
    statistics = net.bn1.running_mean
    masks = {**masks_of(net), "aux": rows(net.aux, [4])}
    ModelSpeedup(net, inputs(), masks).speedup_model()
    assert net.training == net.bn1.training == training
    assert (net.conv1.out_channels, net.aux.in_channels, net.aux.out_channels, net.aux_fc.in_features) == (6, 6, 4, 4)
    assert torch.equal(net.bn1.running_mean, statistics[[1, 2, 4, 5, 6, 7]])  # type: ignore[arg-type, index]
    main, aux = net.train()(inputs())
    (main + aux).sum().backward()


def test_branches_of_training_that_need_more_than_the_inputs() -> None:
    class Targets(Auxiliary):
        def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
            if self.training and scale is None:
                raise ValueError("targets, please")
            return super().forward(x, scale)

    net = Targets()
    speedup(net, masks_of(net), inputs())
    assert (net.conv1.out_channels, net.aux.in_channels) == (6, 8)


class Named(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * 1.5


@pytest.mark.parametrize("target", ["_input_features", "_input_0", "_output_0"])
@pytest.mark.parametrize("samples", [1, 2, 8])
def test_masks_of_activations_of_any_batch_size(target: str, samples: int) -> None:
    """NNI infers with eight samples, whatever the dummy input has; arguments are named as in the forward."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Named(), nn.Conv2d(4, 2, 1))
    mask = torch.ones(samples, 4, 8, 8)
    mask[:, 1] = 0
    expected = copy.deepcopy(net)
    expected[2].weight.data[:, 1] = 0  # type: ignore[index, operator]
    speedup(net, {"1": {target: mask}}, inputs())
    assert net[0].out_channels == 3
    torch.testing.assert_close(net(inputs()), expected(inputs()))


def test_a_mask_of_an_activation_of_another_shape(untouched: Net) -> None:
    with pytest.raises(InputError, match=r"mask of an output .* of MaxPool2d has shape \(2, 9, 8, 8\)"):
        speedup(
            nn.Sequential(untouched.conv1, nn.MaxPool2d(1)), {"1": {"_output_0": torch.zeros(2, 9, 8, 8)}}, inputs()
        )


def test_dropping_and_folding_what_norms_leave(model: Net) -> None:
    """Both convolutions pad nothing, so the constants of their masked channels fit into the next bias."""
    masked = copy.deepcopy(model)
    for name, targets in masks_of(model).items():
        for target, mask in targets.items():
            if mask is not None:
                masked.get_parameter(f"{name}.{target}").data.mul_(mask)
    dropped, folded = copy.deepcopy(model), copy.deepcopy(model)
    drop = ModelSpeedup(dropped, inputs(), masks_of(model))
    drop.speedup_model()
    fold = ModelSpeedup(folded, inputs(), masks_of(model), norm_shift="fold")
    fold.speedup_model()
    expected = masked(inputs())
    assert (dropped(inputs()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(folded(inputs()), expected)
    assert drop.report is not None
    assert fold.report is not None
    assert drop.report.difference is not None
    assert fold.report.difference is not None
    measured = float((dropped(inputs()) - expected).abs().max().detach())
    assert drop.report.difference.max_abs == pytest.approx(measured, rel=1e-4)
    assert drop.report.difference.expected
    assert drop.report.difference.reasons
    assert fold.report.difference.relative < 1e-5
    assert {(s.layer, s.folded, s.dropped) for s in fold.report.shifts} == {("conv2", 2, 0), ("fc1", 4, 0)}


def test_dropped_constants_excuse_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """A mean over channels has another divisor in the smaller model, which a norm's shift must not hide."""

    class Averaging(Net):
        def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            x = F.max_pool2d(F.relu(self.bn2(self.conv2(x * x.mean(1, keepdim=True)))), 2)
            return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))  # type: ignore[no-any-return]

    for net, expected in ((Net().eval(), True), (Averaging().eval(), False)):
        caplog.clear()
        given = ModelSpeedup(net, inputs(), {"conv1": rows(net.conv1, [0, 3])})
        given.speedup_model()
        assert given.report is not None
        assert given.report.difference is not None
        assert given.report.difference.relative > 1e-3
        assert given.report.difference.expected is expected
        assert ("nothing says why" in caplog.text) is not expected


def test_zero_padding_cannot_be_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).eval()
    net[1].bias.data.fill_(0.5)
    given = ModelSpeedup(net, inputs(), {"0": rows(net[0], [1])}, norm_shift="fold")
    given.speedup_model()
    report = given.report
    assert report is not None
    assert [(s.layer, s.folded, s.dropped) for s in report.shifts] == [("2", 0, 1)]
    assert "padding" in report.shifts[0].reason
    assert report.difference is not None
    assert report.difference.expected
    assert report.difference.relative > 1e-3
    assert "padding" in report.describe()


def test_folding_gives_a_layer_a_bias() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, bias=False, groups=2)).eval()
    net.append(nn.Conv2d(4, 2, 1))
    net[1].bias.data.uniform_(0.2, 1)
    masked = copy.deepcopy(net)
    masks = {"0": rows(net[0], [1, 3])}
    for target, mask in masks["0"].items():
        masked.get_parameter(f"0.{target}").data.mul_(mask)  # type: ignore[arg-type]
    speedup(net, masks, inputs(), norm_shift="fold")
    assert net[2].weight.shape == (4, 2, 3, 3)
    assert isinstance(net[2].bias, nn.Parameter)
    torch.testing.assert_close(net(inputs()), masked(inputs()))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc1, self.fc2 = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(self.words(tokens).mean(1))))


def test_an_embedding_s_dimensions() -> None:
    net, tokens = Embedded(), torch.randint(0, 11, (2, 5))
    weight = torch.ones(11, 8)
    weight[:, [0, 7]] = 0
    expected = copy.deepcopy(net)
    expected.words.weight.data.mul_(weight)
    speedup(net, {"words": {"weight": weight}}, tokens)
    assert net.words.weight.shape == (11, 6)
    assert net.words.embedding_dim == net.fc1.in_features == 6
    torch.testing.assert_close(net(tokens), expected(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_beside_an_lstm(dtype: torch.dtype) -> None:
    """In float64 autograd sees the inside of an LSTM, with splits that the host reads badly."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.lstm = nn.Embedding(11, 8), nn.LSTM(8, 12, batch_first=True)
            self.fc1, self.fc2 = nn.Linear(12, 6), nn.Linear(6, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.fc2(F.relu(self.fc1(self.lstm(self.words(tokens))[0][:, -1])))  # type: ignore[no-any-return]

    net, tokens = Recurrent().to(dtype), torch.randint(0, 11, (2, 5))
    masks = {"fc1": rows(net.fc1, [1, 4])}
    expected = masked_copy(net, masks)(tokens)
    speedup(net, masks, tokens)
    assert net.fc1.out_features == net.fc2.in_features == 4
    torch.testing.assert_close(net(tokens), expected)


def test_layers_that_share_a_parameter_stay() -> None:
    """Narrowing one of them would untie it from the other."""

    class Tied(Embedded):
        def __init__(self) -> None:
            super().__init__()
            self.back, self.out = nn.Linear(3, 8), nn.Linear(8, 11)
            self.out.weight = self.words.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            words = self.words(tokens).mean(1)
            return self.out(words + self.back(self.fc2(F.relu(self.fc1(words)))))  # type: ignore[no-any-return]

    net, tokens = Tied(), torch.randint(0, 11, (2, 5))
    weight = torch.ones(11, 8)
    weight[:, [0, 7]] = 0
    masks: Masks = {"words": {"weight": weight}, "back": rows(net.back, [0, 7]), "fc1": rows(net.fc1, [2])}
    expected = masked_copy(net, masks)
    given = ModelSpeedup(net, tokens, masks)
    given.speedup_model()
    assert net.out.weight is net.words.weight
    assert net.words.weight.shape == (11, 8)
    assert net.fc1.out_features == 5
    torch.testing.assert_close(net(tokens), expected(tokens))
    assert given.report is not None
    assert [(k.units, k.reason) for k in given.report.kept] == [(2, "words and out share a parameter")]


def test_a_grouped_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.Conv2d(6, 2, 1)).double()
    up = torch.ones_like(net[1].weight)  # [8 inputs, 3 outputs of a conv group]
    up[:4, 0] = 0
    up[4:, 2] = 0
    bias = torch.tensor([0.0, 1, 1, 1, 1, 0]).double()
    masks = {"0": rows(net[0], [1, 6]), "1": {"weight": up, "bias": bias}}
    expected = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            expected.get_parameter(f"{name}.{target}").data.mul_(mask)  # type: ignore[arg-type]
    speedup(net, masks, inputs().double())
    assert net[1].weight.shape == (6, 2, 2, 2)
    torch.testing.assert_close(net(inputs().double()), expected(inputs().double()), rtol=0, atol=1e-12)


def test_a_split_and_a_gap_between_coupled_layers() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.a(x).chunk(2, 1)
            return self.c(left + self.b(right))

    net = Split()
    masks = {"a": rows(net.a, [1, 6]), "b": rows(net.b, [1])}
    before = copy.deepcopy(net.state_dict())
    expected = copy.deepcopy(net)
    for name, targets in masks.items():
        for target, mask in targets.items():
            expected.get_parameter(f"{name}.{target}").data.mul_(mask)  # type: ignore[arg-type]
    speedup(net, masks, inputs())
    assert (net.a.out_channels, net.b.in_channels, net.b.out_channels, net.c.in_channels) == (6, 3, 3, 3)
    torch.testing.assert_close(net(inputs()), expected(inputs()))
    net = Split()
    net.load_state_dict(before)
    # chunk() halves what is there, and four of the seven channels that would be left are not the first four.
    with pytest.raises(UnsupportedModelError, match="smaller model fails"):
        speedup(net, {"a": rows(net.a, [1]), "b": rows(net.b, [1])}, inputs())
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_outputs_of_the_model_stay(model: Net, caplog: pytest.LogCaptureFixture) -> None:
    masks = masks_of(model)
    masks["fc2"] = rows(model.fc2, [0])
    given = ModelSpeedup(model, inputs(), masks)
    given.speedup_model()
    assert model.fc2.out_features == 3
    assert given.report is not None
    assert [(k.coupled_group, k.units, k.reason) for k in given.report.kept] == [
        ("fc2", 1, "they are outputs of the model")
    ]


def test_masks_that_mask_nothing(untouched: Net, caplog: pytest.LogCaptureFixture) -> None:
    masks = {"conv1": {"weight": torch.ones_like(untouched.conv1.weight)}}
    given = ModelSpeedup(untouched, inputs(), masks)
    assert given.speedup_model() is untouched
    assert given.report is not None
    assert given.report.removed == {}
    assert "mask nothing" in caplog.text


def bad_masks(model: Net) -> dict[str, tuple[Any, str]]:
    good = masks_of(model)
    everything = list(range(8))
    random = (torch.rand(model.conv1.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    return {
        "another model's": ({"conv9": good["conv1"]}, "conv9"),
        "prefixed": ({f"module.{n}": m for n, m in good.items()}, r"Without their first 'module\.'"),
        "wrong shape": ({"conv1": {"weight": torch.ones(9, 3, 3, 3)}}, r"\(9, 3, 3, 3\).*\(8, 3, 3, 3\)"),
        "wrong channels": ({"conv1": {"_output_0": torch.ones(1, 9, 1, 1)}}, "8 channels"),
        "unknown target": ({"conv1": {"wieght": torch.ones(8, 3, 3, 3)}}, "wieght"),
        "no tensor": ({"conv1": {"weight": [1, 0]}, "fc1": good["fc1"]}, "list"),
        "NaN": ({"conv1": {"weight": torch.full((8, 3, 3, 3), float("nan"))}}, "NaN"),
        "all of a layer": ({"conv1": rows(model.conv1, everything)}, "leave nothing of conv1"),
        "nothing": ({}, "no mask"),
        "no masks": (3, "int"),
        "no file": ("nowhere.pt", "nowhere.pt"),
        "nothing to remove": ({"conv1": {"weight": random}}, "no unit"),
    }


@pytest.mark.parametrize("kind", list(bad_masks(Net())))
def test_bad_masks(untouched: Net, kind: str) -> None:
    masks, message = bad_masks(untouched)[kind]
    with pytest.raises(InputError, match=message):
        ModelSpeedup(untouched, inputs(), masks).speedup_model()


def test_masks_of_a_part_of_the_model() -> None:
    wrapped = nn.ModuleDict({"net": Net()})
    with pytest.raises(InputError, match=r"under 'net\.'"):
        speedup(wrapped, masks_of(Net()), inputs())


@pytest.mark.parametrize(
    ("given", "message"),
    [(torch.randn(2, 4, 8, 8), r"\(2, 4, 8, 8\)"), ((), "no tensor"), ({"images": inputs()}, "images")],
)
def test_dummy_inputs_that_the_model_fails_on(untouched: Net, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelSpeedup(untouched, given, masks_of(untouched)).speedup_model()


@pytest.mark.parametrize("name", ["customized_replacers", "customized_mask_updaters"])
def test_arguments_that_would_mean_nothing(untouched: Net, name: str) -> None:
    with pytest.raises(InputError, match=name):
        ModelSpeedup(untouched, inputs(), masks_of(untouched), **{name: [object()]})
    with pytest.raises(InputError, match="norm_shift"):
        speedup(untouched, masks_of(untouched), inputs(), norm_shift="keep")  # type: ignore[arg-type]


def test_a_model_that_is_still_wrapped(model: Net) -> None:
    from nni.compression.pruning import L1NormPruner

    pruner = L1NormPruner(model, [{"op_names": ["conv1"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    with pytest.raises(InputError, match="unwrap_model"):
        ModelSpeedup(model, inputs(), masks).speedup_model()
    pruner.unwrap_model()
    ModelSpeedup(model, inputs(), masks).speedup_model()
    assert model.conv1.out_channels == 4


def test_a_width_that_is_written_in_the_forward(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Net):
        def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
            x = F.relu(self.bn1(self.conv1(x))).view(x.shape[0], 8, 6, 6)
            x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
            return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))  # type: ignore[no-any-return]

    net = Stubborn().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"remembers a width"):
        speedup(net, masks_of(net), inputs())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def vision_masks(model: nn.Module, projections: str, channels: list[int]) -> Masks:
    return {f"blocks.0.attn.{p}": rows(model.get_submodule(f"blocks.0.attn.{p}"), channels) for p in projections}  # type: ignore[arg-type]


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    copied = copy.deepcopy(model)
    for name, targets in masks.items():
        for target, mask in targets.items():
            if mask is not None:
                copied.get_parameter(f"{name}.{target}").data.mul_(mask)
    return copied


@pytest.mark.parametrize("projections", ["qkv", "v"])
def test_heads_of_attention_go_as_a_whole(projections: str) -> None:
    """Of four heads of four dimensions the second goes, and half of the fourth stays as zeros."""
    net = build("attention, separate").double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    masks = vision_masks(net, projections, [4, 5, 6, 7, 12, 13])
    expected = masked_copy(net, masks)(x)
    given = ModelSpeedup(net, x, masks)
    given.speedup_model()
    attention = net.get_submodule("blocks.0.attn")
    assert attention.num_heads == 3
    assert {p.shape[0] for n, p in attention.named_parameters() if n[:2] in ("q.", "k.", "v.")} == {12}
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    assert given.report is not None
    assert [k.units for k in given.report.kept] == [2]


def test_heads_in_one_projection_stay() -> None:
    net = build("attention, fused")
    with pytest.raises(InputError, match="queries, keys or values"):
        speedup(net, {"blocks.0.attn.qkv": rows(net.blocks[0].attn.qkv, [4, 5, 6, 7])}, torch.randn(1, 3, 16, 16))  # type: ignore[arg-type, index, union-attr]


# What the host's pruners return


def pruned(model: nn.Module, pruner: Any) -> tuple[nn.Module, Masks]:
    """The masked model and the masks of a pruner of NNI; the model is unwrapped."""
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masked_copy(model, masks), masks


def evaluator(model: nn.Module) -> Any:
    import nni
    from nni.compression import TorchEvaluator

    def train(net: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for seed in range(max_steps or 4):
            generator = torch.Generator().manual_seed(seed)
            batch = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)
            optimizer.zero_grad()
            loss = step(batch, net)
            (loss[0] if isinstance(loss, tuple) else loss).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.01)
    return TorchEvaluator(
        training_func=train,
        optimizers=optimizer,
        training_step=lambda batch, net: F.cross_entropy(net(batch[0]), batch[1]),
        dummy_input=inputs(),
    )


def test_norm_pruner(model: Net) -> None:
    from nni.compression.pruning import L1NormPruner

    config = [{"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["fc2"], "sparse_ratio": 0.5}]
    masked, masks = pruned(model, L1NormPruner(model, config))
    speedup(model, masks, inputs(), norm_shift="fold")
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (4, 3, 5)
    torch.testing.assert_close(model(inputs()), masked(inputs()))


def test_elementwise_masks_under_a_dependency(model: Net) -> None:
    """Nothing but chance closes whole rows, and what it closed is found."""
    from nni.compression.pruning import LevelPruner

    with torch.no_grad():
        model.conv1.weight[[1, 4]] *= 1e-6  # what chance would do
        model.fc1.weight[3] *= 1e-6
    config = [{"op_names": ["conv1"], "sparse_ratio": 0.4, "dependency_group_id": "a"}]
    config += [{"op_names": ["fc1"], "sparse_ratio": 0.4}]
    masked, masks = pruned(model, LevelPruner(model, config))
    given = ModelSpeedup(model, inputs(), masks, norm_shift="fold")
    given.speedup_model()
    assert model.conv1.out_channels == 6
    assert given.report is not None
    assert 0.1 < given.report.zeros["conv1.weight"] < 0.4
    torch.testing.assert_close(model(inputs()), masked(inputs()))


def test_slim_pruner(model: Net) -> None:
    from nni.compression.pruning import SlimPruner

    config = [{"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]
    _, masks = pruned(model, SlimPruner(model, config, evaluator(model), training_steps=3))
    model.eval()
    speedup(model, masks, inputs())
    widths = {n: int(m["weight"].sum()) for n, m in masks.items()}  # type: ignore[union-attr]
    assert sum(widths.values()) == 7
    assert {n: model.get_submodule(n).num_features for n in widths} == widths
    assert model.conv1.out_channels == model.conv2.in_channels == widths["bn1"]
    assert model.fc1.in_features == 4 * widths["bn2"]


def test_movement_pruner(model: Net) -> None:
    from nni.compression.pruning import MovementPruner

    config = [{"op_names": ["fc1"], "sparse_ratio": 0.5, "granularity": [1, 24]}]
    pruner = MovementPruner(model, config, evaluator(model), warmup_step=1, cooldown_begin_step=3)
    pruner.compress(max_steps=4, max_epochs=None)
    masks = pruner.get_masks()
    pruner.unwrap_model()
    model.eval()
    left = int(masks["fc1"]["weight"].any(1).sum())
    assert left < 10
    expected = masked_copy(model, masks)(inputs())
    speedup(model, masks, inputs())
    assert model.fc1.out_features == left
    torch.testing.assert_close(model(inputs()), expected)


def test_a_lightning_module() -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    module = Module().eval()
    masks = {f"model.{n}": m for n, m in masks_of(module.model).items()}
    assert ModelSpeedup(module, inputs(), masks).speedup_model() is module
    assert module.model.conv1.out_channels == 6
