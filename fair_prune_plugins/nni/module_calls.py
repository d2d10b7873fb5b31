"""What a training step called: the modules, what they were given and what they returned."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import output_tensors

NO_SUCH_MODULE = "module={name!r} is not in the model, a {model}; name a module as in model.named_modules()"
NOT_NAMEABLE = (
    "the model is called with positional arguments and keywords that cannot be told by name ({reason}); pass inputs= "
    "where the batch has what the dense model is to be given"
)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module by a training step.

    Attributes:
        module: what was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        returned: what it returned.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returned: Any

    @property
    def learns(self) -> bool:
        """Whether a gradient flows through what it returned."""
        return any(tensor.requires_grad for tensor in output_tensors(self.returned))

    def inputs(self) -> Any:
        """The arguments as one thing: a tensor, a tuple, or a dict where there are keywords.

        Raises:
            InputError: positional ones that have no name, beside keywords.
        """
        if not self.kwargs:
            return self.args[0] if len(self.args) == 1 and isinstance(self.args[0], Tensor) else self.args
        if not self.args:
            return dict(self.kwargs)
        signature = inspect.signature(self.module.forward)
        named = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(named) < len(self.args):
            raise InputError(NOT_NAMEABLE.format(reason=f"forward{signature}"))
        return {**dict(zip(named, self.args, strict=False)), **self.kwargs}


class ModuleCalls:
    """A context in which a training step runs, and the calls it made.

    Of calls within calls only the outermost counts, and only modules with parameters: what is called last is then what
    a loss is computed from, not the loss or a metric that is a module too. Calls through which no gradient flows (a
    teacher's) count only where there is no other.

    Args:
        roots: the model, and whatever else the step is given.
        name: of the one module to watch instead, whoever calls it.

    Raises:
        InputError: no module of that name.
    """

    def __init__(self, roots: Iterable[nn.Module], name: str | None = None) -> None:
        self._roots = list(roots)
        self._calls: list[ModuleCall] = []
        self._open: nn.Module | None = None
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self._handles: list[Any] = []
        self._watched = list({id(m): m for root in self._roots for m in root.modules()}.values())
        if name is not None:
            self._watched = [m for root in self._roots for n, m in root.named_modules() if n == name][:1]
            if not self._watched:
                kinds = ", ".join(type(root).__name__ for root in self._roots)
                raise InputError(NO_SUCH_MODULE.format(name=name, model=kinds))

    def __enter__(self) -> ModuleCalls:
        for module in self._watched:
            self._handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._end, always_call=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open is None:
            self._open, self._given = module, (args, kwargs)

    def _end(self, module: nn.Module, args: Any, returned: Any) -> None:
        if module is self._open:
            self._open = None
            if returned is not None and next(module.parameters(), None) is not None:  # None: the call failed
                self._calls.append(ModuleCall(module, *self._given, returned))

    def last(self) -> ModuleCall | None:
        """The call that counts, ``None`` if there was none."""
        counted = self._counted()
        return counted[-1] if counted else None

    def is_whole(self, call: ModuleCall) -> bool:
        """Whether the call went through all that the step computed: the model itself, or nothing else was called."""
        return any(call.module is root for root in self._roots) or len(self._counted()) == 1

    def _counted(self) -> list[ModuleCall]:
        return [call for call in self._calls if call.learns] or self._calls
