"""Learned gates by themselves: what they compute, what folding does, what they cost, which stay, how groups compare."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates import GatePlan, build_plan
from fair_prune_plugins.learned_gates import FairnessTerm, GatedMacs, LearnedGates
from fair_prune_plugins.learned_gates.surrogate import margins
from fair_prune_plugins.learned_gates.top_k import keep_highest, keep_within, ramp, straight_through
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from integration_tests.gate_oracles import Gates, error, lost_entries, random_closed, removed
from integration_tests.networks import NETWORKS, build, conv_bn, heads_of

IMAGE = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def planned(name: str) -> tuple[nn.Module, GatePlan]:
    model = build(name).double()
    heads = heads_of(model)
    return model, build_plan(model, IMAGE, num_heads=heads or None, prune_num_heads=bool(heads))


def randomised(plan: GatePlan, low: float = 0.2) -> LearnedGates:
    gates = LearnedGates(plan)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        gates.scores.copy_(low + (1 - low) * torch.rand(len(gates.scores), generator=generator))
    return gates


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_act_where_the_network_consumes_its_units_and_fold_into_those_weights(name: str) -> None:
    model, plan = planned(name)
    gates = randomised(plan)
    assert not gates.open
    assert set(gates.columns) == set(plan.units)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = Gates(model, IMAGE, plan)
    for unit_set, values in gates.by_unit_set().items():
        written.leaves[unit_set] = values.detach().clone()[None].requires_grad_(True)
    with written.inserted():
        expected = model(IMAGE)
    dense = model(IMAGE)
    with gates.attached():
        found = model(IMAGE)
    assert error(found.detach(), expected.detach()) < 1e-12
    assert error(dense.detach(), expected.detach()) > 1e-3
    loss = (found * torch.arange(found[0].numel(), dtype=found.dtype).reshape(found[0].shape).cos()).sum()
    by_gates = torch.autograd.grad(loss, gates.scores)[0]
    same = (expected * torch.arange(found[0].numel(), dtype=found.dtype).reshape(found[0].shape).cos()).sum()
    by_leaves = torch.autograd.grad(same, list(written.leaves.values()))
    joined = gates.joined({n: g[0] for n, g in zip(written.leaves, by_leaves, strict=True)})
    assert torch.allclose(by_gates, joined, rtol=1e-9, atol=1e-9 * float(joined.abs().max()))
    gates.fold()
    assert error(model(IMAGE).detach(), found.detach()) < 1e-13
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["residual", "mobilenet-v2", "densenet", "conv groups", "flatten"])
def test_a_survivor_keeps_its_folded_gate_when_the_closed_are_removed(name: str) -> None:
    model, plan = planned(name)
    gates = randomised(plan)
    closed = random_closed(plan, 0.4, 2)
    open_ = {n: ~closed[n] if n in closed else torch.ones(s, dtype=torch.bool) for n, (_, s) in gates.columns.items()}
    values = gates.values().detach() * gates.joined(open_)
    with gates.attached(), gates.using(values), torch.no_grad():
        gated = model(IMAGE)
    gates.fold()
    assert error(removed(model, IMAGE, plan, closed)(IMAGE).detach(), gated) < 1e-12


@pytest.mark.parametrize("name", ["residual", "mobilenet-v2", "densenet", "conv groups", "flatten"])
def test_sums_over_the_weights_a_gate_multiplies_are_those_of_the_columns_that_leave_with_it(name: str) -> None:
    model, plan = planned(name)
    gates = LearnedGates(plan)
    entries = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    sums = gates.by_unit_set(gates.unit_sums(entries))
    weights = [
        n
        for n, p in model.named_parameters()
        if isinstance(model.get_submodule(n.rpartition(".")[0]), nn.Conv2d | nn.Linear) and n.endswith("weight")
    ]
    place = dict(
        zip(weights, itertools.accumulate([0, *(model.get_parameter(n).numel() for n in weights)]), strict=False)
    )
    for group in plan.prunable:
        read = {f"{s.path}.weight" for s in group.consumers}
        assert not read & {f"{s.path}.weight" for s in group.producers}
        for unit in (0, group.units.size - 1):
            lost = lost_entries(plan, group.units.name, unit)
            expected = sum(
                float(entries[n].flatten()[e - place[n]])
                for n in read
                for e in lost
                if place[n] <= e < place[n] + entries[n].numel()
            )
            assert math.isclose(float(sums[group.units.name][unit]), expected, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_of_gates_of_0_and_1_are_the_host_s_count_of_the_pruned_network(name: str) -> None:
    model, plan = planned(name)
    gates = LearnedGates(plan)
    macs = GatedMacs(plan, gates.columns, IMAGE)
    assert macs.fixed == []
    assert macs.dense == macs_and_params(model, IMAGE[:1])[0]
    for seed, fraction in ((1, 0.3), (2, 0.8)):
        closed = random_closed(plan, fraction, seed)
        kept = {
            n: ~closed[n] if n in closed else torch.ones(s, dtype=torch.bool) for n, (_, s) in gates.columns.items()
        }
        expected = macs_and_params(removed(model, IMAGE, plan, closed), IMAGE[:1])[0]
        assert math.isclose(float(macs(gates.joined(kept))), expected, rel_tol=1e-9)


class SharedInPlace(nn.Module):
    """One activation module for everything, in place, right behind convolutions without norms, and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 14, 3), conv_bn(22, 9)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.act(self.a(x))
        b = self.act(self.b(a))
        x = self.act(self.c(self.pool(torch.cat([a[:, :, 1:-1, 1:-1], b], 1))))
        return self.fc(x.mean((2, 3)))


def test_macs_of_modules_without_weights_follow_the_channels_of_each_call() -> None:
    model = SharedInPlace().double().eval()
    plan = build_plan(model, IMAGE)
    gates = LearnedGates(plan)
    macs = GatedMacs(plan, gates.columns, IMAGE)
    for seed in range(4):
        closed = random_closed(plan, 0.5, seed)
        kept = {
            n: ~closed[n] if n in closed else torch.ones(s, dtype=torch.bool) for n, (_, s) in gates.columns.items()
        }
        expected = macs_and_params(removed(model, IMAGE, plan, closed), IMAGE[:1])[0]
        assert math.isclose(float(macs(gates.joined(kept))), expected, rel_tol=1e-9)


def test_macs_between_0_and_1_are_the_mean_over_random_closings() -> None:
    plan = planned("residual")[1]
    gates = LearnedGates(plan)
    macs = GatedMacs(plan, gates.columns, IMAGE)
    values = torch.rand(len(gates.scores), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = list(gates.columns)
    names = units[:2]
    expected = 0.0
    others = gates.joined({n: torch.ones(s) for n, (_, s) in gates.columns.items()}).double()
    start, size = gates.columns[names[0]]
    for closed in range(size):  # linear in the gates of one group
        shut = others.clone()
        shut[start + closed] = 0
        expected += float((1 - values[start + closed]) * (macs(shut) - macs(others)))
    mixed = others.clone()
    mixed[start : start + size] = values[start : start + size]
    # A residual group reads itself nowhere, so no layer has it on both sides.
    assert math.isclose(float(macs(mixed)), macs.dense + expected, rel_tol=1e-9)


def test_what_cannot_be_folded_stays_open_and_is_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1008, 5)
    )
    plan = build_plan(model, torch.randn(2, 3, 16, 16))
    weight = model[2].weight
    del model[2].weight
    model[2].weight = weight.detach()  # as parametrisations leave it: computed, not a parameter
    gates = LearnedGates(plan)
    assert list(gates.open) == ["0"]
    assert "2 computes its weight" in gates.open["0"]
    assert list(gates.columns) == ["2"]
    del model[5]._parameters["weight"]
    with pytest.raises(UnsupportedModelError, match="no coupled group"):
        LearnedGates(plan)


def test_hooks_are_gone_after_an_exception_and_values_must_fit() -> None:
    model, plan = planned("nn.MultiheadAttention")
    gates = randomised(plan)
    before = model(IMAGE)
    with pytest.raises(RuntimeError, match="stop"), gates.attached(), gates.using(gates.values() * 0.5):
        raise RuntimeError("stop")
    assert torch.equal(model(IMAGE), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    with gates.attached():
        gated = model(IMAGE)
        with gates.using(torch.ones_like(gates.scores)):
            assert error(model(IMAGE).detach(), before.detach()) < 1e-12
        assert torch.equal(model(IMAGE), gated)
    with pytest.raises(InputError, match="values of shape"), gates.using(torch.ones(3)):
        pass
    with pytest.raises(InputError, match="another model"):
        LearnedGates(planned("plain")[1]).load_state_dict(gates.state_dict())
    again = LearnedGates(plan)
    again.load_state_dict(gates.state_dict())
    assert torch.equal(again.scores, gates.scores)
    with pytest.raises(InputError, match="form"):
        LearnedGates(plan, form="cubic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="initial"):
        LearnedGates(plan, form="sigmoid", initial=1.0)
    assert torch.allclose(LearnedGates(plan, form="sigmoid", initial=0.9).values(), torch.tensor(0.9).double())


def test_kept_units_are_those_with_the_largest_gates() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = torch.rand(9, generator=generator).round(decimals=1)
        for count in range(10):
            kept = keep_highest(values, count)
            assert int(kept.sum()) == max(count, 1)
            assert values[kept].min() >= (values[~kept].max() if count < 9 else 0)
        part = torch.tensor([int(values.argmin())])
        assert keep_highest(values, 2, [part])[part]


def test_a_budget_closes_the_smallest_gates_of_all_layers_until_it_is_met() -> None:
    generator = torch.Generator().manual_seed(1)
    values = {"a": torch.rand(6, generator=generator), "b": torch.rand(5, generator=generator)}
    prices = {"a": 3.0, "b": 1.0}

    def cost(kept: dict[str, torch.Tensor]) -> float:
        return sum(prices[n] * float(k.sum()) for n, k in kept.items())

    for budget in (22.5, 15.0, 8.0, 6.0, 1.0):
        kept = keep_within(values, cost, budget, floors={"a": 2}, parts={})
        order = sorted(((float(v), n, u) for n, own in values.items() for u, v in enumerate(own)))
        literal = {n: set(range(len(v))) for n, v in values.items()}
        for _, name, unit in order:
            if sum(prices[n] * len(k) for n, k in literal.items()) <= budget:
                break
            if len(literal[name]) > {"a": 2, "b": 1}[name]:
                literal[name].discard(unit)
        assert {n: set(k.nonzero().flatten().tolist()) for n, k in kept.items()} == literal


def test_the_straight_through_gradient_is_that_of_the_gate_and_the_ramp_is_cubic() -> None:
    values = torch.tensor([0.2, 0.7], requires_grad=True)
    through = straight_through(values, torch.tensor([False, True]))
    assert through.tolist() == [0, 1]
    assert torch.autograd.grad((through * torch.tensor([3.0, 5.0])).sum(), values)[0].tolist() == [3, 5]
    assert [ramp(s, 4) for s in range(6)] == [0, 1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1, 1]
    assert ramp(0, 0) == 1


def people(
    groups: int, samples: int = 60, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (samples,), generator=generator)
    codes = torch.randint(0, groups, (samples,), generator=generator)
    shares = [float((codes == g).double().mean()) for g in range(groups)]
    return logits, labels, codes, shares


def test_the_fairness_term_is_the_corrected_estimator_not_the_printed_one() -> None:
    logits, labels, codes, shares = people(2, seed=3)
    logits = logits + 2 * (2 * labels[:, None] - 1) * (codes[:, None] == 1)
    y, s = 2.0 * labels - 1, 1.0 - 2.0 * codes
    accuracy = [float(((logits[:, 0] > 0) == labels.bool())[codes == g].double().mean()) for g in (0, 1)]
    probability = torch.tensor(shares, dtype=torch.float64)[codes]

    def literal(u: torch.Tensor) -> float:
        return float((u / probability).mean() - 1)

    steep = FairnessTerm(shares, sharpness=1e6)
    gap = steep.gap(logits, labels, codes)
    assert gap is not None
    assert math.isclose(float(gap), abs(accuracy[0] - accuracy[1]), abs_tol=1e-9)
    margin = y * logits[:, 0]
    assert math.isclose(float(gap), abs(literal((s * margin > 0).double())), abs_tol=1e-9)
    assert not math.isclose(float(gap), abs(literal((margin > 0).double())), abs_tol=0.05)
    soft = FairnessTerm([0.3, 0.7], sharpness=2.0).gap(logits, labels, codes)  # a batch unlike the data
    probability = torch.tensor([0.3, 0.7], dtype=torch.float64)[codes]
    assert soft is not None
    assert math.isclose(float(soft), abs(literal(torch.sigmoid(2 * s * margin))), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("surrogate", "u"), [("hinge", lambda z: max(0.0, 1 + z)), ("logistic", lambda z: math.log2(1 + math.exp(z)))]
)
def test_convex_surrogates_bound_the_gap_from_either_side(surrogate: str, u: object) -> None:
    logits, labels, codes, shares = people(2, seed=4)
    z = ((2 * labels - 1) * logits[:, 0]).tolist()
    assert callable(u)

    def side(one: int) -> float:
        total = sum(u(v if c == one else -v) / shares[c] for v, c in zip(z, codes.tolist(), strict=True))
        return total / len(z) - 1

    gap = FairnessTerm(shares, surrogate=surrogate).gap(logits, labels, codes)  # type: ignore[arg-type]
    assert gap is not None
    assert math.isclose(float(gap), max(side(0), side(1)), rel_tol=1e-12)
    steep = FairnessTerm(shares, sharpness=1e6).gap(logits, labels, codes)
    assert steep is not None
    assert gap >= steep


def test_classes_are_compared_by_the_probability_of_the_truth_and_several_groups_with_everybody() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (50,), generator=generator)
    codes = torch.randint(-1, 3, (50,), generator=generator)
    known = codes >= 0
    p = logits.softmax(1)[range(50), labels]
    assert torch.allclose(margins(logits, labels).sigmoid()[:, 0], p)
    shares = [float((codes[known] == g).double().mean()) for g in range(3)]
    gap = FairnessTerm(shares).gap(logits, labels, codes)
    assert gap is not None
    assert math.isclose(
        float(gap), max(abs(float(p[codes == g].mean() - p[known].mean())) for g in range(3)), rel_tol=1e-9
    )
    two = logits[:, :2]
    binary = margins(two[:, 1:] - two[:, :1], labels.clamp_max(1))
    assert torch.allclose(margins(two, labels.clamp_max(1)), binary)
    both = F.one_hot(labels.clamp_max(1), 2).double()
    assert torch.allclose(margins(two, both, "multilabel"), (2 * both - 1) * two)


def test_a_batch_that_lacks_a_group_tells_nothing_and_strays_are_refused() -> None:
    logits, labels, codes, shares = people(2)
    term = FairnessTerm(shares)
    assert term.gap(logits, labels, torch.zeros_like(codes)) is None
    assert term.gap(logits, labels, torch.full_like(codes, -1)) is None
    three = FairnessTerm([0.2, 0.3, 0.5])
    assert three.gap(logits, labels, codes) is not None
    assert three.gap(logits, labels, torch.full_like(codes, 2)) is None
    with pytest.raises(InputError, match="group 1, which has nobody"):
        FairnessTerm([0.5, 0.0, 0.5]).gap(logits, labels, codes)
    assert torch.equal(
        FairnessTerm([0.5, 0.0, 0.5]).gap(logits, labels, 2 * codes),  # type: ignore[arg-type]
        FairnessTerm([0.5, 0.5]).gap(logits, labels, codes),  # type: ignore[arg-type]
    )
    for shares_ in ([1.0], [0.5, 0.6], [1.5, -0.5], [1.0, 0.0]):
        with pytest.raises(InputError, match="shares of the data"):
            FairnessTerm(shares_)
    for options in ({"surrogate": "cubic"}, {"penalty": "square"}, {"sharpness": 0.0}, {"tau": -1.0}):
        with pytest.raises(InputError):
            FairnessTerm(shares, **options)  # type: ignore[arg-type]
    hinge = FairnessTerm(shares, penalty="hinge", tau=0.1)
    assert [round(float(hinge.penalised(torch.tensor(g))), 6) for g in (0.05, 0.25)] == [0, 0.15]


def test_folding_leaves_the_plan_s_model_alone_until_it_is_asked() -> None:
    model, plan = planned("plain")
    gates = randomised(plan)
    before = copy.deepcopy(model.state_dict())
    with gates.attached():
        model(IMAGE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    gates.fold(torch.ones_like(gates.scores))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
