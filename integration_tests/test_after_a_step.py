"""After a pruning step: the optimizer goes on with what is left, and BatchNorm sees what there is."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

import fair_prune_plugins.torch_pruning as fpt
from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.removal import build_graph, remove
from fair_prune_plugins.torch_pruning import FairPruner, MagnitudeImportance, rebinding, reestimate_batch_norm
from fair_prune_plugins.torch_pruning import pruner as pruner_module
from integration_tests.networks import NETWORKS, build, conv_bn, heads_of
from integration_tests.pruning_oracles import faces, host_pruner

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW, AMSGrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "Adam, capturable state": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def images(samples: int = 4, seed: int = 3) -> torch.Tensor:
    return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3, seed: int = 0) -> None:
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(images(4, seed + step)).square().mean().backward()
        optimizer.step()


def pruner_of(model: nn.Module, **options: Any) -> FairPruner:
    settings: dict[str, Any] = {"pruning_ratio": 0.5, "round_to": None, "num_heads": heads_of(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left alone
        return FairPruner(model, images(2), MagnitudeImportance(on_stale="ignore"), **{**settings, **options})


def numbered(model: nn.Module, history: Sequence[Any]) -> dict[str, torch.Tensor]:
    """What is left of every parameter: a copy whose weights are their own numbers, pruned by the host as recorded."""
    twin = copy.deepcopy(model).eval()
    graph = build_graph(twin, images(2))
    with torch.no_grad():
        for p in twin.parameters():
            p.copy_(torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape))
    for name, outputs, indices in history:
        layer = twin.get_submodule(name)
        host = graph.get_pruner_of_module(layer)
        fn = host.prune_out_channels if outputs else host.prune_in_channels
        remove(graph, graph.get_pruning_group(layer, fn, list(indices)))
    return {name: p.detach().long() for name, p in twin.named_parameters()}


def in_order(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether an optimizer of one parameter group holds exactly the model's parameters."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return len(held) == len(list(model.parameters())) and all(
        a is b for a, b in zip(held, model.parameters(), strict=True)
    )


def by_hand(
    make: Callable[[Any], Optimizer],
    pruned: nn.Module,
    before: dict[str, dict[str, Any]],
    left: dict[str, torch.Tensor],
) -> tuple[nn.Module, Optimizer]:
    """A copy of a pruned model with a new optimizer, into which the old state is put by hand."""
    twin = copy.deepcopy(pruned)
    optimizer = make(twin.parameters())
    for name, p in twin.named_parameters():
        for key, value in before[name].items():
            is_tensor = isinstance(value, torch.Tensor)
            optimizer.state[p][key] = (
                value.flatten()[left[name]] if is_tensor and value.numel() > 1 else copy.copy(value)
            )
    return twin, optimizer


def check_against_hand(model: nn.Module, make: Callable[[Any], Optimizer], **options: Any) -> None:
    optimizer = make(model.parameters())
    train(model, optimizer)
    names = dict(model.named_parameters())
    before = {n: {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()} for n, p in names.items()}
    dense, pruner = copy.deepcopy(model), pruner_of(model, **options)
    with rebinding(optimizer, model):
        pruner.step()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    assert in_order(model, optimizer)
    assert set(optimizer.state) <= set(model.parameters())
    left = numbered(dense, pruner.pruning_history())
    for name, p in model.named_parameters():  # the copy's numbers are those of the weights themselves
        assert torch.equal(p, dict(dense.named_parameters())[name].flatten()[left[name]])
    twin, oracle = by_hand(make, model, before, left)
    for steps in range(2):
        train(model, optimizer, 1, seed=10 + steps)
        train(twin, oracle, 1, seed=10 + steps)
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q), name


@pytest.mark.parametrize("name", NETWORKS)
def test_momentum_of_what_is_left(name: str) -> None:
    check_against_hand(build(name).double(), OPTIMIZERS["AdamW, AMSGrad"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    check_against_hand(build("residual").double(), OPTIMIZERS[name])


def test_indices_by_hand() -> None:
    """No graph, no history: a net so small that what is left can be written down."""
    model = nn.Sequential(conv_bn(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 256, 2)).double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    conv, bn, second, fc = model[0][0], model[0][1], model[2], model[4]
    assert isinstance(bn, nn.BatchNorm2d)
    moments = [optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    graph = build_graph(model.eval(), images(2))
    with rebinding(optimizer, model):
        graph.get_pruning_group(conv, tp.prune_conv_out_channels, [1, 2]).prune()
        graph.get_pruning_group(second, tp.prune_conv_out_channels, [0, 5]).prune()
        graph.get_pruning_group(second, tp.prune_conv_out_channels, [3]).prune()  # the fifth of the original six
    a, b = [0, 3], [1, 2, 3]
    flat = [256 * c + i for c in b for i in range(256)]
    expected = [moments[0][a], moments[1][a], moments[2][a], moments[3][b][:, a], moments[4][b], moments[5][:, flat]]
    for p, moment in zip(model.parameters(), [*expected, moments[6]], strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], moment)
    assert fc.in_features == 768


def test_parameter_groups_keep_their_options_and_schedulers_work() -> None:
    model = build("residual").double()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.1, "momentum": 0.9}, {"params": others, "lr": 0.5}], lr=0.2
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    train(model, optimizer)
    with rebinding(optimizer, model):
        pruner_of(model).step()
    first, second = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in model.parameters() if p.ndim > 1]
    assert [id(p) for p in second["params"]] == [id(p) for p in model.parameters() if p.ndim <= 1]
    assert (first["weight_decay"], first["momentum"], first["lr"]) == (0.1, 0.9, 0.2)
    assert (second["weight_decay"], second["momentum"], second["lr"]) == (0, 0, 0.5)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.05])
    weights = [p.clone() for p in model.parameters()]
    train(model, optimizer, 1)
    assert all(not torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))


def test_frozen_and_foreign_parameters_stay_as_they_were() -> None:
    model = build("plain").double()
    frozen, rest = model.get_submodule("body.2"), [*model.get_submodule("body.0").parameters()]
    frozen.requires_grad_(False)
    optimizer = torch.optim.Adam([*frozen.parameters(), *rest])
    train(model, optimizer)
    with rebinding(optimizer, model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host_pruner(model, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=[model.fc]).step()
    held = optimizer.param_groups[0]["params"]
    expected = [*frozen.parameters(), *model.get_submodule("body.0").parameters()]
    assert frozen[0].out_channels == 8  # type: ignore[index]
    assert [id(p) for p in held] == [id(p) for p in expected]
    # The host's own new parameters all require gradients; training them would be a surprise.
    assert [p.requires_grad for p in frozen.parameters()] == [False] * 3
    assert not optimizer.state.keys() & set(frozen.parameters())


def test_named_parameters_keep_their_names() -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(list(model.named_parameters()))
    train(model, optimizer)
    with rebinding(optimizer, model):
        pruner_of(model).step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [n for n, _ in model.named_parameters()]


class Scaled(nn.Module):
    """A layer that the host does not know: one scale per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.scale = width, nn.Parameter(torch.rand(2, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.sum(0)[None, :, None, None]


class ScaledPruner(tp.BasePruningFunc):
    """Prunes it without the host's helper, in place or with a new parameter; ``spread`` computes new weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        keep = [i for i in range(layer.width) if i not in set(idxs)]
        if self.how == "in place":
            layer.scale.data = layer.scale.data[:, keep]
        else:
            layer.scale = nn.Parameter(layer.scale.data[:, keep] * (1.5 if self.how == "spread" else 1))
        layer.width = len(keep)
        return layer  # type: ignore[no-any-return]

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.width)

    get_in_channels = get_out_channels


def scaled_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), Scaled(6), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(576, 2)).double()


@pytest.mark.parametrize("how", ["in place", "new"])
def test_customised_pruners(how: str) -> None:
    model = scaled_net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    moment = optimizer.state[model[1].scale]["exp_avg"].clone()
    graph = build_graph(model, images(2), customized_pruners={Scaled: ScaledPruner(how)})
    with rebinding(optimizer, model):
        graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 4]).prune()
    assert torch.equal(optimizer.state[model[1].scale]["exp_avg"], moment[:, [1, 2, 3, 5]])
    assert in_order(model, optimizer)
    if how == "new":  # autograd itself trips over a parameter that shrank in place
        train(model, optimizer, 1)


def test_a_customised_pruner_that_computes_weights_is_refused() -> None:
    model = scaled_net()
    optimizer = torch.optim.Adam(model.parameters())
    graph = build_graph(model, images(2), customized_pruners={Scaled: ScaledPruner("spread")})
    before = [p.clone() for p in model.parameters()]
    with (
        pytest.raises(UnsupportedModelError, match=r"ScaledPruner.prune_out_channels: it does not select weights"),
        rebinding(optimizer, model),
    ):
        graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 4]).prune()
    assert in_order(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_any_pruner_of_the_host_and_gradients_it_ranks_by() -> None:
    model = build("residual").double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)  # leaves the gradients that the host's Taylor importance reads
    names, dense = dict(model.named_parameters()), copy.deepcopy(model)
    before = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in names.items()}
    grads = {n: p.grad.clone() for n, p in names.items() if p.grad is not None}
    pruner = host_pruner(model, tp.importance.TaylorImportance(), pruning_ratio=0.5, ignored_layers=[model.fc])
    with rebinding(optimizer, model):
        for group in pruner.step(interactive=True):
            group.prune()
    left = numbered(dense, pruner.pruning_history())
    assert in_order(model, optimizer)
    for name, p in model.named_parameters():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], before[name].flatten()[left[name]])
        assert torch.equal(p.grad, grads[name].flatten()[left[name]])


def test_several_steps_and_copies_pruned_meanwhile() -> None:
    model = build("mobilenet-v2").double()
    optimizer = torch.optim.Adam(model.parameters())
    pruner = pruner_of(model, iterative_steps=3)
    for _ in range(3):
        train(model, optimizer, 1)
        with rebinding(optimizer, model):
            pruner_of(copy.deepcopy(model)).step()  # as a search over ratios does
            pruner.step()
        assert in_order(model, optimizer)
        for p in model.parameters():
            assert optimizer.state[p]["exp_avg"].shape == p.shape
            assert optimizer.state[p]["exp_avg"].abs().sum() > 0


def test_the_pruner_takes_the_optimizer_along() -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    pruner = pruner_of(model, iterative_steps=2)
    pruner.step(optimizer=optimizer)
    assert in_order(model, optimizer)
    before = [p.shape for p in model.parameters()]
    with pytest.raises(InputError, match=r"take them inside rebinding\(optimizer, model\)"):
        pruner.step(interactive=True, optimizer=optimizer)
    foreign = torch.optim.Adam(build("plain").parameters())
    with pytest.raises(InputError, match="parameters that are not the model's"):
        pruner.step(optimizer=foreign)
    assert [p.shape for p in model.parameters()] == before
    assert pruner.current_step == 1
    pruner.step(optimizer=optimizer)
    assert in_order(model, optimizer)


def test_layers_that_share_a_weight() -> None:
    """The host prunes them one by one and so parts them; both go on with the memory of the one they were."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    model[2].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 8).double()).sum().backward()
    optimizer.step()
    moment = optimizer.state[model[0].weight]["exp_avg"].clone()
    graph = build_graph(model.eval(), torch.rand(2, 8).double())
    with rebinding(optimizer, model):
        graph.get_pruning_group(model[2], tp.prune_linear_out_channels, [0, 3]).prune()
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], moment)
    assert torch.equal(optimizer.state[model[2].weight]["exp_avg"], moment[[1, 2, 4, 5, 6, 7]])
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_what_fails_after_pruning_leaves_the_optimizer_on_the_pruned_parameters() -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    moment = optimizer.state[model.get_submodule("body.0.0").weight]["exp_avg"].clone()  # type: ignore[index]
    graph = build_graph(model.eval(), images(2))

    def fails() -> None:
        with rebinding(optimizer, model):
            graph.get_pruning_group(model.get_submodule("body.0.0"), tp.prune_conv_out_channels, [0]).prune()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert in_order(model, optimizer)
    live = model.get_submodule("body.0.0").weight
    assert torch.equal(optimizer.state[live]["exp_avg"], moment[1:])  # type: ignore[index]
    before = [p.clone() for p in model.parameters()]
    train(model, optimizer, 1)
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert tp.dependency.Group.prune.__module__ == "torch_pruning.dependency.group"


def test_a_step_that_is_rolled_back_leaves_the_optimizer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    pruner = pruner_of(model)
    parameters = list(model.parameters())
    states = {p: {k: (v, v.clone()) for k, v in s.items()} for p, s in optimizer.state.items()}
    shapes = [p.shape for p in parameters]

    def fails(*_args: Any) -> None:
        assert [p.shape for p in model.parameters()] != shapes, "nothing was pruned yet"
        raise UnsupportedModelError("the pruned model does not run")

    monkeypatch.setattr(pruner_module, "check_pruned", fails)

    def steps() -> None:
        with rebinding(optimizer, model):
            pruner.step()

    with pytest.raises(UnsupportedModelError, match="does not run") as raised:
        steps()
    assert not getattr(raised.value, "__notes__", [])
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]
    assert optimizer.state.keys() == states.keys()
    for p, kept in states.items():
        for key, (tensor, values) in kept.items():
            assert optimizer.state[p][key] is tensor
            assert torch.equal(tensor, values)


def test_what_fails_where_parameters_cannot_be_followed_says_so() -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    held = list(optimizer.param_groups[0]["params"])

    def fails() -> None:
        with rebinding(optimizer, model):
            model.fc = nn.Linear(10, 3).double()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        fails()
    assert "Adam still holds the parameters of before" in raised.value.__notes__[0]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in held]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), r"LBFGS cannot be carried over a pruning step: it keeps one memory of all"),
        (lambda p: torch.optim.Adafactor(p), r"Adafactor keeps 'row_var' for 'body.0.0.weight', which is a tensor of"),
    ],
)
def test_optimizers_that_cannot_be_carried_over(make: Callable[[Any], Optimizer], message: str) -> None:
    model = build("plain").double()
    optimizer = make(model.parameters())
    if not isinstance(optimizer, torch.optim.LBFGS):
        train(model, optimizer, 1)
    pruner, before = pruner_of(model), [p.shape for p in model.parameters()]
    with pytest.raises(InputError, match=message), rebinding(optimizer, model):
        pruner.step()
    assert [p.shape for p in model.parameters()] == before


def test_parameters_that_are_not_the_models() -> None:
    model, margin = build("plain").double(), nn.Linear(5, 5).double()
    optimizer = torch.optim.Adam([*model.parameters(), *margin.parameters()])
    pruner = pruner_of(model, iterative_steps=2)
    with (
        pytest.raises(InputError, match="2 parameters that are not the model's, the first of shape"),
        rebinding(optimizer, model),
    ):
        pruner.step()
    with rebinding(optimizer, nn.ModuleList([model, margin])):
        pruner.step()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for m in (model, margin) for p in m.parameters()
    ]
    pruner.step()  # outside: the optimizer is left with dead parameters, as the host leaves it
    stale = rebinding(optimizer, nn.ModuleList([model, margin]))
    with pytest.raises(InputError, match="the model was pruned before, outside rebinding"), stale:
        pass


def test_parameters_replaced_by_something_else() -> None:
    model = build("plain").double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    with (
        pytest.raises(InputError, match=r"'fc.weight' was replaced .* \(it was \(5, 10\), it is \(5, 7\)\)"),
        rebinding(optimizer, model),
    ):
        tp.prune_linear_in_channels(model.fc, [0, 1, 2])
    assert not in_order(model, optimizer)
    assert {p.shape for p in optimizer.param_groups[0]["params"]} >= {torch.Size([5, 10])}


# BatchNorm


def pooled_by_hand(model: nn.Module, batches: Sequence[torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and unbiased variance of all that each BatchNorm sees, kept as it is and put together at the end."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for path, m in model.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.train()
            m.register_forward_pre_hook(lambda m, args, path=path: seen.setdefault(path, []).append(args[0].clone()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    found = {}
    for path, parts in seen.items():
        values = torch.cat([p.transpose(0, 1).flatten(1) for p in parts], 1)
        found[path] = values.mean(1), values.var(1)
    return found


def statistics(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    norms = {p: m for p, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return {p: (m.running_mean.clone(), m.running_var.clone()) for p, m in norms.items() if m.running_mean is not None}


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for path, pair in expected.items():
        for a, b in zip(found[path], pair, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["residual", "densenet", "mobilenet-v2", "flatten", "transposed convolution"])
def test_batch_norm_of_uneven_batches(name: str) -> None:
    model = build(name).double()
    pruner_of(model).step()
    batches = [images(n, seed) for seed, n in enumerate((5, 3, 1))]
    expected = pooled_by_hand(model, batches)
    done = reestimate_batch_norm(model, [(x, 0) for x in batches], progress=False)
    assert_close(statistics(model), expected)
    assert done == tuple(expected)
    tracked = [b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert all(int(b) == 3 for b in tracked)


def test_batch_norm_on_one_batch_is_what_torch_computes_in_training() -> None:
    model, twin = build("residual").double(), build("residual").double().train()
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    twin(images(6))
    reestimate_batch_norm(model, [images(6)], progress=False)
    assert_close(statistics(model), statistics(twin), 1e-10)


def test_batch_norm_differs_from_torch_where_batches_are_uneven() -> None:
    """Why not ``update_bn``: it counts a batch of 2 like one of 8, and forgets how far apart their means are."""
    first = nn.Sequential(nn.BatchNorm2d(3)).double()
    batches = [images(8), images(2) + 5]
    reestimate_batch_norm(first, batches, progress=False)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    assert_close(statistics(first), {"0": (values.mean(1), values.var(1))})
    update_bn(batches, first)
    assert (statistics(first)["0"][0] - values.mean(1)).abs().max() > 1


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.bn = nn.Linear(6, 4), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3)
        self.unused, self.stateless = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stateless(self.bn(self.drop(self.first(x))))


def test_everything_else_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    model = WithDropout().train()
    model.bn.eval()
    model.first.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = [{"x": torch.randn(6, 6)} for _ in range(4)]
    with caplog.at_level(logging.WARNING):
        done = reestimate_batch_norm(model, iter(data), batches=3, progress=False)
    assert done == ("bn",)
    assert "did not reach the BatchNorm layers unused" in caplog.text
    values = model.first(torch.cat([d["x"] for d in data[:3]])).detach().double()
    torch.testing.assert_close(model.bn.running_mean.double(), values.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.bn.running_var.double(), values.var(0), rtol=1e-6, atol=1e-6)
    assert [m.training for m in (model, model.first, model.drop, model.bn, model.unused)] == [True] * 3 + [False, True]
    assert model.bn.momentum == 0.3
    assert not model.first.weight.requires_grad
    assert not any(m._forward_hooks for m in model.modules())
    after = model.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the loader yielded no sample"),
        ([torch.randn(3, 6), torch.randn(1, 6)], r"batch 1 gives 'bn' one value per channel"),
        ([torch.randn(3, 6), torch.full((3, 6), torch.nan)], r"'bn' sees values that are not finite"),
        ([torch.randn(3, 6), {"wrong": 1}], "cannot tell where the batch's inputs are"),
    ],
)
def test_nothing_changes_where_re_estimation_fails(data: list[Any], message: str) -> None:
    model = WithDropout().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        reestimate_batch_norm(model, data, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.bn.training
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_to_re_estimate_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert reestimate_batch_norm(build("layernorm (convnext)"), [], progress=False) == ()
    assert "the model has no BatchNorm layer with running statistics" in caplog.text
    with pytest.raises(InputError, match="batches must be a positive number"):
        reestimate_batch_norm(build("plain"), [], batches=0)


def test_re_estimation_brings_a_collapsed_model_back() -> None:
    """A trained net loses less right after a step: the labels that it gives are those of before more often."""
    model, data = build("plain"), faces(96, seed=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data["inputs"]), data["targets"]).backward()
        optimizer.step()
    model.eval()
    with rebinding(optimizer, model):
        fpt.FairPruner(model, data["inputs"][:2], MagnitudeImportance(), pruning_ratio=0.4, round_to=None).step()

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model.eval()(data["inputs"]), data["targets"]))

    collapsed = loss()
    reestimate_batch_norm(model, data["inputs"].split(32), progress=False)
    assert loss() < 0.9 * collapsed
