"""Closed gates against structural removal, on every network of the zoo and on random ones."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.calling import copied
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.torch_pruning import FairPruner, MagnitudeImportance, rebinding
from integration_tests.gate_oracles import (
    Closed,
    Net,
    closing_error,
    counted_weights,
    error,
    lost_entries,
    random_closed,
)
from integration_tests.networks import CLASSES, NETWORKS, FusedAttention, VisionTransformer, build, heads_of

ATTENTION = ["attention, fused", "attention, separate"]


def images(samples: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planned(name: str, **options: Any) -> tuple[nn.Module, GatePlan]:
    model = build(name).double()
    return model, build_plan(model, images(1), num_heads=heads_of(model), **options)


@pytest.mark.parametrize("fraction", [0.3, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_closed_is_removed(name: str, fraction: float) -> None:
    model, plan = planned(name)
    assert plan.prunable
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    for seed in range(4):
        closed = random_closed(plan, fraction, seed)
        assert closed
        assert closing_error(model, images(), plan, closed) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_closed_is_removed_one_group_at_a_time(name: str) -> None:
    model, plan = planned(name)
    closed = random_closed(plan, 0.5, 0)
    for unit_set, mask in closed.items():
        assert closing_error(model, images(2), plan, {unit_set: mask}) < 1e-9, unit_set


@pytest.mark.parametrize("fraction", [0.3, 0.9])
@pytest.mark.parametrize("name", ATTENTION)
def test_closed_heads_are_removed_heads(name: str, fraction: float) -> None:
    model, plan = planned(name, prune_num_heads=True)
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    heads = [u for u in plan.units.values() if u.kind == "heads"]
    assert [u.size for u in heads] == [4, 4]
    for seed in range(3):
        closed = random_closed(plan, fraction, seed)
        assert closing_error(model, images(), plan, closed) < 1e-9
        only = {name: mask for name, mask in closed.items() if name.endswith("#heads")}
        assert closing_error(model, images(), plan, only) < 1e-9


def test_the_zoo_prunes_what_it_should() -> None:
    """Every network is pruned in all its layers but the last: nothing is quietly left out of the plan."""
    for name in NETWORKS:
        model, plan = planned(name)
        covered = {s.path for g in plan.prunable for s in (*g.producers, *g.attentions)} | set(plan.outputs)
        layers = {p for p, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)}
        assert not {p for p in layers - covered if "mha" not in p}, name
        assert len(plan.outputs) == 1


def test_closing_nothing_changes_nothing() -> None:
    model, plan = planned("attention, fused", prune_num_heads=True)
    with torch.no_grad(), plan.closed({name: [] for name in plan.units}):
        inside = model(images())
        assert error(inside, model(images())) < 1e-12


def test_units_by_number_and_by_mask_are_the_same() -> None:
    model, plan = planned("plain")
    name, units = next(iter(plan.units.items()))
    mask = torch.zeros(units.size, dtype=torch.bool)
    mask[[1, 4]] = True
    with torch.no_grad():
        with plan.closed({name: [1, 4]}):
            by_number = model(images())
        with plan.closed({name: mask}):
            by_mask = model(images())
        with plan.closed({name: mask.tolist()}):
            by_list = model(images())
    assert torch.equal(by_number, by_mask)
    assert torch.equal(by_list, by_mask)


def test_a_closed_channel_that_overflows_leaves_nothing_behind() -> None:
    model, plan = planned("plain")
    with torch.no_grad():
        model.get_submodule("body.0.0").weight[2] = math.inf
        with plan.closed({"body.0.0": [2]}):
            assert torch.isfinite(model(images())).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_squares(name: str) -> None:
    """Against the entries that are gone when the host has removed the unit, each counted once."""
    model, plan = planned(name, prune_num_heads=True)
    weights = torch.cat([model.get_parameter(n).detach().flatten() for n in counted_weights(model)])
    squares = plan.weight_square()
    for units in plan.units.values():
        for unit in (0, units.size - 1):
            lost = sorted(lost_entries(plan, units.name, unit))
            expected = float(weights[lost].double().square().sum())
            assert float(squares[units.name][unit]) == pytest.approx(expected, rel=1e-6), units.name


class RandomNet(nn.Module):
    """A chain of convolutions with residuals, concatenations, conv groups, norms and gates, drawn at random."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = [kind for kind, _ in steps]
        self.layers = nn.ModuleList()
        w = 3
        for kind, size in [("conv", 4), *steps]:
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                layer, w = nn.Conv2d(w, size, 3, padding=1), size
            elif kind == "transposed":
                layer, w = nn.ConvTranspose2d(w, size, 3, padding=1), size
            elif kind == "groups":
                g = math.gcd(w, 2 * size) if w % 2 else 2
                layer, w = nn.Conv2d(w, g * size, 3, padding=1, groups=g), g * size
            elif kind == "depthwise":
                layer = nn.Conv2d(w, w, 3, padding=1, groups=w)
            elif kind == "residual":
                layer = nn.Sequential(nn.Conv2d(w, size, 1), nn.SiLU(), nn.Conv2d(size, w, 3, padding=1))
            elif kind == "concat":
                layer, w = nn.Conv2d(w, size, 3, padding=1), w + size
            elif kind == "norm":
                layer = nn.BatchNorm2d(w)
            elif kind == "groupnorm":
                layer = nn.GroupNorm(2 if w % 2 == 0 else 1, w)
            elif kind == "gate":
                layer = nn.Sequential(nn.Conv2d(w, size, 1), nn.ReLU(), nn.Conv2d(size, w, 1), nn.Sigmoid())
            self.layers.append(layer)
        self.out = nn.Linear(w, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        for kind, layer in zip(self.steps, list(self.layers)[1:], strict=True):
            if kind == "residual":
                x = x + layer(x)
            elif kind == "concat":
                x = torch.cat([x, F.relu(layer(x))], 1)
            elif kind == "gate":
                x = x * layer(F.adaptive_avg_pool2d(x, 1))
            else:
                x = F.silu(layer(x))
        return self.out(x.mean((2, 3)))


KINDS = ["conv", "transposed", "groups", "depthwise", "residual", "concat", "norm", "groupnorm", "gate"]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1, 2, 3, 4, 6])), min_size=1, max_size=6),
    st.sampled_from([0.3, 0.9]),
    st.integers(0, 1000),
)
def test_closed_is_removed_in_random_networks(steps: list[tuple[str, int]], fraction: float, seed: int) -> None:
    """Whatever the plan calls exact is; what the host cannot remove properly the plan does not offer."""
    torch.manual_seed(seed)
    model = RandomNet(steps).double().eval()
    x = images(2)[:, :, :8, :8]
    plan = build_plan(model, x, seed=seed)
    exact = {u.name for g in plan.prunable if g.status == "exact" for u in g.unit_sets}
    closed: Closed = {name: mask for name, mask in random_closed(plan, fraction, seed).items() if name in exact}
    if closed:
        assert closing_error(model, x, plan, closed) < 1e-9


class Encoder(nn.Module):
    """A vision transformer that is entered by another door than ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(FusedAttention)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_every_call_in_the_context_is_closed_not_only_the_first() -> None:
    """Attention scales follow the module that runs, however the model is entered and whatever else runs meanwhile."""
    torch.manual_seed(0)
    model, other = Encoder().double().eval(), VisionTransformer(FusedAttention).double().eval()
    num_heads = {b.attn.qkv: 4 for b in model.net.blocks}
    plan = build_plan(model, images(1), num_heads=num_heads, forward_fn=lambda m, x: m.encode(x))
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    inner = build_plan(model.net, images(1), num_heads=num_heads)
    closed = random_closed(inner, 0.5, 0)
    with torch.no_grad():
        alone = other(images())
        with inner.closed(closed):
            expected = model.net(images())
        with plan.closed({f"net.{name}": mask for name, mask in closed.items()}):
            assert torch.equal(other(images()), alone)
            for _ in range(3):
                assert error(model.encode(images()), expected) < 1e-12
            with pytest.raises(RuntimeError):
                model.encode(images()[:, :, :, :12])
            assert error(model.encode(images()), expected) < 1e-12


def test_attention_by_einsum() -> None:
    class Einsum(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.num_heads, self.scale, self.qkv = heads, 0.5, nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
            weights = (torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale).softmax(-1)
            return self.proj(torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2))

    model = VisionTransformer(Einsum).double().eval()
    plan = build_plan(model, images(1), num_heads={b.attn.qkv: 4 for b in model.blocks})
    assert all(g.status == "exact" for g in plan.prunable), plan.describe()
    assert {c.producer for c in plan.contractions} == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}


def test_the_fused_encoder_layer_is_closed_without_gradients_too() -> None:
    """``nn.TransformerEncoderLayer`` has a fast path that calls none of its modules."""
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.fc(s.layer(s.conv(x).flatten(2).transpose(1, 2)).mean(1)),
        conv=nn.Conv2d(3, 12, 4, 4),
        layer=nn.TransformerEncoderLayer(12, 3, 20, batch_first=True),
        fc=nn.Linear(12, CLASSES),
    )
    model = model.double().eval()
    plan = build_plan(model, images(1))
    for seed in range(3):
        assert closing_error(model, images(), plan, random_closed(plan, 0.5, seed)) < 1e-9


@pytest.mark.parametrize("example", ["zeros", "one image", "ones in a tuple", "a dict"])
def test_what_the_example_inputs_hold_does_not_matter(example: str) -> None:
    model = build("attention, fused")
    inputs: Any = {
        "zeros": torch.zeros(1, 3, 16, 16),
        "one image": images(1).float(),
        "ones in a tuple": (torch.ones(4, 3, 16, 16),),
        "a dict": {"x": images(2).float()},
    }[example]
    plan = build_plan(model, inputs, num_heads=heads_of(model))
    assert [g.status for g in plan.prunable] == ["exact"] * 5


class Remembers(nn.Module):
    """Keeps activations in every way that modules do: by name, in containers, and inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("residual")
        self.net.stem.register_forward_hook(self._keep)

    @staticmethod
    def _keep(module: nn.Module, _args: object, output: torch.Tensor) -> None:
        module.seen = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.feat = self.net(x)
        self.more = {"a": [self.feat, (self.feat * 2,)]}
        return self.feat.relu()


def test_a_model_that_keeps_what_it_computed_is_planned_and_pruned() -> None:
    model, x = Remembers().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = model(x).detach()
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly"):
        copy.deepcopy(model)
    feat, seen = model.feat, model.net.stem.seen
    values = feat.detach().clone()
    twin = copied(model)
    assert torch.equal(twin.feat, values)
    assert twin.feat.is_leaf
    assert twin.more["a"][0] is twin.feat
    torch.testing.assert_close(twin(x), expected)
    plan = build_plan(model, x)
    assert plan.prunable
    pruner = FairPruner(model, x, MagnitudeImportance(), pruning_ratio=0.5, round_to=None)
    assert model.feat is feat
    assert model.net.stem.seen is seen
    assert torch.equal(feat, values)
    assert feat.grad_fn is not None
    optimizer = torch.optim.Adam(model.parameters())
    with rebinding(optimizer, model):
        report = pruner.step()
    assert report.widths
    assert model.net.stem[0].out_channels < 10
    assert torch.equal(feat, values)
    model(x).sum().backward()


def test_what_refuses_to_be_copied_is_named() -> None:
    model = build("plain")
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"the model cannot be copied.*lock"):
        copied(model)


def test_the_plan_is_the_same_every_time() -> None:
    model = build("squeeze-excite")
    first, second = (build_plan(model, images(2).float(), seed=3) for _ in range(2))
    assert first.describe() == second.describe()
    assert [g.error for g in first.groups] == [g.error for g in second.groups]
