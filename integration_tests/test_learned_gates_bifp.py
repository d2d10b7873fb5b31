"""BiFP: the gates' gradient against unrolled lower levels, the loop against its pseudocode, resuming, the pruner."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.gates import GatePlan, build_plan
from fair_prune_plugins.learned_gates import BiFPPruner, BiFPReport, BiFPSettings, BiPPruner, FairnessTerm, LearnedGates
from fair_prune_plugins.learned_gates.bilevel import gate_gradient
from fair_prune_plugins.losses import GroupDRO, LossBatch, LossHook
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from integration_tests.gate_oracles import host_graph, unit_of
from integration_tests.networks import CLASSES, build
from integration_tests.pruning_oracles import faces

IMAGE = torch.zeros(2, 3, 16, 16)


def column_factors(model: nn.Module, plan: GatePlan, gates: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Factors of whole weights, from the host's own indices: of convolutions without conv groups and linear layers."""
    found: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = host_graph(model, torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    for group in plan.prunable:
        root = model.get_submodule(group.root)
        pruner = graph.get_pruner_of_module(root)
        prune = pruner.prune_out_channels if group.root_is_output else pruner.prune_in_channels
        for item in graph.get_pruning_group(root, prune, list(range(group.channels))):
            module = item.dep.target.module
            if graph.is_out_channel_pruning_fn(item.dep.handler) or not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            name = f"{graph._module2name[module]}.weight"
            width = module.weight.shape[1]
            if name not in found:
                found[name] = torch.ones(width, dtype=torch.float64)
            units = torch.tensor([unit_of(group, group.units, r) for r in item.root_idxs])
            spread = torch.zeros(len(units), width, dtype=torch.float64)
            spread[range(len(units)), item.idxs] = 1
            taken = gates[group.units.name][units]
            found[name] = found[name] * (1 - spread.sum(0) + taken @ spread)
    return {n: f.reshape(1, -1, *[1] * (model.get_parameter(n).ndim - 2)) for n, f in found.items()}


@pytest.mark.parametrize("name", ["plain", "residual", "pre-activation", "densenet", "mobilenet-v2", "flatten"])
def test_the_gate_gradient_is_autograd_s_through_a_lower_step_without_curvature(name: str) -> None:
    model = build(name).double()
    batch = faces(dtype=torch.float64)
    plan = build_plan(model, batch["inputs"])
    gates = LearnedGates(plan)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(len(gates.scores), generator=generator) < 0.6
    inverse_gamma = 0.3

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(batch["inputs"]), batch["targets"])

    with gates.attached():
        found = gate_gradient(gates, kept, loss, inverse_gamma)

    def run(z: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, dict(z), (batch["inputs"],)), batch["targets"])

    binary = kept.double().requires_grad_(True)
    factors = column_factors(model, plan, gates.by_unit_set(binary))
    weights = {n: model.get_parameter(n).detach() for n in factors}
    z = {n: (weights[n] * f).detach().requires_grad_(True) for n, f in factors.items()}
    g = dict(zip(z, torch.autograd.grad(run(z), list(z.values())), strict=True))
    # The lower level's step from where it ends at the weights there are, its loss's gradient by z constant.
    before = {n: weights[n] + inverse_gamma * (f * g[n]).detach() for n, f in factors.items()}
    after = {n: before[n] - inverse_gamma * f * g[n] for n, f in factors.items()}
    assert all(torch.allclose(after[n], weights[n]) for n in after)
    (expected,) = torch.autograd.grad(run({n: f * after[n] for n, f in factors.items()}), binary)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    with gates.attached():
        direct = gate_gradient(gates, kept, loss, 0.0)
    assert not torch.allclose(direct, found, rtol=1e-3)
    assert torch.equal(direct[~kept], found[~kept])
    assert bool((direct[~kept] != 0).any())  # a closed unit is told what it would do


def test_with_a_loss_linear_in_the_weights_it_is_the_derivative_of_the_best_response() -> None:
    """One gradient step of ``loss + gamma/2 |W|^2`` with rate ``1/gamma`` then ends at the minimum."""
    torch.manual_seed(0)
    gamma = 4.0
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 196, 3)).double()
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    price = torch.randn(5, 3, dtype=torch.float64)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    plan = build_plan(model, x)
    gates = LearnedGates(plan)
    features = model[:3](x).detach()

    def loss(weight: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return (F.linear(features, weight * m.repeat_interleave(196), model[3].bias) * price).mean()

    def unrolled(m: torch.Tensor) -> torch.Tensor:
        start = torch.randn_like(model[3].weight).requires_grad_(True)
        lower = loss(start, m) + gamma / 2 * start.square().sum()
        (step,) = torch.autograd.grad(lower, start, create_graph=True)
        return start - step / gamma

    m = torch.ones(7, dtype=torch.float64, requires_grad=True)
    best = unrolled(m)
    (expected,) = torch.autograd.grad(loss(best, m), m)
    with torch.no_grad():
        model[3].weight.copy_(best)
    kept = torch.ones(7, dtype=torch.bool)
    with gates.attached():
        found = gate_gradient(gates, kept, lambda: (model(x) * price).mean(), 1 / gamma)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)
    for u in range(7):
        shift = torch.zeros(7, dtype=torch.float64)
        shift[u] = 1e-4
        rise = [float(loss(unrolled(m.detach() + s), m.detach() + s).detach()) for s in (shift, -shift)]
        assert abs((rise[0] - rise[1]) / 2e-4 - float(found[u])) < 1e-8


# --- the loop --------------------------------------------------------------------------------------------------------


def tiny() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def table(samples: int = 48, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    group = torch.randint(0, 2, (samples,), generator=generator)
    y = ((x[:, 0] + torch.where(group == 1, x[:, 1], x[:, 2])) > 0).long()
    return [
        {"inputs": x[i : i + 12], "targets": y[i : i + 12], "group": group[i : i + 12]} for i in range(0, samples, 12)
    ]


def bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs))


def test_the_loop_is_the_published_one_step_by_step() -> None:
    lower, upper = table(48, 1), table(36, 2)
    settings = BiFPSettings(
        weight_lr=0.05, momentum=0.0, weight_decay=0.01, mask_lr=0.3, inverse_gamma=0.2, weight_penalty=0.7,
        mask_penalty=1.3, dual_rate=0.5, tau=0.02, sharpness=1.5, weight_steps=2,
    )  # fmt: skip
    steps = 8
    model = tiny()
    pruner = BiFPPruner(model, torch.zeros(2, 6), settings=settings, pruning_ratio=0.5, round_to=None)
    report = pruner.fit(lower, upper, bce, steps=steps, groups="group", progress=False)

    twin = tiny()
    w = {n: p.detach().clone() for n, p in twin.named_parameters()}
    m = {"0": w["0.weight"].norm(dim=1), "2": w["2.weight"].norm(dim=1)}
    m = {k: v / v.max() for k, v in m.items()}
    counts = torch.bincount(torch.cat([b["group"] for b in lower + upper]), minlength=2)
    p = counts.double() / counts.sum()
    lam = [0.7, 1.3]

    def losses(params: dict[str, torch.Tensor], b: dict[str, torch.Tensor], batch: Any) -> tuple[torch.Tensor, ...]:
        z = {**params, "2.weight": params["2.weight"] * b["0"], "4.weight": params["4.weight"] * b["2"]}
        logits = functional_call(twin, z, (batch["inputs"],))
        s, y = 1.0 - 2 * batch["group"], 2.0 * batch["targets"] - 1
        u = torch.sigmoid(1.5 * s * y * logits[:, 0])
        return (
            bce(logits, batch["targets"]),
            ((u / p[batch["group"]]).mean() - 1).abs(),
            z["2.weight"],
            z["4.weight"],
        )

    gaps = []
    for t in range(steps):
        b = {k: torch.zeros_like(v) for k, v in m.items()}
        for k, v in m.items():
            b[k][v.argsort(descending=True)[: len(v) // 2]] = 1
        for i in range(2):
            params = {n: v.clone().requires_grad_(True) for n, v in w.items()}
            ce, gap, *_ = losses(params, b, lower[(2 * t + i) % len(lower)])
            gradients = torch.autograd.grad(ce + lam[0] * gap, list(params.values()))
            rate = 0.05 * 0.5 * (1 + torch.tensor(torch.pi * t / steps, dtype=torch.float64).cos())
            for (n, v), g in zip(w.items(), gradients, strict=True):
                w[n] = v - rate * (g + (0.01 * v if v.ndim > 1 else 0))
            lam[0] = max(lam[0] + 0.5 * (float(gap.detach()) - 0.02), 0)
        ce, gap, z0, z2 = losses({n: v.clone().requires_grad_(True) for n, v in w.items()}, b, upper[t % len(upper)])
        rate = 0.3 * (1 if t < 4 else 0.1 if t < 6 else 0.01)
        for k, name, g in zip(
            ("0", "2"), ("2.weight", "4.weight"), torch.autograd.grad(ce + lam[1] * gap, [z0, z2]), strict=True
        ):
            direct, implicit = (w[name] * g).sum(0), -0.2 * b[k] * g.square().sum(0)
            m[k] = (m[k] - rate * (direct + implicit)).clamp(0, 1)
        gaps.append(float(gap.detach()))
        lam[1] = max(lam[1] + 0.5 * (float(gap.detach()) - 0.02), 0)

    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, w[name], rtol=1e-9, atol=1e-12)
    for name, values in pruner.gates.by_unit_set().items():
        assert torch.allclose(values, m[name], rtol=1e-9, atol=1e-12)
    assert report.gaps == pytest.approx(gaps, rel=1e-9)
    assert [report.weight_penalty, report.mask_penalty] == pytest.approx(lam, rel=1e-9)
    assert len(report.mask_losses) == steps
    assert len(report.weight_losses) == 2 * steps


def fitted(
    settings: BiFPSettings, kind: type[BiFPPruner] = BiFPPruner, steps: int = 40, **more: Any
) -> tuple[nn.Module, BiFPPruner, BiFPReport]:
    model = tiny()
    pruner = kind(model, torch.zeros(2, 6), settings=settings, pruning_ratio=0.5, round_to=None)
    groups = {} if kind is BiPPruner else {"groups": "group"}
    report = pruner.fit(table(48, 1), table(36, 2), bce, steps=steps, progress=False, **groups, **more)
    return model, pruner, report


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_switches_take_fairness_out_of_either_level_or_both() -> None:
    plain, bip, _ = fitted(BiFPSettings(mask_lr=1.0), BiPPruner)
    model, without, report = fitted(BiFPSettings(mask_lr=1.0, weight_penalty=0, mask_penalty=0), BiPPruner)
    assert same(model, plain)
    assert report.gaps == []
    # With gates that stand still, a term at the upper level alone changes no weight, and the other way round.
    still = {"mask_lr": 1e-30, "inverse_gamma": 0.0}
    reference, _, _ = fitted(BiFPSettings(**still), BiPPruner)
    only_mask, _, report = fitted(BiFPSettings(**still, weight_penalty=0.0, dual_rate=1.0, tau=0.0))
    assert same(only_mask, reference)
    assert report.weight_penalty == 0
    assert report.mask_penalty > 1
    only_weights, _, report = fitted(BiFPSettings(**still, mask_penalty=0.0))
    assert not same(only_weights, reference)
    assert (report.mask_penalty, report.weight_penalty) == (0, 1)
    slow = {"weight_lr": 1e-30, "weight_decay": 0.0, "mask_lr": 0.5}
    _, none, _ = fitted(BiFPSettings(**slow), BiPPruner)
    _, of_weights, _ = fitted(BiFPSettings(**slow, mask_penalty=0.0, weight_penalty=5.0))
    _, of_masks, _ = fitted(BiFPSettings(**slow, weight_penalty=0.0, mask_penalty=5.0))
    assert torch.equal(of_weights.gates.scores, none.gates.scores)
    assert not torch.equal(of_masks.gates.scores, none.gates.scores)
    assert without.settings == bip.settings


def test_the_fairness_term_closes_the_gap_that_training_without_it_leaves() -> None:
    settings = {"weight_lr": 0.2, "mask_lr": 0.5}
    data = [torch.cat([b[k] for b in table(36, 2)]) for k in ("inputs", "targets", "group")]

    def gap(model: nn.Module, pruner: BiFPPruner) -> float:
        counts = torch.bincount(data[2]) / len(data[2])
        pruner.step()
        found = FairnessTerm(counts.tolist()).gap(model(data[0]), data[1], data[2])
        assert found is not None
        return float(found.detach())

    plain = gap(*fitted(BiFPSettings(**settings), BiPPruner, 200)[:2])
    fair = gap(*fitted(BiFPSettings(**settings, mask_penalty=3.0, weight_penalty=3.0), steps=200)[:2])
    assert fair < 0.5 * plain


class Counting(LossHook):
    """Remembers how many batches it learned from and how many it only judged."""

    def __init__(self) -> None:
        super().__init__(task="binary")
        self.seen = {True: 0, False: 0}

    def factors(self, batch: LossBatch, losses: torch.Tensor) -> torch.Tensor:
        self.seen[batch.learning] += 1
        return torch.ones_like(losses)


def test_a_loss_learns_with_the_weights_and_only_judges_gates() -> None:
    hook = Counting().eval()
    pruner = BiFPPruner(
        tiny(), torch.zeros(2, 6), settings=BiFPSettings(weight_steps=2), pruning_ratio=0.5, round_to=None
    )
    pruner.fit(table(), table(), hook, steps=5, groups="group", progress=False)
    assert hook.seen == {True: 10, False: 5}
    assert not hook.training


def test_batches_without_a_group_are_counted_and_take_no_part() -> None:
    lower, upper = table(48, 1), table(36, 2)
    for batch in (lower[0], upper[1], upper[2]):
        batch["group"] = torch.zeros_like(batch["group"])
    model = tiny()
    pruner = BiFPPruner(model, torch.zeros(2, 6), pruning_ratio=0.5, round_to=None)
    report = pruner.fit(lower, upper, bce, steps=12, groups="group", progress=False)
    assert (report.skipped_weight_steps, report.skipped_mask_steps) == (3, 8)
    assert len(report.gaps) == 4


def test_gates_close_along_the_ramp_and_end_where_the_pruner_does() -> None:
    settings = BiFPSettings(ramp=0.5)
    pruner = BiFPPruner(tiny(), torch.zeros(2, 6), settings=settings, pruning_ratio=0.5, round_to=None)
    keep = pruner._keeper()
    sizes = {"0": 8, "2": 7}
    for share, gone in ((0.0, (0, 0)), (0.5, (2, 2)), (1.0, (4, 4))):
        kept = pruner.gates.by_unit_set(keep(share))
        assert tuple(sizes[n] - int(k.sum()) for n, k in kept.items()) == gone
    pruner.fit(table(), table(), bce, steps=3, groups="group", progress=False)
    expected = pruner.gates.by_unit_set(keep(1.0))
    history_before = {n: set(k.nonzero().flatten().tolist()) for n, k in expected.items()}
    pruner.step()
    assert {n: set(k) for n, k in kept_units(pruner).items()} == history_before


def kept_units(pruner: BiFPPruner) -> dict[str, list[int]]:
    """Read off a fresh model whose first layers make their own numbers, pruned alike."""
    twin = tiny()
    with torch.no_grad():
        for layer in (twin[0], twin[2]):
            layer.bias.copy_(torch.arange(len(layer.bias)))
    fpt.replay(twin, pruner.history(), torch.zeros(2, 6, dtype=torch.float64))
    return {"0": twin[0].bias.long().tolist(), "2": twin[2].bias.long().tolist()}


# --- resuming --------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, seed: int) -> None:
        self.data = faces(30, 2, seed)

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = {k: v[i] for k, v in self.data.items()}
        row["inputs"] = row["inputs"] + 0.01 * torch.randn(3, 16, 16)  # augmentation
        return row


def loaders(randomness: str) -> tuple[Iterable[Any], Iterable[Any]]:
    def loader(seed: int) -> Iterable[Any]:
        generator = None if randomness == "torch's" else torch.Generator().manual_seed(seed)
        return DataLoader(Rows(seed), batch_size=7, shuffle=True, generator=generator)

    one = loader(1)
    return one, one if randomness == "shared" else loader(2)


def with_dropout() -> nn.Module:
    model = build("residual")
    model.fc = nn.Sequential(nn.Dropout(0.3), model.fc)
    return model


@pytest.mark.parametrize("randomness", ["torch's", "its own", "shared"])
def test_a_resumed_run_equals_an_uninterrupted_one(randomness: str, tmp_path: Any) -> None:
    settings = BiFPSettings(dual_rate=0.3, tau=0.01, ramp=0.5, mask_lr=0.5, initial="random", seed=7, weight_steps=2)

    def start() -> tuple[nn.Module, BiFPPruner]:
        model = with_dropout()
        return model, BiFPPruner(model, IMAGE, settings=settings, pruning_ratio=0.4, round_to=None)

    def fit(pruner: BiFPPruner, **options: Any) -> BiFPReport:
        hook = GroupDRO(groups=["0", "1"])
        return pruner.fit(*loaders(randomness), hook, steps=12, groups="group", progress=False, **options)

    whole, pruner = start()
    states: list[dict[str, Any]] = []
    report = fit(pruner, checkpoint=states.append, checkpoint_every=8)
    assert [s["step"] for s in states] == [8]
    torch.save(states[0], tmp_path / "state.pt")
    again, resumed = start()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(99)
    assert fit(resumed) == report
    assert same(again, whole)
    assert torch.equal(resumed.gates.scores, pruner.gates.scores)
    one, other = pruner.state_dict(), resumed.state_dict()
    assert one is not None
    assert other is not None
    assert one["hook"].keys() == other["hook"].keys()
    assert all(torch.equal(one["hook"][k], other["hook"][k]) for k in one["hook"])
    assert pruner.step() == resumed.step()
    assert same(again, whole)


def test_what_is_random_comes_from_the_seed_alone() -> None:
    def run(seed: int, outside: int) -> torch.Tensor:
        model = with_dropout()
        pruner = BiFPPruner(
            model, IMAGE, settings=BiFPSettings(seed=seed, initial="random"), pruning_ratio=0.4, round_to=None
        )
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        pruner.fit(*loaders("torch's"), F.cross_entropy, steps=3, groups="group", progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([pruner.gates.scores.detach(), *(p.detach().flatten() for p in model.parameters())])

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(1, 1))


# --- as a pruner -----------------------------------------------------------------------------------------------------


def batches(samples: int = 24, groups: int = 3) -> list[dict[str, Any]]:
    whole = faces(samples, groups)
    return [{k: v[i : i + 8] for k, v in whole.items()} for i in range(0, samples, 8)]


@pytest.mark.parametrize("name", ["residual", "mobilenet-v2"])
@pytest.mark.parametrize("allocation", ["uniform", "macs"])
def test_it_ends_at_the_asked_macs_with_the_largest_gates_left(name: str, allocation: Any) -> None:
    model = build(name)
    dense = macs_and_params(model, IMAGE[:1])[0]
    pruner = BiFPPruner(
        model, IMAGE, settings=BiFPSettings(allocation=allocation, ramp=0.5), target=fpt.CostTarget(macs=0.5),
        round_to=None, max_pruning_ratio=0.9,
    )  # fmt: skip
    sizes = {n: size for n, (_, size) in pruner.gates.columns.items()}
    pruner.fit(batches(), batches(), F.cross_entropy, steps=6, groups="group", progress=False)
    gates = {n: v.detach() for n, v in pruner.gates.by_unit_set().items()}
    open_at_the_end = pruner.gates.by_unit_set(pruner._keeper()(1.0))
    report = pruner.step()
    assert 0.95 * 0.5 <= macs_and_params(model, IMAGE[:1])[0] / dense <= 0.5
    assert model(IMAGE).shape == (2, CLASSES)
    for row in report.widths:
        assert row.initial == sizes[row.name]
        assert row.kept == int(open_at_the_end[row.name].sum()) or allocation == "macs"
    if allocation == "macs":
        closed = torch.cat([gates[n][~k] for n, k in open_at_the_end.items()])
        floors = {n: -(-size // 10) for n, size in sizes.items()}
        free = torch.cat([gates[n][k] for n, k in open_at_the_end.items() if int(k.sum()) > floors[n]])
        assert closed.max() <= free.min()


def test_modes_gradients_frozen_layers_and_hooks_are_left_alone_also_after_an_exception() -> None:
    model = build("residual").train()
    model.stem.eval()
    for p in model.stem.parameters():
        p.requires_grad_(False)
    stem = copy.deepcopy(list(model.stem.parameters()))
    marker = torch.ones_like(model.fc.weight)
    model.fc.weight.grad = marker
    modes = {n: m.training for n, m in model.named_modules()}
    pruner = BiFPPruner(model, IMAGE, pruning_ratio=0.3, round_to=None)
    calls = 0

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("stop")
        assert model.training
        return F.cross_entropy(outputs, targets)

    def unharmed() -> None:
        assert {n: m.training for n, m in model.named_modules()} == modes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert model.fc.weight.grad is marker
        assert all(
            torch.equal(a, b) and not b.requires_grad for a, b in zip(stem, model.stem.parameters(), strict=True)
        )

    with pytest.raises(KeyError):
        pruner.fit(batches(), batches(), failing, steps=5, groups="group", progress=False)
    unharmed()
    with pytest.raises(ScoreError, match="not learned"):
        pruner.step()
    pruner.fit(batches(), batches(), F.cross_entropy, steps=2, groups="group", progress=False)
    unharmed()


def test_what_cannot_be_learned_from_is_refused() -> None:
    def pruner(kind: type[BiFPPruner] = BiFPPruner, **options: Any) -> BiFPPruner:
        return kind(tiny(), torch.zeros(2, 6), round_to=None, **options)

    data = table()
    fit: dict[str, Any] = {"steps": 2, "progress": False}
    with pytest.raises(InputError, match="pass groups="):
        pruner().fit(data, data, bce, **fit)
    with pytest.raises(InputError, match="leave out groups="):
        pruner(BiPPruner).fit(data, data, bce, groups="group", **fit)
    with pytest.raises(InputError, match="at least two groups"):
        pruner().fit(data, data, bce, groups=lambda b: ["x"] * 12, **fit)
    with pytest.raises(InputError, match="loader_upper yielded no batch"):
        pruner().fit(data, iter(data[:1]), bce, groups="group", **fit)
    with pytest.raises(InputError, match="became nan in step 1"):
        pruner().fit(data, data, lambda o, t: o.sum() * torch.nan, groups="group", **fit)
    with pytest.raises(InputError, match="one value per sample"):
        pruner().fit(data, data, lambda o, t: o[:3], groups="group", **fit)
    with pytest.raises(InputError, match="steps must be a whole number"):
        pruner().fit(data, data, bce, groups="group", steps=0)
    with pytest.raises(InputError, match="CostTarget"):
        pruner(settings=BiFPSettings(allocation="macs"), pruning_ratio=0.5)
    with pytest.raises(InputError, match="isomorphic"):
        pruner(settings=BiFPSettings(allocation="macs"), target=fpt.CostTarget(macs=0.5), isomorphic=True)
    with pytest.raises(InputError, match="iterative_steps is 1"):
        pruner(iterative_steps=3)
    done = pruner()
    done.fit(data, data, bce, groups="group", **fit)
    with pytest.raises(InputError, match="learned already"):
        done.fit(data, data, bce, groups="group", **fit)
    bad: list[dict[str, Any]] = [
        {"weight_lr": 0}, {"mask_lr": -1}, {"ramp": 2}, {"initial": "zeros"}, {"allocation": "global"},
        {"weight_steps": 0}, {"tau": 0.1}, {"dual_rate": float("nan")}, {"surrogate": "step"}, {"task": "ranking"},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(InputError):
            BiFPSettings(**options)
