"""FairPruner's guards, each beside what the host does without them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency.group import Group

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.criteria import keep_fraction_schedule
from fair_prune_plugins.errors import InputError, ScoreError, UnsupportedModelError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.torch_pruning.pruner import NO_STEPS_LEFT
from fair_prune_plugins.torch_pruning.scoring import MISSING_SCORES, WRONG_LENGTH
from integration_tests.networks import CLASSES, build
from integration_tests.pruning_oracles import Snapshot, faces, host_pruner, sample_loss

IMAGE = torch.zeros(1, 3, 16, 16)


def random_scores(group: Any) -> torch.Tensor:
    """The same scores for the same width, whoever asks."""
    return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(len(group[0].idxs)))


# --- norms ------------------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, width), norm(width), nn.Linear(width, 3)
        with torch.no_grad():
            for p in self.norm.parameters():
                p.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))

    def with_kept(self, keep: list[int], x: torch.Tensor) -> torch.Tensor:
        """What the network computes with only these channels, by indexing."""
        h = F.linear(x, self.first.weight[keep], self.first.bias[keep])
        weight = self.norm.weight[keep]
        if isinstance(self.norm, nn.LayerNorm):
            h = F.layer_norm(h, (len(keep),), weight, self.norm.bias[keep], self.norm.eps)
        else:
            h = F.rms_norm(h, (len(keep),), weight, self.norm.eps)
        return F.linear(torch.relu(h), self.last.weight[:, keep], self.last.bias)


def kept_of(scores: torch.Tensor, ratio: float) -> list[int]:
    removed = math.ceil(len(scores) * ratio - 1e-9)
    return sorted(torch.argsort(scores)[removed:].tolist())


@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.75, 0.9, 0.95])
def test_layer_norm_weights_stay_in_order_where_the_host_permutes_them(ratio: float) -> None:
    """The host's keep list is a set; at width 192 it comes out unsorted once at most about 30 % are kept."""
    x = torch.randn(16, 8)
    errors = {}
    for name in ("host", "ours"):
        torch.manual_seed(1)
        model = Normalised(192, nn.LayerNorm)
        scores = torch.rand(192, generator=torch.Generator().manual_seed(192))
        expected = model.with_kept(kept_of(scores, ratio), x).detach()
        if name == "host":
            pruner: Any = host_pruner(
                model, random_scores, example_inputs=x, pruning_ratio=ratio, ignored_layers=[model.last]
            )
        else:
            pruner = fpt.FairPruner(model, x, random_scores, pruning_ratio=ratio, round_to=None)
        pruner.step()
        assert model.norm.normalized_shape == (math.floor(192 * (1 - ratio) + 1e-9),)
        errors[name] = float((model(x).detach() - expected).abs().max())
    assert errors["ours"] < 1e-5
    assert (errors["host"] > 1e-2) is (ratio >= 0.7)


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_rms_norm_is_pruned_where_the_host_leaves_abroken_model(ratio: float) -> None:
    x = torch.randn(16, 8)
    model, theirs = Normalised(48, nn.RMSNorm), Normalised(48, nn.RMSNorm)
    scores = torch.rand(48, generator=torch.Generator().manual_seed(48))
    expected = model.with_kept(kept_of(scores, ratio), x).detach()
    fpt.FairPruner(model, x, random_scores, pruning_ratio=ratio, round_to=None).step()
    torch.testing.assert_close(model(x), expected)
    host_pruner(theirs, random_scores, example_inputs=x, pruning_ratio=ratio, ignored_layers=[theirs.last]).step()
    with pytest.raises(RuntimeError):
        theirs(x)


# --- what the pruner leaves as it was ---------------------------------------------------------------------------------


def test_dictionaries_are_the_pruners_own_where_the_hosts_are_shared() -> None:
    defaults = {
        name: p.default
        for name, p in inspect.signature(tp.pruner.BasePruner.__init__).parameters.items()
        if isinstance(p.default, dict)
    }
    for table in defaults.values():
        table.clear()
    try:
        model = build("conv groups")
        ours = [fpt.FairPruner(model, IMAGE, random_scores, round_to=None) for _ in range(2)]
        assert not any(defaults.values())
        assert ours[0].out_channel_groups == {model.grouped[0]: 4}
        assert ours[0].out_channel_groups is not ours[1].out_channel_groups
        assert ours[0].in_channel_groups is not ours[1].in_channel_groups
        tp.pruner.BasePruner(model, IMAGE, random_scores)
        assert defaults["out_channel_groups"] == {model.grouped[0]: 4}
        mine: dict[nn.Module, int] = {}
        fpt.FairPruner(model, IMAGE, random_scores, out_channel_groups=mine, num_heads=mine, round_to=None)
        assert mine == {}
    finally:
        for table in defaults.values():
            table.clear()


@pytest.mark.parametrize("training", [True, False])
def test_modes_gradients_and_buffers_stay_where_the_host_switches_to_eval(training: bool) -> None:
    model = build("residual").train(training)
    model.stem.train(not training)
    batch = faces()
    with torch.enable_grad():
        sample_loss(model(batch["inputs"]), batch["targets"]).sum().backward()
    model.stem[0].weight.requires_grad_(False)
    modes = {n: m.training for n, m in model.named_modules()}
    before = Snapshot.of(model)
    importance = fpt.FairGRAPEImportance()
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None)
    importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    assert Snapshot.of(model) == before
    pruner.step()
    assert {n: m.training for n, m in model.named_modules()} == modes
    host_pruner(model, random_scores)
    assert not any(m.training for m in model.modules())


def test_frozen_layers_are_pruned_and_stay_frozen_where_the_host_thaws_or_skips_them() -> None:
    def frozen() -> nn.Module:
        model = build("attention, fused")
        model.positions.requires_grad_(False)
        for layer in (model.patches, model.blocks[0].norm1, model.blocks[1].fc1):
            layer.requires_grad_(False)
        return model

    model = frozen()
    thawed = {n for n, p in model.named_parameters() if p.requires_grad}
    pruner = fpt.FairPruner(model, IMAGE, random_scores, round_to=None)
    assert set(pruner.gate_plan().frozen) == {"patches", "positions", "blocks.0.norm1", "blocks.1.fc1"}
    pruner.step()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == thawed
    assert model.patches.out_channels == 8
    assert model.positions.shape[-1] == 8
    assert model.blocks[1].fc1.out_features == 10
    theirs = build("plain")
    theirs.body[0][0].requires_grad_(False)
    host_pruner(theirs, random_scores, ignored_layers=[theirs.fc]).step()
    changed = theirs.body[0][0].weight.requires_grad or theirs.body[0][0].out_channels == 12
    assert changed


def test_no_optimizer_is_needed_and_users_lists_are_not_written_into() -> None:
    model = build("attention, fused")
    unwrapped = [(model.positions, 2)]
    ignored = [model.head]
    pruner = fpt.FairPruner(
        model, IMAGE, random_scores, unwrapped_parameters=unwrapped, ignored_layers=ignored, round_to=None
    )
    pruner.step()
    assert len(unwrapped) == 1
    assert ignored == [model.head]
    assert model.class_token.shape == (1, 1, 8)


# --- scores -----------------------------------------------------------------------------------------------------------


def nan_at_one(group: Any) -> torch.Tensor:
    scores = random_scores(group)
    if len(scores) == 16:
        scores[3] = math.nan
    return scores


def infinite(group: Any) -> torch.Tensor:
    return random_scores(group) / (len(group[0].idxs) != 16)


def nothing(group: Any) -> torch.Tensor | None:
    return None if len(group[0].idxs) == 16 else random_scores(group)


def too_few(group: Any) -> torch.Tensor:
    return random_scores(group)[: 15 if len(group[0].idxs) == 16 else None]


def listed(group: Any) -> Any:
    scores = random_scores(group)
    return scores.tolist() if len(scores) == 16 else scores


def two_dimensional(group: Any) -> torch.Tensor:
    return random_scores(group)[:, None] if len(group[0].idxs) == 16 else random_scores(group)


@pytest.mark.parametrize("mode", [{}, {"global_pruning": True}], ids=["local", "global"])
@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (nan_at_one, r"nan_at_one|function.*'body\.2\.0' that are not finite \(1 of 16\): nothing was pruned"),
        (infinite, r"'body\.2\.0' that are not finite \(16 of 16\)"),
        (nothing, MISSING_SCORES.format(importance="function", layer="body.2.0")),
        (too_few, WRONG_LENGTH.format(importance="function", got=15, layer="body.2.0", expected=16)),
        (listed, WRONG_LENGTH.format(importance="function", got="list", layer="body.2.0", expected=16)),
        (two_dimensional, r"shape \(16, 1\) scores for 'body\.2\.0'"),
    ],
)
def test_bad_scores_of_any_importance_name_the_layer_and_change_nothing(
    importance: Any, message: str, mode: dict[str, bool]
) -> None:
    model = build("plain")
    before = Snapshot.of(model)
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None, **mode)  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match=message):
        pruner.step()
    assert Snapshot.of(model) == before
    assert pruner.pruning_history() == []
    pruner.importance = random_scores
    report = pruner.step()
    assert report.step == 1
    assert sum(r.kept for r in report.widths) == 19


def test_the_hosts_own_nan_scores_are_refused_too() -> None:
    """All gradients zero: the host's Taylor divides zero by zero, and its global ranking silently prunes nothing."""
    models = [build("plain") for _ in range(2)]
    for model in models:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    importance = tp.importance.GroupTaylorImportance()
    host_pruner(models[0], importance, global_pruning=True, ignored_layers=[models[0].fc]).step()
    assert models[0].body[0][0].out_channels == 12
    with pytest.raises(ScoreError, match=r"GroupTaylorImportance gave scores for .* not finite"):
        fpt.FairPruner(models[1], IMAGE, importance, global_pruning=True, round_to=None).step()


# --- rankings over several layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("isomorphic", [False, True])
def test_ties_at_a_global_threshold_do_not_over_prune(isomorphic: bool) -> None:
    def tied(group: Any) -> torch.Tensor:
        return (torch.arange(len(group[0].idxs)) >= 2).float()

    def widths(model: nn.Module) -> int:
        return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))

    model, theirs = build("plain"), build("plain")
    pruner = fpt.FairPruner(
        model, IMAGE, tied, pruning_ratio=0.25, global_pruning=True, isomorphic=isomorphic, round_to=None
    )
    report = pruner.step()
    if not isomorphic:
        assert widths(model) == math.floor(38 * 0.75)
        host_pruner(theirs, tied, pruning_ratio=0.25, global_pruning=True, ignored_layers=[theirs.fc]).step()
        assert widths(theirs) < widths(model) or widths(theirs) == 38
    assert widths(model) == sum(r.kept for r in report.widths) >= math.floor(38 * 0.75)


def test_the_maximum_ratio_holds_inside_a_step() -> None:
    def skewed(group: Any) -> torch.Tensor:
        return random_scores(group) * (1e-3 if len(group[0].idxs) == 16 else 1)

    def widths(model: nn.Module) -> list[int]:
        return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]

    model, theirs = build("plain"), build("plain")
    options: dict[str, Any] = {"pruning_ratio": 0.3, "max_pruning_ratio": 0.5, "global_pruning": True}
    report = fpt.FairPruner(model, IMAGE, skewed, round_to=None, **options).step()
    assert widths(model)[1] == 8
    assert sum(widths(model)) == math.floor(38 * 0.7)
    assert sum(r.kept for r in report.widths) == sum(widths(model))
    host_pruner(theirs, skewed, ignored_layers=[theirs.fc], **options).step()
    assert widths(theirs)[1] == 4


def test_a_floor_that_makes_the_ratio_impossible_is_told() -> None:
    model = build("plain")
    pruner = fpt.FairPruner(
        model, IMAGE, random_scores, pruning_ratio=0.8, max_pruning_ratio=0.5, pruning_ratio_dict=None, round_to=None
    )
    report = pruner.step()
    assert [(r.asked, r.kept) for r in report.widths] == [(5, 5), (8, 8), (6, 6)]


# --- structures -------------------------------------------------------------------------------------------------------


class AddedConcatenation(nn.Module):
    """``wide`` comes first, so its coupled group holds both inputs of the concatenation it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.left, self.right = nn.Conv2d(3, 10, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.wide(x) + torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(F.relu(h).mean((2, 3)))


@pytest.mark.parametrize("mode", [{}, {"global_pruning": True}], ids=["local", "global"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_no_input_of_a_concatenation_is_emptied(side: str, mode: dict[str, bool]) -> None:
    def one_sided(group: Any) -> torch.Tensor:
        scores = 1 + random_scores(group)
        if len(scores) == 10:
            scores[slice(0, 4) if side == "left" else slice(4, 10)] -= 1
        return scores

    for ratio in (0.4, 0.6, 0.9):
        model = AddedConcatenation()
        report = fpt.FairPruner(model, IMAGE, one_sided, pruning_ratio=ratio, round_to=None, **mode).step()
        left, right = model.left.out_channels, model.right.out_channels
        assert min(left, right) >= 1
        kept = max(math.floor(10 * (1 - ratio) + 1e-9), 2)
        assert left + right == model.wide.out_channels == model.fc.in_features == kept
        assert sum(r.kept for r in report.widths) == kept
        assert model(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)


def test_a_convolution_with_one_output_is_not_taken_for_a_depthwise_one() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Sigmoid(), nn.Conv2d(1, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
    )  # fmt: skip
    report = fpt.FairPruner(model, IMAGE, random_scores, round_to=None).step()
    assert [(m.in_channels, m.out_channels) for m in model if isinstance(m, nn.Conv2d)] == [(3, 4), (4, 1), (1, 3)]
    assert report.not_pruned == {"2": "it has a single unit", "8": "it is an output of the model"}


def test_conv_groups_go_down_to_one_channel_each_and_no_further() -> None:
    model = build("conv groups")
    pruner = fpt.FairPruner(model, IMAGE, random_scores, pruning_ratio=0.9, iterative_steps=3, round_to=None)
    for _ in range(3):
        pruner.step()
        assert torch.isfinite(model(torch.randn(2, 3, 16, 16))).all()
    assert (model.grouped[0].in_channels, model.grouped[0].out_channels, model.grouped[0].groups) == (4, 4, 4)


# --- all or nothing ---------------------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Runs with any width of ``body`` down to ``least``, and with ``fixed`` only as built."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 20, 3)
        self.bn, self.fixed, self.fc = nn.BatchNorm2d(20), nn.Linear(20, 6), nn.Linear(3, CLASSES)
        self.least = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn(self.body(F.relu(self.stem(x)))))
        if h.shape[1] < self.least:
            raise RuntimeError("too narrow")
        return self.fc(F.relu(self.fixed(h.mean((2, 3)))).view(-1, 2, 3).sum(1))


def test_what_breaks_the_forward_is_refused_before_anything_is_removed() -> None:
    model = Fragile()
    with pytest.warns(UserWarning, match="not pruned: the coupled group of 'fixed'"):
        pruner = fpt.FairPruner(model, IMAGE, random_scores, round_to=None)
    report = pruner.step()
    assert (model.stem.out_channels, model.body.out_channels, model.fixed.out_features) == (6, 10, 6)
    assert "fixed" in report.not_pruned
    only = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    with pytest.raises(UnsupportedModelError, match="no coupled group of the model can be pruned"):
        fpt.FairPruner(only, IMAGE, random_scores, round_to=None)


def quiet(model: nn.Module, importance: Any, **options: Any) -> fpt.FairPruner:
    options.setdefault("round_to", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fpt.FairPruner(model, IMAGE, importance, **options)


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = faces()
    sample_loss(model(batch["inputs"]), batch["targets"]).mean().backward()
    optimizer.step()
    return optimizer


def test_a_step_whose_result_does_not_run_is_undone_and_the_next_pruner_goes_on() -> None:
    model = Fragile().train()
    optimizer = trained(model)
    pruner = quiet(model, random_scores, pruning_ratio=0.8)
    model.least = 6  # what the proof could not know
    before = Snapshot.of(model)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"RuntimeError: too narrow.*put back"):
            pruner.step()
        assert Snapshot.of(model) == before
        assert pruner.pruning_history() == []
        assert pruner.current_step == 0
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}
    model.least = 1
    pruner.step()
    assert (model.stem.out_channels, model.body.out_channels) == (2, 4)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Removal that works once and then raises what ``plan["error"]`` says."""
    plan: dict[str, Any] = {"error": None, "calls": 0}
    real = Group.prune

    def prune(group: Any, *arguments: Any, **keywords: Any) -> None:
        plan["calls"] += 1
        real(group, *arguments, **keywords)
        if plan["error"] is not None and plan["calls"] == 2:
            raise plan["error"]

    monkeypatch.setattr(Group, "prune", prune)
    return plan


@pytest.mark.parametrize("error", [RuntimeError("sabotage"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "network", ["residual", "conv groups", "mobilenet-v2", "layernorm (convnext)", "attention, fused"]
)
def test_a_step_that_fails_midway_is_undone_bit_by_bit(
    network: str, error: BaseException, broken: dict[str, Any]
) -> None:
    options: dict[str, Any] = {
        "round_to": None,
        "iterative_steps": 2,
        "prune_num_heads": True,
        "head_pruning_ratio": 0.5,
    }
    model, reference = build(network), build(network)
    trained(model)
    reference.load_state_dict(model.state_dict())
    pruner, untouched = (fpt.FairPruner(m, IMAGE, random_scores, **options) for m in (model, reference))
    for step in (1, 2):
        before, history = Snapshot.of(model), list(pruner.pruning_history())
        heads, groups = dict(pruner.num_heads), dict(pruner.out_channel_groups)
        broken.update(error=error, calls=0)
        with pytest.raises(type(error)):
            pruner.step()
        assert broken["calls"] == 2
        assert Snapshot.of(model) == before
        assert pruner.pruning_history() == history
        assert (pruner.num_heads, pruner.out_channel_groups) == (heads, groups)
        broken.update(error=None)
        report = pruner.step()
        assert report.as_dict() == untouched.step().as_dict()
        assert report.step == step
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(model.eval()(x), reference.eval()(x))


def test_a_failed_step_forgets_nothing_the_user_said_of_bare_parameters(broken: dict[str, Any]) -> None:
    """The graph is built anew after a failure; by itself the host would cut this parameter along its rows."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, CLASSES)
            self.rows = nn.Parameter(torch.rand(8, 16, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(F.relu(self.second(F.relu(self.first(x) * self.rows))).mean((2, 3)))

    model = Scaled()
    pruner = fpt.FairPruner(
        model, IMAGE, random_scores, unwrapped_parameters=[(model.rows, 0)], iterative_steps=3, round_to=None
    )
    for kept in (6, 5, 4):
        before = Snapshot.of(model)
        broken.update(error=RuntimeError("sabotage"), calls=0)
        with pytest.raises(RuntimeError, match="sabotage"):
            pruner.step()
        assert Snapshot.of(model) == before
        broken.update(error=None)
        pruner.step()
        assert (model.first.out_channels, model.rows.shape) == (kept, (kept, 16, 1))


def test_scores_that_fail_to_come_change_nothing() -> None:
    class Angry(Exception):
        pass

    def angry(group: Any) -> torch.Tensor:
        raise Angry

    model = build("plain")
    before = Snapshot.of(model)
    pruner = fpt.FairPruner(model, IMAGE, angry, round_to=None)
    with pytest.raises(Angry):
        pruner.step()
    assert Snapshot.of(model) == before


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_ratio": 1.0}, r"pruning_ratio must lie in \[0, 1\), got 1.0"),
        ({"pruning_ratio": -0.1}, "pruning_ratio must lie in"),
        ({"pruning_ratio": math.nan}, "pruning_ratio must lie in"),
        ({"head_pruning_ratio": 1.5}, "head_pruning_ratio must lie in"),
        ({"pruning_ratio_dict": {"conv": 1.0}}, "a ratio of pruning_ratio_dict must lie in"),
        ({"head_pruning_ratio_dict": {"conv": 1.0}}, "a ratio of head_pruning_ratio_dict must lie in"),
        ({"max_pruning_ratio": 1.1}, "max_pruning_ratio must lie in"),
        ({"max_pruning_ratio": -0.1}, "max_pruning_ratio must lie in"),
        ({"iterative_steps": 0}, "iterative_steps must be at least 1"),
        ({"round_to": 0}, "round_to must be a positive number"),
        ({"round_to": -8}, "round_to must be a positive number"),
        ({"iterative_pruning_ratio_scheduler": lambda ratio, steps: [ratio]}, "must give 1 \\+ 1 cumulative"),
        ({"iterative_pruning_ratio_scheduler": lambda ratio, steps: [0.0, 1.0]}, "must give 1 \\+ 1 cumulative"),
        ({"iterative_pruning_ratio_scheduler": keep_fraction_schedule(0.9)}, "take at least 7 steps"),
    ],
)
def test_arguments_out_of_range_are_refused_and_change_nothing(options: dict[str, Any], message: str) -> None:
    model = build("plain").train()
    options = {k: {model.body[0][0]: v["conv"]} if k.endswith("_dict") else v for k, v in options.items()}
    before = Snapshot.of(model)
    with pytest.raises(InputError, match=message):
        fpt.FairPruner(model, IMAGE, random_scores, **options)
    assert Snapshot.of(model) == before
    assert all(m.training for m in model.modules())


def test_steps_run_out() -> None:
    model = build("plain")
    pruner = fpt.FairPruner(model, IMAGE, random_scores, iterative_steps=2, round_to=None)
    pruner.step()
    pruner.step()
    before = Snapshot.of(model)
    with pytest.raises(InputError) as raised:
        pruner.step()
    assert str(raised.value) == NO_STEPS_LEFT.format(steps=2)
    assert Snapshot.of(model) == before


def test_a_ratio_of_zero_removes_nothing() -> None:
    model = build("plain")
    before = Snapshot.of(model)
    report = fpt.FairPruner(model, IMAGE, random_scores, pruning_ratio=0.0, round_to=None).step()
    assert Snapshot.of(model) == before
    assert report.macs == report.macs_before
    assert all(r.kept == r.initial and not r.reason for r in report.widths)


def test_a_coupled_group_that_was_never_proved_is_not_pruned() -> None:
    model, x = build("plain"), torch.randn(2, 3, 16, 16)
    pruner = fpt.FairPruner(model, x, fpt.MagnitudeImportance(), pruning_ratio=0.5, round_to=None)
    pruner._plan = replace(pruner._plan, groups=pruner._plan.groups[:-1])
    with pytest.raises(UnsupportedModelError, match="never proved"):
        pruner.step()
    assert pruner.current_step == 0
    assert {g.status for g in build_plan(model, x, prove_groups=False).groups} == {"unproved"}


def test_a_step_report_prints_every_width_and_what_was_left_alone() -> None:
    model, x = build("plain"), torch.randn(2, 3, 16, 16)
    model.get_submodule("body.2").requires_grad_(False)
    report = fpt.FairPruner(model, x, fpt.MagnitudeImportance(), pruning_ratio=0.5, round_to=None).step()
    text = str(report)
    for width in report.widths:
        assert f"{width.name}: kept {width.kept} of {width.initial}, {width.asked} asked" in text
    assert "fc: left alone, it is an output of the model" in text
    assert "frozen and pruned with their coupled group: body.2.0" in text
