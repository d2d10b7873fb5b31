"""Element-wise importance against plain autograd, one group at a time, over the weights that the host takes away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria.taylor import OVER_EVERYONE
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.losses import (
    CrossEntropy,
    DenseAccuracy,
    Distillation,
    EqualisedLoss,
    ExcessGapConstraint,
    GroupBalancedCrossEntropy,
    GroupDRO,
    LossHook,
    PerformanceWeightedLoss,
)
from fair_prune_plugins.statistics import GateStatistics, collect, collect_elementwise, model_checksum
from fair_prune_plugins.statistics.elementwise import COMPARES_BATCH, NO_GRADIENT
from fair_prune_plugins.statistics.store import NOT_ADDITIVE
from integration_tests.gate_oracles import counted_weights, lost_entries
from integration_tests.grouped_people import NAMES, Batch, batches, people, per_sample, planned
from integration_tests.networks import CLASSES, NETWORKS, build
from integration_tests.pruning_oracles import Snapshot, literal_greedy


def measured(plan: GatePlan, loader: Any, loss: Any = per_sample, **options: Any) -> GateStatistics:
    return collect_elementwise(plan, loader, loss, **{"groups": "group", "progress": False, **options})


def assert_same(a: GateStatistics, b: GateStatistics, tolerance: float = 1e-12) -> None:
    assert (a.names, a.columns) == (b.names, b.columns)
    assert a.elementwise is not None
    assert b.elementwise is not None
    for first, size in a.columns.values():
        part = slice(first, first + size)
        largest = float(b.elementwise[:, part].max())
        assert largest > 0
        assert float((a.elementwise - b.elementwise)[:, part].abs().max()) <= tolerance * largest


# --- the oracle -----------------------------------------------------------------------------------------------------


def products(model: nn.Module, data: Batch, mine: list[int]) -> torch.Tensor:
    """Weight times gradient of the mean loss of some people, all counted weights in one row."""
    weights = [model.get_parameter(n) for n in counted_weights(model)]
    before = [w.requires_grad for w in weights]
    for w in weights:
        w.requires_grad_(True)
    loss = per_sample(model(data["x"][mine]), data["y"][mine]).mean()
    gradients = torch.autograd.grad(loss, weights)
    for w, flag in zip(weights, before, strict=True):
        w.requires_grad_(flag)
    return torch.cat([(w.detach() * g).flatten() for w, g in zip(weights, gradients, strict=True)])


def rows_of(data: Batch, name: str) -> list[int]:
    return [i for i, n in enumerate(data["group"]) if n == name]


@pytest.mark.parametrize("name", NETWORKS)
def test_importance_is_that_of_the_weights_the_host_removes(name: str) -> None:
    plan, data = planned(name), people(15)
    found = measured(plan, batches(data, 4))
    assert found.names == NAMES
    assert found.counts == {n: data["group"].count(n) for n in NAMES}
    assert found.unknown == data["group"].count(None)
    assert set(found.columns) == set(plan.units)
    of_groups = {g: products(plan.model, data, rows_of(data, g)) for g in NAMES}
    for unit_set, units in plan.units.items():
        values = found.of(unit_set).elementwise
        assert values is not None
        for unit in {1, units.size - 1}:
            lost = torch.tensor(sorted(lost_entries(plan, unit_set, unit)))
            assert len(lost)
            for row, product in enumerate(of_groups.values()):
                expected = float(product[lost].square().sum())
                assert float(values[row, unit]) == pytest.approx(expected, rel=1e-9), (unit_set, unit)


@pytest.mark.parametrize("name", ["plain", "flatten", "conv groups", "transposed convolution"])
def test_without_consumers_only_the_rows_that_make_a_unit_count(name: str) -> None:
    plan, data = planned(name), people(12)
    found = measured(plan, [data], include_consumers=False)
    mine = rows_of(data, "male")
    plan.model.zero_grad()
    per_sample(plan.model(data["x"][mine]), data["y"][mine]).mean().backward()
    for group in plan.prunable:
        expected = torch.zeros(group.units.size, dtype=torch.float64)
        for site in group.producers:
            module = plan.model.get_submodule(site.path)
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            weight = module.weight
            assert weight.grad is not None
            square = (weight * weight.grad).detach().square()
            square = square.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else square
            for channel, root in zip(site.channels.tolist(), site.roots.tolist(), strict=True):
                expected[root % group.units.size] += square[channel].sum()
        values = found.of(group.name).elementwise
        assert values is not None
        torch.testing.assert_close(values[NAMES.index("male")], expected, rtol=1e-9, atol=0)


# --- what it does not depend on -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["residual", "mobilenet-v2", "attention, fused", "nn.MultiheadAttention"])
def test_batch_size_order_and_mixture_do_not_matter(name: str, dtype: torch.dtype, tolerance: float) -> None:
    plan, data = planned(name, dtype), people(26, dtype)
    whole = measured(plan, [data])
    shuffled = torch.randperm(26, generator=torch.Generator().manual_seed(1)).tolist()
    by_group = sorted(range(26), key=lambda i: str(data["group"][i]))
    loaders = [batches(data, s) for s in (1, 5, 25)] + [batches(data, 3, o) for o in (shuffled, by_group)]
    for loader in loaders:
        assert_same(measured(plan, loader), whole, tolerance)


def test_one_group_of_all_people_is_plain_taylor_on_weights() -> None:
    plan, data = planned("residual"), people(11)
    nobody_named = measured(plan, batches(data, 4), groups=None)
    assert (nobody_named.names, nobody_named.counts) == (("everyone",), {"everyone": 11})
    named = measured(plan, batches({**data, "group": ["all"] * 11}, 4))
    product = products(plan.model, data, list(range(11)))
    for unit_set in plan.units:
        lost = torch.tensor(sorted(lost_entries(plan, unit_set, 2)))
        one, two = nobody_named.of(unit_set), named.of(unit_set)
        assert one.elementwise is not None
        assert two.elementwise is not None
        assert float(one.elementwise[0, 2]) == pytest.approx(float(product[lost].square().sum()), rel=1e-9)
        torch.testing.assert_close(one.elementwise, two.elementwise)
        assert torch.equal(criteria.taylor(one, statistic="elementwise"), one.elementwise[0])


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")]
)
def test_losses_of_any_reduction(loss: Any) -> None:
    plan, data = planned("plain"), people(15)
    assert_same(measured(plan, batches(data, 4), loss), measured(plan, [data]))


def test_sample_weights_make_it_the_weighted_mean() -> None:
    plan, data = planned("plain"), people(12)
    twice = torch.tensor([1.0, 2.0] * 6)
    doubled = [i for i in range(12) for _ in range(int(twice[i]))]
    found = measured(plan, batches({**data, "w": twice}, 5), weights="w")
    assert_same(found, measured(plan, batches(data, 7, doubled)))
    assert_same(measured(plan, batches({**data, "w": 3 * twice}, 4), weights="w"), found)


@pytest.mark.parametrize("form", ["tuple", "list", "nested", "whole batch"])
def test_batches_of_any_form_are_taken_apart(form: str) -> None:
    plan, data = planned("plain"), people(13)
    parts = batches(data, 4)
    options: dict[str, Any] = {}
    loss: Any = per_sample
    if form in ("tuple", "list"):
        make = tuple if form == "tuple" else list
        parts = [make((b["x"], b["y"], b["group"])) for b in parts]
        options = {"groups": 2}
    elif form == "nested":
        parts = [{"x": (b["x"],), "y": {"label": [b["y"]], "scale": 1.0}, "group": b["group"]} for b in parts]

        def loss(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
            return per_sample(outputs, targets["label"][0]) * targets["scale"]
    else:
        options = {"targets": None}
        parts = [{**b, "classes": ["a", "b"], "temperature": torch.tensor(1.0)} for b in parts]

        def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            assert len(batch["group"]) == len(outputs)
            assert len(set(batch["group"])) == 1
            assert batch["classes"] == ["a", "b"]
            return per_sample(outputs, batch["y"]) * batch["temperature"]

    assert_same(measured(plan, parts, loss, **options), measured(plan, [data]))


def test_images_of_different_sizes_are_never_put_together() -> None:
    plan, data = planned("plain"), people(12)
    parts = batches(data, 3)
    small = [{**b, "x": b["x"][:, :, :12, :12]} if n % 2 else b for n, b in enumerate(parts)]
    found = measured(plan, small)
    total = {g: torch.zeros(()) for g in NAMES}
    for b in small:
        for g in NAMES:
            mine = rows_of(b, g)
            if mine:
                total[g] = total[g] + products(plan.model, b, mine) * len(mine)
    lost = torch.tensor(sorted(lost_entries(plan, "body.2.0", 3)))
    values = found.of("body.2.0").elementwise
    assert values is not None
    for row, g in enumerate(NAMES):
        expected = float((total[g] / data["group"].count(g))[lost].square().sum())
        assert float(values[row, 3]) == pytest.approx(expected, rel=1e-9)


def test_batches_are_pure_and_as_large_as_the_loaders_but_for_the_last() -> None:
    plan, data = planned("plain"), people(40)
    seen: list[tuple[int, set[Any]]] = []

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append((len(outputs), set(batch["group"])))
        return per_sample(outputs, batch["y"])

    measured(plan, batches(data, 6), loss, targets=None)
    assert all(len(who) == 1 and None not in who for _, who in seen)
    known = {n: data["group"].count(n) for n in NAMES}
    assert sum(size for size, _ in seen) == sum(known.values())  # each person once
    for name, count in known.items():
        *full, last = [size for size, who in seen if who == {name}]
        assert set(full) <= {6}
        assert min(count, 3) <= last < 9


# --- frozen layers and the model as it was --------------------------------------------------------------------------


def test_frozen_layers_count_like_all_others() -> None:
    data = people(9)
    free = planned("residual")
    model = build("residual").double()
    for layer in (model.get_submodule("stem"), model.get_submodule("blocks.1")):
        layer.requires_grad_(False)
    plan = build_plan(model, data["x"])
    found = measured(plan, batches(data, 4))
    assert_same(found, measured(free, batches(data, 4)))
    assert found.notes[0].startswith("frozen layers are among what can be pruned: ")
    assert not model.get_submodule("stem.0").weight.requires_grad


class Interrupted:
    """A loader that fails after two batches."""

    def __init__(self, data: Batch, error: BaseException) -> None:
        self.data, self.error = data, error

    def __iter__(self) -> Iterator[Batch]:
        yield from batches(self.data, 4)[:2]
        raise self.error


@pytest.mark.parametrize("outcome", ["success", "interrupt", "loss", "group"])
def test_the_model_stays_as_it_was(outcome: str) -> None:
    model = build("squeeze-excite").train()
    model.get_submodule("head").eval()
    model.get_submodule("stem").requires_grad_(False)
    data = people(9, torch.float32)
    model(data["x"]).square().sum().backward()
    plan = build_plan(model, data["x"])
    before, random_state = Snapshot.of(model), torch.get_rng_state()
    if outcome == "success":
        measured(plan, batches(data, 4))
    elif outcome == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            measured(plan, Interrupted(data, KeyboardInterrupt()))
    elif outcome == "loss":
        with pytest.raises(InputError, match="the loss failed on batch 0"):
            measured(plan, batches(data, 4), lambda outputs, targets: outputs[:, 99])
    else:
        with pytest.raises(InputError, match="no 'sex'"):
            measured(plan, batches(data, 4), groups="sex")
    assert Snapshot.of(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_group_without_people_is_refused() -> None:
    plan, data = planned("plain"), people(9)
    names = GroupReader({"group": "group"}, names=(*NAMES, "nobody"))
    with pytest.raises(InputError, match="nobody: nobody in the data"):
        measured(plan, [data], groups=names)
    weights = torch.tensor([0.0 if n == "other" else 1.0 for n in data["group"]])
    with pytest.raises(InputError, match=r"other: nobody in the data \(or only zero sample weights\)"):
        measured(plan, [{**data, "w": weights}], weights="w")
    with pytest.raises(InputError, match="every group is unknown"):
        measured(plan, [{**data, "group": [None] * 9}])
    with pytest.raises(InputError, match="the loader yielded no sample"):
        measured(plan, [])


def test_gradients_that_are_not_there_or_not_finite_are_refused() -> None:
    plan, data = planned("plain"), people(9)
    aside = torch.ones(CLASSES, dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError) as raised:
        measured(plan, [data], lambda outputs, targets: per_sample(outputs.detach() * aside, targets))
    assert str(raised.value) == NO_GRADIENT
    with pytest.raises(InputError, match="gradients of group 'female' are not finite, first at body"):
        measured(plan, [data], lambda outputs, targets: (outputs - outputs.detach()).sum(1).abs().sqrt())


DENSE = DenseAccuracy(NAMES, (0.9, 0.8, 0.7), (6, 5, 4))
COMPARING: dict[str, tuple[Callable[[nn.Module], LossHook], bool]] = {
    "equalised": (lambda _: EqualisedLoss(NAMES), True),
    "excess gap": (lambda _: ExcessGapConstraint(DENSE), True),
    "dro": (lambda _: GroupDRO(NAMES), True),
    "balanced": (lambda _: GroupBalancedCrossEntropy(NAMES), True),
    "balanced by size": (lambda _: GroupBalancedCrossEntropy(dict.fromkeys(NAMES, 5)), False),
    "distillation": (lambda model: Distillation(model, NAMES), True),
    "distillation by size": (lambda model: Distillation(model, dict.fromkeys(NAMES, 5)), False),
    "distillation, fixed": (lambda model: Distillation(model, NAMES, group_weights=[1.0, 2.0, 3.0]), False),
    "normalised": (lambda model: PerformanceWeightedLoss(model, normalise=True), True),
    "performance": (PerformanceWeightedLoss, False),
    "cross-entropy": (lambda _: CrossEntropy(), False),
}


@pytest.mark.parametrize("name", COMPARING)
def test_losses_that_compare_the_people_of_a_batch_are_refused(name: str) -> None:
    """What depends on who else is in a batch is not the same for other batches; everything else is."""
    make, compares = COMPARING[name]
    plan, data = planned("plain"), people(21)
    hook = make(plan.model)
    assert hook.compares_batch == compares
    if isinstance(hook, EqualisedLoss | ExcessGapConstraint):
        hook.multipliers.copy_(torch.tensor([0.5, 0.1, 0.2]))
    loss = hook.for_statistics(groups="group", inputs="x", targets="y")
    mixed, apart = (
        torch.cat([loss(plan.model(part["x"]), part) for part in batches(data, size, order)])
        for size, order in ((21, sorted(range(21), key=lambda n: str(data["group"][n]))), (1, None))
    )
    order = torch.tensor(sorted(range(21), key=lambda n: str(data["group"][n])))
    assert torch.allclose(mixed, apart[order]) == (not compares)
    if not compares:
        assert measured(plan, batches(data, 5), loss, targets=None).elementwise is not None
        return
    with pytest.raises(InputError) as raised:
        measured(plan, batches(data, 5), loss, targets=None)
    assert str(raised.value) == COMPARES_BATCH.format(loss=type(hook).__name__)
    # Gates are measured in the loader's own batches.
    options: dict[str, Any] = {"groups": "group", "progress": False, "targets": None}
    assert torch.isfinite(collect(plan, batches(data, 7), loss, **options).square).all()


def test_a_mixed_batch_that_cannot_be_taken_apart_is_refused() -> None:
    plan, data = planned("plain"), people(9)

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return per_sample(outputs, batch["y"])

    with pytest.raises(InputError, match="it holds a set, which cannot be"):
        measured(plan, [{**data, "files": {1, 2, 3}}], loss, targets=None)


# --- what is kept of it ---------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path) -> None:
    plan, data = planned("attention, separate"), people(9)
    found = measured(plan, batches(data, 4))
    found.save(tmp_path / "weights.npz")
    loaded = GateStatistics.load(tmp_path / "weights.npz")
    assert_same(loaded, found, 0.0)
    assert loaded.checksum == model_checksum(plan.model)
    assert torch.isnan(loaded.square).all()
    collect(plan, [data], per_sample, groups="group", progress=False).save(tmp_path / "gates.npz")
    assert GateStatistics.load(tmp_path / "gates.npz").elementwise is None


def test_rearranged_rows_follow_their_names() -> None:
    plan, data = planned("plain"), people(9)
    found = measured(plan, [data])
    turned = found.rearranged(("other", "new", "female", "male"))
    assert turned.elementwise is not None
    assert found.elementwise is not None
    assert torch.equal(turned.elementwise[[2, 3, 0]], found.elementwise)
    assert torch.equal(found.rearranged(NAMES).elementwise, found.elementwise)


def test_squares_of_sums_are_not_added_up() -> None:
    plan, data = planned("plain"), people(12)
    found = measured(plan, [data])
    gates = collect(plan, [data], per_sample, groups="group", progress=False)
    for one, other in ((found, found), (found, gates), (gates, found)):
        with pytest.raises(InputError) as raised:
            one.merged(other)
        assert str(raised.value) == NOT_ADDITIVE
    with pytest.raises(InputError, match="do not add up"):
        found.all_reduced()


def test_criteria_take_only_what_was_measured() -> None:
    plan, data = planned("plain"), people(12)
    of_weights = measured(plan, [data]).of("body.0.0")
    of_gates = collect(plan, [data], per_sample, groups="group", progress=False).of("body.0.0")
    assert of_weights.elementwise is not None
    for name, over in (("group_balanced_taylor", torch.mean), ("worst_group_taylor", torch.amax)):
        scores = criteria.get(name)(of_weights, statistic="elementwise")
        assert torch.equal(scores, over(of_weights.elementwise, dim=0))
    for name in ("taylor", "group_balanced_taylor", "worst_group_taylor", "fairgrape"):
        criterion = criteria.get(name)
        with pytest.raises(ScoreError, match="'square' is not in these statistics, which are of weights"):
            criterion(of_weights, statistic="square")
        with pytest.raises(ScoreError, match=r"'elementwise' is not in .* of gates: .*collect_elementwise"):
            criterion(of_gates, statistic="elementwise")
        with pytest.raises(InputError, match="got 'cubic'"):
            criterion(of_weights, statistic="cubic")
    with pytest.raises(ScoreError) as raised:
        criteria.taylor(of_weights, statistic="elementwise")
    assert str(raised.value) == OVER_EVERYONE
    scores = criteria.fairgrape(replace(of_weights, dense=of_weights), statistic="elementwise", target="dense")
    assert torch.equal(scores, criteria.fairgrape(of_weights, statistic="elementwise"))


# --- through the pruner ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "conv groups", "flatten", "nn.MultiheadAttention"])
def test_fairgrape_prunes_what_the_literal_greedy_leaves(name: str) -> None:
    model, data = build(name).double(), people(18)
    importance = fpt.FairGRAPEImportance(statistic="elementwise")
    pruner = fpt.FairPruner(
        model,
        data["x"][:1],
        importance,
        pruning_ratio=0.5,
        ignored_layers=list(model.children())[-1:],
        round_to=None,
    )
    plan = pruner.gate_plan()
    of_groups = [products(model, data, rows_of(data, g)) for g in NAMES]
    tables = {}
    for group in plan.prunable:
        lost = [torch.tensor(sorted(lost_entries(plan, group.name, u))) for u in range(group.units.size)]
        tables[group.name] = [[float(p[entries].square().sum()) for entries in lost] for p in of_groups]
    importance.collect(pruner, batches(data, 5), per_sample, groups="group", progress=False)
    pruner.step()
    gone = {(root, bool(out)): {int(i) for i in idxs} for root, out, idxs in pruner.pruning_history()}
    assert len(gone) == len(plan.prunable)
    for group in plan.prunable:
        size = group.units.size
        kept = literal_greedy(tables[group.name], math.floor(size * 0.5 + 1e-9))
        if len(group.parts(group.units)) == 0:  # where each part of a concatenation must keep one, the pruner decides
            assert gone[group.root, group.root_is_output] == {c for c in range(group.channels) if c % size not in kept}
    assert torch.isfinite(model(data["x"])).all()


def test_plain_taylor_collects_over_all_people_by_itself() -> None:
    model, data = build("plain").double(), people(12)
    importance = fpt.TaylorImportance(statistic="elementwise")
    pruner = fpt.FairPruner(model, data["x"][:1], importance, pruning_ratio=0.5, round_to=None)
    found = importance.collect(pruner, batches(data, 5), per_sample, groups="group", progress=False)
    assert found is not None
    assert found.names == ("everyone",)
    assert found.counts == {"everyone": 12}
    pruner.step()
    assert model.get_submodule("body.0.0").out_channels == 6
