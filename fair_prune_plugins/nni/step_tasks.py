"""Tasks of compressors around an optimizer's step."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

Task = Callable[[], Any]

_KNOWN_TO_SCHEDULERS = "_wrapped_by_lr_sched"
"""Torch's schedulers mark a step that they watch, and warn where the mark is gone."""


def add_step_tasks(optimizer: Optimizer, before: Sequence[Task], after: Sequence[Task]) -> None:
    """Let every ``optimizer.step()`` run tasks, each once.

    A trainer may hand the forward and backward pass to ``step`` as a closure (Lightning does). The tasks of ``before``
    run after it, as they do in a loop that calls ``backward()`` and then ``step()``: they use its gradients.

    Args:
        optimizer: its ``step`` is replaced.
        before: called between the backward pass and the update, in this order.
        after: called after the update.
    """
    step = optimizer.step

    def with_tasks(_: Optimizer, closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        waiting = list(before)

        def run_before() -> None:
            while waiting:
                waiting.pop(0)()

        def evaluated() -> Any:
            value = None if closure is None else closure()
            run_before()  # once, also for optimizers that evaluate several times
            return value

        if closure is None:
            run_before()
            result = step(*args, **kwargs)
        else:
            result = step(evaluated, *args, **kwargs)
        for task in after:
            task()
        return result

    if hasattr(step, _KNOWN_TO_SCHEDULERS):
        setattr(with_tasks, _KNOWN_TO_SCHEDULERS, True)
    optimizer.step = types.MethodType(with_tasks, optimizer)  # type: ignore[method-assign]
