"""NNI's evaluator of Lightning pipelines, on the Lightning of today."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fair_prune_plugins import nni as ours  # first: the host's import warns
from fair_prune_plugins.errors import InputError

# isort: split
import nni
import nni.compression
import pytorch_lightning as pl
from nni.compression.distillation import DynamicLayerwiseDistiller
from nni.compression.pruning import AGPPruner, L1NormPruner, LinearPruner, MovementPruner, SlimPruner, TaylorPruner
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from fair_prune_plugins.nni.lightning import LightningEvaluator

pytestmark = [
    # Lightning's own, with or without NNI.
    pytest.mark.filterwarnings("ignore:.isinstance\\(treespec, LeafSpec\\). is deprecated:FutureWarning"),
    # The data are tiny on purpose, and one worker is enough for them.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

assert ours

FEATURES, CLASSES, PEOPLE, BATCH = 6, 3, 24, 8


def people(count: int = PEOPLE, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, FEATURES, generator=generator, dtype=dtype)
    return TensorDataset(x, (x[:, :CLASSES] + 0.1).argmax(1), (x[:, 3] > 0.4).long())


class Module(pl.LightningModule):
    """A LightningModule whose optimizers are made as a test says."""

    def __init__(self, configure: Callable[[Module], Any] | None = None) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.configure = configure
        self.steps: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps.append(batch_idx)
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return sgd(self) if self.configure is None else self.configure(self)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(people(), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(people(), batch_size=BATCH)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(people(), batch_size=BATCH)


def sgd(module: nn.Module, lr: float = 0.1) -> Any:
    return nni.trace(torch.optim.SGD)(module.parameters(), lr=lr, momentum=0.9)


def trainer(**changes: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
    }
    return nni.trace(pl.Trainer)(**quiet | changes)


def lightning(**changes: Any) -> LightningEvaluator:
    return LightningEvaluator(trainer(**changes), nni.trace(Data)())


def bound(module: Module, **changes: Any) -> LightningEvaluator:
    evaluator = lightning(**changes)
    evaluator._init_optimizer_helpers(module)
    evaluator.bind_model(module)
    return evaluator


def by_hand(module: Module, updates: int, accumulate: int = 1, scheduler: bool = False) -> None:
    """What Lightning's loop amounts to."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    rate = StepLR(optimizer, 1, 0.5)
    module.train()
    batches = (batch for _ in range(100) for batch in DataLoader(people(), batch_size=BATCH))
    for _ in range(updates):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y, _ = next(batches)
            (F.cross_entropy(module.model(x), y) / accumulate).backward()
        optimizer.step()
        if scheduler:
            rate.step()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


CONFIG = [{"op_names": ["model.0"], "sparse_ratio": 0.5}]


# --- Lightning: what a training is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_that_of_a_loop_by_hand(accumulate: int) -> None:
    module = Module()
    reference = copy.deepcopy(module)
    evaluator = bound(module, accumulate_grad_batches=accumulate)
    evaluator.train(max_steps=4)
    by_hand(reference, 4, accumulate)
    assert_same(module, reference)


def test_finetune_takes_the_trainers_own_length() -> None:
    module = Module()
    bound(module, max_epochs=2).finetune()
    assert module.steps == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("asked", "steps"), [({"max_steps": 7}, 7), ({"max_epochs": 3}, 9), ({"max_steps": 4, "max_epochs": 3}, 4)]
)
@pytest.mark.parametrize("own", [{"max_epochs": 1}, {"max_steps": 2, "max_epochs": 1}, {"max_epochs": 100}])
def test_a_compressor_gets_the_length_that_it_asks_for(asked: dict[str, int], steps: int, own: dict[str, int]) -> None:
    module = Module()
    bound(module, **own).train(**asked)
    assert len(module.steps) == steps


def test_evaluate_gives_the_logged_default_and_everything() -> None:
    module = Module()
    metric, everything = bound(module).evaluate()
    x, y, _ = people().tensors
    with torch.no_grad():
        expected = float((module.eval()(x).argmax(1) == y).float().mean())
    assert metric == pytest.approx(expected)
    assert everything == [{"default": pytest.approx(expected)}]


def _two_lists(m: Module) -> Any:
    optimizer = sgd(m)
    return [optimizer], [nni.trace(StepLR)(optimizer, 1, 0.5)]


def _two_lists_of_dicts(m: Module) -> Any:
    optimizer = sgd(m)
    return [optimizer], [{"scheduler": nni.trace(StepLR)(optimizer, 1, 0.5), "interval": "step"}]


def _dict(m: Module) -> Any:
    optimizer = sgd(m)
    scheduler = nni.trace(StepLR)(optimizer, step_size=1, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}


def _dict_bare(m: Module) -> Any:
    optimizer = sgd(m)
    return {"optimizer": optimizer, "lr_scheduler": nni.trace(StepLR)(optimizer, 1, 0.5)}


def _plateau(m: Module) -> Any:
    optimizer = sgd(m)
    return {
        "optimizer": optimizer,
        "lr_scheduler": nni.trace(ReduceLROnPlateau)(optimizer, patience=0, threshold=10.0, factor=0.5),
        "monitor": "val_loss",
    }


FORMS: dict[str, Callable[[Module], Any]] = {
    "optimizer": sgd,
    "list of optimizers": lambda m: [sgd(m)],
    "dict without scheduler": lambda m: {"optimizer": sgd(m)},
    "two lists": _two_lists,
    "two lists, scheduler as dict": _two_lists_of_dicts,
    "dict": _dict,
    "dict, bare scheduler": _dict_bare,
    "list of dicts": lambda m: [_dict(m)],
    "scheduler with a metric": _plateau,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_configure_optimizers_trains_as_in_lightning_alone(form: str) -> None:
    module = Module(FORMS[form])
    alone = copy.deepcopy(module)
    tasks: list[str] = []
    evaluator = bound(module)
    evaluator.patch_optimizer_step([lambda: tasks.append("before")], [lambda: tasks.append("after")])
    evaluator.train(max_steps=6)
    pl.Trainer(**trainer().trace_kwargs).fit(alone, Data())
    assert_same(module, alone)
    assert tasks == ["before", "after"] * 6


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returns None"),
        ({"scheduler": 1}, "a dict with the keys"),
        ([], "a list of nothing"),
        ("adam", "a str"),
    ],
)
def test_what_no_optimizer_can_be_made_of_is_named(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bound(Module(lambda _: returned))


def test_two_optimizers_of_manual_optimisation_step_on_and_the_first_has_the_tasks() -> None:
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            for optimizer in self.optimizers():
                optimizer.step()

    def two(m: Module) -> Any:
        return [sgd(m.model[0]), sgd(m.model[3], lr=0.01)]

    module = Manual(two)
    alone = copy.deepcopy(module)
    tasks: list[int] = []
    evaluator = bound(module)
    evaluator.patch_optimizer_step([], [lambda: tasks.append(1)])
    evaluator.train(max_epochs=1)
    pl.Trainer(**trainer(max_epochs=1).trace_kwargs).fit(alone, Data())
    assert_same(module, alone)
    assert len(tasks) == 3


# --- Lightning: what compressors patch -----------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_tasks_run_once_per_update_with_the_gradients_of_that_update(accumulate: int) -> None:
    module = Module()
    reference = copy.deepcopy(module)
    seen: list[torch.Tensor] = []
    order: list[str] = []
    evaluator = bound(module, accumulate_grad_batches=accumulate)
    weight = module.model[0].weight

    def before() -> None:
        order.append("inner before")
        seen.append(weight.grad.clone())

    evaluator.patch_optimizer_step([before], [lambda: order.append("inner after")])
    evaluator.patch_optimizer_step([lambda: order.append("outer before")], [lambda: order.append("outer after")])
    evaluator.train(max_steps=3)

    expected: list[torch.Tensor] = []
    optimizer_step = torch.optim.SGD.step

    def step(self: Any, *args: Any) -> Any:
        expected.append(reference.model[0].weight.grad.clone())
        return optimizer_step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        by_hand(reference, 3, accumulate)
    torch.testing.assert_close(seen, expected)
    assert sorted(order[:4]) == ["inner after", "inner before", "outer after", "outer before"]
    assert order[:2] != order[2:4]
    assert [entry.split()[1] for entry in order] == ["before", "before", "after", "after"] * 3


@pytest.mark.parametrize("signature", ["batch", "batch, batch_idx", "batch, *rest"])
def test_a_loss_is_patched_whatever_arguments_the_step_takes(signature: str) -> None:
    class Own(Module):
        pass

    scope: dict[str, Any] = {"F": F}
    source = f"def training_step(self, {signature}):\n    return {{'loss': F.cross_entropy(self(batch[0]), batch[1])}}"
    exec(source, scope)
    Own.training_step = scope["training_step"]  # type: ignore[method-assign]
    module = Own()
    before = copy.deepcopy(module.state_dict())
    evaluator = bound(module)
    batches: list[Any] = []

    def nothing(loss: torch.Tensor, batch: Any) -> torch.Tensor:
        batches.append(batch)
        return loss * 0

    evaluator.patch_loss(lambda loss, batch: loss + 1)
    evaluator.patch_loss(nothing)
    evaluator.train(max_epochs=1)
    torch.testing.assert_close(module.model[0].weight, before["model.0.weight"], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), people().tensors[0])
    evaluator.revert_loss()
    evaluator.train(max_epochs=1)
    assert len(batches) == 3
    assert not torch.equal(module.model[0].weight, before["model.0.weight"])


def test_reverted_tasks_do_not_run() -> None:
    evaluator = bound(Module())
    tasks: list[int] = []
    evaluator.patch_optimizer_step([lambda: tasks.append(1)], [])
    evaluator.revert_optimizer_step()
    evaluator.train(max_steps=2)
    assert not tasks


def test_nothing_of_one_model_is_left_for_the_next() -> None:
    module = Module()
    evaluator = bound(module)
    tasks: list[int] = []
    further = nn.Parameter(torch.ones(3))
    evaluator.patch_optimizer_step([lambda: tasks.append(1)], [])
    evaluator.patch_optim_param_group({"model.3": [further]})
    evaluator.patch_loss(lambda loss, batch: loss + further.sum())
    evaluator.train(max_steps=2)
    torch.testing.assert_close(further.detach(), torch.full((3,), 1 - 0.1 - 0.1 * 1.9))
    evaluator.unbind_model()
    evaluator.bind_model(module)
    evaluator.train(max_steps=2)
    torch.testing.assert_close(further.detach(), torch.full((3,), 1 - 0.1 - 0.1 * 1.9))
    assert len(tasks) == 2


# --- compressors: as with the host's own evaluator of plain torch --------------------------------------------------


def torch_evaluator(model: nn.Module, accumulate: int = 1) -> Any:
    def train(model: nn.Module, optimizer: Any, step: Any, _: Any, max_steps: int | None, __: Any) -> None:
        batches = (batch for _ in range(100) for batch in DataLoader(people(), batch_size=BATCH))
        model.train()
        for _ in range(max_steps or 0):
            optimizer.zero_grad()
            for _ in range(accumulate):
                (step(next(batches), model) / accumulate).backward()
            optimizer.step()

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return nni.compression.TorchEvaluator(train, sgd(model), step)


def compressed(pruner: Any, *duration: int | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """The unwrapped model and the masks."""
    model, masks = pruner.compress(*duration)
    pruner.unwrap_model()
    return model, {f"{m}.{t}": mask for m, targets in masks.items() for t, mask in targets.items() if mask is not None}


def _agp(module: nn.Module, evaluator: Any) -> Any:
    return compressed(AGPPruner(L1NormPruner(module, CONFIG, evaluator), 2, 3), 6, None)


def _linear(module: nn.Module, evaluator: Any) -> Any:
    return compressed(LinearPruner(TaylorPruner(module, CONFIG, evaluator, training_steps=2), 2, 3), 6, None)


def _taylor(module: nn.Module, evaluator: Any) -> Any:
    return compressed(TaylorPruner(module, CONFIG, evaluator, 3))


def _movement(module: nn.Module, evaluator: Any) -> Any:
    return compressed(MovementPruner(module, CONFIG, evaluator, 1, 5), 8, None)


def _movement_threshold(module: nn.Module, evaluator: Any) -> Any:
    config = [{"op_names": ["model.0"], "sparse_threshold": 0.5}]
    return compressed(MovementPruner(module, config, evaluator, 1, 5, regular_scale=10.0), 8, None)


def _slim(module: nn.Module, evaluator: Any) -> Any:
    return compressed(SlimPruner(module, [{"op_names": ["model.1"], "sparse_ratio": 0.5}], evaluator, 4))


def _fused(module: nn.Module, evaluator: Any) -> Any:
    torch.manual_seed(1)
    teacher = nn.ModuleDict({"model": nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU())})
    config = [{"op_names": ["model.0"], "target_names": ["_output_"], "lambda": 0.5, "apply_method": "mse"}]

    def predict(batch: Any, teacher: Any) -> torch.Tensor:
        return teacher["model"](batch[0])

    distiller = DynamicLayerwiseDistiller(module, config, evaluator, teacher, predict, 0.5)
    pruner = TaylorPruner.from_compressor(distiller, CONFIG, training_steps=3)
    return compressed(pruner, 6, None)


COMPRESSORS = [_taylor, _agp, _linear, _movement, _movement_threshold, _slim, _fused]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("compress", COMPRESSORS)
def test_compressors_on_lightning_do_what_they_do_on_plain_torch(compress: Any, accumulate: int) -> None:
    module = Module()
    plain = copy.deepcopy(module)
    _, masks = compress(module, lightning(accumulate_grad_batches=accumulate))
    _, expected = compress(plain, torch_evaluator(plain, accumulate))
    assert masks.keys() == expected.keys()
    assert any(0 < mask.mean() < 1 for mask in masks.values())
    for name, mask in masks.items():
        torch.testing.assert_close(mask, expected[name], rtol=0, atol=0, msg=name)
    assert_same(module, plain)


def test_a_model_is_handed_back_without_a_trace() -> None:
    module, alone = Module(), Module()
    _taylor(module, lightning())
    pl.Trainer(**trainer().trace_kwargs).fit(alone, Data())
    assert vars(module).keys() == vars(alone).keys()
    assert module._trainer is None
    copy.deepcopy(module)
    pl.Trainer(**trainer(max_epochs=1).trace_kwargs).fit(module, Data())


def test_an_error_in_training_leaves_no_trainer_behind() -> None:
    class Failing(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise ArithmeticError("mine")

    module = Failing()
    evaluator = bound(module)
    with pytest.raises(ArithmeticError, match="mine"):
        evaluator.train(max_steps=1)
    assert module._trainer is None
    evaluator.unbind_model()
    assert "training_step" not in vars(module)


def test_configure_optimizers_may_ask_the_trainer() -> None:
    asked: list[Any] = []

    def configure(m: Module) -> Any:
        asked.append(m.trainer.max_epochs)
        return sgd(m)

    module = Module(configure)
    bound(module, max_epochs=5)
    assert asked == [5]
    assert module._trainer is None


def test_it_is_an_evaluator_of_the_host() -> None:
    evaluator = lightning()
    assert isinstance(evaluator, nni.compression.LightningEvaluator)
    assert isinstance(evaluator, nni.compression.utils.Evaluator)
    dummy = LightningEvaluator(trainer(), Data(), torch.zeros(1, FEATURES)).get_dummy_input()
    assert dummy.shape == (1, FEATURES)
    assert evaluator.get_dummy_input()[0].shape == (BATCH, FEATURES)


def test_what_is_no_lightning_is_named() -> None:
    with pytest.raises(InputError, match=r"nni\.trace"):
        LightningEvaluator(pl.Trainer(**trainer().trace_kwargs), Data())
    with pytest.raises(InputError, match="got a str"):
        LightningEvaluator("trainer", Data())
    with pytest.raises(InputError, match="data_module="):
        LightningEvaluator(trainer(), [1, 2])
    with pytest.raises(InputError, match="the model is a Sequential"):
        TaylorPruner(nn.Sequential(nn.Linear(2, 2)), [{"op_types": ["Linear"], "sparse_ratio": 0.5}], lightning(), 1)


@pytest.mark.parametrize("broken", [False, True])
def test_without_lightning_the_class_says_so_when_it_is_used(tmp_path: Path, broken: bool) -> None:
    for name in ("pytorch_lightning", "lightning", "transformers"):
        package = tmp_path / name
        package.mkdir()
        error = (
            "RuntimeError('operator does not exist')" if broken else f"ModuleNotFoundError('No {name}', name={name!r})"
        )
        (package / "__init__.py").write_text(f"raise {error}")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import fair_prune_plugins.nni
from fair_prune_plugins.errors import MissingDependencyError
from fair_prune_plugins.nni.lightning import LightningEvaluator
from fair_prune_plugins.nni.transformers_evaluator import TransformersEvaluator
for make in (lambda: LightningEvaluator(None, None), lambda: TransformersEvaluator(None)):
    try:
        make()
    except MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "pip install pytorch-lightning" in lines[0]
    assert ("operator does not exist" in lines[0]) == broken
    assert "pip install 'transformers" in lines[1]
