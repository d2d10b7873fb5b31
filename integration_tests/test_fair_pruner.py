"""FairPruner does what it says: kept counts, schedules, scopes, alignment, attention, reports, real networks."""

from __future__ import annotations

import copy
import json
import logging
import math
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria import keep_fraction_schedule, keep_fraction_steps
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.alignment import Alignment
from fair_prune_plugins.torch_pruning.selection import Candidate, decide_locally, decide_together
from integration_tests.networks import CLASSES, NETWORKS, build, heads_of
from integration_tests.pruning_oracles import faces, host_pruner, parameters, sample_loss

IMAGE = torch.zeros(1, 3, 16, 16)


def steps_of(pruner: fpt.FairPruner, batch: dict[str, Any] | None = None, steps: int = 1) -> list[fpt.StepReport]:
    """Collect where the importance is ours, and step."""
    reports = []
    for _ in range(steps):
        if isinstance(pruner.importance, fpt.FairImportance) and pruner.importance.criterion.needs_data:
            pruner.importance.collect(pruner, [batch or faces()], sample_loss, groups="group", progress=False)
        reports.append(pruner.step())
    return reports


def two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.ReLU(), nn.Linear(width, CLASSES))


# --- how many stay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [7, 10, 50, 64])
def test_the_keep_fraction_schedule_is_kept_at_every_step(width: int) -> None:
    kappa, ratio = 0.9, 0.9
    steps = keep_fraction_steps(ratio, kappa)
    model = two_layers(width)
    pruner = fpt.FairPruner(
        model, IMAGE, fpt.MagnitudeImportance(), pruning_ratio=ratio, iterative_steps=steps,
        iterative_pruning_ratio_scheduler=keep_fraction_schedule(kappa), round_to=None,
    )  # fmt: skip
    for step in range(1, steps + 1):
        fraction = max(kappa**step, 1 - ratio)
        expected = max(math.floor(width * fraction + 1e-9), 1)
        if pruner.gate_plan().prunable:
            (row,) = pruner.step().widths
            assert (row.kept, row.asked) == (expected, math.floor(width * fraction + 1e-9))
        assert model[1].out_features == model[3].in_features == expected


def test_the_host_keeps_one_too_few_where_ours_is_right() -> None:
    """In floating point int(20 * (1 - 0.8)) is 3 and int(10 * (1 - 0.9)) is 0."""
    wrong = []
    for width in range(2, 70):
        for percent in range(1, 100):
            right = width * (100 - percent) // 100
            host = int(width * (1 - percent / 100))
            if host != right:
                wrong.append((width, percent, right, host))
    assert {(20, 80, 4, 3), (10, 90, 1, 0)} <= set(wrong)
    assert all(host == right - 1 for *_, right, host in wrong)
    for width, percent, right, host in wrong[:: len(wrong) // 12]:
        if not right or not host:
            continue
        theirs, ours = two_layers(width), two_layers(width)
        importance = tp.importance.GroupMagnitudeImportance()
        host_pruner(theirs, importance, pruning_ratio=percent / 100, ignored_layers=[theirs[3]]).step()
        fpt.FairPruner(ours, IMAGE, importance, pruning_ratio=percent / 100, round_to=None).step()
        assert (theirs[1].out_features, ours[1].out_features) == (host, right)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_every_network_keeps_the_floor_and_runs(network: str, ratio: float) -> None:
    model = build(network)
    pruner = fpt.FairPruner(
        model,
        IMAGE,
        fpt.FairGRAPEImportance(),
        pruning_ratio=ratio,
        iterative_steps=2,
        num_heads=heads_of(model) or None,
        round_to=None,
    )
    before = {u.name: u.size for g in pruner.gate_plan().prunable for u in g.unit_sets}
    least = {"conv3": 2} if network == "flatten" else {}  # behind a concatenation: one channel of each input stays
    reports = steps_of(pruner, steps=2)
    for report, share in zip(reports, (ratio / 2, ratio), strict=True):
        rows = {r.name: r for r in report.widths}
        for name, size in before.items():
            if name in rows:
                asked = math.floor(size * (1 - share) + 1e-9)
                kept = max(asked, least.get(name, 1))
                assert (rows[name].initial, rows[name].asked, rows[name].kept) == (size, asked, kept)
    assert {r.name for r in reports[0].widths} == set(before)
    now = pruner.gate_plan()
    for name, size in before.items():
        group = next(g for g in now.groups if g.name == name)
        assert group.units.size == max(math.floor(size * (1 - ratio) + 1e-9), least.get(name, 1))
    outputs = model(torch.randn(3, 3, 16, 16))
    assert torch.isfinite(outputs).all()
    assert outputs.shape[1] == (2 if network == "transposed convolution" else CLASSES)


def test_the_target_of_the_dense_model_differs_from_the_current_one_and_is_the_same_at_first() -> None:
    kept: dict[str, list[dict[str, Any]]] = {}
    for target in ("current", "dense"):
        model = build("residual")
        pruner = fpt.FairPruner(
            model,
            IMAGE,
            fpt.FairGRAPEImportance(target=target),
            pruning_ratio=0.6,
            iterative_steps=4,
            round_to=None,  # type: ignore[arg-type]
        )
        kept[target] = []
        for step in range(4):
            steps_of(pruner, faces(24, seed=step))
            kept[target].append(copy.deepcopy(model.state_dict()))
    equal = [all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(kept["current"], kept["dense"], strict=True)]
    assert equal[0]
    assert not equal[-1]


def test_the_dense_target_of_a_reused_importance_is_of_the_model_at_hand() -> None:
    reused = fpt.FairGRAPEImportance(target="dense")
    other_model = build("residual", seed=3)
    steps_of(fpt.FairPruner(other_model, IMAGE, reused, iterative_steps=2, round_to=None), faces(24, seed=9), steps=2)
    results = []
    for importance in (reused, fpt.FairGRAPEImportance(target="dense")):
        model = build("residual")
        pruner = fpt.FairPruner(model, IMAGE, importance, pruning_ratio=0.7, iterative_steps=4, round_to=None)
        for step in range(4):
            steps_of(pruner, faces(24, seed=step))
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))


# --- selection, as pure functions -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.floats(0.1, 1),
    st.integers(0, 2**32 - 1),
)
def test_global_decisions_take_the_lowest_and_never_more_than_asked(
    sizes: list[tuple[int, int, int]], ratio: float, max_ratio: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    candidates = []
    for i, (width, parts, _) in enumerate(sizes):
        scores = torch.randint(0, 4, (width,), generator=generator).double()  # many ties
        cut = [p for p in torch.randperm(width, generator=generator).split(max(width // max(parts, 1), 1)) if parts]
        floor = max(math.ceil(width * (1 - max_ratio) - 1e-9), 1)
        candidates.append(Candidate(str(i), scores, width, floor, parts=cut))
    decisions = decide_together(candidates, ratio)
    total = sum(len(c.scores) for c in candidates)
    removed = sum(len(d.removed) for d in decisions)
    assert removed <= total - math.floor(total * (1 - ratio) + 1e-9)
    for c, d in zip(candidates, decisions, strict=True):
        gone = set(d.removed.tolist())
        assert len(gone) == len(d.removed)
        assert len(c.scores) - len(gone) >= c.floor
        for part in c.parts:
            assert set(part.tolist()) - gone
    if removed < total - math.floor(total * (1 - ratio) + 1e-9):
        assert all(
            d.reason or len(c.scores) - len(d.removed) == c.least for c, d in zip(candidates, decisions, strict=True)
        )


def multiples(step: int) -> Alignment:
    return Alignment(step, step, "a test", "as asked")


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 70), st.floats(0, 0.99), st.floats(0, 1), st.sampled_from([2, 4, 8, 16, 32]))
def test_alignment_takes_the_nearest_multiple_that_the_floor_allows(
    width: int, ratio: float, max_ratio: float, step: int
) -> None:
    floor = max(math.ceil(width * (1 - max_ratio) - 1e-9), 1)
    decision = decide_locally(Candidate("a", torch.arange(float(width)).double(), width, floor, multiples(step)), ratio)
    kept = width - len(decision.removed)
    asked = math.floor(width * (1 - ratio) + 1e-9)
    assert decision.asked == asked
    assert kept >= floor
    if max(asked, floor) >= width:
        assert kept == width
        return
    choices = [k for k in (*range(step, width, step), width) if k >= floor]
    if not choices:
        assert kept == width
    else:
        assert kept in choices
        assert abs(kept - max(asked, floor)) == min(abs(k - max(asked, floor)) for k in choices)
    assert bool(decision.reason) == (kept != asked)


def test_a_floor_holds_where_no_multiple_is_left() -> None:
    decision = decide_locally(Candidate("a", torch.arange(12.0).double(), 12, 10, multiples(8)), 0.5)
    assert len(decision.removed) == 0
    assert decision.reason == "kept whole, no multiple of 8 is nearer"


# --- alignment, scopes, ratios ----------------------------------------------------------------------------------------


def test_round_to_keeps_the_nearest_multiple_and_says_so() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 50, 3, padding=1), nn.ReLU(), nn.Conv2d(50, 6, 3), nn.ReLU(), nn.Conv2d(6, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    pruner = fpt.FairPruner(model, IMAGE, fpt.MagnitudeImportance(), pruning_ratio=0.5, round_to=8)
    rows = {r.name: r for r in pruner.step().widths}
    assert (rows["0"].asked, rows["0"].kept, rows["0"].reason) == (25, 24, "rounded to a multiple of 8")
    assert (rows["2"].asked, rows["2"].kept, rows["2"].reason) == (
        3,
        6,
        "narrower than 8: kept whole, no multiple of 8 is nearer",
    )
    assert (rows["4"].asked, rows["4"].kept, rows["4"].reason) == (12, 16, "rounded to a multiple of 8")
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == [24, 6, 16]


def test_the_schedule_with_round_to_is_reported_as_kept() -> None:
    """With kappa 0.9 and multiples of 8 the host keeps 40, 40, 32, 32 of 50; the nearest are 48, 40, 40, 32."""
    model = two_layers(50)
    pruner = fpt.FairPruner(
        model, IMAGE, fpt.MagnitudeImportance(), pruning_ratio=1 - 0.9**4, iterative_steps=4, round_to=8,
        iterative_pruning_ratio_scheduler=keep_fraction_schedule(0.9),
    )  # fmt: skip
    seen = []
    for _ in range(4):
        (row,) = pruner.step().widths
        assert row.kept == model[1].out_features
        assert (row.reason == "") is (row.kept == row.asked)
        seen.append((row.asked, row.kept))
    assert seen == [(45, 48), (40, 40), (36, 40), (32, 32)]


@pytest.mark.parametrize("round_to", [4, 8])
def test_round_to_is_about_all_channels_of_conv_groups(round_to: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3, groups=4), nn.ReLU(), nn.Conv2d(48, 8, 1), nn.Flatten(),
        nn.Linear(8 * 144, 5),
    )  # fmt: skip
    pruner = fpt.FairPruner(model, IMAGE, fpt.MagnitudeImportance(), pruning_ratio=0.45, round_to=round_to)
    rows = {r.name: r for r in pruner.step().widths}
    assert (rows["0"].initial, rows["0"].asked) == (12, 6)  # 12 units of 4 channels
    assert model[0].out_channels == model[2].out_channels == 24
    assert model[2].in_channels == 24
    assert model[2].groups == 4
    assert all(m.out_channels % round_to == 0 for m in model if isinstance(m, nn.Conv2d))


def test_round_to_is_about_the_width_of_the_heads_that_stay() -> None:
    """Three dimensions of four heads would be a multiple of 4, three of the two heads that stay are not."""
    model = build("attention, separate")
    pruner = fpt.FairPruner(
        model, IMAGE, fpt.TaylorImportance(), pruning_ratio=0.25, head_pruning_ratio=0.5, prune_num_heads=True,
        round_to=4,
    )  # fmt: skip
    (report,) = steps_of(pruner)
    for block in model.blocks:
        assert block.attn.num_heads == 2
        assert block.attn.q.out_features == 8
    assert {(r.asked, r.kept) for r in report.widths if r.kind == "head dimensions"} == {(3, 4)}
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_ratios_of_single_layers() -> None:
    model = build("plain")
    pruner = fpt.FairPruner(
        model,
        IMAGE,
        fpt.MagnitudeImportance(),
        pruning_ratio=0.5,
        pruning_ratio_dict={model.body[0][0]: 0.25, model.body[2]: 0.0},
        round_to=None,
    )
    report = pruner.step()
    assert {r.name: r.kept for r in report.widths} == {"body.0.0": 9, "body.2.0": 16, "body.4.0": 5}


@pytest.mark.parametrize("together", [False, True])
def test_ratios_of_a_tuple_of_layers_are_one_scope_in_a_global_ranking(together: bool) -> None:
    model = build("plain")
    with torch.no_grad():
        model.body[0][0].weight *= 0.01  # all of this layer ranks lowest
    pair = (model.body[0][0], model.body[2][0])

    def importance(group: Any) -> torch.Tensor:
        layer = group[0].dep.target.module
        return layer.weight.flatten(1).norm(dim=1)

    pruner = fpt.FairPruner(
        model,
        IMAGE,
        importance,
        pruning_ratio=0.0,
        pruning_ratio_dict={pair: 0.5},
        max_pruning_ratio=1.0,
        global_pruning=together,
        round_to=None,
    )
    rows = {r.name: r.kept for r in pruner.step().widths}
    assert rows["body.4.0"] == 10
    assert rows["body.0.0"] + rows["body.2.0"] == 14
    assert rows["body.0.0"] == (1 if together else 6)


def test_global_and_isomorphic_rankings_against_a_sort() -> None:
    for isomorphic in (False, True):
        model = build("residual")
        importance = fpt.GroupBalancedTaylorImportance()
        pruner = fpt.FairPruner(
            model, IMAGE, importance, pruning_ratio=0.4, global_pruning=True, isomorphic=isomorphic, round_to=None
        )
        importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
        plan = pruner.gate_plan()
        kinds = {"stem.0": "first", "blocks.1.shortcut.0": "first"}
        table = [
            (float(score), g.name, kinds.get(g.name, "inner") if isomorphic else "all")
            for g in plan.prunable
            for score in importance.root_scores(g)
        ]
        if isomorphic:  # groups of one kind have the same kinds of members, in order: here the inner convolutions
            table = [row for row in table if row[2] == "inner"]
        removed = sorted(table)[: len(table) - math.floor(len(table) * 0.6 + 1e-9)]
        rows = {r.name: r for r in pruner.step().widths}
        for name in {row[1] for row in table}:
            gone = sum(row[1] == name for row in removed)
            assert rows[name].kept == max(rows[name].before - gone, 1)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["attention, fused", "attention, separate"])
@pytest.mark.parametrize("found", [True, False], ids=["heads found", "heads named"])
def test_attention_modules_learn_their_heads_and_sizes(network: str, found: bool) -> None:
    model = build(network)
    pruner = fpt.FairPruner(
        model, IMAGE, fpt.FairGRAPEImportance(), pruning_ratio=0.5, head_pruning_ratio=0.5, prune_num_heads=True,
        iterative_steps=2, num_heads=None if found else heads_of(model), round_to=None,
    )  # fmt: skip
    for heads, size in ((3, 3), (2, 2)):
        (report,) = steps_of(pruner)
        rows = {(r.name.split(".")[1], r.kind): r.kept for r in report.widths}
        for i, block in enumerate(model.blocks):
            assert block.attn.num_heads == heads
            assert getattr(block.attn, "head_dim", size) == size
            assert block.attn.proj.in_features == heads * size
            assert rows[str(i), "heads"] == heads
            assert rows[str(i), "head dimensions"] == size
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_head_dimensions_alone_or_heads_alone() -> None:
    for options, heads, size in (
        ({"prune_head_dims": False, "prune_num_heads": True, "head_pruning_ratio": 0.5}, 2, 4),
        ({}, 4, 2),
        ({"prune_num_heads": True, "head_pruning_ratio": 0.75, "pruning_ratio": 0.75}, 1, 1),
        ({"prune_num_heads": True, "head_pruning_ratio": 0.25, "pruning_ratio": 0.75}, 3, 1),
    ):
        model = build("attention, fused")
        steps_of(fpt.FairPruner(model, IMAGE, fpt.TaylorImportance(), round_to=None, **options))  # type: ignore[arg-type]
        assert (model.blocks[0].attn.num_heads, model.blocks[0].attn.head_dim) == (heads, size)
        assert torch.isfinite(model(torch.randn(2, 3, 16, 16))).all()


def test_heads_of_all_layers_are_ranked_by_their_own_scores() -> None:
    """In a global ranking a constant of the layer between scores of heads and of head dimensions must not decide."""
    model = build("attention, separate")
    importance = fpt.TaylorImportance()
    pruner = fpt.FairPruner(
        model,
        IMAGE,
        importance,
        pruning_ratio=0.0,
        head_pruning_ratio=0.375,
        prune_num_heads=True,
        global_pruning=True,
        round_to=None,
    )
    statistics = importance.collect(pruner, [faces()], sample_loss, groups="group", progress=False)
    assert statistics is not None
    made_up = {
        "blocks.0.attn.proj[in]": [100.0] * 4,
        "blocks.0.attn.proj[in]#heads": [1.0, 5.0, 6.0, 7.0],
        "blocks.1.attn.proj[in]": [0.1] * 4,
        "blocks.1.attn.proj[in]#heads": [4.0, 2.0, 8.0, 3.0],
    }
    for name, values in made_up.items():
        first, size = statistics.columns[name]
        statistics.absolute[:, first : first + size] = statistics.weight[:, None] * torch.tensor(values)
    lost = {r.name: r.before - r.kept for r in pruner.step().widths if r.kind == "heads"}
    assert lost == {"blocks.0.attn.proj[in]#heads": 1, "blocks.1.attn.proj[in]#heads": 2}


# --- report -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_reports_hold_up_to_an_independent_count(network: str) -> None:
    model = build(network)
    params = parameters(model)
    macs, _ = tp.utils.count_ops_and_params(model, IMAGE)
    pruner = fpt.FairPruner(
        model,
        torch.zeros(3, 3, 16, 16),
        fpt.MagnitudeImportance(),
        pruning_ratio=0.6,
        num_heads=heads_of(model) or None,
        round_to=None,
    )
    report = pruner.step()
    assert (report.params_before, report.macs_before) == (params, macs)
    assert report.params == parameters(model) < params
    assert report.macs == tp.utils.count_ops_and_params(model, IMAGE)[0] < macs
    assert (report.step, report.pruning_ratio) == (1, 0.6)
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["widths"][0]["kept"] == report.widths[0].kept
    assert str(report.macs) in str(report).replace(",", "")
    state = sum(t.numel() for t in model.state_dict().values())
    assert state == sum(t.numel() for t in (*model.parameters(), *model.buffers()))


def test_macs_are_multiply_accumulates_of_one_sample() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 3, padding=1, stride=2, bias=False), nn.Flatten(),
        nn.Linear(384, 5, bias=False),
    )  # fmt: skip
    report = fpt.FairPruner(model, torch.zeros(7, 3, 16, 16), fpt.MagnitudeImportance(), round_to=None).step()
    assert report.macs_before == 9 * 3 * 8 * 256 + 9 * 8 * 6 * 64 + 384 * 5
    assert report.macs == 9 * 3 * 4 * 256 + 9 * 4 * 3 * 64 + 192 * 5


def test_what_is_left_alone_is_told_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    model = build("plain")
    with caplog.at_level(logging.INFO):
        pruner = fpt.FairPruner(model, IMAGE, fpt.MagnitudeImportance(), ignored_layers=[model.body[0]], round_to=None)
        report = pruner.step()
    assert report.not_pruned == {"fc": "it is an output of the model", "body.0.0": "ignored as asked"}
    assert model.body[0][0].out_channels == 12
    assert "fc is not pruned: it is an output of the model" in caplog.text
    assert "step 1: 13 of 26 units kept" in caplog.text


# --- any importance, any call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "importance",
    [
        tp.importance.GroupMagnitudeImportance(),
        tp.importance.RandomImportance(),
        tp.importance.LAMPImportance(),
        lambda group: torch.arange(len(group[0].idxs)),
    ],
    ids=["host magnitude", "host random", "host LAMP", "callable"],
)
def test_importances_of_the_host_and_of_anyone_work(importance: Any) -> None:
    model = build("residual")
    fpt.FairPruner(model, IMAGE, importance, pruning_ratio=0.5, round_to=None).step()
    assert model.blocks[0].conv1[0].out_channels == 5
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_the_hosts_taylor_works_with_gradients_that_survive_the_step() -> None:
    model = build("plain")
    batch = faces()
    sample_loss(model(batch["inputs"]), batch["targets"]).mean().backward()
    fpt.FairPruner(model, IMAGE, tp.importance.GroupTaylorImportance(), round_to=None).step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


class Keywords(nn.Module):
    """Two inputs by keyword, a dict out, and one more output under ``"features"``."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 10), nn.Linear(4, 10)
        self.features, self.classes = nn.Linear(10, 8), nn.Linear(10, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.relu(self.left(a) + self.right(b))
        return {"classes": self.classes(h), "features": self.features(h)}


class Pair(nn.Module):
    def __init__(self, inner: Keywords) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.inner(a, b)
        return out["classes"], out["features"]


@pytest.mark.parametrize("how", ["keywords", "positions", "forward_fn"])
def test_two_inputs_and_two_outputs(how: str) -> None:
    inner = Keywords()
    model: nn.Module = inner if how != "positions" else Pair(inner)
    a, b = torch.randn(5, 6), torch.randn(5, 4)
    inputs: Any = {"keywords": {"a": a, "b": b}, "positions": (a, b), "forward_fn": [a, b]}[how]
    forward_fn = (lambda m, x: m(a=x[0], b=x[1])) if how == "forward_fn" else None
    pruner = fpt.FairPruner(model, inputs, fpt.MagnitudeImportance(), forward_fn=forward_fn, round_to=None)
    report = pruner.step()
    assert (inner.left.out_features, inner.right.out_features, inner.features.in_features) == (5, 5, 5)
    assert (inner.features.out_features, inner.classes.out_features) == (8, 3)
    assert set(report.not_pruned.values()) == {"it is an output of the model"}
    assert len(report.not_pruned) == 2
    assert report.params == parameters(model)


def test_an_output_in_the_middle_of_the_network_keeps_its_width() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = torch.relu(self.second(torch.relu(self.first(x))))
            return self.last(h), h

    model = Middle()
    with pytest.warns(UserWarning, match="'second': removal changes the shape of an output"):
        pruner = fpt.FairPruner(model, torch.zeros(2, 6), fpt.MagnitudeImportance(), round_to=None)
    report = pruner.step()
    assert (model.first.out_features, model.second.out_features, model.last.out_features) == (6, 12, 3)
    assert set(report.not_pruned) == {"second", "last"}


def test_interactive_groups_are_the_callers_to_prune() -> None:
    models = [build("residual"), build("residual")]
    for model, interactive in zip(models, (False, True), strict=True):
        pruner = fpt.FairPruner(model, IMAGE, fpt.MagnitudeImportance(), round_to=None)
        if interactive:
            for group in pruner.step(interactive=True):
                group.prune()
        else:
            pruner.step()
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))
    with pytest.raises(InputError, match="all 1 steps were taken"):
        pruner.step(interactive=True)


# --- networks of others -----------------------------------------------------------------------------------------------


def other(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "timm vit":
        import timm

        return timm.create_model(
            "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES
        ).eval()
    from torchvision import models

    if name == "torchvision vit":
        return models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=CLASSES).eval()
    if name == "resnet":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES).eval()
    if name == "bottleneck":
        return models.ResNet(
            models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=4, width_per_group=8
        ).eval()
    if name == "mobilenet v3":
        return models.mobilenet_v3_small(num_classes=CLASSES).eval()
    return models.mobilenet_v2(width_mult=0.25, num_classes=CLASSES).eval()


@pytest.mark.parametrize("name", ["timm vit", "resnet", "bottleneck", "mobilenet v2", "mobilenet v3"])
def test_networks_of_timm_and_torchvision(name: str) -> None:
    model = other(name)
    image = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = {"inputs": image, "targets": torch.arange(6) % CLASSES, "group": torch.arange(6) % 2}
    pruner = fpt.FairPruner(model, image[:1], fpt.FairGRAPEImportance(), pruning_ratio=0.5, round_to=None)
    assert not [g for g in pruner.gate_plan().groups if g.status != "exact"]
    before = parameters(model)
    (report,) = steps_of(pruner, batch)
    assert report.params == parameters(model) < 0.5 * before
    assert all(r.kept == r.asked for r in report.widths)
    assert set(report.not_pruned.values()) <= {"it is an output of the model", "it has a single unit"}
    assert model(image).shape == (6, CLASSES)
    if name == "timm vit":
        assert [b.attn.head_dim for b in model.blocks] == [8, 8]
