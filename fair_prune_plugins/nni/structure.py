"""What NNI's wrappers hide: the gate plan of a wrapped model, and which unit every channel of a target belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from nni.compression.base.target_space import TargetType
from nni.compression.base.wrapper import ModuleWrapper
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import GatePlan, PruningSettings, build_plan
from fair_prune_plugins.gates.calling import ForwardFn, moved, preserved, resized
from fair_prune_plugins.gates.removal import build_graph, channel_groups
from fair_prune_plugins.gates.structure import CoupledGroup, group_key, host_groups, is_output_root

NOT_CALLED = (
    "the training step calls none of the modules to prune; pass dummy_input= what the model is called with (a tensor, "
    "a tuple of positional or a dict of keyword arguments)"
)
SEVERAL_CALLS = (
    "the training step calls the model in several parts ({parts}), which leaves open how they are connected; give the "
    "model a forward() over all of them and pass dummy_input= what it takes"
)


@dataclass(frozen=True)
class Example:
    """How the model, or the part of it that is trained, is called.

    Attributes:
        inputs: a tensor, tuple or dict; with ``forward_fn`` whatever that takes.
        forward_fn: ``forward_fn(model, inputs)``, or ``None`` where the model is called plainly.
    """

    inputs: Any
    forward_fn: ForwardFn | None = None


@dataclass(frozen=True)
class Members:
    """Channels of a module's input or output that belong to one coupled group.

    Attributes:
        group: the coupled group.
        channels: int64 ``[k]``, channels of the module.
        units: int64 ``[k]``, the group's unit that each of them belongs to.
    """

    group: CoupledGroup
    channels: torch.Tensor
    units: torch.Tensor


@dataclass(frozen=True)
class Structure:
    """A gate plan, and every module's channels in it.

    Attributes:
        plan: of the bound model.
        outputs: module path to its output channels by coupled group; norms and other layers that act on each channel
            alone are listed here.
        inputs: module path to its input channels by coupled group.
    """

    plan: GatePlan
    outputs: Mapping[str, list[Members]]
    inputs: Mapping[str, list[Members]]


@contextmanager
def unwrapped(model: nn.Module, *, masked: bool = False) -> Iterator[None]:
    """The model without NNI's wrappers, as it was before; they are put back at the end.

    What an optimizer trains lives in the wrappers and is not touched: the model has copies meanwhile.

    Args:
        model: may have wrappers of several compressors.
        masked: apply the masks to the copies.
    """
    out: list[Any] = [m for m in model.modules() if isinstance(m, ModuleWrapper)]
    for wrapper in out:
        wrapper.unwrap()
    try:
        if masked:
            with torch.no_grad():
                for wrapper in out:
                    _apply_masks(wrapper)
        yield
    finally:
        for wrapper in out:
            wrapper.wrap()


def _apply_masks(wrapper: Any) -> None:
    for name, space in wrapper.pruning_target_spaces.items():
        if space.type is TargetType.PARAMETER and isinstance(space.target, torch.Tensor):
            getattr(wrapper.module, name).copy_(wrapper._apply_mask_helper(space.target, space))


def read_structure(model: nn.Module, example: Example, through: Iterable[str]) -> Structure:
    """The gate plan of a model that is not wrapped, proved, with every channel's unit.

    Args:
        model: left as it was.
        example: how it is called.
        through: paths of norms and the like that are to be pruned, which a plan does not list.

    Raises:
        UnsupportedModelError: see :func:`fair_prune_plugins.gates.build_plan`.
    """
    plan = build_plan(model, example.inputs, settings=_settings(model), forward_fn=example.forward_fn)
    outputs: dict[str, list[Members]] = {}
    inputs: dict[str, list[Members]] = {}
    for group in plan.groups:
        of_root = group.units.of_root
        for site in group.producers:
            outputs.setdefault(site.path, []).append(Members(group, site.channels, of_root[site.roots]))
        for site in group.consumers:
            inputs.setdefault(site.path, []).append(Members(group, site.channels, of_root[site.roots]))
    missing = {path for path in through if path not in outputs}
    if missing:
        for path, members in _passing(plan, example, missing):
            outputs.setdefault(path, []).append(members)
    return Structure(plan, outputs, inputs)


def _settings(model: nn.Module) -> PruningSettings:
    heads: dict[nn.Module, int] = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    types: tuple[type[nn.Module], ...] = PruningSettings().root_module_types
    if any(isinstance(m, nn.Embedding) for m in model.modules()):
        # NNI prunes embeddings; an embedding that feeds linear layers alone is the root of its coupled group.
        types = (*types, nn.Embedding)
    return PruningSettings(root_module_types=types, num_heads=heads)


def _passing(plan: GatePlan, example: Example, paths: set[str]) -> Iterator[tuple[str, Members]]:
    """Channels of modules that channels only pass through: they have no part in a plan, but masks."""
    model = plan.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    with preserved(model):
        model.eval()
        inputs = moved(resized(example.inputs, 2), device=device, dtype=dtype)
        graph = build_graph(model, inputs, forward_fn=example.forward_fn)
        ins, outs = channel_groups(graph, model)
        settings = replace(_settings(model), in_channel_groups=ins, out_channel_groups=outs)
        known = {g.name: g for g in plan.groups}
        for found in host_groups(graph, settings):
            group = known.get(group_key(graph, found))
            for item in found:
                module = item.dep.target.module
                path = graph._module2name.get(module) if isinstance(module, nn.Module) else None
                if group is None or path not in paths or not is_output_root(graph, item.dep):
                    continue
                if any(r is None for r in item.root_idxs):
                    continue
                channels, roots = (torch.tensor(i, dtype=torch.int64) for i in (item.idxs, item.root_idxs))
                yield path, Members(group, channels, group.units.of_root[roots])


class CallRecorder:
    """Sees with what the outermost modules of a model are called.

    Args:
        model: the bound model.
        targets: paths of the modules to prune; calls of modules without any of these do not count.
    """

    def __init__(self, model: nn.Module, targets: Iterable[str]) -> None:
        self._model = model
        self._targets = set(targets)
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._depth = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record calls while the context is open."""
        self._depth = 0
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                if isinstance(module, ModuleWrapper):
                    continue
                entered, left = self._hooks(path)
                stack.callback(module.register_forward_pre_hook(entered, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(left, always_call=True).remove)
            yield

    def _hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def entered(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            prefix = f"{path}." if path else ""
            if not self._depth and any(t == path or t.startswith(prefix) for t in self._targets):
                self._calls.setdefault(path, (args, kwargs))
            self._depth += 1

        def left(*_: Any) -> None:
            self._depth -= 1

        return entered, left

    def example(self) -> Example:
        """How the model is called.

        Raises:
            InputError: not at all, or in several parts.
        """
        if not self._calls:
            raise InputError(NOT_CALLED)
        if len(self._calls) > 1:
            raise InputError(SEVERAL_CALLS.format(parts=", ".join(self._calls)))
        (path, arguments), *_ = self._calls.items()
        return Example(arguments, _Called(path))


@dataclass(frozen=True)
class _Called:
    """Calls the module at a path with positional and keyword arguments."""

    path: str

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        args, kwargs = inputs
        return model.get_submodule(self.path)(*args, **kwargs)


def given_example(dummy_input: Any) -> Example:
    """A dummy input as NNI takes it: a tensor, a tuple or list of positional, or a mapping of keyword arguments."""
    if isinstance(dummy_input, Mapping) and not isinstance(dummy_input, dict):
        dummy_input = dict(dummy_input)
    return Example(dummy_input)
