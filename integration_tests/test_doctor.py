"""The model doctor: its verdicts against what the pruner really does, its list of host defects against the host."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from rich.console import Console
from torch import nn
from torch_pruning.dependency import index_mapping
from typer.testing import CliRunner

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.alignment import Alignment
from fair_prune_plugins.torch_pruning import FairPruner
from fair_prune_plugins.workflow.commands import app
from fair_prune_plugins.workflow.doctor import Diagnosis, Finding, examine, examine_host, known_defects, versions
from fair_prune_plugins.workflow.doctor.defects import findings
from fair_prune_plugins.workflow.doctor.printing import print_diagnosis
from fair_prune_plugins.workflow.doctor.ranking_defects import RANKING_DEFECTS
from fair_prune_plugins.workflow.doctor.structure_defects import STRUCTURE_DEFECTS
from integration_tests import networks
from integration_tests.pruning_oracles import Snapshot

ALIGNMENT = Alignment(block=16, grain=4, target="a CPU", source="a test")
DEFECTS = {d.id: d for d in (*STRUCTURE_DEFECTS, *RANKING_DEFECTS)}


def image(samples: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(samples, 3, size, size)


def looked_at(model: nn.Module, inputs: Any = None, **options: Any) -> Diagnosis:
    return examine(model, image() if inputs is None else inputs, **{"alignment": ALIGNMENT, **options})


def touching(diagnosis: Diagnosis) -> dict[str, tuple[str, ...]]:
    return {f.id: f.layers for f in diagnosis.findings if f.touches}


# What it says of a model


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_groups_and_what_is_left_alone_are_those_of_the_pruner(name: str) -> None:
    model = networks.build(name)
    report = looked_at(model).model
    assert report is not None
    pruner = FairPruner(networks.build(name), image(), lambda group: torch.zeros(len(group[0].idxs)))
    plan = pruner.gate_plan()
    assert [g.name for g in report.prunable] == [g.name for g in plan.prunable]
    assert [g.units for g in report.prunable] == [{u.kind: u.size for u in g.unit_sets} for g in plan.prunable]
    assert report.left_alone == pruner.not_pruned
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.outputs == (tuple(model(image(2)).shape),)


def test_a_coupled_group_has_the_layers_that_the_network_couples() -> None:
    report = looked_at(networks.build("residual")).model
    assert report is not None
    stem = next(g for g in report.groups if "stem.0" in g.members)
    # The stem and the first block meet in an addition; BatchNorm acts on each channel alone and is no member.
    assert {"stem.0", "blocks.0.conv2.0", "blocks.0.conv1.0", "blocks.1.conv1.0"} <= set(stem.members)
    assert "fc" not in stem.members
    assert (stem.units, stem.channels, stem.verdict) == ({"channels": 10}, 10, "exact")


def test_macs_and_parameters_of_a_linear_network_are_the_closed_form() -> None:
    report = looked_at(nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)), torch.rand(1, 6)).model
    assert report is not None
    assert (report.macs, report.parameters) == (6 * 8 + 8 * 3, 6 * 8 + 8 * 3)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_widths_are_those_that_the_pruner_keeps(ratio: float) -> None:
    report = looked_at(networks.build("conv groups"), ratio=ratio).model
    assert report is not None
    assert report.alignment is not None
    pruner = FairPruner(
        networks.build("conv groups"),
        image(),
        lambda group: torch.arange(len(group[0].idxs)).float(),
        pruning_ratio=ratio,
        round_to=ALIGNMENT,
    )
    kept = {w.name: (w.asked, w.kept) for w in pruner.step().widths}
    repeats = {g.name: g.channels // g.units["channels"] for g in report.prunable}
    assert {w.name: (w.asked // repeats[w.name], w.kept // repeats[w.name]) for w in report.alignment.widths} == kept


def test_narrow_layers_and_layers_outside_the_fast_layout_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 24, 1), nn.Conv2d(24, 34, 1), nn.Conv2d(34, 4, 1))
    report = looked_at(model).model
    assert report is not None
    assert report.alignment is not None
    found = {w.name: (w.width, w.fits, w.narrow) for w in report.alignment.widths}
    assert found == {"0": (10, False, True), "1": (24, True, False), "2": (34, False, False)}


def test_frozen_and_ignored_layers_heads_and_unsupported_ones_are_told() -> None:
    model = networks.build("attention, fused")
    model.blocks[0].requires_grad_(False)
    report = looked_at(model, ignored_layers=[model.blocks[1].fc1]).model
    assert report is not None
    assert report.heads == {"blocks.0.attn.qkv": 4, "blocks.1.attn.qkv": 4}
    assert "blocks.0.fc1" in report.frozen
    assert not any(name.startswith("blocks.1") for name in report.frozen)
    assert report.left_alone["blocks.1.fc1"] == "ignored as asked"
    assert report.left_alone["head"] == "it is an output of the model"
    gated = _SpatialGate()
    verdicts = {g.name: g.verdict for g in looked_at(gated).model.groups}  # type: ignore[union-attr]
    assert verdicts["features"] == "unsupported"


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_exactly_as_it_was(training: bool) -> None:
    model = networks.build("attention, separate").train(training)
    model(image(2)).sum().backward()
    next(model.parameters()).requires_grad_(False)
    inputs = image()
    before, state = Snapshot.of(model), torch.get_rng_state()
    looked_at(model, inputs)
    assert Snapshot.of(model) == before
    assert all(m.training is training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_model_gets_the_same_diagnosis() -> None:
    first, second = (looked_at(networks.build("squeeze-excite")) for _ in range(2))
    assert first == second


def test_models_that_cannot_be_pruned_are_no_error() -> None:
    linear = looked_at(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    assert not linear.can_be_pruned
    assert linear.model is not None
    assert linear.model.problem
    assert linear.model.left_alone == {"1": "it is an output of the model"}
    mixed = looked_at(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)))
    assert not mixed.can_be_pruned
    assert mixed.model is not None
    assert "BatchNorm without running statistics" in mixed.model.problem
    assert mixed.versions
    assert mixed.findings


def test_shuffled_channels_are_refused_and_the_rest_is_still_told() -> None:
    torchvision = pytest.importorskip("torchvision")
    found = looked_at(torchvision.models.shufflenet_v2_x0_5(weights=None), image(size=32))
    assert found.model is not None
    assert "Torch-Pruning cannot read the model's structure" in found.model.problem
    assert found.model.groups == ()
    assert found.model.macs
    assert "Taylor leaves BatchNorm out" in touching(found)


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (lambda: pytest.importorskip("torchvision").models.resnet18(weights=None), 0),
        (lambda: pytest.importorskip("timm").create_model("vit_tiny_patch16_224", img_size=32, depth=2), 2),
    ],
)
def test_model_zoos_networks(make: Callable[[], nn.Module], heads: int) -> None:
    found = looked_at(make(), image(size=32))
    assert found.model is not None
    assert found.can_be_pruned
    assert {g.verdict for g in found.model.groups} == {"exact", "output"}
    assert len(found.model.heads) == heads
    assert bool(touching(found).get("LayerNorm weights are permuted")) is bool(heads)
    assert bool(touching(found).get("Taylor leaves BatchNorm out")) is not bool(heads)


def test_an_export_is_proven_or_told() -> None:
    good = looked_at(networks.build("plain"), export=True).model
    assert good is not None
    assert good.export is not None
    assert good.export.proven
    assert "ONNX Runtime equals torch" in good.export.statement
    bad = looked_at(_BeyondOnnx(), export=True).model
    assert bad is not None
    assert bad.export is not None
    assert not bad.export.proven
    assert bad.export.statement


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="ratio must lie in"):
        looked_at(networks.build("plain"), ratio=ratio)


def test_inputs_that_do_not_fit_are_an_error_that_names_them() -> None:
    with pytest.raises(InputError, match=r"fails on inputs of shape \(2, 4, 16, 16\)"):
        looked_at(networks.build("plain"), torch.rand(1, 4, 16, 16))


# The hosts' defects


def test_every_defect_of_the_list_is_there_on_the_installed_host() -> None:
    assert metadata.version("torch-pruning") in {v for d in DEFECTS.values() for v in d.seen_in}
    assert {f.id: (f.condition, f.detail) for f in findings(DEFECTS.values())} == dict.fromkeys(
        DEFECTS, ("present", "")
    )
    assert len(DEFECTS) == len(STRUCTURE_DEFECTS) + len(RANKING_DEFECTS)


MENDED_BY_THE_PRUNER = (
    "output layers are pruned",
    "RMSNorm has no pruner",
    "frozen first layers stay as they are",
    "round_to skips narrow layers",
    "round_to miscounts conv groups",
    "depthwise with a channel multiplier crashes",
    "nn.MultiheadAttention needs divisible widths",
    "attention keeps its old sizes",
    "kept counts are cut one short",
    "ties are all pruned",
    "max_pruning_ratio between steps only",
    "left in eval mode",
)
REFUSED_BY_THE_PRUNER = (
    "grouped convolutions taken for depthwise ones",
    "a single channel holds its coupled group back",
    "InstanceNorm keeps its running statistics",
    "BatchNorm without running statistics crashes",
    "LSTM crashes",
    "tied layers are untied",
    "scores that are not finite",
)


def test_a_host_without_the_defects_is_found_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials see what they try: with the pruner that claims to mend the host they end otherwise."""

    def mended(*arguments: Any, **options: Any) -> FairPruner:
        if not options.get("num_heads"):
            options.pop("num_heads", None)
        return FairPruner(*arguments, **{"round_to": None, **options})

    monkeypatch.setattr(tp.pruner, "BasePruner", mended)
    condition = {f.id: f.condition for f in findings(DEFECTS.values())}
    assert {i: condition[i] for i in MENDED_BY_THE_PRUNER} == dict.fromkeys(MENDED_BY_THE_PRUNER, "mended")
    # Refusals are exceptions of another kind than the host's, so the trial cannot tell what became of the defect.
    assert {i: condition[i] for i in REFUSED_BY_THE_PRUNER} == dict.fromkeys(REFUSED_BY_THE_PRUNER, "unclear")


def _mend_layer_norm(patch: pytest.MonkeyPatch) -> None:
    from fair_prune_plugins.gates.removal import LastDimensionNormPruner

    patch.setattr(tp, "prune_layernorm_out_channels", LastDimensionNormPruner().prune_out_channels)


def _mend_hessian(patch: pytest.MonkeyPatch) -> None:
    def accumulate(self: Any, model: nn.Module) -> None:
        for p in model.parameters():
            self._accu_grad[p] = self._accu_grad.get(p, 0) + p.grad.square()

    patch.setattr(tp.importance.GroupHessianImportance, "accumulate_grad", accumulate)


def _mend_normaliser(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tp.importance.GroupTaylorImportance, "_normalize", lambda self, scores, normalizer: scores)


def _mend_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tp, "__version__", metadata.version("torch-pruning"))


def _mend_taylor(patch: pytest.MonkeyPatch) -> None:
    from torch_pruning.pruner import function

    patch.setattr(function, "prune_groupnorm_out_channels", function.prune_batchnorm_out_channels)


def _mend_index_mappings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(index_mapping._FlattenIndexMapping, "__call__", lambda self, idxs: idxs)


@pytest.mark.parametrize(
    ("id", "mend"),
    [
        ("LayerNorm weights are permuted", _mend_layer_norm),
        ("only the last sample counts", _mend_hessian),
        ("signed scores are reversed", _mend_normaliser),
        ("wrong version text", _mend_version),
        ("Taylor leaves BatchNorm out", _mend_taylor),
        ("index lists multiply", _mend_index_mappings),
    ],
)
def test_a_mended_function_of_the_host_is_found_mended(
    monkeypatch: pytest.MonkeyPatch, id: str, mend: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mend(monkeypatch)
    assert findings([DEFECTS[id]])[0].condition == "mended"


def test_the_trials_leave_nothing_behind() -> None:
    defaults = [d for d in tp.pruner.BasePruner.__init__.__defaults__ if isinstance(d, dict)]
    before, state, filters = [dict(d) for d in defaults], torch.get_rng_state(), list(warnings.filters)
    findings(DEFECTS.values())
    assert [dict(d) for d in defaults] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert list(warnings.filters) == filters


class _SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.gate, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x) * torch.sigmoid(self.gate(x)))


class _BeyondOnnx(nn.Module):
    """ONNX has no singular values."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x).mean((2, 3))
        return self.head(x * torch.linalg.svdvals(x[:, None]))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def _frozen() -> nn.Module:
    """A frozen beginning is not seen by the host; what is frozen behind a layer with gradients is."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
    )
    model[0].requires_grad_(False)
    model[3].requires_grad_(False)
    return model


def _nested(conv: nn.Module, inputs: int, outputs: int, norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, inputs, 1), conv, norm or nn.ReLU(), nn.Conv2d(outputs, 4, 1))


def _without_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(32)
    norm.running_mean = norm.running_var = None
    return _nested(nn.Conv2d(32, 32, 1), 32, 32, norm)


NARROW = "round_to skips narrow layers"
OUTPUT = "output layers are pruned"
BATCH_NORM = ("Taylor leaves BatchNorm out", "Hessian leaves BatchNorm biases out")
REPEATED = (
    "round_to miscounts conv groups",
    "scores are averaged over conv groups",
    "default dictionaries are shared",
)
ATTENTION = ("blocks.0.attn", "blocks.1.attn")
LAYER_NORMS = ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")

TOUCHED: list[tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[str, ...]]]] = [
    (lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32), (3, 8, 8), {OUTPUT: ("3",)}),
    (lambda: _nested(nn.Conv2d(32, 32, 1, groups=32), 32, 32), (3, 8, 8), {OUTPUT: ("3",)}),
    (
        lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.BatchNorm2d(32)),
        (3, 8, 8),
        {OUTPUT: ("3",), **dict.fromkeys(BATCH_NORM, ("2",))},
    ),
    (lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.BatchNorm2d(32, affine=False)), (3, 8, 8), {OUTPUT: ("3",)}),
    (
        lambda: _nested(nn.Conv2d(32, 64, 1, groups=2), 32, 64),
        (3, 8, 8),
        {OUTPUT: ("3",), **dict.fromkeys(REPEATED, ("1",))},
    ),
    (
        lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.GroupNorm(2, 32)),
        (3, 8, 8),
        {OUTPUT: ("3",), **dict.fromkeys(REPEATED, ("2",))},
    ),
    (lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.GroupNorm(1, 32)), (3, 8, 8), {OUTPUT: ("3",)}),
    (
        lambda: _nested(nn.Conv2d(16, 8, 1, groups=8), 16, 8),
        (3, 8, 8),
        {OUTPUT: ("3",), NARROW: ("1",), "grouped convolutions taken for depthwise ones": ("1",)},
    ),
    (
        lambda: _nested(nn.Conv2d(8, 32, 1, groups=8), 8, 32),
        (3, 8, 8),
        {OUTPUT: ("3",), **dict.fromkeys(REPEATED, ("1",)), "depthwise with a channel multiplier crashes": ("1",)},
    ),
    (
        lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.InstanceNorm2d(32, affine=True, track_running_stats=True)),
        (3, 8, 8),
        {OUTPUT: ("3",), "InstanceNorm keeps its running statistics": ("2",)},
    ),
    (lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.InstanceNorm2d(32)), (3, 8, 8), {OUTPUT: ("3",)}),
    (
        _without_statistics,
        (3, 8, 8),
        {"BatchNorm without running statistics crashes": ("2",), **dict.fromkeys(BATCH_NORM, ("2",))},
    ),
    (
        lambda: _nested(nn.Conv2d(32, 32, 1), 32, 32, nn.BatchNorm2d(32, track_running_stats=False)),
        (3, 8, 8),
        dict.fromkeys(BATCH_NORM, ("2",)),
    ),
    (_frozen, (3, 8, 8), {OUTPUT: ("4",), NARROW: ("3", "2", "0"), "frozen first layers stay as they are": ("0",)}),
    (
        _SpatialGate,
        (3, 8, 8),
        {OUTPUT: ("head",), NARROW: ("features",), "a single channel holds its coupled group back": ("features",)},
    ),
    (_tied, (6,), {OUTPUT: ("4",), NARROW: ("2", "0"), "tied layers are untied": ("0", "2")}),
    (_Recurrent, (5, 6), {OUTPUT: ("head",), NARROW: ("lstm",), "LSTM crashes": ("lstm",)}),
    (
        lambda: networks.build("rmsnorm"),
        (3, 16, 16),
        {OUTPUT: ("fc3",), NARROW: ("fc2",), "RMSNorm has no pruner": ("norm1", "norm2")},
    ),
    (
        lambda: networks.VisionTransformer(width=64),
        (3, 16, 16),
        {
            OUTPUT: ("head",),
            NARROW: ("blocks.1.fc1", "blocks.0.fc1"),
            "LayerNorm weights are permuted": LAYER_NORMS,
            "attention keeps its old sizes": ATTENTION,
            **dict.fromkeys(REPEATED, ("blocks.0.attn.qkv", "blocks.1.attn.qkv")),
        },
    ),
    (
        lambda: networks.VisionTransformer(networks.SelfAttention, width=64),
        (3, 16, 16),
        {
            OUTPUT: ("head",),
            NARROW: ("blocks.1.fc1", "blocks.0.fc1"),
            "LayerNorm weights are permuted": LAYER_NORMS,
            "nn.MultiheadAttention mixes heads": ("blocks.0.attn.mha", "blocks.1.attn.mha"),
            "nn.MultiheadAttention needs divisible widths": ("blocks.0.attn.mha", "blocks.1.attn.mha"),
            **dict.fromkeys(REPEATED, ("blocks.0.attn.mha", "blocks.1.attn.mha")),
        },
    ),
]


@pytest.mark.parametrize(("make", "shape", "expected"), TOUCHED)
def test_defects_are_found_where_they_are_and_nowhere_else(
    make: Callable[[], nn.Module], shape: tuple[int, ...], expected: dict[str, tuple[str, ...]]
) -> None:
    found = touching(looked_at(make(), torch.rand(1, *shape)))
    assert {id: set(layers) for id, layers in found.items()} == {id: set(layers) for id, layers in expected.items()}


def test_every_defect_that_depends_on_the_model_is_looked_for_in_some_model() -> None:
    elsewhere = {"kept counts are cut one short", "index lists multiply"}
    depending = {d.id for d in DEFECTS.values() if d.applies is not None}
    assert depending == elsewhere | {id for _, _, expected in TOUCHED for id in expected}


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 0.9])
def test_widths_that_the_host_cuts_short_are_those_that_it_does_cut_short(ratio: float) -> None:
    sizes = [10, 20, 30, 40, 50, 60]
    layers = [nn.Conv2d(i, o, 1) for i, o in zip([3, *sizes], [*sizes, 4], strict=True)]
    named = set(touching(looked_at(nn.Sequential(*layers), ratio=ratio)).get("kept counts are cut one short", ()))
    model = nn.Sequential(*layers)
    tp.pruner.BasePruner(
        model, image(), importance=tp.importance.MagnitudeImportance(), pruning_ratio=ratio, ignored_layers=[model[-1]]
    ).step()
    exact = [round(size * round(10 - 10 * ratio)) // 10 for size in sizes]
    short = {str(n) for n, (layer, keep) in enumerate(zip(model, exact, strict=False)) if layer.out_channels != keep}
    assert named == short


def test_swin_is_refused_before_the_host_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    model = swin.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5).eval()
    found = looked_at(model, image(size=32))
    assert not found.can_be_pruned
    assert found.model is not None
    assert "cannot enumerate the coupled groups" in found.model.problem
    layers = touching(found)["index lists multiply"]
    assert layers
    # The host itself: lists of a million channels in a network whose widest layer has 32.
    followed = index_mapping._FlattenIndexMapping.__call__

    def watched(self: Any, idxs: Any) -> Any:
        if len(idxs) > 100_000:
            raise MemoryError
        return followed(self, idxs)

    graph = tp.DependencyGraph().build_dependency(model, image(size=32), verbose=False)
    monkeypatch.setattr(index_mapping._FlattenIndexMapping, "__call__", watched)
    layer = model.get_submodule(layers[0])
    with pytest.raises(MemoryError):
        graph.get_pruning_group(layer, tp.prune_linear_out_channels, list(range(layer.out_features)))


def test_nni_is_looked_at_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = "nni" in {d.metadata["Name"] for d in metadata.distributions()}
    assert ("nni" in {d.host for d in known_defects()}) is installed
    asked = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.0" if name == "nni" else asked(name))
    assert "nni" in {d.host for d in known_defects()}


@pytest.mark.filterwarnings("ignore")
def test_nnis_defects_are_there_on_the_installed_nni() -> None:
    pytest.importorskip("nni.common")
    found = [f for f in findings(known_defects()) if f.host == "nni"]
    assert {f.condition for f in found if f.id == "ModelSpeedup crashes"} == {"present"}
    tensorboard = importlib.util.find_spec("tensorboard") is None
    assert {f.condition for f in found if f.id == "tensorboard is not declared"} == {
        "present" if tensorboard else "mended"
    }


# Versions


def test_versions_are_those_of_the_metadata() -> None:
    found = {v.name: v for v in versions()}
    assert found["torch-pruning"].installed == metadata.version("torch-pruning") != tp.__version__
    assert found["torch"].installed == metadata.version("torch")
    assert found["python"].installed == ".".join(map(str, sys.version_info[:3]))
    for name in ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy", "fair-prune-plugins"):
        assert found[name].in_range is True
        assert not found[name].trouble


@pytest.mark.parametrize(
    ("name", "version", "trouble"),
    [
        ("torch", "2.3.1", True),
        ("torch", "2.4.0+cpu", False),
        ("torch", "2.15.0.dev20260101", False),
        ("torch-pruning", "1.5.2", True),
        ("torch-pruning", "1.7.0", True),
        ("nni", "2.10", True),
        ("nni", "3.0", False),
    ],
)
def test_versions_outside_of_what_is_supported_are_flagged(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, trouble: bool
) -> None:
    asked = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == name else asked(n))
    found = next(v for v in versions() if v.name == name)
    assert (found.installed, found.trouble) == (version, trouble)


def test_what_is_not_installed_is_no_trouble_and_what_is_broken_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "0.28" if name == "torchvision" else asked(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = {v.name: v for v in versions()}
    assert (found["timm"].installed, found["timm"].in_range, found["timm"].trouble) == (None, None, False)
    assert "cannot be imported: ModuleNotFoundError" in found["torchvision"].note
    assert found["torchvision"].trouble


# What is printed


def printed(diagnosis: Diagnosis, width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), color_system=None)  # noqa: SIM115
    print_diagnosis(diagnosis, console)
    console.file.close()
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_printed_fits_and_leaves_names_whole(width: int) -> None:
    found = looked_at(networks.build("squeeze-excite"))
    text = printed(found, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert found.model is not None
    for row in found.model.prunable:
        line = next(line for line in text.splitlines() if line.split()[:1] == [row.name])
        assert line.split()[1:3] == [str(row.units["channels"]), str(len(row.members))]
    for said in ("This model can be pruned", "What keeps its width, and why", "fc: it is an output", "Versions"):
        assert said in text
    # What goes wrong whatever the model is, is named; it is explained by the doctor without a model.
    assert "ties are all pruned" in " ".join(text.split())
    assert "FairPruner removes as many as asked" not in " ".join(text.split())
    assert "FairPruner removes as many as asked" in " ".join(printed(examine_host(), width).split())


def test_conditions_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = findings([DEFECTS["wrong version text"]])[0]
    found = examine_host()
    changed = (
        dataclasses.replace(one, condition="mended"),
        dataclasses.replace(one, id="strange", condition="unclear", detail="no idea"),
    )
    text = printed(dataclasses.replace(found, findings=changed), 100)
    assert "Mended in what is installed here\n  wrong version text (torch-pruning 1.6.1)" in text
    assert "strange (torch-pruning) (unclear: no idea)" in text


# The command


NETS = """
import torch
from torch import nn


def small(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )


def with_inputs():
    return small(), torch.rand(1, 3, 20, 20)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x, y):
        return self.head(self.a(x) + self.b(y))


def nothing():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def number():
    return 3


def fails():
    raise RuntimeError("no weights here")


value = 3
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "doctor_nets.py").write_text(NETS)
    (tmp_path / "doctor_damaged.py").write_text("raise RuntimeError('half a module')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str, width: int = 100) -> Any:
    return CliRunner(env={"COLUMNS": str(width), "TERM": "dumb"}).invoke(app, ["doctor", *arguments])


def test_the_command_examines_a_model(place: Path) -> None:
    result = invoke("doctor_nets:small", "--input-shape", "3,16,16", "--classes", "4", "--options", "width=12")
    assert result.exit_code == 0, result.output
    assert "This model can be pruned: 2 of 2 coupled groups, 28 units" in result.stdout
    assert "inputs 3x16x16, outputs 4" in result.stdout
    assert invoke("doctor_nets:with_inputs").exit_code == 0
    two = invoke("doctor_nets:Two", "--input-shape", "6", "--input-shape", "4")
    assert two.exit_code == 0
    assert "inputs 6 and 4, outputs 3" in two.stdout
    assert invoke("digits_resnet", "--input-shape", "1,8,8", "--classes", "7").exit_code == 0


def test_ignored_layers_and_the_ratio_are_passed_on(place: Path) -> None:
    every = ("doctor_nets:small", "--input-shape", "3,16,16")
    result = invoke(*every, "--ignore", "0", "--ratio", "0.75")
    assert result.exit_code == 0
    assert "0: ignored as asked" in result.stdout
    assert "At a pruning ratio of 75" in result.stdout
    assert invoke(*every, "--ignore", "0", "--ignore", "3").exit_code == 1


def test_json_is_valid_and_complete(place: Path) -> None:
    result = invoke("doctor_nets:small", "--input-shape", "3,16,16", "--export", "--json")
    assert result.exit_code == 0
    parsed = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))
    sys.path.insert(0, str(place))
    try:
        model = importlib.import_module("doctor_nets").small()
    finally:
        sys.path.remove(str(place))
    expected = examine(model, torch.rand(1, 3, 16, 16))
    assert parsed["can_be_pruned"] is True
    assert set(parsed) == {"schema_version", "can_be_pruned", *(f.name for f in dataclasses.fields(Diagnosis))}
    assert set(parsed["findings"][0]) == {f.name for f in dataclasses.fields(Finding)}
    assert [f["id"] for f in parsed["findings"]] == [f.id for f in expected.findings]
    assert [v["installed"] for v in parsed["versions"]] == [v.installed for v in expected.versions]
    model_report = parsed["model"]
    assert expected.model is not None
    assert {k: v for k, v in model_report.items() if k not in ("export", "groups")} == json.loads(
        json.dumps({k: v for k, v in expected.as_dict()["model"].items() if k not in ("export", "groups")})
    )
    assert [g["members"] for g in model_report["groups"]] == [list(g.members) for g in expected.model.groups]
    assert model_report["export"]["proven"] is True


def test_a_model_that_cannot_be_pruned_has_its_own_exit_code(place: Path) -> None:
    result = invoke("doctor_nets:nothing", "--input-shape", "3,2,2")
    assert result.exit_code == 1
    assert "Nothing of this model can be pruned." in result.stdout
    assert "Versions" in result.stdout
    machine = invoke("doctor_nets:nothing", "--input-shape", "3,2,2", "--json")
    assert machine.exit_code == 1
    assert json.loads(machine.stdout)["can_be_pruned"] is False


def test_without_a_model_versions_and_defects_are_told() -> None:
    result = invoke()
    assert result.exit_code == 0
    assert "Versions" in result.stdout
    assert "torch-pruning" in result.stdout
    for defect in DEFECTS:
        assert defect in result.stdout
    parsed = json.loads(invoke("--json").stdout)
    assert parsed["model"] is None
    assert parsed["can_be_pruned"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor_nets"], "MODEL: 'doctor_nets' is neither a built-in network (digits_resnet"),
        (["doctor_none:x"], "MODEL: doctor_none cannot be imported (ModuleNotFoundError"),
        (["doctor_damaged:x"], "MODEL: doctor_damaged cannot be imported (RuntimeError: half a module)"),
        (["doctor_nets:none"], "has no function 'none'; it has"),
        (["doctor_nets:value"], "is a int, not a function"),
        (["doctor_nets:number"], "MODEL: doctor_nets:number must return a torch.nn.Module"),
        (["doctor_nets:fails"], "failed: RuntimeError: no weights here"),
        (["doctor_nets:small", "--options", "wide=3"], "unexpected keyword argument 'wide'"),
        (["doctor_nets:small", "--options", "width"], "--options takes KEY=VALUE"),
        (["doctor_nets:small", "--options", "width=[1"], "--options takes KEY=VALUE"),
        (["doctor_nets:small", "--input-shape", "3,a"], "--input-shape takes whole numbers"),
        (["doctor_nets:small", "--input-shape", "3,0,4"], "--input-shape takes whole numbers"),
        (["doctor_nets:small", "--input-shape", ","], "--input-shape takes whole numbers"),
        (["doctor_nets:small", "--input-shape", "4,16,16"], "fails on inputs of shape (2, 4, 16, 16): RuntimeError"),
        (["doctor_nets:small", "--input-shape", "3,16,16", "--classes", "5"], "(2, 5) is needed for 5 classes"),
        (["doctor_nets:small", "--input-shape", "3,16,16", "--ignore", "x"], "the network has no layer 'x'; it has 0"),
        (["doctor_nets:small", "--input-shape", "3,16,16", "--ratio", "1"], "ratio must lie in [0, 1), got 1.0"),
    ],
)
def test_what_cannot_be_examined_is_one_clear_message(place: Path, arguments: list[str], said: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_help_says_what_the_exit_codes_mean() -> None:
    result = invoke("--help", width=80)
    assert result.exit_code == 0
    words = " ".join(result.stdout.replace("│", " ").split())
    assert "Exit code 0: something can be pruned; 1: nothing can" in words
    for option in ("--input-shape", "--classes", "--options", "--ignore", "--ratio", "--export", "--json", "--debug"):
        assert option in words


def test_the_command_runs_in_a_process_of_its_own(place: Path) -> None:
    """As a user runs it: nothing declares torchvision's operators there, which may be of another build."""
    done = subprocess.run(
        [sys.executable, "-m", "fair_prune_plugins.cli", "doctor", "doctor_nets:with_inputs", "--json"],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["can_be_pruned"] is True
