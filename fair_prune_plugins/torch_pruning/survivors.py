"""Which elements of which parameter are still there after pruning, whatever routine pruned it.

The host makes new parameters and forgets which elements of the old ones they hold. Its pruning routines, and those that
users register, are functions of a layer: so each is run on a twin of the layer first, which has the same attributes and
element numbers for weights (float64, exact up to 2**51). What is left in the twin says what is left in the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.group import Group

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import copied

NOT_FOLLOWED = (
    "cannot tell which weights of a {layer} survive its pruning routine {routine}: {reason}. A customised pruner must "
    "select weights and leave their values alone"
)
FAILED = "it fails on a copy of the layer that holds element numbers for weights ({error})"
COMPUTED = "it does not select weights but computes new ones"


MARK = 0.25
"""Added to every element number: multiples and sums of them end otherwise, so computed weights are found out."""


class Survivors:
    """Parameters that pruning made, the ones they come from, and which elements of those they hold.

    Args:
        parameters: the ones to follow; groups that touch none of them (of copies, of other models) are let be.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._followed = set(parameters)
        self._origins: dict[nn.Parameter, nn.Parameter] = {}
        self._numbers: dict[nn.Parameter, torch.Tensor] = {}
        self._totals: dict[nn.Parameter, int] = {}

    def origin(self, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter that this one was before any pruning."""
        return self._origins.get(parameter, parameter)

    def elements(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Element numbers in :meth:`origin`, flat, int64, in the parameter's own shape.

        Returns:
            ``None`` for a parameter of a layer that was not pruned.
        """
        numbers = self._numbers.get(parameter)
        return None if numbers is None else numbers.to(torch.int64)

    @torch.no_grad()
    def follow(self, group: Any, prune: Callable[[], None]) -> None:
        """Prune a host group by calling ``prune``, after its routines have run on twins.

        Raises:
            UnsupportedModelError: a customised routine computes weights, or fails on element numbers.
        """
        if not any(p in self._followed for dep, _ in group for _, p in _parameters(dep.target.module)):
            prune()
            return
        twins: dict[Any, Any] = {}  # by node: a bare parameter's node outlives the parameter
        members: list[tuple[Any, Any, str, nn.Parameter]] = []
        for dep, idxs in group:
            node = dep.target
            if node not in twins:
                own = _parameters(node.module)
                if not own:
                    continue
                members += [(node, dep.handler, name, p) for name, p in own]
                twins[node] = self._twin(node.module, [p for _, p in own])
            target = SimpleNamespace(module=twins[node], pruning_dim=node.pruning_dim)
            try:
                result = Dependency(dep.trigger, dep.handler, dep.source, target)(idxs)
            except Exception as error:
                raise _unfollowed(node, dep.handler, FAILED.format(error=f"{type(error).__name__}: {error}")) from error
            if isinstance(node.module, nn.Parameter):
                twins[node] = result
        left = [_named(twins[node], name) for node, _, name, _ in members]
        for (node, handler, _, before), image in zip(members, left, strict=True):
            if image is not None and not _selected(image, self._totals[self.origin(before)]):
                raise _unfollowed(node, handler, COMPUTED)
        prune()
        for (node, _, name, before), image in zip(members, left, strict=True):
            after = _named(node.module, name)
            if after is None or (after is before and after.shape == self._image(before).shape):
                continue
            if image is not None:
                self._origins[after], self._numbers[after] = self.origin(before), image.detach()
                self._followed.add(after)

    def _twin(self, module: Any, parameters: list[nn.Parameter]) -> Any:
        images = {id(p): nn.Parameter(self._image(p).clone(), requires_grad=False) for p in parameters}
        return images[id(module)] if isinstance(module, nn.Parameter) else copied(module, images)

    def _image(self, parameter: nn.Parameter) -> torch.Tensor:
        if parameter not in self._numbers:
            self._totals[parameter] = parameter.numel()
            numbers = torch.arange(parameter.numel(), dtype=torch.float64) + MARK
            self._numbers[parameter] = numbers.reshape(parameter.shape)
        return self._numbers[parameter]


@contextmanager
def following(parameters: Iterable[nn.Parameter]) -> Iterator[Survivors]:
    """Follow parameters through every host group that is pruned inside, by whichever pruner, or one by one."""
    survivors = Survivors(parameters)
    plain = Group.prune

    def prune(group: Any, idxs: Any = None, record_history: bool = True) -> None:
        if idxs is None:
            survivors.follow(group, lambda: plain(group, None, record_history))
        else:
            plain(group, idxs, record_history)  # makes a group of these indices and prunes that

    Group.prune = prune
    try:
        yield survivors
    finally:
        Group.prune = plain


def _parameters(module: Any) -> list[tuple[str, nn.Parameter]]:
    if isinstance(module, nn.Parameter):
        return [("", module)]
    return list(module.named_parameters(remove_duplicate=False))


def _named(module: Any, name: str) -> Any:
    for part in name.split(".") if name else ():
        module = getattr(module, part, None)
    return module


def _selected(image: torch.Tensor, total: int) -> bool:
    numbers = image - MARK
    return bool(((numbers == numbers.floor()) & (numbers >= 0) & (numbers < total)).all())


def _unfollowed(node: Any, handler: Any, reason: str) -> UnsupportedModelError:
    owner = type(getattr(handler, "__self__", handler)).__name__
    return UnsupportedModelError(
        NOT_FOLLOWED.format(layer=type(node.module).__name__, routine=f"{owner}.{handler.__name__}", reason=reason)
    )
