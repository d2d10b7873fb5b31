"""What FairPruner is told: refused where it means nothing, and honoured in every way of calling and stepping."""

from __future__ import annotations

import platform
import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, ScoreError, UnsupportedModelError
from fair_prune_plugins.latency import alignment, probe
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from integration_tests.networks import CLASSES, build, heads_of
from integration_tests.pruning_oracles import Snapshot, faces, sample_loss

IMAGE = torch.zeros(2, 3, 16, 16)


def pruner_of(model: nn.Module, **options: Any) -> fpt.FairPruner:
    return fpt.FairPruner(model, IMAGE, fpt.MagnitudeImportance(), **{"round_to": None, **options})


# --- refused ----------------------------------------------------------------------------------------------------------


def another_layer(_: nn.Module) -> nn.Module:
    return nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda m: {"target": 0.5}, "target must be a CostTarget"),
        (lambda m: {"ch_sparsity": 0.1}, "ch_sparsity is an old name .* pass pruning_ratio"),
        (lambda m: {"ch_sparsity_dict": {m.fc: 0.1}}, "ch_sparsity_dict is an old name"),
        (lambda m: {"channel_groups": {m.fc: 2}}, "channel_groups is an old name"),
        (lambda m: {"isomorphic": True}, "needs global_pruning=True"),
        (lambda m: {"head_pruning_ratio": 0.5}, "head_pruning_ratio removes whole heads and needs prune_num_heads"),
        (lambda m: {"head_pruning_ratio_dict": {m.fc: 0.5}}, "head_pruning_ratio_dict removes whole heads"),
        (lambda m: {"ignored_layers": [another_layer(m)]}, "ignored_layers names a Conv2d, which is no layer"),
        (lambda m: {"ignored_layers": ["fc"]}, "ignored_layers names 'fc', which is no layer"),
        (lambda m: {"pruning_ratio_dict": {another_layer(m): 0.2}}, "pruning_ratio_dict names a Conv2d"),
        (lambda m: {"pruning_ratio_dict": {(m.fc, another_layer(m)): 0.2}}, "pruning_ratio_dict names a Conv2d"),
        (lambda m: {"num_heads": {another_layer(m): 2}}, "num_heads names a Conv2d"),
        (
            lambda m: {"unwrapped_parameters": [(nn.Parameter(torch.zeros(3)), 0)]},
            r"unwrapped_parameters names a Parameter of shape \(3,\), which is no parameter",
        ),
        (
            lambda m: {
                "iterative_steps": 3,
                "iterative_pruning_ratio_scheduler": lambda ratio, steps: [0, 0.5, 0.3, 0.5],
            },
            "that never fall",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options: Callable[[Any], dict[str, Any]], message: str) -> None:
    model = build("residual").train()
    before = Snapshot.of(model)
    with pytest.raises(InputError, match=message):
        pruner_of(model, **options(model))
    assert Snapshot.of(model) == before
    assert all(m.training for m in model.modules())


def test_schedules_of_heads_are_checked_like_all_others() -> None:
    model = build("attention, fused")

    def scheduler(ratio: float, steps: int) -> list[float]:
        return [0.0, 1.5] if ratio == 0.75 else [0.0, ratio]

    with pytest.raises(InputError, match=r"cumulative pruning ratios in \[0, 1\)"):
        pruner_of(
            model, num_heads=heads_of(model), prune_num_heads=True, head_pruning_ratio=0.75,
            iterative_pruning_ratio_scheduler=scheduler,
        )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"target": fpt.CostTarget(macs=0.5)}])
def test_inputs_that_do_not_fit_are_named_before_anything_else(options: dict[str, Any]) -> None:
    model = build("residual")
    with pytest.raises(UnsupportedModelError, match=r"fails on its example inputs: RuntimeError.*channels"):
        fpt.FairPruner(model, torch.zeros(2, 5, 16, 16), fpt.MagnitudeImportance(), **options)


def test_a_double_model_takes_single_example_inputs() -> None:
    model = build("residual").double()
    pruner_of(model, pruning_ratio=0.5).step()
    assert model(torch.randn(2, 3, 16, 16, dtype=torch.float64)).shape == (2, CLASSES)


def test_on_a_machine_of_which_nothing_is_known_widths_stay_as_they_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    monkeypatch.setattr(alignment, "_installed", lambda provider: False)
    model = build("plain")
    report = pruner_of(model, pruning_ratio=0.5, round_to="auto").step()
    assert "widths are kept as they come" in caplog.text
    assert report.misaligned == ()
    assert all(w.kept == w.asked for w in report.widths)


@pytest.mark.parametrize("layer", ["fc", "relu"])
def test_a_ratio_for_a_layer_that_makes_no_channels_is_said_to_do_nothing(layer: str) -> None:
    layers = {"conv": nn.Conv2d(3, 16, 3), "relu": nn.ReLU(), "flat": nn.Flatten(), "fc": nn.Linear(3136, CLASSES)}
    model = nn.Sequential(OrderedDict(layers))
    with pytest.warns(UserWarning, match=f"the ratio for {layer} has no effect"):
        pruner_of(model, pruning_ratio_dict={getattr(model, layer): 0.2})
    pruner_of(model, pruning_ratio_dict={model.conv: 0.25}).step()
    assert model.conv.out_channels == 12


# --- counting and calling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["tensor", "keywords", "dict", "tuple"])
def test_costs_are_the_same_however_the_model_is_called(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("residual")

        def forward(self, image: torch.Tensor, mask: Any = None) -> torch.Tensor:
            return self.net(image)

    plain, x = build("residual"), IMAGE[:1]
    expected = tuple(int(n) for n in tp.utils.count_ops_and_params(plain, x))
    inputs: Any = {"tensor": x, "keywords": {"image": x}, "dict": {"a": x, "b": x, "c": x}, "tuple": (x, x, x)}[call]
    forward = {"dict": lambda m, i: m(i["a"]), "tuple": lambda m, i: m(i[0])}.get(call)
    model = Keyword() if call == "keywords" else plain
    assert macs_and_params(model, inputs, forward) == expected
    assert capsys.readouterr().out == ""


def test_output_transform_is_looked_through_by_the_proof_the_dry_run_and_nothing_else() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("residual")

        def forward(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(logits=self.net(x))

    model, plain = Wrapped(), build("residual")
    importance, same = fpt.TaylorImportance(), fpt.TaylorImportance()
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None, output_transform=lambda o: [o.logits])
    measured = importance.collect(
        pruner, [faces()], lambda outputs, targets: sample_loss(outputs.logits, targets), progress=False
    )
    other = fpt.FairPruner(plain, IMAGE, same, round_to=None)
    expected = same.collect(other, [faces()], sample_loss, progress=False)
    assert measured is not None
    assert expected is not None
    assert torch.equal(measured.absolute, expected.absolute)
    pruner.step()
    other.step()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x).logits, plain(x))


def test_a_latency_can_be_asked_of_a_model_that_reads_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MIN_SECONDS", 0.01)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, CLASSES)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(self.table(tokens).mean(1))))

    tokens = torch.randint(0, 50, (2, 7))
    timer = probe.LatencyProbe(Words().eval(), tokens, forward_fn=None, threads=1, batch_size=1)
    milliseconds, _ = timer(Words().eval())
    assert milliseconds > 0
    assert [a.tolist() for a in timer._arrays.values()] == [tokens.tolist()]


# --- interactive steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["skip attention", "stop at once", "stop after attention"])
def test_groups_may_be_left_out_of_an_interactive_step(leave: str) -> None:
    model = build("attention, fused")
    pruner = pruner_of(
        model, pruning_ratio=0.5, num_heads=heads_of(model), prune_num_heads=True, head_pruning_ratio=0.5
    )
    attention = {g.root for g in pruner.gate_plan().groups if g.heads}
    names = {m: n for n, m in model.named_modules()}
    for group in pruner.step(interactive=True):
        is_attention = names[group[0].dep.target.module] in attention
        if leave == "stop at once":
            break
        if leave == "skip attention" and is_attention:
            continue
        group.prune()
        if leave == "stop after attention" and is_attention:
            break
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)
    heads = [a.num_heads for a in model.modules() if hasattr(a, "qkv")]
    halved = 1 if leave == "stop after attention" else 0
    assert sorted(heads) == sorted([2] * halved + [4] * (len(heads) - halved))
    assert [pruner.num_heads[a.qkv] for a in model.modules() if hasattr(a, "qkv")] == heads


def test_an_interactive_step_that_fails_to_decide_can_be_taken_again() -> None:
    model = build("residual")
    importance = fpt.TaylorImportance()
    pruner = fpt.FairPruner(model, IMAGE, importance, round_to=None)
    with pytest.raises(ScoreError, match=r"call importance\.collect"):
        list(pruner.step(interactive=True))
    importance.collect(pruner, [faces()], sample_loss, progress=False)
    for group in pruner.step(interactive=True):
        group.prune()
    assert pruner.current_step == 1


def test_frozen_layers_stay_frozen_in_an_interactive_step() -> None:
    model = build("plain")
    layer = model.body[0]
    layer.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = pruner_of(model, pruning_ratio=0.5)
    widths = layer[0].out_channels
    for group in pruner.step(interactive=True):
        group.prune()
    assert layer[0].out_channels < widths
    assert not any(p.requires_grad for p in layer.parameters())
