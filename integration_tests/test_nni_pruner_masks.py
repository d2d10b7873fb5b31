"""The masks that NNI makes of the pruners' scores."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.statistics import collect
from integration_tests.networks import CLASSES, build
from integration_tests.nni_pruning import batches, kept, torch_evaluator

# After the one above, which imports NNI.
from nni.compression.pruning import L1NormPruner  # isort: skip
from fair_prune_plugins.nni.dependencies import auto_set_denpendency_group_ids  # isort: skip
from fair_prune_plugins.nni.pruners import (  # isort: skip
    FairGRAPEPruner,
    FairTaylorPruner,
    GateTaylorPruner,
    MagnitudePruner,
)

CONV = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


class Chain(nn.Module):
    """Convolutions, one of them in conv groups, and no coupling but the last two's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.c, self.d, self.fc = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 6, 1), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc((self.c(x) + self.d(x)).mean((2, 3)))


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "ratio": [{"op_names": ["a", "b", "c", "d"], "sparse_ratio": 0.5}],
    "two entries": [{"op_names": ["a"], "sparse_ratio": 0.25}, {"op_names": ["b"], "sparse_ratio": 0.75}],
    "bounds": [{"op_names": ["a", "b"], "sparse_ratio": 0.9, "max_sparse_ratio": 0.5}],
    "least": [{"op_names": ["a", "b"], "sparse_ratio": 0.1, "min_sparse_ratio": 0.5}],
    "threshold": [{"op_names": ["a", "b", "c", "d"], "sparse_threshold": 0.4}],
    "threshold and bounds": [{"op_names": ["a", "b"], "sparse_threshold": 0.4, "max_sparse_ratio": 0.2}],
    "global": [{"op_names": ["a", "b", "c", "d"], "sparse_ratio": 0.3, "global_group_id": "all"}],
    "global and bounds": [
        {"op_names": ["a", "b"], "sparse_ratio": 0.5, "global_group_id": 1, "max_sparse_ratio": 0.25}
    ],
    "dependency": [
        {"op_names": ["c", "d"], "sparse_ratio": 0.5, "dependency_group_id": "cd"},
        {"op_names": ["a", "b"], "sparse_ratio": 0.3},
    ],
    "blocks of a dependency": [
        {"op_names": ["c", "d"], "sparse_ratio": 0.5, "dependency_group_id": "cd", "internal_metric_block": 2}
    ],
    "align": [
        {"op_names": ["a"], "sparse_ratio": 0.5},
        {
            "op_names": ["b"],
            "target_names": ["weight"],
            "target_settings": {
                "weight": {
                    "granularity": "in_channel",
                    "align": {"module_name": "a", "target_name": "weight", "dims": [0]},
                }
            },
        },
    ],
    "weights without biases": [{"op_names": ["a", "b"], "sparse_ratio": 0.5, "target_names": ["weight"]}],
    "as in NNI 2": [{"op_types": ["Conv2d"], "op_names": ["a", "b"], "sparsity": 0.5}],
}


@pytest.mark.parametrize("config", list(CONFIGS))
def test_masks_are_those_that_nni_makes_of_the_same_numbers(config: str) -> None:
    """NNI's own L1 pruner, on weights whose rows have just these L1 norms."""
    torch.manual_seed(1)
    # The best of each above all thresholds: NNI would cut the model off.
    scores = {name: torch.rand(n) + F.one_hot(torch.tensor(2), n) for name, n in (("a", 8), ("b", 12), ("c", 6))}
    host = Chain()
    with torch.no_grad():
        for name, layer in (("a", host.a), ("b", host.b), ("c", host.c), ("c", host.d)):
            layer.weight.zero_()[:, 0, 0, 0] = scores[name]
    model = copy.deepcopy(host)
    l1 = L1NormPruner(host, CONFIGS[config])
    # NNI selects layers through sets, and its global threshold is another one in another order.
    l1._target_spaces = dict(sorted(l1._target_spaces.items()))
    _, expected = l1.compress()
    pruner = GateTaylorPruner(model, CONFIGS[config], torch_evaluator(model, batches()), 1)
    pruner.compress()
    pruner._collect_data = lambda: {name: s.double() for name, s in scores.items()}  # type: ignore[method-assign]
    pruner.update_masks({m: {t: torch.ones_like(v) for t, v in ts.items()} for m, ts in pruner.get_masks().items()})
    pruner.update_masks(pruner.generate_masks())
    found = pruner.get_masks()
    assert {m: set(t) for m, t in found.items()} == {m: set(t) for m, t in expected.items()}
    for module, targets in expected.items():
        for target, mask in targets.items():
            assert found[module][target].dtype == mask.dtype
            assert torch.equal(found[module][target], mask), (module, target)


def test_one_unit_of_every_layer_stays() -> None:
    model = Chain()
    config = [{"op_names": ["a", "b"], "sparse_threshold": 1e9}, {"op_names": ["c", "d"], "sparse_threshold": 1e9}]
    pruner = GateTaylorPruner(model, config, torch_evaluator(model, batches()), 2)
    _, masks = pruner.compress()
    scores = pruner._collect_data()
    for name, root in (("a", "a"), ("b", "b"), ("c", "c"), ("d", "c")):
        assert kept(masks[name]["weight"]) == kept(masks[name]["bias"]) == [int(scores[root].argmax())]


def test_ranks_do_not_tie_over_layers() -> None:
    """NNI keeps all that tie at a global threshold, which would leave more than was asked for."""
    convs = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 100, CLASSES))
    config = [{"op_names": ["2", "4"], "sparse_ratio": 0.45, "global_group_id": 0}]
    _, masks = FairGRAPEPruner(model, config, torch_evaluator(model, batches()), 3, groups=2).compress()
    assert sum(8 - len(kept(masks[name]["weight"])) for name in ("2", "4")) == int(0.45 * 16)


def test_coupled_layers_agree_without_dependency_ids() -> None:
    for extra in ({}, {"global_group_id": 0}):
        for cls in (FairTaylorPruner, FairGRAPEPruner):
            model, data = build("residual"), batches()
            config = [{"op_types": ["Conv2d", "BatchNorm2d"], "sparse_ratio": 0.5, **extra}]
            pruner = cls(model, config, torch_evaluator(model, data), 3, groups=2)
            _, masks = pruner.compress()
            plan = pruner.plan
            assert plan is not None
            gone = 0
            for group in plan.prunable:
                stay = [kept(masks[s.path]["weight"]) for s in group.producers]
                assert all(s == stay[0] for s in stay)
                gone += group.channels - len(stay[0])
            assert gone
            for conv in [n for n in masks if n.endswith(".0")]:
                norm = f"{conv[:-1]}1"
                assert kept(masks[conv]["weight"]) == kept(masks[norm]["weight"]) == kept(masks[norm]["bias"])


def test_a_dependency_id_keeps_targets_out_of_the_global_ranking_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = Chain()
    config = [
        {"op_names": ["a", "b"], "sparse_ratio": 0.5, "global_group_id": 0},
        {"op_names": ["c", "d"], "sparse_ratio": 0.5, "global_group_id": 0, "dependency_group_id": 1},
    ]
    _, masks = GateTaylorPruner(model, config, torch_evaluator(model, batches()), 2).compress()
    assert "c, d: NNI gives targets" in caplog.text
    assert len(kept(masks["c"]["weight"])) == 3


def test_conv_groups_lose_the_same_places() -> None:
    model, data = build("conv groups"), batches()
    config = [
        {
            "op_names": ["reduce.0", "grouped.0"],
            "sparse_ratio": 0.5,
            "dependency_group_id": 0,
            "internal_metric_block": 4,
        },
        {"op_names": ["stem.0", "expand.0"], "sparse_ratio": 0.5},
    ]
    _, masks = FairTaylorPruner(model, config, torch_evaluator(model, data), 3, groups=2).compress()
    for name in ("reduce.0", "grouped.0"):
        rows = masks[name]["weight"].flatten(1).any(1).reshape(4, 4)
        assert bool((rows == rows[0]).all())
        assert int(rows[0].sum()) == 2


def test_other_granularities() -> None:
    model, data = build("residual"), batches()
    block = "blocks.1.conv1.0"
    config: list[dict[str, Any]] = [
        {"op_names": ["blocks.0.conv1.0"], "sparse_ratio": 0.5},
        {
            "op_names": ["blocks.0.conv2.0"],
            "sparse_ratio": 0.5,
            "granularity": "in_channel",
            "target_names": ["weight"],
        },
        {"op_names": [block], "sparse_ratio": 0.5, "granularity": [2, -1, -1, -1], "target_names": ["weight"]},
        {
            "op_names": ["blocks.2.conv1.0"],
            "target_names": ["_output_"],
            "target_settings": {"_output_": {"sparse_ratio": 0.5, "granularity": "per_channel"}},
        },
    ]
    pruner = GateTaylorPruner(model, config, torch_evaluator(model, data), 3)
    _, masks = pruner.compress()
    inside = kept(masks["blocks.0.conv1.0"]["weight"])
    assert masks["blocks.0.conv2.0"]["weight"].sum((0, 2, 3)).nonzero().flatten().tolist() == inside
    stay = kept(masks[block]["weight"])
    assert stay == sorted(c for c in range(14) if c - c % 2 in stay and c - c % 2 + 1 in stay)
    scores = pruner._collect_data()
    pairs = scores[block].reshape(-1, 2).mean(1)
    assert {c // 2 for c in range(14) if c not in stay} == set(pairs.argsort()[:3].tolist())
    outputs = masks["blocks.2.conv1.0"]["_output_0"]
    assert outputs.shape == (1, 14, 1, 1)
    lowest = scores["blocks.2.conv1.0"].argsort()[:7].tolist()
    assert (outputs.flatten() == 0).nonzero().flatten().tolist() == sorted(lowest)


class Words(nn.Module):
    """An embedding, and a layer with a single output channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc1 = nn.Embedding(30, 8), nn.Linear(8, 12)
        self.narrow, self.wide, self.fc2 = nn.Linear(12, 1), nn.Linear(1, 6), nn.Linear(6, CLASSES)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.fc1(self.embedding(ids) * mask[..., None]))
        return self.fc2(F.relu(self.wide(torch.tanh(self.narrow(h)))).mean(1))


def test_embeddings_several_inputs_and_single_channels() -> None:
    model = Words()
    data = [
        {"ids": torch.randint(0, 30, (16, 7)), "mask": torch.ones(16, 7), "labels": torch.randint(0, CLASSES, (16,))}
        for _ in range(2)
    ]

    def step(batch: dict[str, torch.Tensor], net: nn.Module) -> torch.Tensor:
        return F.cross_entropy(net(batch["ids"], mask=batch["mask"]), batch["labels"])

    config: list[dict[str, Any]] = [
        {"op_names": ["embedding"], "sparse_ratio": 0.5, "granularity": "in_channel"},
        {"op_names": ["fc1", "narrow"], "sparse_ratio": 0.5},
    ]
    _, masks = GateTaylorPruner(model, config, torch_evaluator(model, data, step), 2).compress()
    columns = masks["embedding"]["weight"]
    assert bool((columns == columns[:1]).all())
    assert int(columns[0].sum()) == 4
    assert len(kept(masks["fc1"]["weight"])) == 6
    assert kept(masks["narrow"]["weight"]) == [0]
    model = Words()
    words = [{"op_names": ["embedding"], "sparse_ratio": 0.5}]
    with pytest.raises(InputError, match="holds no channels of a Embedding"):
        GateTaylorPruner(model, words, torch_evaluator(model, data, step), 2).compress()


def test_magnitude_needs_the_model_alone() -> None:
    model = build("plain")
    norms = {
        name: model.get_submodule(name).weight.detach().square().sum((1, 2, 3))
        + model.get_submodule(after).weight.detach().square().flatten(2).sum((0, 2))
        for name, after in (("body.0.0", "body.2.0"), ("body.2.0", "body.4.0"))
    }
    config = [{"op_names": list(norms), "sparse_ratio": 0.5}]
    pruner = MagnitudePruner(model, config, dummy_input=torch.randn(1, 3, 16, 16))
    _, masks = pruner.compress()
    for name, norm in norms.items():
        lowest = norm.argsort()[: len(norm) // 2].tolist()
        assert set(range(len(norm))) - set(kept(masks[name]["weight"])) == set(lowest)


@pytest.mark.parametrize("cls", [FairTaylorPruner, FairGRAPEPruner])
def test_what_is_masked_stays_masked(cls: Any) -> None:
    model, data = build("residual"), batches()
    pruner = cls(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.3}], torch_evaluator(model, data), 3, groups=2)
    _, first = pruner.compress()
    for targets in pruner._target_spaces.values():
        targets["weight"].sparse_ratio = 0.6
    _, second = pruner.compress()
    for name in first:
        assert set(kept(second[name]["weight"])) < set(kept(first[name]["weight"]))
    # Also where the scores now say the opposite.
    scores = {name: -values for name, values in pruner._collect_data().items()}
    for targets in pruner._target_spaces.values():
        targets["weight"].sparse_ratio = 0.8
    pruner._collect_data = lambda: scores
    third = pruner.generate_masks()
    for name in second:
        assert set(kept(third[name]["weight"])) < set(kept(second[name]["weight"]))
    # Measured with the masks in place: the same as of a model with zeros there.
    zeroed = build("residual")
    with torch.no_grad():
        for name, targets in first.items():
            zeroed.get_submodule(name).weight.mul_(targets["weight"])
    expected = collect(build_plan(zeroed, data[0][0]), data, nn.CrossEntropyLoss(), groups=2, progress=False)
    for state in ("absolute", "weight_square"):
        torch.testing.assert_close(getattr(pruner.statistics, state), getattr(expected, state), rtol=1e-4, atol=1e-9)


def test_a_convolution_coupled_with_a_linear_layer() -> None:
    model = build("layernorm (convnext)")
    inputs = torch.rand(2, 3, 16, 16)
    head = next(n for n, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear))
    config: list[dict[str, Any]] = [{"op_types": ["Conv2d", "Linear"], "exclude_op_names": [head], "sparse_ratio": 0.5}]
    config = auto_set_denpendency_group_ids(model, config, inputs)
    by_id: dict[str, set[int]] = {}
    for entry in config:
        layer = model.get_submodule(entry["op_names"][0])
        by_id.setdefault(entry["dependency_group_id"], set()).add(layer.weight.ndim)
    assert {2, 4} in by_id.values()  # or there is nothing to show
    pruner = MagnitudePruner(model, config, dummy_input=inputs)
    _, masks = pruner.compress()
    gone: dict[str, list[torch.Tensor]] = {}
    for entry in config:
        name = entry["op_names"][0]
        gone.setdefault(entry["dependency_group_id"], []).append(masks[name]["weight"].flatten(1).any(1))
    for rows in gone.values():
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert int(rows[0].sum()) == len(rows[0]) - len(rows[0]) // 2
