"""Attention heads, head dimensions and trunks of other libraries' vision transformers, against forwards written out."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.removal import update_attention_owners
from fair_prune_plugins.gates.static_sizes import update_sizes
from fair_prune_plugins.onnx import export
from fair_prune_plugins.torch_pruning import pruner as pruner_module
from fair_prune_plugins.torch_pruning.heads import HEADS_STAY, find_heads, heads_that_stay
from fair_prune_plugins.workflow import model_store
from integration_tests.gate_oracles import error, random_closed
from integration_tests.networks import CLASSES, build, heads_of
from integration_tests.pruning_oracles import Snapshot, Tap, gate_derivatives
from integration_tests.vit_oracle import (
    HEADS,
    SIZE,
    ZOO,
    Left,
    build_vit,
    left_when_closed,
    logits_of,
    rebuilt_outputs,
    timm_vit,
)

EXACT, SINGLE = 1e-9, 1e-6
"""Relative error that is rounding; single where a network takes its softmax in float32 (transformers' eager attention).
"""

WHOLE_HEADS = {"prune_num_heads": True, "head_pruning_ratio": 0.5}


def rounding(name: str) -> float:
    return SINGLE if name == "transformers, eager" else EXACT


def images(samples: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.randn(samples, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_sample_loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_of(outputs), targets, reduction="none")


def pruner_of(model: nn.Module, importance: Any = None, **options: Any) -> fpt.FairPruner:
    """A pruner; that ``nn.MultiheadAttention`` keeps its heads is told, and expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot lose whole heads")
        return fpt.FairPruner(
            model,
            images(1).to(next(model.parameters())),
            importance or fpt.MagnitudeImportance(),
            round_to=None,
            **options,
        )


def left_after(pruner: fpt.FairPruner) -> Left:
    """What stays, by the history that the host records."""
    left = Left()
    for root, is_output, gone in pruner.pruning_history():
        left.take(root + ("" if is_output else "[in]"), gone)
    return left


def changed(before: nn.Module, after: nn.Module) -> dict[str, dict[str, Any]]:
    """Plain numbers that differ, of modules that are no layers."""
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention)
    numbers: dict[str, dict[str, Any]] = {}
    for path, module in after.named_modules():
        old = vars(before.get_submodule(path))
        own = {k: v for k, v in vars(module).items() if isinstance(v, int | float) and v != old[k]}
        if own and not isinstance(module, layers):
            numbers[path] = own
    return numbers


# --- closed is removed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_closed_gates_compute_what_the_rebuilt_network_does(name: str) -> None:
    model, x = build_vit(name), images()
    plan = build_plan(model, images(1), num_heads=find_heads(model), prune_num_heads=True)
    assert all(g.status == "exact" for g in plan.groups), plan.describe()
    kinds = [(u.kind, u.size) for g in plan.prunable for u in g.unit_sets]
    whole = [] if name == "torchvision" else [("heads", HEADS)] * 2 + [("head dimensions", SIZE)] * 2
    assert sorted(k for k in kinds if k[0] != "channels") == sorted(whole)
    with torch.no_grad():
        assert error(logits_of(model(x)), rebuilt_outputs(model, Left(), x)) < rounding(name)
        for fraction, seed in ((0.3, 0), (0.5, 1), (0.9, 2)):
            closed = random_closed(plan, fraction, seed)
            for chosen in (closed, *({units: mask} for units, mask in closed.items())):
                with plan.closed(chosen):
                    gated = logits_of(model(x))
                assert error(gated, rebuilt_outputs(model, left_when_closed(plan, chosen), x)) < rounding(name), list(
                    chosen
                )


def test_statistics_of_normalised_queries_are_measured_where_they_are_contracted() -> None:
    """A norm undoes what is multiplied in before it, so a head dimension is gated after it."""
    model = build_vit("timm, q and k normalised")
    importance = fpt.FairGRAPEImportance()
    pruner = pruner_of(model, importance, **WHOLE_HEADS)
    batch = {"inputs": images(4), "targets": torch.arange(4) % CLASSES, "group": torch.arange(4) % 2}
    importance.collect(pruner, [batch], per_sample_loss, groups="group", progress=False)
    inner = gate_derivatives(model, batch, [Tap("blocks.0.attn.proj", last=True)]).unflatten(1, (HEADS, SIZE))
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hook = model.get_submodule("blocks.0.attn.q_norm").register_forward_hook(keep)
    F.cross_entropy(model(batch["inputs"]), batch["targets"], reduction="sum").backward()
    hook.remove()
    (query,) = seen
    assert query.grad is not None
    queries = (query * query.grad).detach().sum((1, 2))  # one norm for all heads
    assert importance.statistics is not None
    dims, heads = (importance.statistics.of(f"blocks.0.attn.proj[in]{kind}") for kind in ("", "#heads"))
    assert torch.allclose(dims.sum, torch.stack([(inner.sum(1) + queries)[code::2].sum(0) for code in range(2)]))
    assert torch.allclose(heads.sum, torch.stack([inner.sum(2)[code::2].sum(0) for code in range(2)]))


# --- a step -----------------------------------------------------------------------------------------------------------

TIMM = {"head_dim": 4, "attn_dim": 16, "scale": 0.5}
TIMM_HEADS = {"num_heads": 2, "head_dim": 4, "attn_dim": 8, "scale": 0.5}
TRANSFORMERS = {"head_dim": 4, "scaling": 0.5}
TRUNK = {"embed_dim": 16, "num_features": 16, "head_hidden_size": 16}


def expected_numbers(name: str, whole_heads: bool) -> dict[str, dict[str, Any]]:
    if name == "torchvision":
        return {"": {"hidden_dim": 16}}
    if name.startswith("timm"):
        return {"": TRUNK} | {f"blocks.{b}.attn": TIMM_HEADS if whole_heads else TIMM for b in range(2)}
    more = {"num_attention_heads": 2} if whole_heads else {}
    return {f"vit.layers.{b}.attention": TRANSFORMERS | more for b in range(2)}


@pytest.mark.parametrize("whole_heads", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_a_pruned_network_is_the_rebuilt_one(name: str, whole_heads: bool) -> None:
    model, x = build_vit(name), images()
    dense = copy.deepcopy(model)
    pruner = pruner_of(model, pruning_ratio=0.5, **(WHOLE_HEADS if whole_heads else {}))
    report = pruner.step()
    left = left_after(pruner)
    assert len(left.trunk) == 16
    assert [len(m) for m in left.mlp] == [32, 32]
    if name != "torchvision":
        assert [len(i) for i in left.inner] == ([2 * 4] * 2 if whole_heads else [HEADS * 4] * 2)
    assert {r.kept for r in report.widths} <= {2, 4, 16, 32}
    assert changed(dense, model) == expected_numbers(name, whole_heads)
    with torch.no_grad():
        outputs = logits_of(model(x))
        assert outputs.shape == (3, CLASSES)
        assert error(outputs, rebuilt_outputs(dense, left, x)) < rounding(name)


@pytest.mark.parametrize("name", ["torchvision", "timm", "timm, q and k normalised", "transformers"])
def test_two_steps_with_statistics_in_between(name: str) -> None:
    model, x = build_vit(name), images()
    dense = copy.deepcopy(model)
    options = {"iterative_steps": 2, "global_pruning": True, "max_pruning_ratio": 0.75}
    heads = {"prune_num_heads": True, "head_pruning_ratio": 0.25}
    pruner = pruner_of(model, fpt.FairGRAPEImportance(), pruning_ratio=0.5, **options, **heads)
    for step in range(2):
        batch = {"inputs": images(6, step), "targets": torch.arange(6) % CLASSES, "group": torch.arange(6) % 2}
        pruner.importance.collect(pruner, [batch], per_sample_loss, groups="group", progress=False)
        pruner.step()
        with torch.no_grad():
            assert error(logits_of(model(x)), rebuilt_outputs(dense, left_after(pruner), x)) < EXACT
    left = left_after(pruner)
    if name == "torchvision":
        assert model.hidden_dim == len(left.trunk) < 32
    elif name.startswith("timm"):
        assert model.embed_dim == len(left.trunk)
        for block, inner in zip(model.blocks, left.inner, strict=True):  # type: ignore[arg-type,union-attr]
            attention = block.attn
            assert attention.attn_dim == attention.num_heads * attention.head_dim == len(inner) < 32
            assert attention.scale == attention.head_dim**-0.5


@pytest.mark.parametrize(("name", "other"), [("timm", "timm, eager"), ("transformers", "transformers, eager")])
def test_fused_and_eager_attention_are_the_same_network_before_and_after(name: str, other: str) -> None:
    outputs = []
    for one in (name, other):
        model = build_vit(one)
        pruner_of(model, pruning_ratio=0.5).step()
        with torch.no_grad():
            outputs.append(logits_of(model(images())))
    assert error(*outputs) < rounding(other)


def test_attention_of_language_models_too() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=5
    )
    model = BertForSequenceClassification(config).eval()
    words = {"input_ids": torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))}
    plan = build_plan(model, words, num_heads=find_heads(model), prune_num_heads=True)
    assert all(g.status == "exact" for g in plan.groups), plan.describe()
    fpt.FairPruner(model, words, fpt.MagnitudeImportance(), pruning_ratio=0.5, round_to=None, **WHOLE_HEADS).step()
    for layer in model.bert.encoder.layer:
        own = vars(layer.attention.self)
        names = ("num_attention_heads", "attention_head_size", "all_head_size", "scaling")
        assert [own[n] for n in names] == [2, 4, 8, 0.5]
    assert model(**words).logits.shape == (2, 5)


# --- which numbers follow ---------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Reshapes by widths that it remembers under names of its own, among numbers that only happen to be as large."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 16  # the width, which the forward reads
        self.settings = SimpleNamespace(planes=12, seats=16)
        self.tokens = 16  # the positions: read by the same reshape
        self.temperature = 16  # read, and no width
        self.seats = 16  # not read, and nobody knows what it is
        self.embed_dim = 16  # not read, and known by its name
        self.conv = nn.Conv2d(3, 16, 8, 8)
        self.inner = nn.Linear(16, 12)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).reshape(len(x), self.c, self.tokens) / self.temperature
        x = torch.relu(self.inner(x.transpose(1, 2))).reshape(-1, self.settings.planes)
        return self.out(x.reshape(-1, self.tokens, x.shape[-1]).mean(1))


def numbers_of(model: Remembering) -> list[int]:
    return [
        model.c,
        model.settings.planes,
        model.embed_dim,
        model.settings.seats,
        model.tokens,
        model.temperature,
        model.seats,
    ]


def test_only_numbers_that_are_widths_follow() -> None:
    torch.manual_seed(1)
    model, x = Remembering().double().eval(), images()
    dense, settings = copy.deepcopy(model), model.settings
    pruner = pruner_of(model, pruning_ratio=0.5)
    pruner.step()
    assert numbers_of(model) == [8, 6, 8, 16, 16, 16, 16]
    assert settings.planes == 12  # whoever holds the configuration keeps it as it was
    widths = {"conv": 16, "inner": 12}
    kept = {root: sorted(set(range(widths[root])) - set(gone)) for root, _, gone in pruner.pruning_history()}
    a, b = kept["conv"], kept["inner"]
    hidden = F.conv2d(x, dense.conv.weight[a], dense.conv.bias[a], stride=8).flatten(2).transpose(1, 2) / 16
    hidden = torch.relu(hidden @ dense.inner.weight[b][:, a].T + dense.inner.bias[b]).mean(1)
    with torch.no_grad():
        assert error(model(x), hidden @ dense.out.weight[:, b].T + dense.out.bias) < EXACT


def test_a_step_that_is_undone_puts_the_numbers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Remembering().double().eval()
    pruner = pruner_of(model, pruning_ratio=0.5)
    before = (Snapshot.of(model), vars(model.settings).copy())

    def sabotage(*_: Any) -> None:
        assert vars(model.settings) != before[1]  # the numbers had followed by then
        raise RuntimeError("sabotage")

    monkeypatch.setattr(pruner_module, "check_widths", sabotage)
    with pytest.raises(RuntimeError, match="sabotage"):
        pruner.step()
    assert (Snapshot.of(model), vars(model.settings)) == before


class Halved(nn.Module):
    """Remembers half of its width, which nothing here can know to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 8
        self.conv, self.mid, self.out = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 12), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean((2, 3)).reshape(-1, 2, self.half)
        return self.out(torch.relu(self.mid(x.flatten(1))))


def test_what_cannot_follow_is_refused_up_front_by_name() -> None:
    model = Halved().double().eval()
    before = Snapshot.of(model)
    with pytest.warns(UserWarning, match="coupled group of 'conv': the model does not run with units removed"):
        pruner = pruner_of(model, pruning_ratio=0.5)
    assert Snapshot.of(model) == before
    pruner.step()
    assert (model.conv.out_channels, model.mid.out_features) == (16, 6)


def test_heads_of_multihead_attention_stay_and_the_user_is_told() -> None:
    model = build_vit("torchvision")
    path = "encoder.layers.encoder_layer_1.self_attention"
    assert heads_that_stay(model, find_heads(model))[path] == HEADS_STAY.format(layer=path)
    assert not heads_that_stay(build_vit("timm"), find_heads(build_vit("timm")))
    with pytest.warns(UserWarning, match="cannot lose whole heads") as told:
        pruner = fpt.FairPruner(model, images(1), fpt.MagnitudeImportance(), round_to=None, **WHOLE_HEADS)
    assert HEADS_STAY.format(layer=path) in {str(w.message) for w in told}
    assert pruner.not_pruned[path + "#heads"] == HEADS_STAY.format(layer=path)


# --- scales -----------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.num_heads, self.scale, self.dropout = 4, scale, 0.5
        self.qkv = nn.Linear(16, 48)


@pytest.mark.parametrize(("scale", "kept"), [(4**-0.5, 2**-0.5), (4**0.5, 2**0.5), (0.125, 0.125), (1.0, 1.0)])
def test_scales_follow_the_head_size_they_were_made_for(scale: float, kept: float) -> None:
    """A dropout that happens to be one over the root of the head size does not."""
    model = Scaled(scale)
    update_attention_owners(model, [(model.qkv, 3, 2)], {model.qkv: (4, 4)})
    assert (model.num_heads, model.scale, model.dropout) == (3, kept, 0.5)


def test_what_was_closed_leaves_no_scale_behind() -> None:
    model = build("attention, separate").double()
    plan = build_plan(model, torch.randn(1, 3, 16, 16), num_heads=heads_of(model))
    before = Snapshot.of(model)
    with plan.closed({"blocks.0.attn.proj[in]": [0]}):
        assert [block.attn.scale for block in model.blocks] == [3**-0.5, 4**-0.5]  # type: ignore[union-attr]
    assert Snapshot.of(model) == before


# --- on disk ----------------------------------------------------------------------------------------------------------


def stored_timm(**options: Any) -> nn.Module:
    return timm_vit(fused=False, qk_norm=True)


def stored_torchvision(**options: Any) -> nn.Module:
    return ZOO["torchvision"]()


@pytest.fixture(params=["stored_timm", "stored_torchvision"])
def pruned(request: pytest.FixtureRequest) -> tuple[str, nn.Module, fpt.FairPruner]:
    torch.manual_seed(0)
    model = globals()[request.param]().eval()
    nn.init.normal_((model.head if hasattr(model, "head") else model.heads.head).weight)
    pruner = pruner_of(model, pruning_ratio=0.5, **WHOLE_HEADS)
    pruner.step()
    return request.param, model, pruner


def test_pruned_transformers_are_stored_and_rebuilt(pruned: Any, tmp_path: Path) -> None:
    factory, model, pruner = pruned
    recipe = model_store.Recipe(f"{__name__}:{factory}", {}, CLASSES, (3, 32, 32), pruner.history())
    model_store.save(model, recipe, tmp_path, beside=None)
    rebuilt, read = model_store.load(tmp_path, beside=None)
    x = images().float()
    with torch.no_grad():
        assert torch.equal(model(x), rebuilt(x))
    expected = expected_numbers("timm" if "timm" in factory else "torchvision", whole_heads=True)
    assert changed(globals()[factory]().eval(), rebuilt) == expected
    assert read.history is not None
    told = read.history.numbers.items()  # of nn.MultiheadAttention's own projection too, which the host keeps right
    assert {path: numbers for path, numbers in told if not path.endswith("out_proj")} == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pruned_transformers_are_exported_and_proven(pruned: Any, tmp_path: Path) -> None:
    _, model, _ = pruned
    exported = export(model, images().float(), tmp_path / "model.onnx")
    assert exported.parity.relative < 1e-4


def test_sizes_are_taken_from_the_layers_as_they_are() -> None:
    model = build_vit("torchvision")
    (trunk,) = (g for g in build_plan(model, images(1)).groups if g.sizes)
    assert [(s.path, s.name) for s in trunk.sizes] == [("", "hidden_dim")]
    model.hidden_dim = 7
    update_sizes(model, trunk.sizes)
    assert model.hidden_dim == 32
