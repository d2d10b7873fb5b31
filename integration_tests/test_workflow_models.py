"""Networks: built in or by module:function, from a checkpoint, stored without pickles and rebuilt bit by bit."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from safetensors.torch import save_file
from torch import nn

from fair_prune_plugins.errors import ConfigError, InputError, UnsupportedModelError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.torch_pruning import FairPruner, importance
from fair_prune_plugins.workflow import config, model_store, models, pruning, training
from fair_prune_plugins.workflow.amounts import Amount
from fair_prune_plugins.workflow.data import Normalisation, Part, Samples
from fair_prune_plugins.workflow.nets import digits_resnet
from fair_prune_plugins.workflow.prune_config import MethodConfig
from integration_tests import networks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads, and lose much where several test runs share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_own(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def make_frozen() -> nn.Module:
    model = make_own()
    model[0].requires_grad_(False)
    return model


def make_attention(kind: str = "attention, fused") -> nn.Module:
    """Hand-written attention: its forward reads head count and size from plain attributes of its module."""
    return networks.NETWORKS[kind]()


_calls = 0


def make_another_each_time() -> nn.Module:
    """A factory that a store must refuse: its network depends on how often it was called."""
    global _calls
    _calls += 1
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2), nn.Softplus(beta=float(_calls)))


def people(channels: int = 3, size: int = 16, classes: int = 2) -> Samples:
    """Two classes of noisy images that differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % classes
    inputs = rng.integers(0, 100, (120, channels, size, size)) + 100 * labels[:, None, None, None] // (classes - 1)
    parts = np.array([str(list(Part)[i // classes % 3]) for i in range(120)], dtype=object)
    groups = GroupLabels(("x", "y"), np.arange(120) // 3 % 2, "g")
    return Samples(inputs.astype(np.uint8), labels, tuple(map(str, range(classes))), groups, parts)


def settings(factory: str, **prune: object) -> config.RunConfig:
    return config.RunConfig.model_validate(
        {
            "data": {"kind": "function", "function": "unused:unused"},
            "model": {"factory": factory},
            "prune": {"methods": ["taylor"], "ratios": [0.5], "batch_size": 16, **prune},
            "finetune": {"batch_size": 16, "epochs": 1},
        }
    )


@pytest.mark.parametrize("factory", ["digits_resnet", "face_resnet", "face_mobilenet", f"{__name__}:make_own"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_pruned_and_finetuned_network_is_rebuilt_bit_by_bit(tmp_path: Path, factory: str, steps: int) -> None:
    samples = people()
    normalise = Normalisation.of_training(samples)
    asked = settings(factory, steps=steps, round_to=2)
    recipe = model_store.Recipe(factory, {}, classes=2, input_shape=(3, 16, 16))
    torch.manual_seed(0)
    model = recipe.build(None)
    dense_size = sum(p.numel() for p in model.parameters())
    done = pruning.prune(model, asked.prune.methods[0], Amount("ratio", 0.5), asked, samples, normalise, device=CPU)
    assert len(done.steps) == steps
    training.fit(model, samples, normalise, asked.finetune, epochs=1, seed=0, device=CPU, what="t", key="finetune")
    recipe = replace(recipe, history=done.history)
    model_store.save(model, recipe, tmp_path, beside=None)
    rebuilt, read = model_store.load(tmp_path, beside=None)
    assert read == recipe
    assert sum(p.numel() for p in rebuilt.parameters()) < 0.55 * dense_size
    inputs = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(inputs), rebuilt(inputs))
    assert not any(b"pickle" in f.read_bytes() for f in tmp_path.iterdir())
    assert json.loads((tmp_path / "model.json").read_text())["factory"] == factory


@pytest.mark.parametrize("kind", ["attention, fused", "attention, separate", "nn.MultiheadAttention"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_pruned_attention_net_is_rebuilt_bit_by_bit(tmp_path: Path, kind: str, steps: int) -> None:
    samples = people(classes=networks.CLASSES)
    asked = settings(f"{__name__}:make_attention", steps=steps, round_to=None)
    recipe = model_store.Recipe(f"{__name__}:make_attention", {"kind": kind}, networks.CLASSES, (3, 16, 16))
    model = recipe.build(None).eval()
    dense_size = sum(p.numel() for p in model.parameters())
    done = pruning.prune(
        model,
        asked.prune.methods[0],
        Amount("ratio", 0.5),
        asked,
        samples,
        Normalisation.of_training(samples),
        device=CPU,
    )
    recipe = replace(recipe, history=done.history)
    for folder in ("made", "again"):
        (tmp_path / folder).mkdir()
    model_store.save(model, recipe, tmp_path / "made", beside=None)
    rebuilt, read = model_store.load(tmp_path / "made", beside=None)
    assert sum(p.numel() for p in rebuilt.parameters()) < 0.6 * dense_size
    if kind == "attention, fused":
        assert read.history is not None
        assert read.history.numbers == {f"blocks.{i}.attn": {"head_dim": 2} for i in (0, 1)}
    inputs = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(inputs), rebuilt(inputs))
    model_store.save(rebuilt, read, tmp_path / "again", beside=None)
    assert (tmp_path / "again/model.json").read_text() == (tmp_path / "made/model.json").read_text()


def test_a_stored_network_stays_frozen_where_its_factory_froze_it(tmp_path: Path) -> None:
    recipe = model_store.Recipe(f"{__name__}:make_frozen", {}, classes=2, input_shape=(3, 16, 16))
    samples, asked = people(), settings(recipe.factory, round_to=None)
    model = recipe.build(None)
    done = pruning.prune(
        model,
        asked.prune.methods[0],
        Amount("ratio", 0.5),
        asked,
        samples,
        Normalisation.of_training(samples),
        device=CPU,
    )
    recipe = replace(recipe, history=done.history)
    model_store.save(model, recipe, tmp_path, beside=None)
    rebuilt, _ = model_store.load(tmp_path, beside=None)
    assert {n: p.requires_grad for n, p in rebuilt.named_parameters()} == {
        "0.weight": False, "0.bias": False, "4.weight": True, "4.bias": True
    }  # fmt: skip


def test_keep_fraction_takes_as_many_steps_as_it_needs() -> None:
    samples = people()
    asked = settings("digits_resnet", steps=None, schedule="keep_fraction", keep_fraction=0.8, round_to=None)
    model = digits_resnet(2, 3)
    done = pruning.prune(
        model,
        asked.prune.methods[0],
        Amount("ratio", 0.5),
        asked,
        samples,
        Normalisation.of_training(samples),
        device=CPU,
    )
    assert len(done.steps) == 4, "0.8 ** 4 is the first power of 0.8 below one half"
    assert done.seconds["finetune"] > 0


def test_what_the_steps_and_the_statistics_say_is_kept_once() -> None:
    steps = [
        {
            "not_pruned": {"head": pruning.OUTPUT, "aux": pruning.OUTPUT, "odd": "why"},
            "frozen": ("stem",),
            "cost": None,
            "misaligned": (),
        },
        {"not_pruned": {"head": pruning.OUTPUT, "odd": "why"}, "frozen": ("stem",), "cost": None, "misaligned": ()},
    ]
    assert pruning.notes(steps) == [
        "odd keeps its width: why.",
        "Outputs of the model keep their width: head, aux.",
        "Frozen layers were pruned with their coupled group and stay frozen: stem.",
    ]
    cost = {"quantity": "macs", "fraction": 0.2987}
    assert pruning.notes([*steps, {**steps[1], "cost": cost, "misaligned": ("stem", "odd")}])[-2:] == [
        "Pruned to 29.9 % of the dense network's MACs.",
        "Outside ONNX Runtime's fast layout: stem, odd.",
    ]
    samples, asked = people(), settings(f"{__name__}:make_frozen", round_to=None, steps=2)
    done = pruning.prune(
        make_frozen(),
        asked.prune.methods[0],
        Amount("ratio", 0.5),
        asked,
        samples,
        Normalisation.of_training(samples),
        device=CPU,
    )
    said = pruning.notes(done.steps)
    assert "Outputs of the model keep their width: 4." in said
    assert [n for n in said if n.startswith("Frozen layers")] == [
        "Frozen layers were pruned with their coupled group and stay frozen: 0."
    ]
    assert len(done.notes) == len(set(done.notes)) > 0


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_methods_end_at_the_asked_cost_each_with_its_allocation(quantity: Any) -> None:
    samples = people(channels=1, classes=3)
    asked = settings(
        "digits_resnet",
        ratios=[],
        **{quantity: [0.4]},
        round_to=None,
        steps=2,
        methods=["magnitude", "taylor", {"name": "taylor", "label": "own", "allocation": "global"}],
        reestimate_batch_norm=True,
    )
    widths, costs = {}, {}
    for method in asked.prune.methods:
        torch.manual_seed(0)
        model = models.build("digits_resnet", {}, classes=3, channels=1, beside=None)
        example = torch.zeros(1, *samples.inputs.shape[1:])
        dense = dict(zip(("macs", "params"), tp.utils.count_ops_and_params(model.eval(), example), strict=True))
        (amount,) = asked.prune.amounts
        done = pruning.prune(model, method, amount, asked, samples, Normalisation.of_training(samples), device=CPU)
        now = dict(zip(("macs", "params"), tp.utils.count_ops_and_params(model.eval(), example), strict=True))
        widths[method.title] = [w["kept"] for w in done.steps[-1]["widths"]]
        costs[method.title] = now[quantity] / dense[quantity]
        assert any(
            note.startswith(f"Pruned to {100 * costs[method.title]:.1f} %") for note in pruning.notes(done.steps)
        )
    assert widths["magnitude"] == widths["taylor"] != widths["own"]
    assert all(0.36 < cost <= 0.4 for cost in costs.values())
    assert costs["magnitude"] == costs["taylor"]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    recipe = model_store.Recipe("digits_resnet", {"widths": [4, 8]}, classes=3, input_shape=(1, 8, 8))
    model_store.save(recipe.build(None).eval(), recipe, tmp_path, beside=None)
    return tmp_path


def test_damaged_weights_are_refused(stored: Path) -> None:
    data = bytearray((stored / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (stored / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: its SHA-256"):
        model_store.load(stored, beside=None)


def test_a_missing_file_and_another_schema_are_named(stored: Path) -> None:
    values = json.loads((stored / "model.json").read_text())
    (stored / "model.json").write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(InputError, match="schema 99, this one reads 3"):
        model_store.load(stored, beside=None)
    (stored / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        model_store.load(stored, beside=None)


def test_a_factory_that_changes_its_network_is_refused(tmp_path: Path) -> None:
    recipe = model_store.Recipe(f"{__name__}:make_another_each_time", {}, classes=2, input_shape=(3, 4, 4))
    with pytest.raises(UnsupportedModelError, match="must give the same layers each time"):
        model_store.save(recipe.build(None).eval(), recipe, tmp_path, beside=None)


_width = 8


def make_of_a_width() -> nn.Module:
    return make_own(_width)


def test_a_factory_that_was_changed_since_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = model_store.Recipe(f"{__name__}:make_of_a_width", {}, classes=2, input_shape=(3, 16, 16))
    pruned = recipe.build(None)
    pruner = FairPruner(pruned, recipe.example(), importance("magnitude"), pruning_ratio=0.4, round_to=None)
    pruner.step()
    recipe = replace(recipe, history=pruner.history())
    model_store.save(pruned.eval(), recipe, tmp_path, beside=None)
    for width in (9, 4):
        monkeypatch.setattr(f"{__name__}._width", width)
        with pytest.raises(UnsupportedModelError, match="cannot be rebuilt from its pruning history"):
            model_store.load(tmp_path, beside=None)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "parallel"])
def test_checkpoints_of_every_kind_fill_the_network(tmp_path: Path, kind: str) -> None:
    trained, fresh = make_own(), make_own()
    weights = trained.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "pt":
        torch.save(weights, path)
    elif kind == "wrapped":
        torch.save({"state_dict": weights, "epoch": 3}, path)
    else:
        torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, path)
    models.load_checkpoint(fresh, path)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, weights[name])


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a checkpoint ran code",))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_cannot_run_code_and_junk_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    for data in (pickle.dumps({"w": _Trap()}), b"junk", b""):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"model\.checkpoint: .* cannot be read"):
            models.load_checkpoint(make_own(), path)


def test_a_whole_pickled_network_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(make_own(), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        models.load_checkpoint(make_own(), tmp_path / "model.pt")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    save_file(make_own(width=4).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit the network: .*size mismatch for 0\.weight"):
        models.load_checkpoint(make_own(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="there is no file"):
        models.load_checkpoint(make_own(), tmp_path / "none.pt")


def not_a_module() -> int:
    return 3


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        ("resnet", {}, r"'resnet' is neither built in \(digits_resnet"),
        ("digits_resnet", {"depth": 3}, r"model\.options: digits_resnet does not take"),
        (f"{__name__}:not_a_module", {}, r"must return a torch\.nn\.Module, got int"),
        (f"{__name__}:make_own", {"depth": 3}, "was called with .* and failed: TypeError"),
    ],
)
def test_factories_that_give_no_network(factory: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        models.build(factory, options, classes=2, channels=1, beside=None)


def test_outputs_are_tried_before_training() -> None:
    model = make_own().train()
    models.check_outputs(model, torch.zeros(2, 3, 8, 8), classes=2)
    assert model.training
    with pytest.raises(InputError, match=r"outputs of shape \(2, 2\) for 2 inputs; \(2, 5\) is needed for 5 classes"):
        models.check_outputs(model, torch.zeros(2, 3, 8, 8), classes=5)
    with pytest.raises(InputError, match=r"fails on inputs of shape \(2, 1, 8, 8\)"):
        models.check_outputs(model, torch.zeros(2, 1, 8, 8), classes=2)


def test_modules_named_in_the_configuration_must_exist() -> None:
    read = config.ModelConfig(factory="digits_resnet", ignored_layers=["classifer"])
    with pytest.raises(ConfigError, match=r"model\.ignored_layers: the network has no module 'classifer'.* classifier"):
        pruning.ignored_layers(digits_resnet(), read)


def test_options_of_a_criterion_are_checked() -> None:
    with pytest.raises(InputError, match="taylor"):
        pruning.importance(MethodConfig(name="taylor", options={"nonsense": 1}))


def test_training_is_deterministic_and_leaves_the_callers_random_numbers_alone() -> None:
    samples = people()
    recipe = config.TrainingConfig(epochs=2, batch_size=16, flip=True, shift=1)
    state = torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = make_own()
        normalise = Normalisation.of_training(samples)
        training.fit(model, samples, normalise, recipe, epochs=2, seed=seed, device=CPU, what="t", key="training")
        assert not model.training
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns(schedule: str, optimizer: str) -> None:
    samples = people()
    recipe = config.TrainingConfig.model_validate(
        {"batch_size": 8, "schedule": schedule, "optimizer": optimizer, "learning_rate": 0.02}
    )
    torch.manual_seed(0)
    model = make_own()
    normalise = Normalisation.of_training(samples)
    training.fit(model, samples, normalise, recipe, epochs=12, seed=0, device=CPU, what="t", key="training")
    with torch.no_grad():
        right = model(normalise(torch.from_numpy(samples.inputs))).argmax(1) == torch.from_numpy(samples.labels)
    assert right.float().mean() > 0.95


def test_a_diverging_loss_is_told() -> None:
    samples = people()
    recipe = config.TrainingConfig(learning_rate=1e30, optimizer="sgd", batch_size=8, schedule="constant")
    normalise = Normalisation.of_training(samples)
    with pytest.raises(InputError, match=r"infinite in epoch \d+ of t; lower training\.learning_rate .*1e\+30"):
        training.fit(make_own(), samples, normalise, recipe, epochs=9, seed=0, device=CPU, what="t", key="training")
