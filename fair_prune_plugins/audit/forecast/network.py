"""A network and its loss as functions of all its weights: gradients, and products of the Hessian with vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call, moved, preserved
from fair_prune_plugins.picking import Source, pick
from fair_prune_plugins.statistics.regrouping import PureBatch
from fair_prune_plugins.statistics.sample_losses import SampleLosses

NO_PARAMETERS = "the model has no floating-point parameters, so it has neither gradient nor Hessian"
NO_OUTPUT = "output={key!r} is not in what the model returns, {have}"
NO_SECOND = "the network cannot be differentiated twice ({error}); pass eigenvalues=False"


class Network:
    """A network and its loss, as functions of all its weights."""

    def __init__(
        self, model: nn.Module, losses: SampleLosses, output: Source | None, forward_fn: ForwardFn | None
    ) -> None:
        self._model, self._losses, self._output, self._forward = model, losses, output, forward_fn
        self._weights = [p for p in model.parameters() if p.is_floating_point()]
        if not self._weights:
            raise InputError(NO_PARAMETERS)
        self.size = sum(p.numel() for p in self._weights)
        self._device, self._dtype = self._weights[0].device, self._weights[0].dtype
        self._number = 0

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model in eval mode with gradients of all weights; handed back as it was."""
        # The other forms of attention have no second derivative.
        with (
            preserved(self._model),
            torch.inference_mode(False),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            self._model.eval()
            for weight in self._weights:
                weight.requires_grad_(True)
            yield

    def gradient(self, batch: PureBatch) -> tuple[float, torch.Tensor]:
        """Sum of the people's losses, and its gradient, float64 ``[weights]`` on the CPU."""
        loss = self._loss(batch)
        found = torch.autograd.grad(loss, self._weights, allow_unused=True)
        return float(loss.detach()), self._flat(found)

    def curvature(self, batch: PureBatch, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian of the sum of the people's losses times a vector, float64 ``[weights]``."""
        pieces = vector.to(self._device, self._dtype).split([p.numel() for p in self._weights])
        first = torch.autograd.grad(self._loss(batch), self._weights, create_graph=True, allow_unused=True)
        along = [
            (g.flatten() * v).sum() for g, v in zip(first, pieces, strict=True) if g is not None and g.requires_grad
        ]
        if not along:
            return torch.zeros(self.size, dtype=torch.float64)
        try:
            second = torch.autograd.grad(torch.stack(along).sum(), self._weights, allow_unused=True)
        except RuntimeError as error:
            raise UnsupportedModelError(NO_SECOND.format(error=str(error).splitlines()[0])) from error
        return self._flat(second)

    def _loss(self, batch: PureBatch) -> torch.Tensor:
        model_inputs, targets = batch.tree
        self._number += 1
        given = moved(model_inputs, device=self._device, dtype=self._dtype)
        returned = call(self._model, given, self._forward)
        outputs = returned if self._output is None else pick(returned, self._output, NO_OUTPUT)
        return self._losses.total(outputs, moved(targets, device=self._device), None, batch.samples, self._number)

    def _flat(self, pieces: Sequence[torch.Tensor | None]) -> torch.Tensor:
        filled = [torch.zeros_like(w) if p is None else p for p, w in zip(pieces, self._weights, strict=True)]
        return torch.cat([p.detach().flatten() for p in filled]).to("cpu", torch.float64)
