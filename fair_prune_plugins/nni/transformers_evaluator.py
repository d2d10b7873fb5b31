"""NNI's evaluator of Transformers pipelines, for the Transformers that people have."""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import nni
from nni.common import is_traceable
from nni.compression import TransformersEvaluator as HostTransformersEvaluator
from nni.compression.utils import evaluator as host_evaluators
from nni.compression.utils.constructor_helper import LRSchedulerConstructHelper, OptimizerConstructHelper
from torch import Tensor, nn

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.nni.step_tasks import Task, add_step_tasks
from fair_prune_plugins.nni.training_loss import TrainingLoss

logger = logging.getLogger(__name__)

MISSING = (
    "TransformersEvaluator needs transformers' Trainer, which cannot be imported; install it with: pip install "
    "'transformers[torch]'"
)
NOT_TRACED = (
    "trainer= must be a transformers Trainer made with nni.trace, which is how NNI makes it anew for each model: "
    "nni.trace(Trainer)(model=model, args=args, ...); got a {got}"
)
NO_DEFAULT = "compute_metrics returns no 'default', so evaluate() has no metric to judge by; there are %s"
ALREADY_BOUND = "Already bound a model, will unbind it before bind a new model."


class TransformersEvaluator(HostTransformersEvaluator):  # type: ignore[misc]
    """NNI's ``TransformersEvaluator``, same name and constructor, on current ``transformers``.

    Where it differs from NNI's, which fails at construction of a compressor:

    - An optimizer that was not given is made as the trainer makes it, without a change of the ``Trainer`` class.
    - Several compressors, or one with several tasks (``MovementPruner``), each get their tasks around the optimizer's
      step; NNI's kept only the last.
    - A number of epochs that a compressor asks for counts, also where the arguments have ``max_steps``.
    - What is added to the loss counts once per optimizer step, however many batches are accumulated and whoever
      divides by their number.
    - ``compute_metrics`` may name its metric ``default``: the trainer calls it ``eval_default``.

    Args:
        trainer: made with ``nni.trace(Trainer)(...)``; optimizers and schedulers, where given, with ``nni.trace`` too.
        dummy_input: for those who trace the model.

    Raises:
        MissingDependencyError: ``transformers`` cannot be imported.
        InputError: not made with ``nni.trace``.
    """

    training_loss: TrainingLoss | None = None
    """The loss to train with instead of the one that ``compute_loss`` returns."""

    def __init__(self, trainer: Any, dummy_input: Any | None = None) -> None:
        if not host_evaluators.TRANSFORMERS_INSTALLED:
            raise MissingDependencyError(MISSING)
        if not is_traceable(trainer):
            raise InputError(NOT_TRACED.format(got=type(trainer).__name__))
        super().__init__(trainer, dummy_input)
        self.model: Any = None
        self.trainer: Any = None
        self._initialization_complete = False
        self._optimizer: Any = None
        self._own_step: Any = None
        self._columns: set[str] = set()
        self._hidden: frozenset[str] = frozenset()

    def _init_optimizer_helpers(self, pure_model: nn.Module) -> None:
        assert not self._initialization_complete, "Evaluator initialization is already complete."
        optimizer, scheduler = self.traced_trainer.optimizer, self.traced_trainer.lr_scheduler
        if optimizer is None or not is_traceable(optimizer):
            logger.info("the trainer has no optimizer made with nni.trace; it makes its own")
            optimizer = self._default_optimizer(pure_model)
        self._optimizer_helper = OptimizerConstructHelper.from_trace(pure_model, optimizer)
        self._lr_scheduler_helper = None
        if scheduler is not None and is_traceable(scheduler):
            self._lr_scheduler_helper = LRSchedulerConstructHelper.from_trace(scheduler)
        self._initialization_complete = True

    def _default_optimizer(self, model: nn.Module) -> Any:
        trainer = self.traced_trainer
        own, chosen = trainer.model, trainer.optimizer_cls_and_kwargs
        cls, options = chosen or trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        trainer.model, trainer.optimizer = model, None
        trainer.optimizer_cls_and_kwargs = nni.trace(cls), options
        try:
            return trainer.create_optimizer()
        finally:
            trainer.model, trainer.optimizer, trainer.optimizer_cls_and_kwargs = own, None, chosen

    def bind_model(self, model: nn.Module, param_names_map: dict[str, str] | None = None) -> None:
        """Make a trainer for ``model``; see NNI's ``Evaluator.bind_model``."""
        assert self._initialization_complete, "call `_init_optimizer_helpers` before binding a model."
        if self.model is not None:
            logger.warning(ALREADY_BOUND)
            self.unbind_model()
        args, kwargs = list(self.traced_trainer.trace_args), dict(self.traced_trainer.trace_kwargs)
        kwargs.pop("model_init", None)
        if args:
            args[0] = model
        else:
            kwargs["model"] = model
        self.model = model
        self.trainer = self.traced_trainer.trace_symbol(*args, **kwargs)
        self._param_names_map = param_names_map
        # The trainer wraps its own copy of the reference for each training; the tasks go around this one.
        self._optimizer = self._optimizer_helper.call(model, param_names_map)
        self._own_step = self._optimizer.step
        self.trainer.optimizer = self._optimizer
        self._keep_columns()
        if self.training_loss is not None:
            self._replace_loss(self.training_loss)
        self._ori_trainer_attr["compute_loss"] = self.trainer.compute_loss

    def unbind_model(self) -> None:
        """Let go of the model and its trainer."""
        if self.model is None:
            logger.warning("Did not bind any model, no need to unbind model.")
            return
        self.remove_all_hooks()
        self._ori_trainer_attr.pop("compute_loss", None)
        self._param_names_map = None
        self._optimizer = self._own_step = self.trainer = self.model = None

    def keep_columns(self, columns: Iterable[str]) -> None:
        """Keep columns of the data in batches that the model does not take; the trainer removes all others.

        The model is not given them. They are in what ``compute_loss`` and the patches of a loss get, under their names
        but not among the keys: ``teacher(**batch)`` has the model's arguments alone.

        Args:
            columns: names, as the data set's items have them; from the next :meth:`bind_model` on.
        """
        self._columns |= set(columns)

    def _keep_columns(self) -> None:
        wanted = self._columns | set(self.training_loss.columns if self.training_loss else ())
        taken = set(inspect.signature(self.trainer.model.forward).parameters)
        self._hidden = frozenset(wanted - taken)
        if not self._hidden:
            return
        self.trainer._set_signature_columns_if_needed()
        self.trainer._signature_columns += sorted(self._hidden - set(self.trainer._signature_columns))
        compute = self.trainer.compute_loss

        def compute_loss(_: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return compute(model, self._batch(inputs), *args, **kwargs)

        self.trainer.compute_loss = types.MethodType(compute_loss, self.trainer)

    def _batch(self, inputs: Any) -> Any:
        """A copy, since the trainer takes the labels out, with the model's arguments among the keys."""
        return BatchWithColumns(inputs, self._hidden) if self._hidden else dict(inputs)

    def _replace_loss(self, loss: TrainingLoss) -> None:
        compute = self.trainer.compute_loss

        @functools.wraps(compute)
        def compute_loss(_: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            step = functools.partial(compute, model, inputs, *args, **kwargs)
            return loss.run(step, self._batch(inputs), [model, self.model], self._divisor(model, args, kwargs))

        self.trainer.compute_loss = types.MethodType(compute_loss, self.trainer)

    def patch_loss(self, patch: Callable[[Tensor, Any], Tensor]) -> None:
        """Train with ``patch(loss, inputs)``; see NNI's ``Evaluator.patch_loss``."""
        compute = self.trainer.compute_loss

        def compute_loss(_: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batch, divisor = self._batch(inputs), self._divisor(model, args, kwargs)
            result = compute(model, inputs, *args, **kwargs)
            loss, *rest = result if isinstance(result, tuple) else (result,)
            loss = patch(loss if divisor == 1 else loss * divisor, batch) / divisor
            return (loss, *rest) if rest else loss

        self.trainer.compute_loss = types.MethodType(compute_loss, self.trainer)

    def _divisor(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """The number of accumulated batches, where the trainer takes for granted that the loss is divided by it.

        ``args`` and ``kwargs`` are those of ``compute_loss(model, inputs, return_outputs, num_items_in_batch)``.
        """
        trainer = self.trainer
        if not model.training:
            return 1
        items = args[1] if len(args) > 1 else kwargs.get("num_items_in_batch")
        divided = getattr(trainer, "loss_is_scaled_for_ga", None)
        if divided is None:
            by_items = trainer.model_accepts_loss_kwargs and items is not None
            divided = by_items or getattr(trainer, "compute_loss_func", None) is not None
        return int(trainer.current_gradient_accumulation_steps) if divided else 1

    def patch_optimizer_step(self, before_step_tasks: Sequence[Task], after_step_tasks: Sequence[Task]) -> None:
        """Run tasks around each step of the optimizer; see NNI's ``Evaluator``."""
        assert self.model is not None
        add_step_tasks(self._optimizer, before_step_tasks, after_step_tasks)

    def revert_optimizer_step(self) -> None:
        """Forget the tasks around the optimizer's step."""
        assert self.model is not None
        self._optimizer.step = self._own_step

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        """Train the bound model.

        Args:
            max_steps: optimizer steps, in place of the trainer's own limits.
            max_epochs: epochs, likewise. Without either, the trainer's own limits hold.
        """
        assert self.model is not None
        trainer = self.trainer
        own = trainer.args.max_steps, trainer.args.num_train_epochs
        if max_epochs is not None:
            trainer.args.max_steps, trainer.args.num_train_epochs = -1, max_epochs
        if max_steps is not None:
            trainer.args.max_steps = max_steps
        trainer.optimizer = self._optimizer  # bare: the accelerator prepares it for each training
        helper = self._lr_scheduler_helper
        trainer.lr_scheduler = None if helper is None else helper.call(self._optimizer)
        try:
            trainer.train()
        finally:
            trainer.lr_scheduler = None
            trainer.args.max_steps, trainer.args.num_train_epochs = own

    def evaluate(self) -> tuple[float | None, dict[str, Any]]:
        """Evaluate the bound model.

        Returns:
            The metric ``default`` of ``compute_metrics``, ``None`` without (logged); and all metrics.
        """
        assert self.model is not None
        metrics = self.trainer.evaluate()
        chosen = metrics.get("default", metrics.get("eval_default"))
        if chosen is None:
            logger.warning(NO_DEFAULT, sorted(metrics))
        return chosen, metrics


class BatchWithColumns(dict[str, Any]):
    """A batch with columns that are found by name, and are not among its keys.

    Args:
        inputs: everything.
        hidden: names of those columns.
    """

    def __init__(self, inputs: Mapping[str, Any], hidden: Collection[str] = ()) -> None:
        super().__init__({key: value for key, value in inputs.items() if key not in hidden})
        known: Mapping[str, Any] = inputs.hidden if isinstance(inputs, BatchWithColumns) else {}
        self.hidden: dict[str, Any] = {**known, **{key: value for key, value in inputs.items() if key in hidden}}

    def __missing__(self, key: str) -> Any:
        return self.hidden[key]

    def __copy__(self) -> BatchWithColumns:
        return BatchWithColumns(self)

    def pop(self, key: str, *default: Any) -> Any:
        """As of a dict, also of the columns: a ``compute_loss`` that takes one out finds it."""
        return self.hidden.pop(key, *default) if key in self.hidden else super().pop(key, *default)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict, also of the columns."""
        return self.hidden[key] if key in self.hidden else super().get(key, default)
