"""What users of Torch-Pruning complain about, structures and calls: the host still does it, and ours does not.

Each test has two halves. When the first one fails, the host has mended the defect.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.enumeration import endless_roots
from integration_tests.networks import CLASSES, build, conv_bn
from integration_tests.pruning_oracles import Snapshot, host_pruner

IMAGE = torch.zeros(1, 3, 16, 16)


def random_scores(group: Any) -> torch.Tensor:
    """The same scores for the same width, whoever asks."""
    return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(len(group[0].idxs)))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def quiet(model: nn.Module, inputs: Any = IMAGE, **options: Any) -> fpt.FairPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the groups that are refused
        return fpt.FairPruner(model, inputs, random_scores, round_to=None, **options)


# --- attention, single outputs, conv groups ---------------------------------------------------------------------------


class OneAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mha = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.fc(torch.relu(h + self.mha(h, h, h, need_weights=False)[0]).mean(1))


def test_attention_is_asked_which_of_its_dimensions_go() -> None:
    """TP#196: inner dimensions of ``nn.MultiheadAttention`` go as if at random, by what the other layers hold."""
    model, x = OneAttention(), torch.randn(2, 7, 6)
    importance = tp.importance.GroupMagnitudeImportance()
    pruner = host_pruner(model, importance, example_inputs=x, num_heads={model.mha: 4}, ignored_layers=[model.fc])
    group = pruner.DG.get_pruning_group(model.fc, tp.prune_linear_in_channels, list(range(16)))
    assert any(dep.target.module is model.mha for dep, _ in group)
    theirs, ours = [], []
    for _ in range(2):
        theirs.append(importance(group))
        own = fpt.MagnitudeImportance()
        own.collect(pruner, [(x, torch.zeros(2))])
        ours.append(own(group))
        with torch.no_grad():
            assert model.mha.in_proj_weight is not None
            model.mha.in_proj_weight[:, 5] *= 100
    assert torch.equal(theirs[0], theirs[1])  # no weight of the attention counts
    assert ours[1] is not None
    assert not torch.equal(ours[0], ours[1])
    # Channels 1, 5, 9 and 13 are one dimension of the four heads, and go together.
    assert set(ours[1].topk(4).indices.tolist()) == {1, 5, 9, 13}
    assert [g.status for g in build_plan(model, x).prunable] == ["exact"]


def test_heads_of_attention_keep_equal_sizes() -> None:
    """TP#196 again: unless the user names its heads, the host leaves a number of dimensions that they cannot share."""
    ours, theirs, x = OneAttention(), OneAttention(), torch.randn(2, 7, 6)
    host_pruner(theirs, random_scores, example_inputs=x, pruning_ratio=0.3, ignored_layers=[theirs.fc]).step()
    with pytest.raises((AssertionError, RuntimeError)):
        theirs(x)
    quiet(ours, x, pruning_ratio=0.3).step()
    assert ours.mha.embed_dim == ours.first.out_features == 8  # two dimensions of each of the four heads
    assert ours(x).shape == (2, CLASSES)


def test_a_convolution_with_one_output_is_pruned_as_the_host_does_today() -> None:
    """TP#126, TP#179: one output channel was taken for depthwise. Mended in the host; it must stay so in both."""

    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Sigmoid(), nn.Conv2d(1, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
        )  # fmt: skip

    ours, theirs = net(), net()
    quiet(ours).step()
    host_pruner(theirs, random_scores, ignored_layers=[theirs[-1]]).step()
    assert shapes(ours) == shapes(theirs)
    assert ours[2].weight.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("network", ["conv groups", "mobilenet-v2", "groupnorm", "flatten"])
def test_a_layer_that_would_be_emptied_keeps_one_unit(network: str) -> None:
    """TP#328: depthwise and grouped layers lost all channels; the host now leaves them whole, and says nothing."""
    ours, theirs = build(network), build(network)
    head = theirs.fc2 if network == "flatten" else theirs.fc
    host_pruner(theirs, random_scores, pruning_ratio=0.95, ignored_layers=[head]).step()
    pruner = quiet(ours, pruning_ratio=0.95)
    initial = {g.name: g.units.size for g in pruner.gate_plan().prunable}
    report = pruner.step()
    emptied = {name for name, size in initial.items() if int(size * 0.05) == 0}
    assert emptied
    for row in report.widths:
        layer = row.name.removesuffix("[in]")
        if row.name in emptied:
            assert row.kept in (1, 2)  # two behind a concatenation of two
            assert theirs.get_submodule(layer).weight.shape[0] == build(network).get_submodule(layer).weight.shape[0]
            assert ours.get_submodule(layer).weight.shape[0] < theirs.get_submodule(layer).weight.shape[0]


class TwoGroupings(nn.Module):
    """Convolutions in two and in three conv groups share their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.two = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.three, self.last = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return self.fc(F.relu(self.last(F.relu(self.two(h) + self.three(h)))).mean((2, 3)))


class SplitIntoDepthwise(nn.Module):
    """Half of the channels go through a depthwise convolution, the others through a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.dense, self.last, self.fc = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(14, 10, 1), nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.fc(F.relu(self.last(torch.cat([self.depthwise(left), self.dense(right)], 1))).mean((2, 3)))


class C2f(nn.Module):
    """YOLOv8's block: a split, bottlenecks on the last part, and a concatenation of all parts."""

    def __init__(self, width: int, cut: str) -> None:
        super().__init__()
        self.cut, self.half = cut, width // 2
        self.cv1, self.cv2 = conv_bn(width, width, 1), conv_bn(2 * width, width, 1)
        self.m = nn.ModuleList(conv_bn(self.half, self.half) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.cv1(x))
        parts = list(h.split((self.half, self.half), 1) if self.cut == "split" else getattr(h, self.cut)(2, 1))
        for m in self.m:
            parts.append(parts[-1] + F.silu(m(parts[-1])))
        return F.silu(self.cv2(torch.cat(parts, 1)))


class Yolo(nn.Module):
    def __init__(self, cut: str = "chunk") -> None:
        super().__init__()
        self.stem, self.c2f, self.down = conv_bn(3, 16, stride=2), C2f(16, cut), conv_bn(16, 20, stride=2)
        self.fc = nn.Linear(20, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.silu(self.down(self.c2f(F.silu(self.stem(x))))).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "ratio", "pruned"),
    [
        (TwoGroupings, 0.25, {"last": 6}),
        (SplitIntoDepthwise, 0.5, {"dense": 4, "last": 5}),
        (Yolo, 0.5, {"stem.0": 8, "c2f.cv2.0": 8, "down.0": 10}),
        (lambda: Yolo("tensor_split"), 0.5, {"stem.0": 8, "c2f.cv2.0": 8, "down.0": 10}),
    ],
    ids=["conv groups that do not divide each other", "split into depthwise", "C2f", "C2f with tensor_split"],
)
def test_what_the_host_breaks_is_left_alone_and_the_rest_pruned(
    network: Callable[[], nn.Module], ratio: float, pruned: dict[str, int]
) -> None:
    """TP#328, TP#477, TP#147: unbalanced conv groups; splits and concatenations end in shapes that do not fit."""
    torch.manual_seed(0)
    ours, theirs, x = network(), network(), torch.randn(2, 3, 16, 16)
    host_pruner(theirs, random_scores, pruning_ratio=ratio, ignored_layers=[theirs.fc]).step()
    with pytest.raises(RuntimeError):
        theirs(x)
    with pytest.warns(UserWarning, match="not pruned: .* does not run with units removed"):
        pruner = fpt.FairPruner(ours, IMAGE, random_scores, pruning_ratio=ratio, round_to=None)
    before = shapes(ours)
    report = pruner.step()
    assert {r.name: r.kept for r in report.widths} == pruned
    assert ours(x).shape == (2, CLASSES)
    refused = [name for name, reason in report.not_pruned.items() if "does not run" in reason]
    assert refused
    assert all(shapes(ours)[f"{name}.weight"][0] == before[f"{name}.weight"][0] for name in refused)


# --- what the host cannot read ----------------------------------------------------------------------------------------


def shufflenet() -> nn.Module:
    from torchvision import models

    return models.shufflenet_v2_x0_5(num_classes=CLASSES).eval()


@pytest.mark.parametrize("door", ["plan", "pruner"])
@pytest.mark.parametrize(
    ("network", "error"),
    [(shufflenet, ZeroDivisionError), (lambda: Yolo("split"), IndexError)],
    ids=["ShuffleNet", "a part of a split that is read twice"],
)
def test_what_the_host_cannot_trace_is_refused_in_words(
    network: Callable[[], nn.Module], error: type[Exception], door: str
) -> None:
    """The host ends in an arithmetic error of its own and leaves its hooks in the model."""
    model, x = network(), torch.zeros(1, 3, 64, 64)
    with pytest.raises(error):
        host_pruner(model, random_scores, example_inputs=x)
    model = network()
    before = Snapshot.of(model)
    with pytest.raises(UnsupportedModelError, match=f"cannot read the model's structure: {error.__name__}"):
        build_plan(model, x) if door == "plan" else quiet(model, x)
    assert Snapshot.of(model) == before
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("door", ["plan", "pruner"])
def test_a_model_that_fails_while_it_is_traced_keeps_no_hooks(door: str) -> None:
    """The host tries the inputs a second way, which hides what was wrong with them, and leaves its hooks behind."""
    x = IMAGE.double()
    theirs, ours = build("plain"), build("plain")
    with pytest.raises((RuntimeError, TypeError)):
        host_pruner(theirs, random_scores, example_inputs=x[:, :2])
    assert any(m._forward_hooks for m in theirs.modules())
    with pytest.raises(UnsupportedModelError):
        build_plan(ours, x[:, :2]) if door == "plan" else quiet(ours, x[:, :2])
    assert not any(m._forward_hooks for m in ours.modules())


SWIN = """
import resource, sys, warnings
import integration_tests.conftest
import torch, torch_pruning as tp
from torchvision.models.swin_transformer import SwinTransformer
torch.set_num_threads(1)
model = SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], num_classes=5).eval()
x = torch.randn(1, 3, 16, 16)
model(x)
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import build_plan
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**27,) * 2)
warnings.simplefilter("ignore")
doors = {"plan": build_plan, "pruner": lambda m, x: fpt.FairPruner(m, x, print)}
for door in [lambda m, x: tp.pruner.BasePruner(m, x, print)] if sys.argv[1] == "host" else doors.values():
    try:
        door(model, x)
    except (MemoryError, UnsupportedModelError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
@pytest.mark.parametrize("whose", ["host", "ours"])
def test_windowed_attention_is_refused_before_memory_ends(whose: str) -> None:
    """TP#474 and its like: on Swin the host's enumeration of groups never returns, and takes all memory there is."""
    done = subprocess.run(  # 128 MiB more than the model needs to run
        [sys.executable, "-c", SWIN, whose], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    if whose == "host":
        assert [a.split()[0] for a in answers] == ["MemoryError"]
        return
    assert len(answers) == 2
    for answer in answers:
        assert answer.startswith("UnsupportedModelError")
        assert "coupled groups of features.3.0.mlp.3, features.2.reduction: it follows them to" in answer
        assert "channels in an operation behind features.3.0.attn.relative_position_bias_table" in answer
        assert "no layer is wider than 64;" in answer


def test_windowed_attention_is_pruned_where_the_host_can_tell_the_groups() -> None:
    """The layers that the message names are left alone, and the rest is pruned as elsewhere."""
    from torchvision.models.swin_transformer import SwinTransformer

    model, x = SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], num_classes=CLASSES).eval(), torch.randn(1, 3, 16, 16)
    named = [model.get_submodule(name) for name in ("features.3.0.mlp.3", "features.2.reduction")]
    pruner = quiet(model, x, ignored_layers=named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Maximum recursive depth reached!", the host's
        report = pruner.step()
    assert {r.name: r.kept for r in report.widths} == {"features.3.0.mlp.0": 32, "features.1.0.mlp.0": 16}
    assert model(torch.randn(3, 3, 16, 16)).shape == (3, CLASSES)


@pytest.mark.parametrize("network", ["densenet", "flatten", "attention, fused", "conv groups", "layernorm (convnext)"])
def test_no_sound_network_is_called_endless(network: str) -> None:
    model = build(network)
    graph = tp.DependencyGraph().build_dependency(model, IMAGE, verbose=False)
    assert endless_roots(graph, (nn.modules.conv._ConvNd, nn.Linear)) == {}


# --- calls ------------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Keyword inputs, and a dict with an empty place in it, as models of transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Linear(10, CLASSES)

    def forward(self, *, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        h = F.relu(self.second(F.relu(self.first(pixels)))).mean((2, 3))
        logits = self.head(h)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({"pixels": IMAGE}, {}),
        ({"pixels": IMAGE}, {"output_transform": lambda out: out["logits"]}),
        (IMAGE, {"forward_fn": lambda model, x: model(pixels=x)["logits"]}),
        ({"pixels": IMAGE}, {"forward_fn": lambda m, x: m(**x), "output_transform": lambda out: out["logits"]}),
    ],
    ids=["nothing said", "output_transform", "forward_fn", "both"],
)
def test_models_of_transformers_are_called_as_they_are(inputs: Any, options: dict[str, Any]) -> None:
    """TP#519: dict outputs and keyword inputs break tracing, unless the user says how to look into them."""
    ours, theirs = Answers(), Answers()
    quiet(ours, inputs, **options).step()
    assert shapes(ours)["second.weight"] == (5, 6, 3, 3)
    assert ours(pixels=torch.randn(2, 3, 16, 16))["logits"].shape == (2, CLASSES)
    if not options:
        with pytest.raises(TypeError, match="not iterable"):
            host_pruner(theirs, random_scores, example_inputs=inputs)
        return
    host_pruner(theirs, random_scores, example_inputs=inputs, ignored_layers=[theirs.head], **options).step()
    assert shapes(ours) == shapes(theirs)


def test_batch_norm_without_statistics_is_refused_by_name() -> None:
    """TP PR#466: it crashed. Mended in the host, which prunes it; gates have no meaning where samples are mixed."""

    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 6, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
        )  # fmt: skip

    ours, theirs = net(), net()
    host_pruner(theirs, random_scores, ignored_layers=[theirs[-1]]).step()
    assert theirs(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)
    before = Snapshot.of(ours)
    with pytest.raises(UnsupportedModelError, match=r"^1 is a BatchNorm without running statistics"):
        quiet(ours)
    assert Snapshot.of(ours) == before
