"""The history of pruning in original numbers: true of the weights, and enough to do the same again."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.torch_pruning import FairPruner, HistoryRecorder, MagnitudeImportance, PruningHistory, replay
from integration_tests.networks import CLASSES, NETWORKS, build, conv_bn, heads_of
from integration_tests.pruning_oracles import host_pruner

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def images(seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_three_steps(model: nn.Module, **options: Any) -> FairPruner:
    settings: dict[str, Any] = {"pruning_ratio": 0.6, "max_pruning_ratio": 0.8, "round_to": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left alone
        pruner = FairPruner(
            model,
            images(),
            MagnitudeImportance(on_stale="ignore"),
            iterative_steps=3,
            num_heads=heads_of(model),
            **{**settings, **options},
        )
    return pruner


def stepped(pruner: FairPruner) -> PruningHistory:
    for _ in range(3):
        pruner.step()
    history = pruner.history()
    again = PruningHistory.from_dict(json.loads(json.dumps(history.as_dict())))
    assert again == history
    return again


def expected_weight(path: str, layer: nn.Module, dense: nn.Module, history: PruningHistory) -> torch.Tensor | None:
    """The weight a layer should have by its history, taken from the dense one."""
    weight = getattr(dense, "weight", None)
    if weight is None:
        return None
    outs, ins = (history.kept(path, side) for side in ("outputs", "inputs"))  # type: ignore[arg-type]
    if isinstance(dense, CONVOLUTIONS):
        transposed = isinstance(dense, nn.ConvTranspose2d)
        weight = weight.transpose(0, 1) if transposed else weight
        if dense.groups == 1 and ins is not None:
            weight = weight[:, list(ins)]
        elif dense.groups == dense.in_channels:
            assert ins is None  # a depthwise convolution has its outputs only
        elif ins is not None:  # each conv group has its share of the inputs, the same places in all of them
            share = dense.in_channels // dense.groups
            weight = weight[:, [i for i in ins if i < share]]
            assert [i % share for i in ins] == [i for i in ins if i < share] * dense.groups
        weight = weight if outs is None else weight[list(outs)]
        return weight.transpose(0, 1) if transposed else weight
    if isinstance(dense, nn.Linear) and ins is not None:
        weight = weight[:, list(ins)]
    return weight if outs is None else weight[list(outs)]


def check_weights(model: nn.Module, dense: nn.Module, history: PruningHistory) -> int:
    checked = 0
    for path, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention) or "mha" in path:
            continue  # its embedding leaves in five places
        expected = expected_weight(path, layer, dense.get_submodule(path), history)
        if expected is not None:
            assert torch.equal(layer.weight, expected), path  # type: ignore[arg-type]
            checked += path in history.layers
        if history.kept(path) is not None:
            kept = list(history.kept(path) or ())
            for name in ("bias", "running_mean", "running_var"):
                old = getattr(dense.get_submodule(path), name, None)
                if old is not None:
                    assert torch.equal(getattr(layer, name), old[kept]), (path, name)
    for name, parameter in model.named_parameters():
        if name in history.layers:  # bare parameters, pruned in the one dimension that has the channels
            entry = history.layers[name]["outputs"]
            old = dense.get_parameter(name)
            dim = next(d for d, size in enumerate(old.shape) if size == entry.channels)
            assert torch.equal(parameter, old.index_select(dim, torch.tensor(entry.kept)))
    return checked


GLOBAL = ("residual", "densenet", "mobilenet-v2", "conv groups", "flatten", "attention, fused")


@pytest.mark.parametrize(
    ("name", "together"),
    [(n, False) for n in NETWORKS] + [(n, True) for n in GLOBAL],
    ids=lambda v: {False: "local", True: "global"}.get(v, v),
)
def test_survivors_have_their_original_weights_and_can_be_had_again(name: str, together: bool) -> None:
    model = build(name).double()
    dense = copy.deepcopy(model)
    history = stepped(in_three_steps(model, global_pruning=together))
    assert len(history.as_dict()["layers"]) == len(history.layers) >= 2
    assert check_weights(model, dense, history) >= 2

    fresh = copy.deepcopy(dense).train()
    replay(fresh, history, images())
    assert all(m.training for m in fresh.modules())
    fresh.eval()
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
    assert torch.equal(fresh(images(4)), model.eval()(images(4)))

    other = build(name, seed=7).double()  # other weights: the structure alone, then the pruned weights are loaded
    replay(other, history, images())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images(4)), model(images(4)))


def test_numbers_are_the_original_ones() -> None:
    """By hand: of 6 channels, the first step takes 1 and 4, the second what is then 0 and 3."""
    model = nn.Sequential(conv_bn(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 256, CLASSES)).double().eval()
    pruner = host_pruner(model, tp.importance.MagnitudeImportance(), example_inputs=images(), ignored_layers=[model[3]])
    recorder = HistoryRecorder(pruner)
    assert recorder.history().groups == recorder.history().layers == {}
    for indices in ([1, 4], [0, 3]):
        pruner.DG.get_pruning_group(model[0][0], tp.prune_conv_out_channels, indices).prune()
    history = recorder.history()
    assert history.kept("0.0") == history.kept("0.1") == (2, 3)  # of 0, 2, 3, 5 the first and the last go
    assert history.kept("3", "inputs") == tuple(range(2 * 256, 4 * 256))
    assert history.kept("3") is None
    written = history.as_dict()
    assert written["groups"] == {"0.0": {"root": "0.0", "side": "outputs", "channels": 6, "kept": [2, 3]}}
    assert written["layers"]["0.1"] == {"outputs": {"parts": [["0.0", 6]]}}
    assert written["layers"]["3"] == {"inputs": {"channels": 6 * 256, "kept": list(range(2 * 256, 4 * 256))}}
    assert written["schema_version"] == 1
    assert written["versions"]["torch"] == torch.__version__
    assert written["versions"].keys() == {"python", "torch", "torch-pruning", "fair-prune-plugins"}


def test_the_hosts_own_pruner() -> None:
    model = build("residual").double()
    dense = copy.deepcopy(model)
    pruner = host_pruner(
        model,
        tp.importance.MagnitudeImportance(),
        example_inputs=images(),
        pruning_ratio=0.5,
        iterative_steps=3,
        global_pruning=True,
        ignored_layers=[model.fc],
    )
    recorder = HistoryRecorder(pruner)
    for _ in range(3):
        pruner.step()
    check_weights(model, dense, recorder.history())
    replay(dense, recorder.history(), images())
    assert all(torch.equal(v, dense.state_dict()[k]) for k, v in model.state_dict().items())


def test_interactive_steps_and_steps_rolled_back() -> None:
    model = build("densenet").double()
    dense, pruner = copy.deepcopy(model), in_three_steps(model)
    pruner.step()
    plain, pruner.importance = pruner.importance, lambda group: None
    with pytest.raises(Exception, match="no score"):
        pruner.step()
    pruner.importance = plain
    for group in pruner.step(interactive=True):
        group.prune()
    check_weights(model, dense, pruner.history())


def test_whole_heads() -> None:
    model = build("attention, fused").double()
    dense = copy.deepcopy(model)
    pruner = in_three_steps(model, prune_num_heads=True, head_pruning_ratio=0.5, prune_head_dims=False)
    history = stepped(pruner)
    assert history.numbers["blocks.0.attn"]["num_heads"] == 2
    check_weights(model, dense, history)
    replay(dense, history, images())
    assert torch.equal(dense(images(4)), model.eval()(images(4)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: build("plain"), "it has no layer 'blocks.1.shortcut.0'"),
        (lambda: _wider(build("residual")), "'blocks.0.conv1.0' has 12 outputs, the history is of 10"),
        (
            lambda: _with_shortcut(build("residual")),
            r"the channels of '.*' \((in|out)puts\) belong together in another",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_left_alone(other: Any, message: str) -> None:
    history = stepped(in_three_steps(build("residual").double()))
    model = other().double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=message) as refused:
        replay(model, history, images())
    assert "nothing was changed" in str(refused.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def _wider(model: nn.Module) -> nn.Module:
    block = model.get_submodule("blocks.0")
    block.conv1, block.conv2 = conv_bn(10, 12), conv_bn(12, 10)
    return model


def _with_shortcut(model: nn.Module) -> nn.Module:
    model.get_submodule("blocks.0").shortcut = conv_bn(10, 10, 1)  # instead of nothing: the stem is added to nobody
    return model


def test_a_pruned_model_is_not_pruned_again() -> None:
    model = build("residual").double()
    history = stepped(in_three_steps(model))
    with pytest.raises(UnsupportedModelError, match="has 5 outputs, the history is of 14"):
        replay(model, history, images())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema 2, this version reads 1"),
        (lambda d: d.pop("groups"), "KeyError: 'groups'"),
        (lambda d: next(iter(d["groups"].values()))["kept"].append(99), "ascending whole numbers below"),
        (lambda d: next(iter(d["groups"].values())).update(side="left"), "side 'left'"),
        (lambda d: d.update(layers=[]), "AttributeError"),
        (
            lambda d: next(iter(d["layers"].values()))["outputs"]["parts"][0].__setitem__(0, "nobody"),
            "KeyError: 'nobody'",
        ),
        (lambda d: next(iter(d["layers"].values()))["outputs"]["parts"][0].__setitem__(1, 3), "has 10 channels, not 3"),
    ],
)
def test_damaged_histories(damage: Any, message: str) -> None:
    values = json.loads(json.dumps(stepped(in_three_steps(build("plain").double())).as_dict()))
    damage(values)
    with pytest.raises(InputError, match=message):
        PruningHistory.from_dict(values)


def test_what_is_pruned_behind_the_recorders_back() -> None:
    model = build("plain").double()
    pruner = host_pruner(model, tp.importance.MagnitudeImportance(), example_inputs=images(), ignored_layers=[model.fc])
    recorder = HistoryRecorder(pruner)
    pruner.DG.pruning_history().append(["elsewhere", True, [0]])
    with pytest.raises(UnsupportedModelError, match="'elsewhere' was pruned, but it was in no coupled group"):
        recorder.history()
