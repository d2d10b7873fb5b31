"""What users of Torch-Pruning run into around a step: optimizers, reloading, channel numbers, ranks, and the runtime.

Each test has two halves, the host's behaviour and ours; when the first one fails, the host has mended it.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.latency import fast_layout
from fair_prune_plugins.onnx import export
from integration_tests.networks import CLASSES, build, conv_bn
from integration_tests.pruning_oracles import faces, host_pruner, sample_loss

IMAGE = torch.zeros(1, 3, 16, 16)


def magnitude(group: Any) -> torch.Tensor:
    scores = tp.importance.GroupMagnitudeImportance()(group)
    assert isinstance(scores, torch.Tensor)
    return scores


def trained_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    batch = faces()
    optimizer.zero_grad()
    sample_loss(model(batch["inputs"]), batch["targets"]).mean().backward()
    optimizer.step()


def test_fine_tuning_changes_the_pruned_layers() -> None:
    """TP#120: the optimizer holds parameters that are no longer the model's, and training leaves the new ones alone."""
    moved = {}
    for whose in ("host", "ours"):
        model = build("plain")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trained_once(model.train(), optimizer)
        if whose == "host":
            host_pruner(model, magnitude, pruning_ratio=0.5, ignored_layers=[model.fc]).step()
        else:
            fpt.FairPruner(model, IMAGE, magnitude, pruning_ratio=0.5, round_to=None).step(optimizer=optimizer)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trained_once(model.train(), optimizer)
        moved[whose] = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    everything = {name for name, _ in build("plain").named_parameters()}
    assert moved["host"] < everything
    assert moved["ours"] == everything


def test_original_channel_numbers_are_known_after_two_steps() -> None:
    """TP#428, TP#479: the host's history counts each removal in what the removals before it left."""
    original = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 196, CLASSES))
    with torch.no_grad():
        original[0].weight.copy_(original[0].weight / original[0].weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
        original[0].weight *= torch.tensor([1.0 + 7 * i % 20 for i in range(20)]).reshape(-1, 1, 1, 1)

    def own_norm(group: Any) -> torch.Tensor:
        return group[0].dep.target.module.weight.flatten(1).norm(dim=1)

    theirs, ours = copy.deepcopy(original), copy.deepcopy(original)
    host = host_pruner(theirs, own_norm, pruning_ratio=0.6, iterative_steps=2, ignored_layers=[theirs[3]])
    pruner = fpt.FairPruner(ours, IMAGE, own_norm, pruning_ratio=0.6, iterative_steps=2, round_to=None)
    for _ in range(2):
        host.step()
        pruner.step()
    said = sorted({i for _, _, gone in host.pruning_history() for i in gone})
    assert not torch.equal(theirs[0].weight, original[0].weight[[i for i in range(20) if i not in said]])
    kept = pruner.history().kept("0")
    assert kept is not None
    assert torch.equal(ours[0].weight, original[0].weight[list(kept)])


def test_a_pruned_model_is_reloaded_without_pickling_it() -> None:
    """TP#139, TP#51, TP#29: weights of a pruned model fit no model that can be built, and pickles are refused."""
    model = build("residual")
    pruner = fpt.FairPruner(model, IMAGE, magnitude, pruning_ratio=0.5, round_to=None)
    pruner.step()
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(whole, weights_only=True)
    fresh = build("residual", seed=5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(model.state_dict())
    told = json.loads(json.dumps(pruner.history().as_dict()))
    fpt.replay(fresh, fpt.PruningHistory.from_dict(told), IMAGE)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_ranks_with_data_of_their_own_prune_the_same_units() -> None:
    """TP#252, TP#281: each rank ranks by its own gradients; two real processes are in ``test_distributed``."""
    shards = [faces(seed=1), faces(seed=2)]
    left = []
    for shard in shards:
        model = build("plain")
        sample_loss(model(shard["inputs"]), shard["targets"]).mean().backward()
        pruner = host_pruner(model, tp.importance.GroupTaylorImportance(), ignored_layers=[model.fc])
        pruner.step()
        left.append(pruner.pruning_history())
    assert left[0] != left[1]
    kept = []
    for rank in (0, 1):
        model, importance = build("plain"), fpt.GroupBalancedTaylorImportance()
        pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None)
        own, other = (
            importance.collect(pruner, [shards[r]], sample_loss, groups="group", progress=False)
            for r in (rank, 1 - rank)
        )
        assert own is not None
        assert other is not None
        importance.use(pruner.gate_plan(), own.merged(other))
        pruner.step()
        kept.append({name: g.kept for name, g in pruner.history().groups.items()})
    assert kept[0] == kept[1]


def test_pruning_does_not_drive_convolutions_out_of_the_fast_layout(tmp_path: Path) -> None:
    """TP#38, TP#22, TP#149: fewer MACs and no less time, because odd widths leave ONNX Runtime's fast layout."""

    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            conv_bn(3, 48), nn.ReLU(), conv_bn(48, 64), nn.ReLU(), conv_bn(64, 64), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(64, CLASSES),
        ).eval()  # fmt: skip

    fast = {}
    for whose in ("host", "ours"):
        model = net()
        if whose == "host":
            host_pruner(model, magnitude, pruning_ratio=0.45, ignored_layers=[model[-1]]).step()
        else:
            fpt.FairPruner(model, IMAGE, magnitude, pruning_ratio=0.45).step()
        file = tmp_path / f"{whose}.onnx"
        export(model, torch.randn(2, 3, 16, 16), file)
        fast[whose] = fast_layout(file)
    assert fast["ours"].total == fast["host"].total == 3
    assert fast["ours"].fast == 3
    assert fast["host"].fast < 3
