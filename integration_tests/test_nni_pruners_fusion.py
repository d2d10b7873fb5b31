"""The pruners for NNI among others: schedules, distillers, Lightning, Transformers, loss hooks."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nni
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import build_plan
from fair_prune_plugins.statistics import collect
from integration_tests.networks import Plain, build
from integration_tests.nni_pruning import batches, kept, mean_loss, torch_evaluator

# After the one above, which imports NNI.
from nni.compression import TorchEvaluator  # isort: skip
from nni.compression.distillation import Adaptive1dLayerwiseDistiller, DynamicLayerwiseDistiller  # isort: skip
from nni.compression.pruning import AGPPruner, L1NormPruner, LinearPruner, TaylorPruner  # isort: skip
from fair_prune_plugins.nni.fair_evaluator import fair_evaluator  # isort: skip
from fair_prune_plugins.nni.pruners import FairGRAPEPruner, FairTaylorPruner, GateTaylorPruner, MagnitudePruner  # isort: skip

CONV = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
DISTILL = [{"op_names": ["fc"], "lambda": 1.0, "apply_method": "kl"}]


def evaluator_of(model: nn.Module, data: Any, kind: str = "sgd") -> TorchEvaluator:
    if kind == "adam":
        optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=0.01)
        scheduler = nni.trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, 0.9)
        return TorchEvaluator(torch_evaluator(model, data).training_func, optimizer, mean_loss, scheduler)
    return torch_evaluator(model, data)


def noisy_loss(batch: Any, model: nn.Module) -> torch.Tensor:
    """Draws random numbers, as augmentation does."""
    outputs = model(batch[0])
    return F.cross_entropy(F.dropout(outputs, 0.1, model.training) + 1e-6 * torch.randn_like(outputs), batch[1])


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    # Wrappers hold what is trained, the modules the masked values.
    return {name.replace("_nni_wrapper.", ""): p.detach().clone() for name, p in model.named_parameters()} | {
        name: b.clone() for name, b in model.named_buffers() if "running" in name
    }


@pytest.mark.parametrize("scheduled", [AGPPruner, LinearPruner])
@pytest.mark.parametrize("cls", [FairTaylorPruner, FairGRAPEPruner, MagnitudePruner])
def test_schedules_reach_the_ratio_in_nested_steps(scheduled: Any, cls: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, data = build("residual"), batches()
    pruner = cls(model, CONV, evaluator_of(model, data), training_steps=2, groups=2)
    schedule = scheduled(pruner, interval_steps=4, total_times=3)
    seen: list[dict[str, list[int]]] = []
    make = pruner.update_masks

    def noted(masks: Any) -> None:
        make(masks)
        seen.append({name: kept(targets["weight"]) for name, targets in pruner.get_masks().items()})

    pruner.update_masks = noted
    measured: list[int] = []
    add = pruner._meter.add

    def watched(call: Any) -> Any:
        measured.append(pruner._current_step)
        return add(call)

    pruner._meter.add = watched
    _, masks = schedule.compress(max_steps=14, max_epochs=None)
    assert len(seen) == 3
    # NNI's L1 pruner under the same schedule, for how many go when.
    other = build("residual")
    host = L1NormPruner(other, CONV, evaluator_of(other, data))
    counts: list[dict[str, int]] = []
    update = host.update_masks

    def counted(found: Any) -> None:
        update(found)
        counts.append({name: len(kept(targets["weight"])) for name, targets in host.get_masks().items()})

    host.update_masks = counted
    scheduled(host, interval_steps=4, total_times=3).compress(max_steps=14, max_epochs=None)
    assert [{name: len(stay) for name, stay in step.items()} for step in seen] == counts
    for earlier, later in itertools.pairwise(seen):
        assert all(set(later[name]) <= set(earlier[name]) for name in later)
    assert {name: kept(targets["weight"]) for name, targets in masks.items()} == seen[-1]
    assert pruner.statistics is not None
    assert pruner.statistics.people.sum() == (0 if cls is MagnitudePruner else 32)
    # The last two steps of every interval: the freshest weights.
    assert measured == ([] if cls is MagnitudePruner else [2, 3] * 3)
    assert f"Compatibility not tested with pruner type {cls.__name__}" not in caplog.text


def test_training_goes_on_undisturbed() -> None:
    """Up to the first mask every parameter, statistic and random number is as without our passes."""

    def train(with_pruner: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model, data = build("residual"), batches()
        evaluator = torch_evaluator(model, data, noisy_loss)
        teacher = copy.deepcopy(model)
        distiller = DynamicLayerwiseDistiller(model, DISTILL, evaluator, teacher, lambda b, net: net(b[0]), 0.5)
        compressor: Any = distiller
        steps = 7
        if with_pruner:
            # The host's wrappers alone change nothing: all masks are ones until the pruner makes them.
            compressor = FairTaylorPruner.from_compressor(distiller, CONV, training_steps=steps, groups=2)
            update = compressor.update_masks

            def at_the_end(masks: Any) -> None:
                at.update(trained(model))
                update(masks)

            at: dict[str, torch.Tensor] = {}
            compressor.update_masks = at_the_end
            compressor.compress(max_steps=steps, max_epochs=None)
            assert compressor.statistics.people.sum() == 16 * steps
            return at
        compressor.compress(max_steps=steps, max_epochs=None)
        return trained(model)

    without, beside = train(False), train(True)
    assert set(without) == set(beside)
    assert all(torch.equal(without[name], beside[name]) for name in without)


@pytest.mark.parametrize("pruner_first", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_with_a_distiller(pruner_first: bool, kind: str) -> None:
    model, data = build("residual"), batches()
    teacher = copy.deepcopy(model)
    evaluator = evaluator_of(model, data, kind)
    config = [*CONV, {"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5}]

    def predict(batch: Any, net: nn.Module) -> torch.Tensor:
        return net(batch[0])

    if pruner_first:
        pruner = FairTaylorPruner(model, config, evaluator, 3, groups=lambda batch: batch[2])
        last: Any = Adaptive1dLayerwiseDistiller.from_compressor(pruner, DISTILL, teacher, predict, 0.5)
        last.track_forward(data[0][0])
    else:
        distiller = DynamicLayerwiseDistiller(model, DISTILL, evaluator, teacher, predict, 0.5)
        last = pruner = FairTaylorPruner.from_compressor(
            distiller, config, training_steps=3, groups=lambda batch: batch[2]
        )
    last.compress(max_steps=5, max_epochs=None)
    masks = pruner.get_masks()
    assert {len(kept(t["weight"])) for t in masks.values() if "weight" in t} == {5, 7}
    assert pruner.statistics.people.sum() == 48
    last.unwrap_model()
    assert model.get_parameter("stem.0.weight").requires_grad


@pytest.mark.parametrize("second", [FairTaylorPruner, TaylorPruner])
@pytest.mark.parametrize("done", [True, False])
def test_a_pruner_after_a_pruner_of_other_layers(second: Any, done: bool) -> None:
    model, data = build("flatten"), batches()
    names = ["conv1", "conv2"]
    convolutions = [{"op_names": names, "sparse_ratio": 0.25}]
    first = FairTaylorPruner(model, convolutions, evaluator_of(model, data), 2, groups=2)
    before: dict[str, Any] = first.compress()[1] if done else {}
    options = {} if second is TaylorPruner else {"groups": 2}
    last = second.from_compressor(first, [{"op_names": ["fc1"], "sparse_ratio": 0.5}], training_steps=2, **options)
    _, masks = last.compress(max_steps=4, max_epochs=None)
    assert {n: len(kept(t["weight"])) for n, t in masks.items()} == {"conv1": 5, "conv2": 3, "fc1": 6}
    for name, targets in before.items():
        assert torch.equal(masks[name]["weight"], targets["weight"])
    last.unwrap_model()
    assert not any("_nni_wrapper" in name for name, _ in model.named_modules())
    model(data[0][0])


def test_wrong_arguments_leave_the_other_compressor_as_it_was() -> None:
    model, data = build("residual"), batches()
    distiller = DynamicLayerwiseDistiller(
        model, DISTILL, evaluator_of(model, data), copy.deepcopy(model), lambda batch, net: net(batch[0]), 0.5
    )
    with pytest.raises(InputError, match="compares sensitive groups"):
        FairTaylorPruner.from_compressor(distiller, CONV, training_steps=3)
    distiller.compress(max_steps=2, max_epochs=None)


def test_schedule_after_a_distiller() -> None:
    model, data = build("residual"), batches()
    evaluator = evaluator_of(model, data)
    distiller = DynamicLayerwiseDistiller(
        model, DISTILL, evaluator, copy.deepcopy(model), lambda batch, net: net(batch[0]), 0.5
    )
    pruner = FairTaylorPruner.from_compressor(distiller, CONV, training_steps=2, groups=2)
    schedule = AGPPruner(pruner, interval_steps=2, total_times=3)
    _, masks = schedule.compress(max_steps=8, max_epochs=None)
    assert {len(kept(t["weight"])) for t in masks.values() if "weight" in t} == {5, 7}
    schedule.unwrap_model()


def test_an_error_beside_training_leaves_the_evaluator_usable(caplog: pytest.LogCaptureFixture) -> None:
    model, data = build("residual"), batches()
    evaluator = evaluator_of(model, data)
    pruner = FairTaylorPruner(model, CONV, evaluator, 2, groups=lambda batch: 1 / 0)
    schedule = AGPPruner(pruner, interval_steps=3, total_times=2)
    with pytest.raises(InputError, match="batch 0: the sensitive groups cannot be read"):
        schedule.compress(max_steps=8, max_epochs=None)
    assert evaluator.model is None
    schedule.unwrap_model()
    GateTaylorPruner(model, CONV, evaluator, 2).compress()
    model = build("residual")
    schedule = AGPPruner(GateTaylorPruner(model, CONV, evaluator_of(model, data), 5), interval_steps=3, total_times=2)
    with pytest.raises(InputError, match="interval_steps must be at least training_steps"):
        schedule.compress(max_steps=8, max_epochs=None)


def test_too_short_a_training_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, data = build("residual"), batches()
    distiller = DynamicLayerwiseDistiller(
        model, DISTILL, evaluator_of(model, data), copy.deepcopy(model), lambda batch, net: net(batch[0]), 0.5
    )
    FairTaylorPruner.from_compressor(distiller, CONV, training_steps=5, groups=2).compress(max_steps=3, max_epochs=None)
    assert "made no masks" in caplog.text


def test_statistics_are_of_the_users_own_loss_under_a_loss_hook() -> None:
    model, data = build("residual"), batches()
    evaluator = fair_evaluator(evaluator_of(model, data), "group_balanced", groups=2, group_names=2)
    pruner = FairTaylorPruner(model, CONV, evaluator, 3, groups=2)
    pruner.compress()
    plan = build_plan(build("residual"), data[0][0])
    expected = collect(plan, data, nn.CrossEntropyLoss(), groups=2, progress=False)
    assert pruner.statistics is not None
    torch.testing.assert_close(pruner.statistics.absolute, expected.absolute, rtol=1e-4, atol=1e-9)


# Lightning


@pytest.fixture
def quiet_lightning() -> Iterator[None]:
    with warnings.catch_warnings():
        # Lightning's own: few data workers, no logger, its use of deprecated torch functions.
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize("calls", ["self", "part"])
@pytest.mark.parametrize("kind", ["alone", "schedule"])
def test_lightning(calls: str, kind: str, tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from fair_prune_plugins.nni.lightning import LightningEvaluator

    data = batches(4)

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = build("plain")
            self.criterion = nn.CrossEntropyLoss()
            self.logged = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y, _ = batch
            loss = self.criterion(self(x) if calls == "self" else self.model(x), y)
            self.log("train_loss", loss)
            return {"loss": loss}

        def configure_optimizers(self) -> Any:
            optimizer = nni.trace(torch.optim.SGD)(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
            scheduler = nni.trace(torch.optim.lr_scheduler.StepLR)(optimizer, 1)
            return [optimizer], [scheduler]

    class Data(pl.LightningDataModule):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(data, batch_size=None)

    trainer = nni.trace(pl.Trainer)(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    module = Module().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    names = ["model.body.0.0", "model.body.2.0"]
    config = [{"op_names": names, "sparse_ratio": 0.5}]
    evaluator = LightningEvaluator(trainer, nni.trace(Data)())
    pruner = FairTaylorPruner(module, config, evaluator, 3, groups=lambda batch: batch[2])
    if kind == "schedule":
        schedule = AGPPruner(pruner, interval_steps=3, total_times=2)
        _, masks = schedule.compress(max_steps=7, max_epochs=None)
        schedule.unwrap_model()
    else:
        _, masks = pruner.compress()
        pruner.unwrap_model()
        after = module.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        plan = build_plan(build("plain"), data[0][0])
        expected = collect(plan, data[:3], nn.CrossEntropyLoss(), groups=2, progress=False)
        assert pruner.statistics is not None
        torch.testing.assert_close(pruner.statistics.absolute, expected.absolute, rtol=1e-4, atol=1e-9)
    assert [len(kept(masks[name]["weight"])) for name in names] == [6, 8]
    assert "training_step" not in vars(module)
    assert "log" not in vars(module)


# Transformers


class Classifier(Plain):
    """A model as Transformers' Trainer takes it: keywords in, a dict with the loss out."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:  # type: ignore[override]
        logits = super().forward(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", ["alone", "schedule"])
def test_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator

    x, y, g = (torch.cat(parts) for parts in zip(*batches(4), strict=True))
    rows = [{"pixel_values": x[i], "labels": y[i], "gender": g[i]} for i in range(len(x))]
    model = Classifier()
    model.load_state_dict(build("plain").state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    args = transformers.TrainingArguments(str(tmp_path), per_device_train_batch_size=16, use_cpu=True, **quiet)
    trainer = nni.trace(transformers.Trainer)(model=model, args=args, train_dataset=rows)
    evaluator = TransformersEvaluator(trainer)
    names = ["body.0.0", "body.2.0"]
    pruner = FairTaylorPruner(model, [{"op_names": names, "sparse_ratio": 0.5}], evaluator, 4, groups="gender")
    if kind == "schedule":
        _, masks = AGPPruner(pruner, interval_steps=4, total_times=2).compress(max_steps=8, max_epochs=None)
    else:
        _, masks = pruner.compress()
        pruner.unwrap_model()
        after = model.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        expected = collect(
            build_plan(build("plain"), x[:2]), [(x, y, g)], nn.CrossEntropyLoss(), groups=2, progress=False
        )
        assert pruner.statistics is not None
        torch.testing.assert_close(pruner.statistics.absolute, expected.absolute, rtol=1e-4, atol=1e-9)
    assert pruner.statistics.names == ("0", "1")
    assert [len(kept(masks[name]["weight"])) for name in names] == [6, 8]
