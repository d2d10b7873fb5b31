"""Sizes that a model remembers as plain numbers (``hidden_dim``, ``embed_dim``, ``config.hidden_size``) and that must
follow the widths of its layers.

Which numbers are widths is found out, not guessed: a number that the forward feels is a width of a coupled group only
if, with units of that group removed, the model computes what it computes with their gates closed when the number
follows, and does not when it stays. Numbers that the forward does not feel cannot show what they are; those follow
under the names that models give to the width of their trunk, and no others do. Sizes of attention heads are the
business of :func:`fair_prune_plugins.gates.removal.update_attention_owners`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.gates.attention import SCALE_NAMES
from fair_prune_plugins.gates.calling import ForwardFn, call, output_tensors
from fair_prune_plugins.gates.closing import width_of
from fair_prune_plugins.gates.structure import CoupledGroup, SizeAttribute

TRUNK_NAMES = (
    "embed_dim",
    "embedding_dim",
    "emb_dim",
    "hidden_dim",
    "hidden_size",
    "head_hidden_size",
    "num_features",
    "d_model",
    "n_embd",
)
"""What models call the width of their trunk; followed where the forward does not show what a number is."""

TRIALS = 32
"""Choices of numbers tried per coupled group before it is given up (and refused by its proof)."""

Agrees = Callable[[CoupledGroup], bool]
"""Whether a model with units of the group removed, and the group's sizes updated, computes what closing them does."""


def plain_numbers(module: nn.Module) -> dict[str, int | float]:
    """The numbers of a module that pruning may change, by name: whole ones and scales among its own attributes, and
    ``config.name`` for whole ones of a configuration object.

    Truth values are none, and neither is what hangs on modules, tensors and classes.
    """
    found: dict[str, int | float] = {}
    for name, value in vars(module).items():
        if type(value) is int or (type(value) is float and name in SCALE_NAMES):
            found[name] = value
        elif _is_configuration(value):
            found |= {f"{name}.{n}": v for n, v in vars(value).items() if type(v) is int}
    return found


def _is_configuration(value: Any) -> bool:
    is_object = hasattr(value, "__dict__") and not isinstance(value, type | nn.Module | torch.Tensor)
    return is_object and not callable(value) and not type(value).__module__.startswith("torch")


def set_number(model: nn.Module, path: str, name: str, value: int | float) -> None:
    """Set a plain number as :func:`plain_numbers` names it.

    A configuration is replaced by a changed copy in every module that shares it, so that whoever else holds it (a
    roll-back, another model) keeps what it had.
    """
    holder, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if not holder:
        module.__dict__[own] = value
        return
    before = module.__dict__[holder]
    changed = copy.copy(before)
    changed.__dict__[own] = value
    for m in model.modules():
        for key, held in list(m.__dict__.items()):
            if held is before:
                m.__dict__[key] = changed


def update_sizes(model: nn.Module, sizes: Iterable[SizeAttribute]) -> None:
    """Let remembered sizes follow the widths that the model's layers have now."""
    for size in sizes:
        width = width_of(model.get_submodule(size.layer), output=size.of_output)
        if plain_numbers(model.get_submodule(size.path)).get(size.name) != width:
            set_number(model, size.path, size.name, width)


def with_sizes(
    model: nn.Module,
    inputs: Any,
    groups: Sequence[CoupledGroup],
    agrees: Agrees,
    forward_fn: ForwardFn | None = None,
    handled: Mapping[str, Sequence[str]] | None = None,
) -> list[CoupledGroup]:
    """The coupled groups with the remembered sizes that follow them.

    Args:
        model: a randomised copy that may be run freely; its numbers are changed and put back.
        inputs: example inputs in the copy's dtype.
        groups: groups that units may be removed from.
        agrees: the judge.
        forward_fn: how the model is called, if not plainly.
        handled: names per module path that something else keeps up to date.
    """
    candidates = _candidates(model, groups, handled or {})
    felt = _felt(model, inputs, {(s.path, s.name) for found in candidates.values() for s in found}, forward_fn)
    quiet: dict[tuple[str, str], list[tuple[CoupledGroup, SizeAttribute]]] = {}
    followed: dict[str, tuple[SizeAttribute, ...]] = {}
    for group in groups:
        mine = candidates.get(group.name, [])
        for size in mine:
            if (size.path, size.name) not in felt and size.name in TRUNK_NAMES:
                quiet.setdefault((size.path, size.name), []).append((group, size))
        followed[group.name] = _followed(model, group, [s for s in mine if (s.path, s.name) in felt], agrees)
    for owners in quiet.values():
        # Of several groups of this width the trunk is the one that most layers belong to.
        group, size = max(owners, key=lambda pair: len(pair[0].producers) + len(pair[0].norms) + len(pair[0].consumers))
        followed[group.name] += (size,)
    return [replace(g, sizes=followed[g.name]) for g in groups]


def _candidates(
    model: nn.Module, groups: Sequence[CoupledGroup], handled: Mapping[str, Sequence[str]]
) -> dict[str, list[SizeAttribute]]:
    """Whole numbers of modules that are as large as a member of a group among the module's own layers is wide."""
    widths: dict[str, list[tuple[str, bool, int]]] = {}
    layers: set[str] = set()
    for group in groups:
        for sites, output in ((group.producers, True), (group.attentions, True), (group.consumers, False)):
            for site in sites:
                layers.add(site.path)
                if site.width is not None:  # a layer that only its customised pruner knows
                    continue
                width = width_of(model.get_submodule(site.path), output=output)
                if len(site.channels) == width > 1:  # a part of a concatenation says nothing about the whole
                    widths.setdefault(group.name, []).append((site.path, output, width))
    found: dict[str, list[SizeAttribute]] = {}
    seen: set[tuple[int, str]] = set()
    for path, module in model.named_modules():
        if path in layers or any(path.startswith(f"{layer}.") for layer in layers):
            continue  # the host's pruners keep these themselves
        for name, value in plain_numbers(module).items():
            holder = name.rpartition(".")[0]
            key = (id(module.__dict__[holder]) if holder else id(module), name)
            if type(value) is not int or name in handled.get(path, ()) or key in seen:
                continue
            for group_name, members in widths.items():
                own = ((layer, out) for layer, out, width in members if width == value and _within(layer, path))
                first = next(own, None)
                if first is not None:
                    seen.add(key)
                    found.setdefault(group_name, []).append(SizeAttribute(path, name, *first))
    return found


def _within(layer: str, path: str) -> bool:
    return not path or layer.startswith(f"{path}.")


@contextmanager
def _number(model: nn.Module, path: str, name: str, value: int) -> Iterator[None]:
    holder, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    table = (module.__dict__[holder] if holder else module).__dict__
    before = table[own]
    table[own] = value
    try:
        yield
    finally:
        table[own] = before


@torch.no_grad()
def _felt(
    model: nn.Module, inputs: Any, numbers: set[tuple[str, str]], forward_fn: ForwardFn | None
) -> set[tuple[str, str]]:
    """The numbers that change an output, or break the forward, when they are one more."""
    if not numbers:
        return set()
    expected = output_tensors(call(model, inputs, forward_fn))
    felt = set()
    for path, name in sorted(numbers):
        value = plain_numbers(model.get_submodule(path))[name]
        with _number(model, path, name, int(value) + 1):
            try:
                found = output_tensors(call(model, inputs, forward_fn))
            except Exception:
                felt.add((path, name))
                continue
        if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
            felt.add((path, name))
    return felt


def _followed(
    model: nn.Module, group: CoupledGroup, felt: Sequence[SizeAttribute], agrees: Agrees
) -> tuple[SizeAttribute, ...]:
    """The fewest of these numbers that must follow the group, or none if no choice of them makes the model agree.

    Numbers of one name in modules of one class (the blocks of a transformer) mean the same and are chosen together.
    """
    if not felt or agrees(group):
        return ()
    alike: dict[tuple[type, str], tuple[SizeAttribute, ...]] = {}
    for size in sorted(felt, key=lambda s: s.name not in TRUNK_NAMES):
        key = (type(model.get_submodule(size.path)), size.name)
        alike[key] = (*alike.get(key, ()), size)
    choices = (parts for count in range(1, len(alike) + 1) for parts in combinations(alike.values(), count))
    for _, parts in zip(range(TRIALS), choices, strict=False):
        chosen = tuple(size for part in parts for size in part)
        if agrees(replace(group, sizes=chosen)):
            return chosen
    return ()
