"""Pruning down to a cost: the search, the two arms of a comparison, schedules, latencies, and what cannot be had."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import onnxruntime
import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.structure import CoupledGroup, UnitSet
from fair_prune_plugins.latency import probe
from fair_prune_plugins.latency.alignment import Alignment
from fair_prune_plugins.torch_pruning.choices import Choice
from fair_prune_plugins.torch_pruning.search import cheapest_ratio_within
from fair_prune_plugins.torch_pruning.selection import Decision, kept_count
from integration_tests.networks import CLASSES, build, conv_bn, heads_of
from integration_tests.pruning_oracles import Snapshot, faces, parameters, sample_loss

IMAGE = torch.zeros(2, 3, 16, 16)
CRITERIA = ["magnitude", "taylor", "group_balanced_taylor", "worst_group_taylor", "fairgrape"]


def macs_by_hand(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-accumulates of one sample in convolutions, linear layers and norms, from the shapes they see."""
    total = 0

    def convolution(m: Any, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        positions, filters = y[0, 0].numel(), m.weight[0].numel()
        total += positions * m.out_channels * (filters + (m.bias is not None))

    def linear(m: Any, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        total += y[0].numel() // m.out_features * m.out_features * (m.in_features + (m.bias is not None))

    handles = [
        m.register_forward_hook(convolution if isinstance(m, nn.Conv2d) else linear)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model.eval()(inputs[:1])
    for handle in handles:
        handle.remove()
    return total


def wide(seed: int = 0) -> nn.Module:
    """Wide enough that aligned widths leave a choice."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = conv_bn(3, 48), conv_bn(48, 64), conv_bn(64, 48)
            self.third, self.fc = conv_bn(48, 96, stride=2), nn.Linear(96, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            x = x + self.second(torch.relu(self.first(x)))
            return self.fc(torch.relu(self.third(x)).mean((2, 3)))

    return Net().eval()


def pruner_to(model: nn.Module, target: fpt.CostTarget, criterion: str = "magnitude", **options: Any) -> fpt.FairPruner:
    options.setdefault("round_to", None)
    return fpt.FairPruner(model, IMAGE, fpt.importance(criterion), target=target, **options)


def stepped(pruner: fpt.FairPruner) -> fpt.StepReport:
    if pruner.importance.criterion.needs_data:
        pruner.importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
    report = pruner.step()
    assert isinstance(report, fpt.StepReport)
    return report


# --- the search -------------------------------------------------------------------------------------------------------


def group_of(name: str, units: int) -> CoupledGroup:
    return CoupledGroup(
        name, name, True, units, (UnitSet(name, "channels", units, torch.arange(units)),), (), (), (), (), ()
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=6),
    st.floats(0.02, 1.2),
    st.sampled_from([1, 4, 16]),
)
def test_the_search_never_exceeds_the_goal_and_leaves_nothing_that_still_fits(
    layers: list[tuple[int, int]], fraction: float, block: int
) -> None:
    """Costs are linear in the widths, so what fits can be listed by hand."""
    groups = [group_of(str(i), width) for i, (width, _) in enumerate(layers)]
    alignment = Alignment(block, block, "a test", "as asked")

    def choose(ratio: float) -> tuple[Choice, ...]:
        chosen = []
        for group in groups:
            width = group.channels
            keep = alignment.fit(max(kept_count(width, ratio), 1), width)
            chosen.append(Choice(group, {group.name: Decision(keep, torch.arange(width - keep))}))
        return tuple(chosen)

    def cost(choices: Sequence[Choice]) -> float:
        return float(sum((c.kept("channels") or 0) * price for c, (_, price) in zip(choices, layers, strict=True)))

    goal = fraction * sum(width * price for width, price in layers)
    least = cost(choose(1 - 1e-4))
    if least > goal:
        with pytest.raises(UnsupportedModelError, match="the cost target cannot be reached"):
            cheapest_ratio_within(choose, cost, goal, 0.01)
        return
    found = cheapest_ratio_within(choose, cost, goal, 0.01)
    assert found.cost == cost(found.choices) <= goal
    if found.cost >= 0.99 * goal or fraction >= 1:
        return
    for (width, price), choice in zip(layers, found.choices, strict=True):
        kept = choice.kept("channels") or 0
        possible = {alignment.fit(count, width) for count in range(1, width + 1)}
        assert all(found.cost + (wider - kept) * price > goal for wider in possible if wider > kept)


@pytest.mark.parametrize("goal", [100.0, 140.0])
def test_a_model_within_the_goal_loses_nothing(goal: float) -> None:
    group = group_of("a", 100)

    def choose(ratio: float) -> tuple[Choice, ...]:
        gone = 100 - max(kept_count(100, ratio), 1)
        return (Choice(group, {"a": Decision(100 - gone, torch.arange(gone))}),)

    found = cheapest_ratio_within(choose, lambda c: float(c[0].kept("channels") or 0), goal, 0.01)
    assert (found.cost, found.ratio, found.choices[0].removed()) == (100, 0, 0)


# --- MACs and parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["plain", "residual", "mobilenet-v2", "densenet", "conv groups", "flatten"])
@pytest.mark.parametrize("fraction", [0.6, 0.25])
def test_the_asked_fraction_of_macs_is_reached_from_below(network: str, fraction: float) -> None:
    model = build(network)
    dense, _ = tp.utils.count_ops_and_params(model, IMAGE[:1])
    by_hand = macs_by_hand(model, IMAGE)
    report = stepped(pruner_to(model, fpt.CostTarget(macs=fraction)))
    macs, _ = tp.utils.count_ops_and_params(model, IMAGE[:1])
    assert report.cost is not None
    assert report.cost.reached == report.macs == macs <= fraction * dense
    assert report.cost.fraction == macs / dense
    assert macs >= 0.8 * fraction * dense  # tiny widths: a channel is some percent of such a network
    # The host counts norms and activations too, which shrink with the width and not with its square.
    assert macs_by_hand(model, IMAGE) / by_hand <= fraction + 0.02


@pytest.mark.parametrize("options", [{}, {"global_pruning": True}, {"global_pruning": True, "isomorphic": True}])
@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_wide_networks_come_within_the_stated_tolerance(quantity: Any, options: dict[str, Any]) -> None:
    model = wide()
    dense = dict(zip(("macs", "params"), tp.utils.count_ops_and_params(model, IMAGE[:1]), strict=True))
    report = stepped(pruner_to(model, fpt.CostTarget(**{quantity: 0.3}, tolerance=0.02), **options))
    now = dict(zip(("macs", "params"), tp.utils.count_ops_and_params(model, IMAGE[:1]), strict=True))
    assert 0.98 * 0.3 <= now[quantity] / dense[quantity] <= 0.3
    if quantity == "params":
        assert parameters(model) == now["params"]
    assert report.pruning_ratio == report.cost.ratio if report.cost else False


def test_one_width_vector_is_shared_by_all_criteria_and_macs_are_exactly_equal() -> None:
    """The first arm of a comparison: what differs between criteria is which units stay, never how many."""
    widths, costs, kept = [], [], []
    for criterion in CRITERIA:
        model = wide()
        pruner = pruner_to(model, fpt.CostTarget(macs=0.3), criterion, round_to=16, iterative_steps=2)
        reports = [stepped(pruner), stepped(pruner)]
        widths.append([[(w.name, w.kept) for w in r.widths] for r in reports])
        costs.append([r.macs for r in reports])
        kept.append(model.first[0].weight.shape)
    assert all(w == widths[0] for w in widths)
    assert all(c == costs[0] for c in costs)
    assert all(k == kept[0] for k in kept)
    assert all(kept_units % 16 == 0 for step in widths[0] for _, kept_units in step)


def test_each_criterion_has_its_own_widths_in_the_second_arm_at_equal_macs() -> None:
    widths, costs = {}, {}
    for criterion in ("taylor", "group_balanced_taylor", "worst_group_taylor"):
        model = wide()
        report = stepped(pruner_to(model, fpt.CostTarget(macs=0.3), criterion, global_pruning=True))
        widths[criterion] = tuple(w.kept for w in report.widths)
        costs[criterion] = report.macs
    assert len(set(widths.values())) > 1
    assert max(costs.values()) <= 1.01 / 0.99 * min(costs.values())


@pytest.mark.parametrize("mode", [{}, {"isomorphic": True}])
def test_one_ranking_over_all_layers_does_not_empty_any(mode: dict[str, Any]) -> None:
    """Where a layer's units matter least, the host leaves one of them, or gives up on the layer."""

    def worthless_third(group: Any) -> torch.Tensor:
        width = len(group[0].idxs)
        return torch.arange(width) * (1e-6 if width == 96 else 1.0) + 1e-3

    kept = {}
    for limit in (None, 1.0):
        model = wide()
        fpt.FairPruner(
            model, IMAGE, worthless_third, target=fpt.CostTarget(macs=0.5), global_pruning=True, round_to=None,
            max_pruning_ratio=limit, **mode,
        ).step()  # fmt: skip
        kept[limit] = model.third[0].out_channels
    assert kept[1.0] < 10 <= kept[None] if not mode else kept[None] >= 10
    for ratio, floor in ((0.5, 10), (0.95, 3)):
        model = wide()
        fpt.FairPruner(
            model, IMAGE, worthless_third, pruning_ratio=ratio, global_pruning=True, round_to=None
        ).step()  # fmt: skip
        assert model.third[0].out_channels >= floor


def test_steps_share_the_cost_out_as_the_schedule_says() -> None:
    model = wide()
    dense, _ = tp.utils.count_ops_and_params(model, IMAGE[:1])
    pruner = pruner_to(
        model, fpt.CostTarget(macs=0.4), iterative_steps=3,
        iterative_pruning_ratio_scheduler=lambda total, steps: [0.0, total / 2, total * 0.75, total],
    )  # fmt: skip
    for fraction in (0.7, 0.55, 0.4):
        report = stepped(pruner)
        assert report.cost is not None
        assert 0.97 * fraction <= report.macs / dense <= fraction
        assert report.cost.asked == pytest.approx(fraction * dense)


def test_layers_with_a_ratio_of_their_own_keep_it() -> None:
    model = wide()
    pruner = pruner_to(model, fpt.CostTarget(macs=0.4), pruning_ratio_dict={model.first: 0.25})
    report = stepped(pruner)
    assert model.first[0].out_channels == 48
    assert report.cost is not None
    assert report.cost.fraction <= 0.4


def test_attention_heads_and_dimensions_count() -> None:
    model = build("attention, fused")
    dense, _ = tp.utils.count_ops_and_params(model, IMAGE[:1])
    pruner = pruner_to(
        model, fpt.CostTarget(macs=0.5), num_heads=heads_of(model), prune_num_heads=True, head_pruning_ratio=0.5
    )
    report = stepped(pruner)
    assert {w.kind for w in report.widths} == {"channels", "head dimensions", "heads"}
    assert report.macs <= 0.5 * dense
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)


def test_models_that_are_called_in_their_own_way_are_costed_in_it() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("residual")

        def forward(self, *, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(image)}

    plain, keyword, forwarded = build("residual"), Called(), build("residual")
    macs = [stepped(pruner_to(plain, fpt.CostTarget(macs=0.4))).macs]
    options: dict[str, Any] = {"target": fpt.CostTarget(macs=0.4), "round_to": None}
    for model, inputs, forward in (
        (keyword, {"image": IMAGE}, None),
        (forwarded, {"x": IMAGE}, lambda m, batch: m(batch["x"])),
    ):
        pruner = fpt.FairPruner(model, inputs, fpt.importance("magnitude"), forward_fn=forward, **options)
        macs.append(stepped(pruner).macs)
    assert macs[0] == macs[1] == macs[2]


def test_what_cannot_be_reached_is_said_and_nothing_is_changed() -> None:
    model = wide()
    pruner = pruner_to(model, fpt.CostTarget(macs=0.05), max_pruning_ratio=0.5)
    before = Snapshot.of(model)
    with pytest.raises(UnsupportedModelError, match=r"cannot be reached: .* MACs asked, .* left.*max_pruning_ratio"):
        pruner.step()
    assert Snapshot.of(model) == before
    assert pruner.current_step == 0


def test_the_search_leaves_a_training_model_as_it_was_until_it_is_pruned() -> None:
    model = build("residual").train()
    loss = model(torch.randn(4, 3, 16, 16)).square().mean()
    loss.backward()
    pruner = pruner_to(model, fpt.CostTarget(params=0.5))
    stepped(pruner)
    assert all(m.training for m in model.modules())
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_a_report_with_a_cost_is_plain_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = stepped(pruner_to(wide(), fpt.CostTarget(macs=0.5), round_to=16))
    told = json.loads(json.dumps(report.as_dict()))["cost"]
    assert told["quantity"] == "macs"
    assert told["reached"] <= told["asked"]
    assert f"{told['fraction']:.1%} of the dense model's" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is one of macs, params, latency or latency_ms, got none"),
        ({"macs": 0.5, "params": 0.5}, "got macs, params"),
        ({"macs": 0.0}, r"CostTarget\(macs=...\) is a fraction .* got 0.0"),
        ({"params": 1.0}, r"CostTarget\(params=...\) is a fraction"),
        ({"latency": 33}, r"CostTarget\(latency=...\) is a fraction"),
        ({"latency_ms": -1}, "a time in milliseconds above 0, got -1"),
        ({"macs": 0.5, "tolerance": 0}, "the tolerance of a CostTarget"),
    ],
)
def test_targets_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fpt.CostTarget(**options)


def test_a_ratio_and_a_target_cannot_both_be_meant() -> None:
    with pytest.raises(InputError, match="pass one of them"):
        pruner_to(wide(), fpt.CostTarget(macs=0.5), pruning_ratio=0.5)


# --- widths the runtime rewards ---------------------------------------------------------------------------------------


def test_groups_outside_the_fast_layout_are_named() -> None:
    model = wide()
    report = stepped(fpt.FairPruner(model, IMAGE, fpt.importance("magnitude"), pruning_ratio=0.3, round_to=None))
    odd = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.out_channels % 4}
    assert odd
    assert set(report.misaligned) <= odd
    assert "outside ONNX Runtime's fast layout" in str(report)
    aligned = wide()
    report = stepped(fpt.FairPruner(aligned, IMAGE, fpt.importance("magnitude"), pruning_ratio=0.3))
    assert report.misaligned == ()
    assert all(m.out_channels % 4 == 0 for m in aligned.modules() if isinstance(m, nn.Conv2d))


def test_each_conv_group_is_aligned_by_itself() -> None:
    """ONNX Runtime computes the channels of a conv group in blocks of their own: 2 x 24 cost more than 2 x 32."""
    model = nn.Sequential(
        nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 96, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(96 * 144, CLASSES),
    )  # fmt: skip
    alignment = Alignment(16, 4, "a test", "made up")
    fpt.FairPruner(model, IMAGE, fpt.importance("magnitude"), pruning_ratio=0.5, round_to=alignment).step()
    assert model[2].in_channels // 2 == model[2].out_channels // 2 == 32  # 24 asked; 16 is as near, the larger is kept


def test_linear_layers_and_narrow_dense_convolutions_are_not_said_to_be_slow() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 30), nn.ReLU(), nn.Linear(30, CLASSES))
    narrow = nn.Sequential(nn.Conv2d(3, 14, 3), nn.ReLU(), nn.Conv2d(14, 40, 3), nn.Flatten(), nn.Linear(5760, CLASSES))
    for model, slow in ((linear, ()), (narrow, ("2",))):
        pruner = fpt.FairPruner(model, IMAGE, fpt.importance("magnitude"), pruning_ratio=0.25, round_to=None)
        pruner._runtime = Alignment(16, 4, "a test", "made up")
        width = {"0": 10, "2": 30}
        report = pruner.step()
        assert report.misaligned == slow
        assert all(w.kept == width.get(w.name, w.kept) for w in report.widths)


@pytest.mark.parametrize("value", [0, -4, 2.5, "fast", True])
def test_widths_that_nothing_can_be_rounded_to_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"round_to must be a positive number of channels, 'auto'"):
        fpt.FairPruner(wide(), IMAGE, fpt.importance("magnitude"), round_to=value)


# --- latencies --------------------------------------------------------------------------------------------------------


class ParameterClock:
    """A probe in whose time a parameter takes a microsecond."""

    def __init__(self, dense: nn.Module, inputs: Any, **_: Any) -> None:
        self.dense = parameters(dense)

    def __call__(self, model: nn.Module) -> tuple[float, float]:
        return parameters(model) / 1000, parameters(model) / self.dense


DENSE = parameters(wide())


@pytest.mark.parametrize("target", [fpt.CostTarget(latency=0.5), fpt.CostTarget(latency_ms=DENSE / 2000)])
def test_a_latency_is_searched_for_like_any_cost(target: fpt.CostTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LatencyProbe", ParameterClock)
    model = wide()
    report = stepped(pruner_to(model, target))
    assert report.cost is not None
    assert 0.95 * 0.5 <= parameters(model) / DENSE <= 0.5
    assert report.cost.fraction == pytest.approx(parameters(model) / DENSE)
    assert report.cost.quantity == target.quantity


def test_a_model_that_is_fast_enough_already_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LatencyProbe", ParameterClock)
    with pytest.raises(InputError, match=r"already, no more than the .* ms asked for"):
        pruner_to(wide(), fpt.CostTarget(latency_ms=DENSE / 1000))


@pytest.mark.parametrize("call", ["plain", "keywords", "forward_fn"])
def test_the_probe_times_the_model_it_is_given(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files it times is checked by running them; how long they take is the machine's business."""
    monkeypatch.setattr(probe, "MIN_SECONDS", 0.01)
    inputs: Any = {"image": IMAGE} if call == "keywords" else {"x": IMAGE} if call == "forward_fn" else IMAGE

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = wide()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    model = Keyword() if call == "keywords" else wide()
    forward = (lambda m, batch: m(batch["x"])) if call == "forward_fn" else None
    timer = probe.LatencyProbe(model, inputs, forward_fn=forward, threads=1, batch_size=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    milliseconds, relative = timer(model)
    assert milliseconds > 0
    assert relative > 0
    x = torch.randn(2, 3, 16, 16)
    session = onnxruntime.InferenceSession(timer._exported(model), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model.eval()(x) if forward is None else forward(model.eval(), {"x": x})
    torch.testing.assert_close(torch.from_numpy(found), expected.detach(), atol=1e-5, rtol=1e-4)
