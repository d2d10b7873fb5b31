"""What users of Torch-Pruning complain about, scores and rankings: the host still does it, and ours does not.

Each test has two halves. When the first one fails, the host has mended the defect. Shown elsewhere: norms, shared
dictionaries, the model's mode and frozen layers in ``test_fair_pruner_guards``, scores by conv group in
``test_torch_pruning_importance``, keep counts in ``test_fair_pruner``, structures in
``test_host_complaints_structures``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import ScoreError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.statistics import collect
from integration_tests.networks import CLASSES, build
from integration_tests.pruning_oracles import Tap, faces, gate_derivatives, host_pruner, removed_roots, sample_loss
from integration_tests.test_gates import KINDS, RandomNet

IMAGE = torch.zeros(1, 3, 16, 16)


def random_scores(group: Any) -> torch.Tensor:
    """The same scores for the same width, whoever asks."""
    return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(len(group[0].idxs)))


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def chain(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES),
    ).to(dtype)  # fmt: skip


@torch.no_grad()
def rescaled(model: nn.Sequential) -> nn.Sequential:
    """The same function with other weights; powers of two, so that it is the same to the last bit."""
    first, second = (model[i] for i in (0, 2))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.bias is not None
    first.weight *= 64
    first.bias *= 64
    second.weight /= 64
    return model


# --- scales (TP#498) --------------------------------------------------------------------------------------------------

DATA_CRITERIA = [fpt.TaylorImportance, fpt.GroupBalancedTaylorImportance, fpt.FairGRAPEImportance]


def removed_by(model: nn.Sequential, importance: Any, *, own: bool = True, **options: Any) -> dict[str, set[int]]:
    options = {"pruning_ratio": 0.4, "global_pruning": True, **options}
    x = IMAGE.double()
    if own:
        pruner: Any = fpt.FairPruner(model, x, importance, round_to=None, **options)
        if importance.criterion.needs_data:
            batch = faces(dtype=torch.float64)
            importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    else:
        pruner = host_pruner(model, importance, ignored_layers=[model[-1]], **options)
    pruner.step()
    return removed_roots(pruner)


@pytest.mark.parametrize("criterion", DATA_CRITERIA)
def test_the_scale_of_a_layer_decides_nothing(criterion: Callable[[], fpt.FairImportance]) -> None:
    """TP#498: scores of layers differ in scale, and a global ranking follows the scale, not the function."""
    batch = faces(dtype=torch.float64)
    assert torch.equal(chain()(batch["inputs"]), rescaled(chain())(batch["inputs"]))
    for normalizer in (None, "mean"):
        theirs = [
            removed_by(m, tp.importance.GroupMagnitudeImportance(normalizer=normalizer), own=False)
            for m in (chain(), rescaled(chain()))
        ]
        assert theirs[0] != theirs[1]
    assert removed_by(chain(), criterion()) == removed_by(rescaled(chain()), criterion())


def test_a_floor_keeps_a_layer_that_its_scale_would_empty() -> None:
    """The host skips a layer of which nothing would be left, silently; its ``max_pruning_ratio`` does not help."""
    options: dict[str, Any] = {"pruning_ratio": 0.4, "global_pruning": True}
    importance = tp.importance.GroupMagnitudeImportance(normalizer=None)
    found = {}
    for floor in (1.0, 0.5):
        theirs, ours = rescaled(chain()), rescaled(chain())
        host_pruner(theirs, importance, ignored_layers=[theirs[-1]], max_pruning_ratio=floor, **options).step()
        fpt.FairPruner(ours, IMAGE.double(), importance, max_pruning_ratio=floor, round_to=None, **options).step()
        assert widths(theirs) == [12, 16, 12]
        assert sum(widths(ours)) == 24
        found[floor] = widths(ours)
    assert found[1.0] == [12, 1, 11]
    assert all(k >= n / 2 for k, n in zip(found[0.5], (12, 16, 12), strict=True))


def test_the_maximum_ratio_holds_in_isomorphic_rankings_and_later_steps() -> None:
    """TP#448: the host looks at ``max_pruning_ratio`` before a step only, whatever the ranking."""

    def skewed(group: Any) -> torch.Tensor:
        first = group[0].dep.target.module.in_channels == 12
        return random_scores(group) * (1e-3 if first else 1)

    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 20, 1), nn.ReLU(), nn.Conv2d(20, 20, 1), nn.ReLU(),
            nn.Conv2d(20, 20, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, CLASSES),
        )  # fmt: skip

    options: dict[str, Any] = {
        "pruning_ratio": 0.4, "max_pruning_ratio": 0.5, "global_pruning": True, "isomorphic": True,
        "iterative_steps": 2,
    }  # fmt: skip
    ours, theirs = net(), net()
    pruner = fpt.FairPruner(ours, IMAGE, skewed, round_to=None, **options)
    host = host_pruner(theirs, skewed, ignored_layers=[theirs[-1]], **options)
    for _ in range(2):
        pruner.step()
        host.step()
        assert min(k / n for k, n in zip(widths(ours), (12, 20, 20, 20), strict=True)) >= 0.5
    assert min(k / n for k, n in zip(widths(theirs), (12, 20, 20, 20), strict=True)) < 0.5


def test_ties_at_the_threshold_are_not_all_taken() -> None:
    """The host takes every unit that is not above its threshold; with few distinct scores that is far too many."""

    def coarse(group: Any) -> torch.Tensor:
        return torch.arange(len(group[0].idxs)).div(4, rounding_mode="floor").float()

    ours, theirs = build("plain"), build("plain")
    options: dict[str, Any] = {"pruning_ratio": 0.2, "global_pruning": True}
    fpt.FairPruner(ours, IMAGE, coarse, round_to=None, **options).step()
    host_pruner(theirs, coarse, ignored_layers=[theirs.fc], **options).step()
    assert sum(widths(ours)) == 30  # floor(0.8 * 38)
    assert sum(widths(theirs)) == 26  # all that score zero, four of each layer


# --- gradients --------------------------------------------------------------------------------------------------------


def mobile_with_a_dead_layer() -> nn.Module:
    model = build("mobilenet-v2")
    norm = model.blocks[1].depthwise[1]
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(-1)
    return model


def test_a_dead_layer_goes_first_where_the_host_keeps_it_whole() -> None:
    """TP#303: Taylor on MobileNetV2 gives back layers, or the model, as they were.

    Where all gradients of a layer vanish (nothing behind its ReLU6 is ever active), its scores are zero divided by
    zero. NaN ranks highest, so the one layer that nothing depends on stays whole, and nobody is told.
    """
    batch = faces()
    options: dict[str, Any] = {"pruning_ratio": 0.5, "global_pruning": True}
    theirs = mobile_with_a_dead_layer()
    sample_loss(theirs(batch["inputs"]), batch["targets"]).mean().backward()
    importance = tp.importance.GroupTaylorImportance()
    with pytest.raises(ScoreError, match=r"GroupTaylorImportance gave scores for 'blocks\.1\.\S+' that are not finite"):
        fpt.FairPruner(theirs, IMAGE, importance, round_to=None, **options).step()
    host_pruner(theirs, importance, ignored_layers=[theirs.fc], **options).step()
    assert theirs.blocks[1].depthwise[0].out_channels == 24
    assert sum(widths(theirs)) < sum(widths(mobile_with_a_dead_layer()))
    ours = mobile_with_a_dead_layer()
    own = fpt.TaylorImportance()
    pruner = fpt.FairPruner(ours, IMAGE, own, round_to=None, max_pruning_ratio=1.0, **options)
    own.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    rows = pruner.step().widths
    assert sum(r.kept for r in rows) == sum(r.initial for r in rows) // 2
    assert ours.blocks[1].depthwise[0].out_channels == 1


def test_no_gradients_of_weights_are_needed() -> None:
    """Without a backward pass before it the host's Taylor fails on an attribute of None."""
    model = build("plain")
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'data'"):
        host_pruner(model, tp.importance.GroupTaylorImportance(), ignored_layers=[model.fc]).step()
    with pytest.raises(AttributeError) as raised:
        fpt.FairPruner(model, IMAGE, tp.importance.GroupTaylorImportance(), round_to=None).step()
    assert any("coupled group of 'body.4.0'" in note for note in raised.value.__notes__)  # says at least where
    model.requires_grad_(False)
    importance = fpt.TaylorImportance()
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None)
    with pytest.raises(ScoreError, match=r"no statistics yet: call importance\.collect"):
        pruner.step()
    importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
    pruner.step()
    assert widths(model) == [6, 8, 5]


def test_every_sample_counts() -> None:
    """``accumulate_grad`` stores by parameter and looks up by name: only the last sample's gradient is left."""
    model, batch = build("plain").double(), faces(4, dtype=torch.float64)
    theirs = tp.importance.GroupHessianImportance()
    squares = []
    for i in range(4):
        model.zero_grad()
        sample_loss(model(batch["inputs"][i : i + 1]), batch["targets"][i : i + 1]).sum().backward()
        assert model.fc.weight.grad is not None
        squares.append(model.fc.weight.grad.square())
        theirs.accumulate_grad(model)
    assert torch.equal(theirs._accu_grad[model.fc.weight], squares[-1])
    assert set(theirs._counter.values()) == {1}
    plan = build_plan(model, batch["inputs"])
    found = collect(plan, [batch], sample_loss, groups="group", progress=False)
    first, size = found.columns["body.4.0"]
    expected = gate_derivatives(model, batch, [Tap("fc")]).square()
    torch.testing.assert_close(found.square.sum(0)[first : first + size], expected.sum(0))
    assert not torch.allclose(expected.sum(0), expected[-1])


def test_batch_norm_counts_in_taylor() -> None:
    """The host looks for BatchNorm under the pruning function of GroupNorm and never finds it.

    Ours measures what the consumer reads. For a consumer that reads ``relu(norm)`` that is exactly the norm's own term:
    weight and bias times their gradients.
    """
    model, batch = build("plain").double(), faces(1, dtype=torch.float64)
    sample_loss(model(batch["inputs"]), batch["targets"]).sum().backward()
    norm = model.body[2][1]  # followed by a ReLU
    expected = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach()
    group = host_pruner(model, random_scores).DG.get_pruning_group(
        model.body[2][0], tp.prune_conv_out_channels, list(range(16))
    )
    layers: list[type] = [nn.Conv2d, nn.Linear]
    with_norms, without = (
        tp.importance.GroupTaylorImportance(normalizer=None, target_types=types)(group)
        for types in ([*layers, nn.BatchNorm2d], layers)
    )
    assert torch.equal(with_norms, without)
    plan = build_plan(model, batch["inputs"])
    found = collect(plan, [batch], sample_loss, groups="group", progress=False)
    first, size = found.columns["body.2.0"]
    torch.testing.assert_close(found.sum.sum(0)[first : first + size], expected)


# --- groups of channels -----------------------------------------------------------------------------------------------


def test_scores_of_some_channels_are_theirs_where_the_host_fails() -> None:
    """TP#371, TP#114, TP#268: scores of a partial group index outside, although the host's docstring takes one."""
    model = build("plain")
    graph = host_pruner(model, random_scores).DG
    some = graph.get_pruning_group(model.body[0][0], tp.prune_conv_out_channels, [2, 6, 9])
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        tp.importance.GroupMagnitudeImportance()(some)
    importance = fpt.MagnitudeImportance()
    importance.collect(model, [faces()])
    all_of_it = graph.get_pruning_group(model.body[0][0], tp.prune_conv_out_channels, list(range(12)))
    found, whole = importance(some), importance(all_of_it)
    assert found is not None
    assert whole is not None
    assert torch.equal(found, whole[[2, 6, 9]])
    weights = (model.body[0][0].weight.flatten(1).square().sum(1), model.body[2][0].weight.square().sum((0, 2, 3)))
    norms = (weights[0] + weights[1]).sqrt().double().detach()
    torch.testing.assert_close(found, (norms / norms.mean())[[2, 6, 9]], rtol=1e-5, atol=0)


def test_a_groups_indices_are_read_and_not_sorted() -> None:
    """The host's Taylor sorts the group's indices in place and leaves their roots: scores go to the wrong channels."""
    model, batch = build("plain"), faces()
    sample_loss(model(batch["inputs"]), batch["targets"]).mean().backward()
    graph = host_pruner(model, random_scores).DG
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()

    def group(idxs: list[int]) -> Any:
        return graph.get_pruning_group(model.body[2][0], tp.prune_conv_out_channels, list(idxs))

    shuffled = group(order)
    theirs = tp.importance.GroupTaylorImportance(normalizer=None)
    by_root = theirs(shuffled)
    assert shuffled[0].idxs == sorted(order)
    assert not torch.allclose(by_root, theirs(group(list(range(16)))))  # root channels, whatever the order asked in
    importance = fpt.TaylorImportance()
    importance.collect(model, [batch], sample_loss, groups="group", progress=False)
    shuffled = group(order)
    found, whole = importance(shuffled), importance(group(list(range(16))))
    assert shuffled[0].idxs == order
    assert found is not None
    assert whole is not None
    assert torch.equal(found, whole[order])


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([2, 3, 4, 6])), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_partial_groups_of_random_networks(steps: list[tuple[str, int]], seed: int) -> None:
    """Concatenations, conv groups, flattened inputs: any part of any group, in any order, gets its channels' scores."""
    torch.manual_seed(seed)
    model = RandomNet(steps).eval()
    importance = fpt.MagnitudeImportance()
    importance.collect(model, [faces(2)])
    graph = host_pruner(model, random_scores).DG
    plan = build_plan(model, IMAGE, prove_groups=False)
    squares = plan.weight_square()
    generator = torch.Generator().manual_seed(seed)
    for group in list(graph.get_all_groups(ignored_layers=[model.out])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the proof refuses has no score
            whole = importance(group)
        if whole is None:
            continue
        assert torch.isfinite(whole).all()
        dep, size = group[0].dep, len(group[0].idxs)
        units = plan.units[graph._module2name[dep.target.module]]
        norm = squares[units.name].sqrt()[units.of_root]
        torch.testing.assert_close(whole, norm / norm.mean())
        some = torch.randperm(size, generator=generator)[: int(torch.randint(1, size + 1, (1,), generator=generator))]
        part = importance(graph.get_pruning_group(dep.target.module, dep.handler, some.tolist()))
        assert part is not None
        assert torch.equal(part, whole[some])


# --- signs and outputs ------------------------------------------------------------------------------------------------


def test_signed_sums_keep_their_order() -> None:
    """The host divides scores by their mean, and a negative one reverses the order; ours are never negative."""
    scores = torch.tensor([-3.0, -1.0, 0.5, 1.0])
    host = tp.importance.GroupMagnitudeImportance()._normalize(scores, "mean")
    assert torch.equal(host.argsort(), scores.argsort().flip(0))
    model = build("plain")
    importance = fpt.TaylorImportance(statistic="signed")
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None)
    batch = faces()
    importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    group = pruner.DG.get_pruning_group(model.body[4][0], tp.prune_conv_out_channels, list(range(10)))
    with pytest.warns(UserWarning, match="signed"):
        found = importance(group)
    assert found is not None
    sums = gate_derivatives(model, batch, [Tap("fc")]).sum(0)
    assert torch.equal(found.argsort(), sums.abs().argsort())
    assert (sums < 0).any()


def test_the_outputs_keep_their_number() -> None:
    """Whoever forgets to ignore the classifier gets half of the classes from the host."""
    ours, theirs = build("plain"), build("plain")
    host_pruner(theirs, random_scores).step()
    report = fpt.FairPruner(ours, IMAGE, random_scores, round_to=None).step()
    assert (theirs.fc.out_features, ours.fc.out_features) == (2, CLASSES)
    assert report.not_pruned == {"fc": "it is an output of the model"}


def test_a_layer_narrower_than_the_rounding_is_told() -> None:
    """The host rounds 6 channels down to no multiple of 16, finds the layer empty, and says nothing."""
    ours, theirs = build("plain"), build("plain")
    host_pruner(theirs, random_scores, round_to=16, ignored_layers=[theirs.fc]).step()
    assert widths(theirs) == [12, 16, 10]
    rows = {r.name: r for r in fpt.FairPruner(ours, IMAGE, random_scores, round_to=16).step().widths}
    assert [(r.asked, r.kept, bool(r.reason)) for r in rows.values()] == [(5, 10, True), (8, 16, True), (6, 12, True)]
