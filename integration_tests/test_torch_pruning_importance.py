"""The importance classes inside the host's own pruners: which units go, staleness, the drop-in, registration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

import fair_prune_plugins.torch_pruning
from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, ScoreError, StaleStatisticsError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.statistics import GateStatistics
from fair_prune_plugins.statistics import collect as measure
from fair_prune_plugins.torch_pruning.importances import NO_EXAMPLE, NO_LOADER, SKIPPED, STALE
from fair_prune_plugins.torch_pruning.planning import HAS_ITS_OWN, HOST_LAYER_NORM
from fair_prune_plugins.torch_pruning.registration import TAKEN
from integration_tests.networks import NETWORKS, build, heads_of
from integration_tests.pruning_oracles import (
    Tap,
    faces,
    gate_derivatives,
    host_pruner,
    literal_greedy,
    per_person,
    removed_roots,
    sample_loss,
)

IMAGE = torch.zeros(1, 3, 16, 16)

NORM_FREE = [n for n in NETWORKS if n not in ("layernorm (convnext)", "rmsnorm") and "ttention" not in n]
"""Networks whose norms the host prunes rightly."""


def collect(importance: fpt.FairImportance, pruner: Any, batch: dict[str, Any] | None = None, **options: Any) -> None:
    options = {"groups": "group", "progress": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this pruner removes LayerNorm")
        importance.collect(pruner, [batch or faces()], sample_loss, **options)


def classifier(model: nn.Module) -> list[nn.Module]:
    return list(model.children())[-1:]


# --- fairgrape removes what the paper's greedy does not keep, at the level of units ---------------------------------

# root layer: (channels, over how many conv groups, norm groups or heads they repeat, where the units are measured)
UNITS: dict[str, dict[str, tuple[int, int, list[Tap]]]] = {
    "plain": {
        "body.0.0": (12, 1, [Tap("body.2.0")]),
        "body.2.0": (16, 1, [Tap("body.4.0")]),
        "body.4.0": (10, 1, [Tap("fc", last=True)]),
    },
    "conv groups": {
        "grouped.0": (16, 4, [Tap("expand.0")]),
        "reduce.0": (16, 4, [Tap("grouped.0")]),
        "expand.0": (8, 1, [Tap("reduce.0"), Tap("fc", last=True)]),
    },
    "groupnorm": {
        "conv2": (12, 3, [Tap("conv2"), Tap("conv3")]),
        "conv3": (10, 1, [Tap("fc", last=True)]),
    },
    "attention, separate": {
        f"blocks.{i}.attn.proj": (
            16,
            4,
            [Tap(f"blocks.{i}.attn.proj", last=True), Tap(f"blocks.{i}.attn.q", True, True)],
        )
        for i in range(2)
    },
}


@pytest.mark.parametrize("through", ["FairPruner", "BasePruner"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("network", UNITS)
def test_the_units_that_go_are_those_the_literal_greedy_leaves(network: str, ratio: float, through: str) -> None:
    model = build(network).double()
    batch = faces(24, dtype=torch.float64)
    measured = {root: gate_derivatives(model, batch, taps) for root, (_, _, taps) in UNITS[network].items()}
    importance = fpt.FairGRAPEImportance()
    heads = heads_of(model)
    options: dict[str, Any] = {
        "pruning_ratio": ratio,
        "ignored_layers": classifier(model),
        "num_heads": heads,
        "prune_num_heads": bool(heads),
        "head_pruning_ratio": 0.5 if heads else 0.0,
    }
    if through == "FairPruner":
        pruner: Any = fpt.FairPruner(model, batch["inputs"][:1], importance, round_to=None, **options)
    else:
        pruner = host_pruner(model, importance, **options)
    collect(importance, pruner, batch)
    pruner.step()
    removed = removed_roots(pruner)
    for root, (channels, repeat, _) in UNITS[network].items():
        size = channels // repeat

        def dropped(s: torch.Tensor, kept: int) -> set[int]:
            table = per_person(s.square(), batch["group"]).tolist()
            return set(range(s.shape[1])) - literal_greedy(table, kept)

        layout = measured[root].reshape(-1, repeat, size)
        units = dropped(layout.sum(1), math.floor(size * (1 - ratio) + 1e-9))
        expected = {c for c in range(channels) if c % size in units}
        if root.endswith("attn.proj"):
            whole = dropped(layout.sum(2), 2)
            assert len(whole) == 2
            expected |= {c for c in range(channels) if c // size in whole}
        assert removed[root] == expected
    if through == "BasePruner":  # which leaves the attention modules' own attributes to its users
        for m in model.modules():
            if hasattr(m, "num_heads"):
                m.num_heads = pruner.num_heads[m.q]
    assert torch.isfinite(model(batch["inputs"])).all()


def test_scores_by_channel_would_select_other_units() -> None:
    """Why the test above is about units: squares taken channel by channel and then averaged rank otherwise."""
    model = build("attention, separate").double()
    differ = 0
    for seed in range(20):
        batch = faces(24, seed=seed, dtype=torch.float64)
        for root, (channels, repeat, taps) in UNITS["attention, separate"].items():
            s = gate_derivatives(model, batch, taps).reshape(-1, repeat, channels // repeat)
            by_unit = per_person(s.sum(1).square(), batch["group"])
            by_channel = per_person(s.square().sum(1), batch["group"])
            assert by_unit.shape == by_channel.shape, root
            differ += literal_greedy(by_unit.tolist(), 2) != literal_greedy(by_channel.tolist(), 2)
    assert differ > 4


@pytest.mark.parametrize("name", ["taylor", "group_balanced_taylor", "worst_group_taylor"])
@pytest.mark.parametrize("network", UNITS)
def test_taylor_scores_are_the_units_own(network: str, name: str) -> None:
    model, batch = build(network).double(), faces(24, dtype=torch.float64)
    importance = fpt.importance(name)
    plan = build_plan(model, batch["inputs"], num_heads=heads_of(model))
    importance.use(plan, measure(plan, [batch], sample_loss, groups="group", progress=False))
    found = {g.root: g for g in plan.groups}
    for root, (channels, repeat, taps) in UNITS[network].items():
        s = gate_derivatives(model, batch, taps).reshape(-1, repeat, channels // repeat).sum(1).abs()
        by_group = per_person(s, batch["group"])
        expected = {"taylor": s.mean(0), "group_balanced_taylor": by_group.mean(0)}.get(name, by_group.amax(0))
        scores = importance.root_scores(found[root])
        torch.testing.assert_close(scores, expected.repeat(repeat), rtol=1e-9, atol=1e-12)


# --- magnitude against the host's -----------------------------------------------------------------------------------

COMPARABLE = [
    "plain", "residual", "pre-activation", "densenet", "transposed convolution", "attention, fused",
    "attention, separate", "convolution flattened to linear",
]  # fmt: skip


@pytest.mark.parametrize("network", COMPARABLE)
def test_magnitude_is_the_hosts_group_norm(network: str) -> None:
    """Where no member is a depthwise or grouped convolution, or ``nn.MultiheadAttention``: the host leaves depthwise
    weights and attention out, and lumps the inputs of all conv groups together. And where no layer loses rows and
    columns at once (as in the residual blocks of "groupnorm" and "rmsnorm"): the host counts what is in both twice."""
    if network in NETWORKS:
        model = build(network)
    else:
        model = nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 7), nn.Linear(7, 5))
    importance = fpt.MagnitudeImportance()
    pruner = fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), importance, num_heads=heads_of(model), round_to=None)
    importance.collect(pruner)
    host = tp.importance.GroupMagnitudeImportance(
        p=2, group_reduction="sum", normalizer=None, target_types=[nn.modules.conv._ConvNd, nn.Linear]
    )
    compared = 0
    for group in pruner.DG.get_all_groups(root_module_types=pruner.root_module_types):
        attention, _ = pruner._is_atten_group(group)
        if attention:
            group = pruner._downstream_node_as_root_if_attention(group)
        if group[0].dep.target.module in classifier(model):
            continue
        ours = importance(group)
        repeat = pruner._get_channel_groups(group)
        theirs = host(group).view(repeat, -1).sum(0).sqrt().repeat(repeat).double()
        torch.testing.assert_close(ours, theirs / theirs.mean(), rtol=1e-5, atol=1e-6)
        compared += 1
    assert compared == len(pruner.gate_plan().prunable)


def test_magnitude_counts_depthwise_weights_which_the_host_leaves_out() -> None:
    model = build("mobilenet-v2")
    importance = fpt.MagnitudeImportance()
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, 16, 16))
    block = model.blocks[0]
    group = graph.get_pruning_group(block.expand[0], tp.prune_conv_out_channels, list(range(24)))
    squares = [
        block.expand[0].weight.square().sum((1, 2, 3)),
        block.depthwise[0].weight.square().sum((1, 2, 3)),
        block.project[0].weight.square().sum((0, 2, 3)),
    ]
    norm = sum(squares).sqrt().double()
    torch.testing.assert_close(importance(group), (norm / norm.mean()).detach(), rtol=1e-6, atol=0)
    host = tp.importance.GroupMagnitudeImportance(
        p=2, group_reduction="sum", normalizer=None, target_types=[nn.modules.conv._ConvNd, nn.Linear]
    )
    torch.testing.assert_close(host(group), (squares[0] + squares[2]).detach())


def test_magnitude_sums_the_weights_of_a_unit_over_conv_groups() -> None:
    model = build("conv groups")
    importance = fpt.MagnitudeImportance()
    graph = tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, 16, 16))
    group = graph.get_pruning_group(model.reduce[0], tp.prune_conv_out_channels, list(range(16)))
    rows = model.reduce[0].weight.square().sum((1, 2, 3))
    columns = torch.zeros(16)
    for out in range(16):
        for inner in range(4):
            columns[4 * (out // 4) + inner] += model.grouped[0].weight[out, inner].square().sum().detach()
    unit = (rows.detach() + columns).reshape(4, 4).sum(0).sqrt().repeat(4).double()
    torch.testing.assert_close(importance(group), unit / unit.mean(), rtol=1e-6, atol=0)


# --- the drop-in ------------------------------------------------------------------------------------------------------


def loader() -> list[dict[str, Any]]:
    batch = faces(24)
    named = [("female", "male", "female", "nonbinary")[g] for g in batch["group"].tolist()]
    return [
        {"image": batch["inputs"][i : i + 8], "label": batch["targets"][i : i + 8], "gender": named[i : i + 8]}
        for i in range(0, 24, 8)
    ]


def test_two_changed_lines_are_enough() -> None:
    model, example_inputs, loss_fn = build("plain"), torch.randn(1, 3, 16, 16), nn.CrossEntropyLoss()
    importance = fair_prune_plugins.torch_pruning.FairGRAPEImportance()
    pruner = tp.pruner.BasePruner(
        model, example_inputs, importance=importance, pruning_ratio=0.5, ignored_layers=[model.fc]
    )
    importance.collect(pruner, loader(), loss_fn, groups="gender", progress=False)
    pruner.step()
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [6, 8, 5]
    assert model(torch.randn(3, 3, 16, 16)).shape == (3, 5)
    assert importance.statistics is not None
    assert importance.statistics.counts == {"female": 18, "male": 6}


@pytest.mark.parametrize("mode", [{}, {"global_pruning": True}, {"global_pruning": True, "isomorphic": True}])
@pytest.mark.parametrize("pruner_class", [tp.pruner.BasePruner, tp.pruner.MetaPruner, tp.pruner.MagnitudePruner])
@pytest.mark.parametrize("criterion", criteria.names())
def test_every_criterion_in_every_pruner_and_mode_step_by_step(
    criterion: str, pruner_class: Any, mode: dict[str, bool]
) -> None:
    model = build("residual")
    importance = fpt.importance(criterion)
    before = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    pruner = pruner_class(
        model, torch.zeros(1, 3, 16, 16), importance, pruning_ratio=0.6, iterative_steps=3, ignored_layers=[model.fc],
        in_channel_groups={}, out_channel_groups={}, num_heads={}, **mode,
    )  # fmt: skip
    widths = [before]
    for _ in range(3):
        importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
        pruner.step()
        widths.append(sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)))
    assert widths == sorted(set(widths), reverse=True)
    assert widths[-1] / before == pytest.approx(0.4, abs=0.12)
    assert torch.isfinite(model(torch.randn(2, 3, 16, 16))).all()


@pytest.mark.parametrize("network", NORM_FREE)
def test_every_network_prunes_in_the_hosts_pruner_as_in_ours(network: str) -> None:
    """The host cuts by the same ranks; at a ratio where its integers are right, the models must be the same."""
    pruned = []
    for own in (False, True):
        model = build(network)
        importance = fpt.importance("group_balanced_taylor")
        options: dict[str, Any] = {"pruning_ratio": 0.5, "ignored_layers": classifier(model)}
        if own:
            pruner: Any = fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), importance, round_to=None, **options)
        else:
            pruner = host_pruner(model, importance, **options)
        collect(importance, pruner)
        pruner.step()
        pruned.append(model.state_dict())
    assert list(pruned[0]) == list(pruned[1])
    for name, tensor in pruned[0].items():
        assert torch.equal(tensor, pruned[1][name]), name


def test_a_plain_model_an_iterator_and_unnamed_groups_will_do() -> None:
    model, batch = build("plain"), faces()
    importance = fpt.TaylorImportance()
    rows = iter([(batch["inputs"], batch["targets"])])
    statistics = importance.collect(model, rows, sample_loss, progress=False)
    assert statistics is importance.statistics
    assert statistics is not None
    assert statistics.counts == {"everyone": 12}
    pruner = host_pruner(model, importance)  # nothing ignored: the output has no score, so the host leaves it alone
    with pytest.warns(UserWarning, match="output of the model") as caught:
        pruner.step()
    assert str(caught[0].message) == SKIPPED.format(
        importance=importance, layer="fc", reason="it is an output of the model"
    )
    assert model(batch["inputs"]).shape == (12, 5)


def test_what_cannot_be_collected_from_is_refused() -> None:
    importance = fpt.TaylorImportance()
    with pytest.raises(InputError) as raised:
        importance.collect(build("plain"))
    assert str(raised.value) == NO_LOADER.format(importance=importance)
    with pytest.raises(InputError, match="got dict"):
        importance.collect({}, [faces()], sample_loss, groups="group")
    with pytest.raises(InputError, match="yielded no batch"):
        importance.collect(build("plain"), [], sample_loss, groups="group")
    with pytest.raises(InputError) as raised:
        fpt.MagnitudeImportance().collect(build("plain"))
    assert str(raised.value) == NO_EXAMPLE


def test_what_a_fair_pruner_has_already_is_refused_not_ignored() -> None:
    importance = fpt.TaylorImportance()
    pruner = fpt.FairPruner(build("plain"), IMAGE, importance, pruning_ratio=0.5)
    for argument, value in (("example_inputs", IMAGE), ("forward_fn", lambda model, inputs: model(inputs))):
        with pytest.raises(InputError) as raised:
            importance.collect(pruner, [faces()], sample_loss, progress=False, **{argument: value})
        assert str(raised.value) == HAS_ITS_OWN.format(pruner="FairPruner", argument=argument)


def test_the_host_is_told_that_its_layer_norm_pruning_is_wrong() -> None:
    model = build("layernorm (convnext)")
    importance = fpt.TaylorImportance()
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    with pytest.warns(UserWarning, match="permutes weights") as caught:
        importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
    assert [str(w.message) for w in caught] == [HOST_LAYER_NORM]


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", criteria.names())
def test_a_partial_group_gets_the_scores_of_its_channels(criterion: str) -> None:
    model = build("conv groups")
    importance = fpt.importance(criterion)
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    if criterion != "magnitude":
        collect(importance, pruner)

    def group(idxs: list[int]) -> Any:
        return pruner.DG.get_pruning_group(model.reduce[0], tp.prune_conv_out_channels, idxs)

    whole = importance(group(list(range(16))))
    assert whole is not None
    assert whole.dtype == torch.float64
    assert whole.shape == (16,)
    for idxs in ([2, 5, 11], [15], [9, 3]):
        assert torch.equal(importance(group(idxs)), whole[idxs])


def test_scores_before_collecting_are_refused() -> None:
    model = build("plain")
    pruner = host_pruner(model, fpt.FairGRAPEImportance(), ignored_layers=[model.fc])
    with pytest.raises(ScoreError, match=r"no statistics yet: call importance\.collect"):
        pruner.step()


def test_statistics_of_another_structure_are_refused_naming_the_layer() -> None:
    model, other = build("plain"), build("residual")
    importance = fpt.TaylorImportance(on_stale="ignore")
    importance.collect(other, [faces()], sample_loss, groups="group", progress=False)
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    with pytest.raises(ScoreError, match=r"coupled group of 'body\.4\.0'"):
        pruner.step()


def test_statistics_that_are_not_finite_are_refused_naming_the_layer() -> None:
    model = build("plain")
    importance = fpt.TaylorImportance()
    pruner = host_pruner(model, importance, ignored_layers=[model.fc])
    collect(importance, pruner)
    assert importance.statistics is not None
    first, _ = importance.statistics.columns["body.2.0"]
    importance.statistics.absolute[0, first + 1] = math.nan
    with pytest.raises(ScoreError, match=r"'body\.2\.0' are not finite \(1 of 16\)"):
        pruner.step()


def test_ranks_of_different_layers_do_not_tie_in_the_hosts_global_ranking() -> None:
    """Equal widths give equal ranks; the host prunes all that tie at its threshold."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(768, 20)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Linear(20, 20)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(20, 5))
    importance = fpt.FairGRAPEImportance()
    pruner = host_pruner(model, importance, ignored_layers=[model[-1]], global_pruning=True, pruning_ratio=0.4125)
    collect(importance, pruner)
    pruner.step()
    kept = [m.out_features for m in model if isinstance(m, nn.Linear)][:-1]
    assert sum(kept) == 47


# --- stale statistics -------------------------------------------------------------------------------------------------


def tuned(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = faces()
    sample_loss(model(batch["inputs"]), batch["targets"]).mean().backward()
    optimizer.step()


def reloaded(model: nn.Module) -> None:
    model.load_state_dict(build("residual", seed=5).state_dict())


def statistics_moved(model: nn.Module) -> None:
    """Weights alone are not the model: a forward in train mode moves the running statistics."""
    model.train()(faces()["inputs"])
    model.eval()


@pytest.mark.parametrize("own", [False, True], ids=["BasePruner", "FairPruner"])
@pytest.mark.parametrize("change", [tuned, reloaded, statistics_moved])
@pytest.mark.parametrize("policy", ["error", "warn", "ignore"])
def test_a_changed_model_needs_new_statistics(policy: Any, change: Callable[[nn.Module], None], own: bool) -> None:
    model = build("residual")
    importance = fpt.TaylorImportance(on_stale=policy)
    pruner = (
        fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), importance, round_to=None)
        if own
        else host_pruner(model, importance, ignored_layers=[model.fc])
    )
    collect(importance, pruner)
    change(model)
    message = STALE.format(importance=importance)
    if policy == "error":
        with pytest.raises(StaleStatisticsError) as raised:
            pruner.step()
        assert str(raised.value) == message
        assert model.blocks[0].conv1[0].out_channels == 10
        return
    if policy == "warn":
        with pytest.warns(UserWarning, match="weights changed") as caught:
            pruner.step()
        assert [str(w.message) for w in caught] == [message]
    else:
        pruner.step()
    assert model.blocks[0].conv1[0].out_channels == 5


@pytest.mark.parametrize("own", [False, True], ids=["BasePruner", "FairPruner"])
@pytest.mark.parametrize("policy", ["error", "warn", "ignore"])
def test_a_second_step_on_old_statistics_is_an_error_that_says_to_collect(policy: Any, own: bool) -> None:
    """Whatever the policy: the old statistics are of other units."""
    model = build("residual")
    importance = fpt.TaylorImportance(on_stale=policy)
    options: dict[str, Any] = {"iterative_steps": 2}
    pruner = (
        fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), importance, round_to=None, **options)
        if own
        else host_pruner(model, importance, ignored_layers=[model.fc], **options)
    )
    collect(importance, pruner)
    pruner.step()
    with pytest.raises((ScoreError, StaleStatisticsError), match=r"[cC]ollect again before this step"):
        pruner.step()
    collect(importance, pruner)
    if own:  # the host counts the failed step as taken
        pruner.step()
        assert model.blocks[0].conv1[0].out_channels == 5


@pytest.mark.parametrize("own", [False, True], ids=["BasePruner", "FairPruner"])
@pytest.mark.parametrize(
    "mode",
    [{}, {"global_pruning": True}, {"global_pruning": True, "isomorphic": True}, {"interactive": True}],
    ids=["local", "global", "isomorphic", "interactive"],
)
def test_an_ordinary_run_raises_no_false_alarm(mode: dict[str, bool], own: bool) -> None:
    model = build("squeeze-excite")
    importance = fpt.FairGRAPEImportance()
    interactive = "interactive" in mode
    options: dict[str, Any] = {"iterative_steps": 3, "pruning_ratio": 0.6, **({} if interactive else mode)}
    pruner = (
        fpt.FairPruner(model, torch.zeros(1, 3, 16, 16), importance, round_to=None, **options)
        if own
        else host_pruner(model, importance, ignored_layers=[model.fc], **options)
    )
    for _ in range(3):
        collect(importance, pruner)
        if interactive:
            for group in pruner.step(interactive=True):
                group.prune()
        else:
            pruner.step()
        tuned(model)
    assert torch.isfinite(model(faces()["inputs"])).all()


def test_the_hosts_loop_over_groups_without_a_pruner_raises_no_false_alarm() -> None:
    model = build("plain")
    importance = fpt.FairGRAPEImportance()
    importance.collect(model, [faces()], sample_loss, groups="group", progress=False)
    graph = tp.DependencyGraph().build_dependency(model, IMAGE)
    for group in graph.get_all_groups(ignored_layers=[model.fc]):
        scores = importance(group)
        assert scores is not None
        group.prune(idxs=torch.argsort(scores)[: len(scores) // 2].tolist())
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [6, 8, 5]


@pytest.mark.parametrize("own", [False, True], ids=["BasePruner", "FairPruner"])
def test_every_step_is_checked_not_only_the_first(own: bool) -> None:
    model = build("residual")
    importance = fpt.TaylorImportance()
    options: dict[str, Any] = {
        "iterative_steps": 2,
        "iterative_pruning_ratio_scheduler": lambda ratio, steps: [0.0, 0.0, ratio],
    }
    pruner = (
        fpt.FairPruner(model, IMAGE, importance, round_to=None, **options)
        if own
        else host_pruner(model, importance, ignored_layers=[model.fc], **options)
    )
    collect(importance, pruner)
    pruner.step()  # removes nothing
    tuned(model)
    with pytest.raises(StaleStatisticsError):
        pruner.step()


def test_statistics_from_a_file_are_checked_as_well(tmp_path: Any) -> None:
    model = build("plain")
    importance = fpt.TaylorImportance()
    statistics = importance.collect(model, [faces()], sample_loss, groups="group", progress=False)
    assert statistics is not None
    statistics.save(tmp_path / "statistics.npz")
    later = fpt.TaylorImportance()
    later.use(build_plan(model, faces()["inputs"]), GateStatistics.load(tmp_path / "statistics.npz"))
    before = model.fc.bias.detach().clone()
    with torch.no_grad():
        model.fc.bias[0] += 1
    with pytest.raises(StaleStatisticsError):
        host_pruner(model, later, ignored_layers=[model.fc]).step()
    with torch.no_grad():
        model.fc.bias.copy_(before)
    host_pruner(model, later, ignored_layers=[model.fc]).step()
    assert model.fc.in_features == 5


# --- by name ----------------------------------------------------------------------------------------------------------


def test_names_options_and_policies_are_strict() -> None:
    for name in criteria.names():
        assert fpt.importance(name).criterion.name == name
        assert isinstance(fpt.importance(name), fpt.FairImportance)
        assert criteria.get(name).needs_data is (name != "magnitude")
    assert isinstance(fpt.importance("fairgrape", target="dense"), fpt.FairGRAPEImportance)
    assert fpt.importance("fairgrape", target="dense").options == {"statistic": "square", "target": "dense"}
    with pytest.raises(InputError, match="Did you mean 'fairgrape'"):
        fpt.importance("fairgrap")
    with pytest.raises(InputError, match="no option 'targets'"):
        fpt.importance("fairgrape", targets="dense")
    with pytest.raises(InputError, match="no option 'statistic'; it takes none"):
        fpt.importance("magnitude", statistic="square")
    with pytest.raises(InputError, match="'error', 'warn' or 'ignore'"):
        fpt.importance("taylor", on_stale="never")  # type: ignore[arg-type]


OURS = {
    "importance": [
        "FairGRAPEImportance", "FairPruneImportance", "GateMagnitudeImportance", "GateTaylorImportance",
        "GroupBalancedTaylorImportance", "RankMixImportance", "SNNLImportance", "WorstGroupTaylorImportance",
    ],
    "pruner": ["FairPruner"],
}  # fmt: skip


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, names in OURS.items():
        for name in names:  # so that monkeypatch takes them away again
            monkeypatch.setattr(getattr(tp, where), name, None, raising=False)
            monkeypatch.delattr(getattr(tp, where), name)


@pytest.mark.usefixtures("_registered")
def test_register_puts_our_names_beside_the_hosts() -> None:
    theirs = tp.importance.MagnitudeImportance, tp.importance.TaylorImportance, tp.pruner.BasePruner
    done = fpt.register()
    assert fpt.register() == done  # again changes nothing
    assert sorted(n.rsplit(".", 1)[1] for n in done) == sorted([*OURS["importance"], *OURS["pruner"]])
    assert (tp.importance.MagnitudeImportance, tp.importance.TaylorImportance, tp.pruner.BasePruner) == theirs
    assert tp.importance.FairGRAPEImportance is fpt.FairGRAPEImportance
    assert tp.importance.GateMagnitudeImportance is fpt.MagnitudeImportance
    assert tp.importance.GateTaylorImportance is fpt.TaylorImportance
    assert tp.pruner.FairPruner is fpt.FairPruner
    for name in OURS["importance"]:
        assert issubclass(getattr(tp.importance, name), tp.importance.Importance)


@pytest.mark.usefixtures("_registered")
def test_register_refuses_to_replace_a_foreign_class_and_then_changes_nothing() -> None:
    tp.pruner.FairPruner = dict
    with pytest.raises(InputError) as raised:
        fpt.register()
    assert str(raised.value) == TAKEN.format(where="pruner", name="FairPruner")
    assert tp.pruner.FairPruner is dict
    for name in OURS["importance"]:
        assert not hasattr(tp.importance, name)


@pytest.mark.parametrize("name", [n for n in criteria.names() if criteria.get(n).needs_groups])
def test_a_fair_criterion_without_groups_is_no_plain_one(name: str) -> None:
    """Everyone in one group would make them plain Taylor, silently."""
    model, x = build("plain"), torch.randn(4, 3, 16, 16)
    pruner = tp.pruner.BasePruner(model, (x,), importance=(score := fpt.importance(name)), ignored_layers=[model.fc])
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(InputError, match="pass groups="):
        score.collect(pruner, [(x, torch.zeros(4, dtype=torch.int64))], loss, progress=False)
    plan = build_plan(model, x)
    score.use(plan, measure(plan, [(x, torch.zeros(4, dtype=torch.int64))], loss, progress=False))
    with pytest.raises(ScoreError, match="name no sensitive group"):
        pruner.step()
