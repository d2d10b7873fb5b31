"""Units that are masked by every layer that makes them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fair_prune_plugins.nni.following import CoupledChannels, Side
from fair_prune_plugins.nni.links import PRODUCERS, Links, passes_through
from fair_prune_plugins.nni.liveness import Liveness


def masked_by_all_makers(coupled: CoupledChannels, links: Links, behind: Liveness | None) -> NDArray[np.bool_]:
    """Which units no layer makes anything of.

    A depthwise convolution makes no units, it only passes them on; with ``behind``, it must have nothing to pass on. A
    unit that a bare parameter is part of is made by that as well.

    Args:
        coupled: coupled channels of the model.
        links: what the masks leave of the layers' weights.
        behind: what is alive if functions make nothing of nothing.

    Returns:
        bool ``[roots]``.
    """
    masked, open_somewhere = np.zeros((2, len(coupled.group)), bool)
    for side, layer in _makers(coupled.sides):
        closed = links.masked_outputs(layer).cpu().numpy()
        if passes_through(layer):
            alive = None if behind is None else behind.outputs.get(layer)
            closed = closed | (behind is None if alive is None else ~alive.cpu().numpy())
        here = closed[side.channels]
        masked[side.roots[here]] = True
        open_somewhere[side.roots[~here]] = True
    for side in coupled.sides:
        if isinstance(side.module, nn.Parameter):
            open_somewhere[side.roots] = True
    return np.logical_and(masked, ~open_somewhere)


def _makers(sides: Iterable[Side]) -> list[tuple[Side, nn.Module]]:
    return [(side, side.module) for side in sides if side.is_output and isinstance(side.module, PRODUCERS)]
