"""What a LightningModule's ``configure_optimizers`` returns, in all its forms, and building the same again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nni.common.types import SCHEDULER
from nni.compression.utils.constructor_helper import LRSchedulerConstructHelper, OptimizerConstructHelper
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fair_prune_plugins.errors import InputError

NO_OPTIMIZER = (
    "configure_optimizers() of {module} returns None, and NNI's compressors need an optimizer; return one made with "
    "nni.trace(torch.optim.SGD)(self.parameters(), ...)"
)
UNKNOWN_FORM = (
    "configure_optimizers() of {module} returns {got}; Lightning takes an optimizer, a dict with 'optimizer' (and "
    "'lr_scheduler'), a list of either, or a list of optimizers and a list of schedulers"
)
OTHER_OPTIMIZER = "configure_optimizers() of {module} returns a scheduler of an optimizer that it does not return"


@dataclass(frozen=True)
class ConfiguredScheduler:
    """A scheduler to build.

    Attributes:
        helper: builds it.
        optimizer: number of its optimizer.
        options: the rest of its configuration for Lightning (``interval``, ``monitor``, ...); ``None`` where it was
            returned without.
    """

    helper: Any
    optimizer: int
    options: Mapping[str, Any] | None


@dataclass(frozen=True)
class ConfiguredOptimizers:
    """Optimizers and schedulers to build for a model of the same parameter names.

    Attributes:
        optimizers: NNI's helpers, one for each.
        schedulers: one for each.
    """

    optimizers: tuple[Any, ...]
    schedulers: tuple[ConfiguredScheduler, ...]

    @classmethod
    def of(cls, module: nn.Module, returned: Any) -> ConfiguredOptimizers:
        """Read what ``module.configure_optimizers()`` returned.

        Raises:
            InputError: it is none of Lightning's forms, or ``None``.
            AssertionError: NNI's, for an optimizer or scheduler that was not made with ``nni.trace``.
        """
        name = type(module).__name__
        optimizers, schedulers = _taken_apart(returned, name)
        numbers = {id(optimizer): i for i, optimizer in enumerate(optimizers)}
        configured = []
        for scheduler, options in schedulers:
            if id(scheduler.optimizer) not in numbers:
                raise InputError(OTHER_OPTIMIZER.format(module=name))
            helper = LRSchedulerConstructHelper.from_trace(scheduler)
            configured.append(ConfiguredScheduler(helper, numbers[id(scheduler.optimizer)], options))
        helpers = tuple(OptimizerConstructHelper.from_trace(module, optimizer) for optimizer in optimizers)
        return cls(helpers, tuple(configured))

    def build(self, model: nn.Module, names: Mapping[str, str] | None) -> tuple[list[Optimizer], list[Any]]:
        """The optimizers, and the schedulers as Lightning takes them.

        Args:
            model: wrapped by a compressor, or not.
            names: its parameters' names by those of the model that was configured.
        """
        optimizers = [helper.call(model, names) for helper in self.optimizers]
        schedulers = []
        for configured in self.schedulers:
            scheduler = configured.helper.call(optimizers[configured.optimizer])
            bare = configured.options is None
            schedulers.append(scheduler if bare else {**(configured.options or {}), "scheduler": scheduler})
        return optimizers, schedulers


def _taken_apart(returned: Any, name: str) -> tuple[list[Optimizer], list[tuple[Any, dict[str, Any] | None]]]:
    if returned is None:
        raise InputError(NO_OPTIMIZER.format(module=name))
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping):
        return _of_dicts([returned], name)
    if isinstance(returned, list | tuple) and returned:
        if all(isinstance(entry, Optimizer) for entry in returned):
            return list(returned), []
        if all(isinstance(entry, Mapping) for entry in returned):
            return _of_dicts(list(returned), name)
        if len(returned) == 2 and isinstance(returned[0], list | tuple):
            optimizers, schedulers = returned
            schedulers = list(schedulers) if isinstance(schedulers, list | tuple) else [schedulers]
            if optimizers and all(isinstance(o, Optimizer) for o in optimizers):
                return list(optimizers), [_scheduler(s, None, name) for s in schedulers]
    raise InputError(UNKNOWN_FORM.format(module=name, got=_form(returned)))


def _of_dicts(dicts: list[Any], name: str) -> tuple[list[Optimizer], list[tuple[Any, dict[str, Any] | None]]]:
    if not all(isinstance(entry.get("optimizer"), Optimizer) for entry in dicts):
        raise InputError(UNKNOWN_FORM.format(module=name, got=_form(dicts[0] if len(dicts) == 1 else dicts)))
    schedulers = [
        _scheduler(entry["lr_scheduler"], entry.get("monitor"), name)
        for entry in dicts
        if entry.get("lr_scheduler") is not None
    ]
    return [entry["optimizer"] for entry in dicts], schedulers


def _scheduler(entry: Any, monitor: str | None, name: str) -> tuple[Any, dict[str, Any] | None]:
    if isinstance(entry, Mapping):
        options = {key: value for key, value in entry.items() if key != "scheduler"}
        scheduler = entry.get("scheduler")
    else:
        scheduler, options = entry, None
        if isinstance(entry, ReduceLROnPlateau) and monitor is not None:
            options = {"monitor": monitor}
    if not isinstance(scheduler, SCHEDULER):
        raise InputError(UNKNOWN_FORM.format(module=name, got=f"a scheduler of type {type(scheduler).__name__}"))
    return scheduler, options


def _form(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return f"a dict with the keys {sorted(map(str, returned))}"
    if isinstance(returned, list | tuple):
        kinds = ", ".join(sorted({type(entry).__name__ for entry in returned}))
        return f"a {type(returned).__name__} of {kinds or 'nothing'}"
    return f"a {type(returned).__name__}"
