"""Writing down what pruning left of a model in its original numbering, and pruning a fresh model alike."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, preserved
from fair_prune_plugins.gates.removal import build_graph, remove
from fair_prune_plugins.gates.static_sizes import plain_numbers, set_number
from fair_prune_plugins.gates.structure import group_key, host_groups, is_output_root
from fair_prune_plugins.torch_pruning.distributed import without_ddp
from fair_prune_plugins.torch_pruning.history import GroupHistory, LayerHistory, PruningHistory, Side
from fair_prune_plugins.torch_pruning.planning import settings_of

UNKNOWN_ROOT = (
    "{layer!r} was pruned, but it was in no coupled group when the history began: the model's structure was changed by "
    "something else, or Torch-Pruning cannot say which of its channels follow which"
)
DOES_NOT_FIT = (
    "the pruning history does not fit this model: {why}. It must be the architecture that was pruned, of its original "
    "width; nothing was changed"
)
NO_LAYER = "it has no layer {layer!r}"
NOT_PRUNABLE = "{layer!r} is a {kind}, which cannot be pruned"
OTHER_WIDTH = "{layer!r} has {got} {side}, the history is of {expected}"
OTHER_COUPLING = "the channels of {layer!r} ({side}) belong together in another way"
NO_NUMBER = "{module!r} has no attribute {name!r}"


class HistoryRecorder:
    """Tells a pruner's history in original numbers. Make it before the first step.

    ``FairPruner`` has one of its own (``pruner.history()``); for a pruner of the host::

        recorder = HistoryRecorder(pruner)
        pruner.step()
        history = recorder.history()

    Args:
        pruner: a pruner of Torch-Pruning; what it pruned before is not part of the history.
    """

    def __init__(self, pruner: Any) -> None:
        self._pruner = pruner
        self._earlier = len(pruner.DG.pruning_history())
        self._couplings = _Couplings(pruner.DG, host_groups(pruner.DG, settings_of(pruner)))
        self._numbers = _numbers(pruner.model, self._couplings)

    def history(self) -> PruningHistory:
        """What is left by now.

        Raises:
            UnsupportedModelError: something was pruned that Torch-Pruning cannot follow.
        """
        gone = self._couplings.gone(self._pruner.DG.pruning_history()[self._earlier :])
        groups, layers = self._couplings.left(gone)
        now = _numbers(self._pruner.model, self._couplings)
        numbers: dict[str, dict[str, int | float]] = {}
        for path, found in now.items():
            before = self._numbers.get(path, {})
            changed = {name: value for name, value in found.items() if before.get(name, value) != value}
            if changed:
                numbers[path] = changed
        return PruningHistory(groups, layers, numbers, _versions())


def replay(
    model: nn.Module,
    history: PruningHistory,
    example_inputs: Any,
    *,
    forward_fn: ForwardFn | None = None,
    output_transform: Any = None,
    customized_pruners: Mapping[Any, Any] | None = None,
    unwrapped_parameters: Mapping[nn.Parameter, int] | None = None,
) -> None:
    """Prune a fresh model to the structure that a history tells of.

    The surviving weights are the model's own: load the pruned weights afterwards, or replay on the original weights to
    get the pruned model as it was right after its last step without fine-tuning, bit by bit.

    Args:
        model: of the architecture that was pruned, at its original widths; pruned in place, its mode is kept.
        history: what is left.
        example_inputs: as the pruner had them, and so for all that follow.
        forward_fn: see :class:`~fair_prune_plugins.torch_pruning.FairPruner`.
        output_transform: see there.
        customized_pruners: see there.
        unwrapped_parameters: see there.

    Raises:
        UnsupportedModelError: layers, widths or couplings are not those of the history. Nothing was changed then.
    """
    model = without_ddp(model)
    bare = None if unwrapped_parameters is None else list(unwrapped_parameters.items())
    with preserved(model):
        model.eval()
        graph = build_graph(
            model,
            example_inputs,
            forward_fn=forward_fn,
            output_transform=output_transform,
            customized_pruners=customized_pruners,
            unwrapped_parameters=bare,
        )
    pruning = {name: _root_pruning(graph, model, group) for name, group in history.groups.items()}
    whole = [
        graph.get_pruning_group(*pruning[name], list(range(group.channels))) for name, group in history.groups.items()
    ]
    couplings = _Couplings(graph, whole)
    gone = {name: set(range(g.channels)) - set(g.kept) for name, g in history.groups.items()}
    groups, layers = couplings.left(gone)
    _refuse_other(layers, history.layers)
    if groups != dict(history.groups):
        raise UnsupportedModelError(DOES_NOT_FIT.format(why="its coupled groups have other names"))
    for path, values in history.numbers.items():
        here = plain_numbers(model.get_submodule(path)) if path in dict(model.named_modules()) else {}
        for name in values:
            if name not in here:
                raise UnsupportedModelError(DOES_NOT_FIT.format(why=NO_NUMBER.format(module=path, name=name)))
    for name in history.groups:
        remove(graph, graph.get_pruning_group(*pruning[name], sorted(gone[name])))
    for path, values in history.numbers.items():
        for name, value in values.items():
            set_number(model, path, name, value)


class _Couplings:
    """Which channel of which layer follows which channel of which coupled group's root, before any pruning."""

    def __init__(self, graph: tp.DependencyGraph, groups: Iterable[Any]) -> None:
        self.roots: dict[str, tuple[str, Side, int]] = {}
        self.members: dict[tuple[str, Side], tuple[list[str | None], list[int]]] = {}
        names = {p: n for n, p in graph.model.named_parameters()}
        for group in groups:
            name, dep = group_key(graph, group), group[0].dep
            side: Side = "outputs" if is_output_root(graph, dep) else "inputs"
            self.roots[name] = (graph._module2name[dep.target.module], side, len(group[0].idxs))
            for item in group:
                self._add(graph, names, name, item)

    def _add(self, graph: tp.DependencyGraph, names: Mapping[nn.Parameter, str], group: str, item: Any) -> None:
        module = item.dep.target.module
        pruner = graph.get_pruner_of_module(module)
        if pruner is None or not (isinstance(module, nn.Parameter) or any(True for _ in module.parameters())):
            return  # passes channels on
        path = names[module] if isinstance(module, nn.Parameter) else graph._module2name[module]
        out = is_output_root(graph, item.dep)
        width = (pruner.get_out_channels if out else pruner.get_in_channels)(module)
        if width is None:  # a PReLU with one slope for all channels
            return
        owners, roots = self.members.setdefault((path, "outputs" if out else "inputs"), ([None] * width, [-1] * width))
        for channel, root in zip(item.idxs, item.root_idxs, strict=True):
            if root is not None and channel < width:  # misread splits and reshapes run past the layer
                owners[channel], roots[channel] = group, int(root)

    def gone(self, entries: Iterable[Any]) -> dict[str, set[int]]:
        """Root channels that the host's records removed: coupled group to original numbers."""
        gone: dict[str, set[int]] = {}
        for path, out, indices in entries:
            member = self.members.get((path, "outputs" if out else "inputs"))
            if member is None:
                raise UnsupportedModelError(UNKNOWN_ROOT.format(layer=path))
            left = [(o, r) for o, r in zip(*member, strict=True) if o is None or r not in gone.get(o, ())]
            for index in indices:
                owner, root = left[int(index)]
                if owner is None:
                    raise UnsupportedModelError(UNKNOWN_ROOT.format(layer=path))
                gone.setdefault(owner, set()).add(root)
        return gone

    def left(self, gone: Mapping[str, set[int]]) -> tuple[dict[str, GroupHistory], dict[str, dict[Side, LayerHistory]]]:
        groups = {}
        for name, (path, side, channels) in self.roots.items():
            if gone.get(name):
                kept = tuple(c for c in range(channels) if c not in gone[name])
                groups[name] = GroupHistory(path, side, channels, kept)
        layers: dict[str, dict[Side, LayerHistory]] = {}
        for (path, side), (owners, roots) in self.members.items():
            if not any(gone.get(o) for o in set(owners) if o is not None):
                continue
            kept = tuple(
                c for c, (o, r) in enumerate(zip(owners, roots, strict=True)) if o is None or r not in gone.get(o, ())
            )
            parts = _parts(groups, owners, roots)
            layers.setdefault(path, {})[side] = LayerHistory(len(owners), kept, parts)
        return groups, layers


def _parts(
    groups: Mapping[str, GroupHistory], owners: Sequence[str | None], roots: Sequence[int]
) -> tuple[tuple[str | None, int], ...]:
    """A layer's channels as whole coupled groups one after the other; empty if they are not."""
    parts: list[tuple[str | None, int]] = []
    pruned = (o if o in groups else None for o in owners)
    for owner, run in groupby(zip(pruned, roots, strict=True), key=lambda pair: pair[0]):
        own = [root for _, root in run]
        if owner is not None and own != list(range(groups[owner].channels)):
            return ()
        parts.append((owner, len(own)))
    return tuple(parts)


def _root_pruning(graph: tp.DependencyGraph, model: nn.Module, group: GroupHistory) -> tuple[nn.Module, Any]:
    """A coupled group's root layer in a model, and the host's function that prunes its side."""
    try:
        layer = model.get_submodule(group.root)
    except AttributeError:
        raise UnsupportedModelError(DOES_NOT_FIT.format(why=NO_LAYER.format(layer=group.root))) from None
    pruner = graph.get_pruner_of_module(layer)
    if pruner is None or layer not in graph.module2node:
        why = NOT_PRUNABLE.format(layer=group.root, kind=type(layer).__name__)
        raise UnsupportedModelError(DOES_NOT_FIT.format(why=why))
    out = group.side == "outputs"
    width = (pruner.get_out_channels if out else pruner.get_in_channels)(layer)
    if width != group.channels:
        why = OTHER_WIDTH.format(layer=group.root, got=width, side=group.side, expected=group.channels)
        raise UnsupportedModelError(DOES_NOT_FIT.format(why=why))
    return layer, pruner.prune_out_channels if out else pruner.prune_in_channels


def _refuse_other(
    here: Mapping[str, Mapping[Side, LayerHistory]], there: Mapping[str, Mapping[Side, LayerHistory]]
) -> None:
    for path in [*there, *(p for p in here if p not in there)]:
        for side in ("outputs", "inputs"):
            mine, theirs = here.get(path, {}).get(side), there.get(path, {}).get(side)
            if mine == theirs:
                continue
            if mine is not None and theirs is not None and mine.channels != theirs.channels:
                why = OTHER_WIDTH.format(layer=path, got=mine.channels, side=side, expected=theirs.channels)
            else:
                why = OTHER_COUPLING.format(layer=path, side=side)
            raise UnsupportedModelError(DOES_NOT_FIT.format(why=why))


def _numbers(model: nn.Module, couplings: _Couplings) -> dict[str, dict[str, int | float]]:
    """Plain numbers of modules that are no members of coupled groups: the host keeps the members' own."""
    members = {path for path, _ in couplings.members}
    return {path: plain_numbers(m) for path, m in model.named_modules() if path not in members}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: version(name) for name in ("torch-pruning", "fair-prune-plugins")},
    }
