"""Loss hooks in NNI's evaluators: a training through ``fair_evaluator`` is that of a loop by hand with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fair_prune_plugins import nni as ours  # first: the host's import warns
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.losses import (
    CrossEntropy,
    DenseAccuracy,
    Distillation,
    EqualisedLoss,
    ExcessGapConstraint,
    GroupBalancedCrossEntropy,
    GroupDRO,
    LossHook,
    PerformanceWeightedLoss,
    Teacher,
)

# isort: split
import nni
import nni.compression
import pytorch_lightning as pl
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.pruning import AGPPruner, L1NormPruner, MovementPruner, TaylorPruner
from transformers import Trainer, TrainingArguments

from fair_prune_plugins.nni.fair_evaluator import fair_evaluator
from fair_prune_plugins.nni.lightning import LightningEvaluator
from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator

pytestmark = [
    # Lightning's own, with or without NNI.
    pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec\\). is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

assert ours

FEATURES, CLASSES, PEOPLE, BATCH, RATE = 6, 3, 24, 8, 0.1
SIZES = {"0": 17, "1": 7}


def table() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(PEOPLE, FEATURES, generator=generator, dtype=torch.float64)
    gender = (x[:, 3] > 0.4).long()
    gender[5] = -1
    return {"x": x, "labels": (x[:, :CLASSES] + 0.3).argmax(1), "gender": gender, "weight": x[:, 4].abs()}


class Rows(Dataset[Any]):
    """People as dicts, or as tuples."""

    def __init__(self, keys: bool) -> None:
        self.table, self.keys = table(), keys

    def __len__(self) -> int:
        return PEOPLE

    def __getitem__(self, i: int) -> Any:
        row = {key: values[i] for key, values in self.table.items()}
        return row if self.keys else tuple(row.values())


def batches(keys: bool = True) -> Iterator[Any]:
    while True:
        yield from DataLoader(Rows(keys), batch_size=BATCH)


class Net(nn.Module):
    """Returns logits, and with labels a loss and logits, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)
        self.double()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.head(self.body(x))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Lit(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.criterion(self(batch["x"]), batch["labels"]), "more": 1}

    def configure_optimizers(self) -> Any:
        return nni.trace(torch.optim.SGD)(self.parameters(), lr=RATE)


class InnerCall(Lit):
    """Never calls itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(self.net(batch["x"]), batch["labels"])


class InParts(Lit):
    """Calls one part after the other, and something without gradient last."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net.head(self.net.body(batch["x"]))
        with torch.no_grad():
            self.net.body(batch["x"])
        return self.criterion(logits, batch["labels"])


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Rows(True), batch_size=BATCH)


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset)


@dataclass
class Host:
    """An evaluator for a net, and what a loop by hand must know of it."""

    make: Callable[[nn.Module, Any, int], tuple[Any, nn.Module]]
    keys: bool = True
    options: dict[str, Any] = field(default_factory=dict)


def _torch_loop(accumulate: int, keys: bool) -> Callable[..., None]:
    def train(model: nn.Module, optimizer: Any, step: Any, _: Any, max_steps: int | None, __: Any) -> None:
        stream = batches(keys)
        model.train()
        for _ in range(max_steps or 0):
            optimizer.zero_grad()
            for _ in range(accumulate):
                out = step(next(stream), model)
                loss = out if isinstance(out, torch.Tensor) else out[0] if isinstance(out, tuple) else out["loss"]
                (loss / accumulate).backward()
            optimizer.step()

    return train


def _torch(form: str, keys: bool) -> Callable[[nn.Module, Any, int], tuple[Any, nn.Module]]:
    def step(batch: Any, model: nn.Module) -> Any:
        x, labels = (batch["x"], batch["labels"]) if keys else batch[:2]
        loss = F.cross_entropy(model(x), labels)
        return {"tensor": loss, "tuple": (loss, "more"), "dict": {"loss": loss}}[form]

    def make(net: nn.Module, _: Any, accumulate: int) -> tuple[Any, nn.Module]:
        optimizer = nni.trace(torch.optim.SGD)(net.parameters(), lr=RATE)
        return nni.compression.TorchEvaluator(_torch_loop(accumulate, keys), optimizer, step), net

    return make


def _lightning(kind: type[Lit]) -> Callable[[nn.Module, Any, int], tuple[Any, nn.Module]]:
    def make(net: nn.Module, _: Any, accumulate: int) -> tuple[Any, nn.Module]:
        trainer = nni.trace(pl.Trainer)(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
        )
        return LightningEvaluator(trainer, nni.trace(Data)()), kind(net)

    return make


def _transformers(net: nn.Module, folder: Any, accumulate: int, **changes: Any) -> tuple[Any, nn.Module]:
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        max_steps=3,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    optimizer = nni.trace(torch.optim.SGD)(net.parameters(), lr=RATE)
    trainer = nni.trace(InOrder)(
        model=net,
        args=args,
        train_dataset=Rows(True),
        eval_dataset=Rows(True),
        optimizers=(optimizer, None),
        **changes,
    )
    return TransformersEvaluator(trainer), net


BY_KEY = {"groups": "gender"}
HOSTS = {
    "torch, a tensor": Host(_torch("tensor", True), options={**BY_KEY, "inputs": "x"}),
    "torch, a tuple": Host(_torch("tuple", False), keys=False, options={"groups": 2, "targets": 1}),
    "torch, a dict": Host(_torch("dict", True), options={"groups": lambda batch: batch["gender"]}),
    "lightning": Host(_lightning(Lit), options=BY_KEY),
    "lightning, inner module": Host(_lightning(InnerCall), options=BY_KEY),
    "lightning, in parts": Host(_lightning(InParts), options=BY_KEY),
    "transformers": Host(_transformers, options=BY_KEY),
}


def logits(returned: Any) -> Any:
    return returned["logits"] if isinstance(returned, dict) else returned


ACCURACY = DenseAccuracy(("0", "1"), (0.9, 0.6), (17, 6))
LOSSES: dict[str, Callable[[nn.Module], LossHook]] = {
    "cross_entropy": lambda dense: CrossEntropy(),
    "group_balanced": lambda dense: GroupBalancedCrossEntropy(2),
    "group_dro": lambda dense: GroupDRO(2, step_size=1.0),
    "equalised": lambda dense: EqualisedLoss(2, step_size=0.5),
    "excess_gap": lambda dense: ExcessGapConstraint(ACCURACY, tolerance=0.0, step_size=1.0, memory=3),
    "distillation": lambda dense: Distillation(Teacher(dense, output=logits), SIZES),
    "performance_weighted": lambda dense: PerformanceWeightedLoss(Teacher(dense, output=logits)),
}


def dense_net() -> nn.Module:
    torch.manual_seed(7)
    return Net()


def by_hand(net: nn.Module, hook: LossHook, updates: int, accumulate: int = 1, extra: Any = None) -> None:
    """A loop with the hook, as its documentation says."""
    optimizer, stream = torch.optim.SGD(net.parameters(), lr=RATE), batches()
    net.train()
    for _ in range(updates):
        optimizer.zero_grad()
        for _ in range(accumulate):
            batch = next(stream)
            outputs = net(batch["x"])
            loss = hook(outputs, batch["labels"], groups=batch["gender"], inputs=batch["x"])
            if extra is not None:
                loss = loss + extra(net, outputs, batch)
            (loss / accumulate).backward()
        optimizer.step()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, mine), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12, msg=name)
        else:
            assert mine == theirs


def run(evaluator: Any, model: nn.Module, updates: int) -> None:
    if not evaluator._initialization_complete:
        evaluator._init_optimizer_helpers(model)
    evaluator.bind_model(model)
    evaluator.train(max_steps=updates)
    evaluator.unbind_model()


# --- the oracle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("host", HOSTS)
def test_a_training_is_that_of_a_loop_by_hand(tmp_path: Any, host: str, loss: str) -> None:
    net, options = Net(), dict(HOSTS[host].options)
    reference = copy.deepcopy(net)
    hook, other = LOSSES[loss](dense_net()), LOSSES[loss](dense_net())
    evaluator, model = HOSTS[host].make(net, tmp_path, 1)
    assert fair_evaluator(evaluator, hook, **options) is evaluator
    run(evaluator, model, 6)
    by_hand(reference, other, 6)
    assert_same(net, reference)
    assert_same(evaluator.loss, other)
    assert evaluator.loss is hook


@pytest.mark.parametrize("host", ["torch, a tensor", "lightning", "transformers"])
def test_gradients_accumulate_and_models_are_bound_again(tmp_path: Any, host: str) -> None:
    net = Net()
    reference = copy.deepcopy(net)
    evaluator, model = HOSTS[host].make(net, tmp_path, 3)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    hook = GroupDRO(2, step_size=1.0)
    for _ in range(2):
        run(evaluator, model, 2)
        by_hand(reference, hook, 2, accumulate=3)
    assert_same(net, reference)
    assert_same(evaluator.loss, hook)


def test_groups_weigh_the_same_by_the_formula() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    fair_evaluator(evaluator, GroupBalancedCrossEntropy(2), "gender")
    batch = next(batches())
    loss = evaluator._training_step(batch, net)
    each = F.cross_entropy(net(batch["x"]), batch["labels"], reduction="none")
    gender = batch["gender"]
    known, unknown = gender >= 0, gender < 0
    means = [each[gender == g].mean() for g in (0, 1)]
    expected = (known.sum() * (means[0] + means[1]) / 2 + each[unknown].sum()) / BATCH
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert not torch.isclose(loss, each.mean())


def test_the_steps_own_loss_may_count_too() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a dict"].make(net, None, 1)
    fair_evaluator(evaluator, GroupBalancedCrossEntropy(2), "gender", origin_loss_lambda=0.25)
    batch = next(batches())
    loss = evaluator._training_step(batch, net)["loss"]
    outputs = net(batch["x"])
    hook = GroupBalancedCrossEntropy(2)(outputs, batch["labels"], groups=batch["gender"])
    expected = 0.25 * F.cross_entropy(outputs, batch["labels"]) + hook
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_sample_weights_and_intersections_are_read_from_the_batch() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    names = ["0 x 0", "0 x 1", "0 x 2", "1 x 0", "1 x 1", "1 x 2"]
    reader = GroupReader({"gender": "gender", "labels": "labels"}, names=names)
    fair_evaluator(evaluator, "group_balanced", reader, weights="weight")
    batch = next(batches())
    loss = evaluator._training_step(batch, net)
    codes = torch.where(batch["gender"] < 0, -1, batch["gender"] * 3 + batch["labels"])
    expected = GroupBalancedCrossEntropy(6)(net(batch["x"]), batch["labels"], groups=codes, weights=batch["weight"])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


# --- which outputs, which inputs -----------------------------------------------------------------------------------


def _evaluator(step: Any, net: nn.Module, accumulate: int = 1) -> Any:
    optimizer = nni.trace(torch.optim.SGD)(net.parameters(), lr=RATE)
    return nni.compression.TorchEvaluator(_torch_loop(accumulate, True), optimizer, step)


def test_the_last_of_several_calls_counts_or_the_one_that_is_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Net(), Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(x) + self.first(x)

    net = Two()

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        model(batch["x"] * 2)
        return F.cross_entropy(model(batch["x"]), batch["labels"])

    batch = next(batches())
    for module, outputs in ((None, net(batch["x"])), ("first", net.first(batch["x"]))):
        evaluator = fair_evaluator(_evaluator(step, net), CrossEntropy(), module=module)
        expected = F.cross_entropy(outputs, batch["labels"])
        torch.testing.assert_close(evaluator._training_step(batch, net), expected, rtol=1e-12, atol=0)
    evaluator = fair_evaluator(_evaluator(step, net), CrossEntropy(), module="third")
    with pytest.raises(InputError, match="'third' is not in the model, a Two"):
        evaluator._training_step(batch, net)


def test_a_step_may_take_the_batch_apart_and_try_again() -> None:
    net, batch = Net(), next(batches())

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        labels = batch.pop("labels")
        with pytest.raises(RuntimeError, match="shapes"):
            model(batch["x"][:, :2])
        return F.cross_entropy(model(batch["x"]), labels)

    hook = Distillation(dense_net(), 2)
    evaluator = fair_evaluator(_evaluator(step, net), hook, "gender")
    expected = hook(net(batch["x"]), batch["labels"], groups=batch["gender"], inputs=batch["x"])
    torch.testing.assert_close(evaluator._training_step(dict(batch), net), expected, rtol=1e-12, atol=0)


def test_the_dense_model_is_asked_what_the_model_was_given() -> None:
    net, dense = Net(), dense_net()

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        augmented = batch["x"] + torch.randn(BATCH, FEATURES, dtype=torch.float64)
        return F.cross_entropy(model(x=augmented), batch["labels"])

    evaluator = fair_evaluator(_evaluator(step, net), "performance_weighted", teacher=dense, theta=0.3)
    batch = next(batches())
    loss = evaluator._training_step(batch, net)
    torch.manual_seed(1)
    augmented = batch["x"] + torch.randn(BATCH, FEATURES, dtype=torch.float64)
    hook = PerformanceWeightedLoss(dense, theta=0.3)
    expected = hook(net(augmented), batch["labels"], inputs=augmented)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    other = hook(net(augmented), batch["labels"], inputs=batch["x"])
    assert not torch.isclose(loss, other, rtol=1e-6)


def test_the_dense_model_is_asked_with_arguments_of_both_kinds() -> None:
    class Scaled(Net):
        def forward(self, x: torch.Tensor, scale: Any = 1.0, *, shift: Any = 0.0) -> Any:
            return super().forward(x * scale + shift)

    net, dense, batch = Scaled(), Scaled(), next(batches())
    weight = batch["weight"][:, None]

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"], weight, shift=weight), batch["labels"])

    evaluator = fair_evaluator(_evaluator(step, net), "performance_weighted", teacher=dense)
    inputs = {"x": batch["x"], "scale": weight, "shift": weight}
    expected = PerformanceWeightedLoss(dense)(net(**inputs), batch["labels"], inputs=inputs)
    torch.testing.assert_close(evaluator._training_step(batch, net), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("output", [None, "logits", lambda returned: returned["logits"]])
def test_logits_are_found_in_what_models_return(output: Any) -> None:
    net = Net()
    batch = next(batches())

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return model(batch["x"], labels=batch["labels"])["loss"]

    teacher = dense_net()
    evaluator = fair_evaluator(
        _evaluator(step, net), "distillation", "gender", group_names=2, teacher=teacher, output=output
    )
    expected = Distillation(teacher, 2)(net(batch["x"]), batch["labels"], groups=batch["gender"], inputs=batch["x"])
    torch.testing.assert_close(evaluator._training_step(batch, net), expected, rtol=1e-12, atol=0)


# --- among compressors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["torch, a tensor", "lightning", "transformers"])
def test_a_pruner_sees_the_gradients_of_the_hook(tmp_path: Any, host: str) -> None:
    """One update: the scores of ``TaylorPruner`` are those of the hook's gradient, by autograd."""
    net = Net()
    reference = copy.deepcopy(net)
    evaluator, model = HOSTS[host].make(net, tmp_path, 1)
    fair_evaluator(evaluator, GroupDRO(2, step_size=3.0), "gender")
    name = next(n for n, m in model.named_modules() if m is net.body[0])
    pruner = TaylorPruner(model, [{"op_names": [name], "sparse_ratio": 0.5}], evaluator, 1)
    _, masks = pruner.compress()
    batch = next(batches())
    hook = GroupDRO(2, step_size=3.0)
    hook(reference(batch["x"]), batch["labels"], groups=batch["gender"]).backward()
    weight = reference.body[0].weight
    scores = (weight * weight.grad).square().sum(1)
    expected = scores > scores.sort().values[3]
    assert torch.equal(masks[name]["weight"].any(1), expected)


def test_a_distiller_adds_to_the_hook() -> None:
    net, teacher = Net(), dense_net()
    reference, dense = copy.deepcopy(net), copy.deepcopy(teacher)
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    config = [{"op_names": ["head"], "target_names": ["_output_"], "lambda": 2.0, "apply_method": "mse"}]
    distiller = DynamicLayerwiseDistiller(net, config, evaluator, teacher, lambda b, t: t(b["x"]), 0.5)
    pruner = TaylorPruner.from_compressor(distiller, [{"op_names": ["body.0"], "sparse_ratio": 0.5}], training_steps=9)
    assert pruner.evaluator is evaluator
    pruner.compress(4, None)
    pruner.unwrap_model()

    class Halved(GroupDRO):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return 0.5 * super().forward(*args, **kwargs)

    by_hand(
        reference,
        Halved(2, step_size=1.0),
        4,
        extra=lambda net, outputs, batch: 2.0 * F.mse_loss(outputs, dense(batch["x"]).detach()),
    )
    assert_same(net, reference)


@pytest.mark.parametrize("host", ["torch, a tensor", "lightning", "transformers"])
@pytest.mark.parametrize("kind", ["movement", "agp"])
def test_pruners_accept_it(tmp_path: Any, host: str, kind: str) -> None:
    net = Net()
    evaluator, model = HOSTS[host].make(net, tmp_path, 1)
    before = type(evaluator)
    fair_evaluator(evaluator, "group_dro", "gender", group_names=2)
    assert type(evaluator) is before
    name = next(n for n, m in model.named_modules() if m is net.body[0])
    config = [{"op_names": [name], "sparse_ratio": 0.5}]
    if kind == "movement":
        pruner = MovementPruner(model, config, evaluator, 1, 4)
    else:
        pruner = AGPPruner(L1NormPruner(model, config, evaluator), 2, 3)
    _, masks = pruner.compress(6, None)
    assert 0 < masks[name]["weight"].mean() < 1
    assert not torch.allclose(evaluator.loss.shares, torch.full((2,), 0.5, dtype=torch.float64), atol=1e-6)
    pruner.unwrap_model()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_state_is_saved_and_loaded() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    run(evaluator, net, 3)
    saved = evaluator.loss.state_dict()
    other = GroupDRO(2, step_size=1.0)
    other.load_state_dict(saved)
    assert torch.equal(other.shares, evaluator.loss.shares)
    assert not torch.equal(other.shares, GroupDRO(2).shares)


def test_state_stays_while_the_model_is_evaluated() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    batch = next(batches())
    net.eval()
    loss = evaluator._training_step(batch, net)
    assert loss.requires_grad
    assert torch.equal(evaluator.loss.shares, GroupDRO(2).shares)
    with torch.no_grad():
        own = evaluator._training_step(batch, net)
    torch.testing.assert_close(own, F.cross_entropy(net(batch["x"]), batch["labels"]))


def test_a_hook_can_be_suspended() -> None:
    net, batch = Net(), next(batches())
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    own = F.cross_entropy(net(batch["x"]), batch["labels"])
    with evaluator.training_loss.suspended():
        torch.testing.assert_close(evaluator._training_step(batch, net), own)
    assert torch.equal(evaluator.loss.shares, GroupDRO(2).shares)
    assert not torch.isclose(evaluator._training_step(batch, net), own)


def test_a_second_hook_replaces_the_first() -> None:
    net = Net()
    evaluator, _ = HOSTS["torch, a tensor"].make(net, None, 1)
    first = GroupDRO(2, step_size=1.0)
    fair_evaluator(evaluator, first, "gender")
    fair_evaluator(evaluator, CrossEntropy())
    batch = next(batches())
    expected = F.cross_entropy(net(batch["x"]), batch["labels"])
    torch.testing.assert_close(evaluator._training_step(batch, net), expected)
    assert torch.equal(first.shares, GroupDRO(2).shares)


# --- transformers --------------------------------------------------------------------------------------------------


def test_a_trainer_keeps_the_column_and_the_model_does_not_get_it(tmp_path: Any) -> None:
    """``x`` and ``labels`` are the model's arguments; its forward would fail with another."""
    seen: list[Any] = []

    class Own(InOrder):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            seen.append((sorted(inputs), inputs.get("gender")))
            inputs.pop("gender", None)
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

    net = Net()
    evaluator, _ = _transformers(net, tmp_path, 1)
    kwargs = evaluator.traced_trainer.trace_kwargs
    evaluator = TransformersEvaluator(nni.trace(Own)(**kwargs))
    fair_evaluator(evaluator, GroupDRO(2), "gender")
    patched: list[Any] = []

    def patch(loss: torch.Tensor, batch: Any) -> torch.Tensor:
        patched.append((dict(**batch), batch["gender"]))
        return loss

    evaluator._init_optimizer_helpers(net)
    evaluator.bind_model(net)
    evaluator.patch_loss(patch)
    evaluator.train(max_steps=1)
    batch = next(batches())
    assert seen[0][0] == ["labels", "x"]
    assert torch.equal(seen[0][1], batch["gender"])
    assert patched[0][0].keys() == {"labels", "x"}
    assert torch.equal(patched[0][1], batch["gender"])
    metric, metrics = evaluator.evaluate()
    assert metric is None
    with torch.no_grad():
        x, labels = table()["x"], table()["labels"]
        assert metrics["eval_loss"] == pytest.approx(float(F.cross_entropy(net.eval()(x), labels)), abs=1e-6)


@pytest.mark.parametrize("items", [True, False])
def test_a_trainer_that_does_not_divide_by_the_batches_is_made_up_for(tmp_path: Any, items: bool) -> None:
    class ByItems(Net):
        accepts_loss_kwargs = items

        def forward(self, x: Any, labels: Any = None, num_items_in_batch: Any = None) -> Any:
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits

    net = ByItems()
    reference = copy.deepcopy(net)
    evaluator, _ = _transformers(net, tmp_path, 3)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    run(evaluator, net, 2)
    by_hand(reference, GroupDRO(2, step_size=1.0), 2, accumulate=3)
    assert_same(net, reference)


def test_a_loss_function_of_the_user_that_takes_the_labels_out(tmp_path: Any) -> None:
    net = Net()
    reference = copy.deepcopy(net)

    def compute(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs, labels)

    evaluator, _ = _transformers(net, tmp_path, 1, compute_loss_func=compute)
    fair_evaluator(evaluator, GroupDRO(2, step_size=1.0), "gender")
    run(evaluator, net, 3)
    by_hand(reference, GroupDRO(2, step_size=1.0), 3)
    assert_same(net, reference)


# --- what is wrong is named ----------------------------------------------------------------------------------------


def _refused(message: str, *args: Any, **kwargs: Any) -> None:
    evaluator, _ = HOSTS["torch, a tensor"].make(Net(), None, 1)
    with pytest.raises(InputError, match=message):
        fair_evaluator(evaluator, *args, **kwargs)
    assert getattr(evaluator, "training_loss", None) is None


def test_arguments_that_do_not_go_together_are_refused() -> None:
    _refused("GroupDRO compares sensitive groups: pass groups=", GroupDRO(2))
    _refused("must know them beforehand: pass group_names=", "group_dro", "gender")
    _refused("the loss 'performance_weighted' needs teacher=", "performance_weighted")
    _refused("the loss 'excess_gap' needs dense=", "excess_gap", "gender")
    _refused("no loss 'focal'", "focal")
    _refused("has no option 'stepsize'", "group_dro", "gender", group_names=2, stepsize=1)
    _refused("got GroupDRO", GroupDRO, "gender")
    _refused(r"teacher=, step_size= are for a loss given by name", GroupDRO(2), "gender", teacher=Net(), step_size=1)
    _refused("reduction='none'", CrossEntropy(reduction="none"))
    reader = GroupReader({"gender": "gender"}, names=["f", "m"])
    _refused("give both the same names", GroupDRO(["m", "f"]), reader)


def test_other_evaluators_are_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"got builtins\.str"):
        fair_evaluator("evaluator", CrossEntropy())
    evaluator, model = HOSTS["lightning"].make(Net(), tmp_path, 1)
    theirs = nni.compression.LightningEvaluator(evaluator.trainer, evaluator.data_module)
    with pytest.raises(InputError, match=r"got nni\.compression"):
        fair_evaluator(theirs, CrossEntropy())
    evaluator._init_optimizer_helpers(model)
    evaluator.bind_model(model)
    with pytest.raises(InputError, match="before compress"):
        fair_evaluator(evaluator, CrossEntropy())


def test_a_module_that_calls_backward_itself_is_refused(tmp_path: Any) -> None:
    class Manual(Lit):
        automatic_optimization = False

    evaluator, _ = HOSTS["lightning"].make(Net(), tmp_path, 1)
    model = Manual(Net())
    fair_evaluator(evaluator, CrossEntropy())
    evaluator._init_optimizer_helpers(model)
    with pytest.raises(InputError, match="Manual optimises manually"):
        evaluator.bind_model(model)
    assert evaluator.model is None
    assert "training_step" not in vars(model)


def _step(batch: Any, model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["labels"])


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (_step, {"groups": "sex"}, "the batch has no 'sex' to take the sensitive group from"),
        (_step, {"groups": lambda batch: None}, "one value per sample"),
        (_step, {"groups": lambda batch: batch["gender"][:3]}, "3 values for a batch of 8"),
        (_step, {"groups": lambda batch: ["a"] * BATCH}, "outside the known groups"),
        (_step, {"targets": "y"}, "the batch has no 'y' to take the targets from"),
        (_step, {"output": "logits"}, "output='logits' is not in what the model returns"),
        (_step, {"targets": lambda batch: batch["labels"] + 5}, "lie outside the classes"),
        (lambda batch, model: (model(batch["x"]).sum(), 1)[1:], {}, "the training step returned a tuple of 1 items"),
        (lambda batch, model: torch.zeros(()), {}, "called no module of the model that has parameters"),
    ],
)
def test_what_a_batch_or_a_step_lacks_is_named(step: Any, options: dict[str, Any], message: str) -> None:
    net = Net()
    evaluator = fair_evaluator(_evaluator(step, net), GroupDRO(2), **{"groups": "gender"} | options)
    with pytest.raises(InputError, match=message):
        evaluator._training_step(next(batches()), net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_groups_that_nobody_is_in_are_an_error() -> None:
    net = Net()
    evaluator = fair_evaluator(_evaluator(_step, net), GroupDRO(2), lambda batch: torch.full((len(batch["x"]),), -1))
    with pytest.raises(InputError, match="every group is unknown: none of the 80 people"):
        run(evaluator, net, 20)


def test_a_model_that_returns_several_things_needs_output() -> None:
    class Pair(Net):
        def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
            return super().forward(x), x

    net, batch = Pair(), next(batches())

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"])[0], batch["labels"])

    evaluator = fair_evaluator(_evaluator(step, net), CrossEntropy())
    with pytest.raises(InputError, match="pass output="):
        evaluator._training_step(batch, net)
    evaluator = fair_evaluator(evaluator, CrossEntropy(), output=0)
    torch.testing.assert_close(evaluator._training_step(batch, net), step(batch, net))
