"""Speedup against oracles: the masked model itself, statistics over the kept channels, NNI's own speedup."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.nni import host
from fair_prune_plugins.nni.speedup import ModelSpeedup
from integration_tests.networks import FlattenToLinear, build

host.load()

Masks = dict[str, dict[str, torch.Tensor | None]]
LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
EXACT = 1e-10


def doubled(name: str) -> nn.Module:
    return build(name).double()


def out_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def row_masks(layer: nn.Module, keep: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Masks of whole output channels, as NNI writes them."""
    shape = [1] * layer.weight.ndim
    shape[out_dim(layer)] = -1
    weight = keep.double().reshape(shape).expand_as(layer.weight).clone()
    return {"weight": weight, "bias": None if layer.bias is None else keep.double()}


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """The masked model, computed without the package."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    copied.get_parameter(f"{name}.{target}").mul_(mask)
    return copied


def with_norms_masked(model: nn.Module, masks: Masks, x: torch.Tensor) -> Masks:
    """Masks that also cover what norms and depthwise convolutions would make of channels that are zero in the masked
    model, found by running it.
    """
    complete = copy.deepcopy(masks)
    copied = masked_copy(model, masks)
    names = {m: n for n, m in copied.named_modules()}

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        alive = (args[0] != 0).movedim(1, 0).flatten(1).any(1)
        targets = complete.setdefault(names[module], {})
        for target, parameter in module.named_parameters():
            keep = alive.double().reshape(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter)
            given = targets.get(target)
            targets[target] = keep.clone() if given is None else given * keep
            parameter.data.mul_(keep)

    for module in copied.modules():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if isinstance(module, nn.BatchNorm2d) or depthwise:
            module.register_forward_pre_hook(before)
    with torch.no_grad():
        copied(x)
    return complete


def outputs_of(model: nn.Module) -> nn.Module:
    """The layer that makes the outputs, which nobody prunes."""
    return [m for m in model.modules() if isinstance(m, LAYERS)][-1]


def random_masks(model: nn.Module, seed: int, disagreement: float, fine: float) -> Masks:
    """Layers of one width are masked alike, but for some that keep more; some weights are masked one by one."""
    generator = torch.Generator().manual_seed(seed)
    of_width: dict[int, torch.Tensor] = {}
    masks: Masks = {}
    last = outputs_of(model)
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS) or layer is last:
            continue
        width = layer.weight.shape[out_dim(layer)] * (layer.groups if isinstance(layer, nn.ConvTranspose2d) else 1)
        if width not in of_width:
            keep = torch.rand(width, generator=generator) < 0.6
            keep[torch.randint(width, (), generator=generator)] = True
            of_width[width] = keep
        more = torch.rand(width, generator=generator) < disagreement
        masks[name] = row_masks(layer, of_width[width] | more)
        single = torch.rand(layer.weight.shape, generator=generator) >= fine
        weight = masks[name]["weight"]
        assert weight is not None
        masks[name]["weight"] = weight * single
    if isinstance(model, FlattenToLinear):  # a depthwise convolution of what is concatenated before it
        before = [masks[n]["bias"] for n in ("conv1", "conv2")]
        masks["conv3"] = row_masks(model.conv3, torch.cat([b != 0 for b in before if b is not None]))
    return masks


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


CONVOLUTIONAL = [
    "plain",
    "residual",
    "pre-activation",
    "densenet",
    "mobilenet-v2",
    "squeeze-excite",
    "flatten",
    "transposed convolution",
    "reused module",
    "conv groups",
]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@given(seed=st.integers(0, 10_000), disagreement=st.sampled_from([0.0, 0.2]), fine=st.sampled_from([0.0, 0.3]))
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_smaller_model_is_the_masked_model(name: str, seed: int, disagreement: float, fine: float) -> None:
    model = doubled(name)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    masks = with_norms_masked(model, random_masks(model, seed, disagreement, fine), x)
    expected = masked_copy(model, masks)(x)
    speedup = ModelSpeedup(model, x[:1], masks)
    smaller = speedup.speedup_model()
    assert difference(smaller(x), expected) < EXACT
    report = speedup.report
    assert report is not None
    assert report.difference is not None
    assert report.difference.relative < EXACT
    assert sum(report.removed.values()) > 0


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONAL if n != "conv groups"])
def test_whatever_all_members_mask_is_gone(name: str) -> None:
    model = doubled(name)
    masks = random_masks(model, 3, 0.0, 0.0)
    left = {
        n: int((m["weight"].movedim(out_dim(model.get_submodule(n)), 0).flatten(1) != 0).any(1).sum())  # type: ignore[union-attr]
        for n, m in masks.items()
    }
    speedup = ModelSpeedup(model, torch.randn(1, 3, 16, 16, dtype=torch.float64), masks)
    speedup.speedup_model()
    found = {n: model.get_submodule(n).weight.shape[out_dim(model.get_submodule(n))] for n in masks}
    assert speedup.report is not None
    if name == "squeeze-excite":  # the gate's last layer shares the width of what it gates
        assert all(found[n] <= left[n] for n in masks)
    else:
        assert found == left
        assert not speedup.report.kept


@pytest.mark.parametrize("name", ["groupnorm", "layernorm (convnext)", "rmsnorm"])
def test_norms_that_mix_channels_take_what_is_left(name: str) -> None:
    model = doubled(name)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    plan = build_plan(model, x[:2], prove_groups=False)
    closed, masks = {}, {}
    for group in plan.prunable:
        units = torch.arange(group.units.size) % 3 == 1
        closed[group.units.name] = units
        for site in group.producers:
            layer = model.get_submodule(site.path)
            keep = torch.ones(layer.weight.shape[0], dtype=torch.bool)
            keep[site.channels[units[group.units.of_root[site.roots]]]] = False
            masks[site.path] = row_masks(layer, keep)
    with plan.closed(closed), torch.no_grad():
        expected = model(x)
    speedup = ModelSpeedup(model, x[:1], masks)
    assert difference(speedup.speedup_model()(x), expected) < EXACT
    assert speedup.report is not None
    assert not speedup.report.kept


def test_conv_groups_may_lose_different_channels() -> None:
    model = doubled("conv groups")
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    keep = torch.ones(16, dtype=torch.bool)
    keep[[0, 5, 6, 10, 12, 13]] = False  # one, two, one, two of the conv groups' four: one of each goes, the first
    masks = {"grouped.0": row_masks(model.grouped[0], keep)}
    masks = with_norms_masked(model, masks, x)
    expected = masked_copy(model, masks)(x)
    kept_rows = model.grouped[0].weight[[i for i in range(16) if i not in (0, 5, 10, 12)]].detach().clone()
    speedup = ModelSpeedup(model, x, masks)
    speedup.speedup_model()
    assert model.grouped[0].weight.shape == (12, 4, 3, 3)
    kept_rows[[4, 9]] = 0  # channels 6 and 13
    assert torch.equal(model.grouped[0].weight, kept_rows)
    assert difference(model(x), expected) < EXACT
    assert speedup.report is not None
    assert [k.units for k in speedup.report.kept] == [2]


def host_masks(model: nn.Module, x: torch.Tensor) -> Any:
    """Half of every convolution masked by NNI's own pruner, coupled as NNI's own analysis says."""
    from nni.compression.pruning import L1NormPruner
    from nni.compression.speedup.dependency import auto_set_denpendency_group_ids
    from torch.fx.passes.shape_prop import ShapeProp

    traced = torch.fx.symbolic_trace(model)
    ShapeProp(traced).propagate(x)
    pruner = L1NormPruner(
        model, auto_set_denpendency_group_ids(traced, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    )
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # the host's own
@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf"])
def test_layers_are_as_wide_as_nni_makes_them(name: str) -> None:
    import torchvision
    from nni.compression.speedup import ModelSpeedup as Host

    model = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    masks = host_masks(model, x)
    twin, same_masks = copy.deepcopy(model), copy.deepcopy(masks)
    with contextlib.redirect_stdout(io.StringIO()):
        Host(twin, x, same_masks, graph_module=torch.fx.symbolic_trace(twin), batch_size=2).speedup_model()
    ModelSpeedup(model, x, masks).speedup_model()
    shapes = {n: p.shape for n, p in twin.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    if name == "mobilenet_v2":  # of a conv group in which nothing is left, both choose what goes, and not alike
        assert all(torch.equal(p, twin.get_parameter(n)) for n, p in model.named_parameters())
