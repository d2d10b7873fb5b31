"""SCP's channel sensitivity: the soft nearest neighbour loss against loops over pairs of people, on the maps that the
first consumer reads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria.taylor import NO_GROUPS
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.statistics import GateStatistics, collect, collect_fisher, collect_snnl
from fair_prune_plugins.statistics import snnl as snnl_module
from fair_prune_plugins.statistics.snnl import NOBODY_COMPARED
from fair_prune_plugins.statistics.units import BAD_TEMPERATURE
from integration_tests.grouped_people import planned
from integration_tests.networks import NETWORKS, build
from integration_tests.pruning_oracles import Snapshot, faces, host_pruner, removed_roots, sample_loss, unit_statistics

Batch = dict[str, Any]


def person_terms(maps: list[torch.Tensor], codes: list[int], temperature: float) -> dict[int, float]:
    """Each compared person's term for one unit, pair by pair; ``maps`` are the people's flat feature maps."""

    def distance(i: int, j: int) -> float:
        a, b = maps[i].double(), maps[j].double()
        if len(a) == 1:
            n = len(maps)
            pairs = [float((maps[k] - maps[m]) ** 2) for k in range(n) for m in range(n) if k != m]
            mean = sum(pairs) / len(pairs)
            return float((a - b) ** 2) / mean if mean else 0.0
        norms = float(a.norm() * b.norm())
        return 1 - (float(a @ b) / norms if norms else 0.0)

    terms = {}
    for i, code in enumerate(codes):
        others = [j for j in range(len(codes)) if j != i]
        same = [j for j in others if codes[j] == code]
        if not same or len(same) == len(others):
            continue
        above = sum(math.exp(-distance(i, j) / temperature) for j in same)
        below = sum(math.exp(-distance(i, j) / temperature) for j in others)
        terms[i] = -math.log(above / below)
    return terms


def read_by(model: nn.Module, path: str, x: torch.Tensor) -> torch.Tensor:
    """What a module reads."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda m, a: seen.append(a[0].detach().clone()))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def measured(plan: GatePlan, loader: Any, **options: Any) -> GateStatistics:
    return collect_snnl(plan, loader, **{"groups": "group", "progress": False, **options})


def loss_of(statistics: GateStatistics, name: str) -> torch.Tensor:
    found = statistics.of(name).snnl
    assert found is not None
    return found


# network: root layer -> (where its units are read first, dimension of channels, channels of unit u)
FIRST: dict[str, dict[str, tuple[str, int, Any]]] = {
    "plain": {
        "body.0.0": ("body.2.0", 1, lambda u: [u]),
        "body.2.0": ("body.4.0", 1, lambda u: [u]),
        "body.4.0": ("fc", -1, lambda u: [u]),  # averaged over positions: single numbers
    },
    "residual": {
        "blocks.0.conv2.0": ("blocks.0.conv1.0", 1, lambda u: [u]),  # the trunk, read first by the first block
        "blocks.1.conv1.0": ("blocks.1.conv2.0", 1, lambda u: [u]),
        "blocks.2.conv2.0": ("blocks.2.conv1.0", 1, lambda u: [u]),
    },
    "conv groups": {"grouped.0": ("expand.0", 1, lambda u: [u, u + 4, u + 8, u + 12])},
    "flatten": {"conv3": ("fc1", -1, lambda u: range(16 * u, 16 * u + 16))},
    "attention, separate": {
        "blocks.0.attn.proj[in]": ("blocks.0.attn.proj", -1, lambda u: [u + 4 * h for h in range(4)]),
        "blocks.0.fc1": ("blocks.0.fc2", -1, lambda u: [u]),
    },
}


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("network", FIRST)
def test_it_is_the_loop_over_pairs_on_what_the_first_consumer_reads(network: str, temperature: float) -> None:
    plan = planned(network)
    data = faces(11, dtype=torch.float64)
    codes = data["group"].tolist()
    batch = {**data, "group": [None if n == 4 else f"group {c}" for n, c in enumerate(codes)]}
    known = [n for n in range(11) if n != 4]
    found = measured(plan, [batch], temperature=temperature)
    for root, (path, dim, channels_of) in FIRST[network].items():
        group = next(g for g in plan.prunable if root in (g.name, *(s.path for s in g.producers)))
        x = read_by(plan.model, path, data["inputs"]).movedim(dim, 1)
        values = loss_of(found, group.name)
        for unit in (0, 1, group.units.size - 1):
            maps = [x[n, list(channels_of(unit))].flatten() for n in known]
            terms = person_terms(maps, [codes[n] for n in known], temperature)
            assert len(terms) == len(known)
            expected = sum(terms.values()) / len(terms)
            assert float(values[unit]) == pytest.approx(expected, rel=1e-9), (root, unit)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_unit_of_every_structure_is_read(network: str) -> None:
    plan = planned(network)
    found = measured(plan, [faces(12, dtype=torch.float64)])
    assert found.snnl is not None
    assert set(found.columns) == set(plan.units)
    assert torch.equal(found.snnl[1], torch.full_like(found.snnl[1], 12.0))
    assert torch.isfinite(found.snnl).all()


def test_a_unit_that_tells_groups_apart_is_lowest_and_goes_first() -> None:
    """Two patterns, one per group, are put into one channel; all others are noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, 1:] = torch.randn(8, 2, 1, 1)
        model[0].weight[5] = torch.tensor([1.0, 0.1, 0.0])[:, None, None]
    patterns = torch.randn(2, 8, 8)
    codes = torch.arange(24) % 2
    x = torch.randn(24, 3, 8, 8)
    x[:, 0] = patterns[codes]
    importance = fpt.SNNLImportance()
    pruner = fpt.FairPruner(model, x[:1], importance, pruning_ratio=1 / 8, round_to=None, ignored_layers=[model[1]])
    importance.collect(pruner, [{"x": x, "y": codes, "group": codes}], groups="group", progress=False)
    pruner.step()
    assert removed_roots(pruner) == {"0": {5}}


def test_without_the_person_themselves_above_and_below() -> None:
    """The paper's code counts i among its own neighbours above the line only."""
    features, codes = torch.randn(1, 6, 5, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])
    found = snnl_module.soft_nearest_neighbours(features, codes, 1.0)[0]
    for i, term in person_terms(list(features[0]), codes.tolist(), 1.0).items():
        assert float(found[i]) == pytest.approx(term, rel=1e-12)
        assert float(found[i]) > 0  # the share of one's own group is below 1
    assert found.isnan().tolist() == [False] * 5 + [True]  # nobody else of group 2


def test_dead_units_tell_nothing() -> None:
    """They see everyone alike, so the loss is that of chance."""
    codes = torch.tensor([0, 0, 0, 1, 1])
    chance = torch.tensor([math.log(4 / 2)] * 3 + [math.log(4 / 1)] * 2, dtype=torch.float64)
    for size in (1, 7):
        dead = torch.zeros(2, 5, size, dtype=torch.float64)
        torch.testing.assert_close(snnl_module.soft_nearest_neighbours(dead, codes, 0.5), chance.expand(2, 5))


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_the_scale_of_a_map_does_not_matter(scale: float) -> None:
    codes = torch.arange(8) % 3
    for size in (1, 6):
        features = torch.randn(3, 8, size, dtype=torch.float64)
        plain, scaled = (snnl_module.soft_nearest_neighbours(f, codes, 1.0) for f in (features, features * scale))
        torch.testing.assert_close(plain, scaled)


def test_batches_are_weighted_by_the_people_who_were_compared() -> None:
    plan = planned("plain")
    data = faces(20, dtype=torch.float64)
    cuts = [slice(0, 9), slice(9, 11), slice(11, 20)]
    data["group"][9:11] = 0  # a batch of one group: nobody is compared
    parts = [{k: v[cut] for k, v in data.items()} for cut in cuts]
    whole = measured(plan, parts)
    one, _, three = (measured(plan, [part], allow_empty=True) for part in parts)
    assert one.snnl is not None
    assert three.snnl is not None
    total = one.snnl + three.snnl
    assert whole.snnl is not None
    torch.testing.assert_close(whole.snnl, total)
    torch.testing.assert_close(one.merged(three).snnl, total)
    first, size = whole.columns["body.0.0"]
    torch.testing.assert_close(loss_of(whole, "body.0.0"), (total[0] / total[1])[first : first + size])
    assert torch.equal(total[1], torch.full_like(total[1], 18.0))
    assert sum(whole.counts.values()) == 20


def test_sample_weights_weight_the_mean() -> None:
    plan, data = planned("plain"), faces(9, dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 2.5] * 3)
    found = measured(plan, [{**data, "w": weight}], weights="w")
    maps = read_by(plan.model, "body.2.0", data["inputs"])[:, 4].flatten(1)
    terms = person_terms(list(maps), data["group"].tolist(), 1.0)
    expected = sum(float(weight[n]) * t for n, t in terms.items()) / float(weight.sum())
    assert float(loss_of(found, "body.0.0")[4]) == pytest.approx(expected, rel=1e-9)


def test_ranks_of_a_distributed_run_keep_it(tmp_path: Path) -> None:
    plan, data = planned("plain"), faces(9, dtype=torch.float64)
    both = replace(
        measured(plan, [data]), fisher=collect_fisher(plan, [data], sample_loss, groups="group", progress=False).fisher
    )
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        reduced = both.all_reduced()
    finally:
        dist.destroy_process_group()
    for name in ("snnl", "fisher"):
        assert torch.equal(getattr(reduced, name), getattr(both, name))
    assert not reduced.gates


def test_few_pairs_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = planned("conv groups"), faces(9, dtype=torch.float64)
    whole = measured(plan, [data])
    monkeypatch.setattr(snnl_module, "AT_A_TIME", 1)
    again = measured(plan, [data])
    assert whole.snnl is not None
    assert again.snnl is not None
    torch.testing.assert_close(again.snnl, whole.snnl, rtol=1e-12, atol=0)


def test_the_model_stays_as_it_was_and_needs_no_targets() -> None:
    model = build("squeeze-excite").train()
    x = torch.randn(8, 3, 16, 16)
    model(x).square().sum().backward()
    plan, before = build_plan(model, x), Snapshot.of(model)
    measured(plan, [{"inputs": x, "group": [0, 1] * 4}])
    assert Snapshot.of(model) == before
    assert not any(m._forward_pre_hooks for m in model.modules())


# --- what it is used through ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_importance_asks_for_what_it_needs_by_itself(temperature: float) -> None:
    model, batch = build("plain"), faces(14)
    importance = fpt.SNNLImportance(temperature=temperature)
    pruner = host_pruner(model, importance, pruning_ratio=0.5, ignored_layers=[model.fc])
    with pytest.raises(InputError, match="pass groups="):
        importance.collect(pruner, [batch], progress=False)
    with pytest.raises(InputError, match="needs data"):
        importance.collect(pruner, groups="group", progress=False)
    found = importance.collect(pruner, [batch], groups="group", progress=False)
    assert found is not None
    assert not found.gates
    model.eval()
    expected = {}
    for root, path in (("body.0.0", "body.2.0"), ("body.2.0", "body.4.0")):
        x = read_by(model, path, batch["inputs"])
        losses = []
        for unit in range(x.shape[1]):
            terms = person_terms(list(x[:, unit].flatten(1)), batch["group"].tolist(), temperature)
            losses.append(sum(terms.values()) / len(terms))
        expected[root] = set(torch.tensor(losses).argsort()[: len(losses) // 2].tolist())
    pruner.step()
    removed = removed_roots(pruner)
    assert {root: removed[root] for root in expected} == expected


def test_scores_need_their_own_statistics_and_groups() -> None:
    s, codes = torch.randn(8, 5), torch.arange(8) % 2
    with pytest.raises(ScoreError, match=r"are of gates: collect with fair_prune_plugins\.statistics\.collect_snnl"):
        criteria.snnl(unit_statistics(s, codes, 2))
    with pytest.raises(ScoreError) as raised:
        criteria.snnl(unit_statistics(s, torch.full((8,), -1), 0))
    assert str(raised.value) == NO_GROUPS
    plan, data = planned("plain"), faces(6, dtype=torch.float64)
    alone = measured(
        plan, [{k: v[:1] for k, v in data.items()}, {k: v[1:2] for k, v in data.items()}], allow_empty=True
    )
    with pytest.raises(ScoreError, match="not finite"):
        criteria.snnl(alone.of("body.0.0"))
    with pytest.raises(ScoreError, match=r"are of feature maps: collect with .*\.collect"):
        criteria.taylor(alone.of("body.0.0"))


def test_data_in_which_nobody_can_be_compared_are_refused() -> None:
    plan, data = planned("plain"), faces(6, dtype=torch.float64)
    with pytest.raises(InputError) as raised:
        measured(plan, [{k: v[n : n + 1] for k, v in data.items()} for n in range(6)])
    assert str(raised.value) == NOBODY_COMPARED
    with pytest.raises(InputError, match="the loader yielded no sample"):
        measured(plan, [])
    with pytest.raises(InputError, match="every group is unknown"):
        measured(plan, [{**data, "group": [None] * 6}])
    infinite = data["inputs"] * math.inf
    with pytest.raises(InputError, match=r"reads is not finite on batch 0"):
        measured(plan, [{**data, "inputs": infinite}])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, "1"])
def test_a_temperature_that_makes_no_sense_is_refused_before_any_data(temperature: Any) -> None:
    with pytest.raises(InputError) as raised:
        fpt.SNNLImportance(temperature=temperature)
    assert str(raised.value) == BAD_TEMPERATURE.format(got=temperature)
    with pytest.raises(InputError, match="temperature must be"):
        measured(planned("plain"), [], temperature=temperature)


def test_it_is_kept(tmp_path: Path) -> None:
    plan, data = planned("plain"), faces(9, dtype=torch.float64)
    found = measured(plan, [data])
    found.save(tmp_path / "snnl.npz")
    loaded = GateStatistics.load(tmp_path / "snnl.npz")
    assert torch.equal(loss_of(loaded, "body.2.0"), loss_of(found, "body.2.0"))
    turned = found.rearranged(("2", "0", "1", "new"))
    assert torch.equal(loss_of(turned, "body.2.0"), loss_of(found, "body.2.0"))
    gates = collect(plan, [data], sample_loss, groups="group", progress=False)
    with pytest.raises(InputError, match="one of these statistics has the states of gates"):
        found.merged(gates)
