"""The pruners for NNI alone: what they measure, what they leave as it was."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import nni
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.criteria import criterion, registry
from fair_prune_plugins.errors import FairPruneError, InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.statistics import collect
from fair_prune_plugins.statistics.units import UnitStatistics
from integration_tests.gate_oracles import Gates
from integration_tests.networks import NETWORKS, build
from integration_tests.nni_pruning import batches, inner_layers, kept, mean_loss, plain_loop, torch_evaluator

# After the one above, which imports NNI.
from nni.compression import TorchEvaluator  # isort: skip
from fair_prune_plugins.nni.criterion_pruner import NO_EVALUATOR, NO_EXAMPLE, NO_SENSITIVE_GROUP  # isort: skip
from fair_prune_plugins.nni.pruners import (  # isort: skip
    FairGRAPEPruner,
    FairTaylorPruner,
    GateTaylorPruner,
    MagnitudePruner,
    WorstGroupTaylorPruner,
    class_named,
    pruner_class,
)

State = dict[str, torch.Tensor]


def state_of(model: nn.Module) -> State:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


CONV = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
NETS = [n for n in NETWORKS if n not in ("attention, fused", "attention, separate", "nn.MultiheadAttention")]


@pytest.mark.parametrize("name", NETS)
def test_statistics_are_those_of_the_plain_model_and_the_lowest_scores_are_masked(name: str) -> None:
    model, data = build(name), batches()
    plan = build_plan(copy.deepcopy(model), data[0][0])

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.flatten(2).mean(2) if outputs.ndim > 2 else outputs, targets % outputs.shape[1])

    # The loss of each person by itself, where NNI's training step has the mean alone.
    def each(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.stack([loss(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])

    expected = collect(plan, data, each, groups=2, progress=False)
    layers = inner_layers(model, plan, nn.Conv2d, nn.Linear)
    config = [{"op_names": layers, "sparse_ratio": 0.4}]
    evaluator = torch_evaluator(model, data, lambda batch, net: loss(net(batch[0]), batch[1]))
    pruner = FairTaylorPruner(model, config, evaluator, len(data), groups=2)
    _, masks = pruner.compress()
    found = pruner.statistics
    assert found is not None
    assert found.columns == expected.columns
    assert found.counts == expected.counts
    for state in ("sum", "absolute", "square", "weight_square"):
        torch.testing.assert_close(getattr(found, state), getattr(expected, state), rtol=1e-4, atol=1e-9)
    balanced = (expected.absolute[:-1] / expected.weight[:-1, None]).mean(0)
    for group in plan.prunable:
        first, size = expected.columns[group.units.name]
        scores = balanced[first : first + size]
        for site in group.producers:
            if site.path not in layers or isinstance(model.get_submodule(site.path), nn.ConvTranspose2d):
                continue
            of_channel = scores[group.units.of_root[site.roots]]
            mask = masks[site.path]["weight"].flatten(1).any(1)[site.channels]
            assert int((~mask).sum()) == int(0.4 * len(mask))
            assert of_channel[~mask].max() <= of_channel[mask].min()


def test_scores_by_hand() -> None:
    """Per person and gate by automatic differentiation, one person at a time; NNI's masks from nothing else."""
    model, data = build("residual").double(), batches(2, 8, dtype=torch.float64)
    plan = build_plan(copy.deepcopy(model), data[0][0])
    x, y, who = (torch.cat([b[i] for b in data]) for i in range(3))
    s = Gates(model, x, plan).per_sample(x, lambda out, n: F.cross_entropy(out, y[n : n + 1]))
    pruner = WorstGroupTaylorPruner(
        model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.3}], torch_evaluator(model, data), 2, groups=2
    )
    _, masks = pruner.compress()
    for group in plan.prunable:
        per_group = torch.stack([s[group.units.name][who == g].abs().mean(0) for g in (0, 1)]).amax(0)
        lowest = per_group.argsort()[: int(0.3 * group.units.size)].tolist()
        for site in group.producers:
            gone = set(range(group.channels)) - set(kept(masks[site.path]["weight"]))
            assert gone == set(lowest)


class Loop:
    """Training functions that do what people's do, and some that should not."""

    def __init__(self, name: str, data: list[Any]) -> None:
        self.name, self.data = name, data

    def __call__(
        self,
        model: Any,
        optimizers: Any,
        step: Any,
        schedulers: Any = None,
        max_steps: Any = None,
        max_epochs: Any = None,
    ) -> None:
        if self.name == "plain":
            plain_loop(self.data)(model, optimizers, step, schedulers, max_steps, max_epochs)
            return
        model.train()
        for n, batch in enumerate(self.data * 50):
            penalty = sum(p.square().sum() for p in model.parameters()) if self.name == "penalty" else 0.0
            loss = torch.zeros(()) if self.name == "closure" else step(batch, model) + penalty
            if self.name == "scaled":
                loss = loss * 1024
            if self.name == "closure":

                def closure(batch: Any = batch) -> torch.Tensor:
                    again = step(batch, model)
                    again.backward()
                    return again

                optimizers.step(closure)
            else:
                loss.backward()
                if self.name == "scaled":
                    for p in model.parameters():
                        p.grad /= 1024  # fails where a parameter has no gradient
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizers.step()
            if self.name == "batch norms":
                model(batch[0])
            if self.name == "no end" and n == 5:
                return
            if schedulers is not None:
                schedulers.step()
            if max_steps is not None and n + 1 >= max_steps and self.name != "no end":
                return


@pytest.mark.parametrize("loop", ["plain", "penalty", "scaled", "closure", "batch norms", "no end"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_nothing_is_trained(loop: str, optimizer: str) -> None:
    model, data = build("residual").train(), batches()
    model.fc.eval()
    if optimizer == "sgd":
        traced = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    else:
        traced = nni.trace(torch.optim.AdamW)(model.parameters(), lr=0.5, weight_decay=0.1)
    scheduler = nni.trace(torch.optim.lr_scheduler.StepLR)(traced, 1, 0.5)
    evaluator = TorchEvaluator(Loop(loop, data), traced, mean_loss, scheduler)
    before = state_of(model)
    pruner = FairTaylorPruner(model, CONV, evaluator, 3, groups=2)
    gradient = torch.ones_like(model.fc.weight)
    model.fc.weight.grad = gradient
    pruner.compress()
    assert model.fc.weight.grad is gradient
    assert bool((gradient == 1).all())
    wrapped = [p for name, p in model.named_parameters() if "_nni_wrapper" in name]
    assert wrapped
    assert all(p.grad is None for p in wrapped)
    assert model.training
    assert not model.fc.training
    expected = collect(build_plan(build("residual"), data[0][0]), data, nn.CrossEntropyLoss(), groups=2, progress=False)
    assert pruner.statistics is not None
    torch.testing.assert_close(pruner.statistics.absolute, expected.absolute, rtol=1e-4, atol=1e-9)
    pruner.unwrap_model()
    assert same(state_of(model), before)
    assert all(p.requires_grad for p in model.parameters())


def test_a_loop_that_writes_weights_itself_is_undone() -> None:
    def clamping(model: Any, _optimizers: Any, step: Any, _s: Any, max_steps: Any, _e: Any) -> None:
        for batch in batches(max_steps):
            step(batch, model)
            for p in model.parameters():
                p.data.clamp_(-0.01, 0.01)

    model = build("plain")
    before = state_of(model)
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    pruner = GateTaylorPruner(model, CONV, TorchEvaluator(clamping, optimizer, mean_loss), 2)
    pruner.compress()
    data = batches(2)
    expected = collect(build_plan(build("plain"), data[0][0]), data, nn.CrossEntropyLoss(), progress=False)
    assert pruner.statistics is not None
    torch.testing.assert_close(pruner.statistics.absolute, expected.absolute, rtol=1e-4, atol=1e-9)
    pruner.unwrap_model()
    assert same(state_of(model), before)


def test_the_model_comes_back_wrapped_and_masked() -> None:
    model, data = build("residual"), batches()
    pruner = FairTaylorPruner(model, CONV, torch_evaluator(model, data), 3, groups=2)
    returned, masks = pruner.compress()
    assert returned is model
    zeroed = build("residual")
    with torch.no_grad():
        for name, targets in masks.items():
            zeroed.get_submodule(name).weight.mul_(targets["weight"])
        assert torch.equal(model.eval()(data[0][0]), zeroed(data[0][0]))


def test_optimizers_work_again_afterwards() -> None:
    model, data = build("plain"), batches()
    GateTaylorPruner(model, CONV, torch_evaluator(model, data), 2).compress()
    other = nn.Linear(2, 2)
    before = other.weight.detach().clone()
    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(other.weight, before)


def as_dict(batch: Any) -> dict[str, Any]:
    return {"image": batch[0], "label": batch[1], "gender": ["m" if g else "f" for g in batch[2]], "age": batch[1] % 2}


def dict_step(batch: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    labels = batch.pop("label")  # a step may take the batch apart, and write into it
    outputs = model(batch["image"].sub_(0.5))
    return {"loss": F.cross_entropy(outputs, labels), "outputs": outputs}


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ("gender", ("f", "m")),
        (lambda batch: batch["gender"], ("f", "m")),
        (["gender", "age"], ("f x 0", "f x 1", "m x 0", "m x 1")),
        ({"sex": "gender"}, ("f", "m")),
    ],
)
def test_dict_batches(groups: Any, names: tuple[str, ...]) -> None:
    model, data = build("plain"), [as_dict(b) for b in batches()]
    pruner = FairTaylorPruner(model, CONV, torch_evaluator(model, data, dict_step), 3, groups=groups)
    pruner.compress()
    assert pruner.statistics is not None
    assert pruner.statistics.names == names
    assert all("label" in batch for batch in data)
    assert all(torch.equal(batch["image"], fresh[0]) for batch, fresh in zip(data, batches(), strict=True))


@dataclasses.dataclass(frozen=True)
class Faces:
    images: torch.Tensor
    labels: torch.Tensor
    who: torch.Tensor

    def loss(self, model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(self.images), self.labels)


def test_batches_of_a_class_of_their_own_measure_the_same() -> None:
    found = []
    for data, step, groups in (
        (batches(), mean_loss, 2),
        ([Faces(*b) for b in batches()], lambda batch, net: batch.loss(net), lambda batch: batch.who),
    ):
        model = build("plain")
        pruner = FairTaylorPruner(model, CONV, torch_evaluator(model, data, step), 3, groups=groups)
        pruner.compress()
        assert pruner.statistics is not None
        found.append(pruner.statistics.absolute)
    torch.testing.assert_close(found[1], found[0])


STEPS: dict[str, Callable[[Any, nn.Module], Any]] = {
    "tuple": lambda batch, model: (mean_loss(batch, model), "more"),
    "sum": lambda batch, model: F.cross_entropy(model(batch[0]), batch[1], reduction="sum"),
    "in parts": lambda batch, model: mean_loss(batch, lambda x: model.fc(model.body(x).mean((2, 3)))),
}


@pytest.mark.parametrize("step", ["tuple", "sum"])
def test_steps_of_other_forms_measure_the_same(step: str) -> None:
    def measured(which: Callable[..., Any]) -> torch.Tensor:
        model = build("plain")
        pruner = GateTaylorPruner(model, CONV, torch_evaluator(model, batches(), which), 3)
        pruner.compress()
        assert pruner.statistics is not None
        return pruner.statistics.absolute

    torch.testing.assert_close(measured(STEPS[step]), measured(mean_loss), rtol=1e-4, atol=1e-9)


def test_a_step_that_runs_parts_of_the_model_needs_a_dummy_input() -> None:
    model, data = build("plain"), batches()
    evaluator = torch_evaluator(model, data, STEPS["in parts"])
    config = [{"op_names": ["body.0.0", "body.2.0"], "sparse_ratio": 0.5}]
    with pytest.raises(InputError, match=re.escape("exclude_op_names=['body.4.0']")):
        GateTaylorPruner(copy.deepcopy(model), CONV, torch_evaluator(model, data, STEPS["in parts"]), 2).compress()
    pruner = GateTaylorPruner(model, config, evaluator, 2, dummy_input=data[0][0])
    _, masks = pruner.compress()
    assert len(kept(masks["body.0.0"]["weight"])) == 6


def test_reduction_is_checked() -> None:
    weights = torch.tensor([1.0, 5.0, 1.0, 2.0, 9.0])

    def weighted(batch: Any, model: nn.Module, reduction: str = "mean") -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weights, reduction=reduction)

    model, data = build("plain"), batches()
    evaluator = torch_evaluator(model, data, weighted)
    with pytest.raises(InputError, match=r"neither the mean nor the sum.*in scoring_step= a function"):
        GateTaylorPruner(model, CONV, evaluator, 2).compress()
    model = build("plain")
    with pytest.raises(InputError, match="reduction='sum' was declared"):
        GateTaylorPruner(model, CONV, torch_evaluator(model, data), 2, reduction="sum").compress()
    model = build("plain")
    evaluator = torch_evaluator(model, data, weighted)
    pruner = GateTaylorPruner(
        model, CONV, evaluator, 3, scoring_step=lambda batch, net: weighted(batch, net, "none"), reduction="none"
    )
    pruner.compress()
    plan = build_plan(build("plain"), data[0][0])
    each = nn.CrossEntropyLoss(weights, reduction="none")
    assert pruner.statistics is not None
    torch.testing.assert_close(
        pruner.statistics.square, collect(plan, data, each, progress=False).square, rtol=1e-4, atol=1e-12
    )


def test_a_loop_gets_what_its_own_step_returns_beside_a_scoring_step() -> None:
    def squared(batch: Any, net: nn.Module) -> torch.Tensor:
        return net(batch["image"]).square().mean(1)

    seen: list[Any] = []

    def loop(model: Any, optimizers: Any, step: Any, _s: Any, max_steps: Any, _e: Any) -> None:
        for batch in data[:max_steps] + data:
            optimizers.zero_grad()
            returned = step(batch, model)
            returned["loss"].backward()
            optimizers.step()
            seen.append(returned)

    model, data = build("plain"), [as_dict(b) for b in batches()]
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for scoring in (squared, None):
        seen.clear()
        evaluator = TorchEvaluator(loop, optimizer, dict_step)
        GateTaylorPruner(copy.deepcopy(model), CONV, evaluator, 3, scoring_step=scoring).compress()
        assert len(seen) == 6
        for returned, batch in zip(seen, data + data, strict=True):
            with torch.no_grad():
                fresh = dict_step({**batch, "image": batch["image"].clone()}, model)
            assert set(returned) == set(fresh)
            assert float(returned["loss"].detach()) == pytest.approx(float(fresh["loss"]))
            torch.testing.assert_close(returned["outputs"], fresh["outputs"])


# What cannot be done


def test_what_is_missing_is_said_at_construction() -> None:
    model, data = build("plain"), batches()
    before = state_of(model)
    evaluator = torch_evaluator(model, data)
    wrong: list[tuple[type, dict[str, Any], str]] = [
        (FairTaylorPruner, {"evaluator": evaluator, "training_steps": 2}, NO_SENSITIVE_GROUP),
        (FairGRAPEPruner, {"evaluator": evaluator, "training_steps": 2}, NO_SENSITIVE_GROUP),
        (GateTaylorPruner, {"training_steps": 2}, NO_EVALUATOR),
        (MagnitudePruner, {}, NO_EXAMPLE),
    ]
    for cls, arguments, message in wrong:
        with pytest.raises(InputError, match=re.escape(message.format(pruner=cls.__name__))):
            cls(model, CONV, **arguments)
    for arguments, match in [
        ({"training_steps": 0}, "positive integer, got 0"),
        ({"training_steps": 1, "reduction": "median"}, "reduction= must be one of"),
        ({"training_steps": 1, "scoring_step": 3}, "scoring_step= must be a function"),
        ({"training_steps": 1, "statistics": "square"}, "no option 'statistics'"),
        ({"training_steps": 1, "statistic": "elementwise"}, "elementwise"),
    ]:
        with pytest.raises(InputError, match=match):
            FairTaylorPruner(model, CONV, evaluator, groups=2, **arguments)
    unreadable: Any = 2.5
    with pytest.raises(InputError, match="groups= must be a key"):
        FairTaylorPruner(model, CONV, evaluator, 1, groups=unreadable)
    with pytest.raises(InputError, match=r"evaluator= must be a TorchEvaluator.*got a SGD"):
        FairTaylorPruner(model, CONV, torch.optim.SGD(model.parameters(), lr=0.1), 1, groups=2)
    assert same(state_of(model), before)
    assert not any("_nni_wrapper" in name for name, _ in model.named_modules())
    three: Any = np.int64(3)
    assert FairTaylorPruner(model, CONV, evaluator, three, groups=2).training_steps == 3


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (5, "no 5 to take the sensitive group from"),
        (lambda batch: batch[2][:-1], "15 values for a batch of 16"),
        (lambda batch: [None] * 16, "every group is unknown"),
        (lambda batch: 1 / 0, "batch 0: the sensitive groups cannot be read .ZeroDivisionError"),
        (lambda batch: iter(()), "0 values for a batch of 16"),
    ],
)
def test_groups_that_fail_leave_model_and_evaluator_usable(groups: Any, match: str) -> None:
    model, data = build("residual"), batches()
    before = state_of(model)
    evaluator = torch_evaluator(model, data)
    pruner = FairTaylorPruner(model, CONV, evaluator, 3, groups=groups)
    with pytest.raises(InputError, match=match):
        pruner.compress()
    assert evaluator.model is None
    assert evaluator._training_step is mean_loss
    pruner.unwrap_model()
    assert same(state_of(model), before)
    _, masks = FairTaylorPruner(model, CONV, evaluator, 3, groups=2).compress()
    assert len(kept(masks["stem.0"]["weight"])) == 5


def test_an_error_is_raised_even_if_the_loop_swallows_it() -> None:
    def careless(model: Any, optimizers: Any, step: Any, _s: Any, max_steps: Any, _e: Any) -> None:
        for batch in batches(5):
            try:
                step(batch, model).backward()
            except Exception:
                continue

    model = build("plain")
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    evaluator = TorchEvaluator(careless, optimizer, mean_loss)
    with pytest.raises(InputError, match="batch 0"):
        FairTaylorPruner(model, CONV, evaluator, 3, groups=lambda batch: 1 / 0).compress()


def test_layers_that_cannot_be_pruned_are_named() -> None:
    model, data = build("residual"), batches()
    evaluator = torch_evaluator(model, data)
    pruner = GateTaylorPruner(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}], evaluator, 2)
    with pytest.raises(InputError, match=r"'fc' cannot be pruned.*output of the model.*exclude_op_names=\['fc'\]"):
        pruner.compress()
    model = build("residual")
    blocks = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    pruner = GateTaylorPruner(
        model, [{"op_names": blocks, "granularity": [2, 2], "sparse_ratio": 0.5}], torch_evaluator(model, data), 2
    )
    with pytest.raises(InputError, match=re.escape(f"leave out all of these: exclude_op_names={sorted(blocks)}")):
        pruner.compress()
    for config, match in [
        ({"op_names": ["stem.0"], "granularity": "in_channel"}, "'stem.0' cannot be pruned by its input channels"),
        ({"op_names": ["stem.0"], "granularity": [2, 2, 3, 3]}, "something else than whole channels"),
        ({"op_types": ["Conv3d"]}, "selects nothing"),
    ]:
        model = build("residual")
        pruner = GateTaylorPruner(model, [{"sparse_ratio": 0.5, **config}], torch_evaluator(model, data), 2)
        with pytest.raises(InputError, match=match):
            pruner.compress()


def test_loops_that_end_early_or_never_begin(caplog: pytest.LogCaptureFixture) -> None:
    model = build("plain")
    pruner = GateTaylorPruner(model, CONV, torch_evaluator(model, []), 3)
    with pytest.raises(InputError, match="measured nothing"):
        pruner.compress()
    model, data = build("plain"), batches()

    def two(model: Any, optimizers: Any, step: Any, *_: Any) -> None:
        for batch in data[:2]:
            step(batch, model).backward()

    evaluator = TorchEvaluator(two, nni.trace(torch.optim.SGD)(model.parameters(), lr=0.1), mean_loss)
    GateTaylorPruner(model, CONV, evaluator, 3).compress()
    assert "measured 2 batches of the 3" in caplog.text


def test_a_criterion_of_another_package_has_a_pruner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", registry._REGISTRY.copy())

    @criterion("last_units", summary="The last go first.", source="a test", needs_groups=True)
    def last_units(statistics: UnitStatistics, *, keep: int = 0) -> torch.Tensor:
        scores = torch.arange(statistics.sum.shape[1], 0, -1).double()
        scores[min(keep, len(scores) - 1)] += 100
        return scores

    cls = pruner_class("last_units")
    assert class_named("LastUnitsPruner") is cls
    assert "The last go first." in (cls.__doc__ or "")
    model = build("plain")
    _, masks = cls(
        model,
        [{"op_names": ["body.0.0"], "sparse_ratio": 0.5}],
        torch_evaluator(model, batches()),
        1,
        groups=2,
        keep=10,
    ).compress()
    assert kept(masks["body.0.0"]["weight"]) == [0, 1, 2, 3, 4, 10]
    assert pruner_class("fairgrape") is FairGRAPEPruner
    assert pruner_class("group_balanced_taylor") is FairTaylorPruner
    with pytest.raises(AttributeError):
        class_named("NoSuchPruner")
    with pytest.raises(FairPruneError, match="there is no criterion"):
        pruner_class("no_such")
