"""Pipelines as they are: layers with pruners of the user's own, and the host's other options, work as in the host."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency.group import Group

from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import InputError, ScoreError, UnsupportedModelError
from integration_tests.networks import CLASSES, build
from integration_tests.pruning_oracles import Tap, faces, gate_derivatives, host_pruner, sample_loss

IMAGE = torch.zeros(1, 3, 16, 16)


def random_scores(group: Any) -> torch.Tensor:
    """The same scores for the same width, whoever asks."""
    return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(len(group[0].idxs)))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


# --- layers of the user's own -----------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A weight per channel, which stays on its channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.factor = width, nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor[:, None, None]


class Normed(Scale):
    """Mixes its channels: each is divided by the root mean square of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / x.square().mean(1, keepdim=True).add(1e-3).sqrt())


class OwnConvolution(nn.Module):
    """A convolution that is no ``nn.Conv2d``, with names of its own for everything."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.i, self.o = i, o
        self.kernel = nn.Parameter(torch.randn(o, i, 3, 3) / math.sqrt(9 * i))
        self.shift = nn.Parameter(torch.randn(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel, self.shift, padding=1)


class TurnedLinear(nn.Module):
    """A linear layer with its weight the other way round, as in GPT-2."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.i, self.o = i, o
        self.weight, self.bias = nn.Parameter(torch.randn(i, o) / math.sqrt(i)), nn.Parameter(torch.randn(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class OwnPruner(tp.pruner.BasePruningFunc):  # type: ignore[misc]
    """Prunes by a table of ``(parameter, dimension)``."""

    outputs: Sequence[tuple[str, int]] = ()
    inputs: Sequence[tuple[str, int]] = ()
    names = ("i", "o")

    def _cut(self, layer: Any, idxs: Sequence[int], table: Sequence[tuple[str, int]], width: str) -> nn.Module:
        keep = sorted(set(range(getattr(layer, width))) - set(idxs))
        for name, dim in table:
            setattr(layer, name, self._prune_parameter_and_grad(getattr(layer, name), keep, dim))
        setattr(layer, width, len(keep))
        return layer  # type: ignore[no-any-return]

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, idxs, self.outputs, self.names[1])

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, idxs, self.inputs, self.names[0])

    def get_out_channels(self, layer: Any) -> int:
        return int(getattr(layer, self.names[1]))

    def get_in_channels(self, layer: Any) -> int:
        return int(getattr(layer, self.names[0]))


class ScalePruner(OwnPruner):
    outputs = (("factor", 0),)
    names = ("width", "width")
    prune_in_channels = OwnPruner.prune_out_channels


class ConvolutionPruner(OwnPruner):
    outputs, inputs = (("kernel", 0), ("shift", 0)), (("kernel", 1),)


class TurnedPruner(OwnPruner):
    outputs, inputs = (("weight", 1), ("bias", 0)), (("weight", 0),)


PRUNERS: dict[type, OwnPruner] = {
    Scale: ScalePruner(), Normed: ScalePruner(), OwnConvolution: ConvolutionPruner(), TurnedLinear: TurnedPruner(),
}  # fmt: skip


def scaled(middle: Callable[[int], nn.Module] = Scale) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), middle(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(10, CLASSES),
    )  # fmt: skip


def own_convolutions() -> nn.Sequential:
    """As wide as high as many channels: nothing but the proof tells which dimension is which."""
    return nn.Sequential(
        OwnConvolution(3, 16), nn.ReLU(), OwnConvolution(16, 16), nn.ReLU(), nn.Conv2d(16, 10, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, CLASSES),
    )  # fmt: skip


def turned() -> nn.Sequential:
    """Square weights, where rows and columns are easily taken for each other."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(768, 12), nn.ReLU(), TurnedLinear(12, 12), nn.ReLU(), nn.Linear(12, CLASSES)
    )


def options_of(*types: type) -> dict[str, Any]:
    own = (OwnConvolution, TurnedLinear)
    return {"customized_pruners": {t: PRUNERS[t] for t in types}, "root_module_types": [nn.Conv2d, nn.Linear, *own]}


@pytest.mark.parametrize(
    ("network", "types"),
    [(scaled, (Scale,)), (own_convolutions, (OwnConvolution,)), (turned, (TurnedLinear,))],
    ids=["weights per channel", "convolution", "turned linear"],
)
def test_layers_with_pruners_of_the_users_own(network: Callable[[], nn.Sequential], types: tuple[type, ...]) -> None:
    ours, theirs = network().eval(), network().eval()
    theirs.load_state_dict(ours.state_dict())
    host = host_pruner(theirs, random_scores, iterative_steps=2, ignored_layers=[theirs[-1]], **options_of(*types))
    pruner = fpt.FairPruner(ours, IMAGE, random_scores, iterative_steps=2, round_to=None, **options_of(*types))
    groups = pruner.gate_plan().prunable
    roots = [m for m in ours if isinstance(m, nn.Conv2d | nn.Linear | OwnConvolution | TurnedLinear)]
    assert len(groups) == len(roots) - 1
    assert {g.status for g in groups} == {"exact"}
    for _ in range(2):
        host.step()
        pruner.step()
        assert shapes(ours) == shapes(theirs)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("network", "types", "consumers"),
    [
        (scaled, (Scale,), {"0": "3", "3": "7"}),
        (own_convolutions, (OwnConvolution,), {"0": "2", "2": "4", "4": "8"}),
        (turned, (TurnedLinear,), {"1": "3", "3": "5"}),
    ],
    ids=["weights per channel", "convolution", "turned linear"],
)
def test_their_gates_are_measured_as_autograd_says(
    network: Callable[[], nn.Sequential], types: tuple[type, ...], consumers: dict[str, str]
) -> None:
    model, batch = network().double().eval(), faces(8, dtype=torch.float64)
    importance = fpt.TaylorImportance()
    pruner = fpt.FairPruner(model, IMAGE.double(), importance, round_to=None, **options_of(*types))
    found = importance.collect(pruner, [batch], sample_loss, groups="group", progress=False)
    assert found is not None
    assert set(found.columns) == set(consumers)
    for name, consumer in consumers.items():
        first, size = found.columns[name]
        expected = gate_derivatives(model, batch, [Tap(consumer)]).abs().sum(0)
        torch.testing.assert_close(found.absolute.sum(0)[first : first + size], expected)
    pruner.step()
    assert torch.isfinite(model(batch["inputs"])).all()


def test_a_layer_of_the_users_own_that_mixes_channels_is_not_called_exact() -> None:
    """The host prunes it, and the network computes something that no ranking of gates foresaw."""
    ours, theirs = scaled(Normed), scaled(Normed)
    host_pruner(theirs, random_scores, ignored_layers=[theirs[-1]], **options_of(Normed)).step()
    assert shapes(theirs)["1.factor"] == (6,)
    with pytest.warns(UserWarning, match="not pruned: the coupled group of '0': closed and removed differ by"):
        pruner = fpt.FairPruner(ours, IMAGE, random_scores, round_to=None, **options_of(Normed))
    report = pruner.step()
    assert {r.name: r.kept for r in report.widths} == {"3": 5}
    assert shapes(ours)["1.factor"] == (12,)


def test_magnitude_does_not_guess_the_layout_of_a_users_weights() -> None:
    """Known layers count; where none is, there is no score rather than one of the wrong dimension."""
    model = turned()
    own = fpt.MagnitudeImportance()
    pruner = fpt.FairPruner(model, IMAGE, own, round_to=None, **options_of(TurnedLinear))
    squares = pruner.gate_plan().weight_square()
    torch.testing.assert_close(squares["1"], model[1].weight.detach().square().sum(1).double())
    torch.testing.assert_close(squares["3"], model[5].weight.detach().square().sum(0).double())
    pruner.step()
    with pytest.raises((ScoreError, UnsupportedModelError), match=r"\b0\b"):
        fpt.FairPruner(
            own_convolutions(), IMAGE, fpt.MagnitudeImportance(), round_to=None, **options_of(OwnConvolution)
        ).step()


def test_a_pruner_for_a_single_layer_is_refused_where_the_host_fails() -> None:
    """The host's documentation allows an instance as key; its tracing passes it to ``isinstance``."""
    model = scaled()
    customised = {model[1]: ScalePruner()}
    with pytest.raises(TypeError, match="isinstance"):
        host_pruner(model, random_scores, customized_pruners=customised)
    with pytest.raises(InputError, match="customized_pruners has a single Scale as key"):
        fpt.FairPruner(model, IMAGE, random_scores, round_to=None, customized_pruners=customised)


# --- the host's other options -----------------------------------------------------------------------------------------


class Positions(nn.Module):
    """Bare parameters: one along the channels, and one that only looks as if it were."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 14, 1), nn.Conv2d(14, 10, 1), nn.Linear(10, CLASSES)
        self.channels, self.rows = nn.Parameter(torch.rand(14, 1, 1)), nn.Parameter(torch.rand(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x) * self.channels * self.rows))).mean((2, 3)))


def test_ignored_parameters_stay_even_after_a_failed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host takes a bare parameter's last long dimension for its channels unless it is ignored."""
    theirs = Positions()
    host_pruner(theirs, random_scores, ignored_layers=[theirs.head]).step()
    assert theirs.rows.shape != (16, 1)
    with pytest.raises(RuntimeError):
        theirs(torch.randn(2, 3, 16, 16))
    ours = Positions()
    pruner = fpt.FairPruner(
        ours, IMAGE, random_scores, ignored_layers=[ours.rows], round_to=None, pruning_ratio=0.5, iterative_steps=2
    )
    pruner.step()
    assert (ours.channels.shape, ours.rows.shape) == ((10, 1, 1), (16, 1))
    prune = Group.prune

    def broken(group: Any, *arguments: Any, **keywords: Any) -> None:
        prune(group, *arguments, **keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(Group, "prune", broken)
    with pytest.raises(KeyboardInterrupt):
        pruner.step()
    monkeypatch.setattr(Group, "prune", prune)
    pruner.step()
    assert (ours.channels.shape, ours.rows.shape, ours.first.out_channels) == ((7, 1, 1), (16, 1), 7)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


def parity(name: str, model: Any) -> dict[str, Any]:
    """Options of the host, for a given model."""
    if name == "a tuple's own ratio":
        return {"pruning_ratio_dict": {(model.body[0][0], model.body[2][0]): 0.25}}
    if name == "a tuple's own ratio, ranked together":
        return {"pruning_ratio_dict": {(model.body[0][0], model.body[2][0]): 0.25}, "global_pruning": True}
    if name == "a block's own ratio":
        return {"pruning_ratio_dict": {model.body[2]: 0.75}}
    if name == "channel groups":
        return {"in_channel_groups": {model.second: 4}, "pruning_ratio": 0.3}
    if name == "root types":
        return {"root_module_types": [nn.Conv2d]}
    if name == "two steps":
        return {"iterative_steps": 2, "iterative_pruning_ratio_scheduler": lambda ratio, steps: [0, ratio / 2, ratio]}
    return {"unwrapped_parameters": [(model.rows, 0), (model.channels, 0)], "ignored_layers": [model.rows, model.head]}


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (lambda: build("plain"), "a tuple's own ratio"),
        (lambda: build("plain"), "a tuple's own ratio, ranked together"),
        (lambda: build("plain"), "a block's own ratio"),
        (Chain, "channel groups"),
        (lambda: build("flatten"), "root types"),
        (lambda: build("plain"), "two steps"),
        (Positions, "dimensions of bare parameters"),
    ],
)
def test_the_hosts_options_mean_the_same(network: Callable[[], Any], name: str) -> None:
    ours, theirs = network().eval(), network().eval()
    theirs.load_state_dict(ours.state_dict())
    head = next(m for m in reversed(list(theirs.modules())) if isinstance(m, nn.Linear))
    host = host_pruner(theirs, random_scores, **{"ignored_layers": [head], **parity(name, theirs)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of linear layers where only convolutions are roots
        pruner = fpt.FairPruner(ours, IMAGE, random_scores, round_to=None, **parity(name, ours))
    for _ in range(pruner.iterative_steps):
        pruner.step()
        host.step()
    assert shapes(ours) == shapes(theirs)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    assert shapes(ours) != shapes(network())
