"""A training run of somebody else's making that leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn


def harmless(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """A loss of the same value, whose backward pass gives every trainable parameter a gradient of zeros.

    Loops that scale, clip or log gradients find what they expect.
    """
    zero = torch.zeros((), device=loss.device)
    for p in model.parameters():
        if p.requires_grad and p.numel():
            zero = zero + (p.flatten()[0] * 0).nan_to_num().to(zero)
    if not zero.requires_grad:
        zero.requires_grad_(True)
    return loss.detach().mean() + zero


@contextmanager
def nothing_trained(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Hand a model back as it was: parameters and buffers to the bit, ``.grad`` and modes.

    Optimizers step meanwhile (Lightning runs the training step inside of that), if only by weight decay and momentum.

    Yields:
        Puts parameters and buffers back at once; to be called before they are looked at.
    """
    before = {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    for p, _ in gradients:
        p.grad = None
    try:
        yield partial(_put_back, model, before)
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        for m, training in modes:
            m.training = training
        _put_back(model, before)


def _put_back(model: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    for name, now in (*model.named_parameters(), *model.named_buffers()):
        then = before.get(name)
        if then is not None and then.shape == now.shape:
            # Behind autograd's back: a loop may have terms of its own in a graph that it has yet to go through.
            now.data.copy_(then)
