"""A loss hook in the place of the loss that a training step returns, without a change of the step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import EMPTY_GROUPS, GroupReader
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.losses.batch_loss import NO_GROUPS, reader_for
from fair_prune_plugins.nni.module_calls import ModuleCall, ModuleCalls
from fair_prune_plugins.picking import Source, contents, pick
from fair_prune_plugins.statistics.batches import AUTO, BatchReader
from fair_prune_plugins.statistics.walking import NO_SUCH_OUTPUT, Groups

NOTHING_CALLED = (
    "the training step called no module of the model that has parameters, so there are no outputs to compute {loss} "
    "from; the step must call the model it is given (or name what it calls with module=)"
)
NO_LOGITS = (
    "{loss} needs logits, and the model returns {got}; pass output= the key, index or callable that takes them out"
)
NO_STEP_LOSS = (
    "the training step returned {got}; a loss, a tuple that begins with it, or a dict with the key 'loss' is needed"
)
NO_SINGLE_NUMBER = "{loss} has reduction='none', and a training step needs one number; make it with 'mean' or 'sum'"
NO_ONE_KNOWN = EMPTY_GROUPS.replace("rows", "people of the first batches")

PATIENCE = 10
"""Batches after which somebody's group must have been known."""


class TrainingLoss:
    """What :func:`fair_evaluator` puts into an evaluator.

    Args:
        hook: the loss.
        groups: where a batch has the sensitive group, or ``None``.
        reader: takes targets and sample weights, and inputs if not ``"auto"``, out of a batch.
        output: takes the logits out of what the module returns; ``None`` takes a tensor, or ``"logits"``.
        module: name of the module whose outputs count, or ``None``.
        origin_loss_lambda: factor of the loss that the step itself returns.

    Raises:
        InputError: the hook needs groups and none are given, has other ones, or returns a loss per person.
    """

    def __init__(
        self,
        hook: LossHook,
        groups: Groups | None,
        reader: BatchReader,
        *,
        output: Source | None = None,
        module: str | None = None,
        origin_loss_lambda: float = 0.0,
    ) -> None:
        self._name = type(hook).__name__
        if hook.needs_groups and groups is None:
            raise InputError(NO_GROUPS.format(loss=self._name))
        if hook.reduction == "none":
            raise InputError(NO_SINGLE_NUMBER.format(loss=self._name))
        self.hook = hook
        self._groups: GroupReader | None = reader_for(hook, groups)
        self._reader = reader
        self._output, self._module = output, module
        self._share = origin_loss_lambda
        self._suspended = False
        self._batches, self._people, self._somebody = 0, 0, False

    @property
    def columns(self) -> list[str]:
        """What the loss takes out of a batch by name, beside the targets."""
        sources: list[Any] = [self._reader.weights, self._reader.inputs]
        sources += [] if self._groups is None else list(self._groups.sources.values())
        return sorted({source for source in sources if isinstance(source, str) and source != AUTO})

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While this is open, steps return their own loss: one that is a mean over people, as statistics need it."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def around(self, step: Callable[..., Any], bound: Callable[[], nn.Module | None]) -> Callable[..., Any]:
        """``step(batch, ...)`` with this loss.

        Args:
            step: a training step; modules among its arguments belong to the model.
            bound: gives the model that an evaluator trains at the time, if it knows.
        """

        @functools.wraps(step)
        def with_loss(*args: Any, **kwargs: Any) -> Any:
            batch = args[0] if args else kwargs["batch"]
            models = [value for value in (*args, *kwargs.values(), bound()) if isinstance(value, nn.Module)]
            return self.run(functools.partial(step, *args, **kwargs), batch, models)

        return with_loss

    def run(self, step: Callable[[], Any], batch: Any, models: Sequence[nn.Module], divisor: int = 1) -> Any:
        """Do a training step; what it returns has this loss in place of its own.

        Without gradients, in an evaluation, it is left as it is.

        Args:
            step: does it.
            batch: of it.
            models: whose outputs the loss is computed from.
            divisor: what the loss is to be divided by, where the step's own is divided already.

        Raises:
            InputError: something that the loss needs is not in the batch or in what the model returns.
        """
        if self._suspended:
            return step()
        kept = copy.copy(batch) if isinstance(batch, Mapping) else batch  # a step may take the labels out
        with ModuleCalls(models, self._module) as calls:
            returned = step()
        if returned is None or not torch.is_grad_enabled():
            return returned
        call = calls.last()
        if call is None:
            raise InputError(NOTHING_CALLED.format(loss=self._name))
        inputs = call.inputs if self._reader.inputs == AUTO and calls.is_whole(call) else None
        return self._replaced(returned, self._loss(call, kept, inputs) / divisor)

    def logits(self, returned: Any) -> Any:
        """The logits in what a module returns.

        Raises:
            InputError: there are none.
        """
        if self._output is not None:
            return pick(returned, self._output, NO_SUCH_OUTPUT)
        if isinstance(returned, Mapping) and "logits" in returned:
            return returned["logits"]
        if not isinstance(returned, Tensor):
            raise InputError(NO_LOGITS.format(loss=self._name, got=contents(returned)))
        return returned

    def _loss(self, call: ModuleCall, batch: Any, inputs: Callable[[], Any] | None) -> Tensor:
        outputs = self.logits(call.returned)
        people = len(outputs) if isinstance(outputs, Tensor) and outputs.ndim else 0
        weights = None if self._reader.weights is None else self._reader.read_weights(batch, people)
        codes = None if self._groups is None else self._codes(batch, people)
        given = None
        if self.hook.needs_inputs:
            given = self._reader.read_inputs(batch) if inputs is None else inputs()
        learning = self.hook.training and call.module.training
        targets = self._reader.read_targets(batch)
        return self.hook.evaluate(outputs, targets, codes, given, weights, self.hook.reduction, learning)

    def _codes(self, batch: Any, people: int) -> Tensor:
        assert self._groups is not None
        codes = self._groups.read(batch, people)
        if not self._somebody and self.hook.needs_groups:
            self._somebody = bool((codes >= 0).any())
            self._batches, self._people = self._batches + 1, self._people + people
            if not self._somebody and self._batches == PATIENCE:
                raise InputError(NO_ONE_KNOWN.format(n=self._people, attribute=self._groups.attribute))
        return codes

    def _replaced(self, returned: Any, loss: Tensor) -> Any:
        if isinstance(returned, Tensor):
            return self._mixed(returned, loss)
        if isinstance(returned, MutableMapping) and isinstance(returned.get("loss"), Tensor):
            returned["loss"] = self._mixed(returned["loss"], loss)
            return returned
        if isinstance(returned, tuple | list) and returned and isinstance(returned[0], Tensor):
            return (self._mixed(returned[0], loss), *returned[1:])
        raise InputError(NO_STEP_LOSS.format(got=contents(returned)))

    def _mixed(self, own: Tensor, loss: Tensor) -> Tensor:
        return loss if self._share == 0 else self._share * own + loss
