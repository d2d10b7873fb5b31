"""One loss per sample, from whatever a user's loss function returns."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, starmap
from typing import Any, Literal

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.statistics.batches import rows

LossFn = Callable[[Any, Any], torch.Tensor]
"""``loss_fn(outputs, targets)``, or ``loss_fn(outputs, batch)`` where targets are read with ``targets=None``."""

Reduction = Literal["auto", "none", "mean", "sum"]

NO_REDUCTION = (
    "the loss is a single number, but neither the mean nor the sum of its samples' losses: it gives {got:.6g} for the "
    "batch, its samples apart have mean {mean:.6g} and sum {total:.6g}. Class weights, ignored targets and batch-wise "
    "terms do that. Return one loss per sample instead (reduction='none')"
)
OTHER_REDUCTION = (
    "reduction={declared!r} was declared, but the loss gives {got:.6g} for the batch where the {declared} of its "
    "samples' losses is {expected:.6g}. Declare what it does, or return one loss per sample (reduction='none')"
)
WRONG_SHAPE = "the loss must be one value per sample ({samples} samples) or a single number, got shape {shape}"
NOT_PER_SAMPLE = "reduction='none' was declared, but the loss is a single number; pass a loss with one value per sample"
WEIGHTED_SCALAR = (
    "sample weights need one loss per sample; the loss returned a single number. Use reduction='none' in the loss"
)
LOSS_FAILED = "the loss failed on batch {batch}: {error}. It was called with outputs {outputs} and {targets}.{hint}"
STRUCTURED_HINT = (
    " The model returns {kind}: pass output= a key, an index or a callable that takes the logits out of it, or a loss "
    "that does."
)
NOT_FINITE = (
    "the loss is not finite on batch {batch} (samples {samples} of it): check these inputs and targets, or the "
    "model's outputs there"
)
NOT_IN_PARTS = (
    "the loss is a single number, and to check what it is of its samples' losses it was called with parts of the "
    "batch, where it fails: {error}. Return one loss per sample (reduction='none')"
)
NOT_DIFFERENTIABLE = (
    "the loss does not depend on any gate: is it detached, or computed from something else than the model's outputs?"
)


class SampleLosses:
    """Calls a loss so that every sample counts once, and checks a declared reduction on the first batch it can be
    checked on.

    Args:
        loss_fn: returns ``[N]``, ``[N, ...]`` (averaged over all but the samples), or a single number.
        reduction: what a single number is of the samples' losses. ``"auto"`` takes the loss's own ``reduction``
            attribute if it has one, and otherwise whichever of mean and sum the check finds.
    """

    def __init__(self, loss_fn: LossFn, reduction: Reduction = "auto") -> None:
        if reduction not in ("auto", "none", "mean", "sum"):
            raise InputError(f"reduction must be 'auto', 'none', 'mean' or 'sum', got {reduction!r}")
        self.loss_fn = loss_fn
        declared = getattr(loss_fn, "reduction", "auto") if reduction == "auto" else reduction
        self.declared: str = declared if declared in ("none", "mean", "sum") else "auto"
        self._scale: str | None = None

    def total(self, outputs: Any, targets: Any, weights: torch.Tensor | None, samples: int, batch: int) -> torch.Tensor:
        """The sum of the samples' losses, ready for a backward pass.

        Args:
            outputs: the model's outputs.
            targets: what the loss takes beside them.
            weights: float64 ``[samples]``, or ``None``.
            samples: number of samples in the batch.
            batch: number of the batch, for messages.

        Raises:
            InputError: the loss fails, is not finite, has a wrong shape, or is not reduced as declared.
        """
        try:
            loss = self.loss_fn(outputs, targets)
        except InputError:
            raise
        except Exception as error:
            kind = type(outputs).__name__
            hint = "" if isinstance(outputs, torch.Tensor) else STRUCTURED_HINT.format(kind=f"a {kind}")
            message = LOSS_FAILED.format(
                batch=batch,
                error=f"{type(error).__name__}: {error}",
                outputs=_describe(outputs),
                targets=_describe(targets),
                hint=hint,
            )
            raise InputError(message) from error
        if not isinstance(loss, torch.Tensor):
            raise InputError(f"the loss must be a tensor, got {type(loss).__name__}")
        if not loss.requires_grad:
            raise InputError(NOT_DIFFERENTIABLE)
        if loss.ndim == 0:
            if self.declared == "none":
                raise InputError(NOT_PER_SAMPLE)
            if weights is not None:
                raise InputError(WEIGHTED_SCALAR)
            if not torch.isfinite(loss):
                self._refuse_infinite(self._parts(outputs, targets, samples, samples), batch)
                self._refuse_infinite(loss.detach().expand(samples), batch)
            if samples > 1:
                # One by one at first; later in halves, which is as good as free and notices ignored targets and class
                # weights that the first batch had none of.
                parts = samples if self._scale is None else 2
                self._scale = self._check(float(loss.detach()), outputs, targets, samples, parts)
            return loss * samples if (self._scale or self.declared) != "sum" else loss
        if loss.shape[0] != samples:
            raise InputError(WRONG_SHAPE.format(samples=samples, shape=tuple(loss.shape)))
        losses = loss.flatten(1).mean(1) if loss.ndim > 1 else loss
        self._refuse_infinite(losses.detach(), batch)
        return (losses if weights is None else losses * weights.to(losses)).sum()

    def _refuse_infinite(self, losses: torch.Tensor, batch: int) -> None:
        finite = torch.isfinite(losses)
        if not finite.all():
            raise InputError(NOT_FINITE.format(batch=batch, samples=(~finite).nonzero().flatten().tolist()[:10]))

    @torch.no_grad()
    def _parts(self, outputs: Any, targets: Any, samples: int, parts: int) -> torch.Tensor:
        """The loss of ``parts`` slices of the batch, float64."""
        cuts = [samples * k // parts for k in range(parts + 1)]
        which = list(starmap(slice, pairwise(cuts)))
        slices = [(rows(outputs, samples, part), rows(targets, samples, part)) for part in which]
        try:
            return torch.tensor([float(self.loss_fn(o, t)) for o, t in slices], dtype=torch.float64)
        except Exception as error:
            raise InputError(NOT_IN_PARTS.format(error=f"{type(error).__name__}: {error}")) from error

    def _check(self, got: float, outputs: Any, targets: Any, samples: int, parts: int) -> str | None:
        """What the loss is of its samples' losses; ``None`` if all are zero, which cannot tell."""
        values = self._parts(outputs, targets, samples, parts)
        sizes = torch.tensor([samples * (k + 1) // parts - samples * k // parts for k in range(parts)])
        expected = {"mean": float((values * sizes).sum()) / samples, "sum": float(values.sum())}
        close = {k: abs(got - v) <= 1e-3 * max(abs(v), abs(got), 1e-12) for k, v in expected.items()}
        if not any(close.values()):
            raise InputError(NO_REDUCTION.format(got=got, mean=expected["mean"], total=expected["sum"]))
        if all(close.values()):
            return self._scale
        found = next(name for name, fits in close.items() if fits)
        known = self.declared if self.declared != "auto" else self._scale or found
        if found != known:
            raise InputError(OTHER_REDUCTION.format(declared=known, got=got, expected=expected[known]))
        return known


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        text = f"{value.dtype} of shape {tuple(value.shape)}".removeprefix("torch.")
        if not value.is_floating_point() and value.numel():
            text += f" with values {value.min()} to {value.max()}"
        return text
    if isinstance(value, dict):
        return f"a {type(value).__name__} with keys {sorted(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
