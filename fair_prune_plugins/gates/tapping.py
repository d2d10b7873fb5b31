"""Measuring gates: per sample and unit, the derivative of the loss by the unit's gate, from one ordinary backward pass.

``s[n, u] = sum over consumers and positions of x * dL_n/dx`` (x the consumer's input), read through an alias of ``x``
that only that consumer sees. Parameters take no part: only activations carry gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.gates.attention import multihead_attention
from fair_prune_plugins.gates.closing import channel_dim, replaced_forward, width_at, with_first_input
from fair_prune_plugins.gates.plan import GatePlan
from fair_prune_plugins.gates.structure import CoupledGroup, Site


@dataclass(frozen=True)
class _Route:
    """From a site's channels to columns of the measurement.

    ``channels`` is sorted by column and every column of a route has equally many channels, so that summing is a
    reshape: exact to repeat on every device, which scattering is not.
    """

    channels: torch.Tensor | None  # None: all of them, in order
    columns: slice | torch.Tensor
    repeat: int


def _routes(site_channels: torch.Tensor, units: torch.Tensor, offset: int, width: int) -> list[_Route]:
    """Routes for channels that belong to ``units``; several if the units have different numbers of channels here."""
    routes = []
    counts = torch.bincount(units)
    for repeat in counts[counts > 0].unique().tolist():
        mine = counts[units] == repeat
        channels, of = site_channels[mine], units[mine]
        order = torch.argsort(of * (width + 1) + channels)
        channels, of = channels[order], of[order]
        columns = of[::repeat] + offset
        whole = repeat == 1 and torch.equal(channels, torch.arange(width))
        run = bool((columns.diff() == 1).all())
        routes.append(
            _Route(
                None if whole else channels,
                slice(int(columns[0]), int(columns[-1]) + 1) if run else columns,
                int(repeat),
            )
        )
    return routes


class GateMeter:
    """Measures every gate of a plan while the model runs.

    Attributes:
        plan: the gate plan.
        columns: unit-set name to ``(first column, size)`` in the measurement.
        width: number of columns.
    """

    def __init__(self, plan: GatePlan) -> None:
        self.plan = plan
        self.columns: dict[str, tuple[int, int]] = {}
        self.width = 0
        for name, units in plan.units.items():
            self.columns[name] = (self.width, units.size)
            self.width += units.size
        self._inputs: dict[str, list[_Route]] = {}
        self._outputs: dict[str, list[_Route]] = {}
        self._attentions: dict[str, list[_Route]] = {}
        for group in plan.prunable:
            self._add(group)
        self._values = torch.zeros(0, self.width)
        self._anchor = torch.zeros(())
        self._scratch = torch.zeros(0)
        self.copies = False

    def _add(self, group: CoupledGroup) -> None:
        for site in group.consumers:
            self._extend(self._inputs, group, site, output=False)
        for site in group.attentions:
            self._extend(self._attentions, group, site, output=True)
        producers = {s.path: s for s in group.producers}
        norms = {s.path: s for s in group.norms}
        for contraction in self.plan.contractions:
            if contraction.producer in producers:
                site = producers[contraction.producer].within(contraction.channels)
                self._extend(self._outputs, group, site, output=True)
            elif contraction.producer in norms:
                # A norm over head dimensions is one for all heads: its channels say nothing about single heads.
                site = norms[contraction.producer].within(contraction.channels)
                one = len(site.channels) < len(norms[contraction.producer].channels)
                self._extend(self._outputs, group, site, output=True, whole_heads=not one)

    def _extend(
        self, table: dict[str, list[_Route]], group: CoupledGroup, site: Site, *, output: bool, whole_heads: bool = True
    ) -> None:
        width = width_at(self.plan.model, site, output=output)
        for units in group.unit_sets:
            if units.kind == "heads" and not whole_heads:
                continue
            offset, _ = self.columns[units.name]
            table.setdefault(site.path, []).extend(_routes(site.channels, units.of_root[site.roots], offset, width))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the taps in the model until the context ends."""
        model = self.plan.model
        with ExitStack() as stack:
            for path, routes in self._inputs.items():
                module = model.get_submodule(path)
                hook = self._input_hook(path, routes, channel_dim(module))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for path, routes in self._outputs.items():
                module = model.get_submodule(path)
                stack.callback(
                    module.register_forward_hook(self._output_hook(path, routes, channel_dim(module))).remove
                )
            for path, routes in self._attentions.items():
                module = model.get_submodule(path)
                assert isinstance(module, nn.MultiheadAttention)
                gate = partial(self._attention_gate, path, routes)
                head_dim = module.embed_dim // module.num_heads
                stack.enter_context(replaced_forward(module, partial(multihead_attention, module, gate, head_dim)))
            yield

    @property
    def anchor(self) -> torch.Tensor:
        """What every gate hangs on: a backward pass ends here, and a loss that depends on any gate has a gradient."""
        return self._anchor

    def start(self, samples: int, device: torch.device) -> None:
        """Begin a batch of ``samples``."""
        self._values = torch.zeros(samples, self.width, dtype=torch.float64, device=device)
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def finish(self) -> torch.Tensor:
        """The batch's measurement, float64 ``[samples, columns]``, after its backward pass."""
        values, self._values = self._values, torch.zeros(0, self.width)
        return values

    def _input_hook(self, path: str, routes: Sequence[_Route], dim: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_first_input(args, kwargs, lambda x: self._tap(path, x, routes, dim))

        return hook

    def _output_hook(self, path: str, routes: Sequence[_Route], dim: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            alias = self._tap(path, output, routes, dim)
            # Queries are often scaled in place, which autograd refuses on the alias.
            return alias.clone() if self.copies else alias

        return hook

    def _attention_gate(self, path: str, routes: Sequence[_Route], point: str, x: torch.Tensor) -> torch.Tensor:
        return x if point == "output" else self._tap(path, x, routes, -1)

    def _tap(self, path: str, x: torch.Tensor, routes: Sequence[_Route], dim: int) -> torch.Tensor:
        alias: torch.Tensor = _Tap.apply(x, self._anchor, self, routes, dim)  # type: ignore[no-untyped-call]
        return alias

    def record(self, x: torch.Tensor, gradient: torch.Tensor, routes: Sequence[_Route], dim: int) -> None:
        """Add one site's contribution: the product summed over positions, then over each unit's channels."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x, gradient = x.float(), gradient.float()
        dim = dim % x.ndim
        product = self._product(x, gradient)
        positions = [d for d in range(1, x.ndim) if d != dim]
        per_channel = (product.sum(positions) if positions else product).double()
        for route in routes:
            part = per_channel if route.channels is None else per_channel[:, route.channels.to(x.device)]
            if route.repeat > 1:
                part = part.reshape(part.shape[0], -1, route.repeat).sum(2)
            columns = route.columns if isinstance(route.columns, slice) else route.columns.to(x.device)
            self._values[:, columns] += part

    def _product(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """``x * gradient``, in memory that is kept from site to site: fresh pages would cost as much as the product."""
        if not (x.is_contiguous() and gradient.is_contiguous()):
            return x * gradient
        size = x.numel()
        if self._scratch.numel() < size or self._scratch.dtype != x.dtype or self._scratch.device != x.device:
            self._scratch = torch.empty(size, dtype=x.dtype, device=x.device)
        return torch.mul(x, gradient, out=self._scratch[:size].view(x.shape))


class _Tap(torch.autograd.Function):
    """The identity; on the way back it hands the input and its gradient to the meter.

    The anchor makes the output differentiable where nothing before it is, so that the backward pass ends at the
    first gate.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, meter: GateMeter, routes: Any, dim: int
    ) -> torch.Tensor:
        # A copy is needed only where the network later overwrites x in place; autograd notices if it does. The consumer
        # gets it too: convolutions remember what they read.
        alias = x.clone() if meter.copies else x.view_as(x)
        ctx.save_for_backward(alias if meter.copies else x)
        ctx.meter, ctx.routes, ctx.dim = meter, routes, dim
        return alias

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.meter.record(x, gradients[0], ctx.routes, ctx.dim)
        at_anchor = torch.zeros((), device=x.device)
        return gradients[0] if ctx.needs_input_grad[0] else None, at_anchor, None, None, None
