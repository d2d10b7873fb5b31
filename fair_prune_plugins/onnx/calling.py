"""How a model is called: its tensors in and out, in one order, whatever containers it uses.

Torch models take one tensor, several, or keywords, and return tensors, tuples, dicts or registered classes. An ONNX
graph has a list of inputs and a list of outputs. Everything that moves between the two goes through :class:`Call`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree  # what torch.onnx flattens outputs with, so that both see one order

from fair_prune_plugins.errors import ExportError, InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import copied

Array = npt.NDArray[Any]
ModelInputs = Any
"""One tensor or array, a tuple or list of them (positional), or a mapping of names to them (keywords)."""

NOT_INPUTS = (
    "{what} must be a tensor, a tuple of tensors or a dict of names to tensors, got {got}; bind other arguments into "
    "the model first, e.g. with a small wrapping module"
)
NO_BATCH = "{what} has no rows: the first input must have the batch in dimension 0, got shape {shape}"
NO_TENSORS = "the model returned {got}, in which there is no tensor; return tensors, tuples or dicts of them"


@dataclass(frozen=True)
class Call:
    """The tensors that a model is called with.

    Attributes:
        keys: keyword names, or ``None`` for positional inputs.
        tensors: the inputs on the CPU, floating point ones as float32.
        batched: for each input, whether its dimension 0 is the batch (it is as long as the first input's dimension 0).
    """

    keys: tuple[str, ...] | None
    tensors: tuple[torch.Tensor, ...]
    batched: tuple[bool, ...]

    @classmethod
    def of(cls, inputs: ModelInputs, what: str, batched: Sequence[bool] | None = None) -> Call:
        """Read inputs in any of the accepted forms.

        Args:
            inputs: one tensor or array, a tuple or list of them, or a mapping of keyword names to them.
            what: how to call the inputs in an error.
            batched: which inputs carry the batch; by default those as long as the first one.

        Raises:
            InputError: another type, no input at all, or a first input without rows.
        """
        if isinstance(inputs, Mapping):
            keys, values = tuple(str(k) for k in inputs), list(inputs.values())
        else:
            keys, values = None, list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        if not values:
            raise InputError(NOT_INPUTS.format(what=what, got=f"an empty {type(inputs).__name__}"))
        tensors = tuple(_tensor(value, what) for value in values)
        if tensors[0].ndim == 0 or tensors[0].shape[0] == 0:
            raise InputError(NO_BATCH.format(what=what, shape=tuple(tensors[0].shape)))
        rows = tensors[0].shape[0]
        if batched is None:
            batched = [t.ndim > 0 and t.shape[0] == rows for t in tensors]
        return cls(keys, tensors, tuple(batched))

    @property
    def rows(self) -> int:
        """Number of samples."""
        return int(self.tensors[0].shape[0])

    def take(self, rows: Sequence[int] | Array) -> Call:
        """The same call on some of its rows; inputs without a batch dimension stay whole."""
        index = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        tensors = tuple(t[index] if b else t for t, b in zip(self.tensors, self.batched, strict=True))
        return Call(self.keys, tensors, self.batched)

    def matching(self, inputs: ModelInputs, what: str) -> Call:
        """Read further inputs for the same model, in the form this call has.

        Raises:
            InputError: another number of inputs, other names or types, or other shapes (apart from the batch).
        """
        if isinstance(inputs, Mapping) and self.keys is not None and {str(k) for k in inputs} == set(self.keys):
            inputs = {key: inputs[key] for key in self.keys}
        other = Call.of(inputs, what, self.batched if _count(inputs) == len(self.tensors) else None)
        if len(other.tensors) != len(self.tensors) or set(other.keys or ()) != set(self.keys or ()):
            mine, theirs = (c.keys or f"{len(c.tensors)} positional" for c in (self, other))
            raise InputError(f"{what} must be like example_inputs, with inputs {mine}, got {theirs}")
        for name, a, b, batched in zip(self.names(), self.tensors, other.tensors, self.batched, strict=True):
            skip = int(batched)
            if a.shape[skip:] != b.shape[skip:] or a.ndim != b.ndim or (batched and b.shape[0] != other.rows):
                rows = f"({other.rows}, ...)" if batched else "fixed"
                raise InputError(
                    f"{what} does not fit example_inputs at {name!r}: shape {tuple(b.shape)} against {tuple(a.shape)}; "
                    f"only the batch may differ, and every batched input has the same rows {rows}"
                )
            if a.dtype != b.dtype:
                raise InputError(f"{what} has {b.dtype} at {name!r}, but example_inputs has {a.dtype}; convert it")
        return other

    def names(self, model: nn.Module | None = None) -> tuple[str, ...]:
        """Default names: ``input`` for one tensor, the keywords, or what ``model.forward`` calls its arguments."""
        if self.keys is not None:
            return self.keys
        if len(self.tensors) == 1:
            return ("input",)
        fallback = tuple(f"input_{i}" for i in range(len(self.tensors)))
        if model is None or isinstance(model, torch.jit.ScriptModule):
            return fallback
        parameters = list(inspect.signature(model.forward).parameters.values())[: len(self.tensors)]
        plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return tuple(plain) if len(plain) == len(self.tensors) else fallback

    def run(self, model: nn.Module) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...]]:
        """Call the model without gradients; its output tensors and their default names, in ONNX's order."""
        with torch.no_grad():
            return flatten(invoke(model, self.keys, self.tensors))


def invoke(model: nn.Module, keys: tuple[str, ...] | None, tensors: Sequence[torch.Tensor]) -> Any:
    """Call a model with positional tensors, or with keywords where there are ``keys``."""
    return model(*tensors) if keys is None else model(**dict(zip(keys, tensors, strict=True)))


def flatten(outputs: Any) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...]]:
    """Names and tensors of whatever a model returned; ``None`` and other leaves that are no tensors are left out.

    Raises:
        InputError: there is no tensor in it.
    """
    leaves = [
        (path, leaf) for path, leaf in pytree.tree_flatten_with_path(outputs)[0] if isinstance(leaf, torch.Tensor)
    ]
    if not leaves:
        raise InputError(NO_TENSORS.format(got=type(outputs).__name__))
    return tuple(_output_name(path) for path, _ in leaves), tuple(leaf for _, leaf in leaves)


def settled_copy(model: nn.Module) -> nn.Module:
    """A float32 copy on the CPU in eval mode, so that nothing done to it (or cached by its forward) reaches the model.

    Raises:
        ExportError: the model cannot be copied.
    """
    try:
        twin = copied(model)
    except UnsupportedModelError as error:
        raise ExportError(str(error)) from error
    return twin.cpu().float().eval().requires_grad_(False)


def _count(inputs: ModelInputs) -> int:
    return len(inputs) if isinstance(inputs, tuple | list | Mapping) else 1


def _tensor(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        if not value.flags.writeable:  # torch warns on arrays that it could write through
            value = value.copy()
        try:
            value = torch.as_tensor(value)
        except TypeError as error:
            raise InputError(NOT_INPUTS.format(what=what, got=f"an array of {value.dtype}")) from error
    if not isinstance(value, torch.Tensor):
        raise InputError(NOT_INPUTS.format(what=what, got=type(value).__name__))
    tensor: torch.Tensor = value.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def _output_name(path: tuple[Any, ...]) -> str:
    """``output`` for a bare tensor, a dict's key, ``output_0`` in a tuple; nested ones are joined by underscores."""
    if not path:
        return "output"
    parts = [str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", step)))) for step in path]
    return "_".join(["output", *parts] if parts[0].isdigit() else parts)
