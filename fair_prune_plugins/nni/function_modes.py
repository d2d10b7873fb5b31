"""Functions as a look at masked units needs them: nothing stays nothing, and dropout drops nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class ZeroStaysZero(TorchFunctionMode):
    """While active, a function of one tensor returns zero wherever that tensor is zero, if it returns the same shape.

    Of a unit that nothing is left of, such functions (sigmoid, softplus, softmax, adding a number) make what has
    nothing to do with the unit's own weights. Where every layer that makes a unit masks it, that is a constant to drop
    or fold as any other; where another layer makes it as well (the body of a gate), it is not, and whoever uses this
    must tell these apart.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        only = tensors[0] if len(tensors) == 1 and tensors[0].is_floating_point() else None
        zero = None if only is None else only == 0  # before the call: it may be in place
        out = func(*args, **kwargs)
        if zero is None or not isinstance(out, torch.Tensor) or not out.is_floating_point() or out.shape != zero.shape:
            return out
        if not bool((zero & (out != 0)).any()):
            return out
        return out.masked_fill_(zero, 0) if out is only else out.masked_fill(zero, 0)


class NoDropout(TorchFunctionMode):
    """While active, ``torch.nn.functional`` drops nothing out, whatever mode a module is in."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if "dropout" in getattr(func, "__name__", "") and args:
            return args[0]
        return func(*args, **(kwargs or {}))
