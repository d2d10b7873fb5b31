"""Pipelines as NNI's documentation has them, with nothing changed but the imports, up to the smaller model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.compression.distillation import DynamicLayerwiseDistiller
from torch import nn
from torch.utils.data import DataLoader

import fair_prune_plugins.onnx as fpo
from fair_prune_plugins.nni import (
    AGPPruner,
    FairGRAPEPruner,
    FairTaylorPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LightningEvaluator,
    LinearPruner,
    ModelSpeedup,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
    TorchEvaluator,
    auto_set_denpendency_group_ids,
    fair_evaluator,
    speedup,
)
from integration_tests.networks import CLASSES, build
from integration_tests.nni_pruning import Batch, batches

STEPS = 6
"""Of training, where a pruner trains."""


@pytest.fixture
def data() -> list[Batch]:
    return batches()


def training_step(batch: Any, model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def prepare_optimizer(model: nn.Module) -> Any:
    return nni.trace(torch.optim.Adam)([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def train_on(data: list[Batch]) -> Callable[..., None]:
    def train(
        model: nn.Module,
        optimizer: Any,
        training_step: Any,
        lr_scheduler: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        total, count = max_steps or (max_epochs or 1) * len(data), 0
        model.train()
        while count < total:
            for batch in data:
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()
                count += 1
                if count >= total:
                    return

    return train


def widths(model: nn.Module) -> dict[str, int]:
    return {n: m.weight.shape[0] for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def fair(cls: Any) -> Callable[..., Any]:
    return lambda model, config, evaluator: cls(model, config, evaluator, training_steps=3, groups=lambda b: b[2])


SINGLE: dict[str, Callable[..., Any]] = {
    "l1": lambda model, config, evaluator: L1NormPruner(model, config),
    "l2": lambda model, config, evaluator: L2NormPruner(model, config),
    "fpgm": lambda model, config, evaluator: FPGMPruner(model, config),
    "taylor": lambda model, config, evaluator: TaylorPruner(model, config, evaluator, training_steps=STEPS),
    "fair taylor": fair(FairTaylorPruner),
    "fairgrape": fair(FairGRAPEPruner),
}


@pytest.mark.parametrize("pruner", SINGLE)
@pytest.mark.parametrize("name", ["residual", "mobilenet-v2"])
def test_dependency_ids_pruner_speedup_and_fine_tuning(data: list[Batch], name: str, pruner: str) -> None:
    model, train = build(name), train_on(data)
    dense = widths(model)
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    dummy_input = torch.rand(8, 3, 16, 16)
    config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)
    evaluator = TorchEvaluator(train, prepare_optimizer(model), training_step)
    pruner_ = SINGLE[pruner](model, config_list, evaluator)
    _, masks = pruner_.compress()
    pruner_.unwrap_model()
    model = ModelSpeedup(model, dummy_input, masks).speedup_model()
    assert widths(model) == {n: w // 2 for n, w in dense.items()}
    optimizer = prepare_optimizer(model)
    train(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=1)
    assert model(dummy_input).shape == (8, CLASSES)


@pytest.mark.parametrize("inner", ["taylor", "fair taylor", "l1"])
@pytest.mark.parametrize("schedule", [AGPPruner, LinearPruner])
def test_a_schedule_around_a_pruner(data: list[Batch], schedule: Any, inner: str) -> None:
    model = build("residual")
    dense, dummy_input = widths(model), torch.rand(8, 3, 16, 16)
    config_list = auto_set_denpendency_group_ids(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], dummy_input)
    evaluator = TorchEvaluator(train_on(data), prepare_optimizer(model), training_step)
    sub_pruner = {
        "taylor": lambda: TaylorPruner(model, config_list, evaluator, training_steps=3),
        "fair taylor": lambda: FairTaylorPruner(model, config_list, evaluator, training_steps=3, groups=2),
        "l1": lambda: L1NormPruner(model, config_list, evaluator),
    }[inner]()
    scheduled = schedule(sub_pruner, interval_steps=3, total_times=4)
    _, masks = scheduled.compress(max_steps=3 * 4, max_epochs=None)
    scheduled.unwrap_model()
    ModelSpeedup(model, dummy_input, masks).speedup_model()
    assert widths(model) == {n: w // 2 for n, w in dense.items()}


def test_slimming_batch_norms(data: list[Batch]) -> None:
    model = build("plain")
    dense, dummy_input = widths(model), torch.rand(8, 3, 16, 16)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    config_list = [{"op_types": ["BatchNorm2d"], "op_names": norms, "sparse_ratio": 0.5}]
    evaluator = TorchEvaluator(train_on(data), prepare_optimizer(model), training_step)
    pruner = SlimPruner(model, config_list, evaluator, training_steps=STEPS)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    ModelSpeedup(model, dummy_input, masks).speedup_model()
    assert widths(model) == {n: w // 2 for n, w in dense.items()}


def test_movement_with_whole_rows(data: list[Batch]) -> None:
    model = build("plain")
    dense, dummy_input = widths(model), torch.rand(8, 3, 16, 16)
    names = list(dense)
    config_list = [{"op_names": names, "target_names": ["weight"], "sparse_ratio": 0.5, "granularity": "out_channel"}]
    evaluator = TorchEvaluator(train_on(data), prepare_optimizer(model), training_step)
    pruner = MovementPruner(model, config_list, evaluator, warmup_step=2, cooldown_begin_step=8)
    _, masks = pruner.compress(max_steps=12, max_epochs=None)
    pruner.unwrap_model()
    ModelSpeedup(model, dummy_input, masks).speedup_model()
    small = widths(model)
    assert small == {n: int(masks[n]["weight"].flatten(1).any(1).sum()) for n in names}
    assert sum(small.values()) < sum(dense.values())


def test_norms_aligned_with_their_convolutions_and_a_distiller(data: list[Batch]) -> None:
    model, teacher = build("plain"), build("plain", seed=1)
    dense, dummy_input = widths(model), torch.rand(8, 3, 16, 16)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    before = {n: layers[i - 1] for i, n in enumerate(layers) if isinstance(model.get_submodule(n), nn.BatchNorm2d)}
    align = {
        n: {"align": {"module_name": conv, "target_name": "weight", "dims": [0]}, "granularity": "per_channel"}
        for n, conv in before.items()
    }
    config_list: list[dict[str, Any]] = [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.5},
        *(
            {"op_names": [n], "target_names": ["_output_"], "target_settings": {"_output_": s}}
            for n, s in align.items()
        ),
    ]
    config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)
    evaluator = TorchEvaluator(train_on(data), prepare_optimizer(model), training_step)
    pruner = FairTaylorPruner(model, config_list, evaluator, training_steps=2, groups=2)
    scheduled = AGPPruner(pruner, interval_steps=3, total_times=2)
    distiller = DynamicLayerwiseDistiller.from_compressor(
        scheduled,
        [{"op_types": ["Conv2d"], "lambda": 0.1, "apply_method": "mse"}],
        teacher,
        lambda batch, model: model(batch[0]),
        0.1,
    )
    distiller.track_forward(dummy_input)
    distiller.compress(max_steps=9, max_epochs=None)
    distiller.unwrap_model()
    distiller.unwrap_teacher_model()
    masked = _evaluated(model, scheduled.get_masks(), dummy_input)
    small = ModelSpeedup(model, dummy_input, scheduled.get_masks()).speedup_model().eval()
    assert widths(small) == {n: w // 2 for n, w in dense.items()}
    # The norms' outputs are masked too, so nothing is left of a unit and the smaller model is the masked one.
    torch.testing.assert_close(small(dummy_input), masked, rtol=1e-4, atol=1e-5)


def _evaluated(model: nn.Module, masks: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What a model with its masks says, with hooks of our own."""
    handles = []
    for name, targets in masks.items():
        module = model.get_submodule(name)
        for target, mask in targets.items():
            if target.startswith("_output_"):
                handles.append(module.register_forward_hook(lambda _m, _i, out, mask=mask: out * mask))
    model.eval()
    with torch.no_grad():
        says = model(inputs)
    for handle in handles:
        handle.remove()
    return says


def test_element_wise_masks_stay_zeros_in_what_is_left(data: list[Batch]) -> None:
    model = build("plain")
    names = list(widths(model))
    pruner = LevelPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    pruner.unwrap_model()
    rows = torch.zeros_like(masks[names[0]]["weight"])
    rows[::2] = 1
    masks[names[0]]["weight"] *= rows
    speedup(model, masks, torch.rand(2, 3, 16, 16))
    first = model.get_submodule(names[0]).weight
    assert torch.equal(first != 0, masks[names[0]]["weight"][::2].bool())


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build("residual")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, _ = batch
        return F.cross_entropy(self(x), y)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("default", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = nni.trace(torch.optim.SGD)(self.parameters(), lr=0.01, momentum=0.9)
        scheduler = nni.trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(batches(), batch_size=None)

    test_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec\\). is deprecated:FutureWarning")  # Lightning's
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_lightning_module_under_a_loss_hook(scheduled: bool, tmp_path: Path) -> None:
    model = Lit().train()
    dense, dummy_input = widths(model), torch.rand(4, 3, 16, 16)
    trainer = nni.trace(pl.Trainer)(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    evaluator = LightningEvaluator(trainer, nni.trace(Data)(), dummy_input)
    fair_evaluator(evaluator, "group_dro", groups=2, group_names=["0", "1"])
    config_list = [{"op_names_re": ["model.*"], "op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)
    pruner: Any = FairTaylorPruner(model, config_list, evaluator, training_steps=2, groups=2)
    if scheduled:
        pruner = AGPPruner(pruner, interval_steps=2, total_times=3)
        _, masks = pruner.compress(max_steps=8, max_epochs=None)
    else:
        _, masks = pruner.compress()
    pruner.unwrap_model()
    assert all(name.startswith("model.") for name in masks)
    ModelSpeedup(model, dummy_input, masks).speedup_model()
    assert widths(model) == {n: w // 2 for n, w in dense.items()}


def test_exported_and_proven_after_nni_masks(data: list[Batch], tmp_path: Path) -> None:
    model, dummy_input = build("mobilenet-v2"), torch.rand(2, 3, 16, 16)
    train_on(data)(model, prepare_optimizer(model), training_step, max_epochs=2)
    config_list = auto_set_denpendency_group_ids(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], dummy_input)
    pruner = L1NormPruner(model, config_list)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    parameters = sum(p.numel() for p in model.parameters())
    speedup(model, masks, dummy_input)
    inputs = torch.cat([batch[0] for batch in data])
    report = fpo.export(model.eval(), inputs, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists(), report
    assert sum(p.numel() for p in model.parameters()) < 0.4 * parameters
