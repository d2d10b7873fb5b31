"""What gates cannot follow is said, by name, and never called exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.proof import NOT_FELT, READ_ELSEWHERE
from integration_tests.gate_oracles import Net, closing_error, random_closed
from integration_tests.networks import CLASSES, build

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tail(s: Any, h: torch.Tensor) -> torch.Tensor:
    return s.fc(F.relu(s.b(h)).mean((2, 3)))


def layers(**more: nn.Module | nn.Parameter) -> dict[str, Any]:
    return {
        "a": nn.Conv2d(3, 12, 3, padding=1),
        "bn": nn.BatchNorm2d(12),
        "b": nn.Conv2d(12, 10, 3, padding=1),
        "fc": nn.Linear(10, CLASSES),
        **more,
    }


def between(change: Callable[[Any, torch.Tensor], torch.Tensor], **more: nn.Module | nn.Parameter) -> nn.Module:
    """``change`` between convolutions ``a`` and ``b``."""
    torch.manual_seed(0)
    return Net(lambda s, x: tail(s, change(s, s.a(x))), **layers(**more)).eval()


def mean_attention(h: torch.Tensor) -> torch.Tensor:
    return h * torch.sigmoid(h.mean(1, keepdim=True))


class WrittenLayerNorm(nn.Module):
    """ConvNeXt's own, channels first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class StandardisedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


MIXING: dict[str, Callable[[], nn.Module]] = {
    "mean over channels": lambda: between(lambda s, h: mean_attention(h)),
    "mean over channels, after a norm": lambda: between(lambda s, h: mean_attention(F.relu(s.bn(h)))),
    "largest channel": lambda: between(lambda s, h: h * torch.sigmoid(h.amax(1, keepdim=True))),
    "functional layer_norm": lambda: between(
        lambda s, h: F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],)).permute(0, 3, 1, 2)
    ),
    "functional group_norm": lambda: between(lambda s, h: F.group_norm(h, 1)),
    "written LayerNorm": lambda: between(lambda s, h: s.norm(h), norm=WrittenLayerNorm(12)),
    "L2 norm after a bias": lambda: between(lambda s, h: F.normalize(s.bn(h), dim=1)),
    "L2 norm": lambda: between(lambda s, h: F.normalize(h, dim=1)),
    "written RMSNorm": lambda: between(lambda s, h: h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-6)),
    "standard deviation over channels": lambda: between(lambda s, h: h / (1 + h.std(1, keepdim=True, correction=0))),
    "local response norm": lambda: between(lambda s, h: s.lrn(h), lrn=nn.LocalResponseNorm(3)),
    "softmax over channels": lambda: between(lambda s, h: h.softmax(1)),
    "sum over channels": lambda: between(lambda s, h: h * torch.sigmoid(h.sum(1, keepdim=True))),
    "running sum over channels": lambda: between(lambda s, h: h.cumsum(1)),
    "product of activations": lambda: between(
        lambda s, h: h * torch.sigmoid((s.q(h.relu()) * s.k(h.relu())).sum(1, keepdim=True)) + s.q(h.relu()),
        q=nn.Conv2d(12, 12, 1),
        k=nn.Conv2d(12, 12, 1),
    ),
    "mirrored channels": lambda: between(lambda s, h: h + h.flip(1)),
    "shifted channels": lambda: between(lambda s, h: h + h.roll(1, 1)),
    "shuffled channels": lambda: between(lambda s, h: h[:, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]),
    "convolution over channels": lambda: between(
        lambda s, h: h * torch.sigmoid(s.eca(h.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None],
        eca=nn.Conv1d(1, 1, 3, padding=1, bias=False),
    ),
    "maxout": lambda: between(lambda s, h: torch.maximum(*h.chunk(2, 1)), b=nn.Conv2d(6, 10, 3)),
    "gated linear unit": lambda: between(lambda s, h: F.glu(h, 1), b=nn.Conv2d(6, 10, 3)),
    "pixel shuffle": lambda: between(lambda s, h: F.pixel_shuffle(h, 2), b=nn.Conv2d(3, 10, 3)),
    "standardised weights": lambda: between(lambda s, h: h, b=StandardisedConv(12, 10, 3)),
    "norm over everything": lambda: between(lambda s, h: s.norm(h), norm=nn.LayerNorm([12, 16, 16])),
    "bare matrix": lambda: between(
        lambda s, h: (h.permute(0, 2, 3, 1) @ s.w).permute(0, 3, 1, 2), w=nn.Parameter(torch.randn(12, 12))
    ),
    "conv groups that do not fit the norm's": lambda: between(
        lambda s, h: s.c(s.gn(h)), gn=nn.GroupNorm(3, 12), c=nn.Conv2d(12, 12, 1, groups=2)
    ),
    "LSTM": lambda: Net(
        lambda s, x: s.fc(s.rnn(F.avg_pool2d(s.a(x), 8).flatten(2).transpose(1, 2))[0].mean(1)),
        **layers(rnn=nn.LSTM(12, 10, batch_first=True)),
    ).eval(),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MIXING)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_what_mixes_channels_is_never_exact(name: str, seed: int) -> None:
    plan = build_plan(MIXING[name](), X, seed=seed)
    (group,) = [g for g in plan.groups if "a" in {s.path for s in g.producers} and not g.reaches_output]
    assert group.status != "exact", plan.describe()
    assert group.reason
    assert group.name in plan.describe()
    if name not in ("LSTM", "standardised weights"):
        assert all(g.status == "exact" for g in plan.groups if g.name in ("b", "fc")), plan.describe()


def test_every_verdict_of_exact_holds() -> None:
    for name, make in MIXING.items():
        if name == "LSTM":  # the host fails on it
            continue
        model = make().double()
        plan = build_plan(model, X)
        exact = {u.name for g in plan.prunable if g.status == "exact" for u in g.unit_sets}
        for seed in range(2):
            closed = {n: m for n, m in random_closed(plan, 0.6, seed).items() if n in exact}
            assert not closed or closing_error(model, X.double(), plan, closed) < 1e-9


FOLLOWED: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: between(lambda s, h: s.norm(h), norm=nn.InstanceNorm2d(12, affine=True)),
    "PReLU": lambda: between(lambda s, h: s.act(h), act=nn.PReLU(12)),
    "concatenated with itself": lambda: between(
        lambda s, h: torch.cat([F.relu(h), F.relu(-h)], 1), b=nn.Conv2d(24, 10, 3)
    ),
    "LayerNorm without weights": lambda: between(
        lambda s, h: s.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(12, elementwise_affine=False)
    ),
    "no weights at all": lambda: between(lambda s, h: F.max_pool2d(F.hardswish(h), 2)),
    "conv groups that fit the norm's": lambda: between(
        lambda s, h: s.c(s.gn(h)), gn=nn.GroupNorm(4, 12), c=nn.Conv2d(12, 12, 1, groups=2)
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_gates_follow_is_exact(name: str) -> None:
    """So that the refusals above are not refusals of everything."""
    model = FOLLOWED[name]().double()
    plan = build_plan(model, X)
    assert plan.prunable
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    assert closing_error(model, X.double(), plan, random_closed(plan, 0.5, 0)) < 1e-9


@pytest.mark.parametrize("scale", [0.0, 1e-12])
@pytest.mark.parametrize("layer", ["fc", "b"])
def test_a_layer_that_lets_nothing_through_hides_nothing(layer: str, scale: float) -> None:
    """Zero-initialised heads and branches that training has shut make everything look equal."""
    model = MIXING["mean over channels"]()
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(scale)
    plan = build_plan(model, X)
    assert {g.name: g.status for g in plan.groups}["a"] != "exact"


def test_outputs_that_do_not_react_prove_nothing() -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: (1e6 * tail(s, mean_attention(s.a(x)))).softmax(1), **layers()).eval()
    plan = build_plan(model, X)
    assert {g.name: (g.status, g.reason) for g in plan.prunable} == {
        "a": ("approximate", NOT_FELT),
        "b": ("approximate", NOT_FELT),
    }
    assert NOT_FELT in plan.describe()


def test_what_is_measured_incompletely_is_said() -> None:
    plan = build_plan(MIXING["sum over channels"](), X)
    (group,) = [g for g in plan.groups if g.name == "a"]
    assert (group.status, group.reason) == ("approximate", READ_ELSEWHERE)
    assert group.error is not None
    assert group.error > 1e-3


def test_groups_that_are_exact_only_alone() -> None:
    """Either mean agrees with its fixed-size double until its own channels go; their product shows only both."""

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = s.a(x), s.b(x)
        off_a, off_b = a.shape[1] - 12, b.shape[1] - 12
        return s.fc(torch.cat([s.c(a), s.d(b)], 1).mean((2, 3))) * (1 + off_a * off_b)

    wide = {k: nn.Conv2d(i, o, 3) for k, i, o in [("a", 3, 12), ("b", 3, 12), ("c", 12, 4), ("d", 12, 4)]}
    plan = build_plan(Net(forward, **wide, fc=nn.Linear(8, CLASSES)).eval(), X)
    verdicts = {g.name: (g.status, g.reason) for g in plan.prunable}
    assert verdicts["a"][0] == verdicts["b"][0] == "approximate"
    assert "together" in verdicts["a"][1]
    assert "b" in verdicts["a"][1].rpartition("with")[2]


# Samples and batches


def test_sequence_first_attention_is_refused_by_name() -> None:
    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        t = s.a(x).flatten(2).permute(2, 0, 1)
        return s.fc(s.attention(t, t, t)[0].mean(0))

    model = Net(forward, a=nn.Conv2d(3, 12, 4, 4), attention=nn.MultiheadAttention(12, 3), fc=nn.Linear(12, CLASSES))
    plan = build_plan(model.eval(), X)
    (group,) = [g for g in plan.groups if g.attentions]
    assert group.status == "unsupported"
    assert group.reason.startswith("at attention dimension 0 of the activation is 16")
    assert not plan.prunable


@pytest.mark.parametrize(
    "reshape",
    [
        lambda h: h.permute(2, 0, 1),
        lambda h: h.transpose(1, 2).flatten(0, 1),
    ],
    ids=["sequence first", "folded into the batch"],
)
def test_activations_without_samples_in_front_are_refused(reshape: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(s.b(reshape(F.relu(s.a(x)).flatten(2))))
        return s.fc(h.mean(0) if h.ndim == 3 else h.unflatten(0, (x.shape[0], -1)).mean(1))

    model = Net(forward, a=nn.Conv2d(3, 12, 4, 4), b=nn.Linear(12, 10), fc=nn.Linear(10, CLASSES)).eval()
    (group,) = [g for g in build_plan(model, X).groups if g.name == "a"]
    assert group.status == "unsupported"
    assert "at b dimension 0" in group.reason


def test_batch_norm_without_statistics_is_refused_by_name() -> None:
    model = Net(lambda s, x: tail(s, s.bn(s.a(x))), **layers(bn=nn.BatchNorm2d(12, track_running_stats=False))).eval()
    with pytest.raises(UnsupportedModelError, match=r"^bn is a BatchNorm without running statistics.*track_running"):
        build_plan(model, X)


@pytest.mark.parametrize("batch", [1, 3])
def test_samples_that_see_each_other_are_refused(batch: int) -> None:
    model = between(lambda s, h: h - h.mean(0, keepdim=True))
    with pytest.raises(UnsupportedModelError, match="mixes the samples"):
        build_plan(model, X[:batch])


def test_a_random_forward_is_refused() -> None:
    model = between(lambda s, h: F.dropout(h, 0.5, training=True))
    with pytest.raises(UnsupportedModelError, match="randomness in the forward"):
        build_plan(model, X)


def test_a_fixed_batch_is_refused() -> None:
    model = between(lambda s, h: h.reshape(2, 12, 16, 16))
    with pytest.raises(UnsupportedModelError, match=r"runs with 2 samples but not with 3: .*any batch size"):
        build_plan(model, X)


def test_inputs_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match=r"fails on its example inputs: .*forward_fn"):
        build_plan(build("plain"), torch.randn(2, 4, 16, 16))
    with pytest.raises(InputError, match=r"hold no tensor \(got list\)"):
        build_plan(build("plain"), ["an image"])


# Outputs


def test_outputs_are_found() -> None:
    def several(s: Any, x: torch.Tensor) -> Any:
        h = F.relu(s.b(F.relu(s.a(x))))
        return s.fc(h.mean((2, 3))), h

    def named(s: Any, x: torch.Tensor) -> Any:
        h = F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))
        return {"logits": s.fc(h), "more": [h, {"extra": s.fc2(h)}]}

    def pooled(s: Any, x: torch.Tensor) -> Any:
        h = F.relu(s.b(F.relu(s.a(x))))
        return s.fc(h.mean((2, 3))), h.mean(1)

    for forward in (several, named, pooled):
        plan = build_plan(Net(forward, **layers(fc2=nn.Linear(10, 2))).eval(), X)
        assert [g.name for g in plan.prunable] == ["a"], plan.describe()
        assert "fc" in plan.outputs
        assert "it is an output of the model" in plan.describe()
        assert "fc2" in plan.outputs or forward is not named


@dataclass
class Answer:
    logits: torch.Tensor


def test_an_output_nobody_can_look_into_is_refused() -> None:
    model = Net(lambda s, x: Answer(tail(s, s.a(x))), **layers()).eval()
    with pytest.raises(UnsupportedModelError, match="returns nothing that tensors can be found in"):
        build_plan(model, X)
    plan = build_plan(model, X, forward_fn=lambda m, x: m(x).logits)
    assert [g.name for g in plan.prunable] == ["b", "a"]
    assert plan.outputs == ("fc",)


# What the user asks for


def test_frozen_layers_are_named_and_handled() -> None:
    model = build("residual")
    frozen = ["stem.0", "blocks.0.conv1.0"]
    for path in frozen:
        model.get_submodule(path).requires_grad_(False)
    plan = build_plan(model, X)
    assert set(plan.frozen) == set(frozen)
    assert "; frozen: stem.0" in plan.describe()
    assert {g.name for g in plan.prunable} >= {"stem.0", "blocks.0.conv1.0"}
    assert all(g.status == "exact" for g in plan.prunable)
    assert not any(p.requires_grad for path in frozen for p in model.get_submodule(path).parameters())
    assert model.get_parameter("fc.weight").requires_grad


def test_a_wholly_frozen_model_is_planned_all_the_same() -> None:
    model = build("plain").requires_grad_(False)
    assert len(build_plan(model, X).prunable) == 3
    assert not any(p.requires_grad for p in model.parameters())


def test_ignored_layers_stay() -> None:
    model = build("plain")
    plan = build_plan(model, X, ignored_layers=[model.get_submodule("body.2")])
    assert [g.name for g in plan.prunable] == ["body.4.0", "body.0.0"]
    assert "ignored as asked" in plan.describe()


@pytest.fixture(scope="module")
def plain() -> GatePlan:
    return build_plan(build("plain"), X)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"body.9": [0]}, r"no unit set 'body.9'; it has \['body.0.0', 'body.2.0', 'body.4.0'\]"),
        ({"fc": [0]}, "no unit set 'fc'"),
        ({"body.0.0": [12]}, "'body.0.0' has 12 units; got unit numbers 12 to 12"),
        ({"body.0.0": [-1, 3]}, "got unit numbers -1 to 3"),
        ({"body.0.0": torch.zeros(11, dtype=torch.bool)}, r"got a mask of shape \(11,\)"),
        ({"body.0.0": [[True] * 12]}, r"got a mask of shape \(1, 12\)"),
        ({"body.0.0": list(range(12))}, "'body.0.0': all 12 units closed; at least one must stay"),
        ({"body.0.0": torch.ones(12, dtype=torch.bool)}, "all 12 units closed"),
        ({"body.0.0": [0.7, 1.2]}, "numbers of type torch.float32"),
    ],
)
def test_units_that_cannot_be_closed(plain: GatePlan, units: Any, message: str) -> None:
    before = {p: len(m._forward_hooks) + len(m._forward_pre_hooks) for p, m in plain.model.named_modules()}
    with pytest.raises(InputError, match=message), plain.closed(units):
        pass
    assert before == {p: len(m._forward_hooks) + len(m._forward_pre_hooks) for p, m in plain.model.named_modules()}


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 7, "vdim": 7}])
def test_attention_options_without_a_gated_form(options: dict[str, Any]) -> None:
    width = options.get("kdim", 12)

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        t = s.a(x).flatten(2).transpose(1, 2)
        return s.fc(s.attention(t, t[..., :width], t[..., :width])[0].mean(1))

    attention = nn.MultiheadAttention(12, 3, batch_first=True, **options)
    model = Net(forward, a=nn.Conv2d(3, 12, 4, 4), attention=attention, fc=nn.Linear(12, 5)).eval()
    if "add_zero_attn" in options:
        with pytest.raises(UnsupportedModelError, match="Torch-Pruning cannot read"):
            build_plan(model, X)
        return
    plan = build_plan(model, X)
    (group,) = [g for g in plan.groups if g.attentions and not g.reaches_output]
    assert group.status == "unsupported"
    assert group.reason


def test_a_model_the_host_cannot_read_is_refused() -> None:
    """And none of the host's hooks stay behind."""

    def forward(s: Any, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradients here")
        return tail(s, s.a(x))

    model = Net(forward, **layers()).eval()
    with pytest.raises(UnsupportedModelError, match=r"cannot read the model's structure.*no gradients here"):
        build_plan(model, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TiedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(x)))))).mean((2, 3)))


def test_tied_layers_are_refused_by_name() -> None:
    plan = build_plan(TiedLayers().eval(), torch.randn(2, 3, 16, 16))
    assert not plan.prunable
    told = {g.name: g.reason for g in plan.groups if g.status == "unsupported"}
    assert any("one and two share a parameter" in r or "two and one share a parameter" in r for r in told.values()), (
        told
    )


class SpatialAttention(nn.Module):
    """The wide convolution is multiplied by a map of one channel, at which the host roots the coupled group."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.map, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 1, 1), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.last(self.wide(x) * torch.sigmoid(self.map(x)))).mean((2, 3)))


def test_a_layer_that_no_coupled_group_can_prune_is_named() -> None:
    model = SpatialAttention().eval()
    plan = build_plan(model, torch.randn(2, 3, 16, 16))
    pruned = {s.path for g in plan.prunable for s in g.producers}
    assert "last" in pruned
    if "wide" not in pruned:
        named = {s.path for g in plan.groups if not g.prunable for s in g.producers} | set(plan.unreached)
        assert "wide" in named
        assert "wide" in plan.describe()
