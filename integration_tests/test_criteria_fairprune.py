"""FairPrune: its scores against sums over people, its Fisher information against one backward pass per person, its
signs through the pruners.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria.fairprune import BAD_BETA, BAD_WEIGHTING, BETA_AND_WEIGHTING, NO_SUCH_GROUP
from fair_prune_plugins.errors import InputError, ScoreError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.losses import GroupDRO, PerformanceWeightedLoss
from fair_prune_plugins.statistics import GateStatistics, collect, collect_elementwise, collect_fisher
from fair_prune_plugins.statistics import fisher as fisher_module
from fair_prune_plugins.statistics.elementwise import NO_GRADIENT
from fair_prune_plugins.statistics.fisher import NOT_BY_PERSON
from integration_tests.gate_oracles import counted_weights, lost_entries
from integration_tests.grouped_people import NAMES, Batch, batches, people, per_sample, planned
from integration_tests.networks import CLASSES, NETWORKS, build
from integration_tests.pruning_oracles import (
    Snapshot,
    Tap,
    faces,
    gate_derivatives,
    host_pruner,
    per_person,
    sample_loss,
    unit_statistics,
)


def measured(plan: GatePlan, loader: Any, loss: Any = per_sample, **options: Any) -> GateStatistics:
    return collect_fisher(plan, loader, loss, **{"groups": "group", "progress": False, **options})


def fisher(statistics: GateStatistics) -> torch.Tensor:
    assert statistics.fisher is not None
    return statistics.fisher


def squares_by_person(model: nn.Module, data: Batch) -> torch.Tensor:
    """``(weight * gradient)**2`` of every person's own loss, one backward pass each: ``[N, all counted weights]``."""
    weights = [model.get_parameter(n) for n in counted_weights(model)]
    rows = []
    for n in range(len(data["y"])):
        loss = per_sample(model(data["x"][n : n + 1]), data["y"][n : n + 1]).sum()
        found = torch.autograd.grad(loss, weights)
        rows.append(torch.cat([(w.detach() * g).square().flatten() for w, g in zip(weights, found, strict=True)]))
    return torch.stack(rows)


def rows_of(data: Batch, name: str | None) -> list[int]:
    return [i for i, n in enumerate(data["group"]) if n == name]


# --- every person's own gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_fisher_information_is_that_of_one_backward_pass_per_person(
    name: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not together:
        monkeypatch.setattr(torch.func, "vmap", None)  # as with models that it cannot run
    plan, data = planned(name), people(14)
    found = measured(plan, batches(data, 5))
    expected = squares_by_person(plan.model, data)
    assert found.names == NAMES
    for unit_set, units in plan.units.items():
        first, _ = found.columns[unit_set]
        for unit in {1, units.size - 1}:
            lost = torch.tensor(sorted(lost_entries(plan, unit_set, unit)))
            for row, group in enumerate((*NAMES, None)):
                of_group = float(expected[rows_of(data, group)][:, lost].sum())
                assert float(fisher(found)[row, first + unit]) == pytest.approx(of_group, rel=1e-9), (unit_set, unit)
            of_units = found.of(unit_set).fisher
            assert of_units is not None
            assert torch.equal(of_units, fisher(found)[:-1, first : first + units.size])


@pytest.mark.parametrize("name", NETWORKS)
def test_people_are_differentiated_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way is right as well, so that nothing but the time would tell."""
    plan, data = planned(name), people(6)

    def alone(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(fisher_module._PersonalGradients, "_alone", alone)
    assert torch.isfinite(fisher(measured(plan, [data]))).all()


@pytest.mark.parametrize("at_a_time", [1, 10_000, 2**25])
def test_neither_batches_nor_chunks_matter(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data = planned("residual"), people(14)
    whole = fisher(measured(plan, [data]))
    monkeypatch.setattr(fisher_module, "AT_A_TIME", at_a_time)
    monkeypatch.setattr(fisher_module, "TOO_FEW", 1)
    for size in (1, 4, 14):
        torch.testing.assert_close(fisher(measured(plan, batches(data, size))), whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")]
)
def test_losses_of_any_reduction(loss: Any) -> None:
    plan, data = planned("plain"), people(14)
    torch.testing.assert_close(fisher(measured(plan, batches(data, 4), loss)), fisher(measured(plan, [data])))


def test_a_person_of_weight_two_is_there_twice() -> None:
    plan, data = planned("plain"), people(8)
    twice = [n for n in range(8) for _ in range(1 + n % 2)]
    doubled = {k: v[twice] if isinstance(v, torch.Tensor) else [v[n] for n in twice] for k, v in data.items()}
    weighted = measured(plan, [{**data, "w": torch.tensor([1.0, 2.0] * 4)}], weights="w")
    plain = measured(plan, [doubled])
    torch.testing.assert_close(fisher(weighted), fisher(plain), rtol=1e-10, atol=0)
    torch.testing.assert_close(weighted.weight, plain.weight)


def test_the_batchs_own_gradient_is_something_else() -> None:
    """Squares of sums over people are what a ``.grad`` would give; they rank units otherwise."""
    plan, data = planned("plain"), people(30)
    by_person = fisher(measured(plan, [data]))[:-1]
    of_batch = collect_elementwise(plan, [data], per_sample, groups="group", progress=False).elementwise
    assert of_batch is not None
    first, size = measured(plan, [data]).columns["body.2.0"]
    part = slice(first, first + size)
    assert not torch.equal(by_person[0, part].argsort(), of_batch[0, part].argsort())
    # With one person per group they are the same.
    alone = {k: v[:3] for k, v in data.items()}
    assert sorted(alone["group"]) == sorted(NAMES)
    once = collect_elementwise(plan, [alone], per_sample, groups="group", progress=False).elementwise
    torch.testing.assert_close(fisher(measured(plan, [alone]))[:-1], once, rtol=1e-9, atol=0)


def test_a_model_that_looks_at_values_is_differentiated_person_by_person(caplog: pytest.LogCaptureFixture) -> None:
    class Looking(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inside(x * 2 if float(x.sum()) > 1e9 else x)

    inside, data = build("plain").double(), people(8)
    expected = fisher(measured(build_plan(inside, data["x"]), [data]))
    looking = Looking(inside)
    with caplog.at_level("INFO", fisher_module.__name__):
        found = measured(build_plan(looking, data["x"]), [data])
    assert "person by person" in caplog.text
    torch.testing.assert_close(fisher(found), expected, rtol=1e-9, atol=0)


def test_structured_inputs_and_outputs() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, image: torch.Tensor, scale: float) -> dict[str, Any]:
            return {"logits": self.inside(image * scale), "kind": "logits"}

    inside, data = build("plain").double(), people(8)
    expected = fisher(measured(build_plan(inside, data["x"]), [data]))
    wrapped = Wrapped(inside)
    plan = build_plan(wrapped, {"image": data["x"], "scale": 1.0})
    loader = [{**b, "x": {"image": b["x"], "scale": 1.0}} for b in batches(data, 3)]
    torch.testing.assert_close(fisher(measured(plan, loader, output="logits")), expected, rtol=1e-9, atol=0)

    def loss(outputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        return per_sample(outputs["logits"], targets)

    torch.testing.assert_close(fisher(measured(plan, loader, loss)), expected, rtol=1e-9, atol=0)


def test_loss_hooks_see_whole_batches() -> None:
    plan, data = planned("plain"), people(12)
    dense = build("plain").double().eval()
    hook = PerformanceWeightedLoss(dense, theta=0.2, gamma=2.0)
    loss = hook.for_statistics(inputs="x", targets="y")
    found = measured(plan, batches(data, 5), loss, targets=None)
    certainty = dense(data["x"]).softmax(1)[torch.arange(12), data["y"]]
    weight = (0.2 + 0.8 * (1 - certainty) ** 2).detach()

    def original(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        soft = dense(data["x"]).softmax(1).detach()
        right = soft.argmax(1) == data["y"]
        labels = torch.where(right[:, None], soft, F.one_hot(data["y"], CLASSES).double())
        return weight * F.cross_entropy(outputs, labels, reduction="none")

    torch.testing.assert_close(fisher(found), fisher(measured(plan, [data], original)), rtol=1e-9, atol=0)
    dro = GroupDRO(NAMES).for_statistics(groups="group", targets="y")
    assert torch.isfinite(fisher(measured(plan, [data], dro, targets=None))).all()


def test_the_model_stays_as_it_was() -> None:
    model = build("squeeze-excite").train()
    model.get_submodule("stem").requires_grad_(False)
    data = people(7, torch.float32)
    model(data["x"]).square().sum().backward()
    plan = build_plan(model, data["x"])
    before = Snapshot.of(model)
    measured(plan, batches(data, 4))
    assert Snapshot.of(model) == before
    with pytest.raises(InputError, match="the loss failed on batch 0"):
        measured(plan, batches(data, 4), lambda outputs, targets: outputs[:, 99])
    assert Snapshot.of(model) == before


def test_what_has_no_gradients_of_single_people_is_refused() -> None:
    plan, data = planned("plain"), people(6)
    aside = torch.ones(CLASSES, dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError) as raised:
        measured(plan, [data], lambda outputs, targets: per_sample(outputs.detach() * aside, targets))
    assert str(raised.value) == NO_GRADIENT
    with pytest.raises(InputError, match="gradients are not finite on batch 0, first at body"):
        measured(plan, [data], lambda outputs, targets: (outputs - outputs.detach()).sum(1).abs().sqrt())

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = build("plain").double()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = self.inside(x)
            return out, out.T

    turned = Turned()
    with pytest.raises(InputError) as raised:
        measured(build_plan(turned, data["x"]), [data], lambda outputs, targets: per_sample(outputs[1].T, targets))
    assert str(raised.value) == NOT_BY_PERSON.format(shape=(CLASSES, 6), people=6)


def test_it_adds_up_and_is_kept(tmp_path: Path) -> None:
    plan, data = planned("plain"), people(14)
    whole = measured(plan, [data])
    parts = [measured(plan, [part]) for part in batches(data, 5)]
    added = parts[0].merged(parts[1]).merged(parts[2])
    torch.testing.assert_close(fisher(added), fisher(whole), rtol=1e-10, atol=0)
    added.save(tmp_path / "fisher.npz")
    loaded = GateStatistics.load(tmp_path / "fisher.npz")
    assert torch.equal(fisher(loaded), fisher(added))
    assert loaded.gates is False
    turned = whole.rearranged(("other", "new", "female", "male"))
    assert torch.equal(fisher(turned)[[2, 3, 0, 4]], fisher(whole))
    assert not fisher(turned)[1].any()
    gates = collect(plan, [data], per_sample, groups="group", progress=False)
    assert gates.gates
    with pytest.raises(InputError, match="one of these statistics has the states of gates"):
        whole.merged(gates)


# --- scores -----------------------------------------------------------------------------------------------------------


def derivatives(samples: int = 40, units: int = 9, groups: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.arange(samples) % 7 % groups
    codes[::9] = -1
    return torch.randn(samples, units, generator=generator, dtype=torch.float64) * (1.0 + codes)[:, None], codes


def test_two_groups_are_the_papers_formula() -> None:
    s, codes = derivatives(groups=2)
    h0, h1 = (s[codes == g].square().mean(0) for g in range(2))
    statistics = unit_statistics(s, codes, 2)
    for unprivileged, mine, rest in (("group 0", h0, h1), ("group 1", h1, h0)):
        found = criteria.fairprune(statistics, unprivileged=unprivileged, beta=0.2)
        torch.testing.assert_close(found, 0.5 * (mine - 0.2 * rest), rtol=1e-12, atol=0)
        found = criteria.fairprune(statistics, unprivileged=[unprivileged], weighting=(9, -5), over="people")
        torch.testing.assert_close(found, 0.5 * (9 * mine - 5 * rest), rtol=1e-12, atol=0)
    assert criteria.get("fairprune").options["beta"] == 0.33


def test_structured_fair_prunes_weighting_is_a_beta() -> None:
    statistics = unit_statistics(*derivatives(), 3)
    a = criteria.get("fairprune")(statistics, weighting=[9, -5])
    b = criteria.get("fairprune")(statistics, beta=5 / 9)
    torch.testing.assert_close(a, 9 * b, rtol=1e-12, atol=1e-15)


def test_sides_of_several_groups_are_means_over_groups_or_people() -> None:
    s, codes = derivatives(groups=4)
    statistics = unit_statistics(s, codes, 4)
    h = torch.stack([s[codes == g].square().mean(0) for g in range(4)])
    found = criteria.fairprune(statistics, unprivileged=["group 1", "group 3"])
    torch.testing.assert_close(found, 0.5 * (h[[1, 3]].mean(0) - 0.33 * h[[0, 2]].mean(0)), rtol=1e-12, atol=1e-15)
    found = criteria.fairprune(statistics, unprivileged=["group 1", "group 3"], over="people")
    mine, rest = (s[torch.isin(codes, torch.tensor(side))].square().mean(0) for side in ([1, 3], [0, 2]))
    torch.testing.assert_close(found, 0.5 * (mine - 0.33 * rest), rtol=1e-12, atol=1e-15)


def test_auto_is_one_group_for_the_whole_model() -> None:
    """Some layers by themselves would say another one."""
    names = ["women", "men", "others"]
    disagreeing = 0
    for seed in range(4):
        model, batch = build("plain").double(), faces(24, seed=seed, dtype=torch.float64)
        tables = {
            root: per_person(gate_derivatives(model, batch, [tap]).square(), batch["group"])
            for root, tap in TAPS.items()
        }
        overall = int(torch.cat([*tables.values()], 1).sum(1).argmax())
        disagreeing += sum(int(t.sum(1).argmax()) != overall for t in tables.values())
        batch["group"] = [names[g] for g in batch["group"].tolist()]
        importance = fpt.FairPruneImportance()
        with pytest.raises(ScoreError, match="no statistics yet"):
            _ = importance.unprivileged
        pruner = host_pruner(model, importance, ignored_layers=[model.fc])
        importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
        assert importance.unprivileged == (names[overall],)
        assert importance.plan is not None
        for group in importance.plan.prunable:
            table = tables[group.name]
            rest = table[[g for g in range(3) if g != overall]].mean(0)
            expected = 0.5 * (table[overall] - 0.33 * rest)
            torch.testing.assert_close(importance.unit_scores(group)[group.name], expected, rtol=1e-8, atol=1e-14)
    assert disagreeing > 0
    assert fpt.FairPruneImportance(unprivileged="men").unprivileged == ("men",)


def test_the_weights_form_is_the_papers_sum_over_weights() -> None:
    plan, data = planned("residual"), people(14)
    importance = fpt.FairPruneImportance(statistic="elementwise", unprivileged="other", beta=0.5)
    importance.collect(plan.model, batches(data, 5), per_sample, groups="group", progress=False)
    assert importance.plan is not None
    squares = squares_by_person(plan.model, data)
    h = torch.stack([squares[rows_of(data, n)].mean(0) for n in NAMES])
    saliency = 0.5 * (h[2] - 0.5 * h[:2].mean(0))
    for group in importance.plan.prunable:
        scores = importance.unit_scores(group)[group.name]
        for unit in (0, group.units.size - 1):
            lost = torch.tensor(sorted(lost_entries(plan, group.name, unit)))
            assert float(scores[unit]) == pytest.approx(float(saliency[lost].sum()), rel=1e-8, abs=1e-15)
    auto = fpt.FairPruneImportance(statistic="elementwise")
    auto.use(importance.plan, importance.statistics)
    assert importance.statistics is not None
    overall = fisher(importance.statistics)[:-1].sum(1) / importance.statistics.weight[:-1]
    assert auto.unprivileged == (NAMES[int(overall.argmax())],)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, BAD_BETA.format(got=-0.1)),
        ({"beta": math.nan}, BAD_BETA.format(got=math.nan)),
        ({"beta": "0.3"}, BAD_BETA.format(got="0.3")),
        ({"weighting": (9, -5, 1)}, BAD_WEIGHTING.format(got=(9, -5, 1))),
        ({"weighting": 9}, BAD_WEIGHTING.format(got=9)),
        ({"weighting": (-9, 5)}, BAD_WEIGHTING.format(got=(-9, 5))),
        ({"weighting": (9, -5), "beta": 0.2}, BETA_AND_WEIGHTING.format(a=9, b=-5, beta=5 / 9)),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_data(options: dict[str, Any], message: str) -> None:
    for make in (lambda: fpt.FairPruneImportance(**options), lambda: fpt.importance("fairprune", **options)):
        with pytest.raises(InputError) as raised:
            make()
        assert str(raised.value) == message


def test_groups_that_are_not_there_are_named() -> None:
    statistics = unit_statistics(*derivatives(), 3)
    for unprivileged in ("women", ["group 0", "women"], []):
        with pytest.raises(ScoreError) as raised:
            criteria.fairprune(statistics, unprivileged=unprivileged)
        assert str(raised.value) == NO_SUCH_GROUP.format(asked=unprivileged, have=["group 0", "group 1", "group 2"])
    with pytest.raises(ScoreError, match="nobody is left to compare"):
        criteria.fairprune(statistics, unprivileged=["group 0", "group 2", "group 1"])
    with pytest.raises(ScoreError, match=r"collect with fair_prune_plugins\.statistics\.collect_fisher"):
        criteria.fairprune(statistics, statistic="elementwise")


# --- signs ------------------------------------------------------------------------------------------------------------


WIDTHS = {"body.0.0": 12, "body.2.0": 16, "body.4.0": 10}
TAPS = {"body.0.0": Tap("body.2.0"), "body.2.0": Tap("body.4.0"), "body.4.0": Tap("fc", last=True)}


def signed_scores(model: nn.Module, batch: Batch, beta: float) -> dict[str, torch.Tensor]:
    """``h0 - beta * h_rest`` of a plain network's units, by autograd."""
    scores = {}
    for root, tap in TAPS.items():
        h = per_person(gate_derivatives(model, batch, [tap]).square(), batch["group"])
        scores[root] = h[0] - beta * h[1:].mean(0)
    return scores


@pytest.mark.parametrize("pruner_class", ["FairPruner", "BasePruner", "MetaPruner"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("beta", [0.6, 30.0])
def test_negative_scores_keep_their_order_through_the_pruners(beta: float, pruner_class: str, together: bool) -> None:
    model, batch = build("plain").double(), faces(24, dtype=torch.float64)
    scores = signed_scores(model, batch, beta)
    everything = torch.cat([*scores.values()])
    assert (everything < 0).any()
    if beta == 30:  # the mean is negative everywhere, and dividing by it would turn all orders around
        assert all(s.mean() < 0 for s in scores.values())
    removed = 19 if together else None  # half of all
    lowest = everything.sort().values[18]
    expected = {
        root: set((s <= lowest).nonzero().flatten().tolist())
        if removed
        else set(torch.argsort(s)[: WIDTHS[root] // 2].tolist())
        for root, s in scores.items()
    }
    assert all(len(gone) < WIDTHS[root] for root, gone in expected.items())
    importance = fpt.FairPruneImportance(unprivileged="0", beta=beta)
    options: dict[str, Any] = {"pruning_ratio": 0.5, "ignored_layers": [model.fc], "global_pruning": together}
    if pruner_class == "FairPruner":
        options |= {"round_to": None, "max_pruning_ratio": 1.0}
        pruner: Any = fpt.FairPruner(model, batch["inputs"][:1], importance, **options)
    elif pruner_class == "BasePruner":
        pruner = host_pruner(model, importance, **options)
    else:
        options |= {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
        pruner = tp.pruner.MetaPruner(model, batch["inputs"][:1], importance, **options)
    importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    pruner.step()
    gone = {name: {int(i) for i in idxs} for name, _, idxs in pruner.pruning_history()}
    assert gone == {root: units for root, units in expected.items() if units}


def test_dividing_by_the_mean_as_the_host_does_would_turn_the_order_around() -> None:
    """Why ours go around the host's normalisers."""
    scores = torch.tensor([-3.0, -1.0, 2.0, -4.0])
    host = tp.importance.GroupMagnitudeImportance()
    assert host.normalizer == "mean"
    turned = host._normalize(scores, "mean")
    assert torch.equal(turned.argsort(), scores.argsort(descending=True))
    assert not hasattr(fpt.FairPruneImportance(), "normalizer")
