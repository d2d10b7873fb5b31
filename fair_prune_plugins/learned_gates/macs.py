"""Multiply-accumulates of a gated network, differentiable by its gates.

A layer between two coupled groups costs in proportion to the product of what is open on both its sides; norms,
activations and poolings in proportion to what is open of the channels they see. Which gates a layer's two sides hang on
is read from the gate plan (a residual sum is one coupled group, whatever order its layers come in), and for what has no
weights from the autograd graph of one forward pass. With gates of 0 and 1 this is what Torch-Pruning counts for the
pruned network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch_pruning.utils import op_counter

from fair_prune_plugins.gates import CoupledGroup, GatePlan, Site
from fair_prune_plugins.gates.calling import call, copied, resized
from fair_prune_plugins.gates.closing import width_at, width_of
from fair_prune_plugins.learned_gates.sites import Columns, channel_factor, channel_index

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)

Index = tuple[torch.Tensor, ...]
"""For each unit set, the gate of every channel; see :class:`~fair_prune_plugins.learned_gates.sites.GateSite`."""


@dataclass(frozen=True)
class _Term:
    """``macs`` times the product, over ``sides``, of the open share of the side's channels."""

    macs: float
    sides: tuple[Index, ...]


@dataclass(frozen=True)
class _Call:
    """One call of a module that the host counts.

    Attributes:
        path: the module's.
        module: of a copy of the model.
        macs: of the call.
        source: autograd node of what it read.
        node: autograd node of what it made, before anything changed that in place.
        shape: of what it made.
    """

    path: str
    module: nn.Module
    macs: float
    source: Any
    node: Any
    shape: torch.Size


class GatedMacs:
    """``gated(gates)``: MACs of one sample, as Torch-Pruning counts them, of the network with these gates.

    Args:
        plan: the model's gate plan; the model is left as it is.
        columns: of the gates; see :class:`~fair_prune_plugins.learned_gates.LearnedGates`.
        example_inputs: what the model is called with.

    Attributes:
        dense: MACs with all gates at 1.
        fixed: modules whose cost does not follow any gate here although a pruned network may be cheaper there.
    """

    def __init__(self, plan: GatePlan, columns: Columns, example_inputs: Any) -> None:
        self._columns = columns
        self._none = sum(size for _, size in columns.values())
        self._inputs: dict[str, Index] = {}
        self._outputs: dict[str, Index] = {}
        self._attentions: dict[str, Index] = {}
        for group in plan.prunable:
            if group.units.name in columns:
                self._add(plan.model, group)
        self.fixed: list[str] = []
        calls = list(_calls(plan, example_inputs))
        # What a layer with weights puts out is known; everything else is traced back to such a layer.
        known = {c.node: self._made_by(c) for c in calls if isinstance(c.module, WEIGHTED)}
        trace = _Trace(known)
        self._terms = [t for c in calls for t in self._terms_of(c, trace)]
        self.dense = sum(t.macs for t in self._terms)

    def __call__(self, gates: torch.Tensor) -> torch.Tensor:
        """MACs, a float64 scalar on the CPU.

        Args:
            gates: ``[columns]``, each in [0, 1].
        """
        gates = gates.double().cpu()
        shares: dict[Index, torch.Tensor] = {}
        total = gates.new_zeros(())
        for term in self._terms:
            product = gates.new_full((), term.macs)
            for side in term.sides:
                if side not in shares:
                    shares[side] = channel_factor(side, gates).mean()
                product = product * shares[side]
            total = total + product
        return total

    def _add(self, model: nn.Module, group: CoupledGroup) -> None:
        def extend(table: dict[str, Index], site: Site, *, output: bool) -> None:
            index = channel_index(site, group, self._columns, width_at(model, site, output=output))
            table[site.path] = (*table.get(site.path, ()), *index)

        for site in group.consumers:
            extend(self._inputs, site, output=False)
        for site in (*group.producers, *group.norms):
            module = model.get_submodule(site.path)
            if isinstance(module, WEIGHTED):
                extend(self._outputs, site, output=True)
        for site in group.attentions:
            extend(self._attentions, site, output=True)

    def _made_by(self, made: _Call) -> Index:
        width = width_of(made.module, output=True)
        return self._outputs.get(made.path, (torch.full((width,), self._none),))

    def _terms_of(self, made: _Call, trace: _Trace) -> Iterator[_Term]:
        module = made.module
        if isinstance(module, WEIGHTED):
            out = self._made_by(made)
            reads = self._inputs.get(made.path)
            # A depthwise convolution's inputs go with its outputs: it has one side.
            sides = (out,) if reads is None else (out, reads)
            bias = _bias_macs(made)
            yield _Term(made.macs - bias, sides)
            if bias:
                yield _Term(bias, (out,))
        elif isinstance(module, nn.MultiheadAttention):
            yield from self._attention_terms(made)
        else:
            index = trace.of(made.source)
            if index is None:
                self.fixed.append(made.path)
            yield _Term(made.macs, () if index is None else (index,))

    def _attention_terms(self, made: _Call) -> Iterator[_Term]:
        """The host's count by powers of the width: the projections go with its square, the softmax with no power."""
        index = self._attentions.get(made.path)
        module = made.module
        assert isinstance(module, nn.MultiheadAttention)
        if index is None:
            yield _Term(made.macs, ())
            return
        batch_first = module.batch_first
        length = made.shape[1 if batch_first else 0]
        square = 4.0 * length * module.embed_dim**2
        constant = float(module.num_heads * length**2)
        yield _Term(square, (index, index))
        yield _Term(constant, ())
        yield _Term(made.macs - square - constant, (index,))


def _bias_macs(made: _Call) -> float:
    """What the host counts for the bias, which does not depend on the inputs' width."""
    if getattr(made.module, "bias", None) is None:
        return 0.0
    if isinstance(made.module, nn.Linear):
        return float(made.module.out_features)
    return float(made.shape[1:].numel())


def _calls(plan: GatePlan, example_inputs: Any) -> Iterator[_Call]:
    """The calls of a forward pass of one sample that the host counts, on a copy of the model."""
    model = copied(plan.model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    found: list[_Call] = []
    sources: list[Any] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
        # Before the module runs: one that works in place changes what its input hangs on.
        sources.append(args[0].grad_fn if args and isinstance(args[0], torch.Tensor) else None)

    def after(path: str, module: Any, args: Any, output: Any) -> None:
        module.__flops__ = 0
        op_counter.MODULES_MAPPING[type(module)](module, args, output)
        tensor = output[0] if isinstance(output, tuple) else output
        found.append(_Call(path, module, float(module.__flops__), sources.pop(), tensor.grad_fn, tensor.shape))

    for path, module in _counted(model):
        module.register_forward_pre_hook(before)

        def counted(m: nn.Module, a: Any, o: Any, path: str = path) -> None:
            after(path, m, a, o)

        module.register_forward_hook(counted)
    with torch.enable_grad():
        call(model, resized(example_inputs, 1), plan.forward_fn)
    yield from found


def _counted(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that the host counts as a whole, without what is inside of them."""
    if op_counter.is_supported_instance(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _counted(child, f"{path}.{name}" if path else name)


class _Trace:
    """Finds which channels a tensor has, by going back through what made it.

    Args:
        known: autograd node to the channels of what it made.
    """

    def __init__(self, known: dict[Any, Index]) -> None:
        self._known: dict[Any, Index | None] = dict(known)

    def of(self, node: Any) -> Index | None:
        """Channels of the tensor that ``node`` made; ``None`` if they are of no layer with weights."""
        waiting = [node]
        while waiting:
            top = waiting[-1]
            if top is None or top in self._known:
                waiting.pop()
                continue
            before = [n for n, _ in top.next_functions if n is not None]
            missing = [n for n in before if n not in self._known]
            if missing:
                waiting.extend(missing)
                continue
            parts = [index for n in before if (index := self._known[n]) is not None]
            if not parts:
                self._known[top] = None
            elif type(top).__name__.startswith("Cat"):
                self._known[top] = _side_by_side(parts)
            else:
                self._known[top] = parts[0]
            waiting.pop()
        return None if node is None else self._known[node]


def _side_by_side(parts: list[Index]) -> Index:
    """Channels of a concatenation. Parts of one coupled group have the same number of unit sets as the group."""
    most = max(len(p) for p in parts)
    if any(len(p) != most for p in parts):
        return parts[0]
    return tuple(torch.cat([p[i] for p in parts]) for i in range(most))
