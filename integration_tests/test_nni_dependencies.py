"""Dependency ids for NNI: equal to NNI's own analysis where that is right, better where it is not."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fair_prune_plugins.nni  # noqa: F401  NNI's compression part imports cleanly only through it
from fair_prune_plugins.errors import InputError, UnsupportedModelError
from integration_tests.networks import NETWORKS, Plain, Residual, build
from integration_tests.nni_dependency_oracle import host_config_list
from integration_tests.pruning_oracles import Snapshot

# After the one above, which imports NNI.
from nni.compression.base.config import trans_legacy_config_list  # isort: skip
from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner  # isort: skip
from fair_prune_plugins.nni.dependencies import (  # isort: skip
    auto_set_denpendency_group_ids,
    auto_set_dependency_group_ids,
)

Configs = list[dict[str, Any]]
LAYERS = ["Conv2d", "Linear", "ConvTranspose2d", "Embedding"]
ALL: Configs = [{"op_types": LAYERS, "sparse_ratio": 0.5}]
IMAGES = torch.rand(2, 3, 16, 16)
LOGGER = "fair_prune_plugins.nni.dependencies"


def sets(config_list: Configs) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for config in config_list:
        found.setdefault(config["dependency_group_id"], set()).update(config["op_names"])
    return {frozenset(names) for names in found.values()}


def coupled(config_list: Configs) -> set[frozenset[str]]:
    return {names for names in sets(config_list) if len(names) > 1}


def without_ids(config_list: Configs) -> dict[str, dict[str, Any]]:
    return {c["op_names"][0]: {k: v for k, v in c.items() if k != "dependency_group_id"} for c in config_list}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.down1(x))
        low = F.relu(self.down2(skip))
        low = low + F.relu(self.middle(low))
        return self.head(F.relu(self.merge(torch.cat([self.up(low), skip], 1))))


class ConvGroups(nn.Module):
    """Conv groups and norm groups one behind the other, so that least common multiples are not the numbers themselves;
    a linear layer in front."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 12), nn.GroupNorm(4, 12)
        self.sixths, self.halves = nn.Conv2d(12, 18, 3, padding=1, groups=6), nn.Conv2d(18, 8, 1, groups=2)
        self.doubled, self.up = nn.Conv2d(8, 16, 1, groups=8), nn.ConvTranspose2d(16, 16, 2, 2, groups=4)
        self.depthwise, self.head = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.linear(x)[..., None, None].expand(-1, -1, 4, 4))
        return self.head(self.depthwise(self.up(self.doubled(self.halves(self.sixths(x))))))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.LayerNorm(8)
        self.wide, self.narrow, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(x + self.narrow(F.gelu(self.wide(x)))).mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(self.image(image).mean((2, 3)) + self.table(table))


def small_densenet() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8)


def small_resnext() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], groups=4, width_per_group=4)


def small_convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([setting(8, 12, 2), setting(12, None, 1)])


def small_regnet() -> nn.Module:
    blocks = torchvision.models.regnet.BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return torchvision.models.RegNet(blocks, stem_width=8)


LARGER = torch.rand(1, 3, 64, 64)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet18": (torchvision.models.resnet18, LARGER),
    "ResNeXt": (small_resnext, LARGER),
    "MobileNetV3": (torchvision.models.mobilenet_v3_small, LARGER),
    "RegNetY": (small_regnet, LARGER),
    "DenseNet": (small_densenet, LARGER),
    "SqueezeNet": (torchvision.models.squeezenet1_1, LARGER),
    "ConvNeXt": (small_convnext, LARGER),
    "UNet": (UNet, IMAGES),
    "conv groups": (ConvGroups, torch.rand(2, 6)),
    "embeddings": (Words, torch.randint(0, 20, (2, 6))),
    "two inputs": (TwoInputs, (IMAGES, torch.rand(2, 5))),
}
DIFFERENT = ("flatten", "attention, fused", "attention, separate", "nn.MultiheadAttention")
MODELS |= {name: (lambda name=name: build(name), IMAGES) for name in NETWORKS if name not in DIFFERENT}  # type: ignore[misc]


@pytest.mark.parametrize("name", MODELS)
def test_same_sets_blocks_and_keys_as_nni_itself(name: str) -> None:
    make, dummy_input = MODELS[name]
    model = make()
    expected = host_config_list(model, ALL, dummy_input)
    found = auto_set_denpendency_group_ids(model, ALL, dummy_input)
    assert sets(found) == sets(expected)
    assert without_ids(found) == without_ids(expected)


def test_conv_groups_of_the_test_above_are_no_trivial_ones() -> None:
    blocks = {
        n: c.get("internal_metric_block") for n, c in without_ids(found_in(ConvGroups(), torch.rand(2, 6))).items()
    }
    assert blocks == {
        "linear": 12,  # norm groups 4, then conv groups 6
        "sixths": 6,  # 6 of its own, 2 behind it
        "halves": 8,  # 2 of its own, 8 behind it
        "doubled": 8,  # 8 of its own, 4 behind it
        "up": 4,  # depthwise behind it
        "depthwise": 1,
        "head": 1,
    }


def found_in(model: nn.Module, dummy_input: Any = IMAGES, config_list: Configs = ALL) -> Configs:
    return auto_set_denpendency_group_ids(model, config_list, dummy_input)


class MeetInConcatenation(nn.Module):
    """Two layers side by side, read by a depthwise convolution over both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.depthwise(torch.cat([self.a(x), self.b(x)], 1)))


class Twice(nn.Module):
    """A layer that reads its own output has as many outputs as inputs, and so has the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.again(self.stem(x)).relu()).relu())


def test_layers_of_different_widths_never_share_an_id(caplog: pytest.LogCaptureFixture) -> None:
    model = MeetInConcatenation()
    expected = host_config_list(model, ALL, IMAGES)
    assert frozenset({"a", "b", "depthwise"}) in sets(expected)
    with pytest.raises(RuntimeError, match="must match the size"):
        L1NormPruner(copy.deepcopy(model), expected).compress()

    found = found_in(model)
    assert coupled(found) == set()
    assert [r.message.count("a and depthwise") for r in caplog.records if r.name == LOGGER] == [1]
    _, masks = L1NormPruner(model, found).compress()
    assert {name: mask["weight"].shape[0] for name, mask in masks.items()} == {
        "a": 8,
        "b": 4,
        "depthwise": 12,
        "head": 5,
    }


class Swapped(nn.Module):
    """Channel i of one layer meets channel i + 4 (modulo 8) of the other, which has the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        front, back = self.a(x).split(4, 1)
        return self.head(torch.cat([back, front], 1) + self.b(x))


class Halves(Swapped):
    """Only the first four channels meet."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.a(x)[:, :4], x, x[:, :1]], 1) + self.b(x))


@pytest.mark.parametrize("model", [Swapped, Halves])
def test_layers_of_one_width_that_do_not_meet_one_for_one_share_no_id(
    model: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    assert coupled(found_in(model())) == set()
    assert [r.message.count("a and b") for r in caplog.records if r.name == LOGGER] == [1]


def test_a_layer_that_runs_twice_is_coupled_with_what_it_reads() -> None:
    model = Twice()
    assert coupled(host_config_list(model, ALL, IMAGES)) == set()
    assert coupled(found_in(model)) == {frozenset({"stem", "again"})}
    # The proof: with one of them narrower than the other, the model does not run.
    model.stem.weight = nn.Parameter(model.stem.weight[1:])
    model.stem.bias = nn.Parameter(model.stem.bias[1:])
    model.again.weight = nn.Parameter(model.again.weight[:, 1:])
    with pytest.raises(RuntimeError, match="expected input"):
        model(IMAGES)
    model.again.weight, model.again.bias = nn.Parameter(model.again.weight[1:]), nn.Parameter(model.again.bias[1:])
    model.head.weight = nn.Parameter(model.head.weight[:, 1:])
    model(IMAGES)


def test_patches_belong_to_the_residual_stream_though_a_reshape_lies_between() -> None:
    stream = {f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.proj", "fc2")}
    model = build("attention, fused")
    assert coupled(host_config_list(model, ALL, IMAGES)) == {frozenset(stream)}
    assert coupled(found_in(model)) == {frozenset(stream | {"patches"})}


def test_queries_keys_and_values_are_a_set_of_their_own() -> None:
    found = coupled(found_in(build("attention, separate")))
    inner = {names for names in found if any(name.endswith("attn.q") for name in names)}
    assert {tuple(sorted(name.rpartition(".")[2] for name in names)) for names in inner} == {("k", "q", "v")}


@pytest.mark.parametrize(
    ("pruner", "make"),
    [(L1NormPruner, torchvision.models.resnet18), (L2NormPruner, torchvision.models.resnet18), (FPGMPruner, Residual)],
)
def test_coupled_layers_get_one_mask_from_nnis_pruners(pruner: Any, make: Callable[[], nn.Module]) -> None:
    model = make()
    convolutions = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]

    def closed(config_list: Configs) -> dict[str, torch.Tensor]:
        _, masks = pruner(copy.deepcopy(model), config_list).compress()
        return {name: ~mask["weight"].flatten(1).any(1) for name, mask in masks.items()}

    found = found_in(model, LARGER, convolutions)
    alone, together = closed(convolutions), closed(found)
    assert len(coupled(found)) == (2 if make is Residual else 4)
    for names in coupled(found):
        one, *others = sorted(names)
        assert together[one].sum() == len(together[one]) // 2
        assert all(torch.equal(together[one], together[other]) for other in others)
        assert not all(torch.equal(alone[one], alone[other]) for other in others)


def test_a_grouped_convolution_and_the_layer_before_it_lose_the_same_number_in_every_conv_group() -> None:
    torch.manual_seed(3)
    model = small_resnext()
    found = found_in(model, LARGER)
    _, masks = L1NormPruner(model, found).compress()
    blocks = {name: c["internal_metric_block"] for name, c in without_ids(found).items() if name != "fc"}
    assert {name for name, block in blocks.items() if block == 4} == {
        f"layer{i}.{j}.conv{k}" for i, j in ((1, 0), (2, 0), (2, 1), (3, 0), (4, 0)) for k in (1, 2)
    }
    for name, block in blocks.items():
        kept = masks[name]["weight"].flatten(1).any(1).reshape(block, -1).sum(1)
        assert len(set(kept.tolist())) == 1, name


def test_elementwise_masks_under_one_id_are_shared_where_shapes_are_equal_and_refused_by_nni_where_not() -> None:
    """What LevelPruner does with ids; whoever reads masks has to live with it."""
    model = Residual()
    same = [{"op_names": ["blocks.1.conv2.0", "blocks.2.conv2.0"], "sparse_ratio": 0.5}]
    _, masks = LevelPruner(copy.deepcopy(model), found_in(model, config_list=same)).compress()
    one, other = (masks[name]["weight"] for name in same[0]["op_names"])
    assert torch.equal(one, other)
    assert one.mean() == 0.5
    assert one.flatten(1).any(1).all()
    with pytest.raises(RuntimeError, match="size"):
        LevelPruner(model, found_in(model)).compress()


class Lightning(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Residual()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


@pytest.mark.parametrize("around", [Lightning, lambda: nn.DataParallel(Residual())], ids=["Lightning", "DataParallel"])
def test_layers_under_a_prefix(around: Callable[[], nn.Module]) -> None:
    model = around()
    prefix = next(iter(dict(model.named_children())))
    plain = sets(found_in(Residual()))
    assert sets(found_in(model)) == {frozenset(f"{prefix}.{name}" for name in names) for names in plain}


@pytest.mark.parametrize("form", [tuple, list, lambda pair: {"table": pair[1], "image": pair[0]}])
def test_inputs_as_tuple_list_and_dict(form: Callable[[Any], Any]) -> None:
    found = found_in(TwoInputs(), form((IMAGES, torch.rand(2, 5))))
    assert coupled(found) == {frozenset({"image", "table"})}


def test_outputs_in_a_dict_and_a_batch_of_one() -> None:
    class Named(Residual):
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x), "name": "x"}

    assert sets(found_in(Named(), IMAGES[:1])) == sets(found_in(Residual()))


def test_the_model_is_left_as_it_was() -> None:
    model = Residual().train()
    model.blocks[0].eval()
    model.stem.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    calls: list[nn.Module] = []
    model.fc.register_forward_hook(lambda module, *_: calls.append(module))
    before = Snapshot.of(model)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with torch.no_grad():
        found = found_in(model)
    assert coupled(found) == coupled(found_in(Residual()))
    with pytest.raises(InputError):
        found_in(model, torch.rand(2, 4, 16, 16))
    assert Snapshot.of(model) == before
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_ids_are_those_of_the_layers_whatever_else_is_selected() -> None:
    model = Residual()

    def ids(config_list: Configs) -> dict[str, str]:
        return {c["op_names"][0]: c["dependency_group_id"] for c in found_in(model, config_list=config_list)}

    everything = ids(ALL)
    assert everything == ids([{"op_types": ["Linear", "Conv2d"], "sparse_ratio": 0.9}])
    half = [{"op_names_re": [r"blocks\.[12]\..*conv.*", "stem.*"], "op_types": ["Conv2d"]}]
    assert ids(half).items() < everything.items()
    assert all(re.fullmatch("[0-9a-f]{32}", i) for i in everything.values())
    assert list(everything) == [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert not set(everything.values()) & set(ids_of(Plain()))
    assert auto_set_dependency_group_ids is auto_set_denpendency_group_ids


def ids_of(model: nn.Module) -> list[str]:
    return [c["dependency_group_id"] for c in found_in(model)]


def test_configurations_are_kept_and_split_by_layer() -> None:
    own = {"weight": {"granularity": "out_channel", "max_sparse_ratio": 0.9}}
    given: Configs = [
        {"op_types": ["Conv2d"], "exclude_op_names": ["stem.0"], "sparse_ratio": 0.5, "dependency_group_id": "mine"},
        {"op_names": ["stem.0"], "sparse_ratio": 0.5, "target_names": ["weight"], "target_settings": own},
        {"op_types": ["BatchNorm2d"], "sparse_ratio": 0.25, "global_group_id": "norms"},
    ]
    before = copy.deepcopy(given)
    model = Residual()
    found = {c["op_names"][0]: c for c in found_in(model, config_list=given)}
    assert given == before
    assert all(len(c["op_names"]) == 1 and not c.keys() & {"op_types", "exclude_op_names"} for c in found.values())
    stem = found["stem.0"]
    assert stem["target_settings"] == own
    assert stem["target_settings"] is not own
    assert stem["dependency_group_id"] == found["blocks.0.conv2.0"]["dependency_group_id"] != "mine"
    assert found["stem.1"] == {"op_names": ["stem.1"], "sparse_ratio": 0.25, "global_group_id": "norms"}
    assert "fc" not in found


def test_legacy_configurations_are_translated_as_nni_does() -> None:
    legacy: Configs = [{"op_types": ["Conv2d"], "sparsity": 0.5}, {"exclude": True, "op_names": ["stem.0"]}]
    found = without_ids(found_in(Residual(), config_list=legacy))
    assert found == without_ids(host_config_list(Residual(), legacy, IMAGES))
    setting = trans_legacy_config_list(legacy)[0]["target_settings"]
    assert "stem.0" not in found
    assert all(config["target_settings"] == setting for config in found.values())
    assert len({id(config["target_settings"]) for config in found.values()}) == len(found)


def test_nothing_asked_for_is_nothing_given() -> None:
    assert found_in(Residual(), config_list=[]) == []


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.unused = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(self.trained(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "config_list", "said"),
    [
        pytest.param(
            Residual,
            [{"op_types": ["Conv2d"], "exclude_op_names": ["stem.0"], "sparse_ratio": 0.5}],
            "stem.0 not selected, coupled with blocks.0.conv2.0",
            id="not selected",
        ),
        pytest.param(
            Residual,
            [{"op_names": ["stem.0"], "sparse_ratio": 0.25}, {"op_types": ["Conv2d"], "sparse_ratio": 0.5}],
            "stem.0: 0.25, blocks.0.conv2.0: 0.5",
            id="unequal",
        ),
        pytest.param(
            Residual,
            [{"op_types": ["Conv2d"], "sparse_threshold": 0.1}],
            "stem.0, blocks.0.conv2.0, .* have a sparse_threshold",
            id="threshold",
        ),
        pytest.param(Cut, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], "no gradient arrives at frozen ", id="cut"),
    ],
)
def test_what_cannot_end_well_is_said(
    model: Callable[[], nn.Module], config_list: Configs, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    found_in(model(), config_list=config_list)
    messages = [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno == logging.WARNING]
    assert len(messages) == 1
    assert re.search(said, messages[0])


def test_the_first_of_two_configurations_counts_as_it_does_in_nni(caplog: pytest.LogCaptureFixture) -> None:
    given: Configs = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}, {"op_names": ["stem.0"], "sparse_ratio": 0.25}]
    model = Residual()
    found = found_in(model, config_list=given)
    assert not [r for r in caplog.records if r.name == LOGGER]
    assert len([c for c in found if c["op_names"] == ["stem.0"]]) == 2
    _, masks = L1NormPruner(model, found).compress()
    assert masks["stem.0"]["weight"].mean() == 0.5


class ConvolutionAndLinear(nn.Module):
    """Channels last behind a convolution, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head((x + self.block(x)).mean((1, 2)))


def test_a_convolution_coupled_with_a_linear_layer_is_said_to_stop_nni(caplog: pytest.LogCaptureFixture) -> None:
    model = ConvolutionAndLinear()
    found = found_in(model, config_list=[{"op_names": ["stem", "block"], "sparse_ratio": 0.5}])
    assert len({c["dependency_group_id"] for c in found}) == 1
    messages = [r.getMessage() for r in caplog.records if r.name == LOGGER]
    assert len(messages) == 1
    assert re.search("both convolutions and linear layers.*RuntimeError.*\n  stem, block", messages[0])
    with pytest.raises(RuntimeError, match="shape"):
        L1NormPruner(model, found).compress()


@pytest.mark.parametrize("setting", ["unequal", "threshold"])
def test_nni_stops_at_what_the_warning_says_it_stops_at(setting: str) -> None:
    given: Configs = [{"op_names": ["stem.0"], "sparse_ratio": 0.25}, {"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    if setting == "threshold":
        given = [{"op_types": ["Conv2d"], "sparse_threshold": 0.1}]
    model = Residual()
    with pytest.raises(AssertionError):
        L1NormPruner(model, found_in(model, config_list=given)).compress()


def test_a_layer_that_does_not_run_has_no_id_and_one_that_is_cut_off_has_its_own() -> None:
    found = {c["op_names"][0]: c for c in found_in(Cut())}
    assert "dependency_group_id" not in found["unused"]
    assert len({found[name]["dependency_group_id"] for name in ("frozen", "trained", "head")}) == 3


@pytest.mark.parametrize("config_list", [None, {"op_types": ["Conv2d"]}, "Conv2d", ["Conv2d"]])
def test_a_config_list_that_is_none(config_list: Any) -> None:
    with pytest.raises(InputError, match="must be a list of dicts"):
        found_in(Residual(), config_list=config_list)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"op_types": ["Conv3d"]}, "selects no module of Residual.*Conv2d, Identity, Linear"),
        ({"op_types": ["Conv2d"], "exclude_op_types": ["Conv2d"]}, "selects no module"),
        ({"op_names": ["fc", "module.stem.0"]}, "names 'module.stem.0', which.*did you mean stem.0"),
    ],
)
def test_a_config_list_that_selects_nothing(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        found_in(Residual(), config_list=[config])


@pytest.mark.parametrize(
    ("dummy_input", "message"),
    [
        (torch.rand(2, 4, 16, 16), r"float32 \[2, 4, 16, 16\].*expected input.*to have 3 channels"),
        ((IMAGES, IMAGES), r"float32 \[2, 3, 16, 16\], float32 \[2, 3, 16, 16\].*positional argument"),
        ({"image": IMAGES}, "unexpected keyword argument 'image'"),
        (None, "no tensor, but NoneType"),
    ],
)
def test_dummy_inputs_that_the_model_fails_on(dummy_input: Any, message: str) -> None:
    model = Residual().train()
    before = Snapshot.of(model)
    with pytest.raises(InputError, match=message):
        found_in(model, dummy_input)
    assert Snapshot.of(model) == before


def test_a_model_that_the_graph_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="channel shuffles"):
        found_in(torchvision.models.shufflenet_v2_x0_5(), LARGER)


def test_layers_that_cannot_be_followed_can_be_excluded() -> None:
    model = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4])
    with pytest.raises(UnsupportedModelError, match="exclude_op_names") as refusal:
        found_in(model, LARGER)
    named = (
        str(refusal.value).removeprefix("Torch-Pruning cannot follow the channels of ").partition(":")[0].split(", ")
    )
    found = found_in(model, LARGER, [{"op_types": ["Linear", "Conv2d"], "exclude_op_names": named}])
    assert not {name for c in found for name in c["op_names"]} & set(named)
