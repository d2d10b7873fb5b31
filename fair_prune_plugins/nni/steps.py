"""The training step that a user gave to an NNI evaluator, and a way to put another one in its place.

NNI's evaluators hide data, loop and loss behind the user's functions. What they all have is one call per batch that
gives the loss: ``training_step(batch, model)``, ``LightningModule.training_step(batch, batch_idx)`` or
``Trainer.compute_loss(model, inputs)``.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from nni.compression.utils import evaluator as host
from torch import nn

from fair_prune_plugins.errors import InputError

UNKNOWN_EVALUATOR = (
    "pruners with gate statistics know NNI's TorchEvaluator, LightningEvaluator and TransformersEvaluator, and "
    "subclasses; got {got}"
)
NO_LOSS = (
    "the training step must return the loss, a tuple that begins with it, or a dict with the key 'loss'; it returned "
    "{got}. Pass scoring_step= a function of (batch, model) that returns it"
)
NO_BATCH = "the training step must be called with the batch as its first argument, or as batch="


@dataclass(frozen=True)
class StepCall:
    """One call of an evaluator's training step.

    Attributes:
        batch: what it is called with.
        model: the model that trains.
        own: the user's own step on any batch, without what other compressors or a loss hook have put around it.
        proceed: what was in its place before, on this call's own arguments.
    """

    batch: Any
    model: nn.Module
    own: Callable[[Any], Any]
    proceed: Callable[[], Any]


def intercept(evaluator: host.Evaluator, handle: Callable[[StepCall], Any]) -> None:
    """Let ``handle`` answer for the training step of an evaluator with a bound model, until it is unbound.

    Raises:
        InputError: an evaluator of another kind.
    """
    if isinstance(evaluator, host.LightningEvaluator):
        _intercept_lightning(evaluator, handle)
    elif isinstance(evaluator, host.TransformersEvaluator):
        _intercept_transformers(evaluator, handle)
    elif hasattr(evaluator, "_training_step") and hasattr(evaluator, "_ori_training_step"):
        _intercept_torch(evaluator, handle)
    else:
        raise InputError(UNKNOWN_EVALUATOR.format(got=type(evaluator).__name__))


def after_optimizer_steps(evaluator: host.Evaluator, task: Callable[[], None]) -> None:
    """Run ``task`` after every step of the first optimizer, after those of compressors that asked before."""
    evaluator.patch_optimizer_step(before_step_tasks=[], after_step_tasks=[task])
    first = next(iter(getattr(evaluator, "_optimizers", None) or ()), None)
    if first is not None:
        # Torch's schedulers mark the step that they watch, and warn that it is never called where the mark is gone.
        # NNI's replacement calls it.
        first.step.__func__._wrapped_by_lr_sched = True


def loss_of(output: Any) -> torch.Tensor:
    """The loss in what a training step returned.

    Raises:
        InputError: there is none.
    """
    loss = output
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple | list) and output:
        loss = output[0]
    if not isinstance(loss, torch.Tensor):
        raise InputError(NO_LOSS.format(got=type(output).__name__))
    return loss


def with_loss(output: Any, loss: torch.Tensor) -> Any:
    """What a training step returned, with another loss."""
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed["loss"] = loss
        return changed
    if isinstance(output, tuple | list):
        return (loss, *output[1:])
    return loss


def _intercept_torch(evaluator: Any, handle: Callable[[StepCall], Any]) -> None:
    before, own = evaluator._training_step, evaluator._ori_training_step

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        batch = _batch_of(args, kwargs)
        model = next((a for a in (*args[1:], *kwargs.values()) if isinstance(a, nn.Module)), evaluator.model)
        return handle(
            StepCall(batch, model, _on_batches(evaluator, own, args, kwargs), lambda: before(*args, **kwargs))
        )

    evaluator._training_step = step


def _intercept_lightning(evaluator: Any, handle: Callable[[StepCall], Any]) -> None:
    model = evaluator.model
    before, own = model.training_step, evaluator._ori_model_attr["training_step"]

    @functools.wraps(own)
    def step(_model: Any, *args: Any, **kwargs: Any) -> Any:
        batch = _batch_of(args, kwargs)
        return handle(
            StepCall(batch, model, _on_batches(evaluator, own, args, kwargs), lambda: before(*args, **kwargs))
        )

    # Lightning asks the signature whether to pass batch_idx, looking behind one decorator.
    step.__wrapped__ = inspect.unwrap(own)
    model.training_step = types.MethodType(step, model)


def _intercept_transformers(evaluator: Any, handle: Callable[[StepCall], Any]) -> None:
    trainer = evaluator.trainer
    before, own = trainer.compute_loss, evaluator._ori_trainer_attr["compute_loss"]

    @functools.wraps(own)
    def step(_trainer: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        def asked(batch: Any) -> Any:
            # Without num_items_in_batch, which counts over all batches of an update: this is one batch's mean.
            with _without_hook(evaluator):
                return own(model, batch, *args[:1])

        return handle(StepCall(inputs, model, asked, lambda: before(model, inputs, *args, **kwargs)))

    trainer.compute_loss = types.MethodType(step, trainer)


@contextmanager
def _without_hook(evaluator: Any) -> Iterator[None]:
    """The user's own loss, below a loss hook of ours: a loss over groups is no sum over people, as statistics are."""
    hook = getattr(evaluator, "training_loss", None)
    with nullcontext() if hook is None else hook.suspended():
        yield


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return args[0]
    if "batch" not in kwargs:
        raise InputError(NO_BATCH)
    return kwargs["batch"]


def _on_batches(
    evaluator: Any, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], Any]:
    def run(batch: Any) -> Any:
        with _without_hook(evaluator):
            return step(batch, *args[1:], **kwargs) if args else step(**{**kwargs, "batch": batch})

    return run
