"""AutoBot: the budget and its penalty, what is left of the model, the performance-weighted arm, resuming."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, ScoreError, UnsupportedModelError
from fair_prune_plugins.learned_gates import AutoBotPruner, AutoBotSettings
from fair_prune_plugins.learned_gates.autobot import budget_term
from fair_prune_plugins.losses import GroupBalancedCrossEntropy, PerformanceWeightedLoss
from integration_tests.gate_oracles import error
from integration_tests.networks import CLASSES, BasicBlock, build, conv_bn
from integration_tests.pruning_oracles import Snapshot, faces

IMAGE = torch.zeros(2, 3, 16, 16)


class WideResidual(nn.Module):
    """Wide enough that the MACs of single channels are below a hundredth of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 24)
        self.blocks = nn.Sequential(BasicBlock(24, 24, 1), BasicBlock(24, 40, 2), BasicBlock(40, 40, 1))
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return WideResidual().eval()


def batches(samples: int = 24) -> list[dict[str, Any]]:
    whole = faces(samples, 3)
    return [{k: v[i : i + 8] for k, v in whole.items()} for i in range(0, samples, 8)]


def host_macs(model: nn.Module) -> float:
    return float(tp.utils.count_ops_and_params(model, IMAGE[:1])[0])


def test_the_budget_s_penalty_is_1_at_the_dense_network_0_at_the_target_and_1_at_nothing() -> None:
    for macs, expected in ((100.0, 1.0), (65.0, 0.5), (30.0, 0.0), (15.0, 0.5), (0.0, 1.0)):
        assert float(budget_term(torch.tensor(macs), 30.0, 100.0)) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("make", [wide, lambda: build("mobilenet-v2")])
def test_it_meets_its_budget_and_keeps_the_largest_gates_and_one_unit_of_each_layer(make: Any, share: float) -> None:
    model = make()
    dense = host_macs(model)
    target, settings = fpt.CostTarget(macs=share), AutoBotSettings(iterations=30)
    pruner = AutoBotPruner(model, IMAGE, target=target, settings=settings, round_to=None)
    report = pruner.fit(batches(), F.cross_entropy, progress=False)
    gates = {n: v.detach().clone() for n, v in pruner.gates.by_unit_set().items()}
    assert len(report.losses) == len(report.macs) == 30
    assert report.best > 18
    assert abs(report.macs[report.best - 1] - share) < abs(report.macs[0] - share)
    original = copy.deepcopy(model)
    rows = {r.name: r for r in pruner.step().widths}
    reached = host_macs(model) / dense
    assert reached <= share
    assert all(r.kept >= 1 for r in rows.values())
    replayed = copy.deepcopy(original)
    fpt.replay(replayed, pruner.history(), IMAGE)
    assert all(
        torch.equal(a, b) for a, b in zip(replayed.state_dict().values(), model.state_dict().values(), strict=True)
    )
    kept = {n: largest(gates[n], rows[n].kept) for n in gates}
    closed = torch.cat([gates[n][~k] for n, k in kept.items()])
    free = torch.cat([gates[n][k] for n, k in kept.items() if rows[n].kept > 1])
    if make is wide:  # fine enough for one threshold to meet the budget but for single units
        assert reached >= 0.99 * share
        assert float((free < closed.max()).double().mean()) < 0.05


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[values.argsort(descending=True)[:count]] = True
    return kept


def test_only_the_step_changes_the_model_and_the_survivors_are_the_dense_ones_with_every_loss() -> None:
    losses: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (F.cross_entropy, {}),
        "per sample": (nn.CrossEntropyLoss(reduction="none"), {}),
        "balanced": (GroupBalancedCrossEntropy(groups=["0", "1", "2"]), {"groups": "group"}),
        "weighted": (PerformanceWeightedLoss(build("residual"), theta=0.3), {}),
        "normalised": (PerformanceWeightedLoss(build("residual"), theta=0.3, normalise=True), {}),
    }
    learned, reports = {}, {}
    for name, (loss, options) in losses.items():
        model = build("residual").train()
        model.stem.eval()
        before = Snapshot.of(model)
        settings = AutoBotSettings(iterations=6, learning_rate=0.3)
        pruner = AutoBotPruner(model, IMAGE, target=fpt.CostTarget(macs=0.4), settings=settings, round_to=None)
        reports[name] = pruner.fit(batches(), loss, progress=False, **options)
        assert Snapshot.of(model) == before
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        learned[name] = pruner.gates.scores.detach().clone()
        pruner.step()
        replayed = build("residual").train()
        fpt.replay(replayed, pruner.history(), IMAGE)
        assert all(torch.equal(a, b) for a, b in zip(replayed.parameters(), model.parameters(), strict=True))
    assert torch.equal(learned["plain"], learned["per sample"])
    for one, other in itertools.combinations(("plain", "balanced", "weighted", "normalised"), 2):
        assert not torch.equal(learned[one], learned[other])
    # Weights of at most 1 make the data count less beside the budget, unless they are normalised.
    assert reports["weighted"].losses[0] < 0.95 * reports["plain"].losses[0]


def test_folded_survivors_compute_what_the_gated_network_did_without_the_closed() -> None:
    model = wide().double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    settings = AutoBotSettings(iterations=15, weights="folded")
    pruner = AutoBotPruner(model, IMAGE.double(), target=fpt.CostTarget(macs=0.4), settings=settings, round_to=None)
    pruner.fit(batches(), F.cross_entropy, progress=False)
    dense = copy.deepcopy(model)
    gates, values = pruner.gates, pruner.gates.values().detach().clone()
    by_name = gates.by_unit_set(values)
    sites = gates.sites
    # A step that fails puts the weights back.
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner.max_pruning_ratio = 0.0
    with pytest.raises(UnsupportedModelError, match="cannot be reached"):
        pruner.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    pruner.max_pruning_ratio = 1.0
    report = pruner.step()
    kept = gates.joined({r.name: largest(by_name[r.name], r.kept) for r in report.widths})
    with torch.no_grad():
        found = model(x)
        object.__setattr__(gates.plan, "model", dense)
        assert gates.sites is sites
        with gates.attached(), gates.using(values * kept):
            assert error(found, dense(x)) < 1e-12
        assert error(found, dense(x)) > 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    def start() -> tuple[AutoBotPruner, DataLoader[Any]]:
        people = faces(20, 2)
        data = TensorDataset(people["inputs"], people["targets"])
        pruner = AutoBotPruner(
            build("residual"),
            IMAGE,
            target=fpt.CostTarget(macs=0.5),
            settings=AutoBotSettings(iterations=14),
            round_to=None,
        )
        return pruner, DataLoader(data, batch_size=6, shuffle=True)

    whole, loader = start()
    states: list[dict[str, Any]] = []
    report = whole.fit(loader, F.cross_entropy, progress=False, checkpoint=states.append, checkpoint_every=5)
    assert [s["step"] for s in states] == [5, 10]
    for state in states:
        torch.save(state, tmp_path / "state.pt")
        resumed, loader = start()
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert resumed.fit(loader, F.cross_entropy, progress=False) == report
        assert torch.equal(resumed.gates.scores, whole.gates.scores)
    other = AutoBotPruner(build("plain"), IMAGE, target=fpt.CostTarget(macs=0.5), round_to=None)
    other.load_state_dict(states[0])
    with pytest.raises(InputError, match="another model"):
        other.fit(loader, F.cross_entropy, progress=False)
    short, _ = start()
    short.load_state_dict(states[1])
    with pytest.raises(InputError, match="fewer than the 2 batches"):
        short.fit([next(iter(loader))], F.cross_entropy, progress=False)


def test_what_it_cannot_do_is_refused() -> None:
    for target in (fpt.CostTarget(params=0.5), None):
        with pytest.raises(InputError, match="CostTarget\\(macs"):
            AutoBotPruner(build("plain"), IMAGE, target=target)  # type: ignore[arg-type]
    for options in ({"isomorphic": True}, {"prune_head_dims": False}, {"prune_num_heads": True}):
        with pytest.raises(InputError, match=next(iter(options))):
            AutoBotPruner(build("plain"), IMAGE, target=fpt.CostTarget(macs=0.5), **options)
    pruner = AutoBotPruner(build("plain"), IMAGE, target=fpt.CostTarget(macs=0.5))
    with pytest.raises(ScoreError, match="not learned"):
        pruner.step()
    assert pruner.state_dict() is None
    with pytest.raises(InputError, match="checkpoint_every"):
        pruner.fit(batches(), F.cross_entropy, checkpoint_every=0)
    bad: list[dict[str, Any]] = [
        {"learning_rate": 0.0}, {"beta": -1.0}, {"iterations": 0}, {"initial": 1.0}, {"settled": 1.0},
        {"weights": "old"},
    ]  # fmt: skip
    for settings in bad:
        with pytest.raises(InputError):
            AutoBotSettings(**settings)
