"""A model's structure and what is alive in it, from runs on values that only say "alive"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call, output_tensors
from fair_prune_plugins.gates.removal import build_graph
from fair_prune_plugins.nni.function_modes import NoDropout, ZeroStaysZero
from fair_prune_plugins.nni.links import PRODUCERS, Links
from fair_prune_plugins.nni.liveness import Liveness, only_live_values, removing, without_zeros
from fair_prune_plugins.nni.masks import NORMS, Masks

FORWARD_FAILED = (
    "the model fails on dummy_input: {error}. Pass what its forward takes: a tensor, a tuple or list of positional or "
    "a dict of keyword arguments; it was given {shapes}"
)


@dataclass(frozen=True)
class Traced:
    """What runs of a model showed.

    Attributes:
        graph: the host's dependency graph.
        liveness: what is alive under the masks.
        links: what the masks leave of the layers' weights.
        in_training: layers run only in training mode (auxiliary heads), and the graph has them.
    """

    graph: tp.DependencyGraph
    liveness: Liveness
    links: Links
    in_training: bool


def trace(model: nn.Module, masks: Masks, inputs: Any, forward_fn: ForwardFn | None) -> Traced:
    """Read a model's structure.

    Layers that run in training mode only are part of it: the smaller model must train as well.

    Args:
        model: in eval mode, with the masks multiplied into its parameters.
        masks: what is masked.
        inputs: what it is called with.
        forward_fn: how it is called, if not plainly.

    Raises:
        InputError: the model fails on ``inputs``.
        UnsupportedModelError: the structure cannot be read.
    """
    links = Links({m: mask.parameters["weight"] for m, mask in masks.items() if "weight" in mask.parameters})
    traced = Traced(*_one_trace(model, masks, links, inputs, forward_fn, training=False), links, in_training=False)
    layers = {m for m in model.modules() if isinstance(m, (*PRODUCERS, *NORMS))}
    seen = {*traced.liveness.outputs, *traced.liveness.norms}
    if layers <= seen:
        return traced
    ran: set[nn.Module] = set()
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(removing(layer.register_forward_hook(lambda m, *_: ran.add(m))))
        try:
            with torch.no_grad():
                as_in_training(model, inputs, forward_fn)
            if not ran > seen:
                return traced
            graph, liveness = _one_trace(model, masks, links, inputs, forward_fn, training=True)
        except Exception:  # training needs what the example inputs do not have, targets for instance
            return traced
    return Traced(graph, liveness, links, in_training=True)


def liveness_behind_functions(
    model: nn.Module, masks: Masks, traced: Traced, inputs: Any, forward_fn: ForwardFn | None
) -> Liveness:
    """What is alive if no function of one tensor makes something of nothing; see :class:`ZeroStaysZero`."""
    called = as_in_training if traced.in_training else call
    with torch.no_grad(), only_live_values(model, masks, traced.links) as liveness, ZeroStaysZero():
        called(model, without_zeros(inputs), forward_fn)
    return liveness


def as_in_training(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> Any:
    """Call ``model`` so that it takes the branches of training, but nothing is random and norms learn nothing."""
    with _owners_training(model), NoDropout():
        return call(model, inputs, forward_fn)


@contextmanager
def _owners_training(model: nn.Module) -> Iterator[None]:
    """Modules that have modules in training mode, all others as they are."""
    before = [(m, m.training) for m in model.modules() if next(m.children(), None) is not None]
    try:
        for module, _ in before:
            module.training = True
        yield
    finally:
        for module, training in before:
            module.training = training


def _one_trace(
    model: nn.Module, masks: Masks, links: Links, inputs: Any, forward_fn: ForwardFn | None, *, training: bool
) -> tuple[tp.DependencyGraph, Liveness]:
    failures: list[Exception] = []

    def forward(model: nn.Module, inputs: Any) -> Any:
        try:
            return (as_in_training if training else call)(model, inputs, forward_fn)
        except Exception as error:
            failures.append(error)
            raise

    with only_live_values(model, masks, links) as liveness:
        try:
            graph = build_graph(model, without_zeros(inputs), forward_fn=forward)
        except UnsupportedModelError as error:
            if not failures:
                raise
            if isinstance(failures[0], InputError):
                raise failures[0] from error
            shapes = [f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in output_tensors(inputs)]
            reason = f"{type(failures[0]).__name__}: {failures[0]}"
            raise InputError(FORWARD_FAILED.format(error=reason, shapes=", ".join(shapes) or "no tensor")) from error
    return graph, liveness
