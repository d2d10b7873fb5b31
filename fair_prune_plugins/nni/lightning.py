"""NNI's evaluator of Lightning pipelines, for the Lightning that people have."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from nni.common import is_traceable
from nni.compression import LightningEvaluator as HostLightningEvaluator
from torch import Tensor, nn

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.nni.configured_optimizers import ConfiguredOptimizers
from fair_prune_plugins.nni.step_tasks import Task, add_step_tasks
from fair_prune_plugins.nni.training_loss import TrainingLoss

logger = logging.getLogger(__name__)

PACKAGES = "pytorch_lightning", "lightning.pytorch"
"""The two packages that Lightning comes as."""

MISSING = (
    "LightningEvaluator needs Lightning, and it cannot be imported ({reason}); install it with: pip install "
    "pytorch-lightning"
)
NOT_TRACED = (
    "trainer= must be a Lightning Trainer made with nni.trace, which is how NNI makes it anew for each training: "
    "nni.trace(pl.Trainer)(...); got a {got}"
)
NO_DATA_MODULE = "data_module= must be a LightningDataModule, made with nni.trace(...)(...); got a {got}"
NO_LIGHTNING_MODULE = (
    "LightningEvaluator trains LightningModules, and the model is a {got}; give the compressor the LightningModule "
    "itself, its layers are then named with their prefix ('model.conv1')"
)
MANUAL = (
    "{module} optimises manually: its training_step calls backward itself, so no other loss can be put in its place; "
    "return the loss from training_step (automatic optimisation) or call the loss hook there"
)
NO_LOSS = "training_step of {module} returned {got}; a tensor, or a dict with the key 'loss', is needed"
ALREADY_BOUND = "Already bound a model, will unbind it before bind a new model."

_PATCHED = "training_step", "configure_optimizers"


class LightningEvaluator(HostLightningEvaluator):  # type: ignore[misc]
    """NNI's ``LightningEvaluator``, same name and constructor, on current ``pytorch_lightning`` or ``lightning``.

    Where it differs from NNI's, which fails in ``train`` since Lightning 1.9:

    - A number of steps or epochs that a compressor asks for is what is trained, also where the trainer was made with a
      smaller ``max_epochs`` or ``max_steps``: masks would never be made otherwise.
    - Tasks before an optimizer step run after the backward pass, which Lightning does inside of the step.
    - ``configure_optimizers`` may return whatever Lightning takes; while it is asked, the module has the trainer.
    - The module is handed back without traces: no replaced methods, no trainer, also after an error.

    Args:
        trainer: made with ``nni.trace(pl.Trainer)(...)``. It is made anew for each training, with the same callbacks.
        data_module: a ``LightningDataModule``.
        dummy_input: for those who trace the model; by default a batch of ``data_module.train_dataloader()``.

    Raises:
        MissingDependencyError: Lightning cannot be imported.
        InputError: not a trainer made with ``nni.trace``, or no data module.
    """

    training_loss: TrainingLoss | None = None
    """The loss to train with instead of the one that ``training_step`` returns."""

    def __init__(self, trainer: Any, data_module: Any, dummy_input: Any | None = None) -> None:
        packages = _lightning()
        if not _is(trainer, packages, "Trainer") or not is_traceable(trainer):
            raise InputError(NOT_TRACED.format(got=type(trainer).__name__))
        if not _is(data_module, packages, "LightningDataModule"):
            raise InputError(NO_DATA_MODULE.format(got=type(data_module).__name__))
        self.trainer = trainer
        self.data_module = data_module
        self._dummy_input = dummy_input
        self.model: Any = None
        self._ori_model_attr: dict[str, Any] = {}
        self._param_names_map: dict[str, str] | None = None
        self._initialization_complete = False
        self._own_attributes: dict[str, Any] = {}
        self._added_parameters: list[dict[str, list[Tensor]]] = []
        self._step_tasks: list[tuple[Sequence[Task], Sequence[Task]]] = []

    def _init_optimizer_helpers(self, pure_model: nn.Module) -> None:
        assert not self._initialization_complete, "Evaluator initialization is already complete."
        _check_module(pure_model)
        attached = getattr(pure_model, "_trainer", None)
        pure_model.trainer = self.trainer  # so that configure_optimizers may ask for max_epochs
        try:
            returned = pure_model.configure_optimizers()  # type: ignore[operator]
        finally:
            pure_model.trainer = attached  # type: ignore[assignment]
        self._configured = ConfiguredOptimizers.of(pure_model, returned)
        self._initialization_complete = True

    def bind_model(self, model: nn.Module, param_names_map: dict[str, str] | None = None) -> None:
        """Make ready to train ``model``; see NNI's ``Evaluator.bind_model``.

        Raises:
            InputError: no LightningModule, or one whose loss cannot be replaced as :func:`fair_evaluator` asks.
        """
        assert self._initialization_complete, "call `_init_optimizer_helpers` before binding a model."
        _check_module(model)
        if self.training_loss is not None and not model.automatic_optimization:
            raise InputError(MANUAL.format(module=type(model).__name__))
        if self.model is not None:
            logger.warning(ALREADY_BOUND)
            self.unbind_model()
        self.model = model
        self._param_names_map = param_names_map
        self._own_attributes = {name: vars(model)[name] for name in _PATCHED if name in vars(model)}
        if self.training_loss is not None:
            self._replace_training_step(self.training_loss.around(self.model.training_step, lambda: model))
        self.model.configure_optimizers = types.MethodType(lambda _: self._optimizers_and_schedulers(), model)
        self._ori_model_attr.update({name: getattr(model, name) for name in (*_PATCHED, "configure_callbacks")})

    def unbind_model(self) -> None:
        """Let go of the model, without a trace of what was patched."""
        if self.model is None:
            logger.warning("Did not bind any model, no need to unbind model.")
            return
        self.remove_all_hooks()
        for name in _PATCHED:
            vars(self.model).pop(name, None)
        vars(self.model).update(self._own_attributes)
        self._added_parameters, self._step_tasks = [], []
        self._param_names_map = None
        self._ori_model_attr.clear()
        self.model = None

    def patch_optim_param_group(self, module_name_param_dict: dict[str, list[Tensor]]) -> None:
        """Let the optimizers have further parameters; see NNI's ``Evaluator``."""
        assert self.model is not None
        self._added_parameters.append(module_name_param_dict)

    def _optimizers_and_schedulers(self) -> tuple[list[Any], list[Any]]:
        optimizers, schedulers = self._configured.build(self.model, self._param_names_map)
        for parameters in self._added_parameters:
            self._optimizer_add_param_group(self.model, parameters, optimizers)
        for before, after in self._step_tasks:
            add_step_tasks(optimizers[0], before, after)
        return optimizers, schedulers

    def patch_loss(self, patch: Callable[[Tensor, Any], Tensor]) -> None:
        """Train with ``patch(loss, batch)``; see NNI's ``Evaluator.patch_loss``."""
        assert self.model is not None
        step, name = self.model.training_step, type(self.model).__name__

        def patched(*args: Any, **kwargs: Any) -> Any:
            returned = step(*args, **kwargs)
            batch = args[0] if args else kwargs["batch"]
            if returned is None:  # Lightning passes over the batch
                return None
            if isinstance(returned, Tensor):
                return patch(returned, batch)
            if not isinstance(returned, MutableMapping) or not isinstance(returned.get("loss"), Tensor):
                raise InputError(NO_LOSS.format(module=name, got=_described(returned)))
            returned["loss"] = patch(returned["loss"], batch)
            return returned

        self._replace_training_step(patched)

    def _replace_training_step(self, replacement: Callable[..., Any]) -> None:
        # Lightning asks the signature whether to pass batch_idx, looking behind one decorator.
        @functools.wraps(replacement)
        def training_step(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return replacement(*args, **kwargs)

        training_step.__wrapped__ = inspect.unwrap(self.model.training_step)
        self.model.training_step = types.MethodType(training_step, self.model)

    def revert_loss(self) -> None:
        """Back to the loss of ``training_step``, or of :func:`fair_evaluator`."""
        assert self.model is not None
        self.model.training_step = self._ori_model_attr["training_step"]

    def patch_optimizer_step(self, before_step_tasks: Sequence[Task], after_step_tasks: Sequence[Task]) -> None:
        """Run tasks around each step of the first optimizer; see NNI's ``Evaluator``."""
        assert self.model is not None
        self._step_tasks.append((before_step_tasks, after_step_tasks))

    def revert_optimizer_step(self) -> None:
        """Forget the tasks around the optimizer's step."""
        self._step_tasks.clear()

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        """Fit the bound model with a new trainer.

        Args:
            max_steps: optimizer steps, in place of the trainer's own limits.
            max_epochs: epochs, likewise. Without either, the trainer's own limits hold.
        """
        assert self.model is not None
        trainer = self.trainer.trace_copy().get()
        # Batches of the sanity check would be among what hooks of compressors collect.
        trainer.num_sanity_val_steps = 0
        if max_steps is not None or max_epochs is not None:
            trainer.fit_loop.epoch_loop.max_steps = -1 if max_steps is None else max_steps
            trainer.fit_loop.max_epochs = -1 if max_epochs is None else max_epochs
        try:
            trainer.fit(self.model, datamodule=self.data_module)
        finally:
            self.model.trainer = None  # or it would be saved with the model

    def evaluate(self) -> tuple[float | None, list[Mapping[str, float]]]:
        """Test the bound model.

        Returns:
            The mean of what ``test_step`` logged as ``default``, ``None`` without; and all that ``Trainer.test()``
            returns.
        """
        assert self.model is not None
        trainer = self.trainer.trace_copy().get()
        try:
            results = trainer.test(self.model, datamodule=self.data_module)
        finally:
            self.model.trainer = None
        metrics = [result["default"] for result in results if "default" in result]
        return (sum(metrics) / len(metrics) if metrics else None), results


def _lightning() -> list[types.ModuleType]:
    """Lightning's packages, those that are imported already if any is."""
    loaded = [sys.modules[name] for name in PACKAGES if sys.modules.get(name) is not None]
    if loaded:
        return loaded
    reasons = []
    for name in PACKAGES:
        try:
            return [importlib.import_module(name)]
        except Exception as error:  # a torchvision of another torch build raises RuntimeError
            reasons.append(f"{name}: {type(error).__name__}: {error}")
    raise MissingDependencyError(MISSING.format(reason="; ".join(reasons)))


def _is(thing: Any, packages: Sequence[types.ModuleType], name: str) -> bool:
    return isinstance(thing, tuple(getattr(package, name) for package in packages))


def _check_module(model: nn.Module) -> None:
    if not _is(model, _lightning(), "LightningModule"):
        raise InputError(NO_LIGHTNING_MODULE.format(got=type(model).__name__))


def _described(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return f"a dict with the keys {sorted(map(str, returned))}"
    return f"a {type(returned).__name__}"
