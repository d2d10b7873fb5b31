"""Which widths a pruner keeps, and which coupled groups it leaves outside the runtime's fast layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import CoupledGroup
from fair_prune_plugins.latency.alignment import Alignment, alignment_for
from fair_prune_plugins.torch_pruning.choices import Choice

logger = logging.getLogger(__name__)

BAD_ROUND_TO = (
    "round_to must be a positive number of channels, 'auto' (widths that ONNX Runtime rewards on this machine), an "
    "Alignment, or None for any width; got {got!r}"
)
AS_ASKED = "as asked"
"""Source of an alignment that is a mere number."""


def alignment_of(round_to: Any) -> Alignment | None:
    """What ``round_to`` means.

    Raises:
        InputError: it means nothing.
    """
    if round_to is None or isinstance(round_to, Alignment):
        return round_to
    if round_to == "auto":
        try:
            return alignment_for()
        except InputError as error:
            logger.warning("widths are kept as they come: %s", error)
            return None
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise InputError(BAD_ROUND_TO.format(got=round_to))
    return Alignment(round_to, round_to, f"round_to={round_to}", AS_ASKED)


def judged_by(alignment: Alignment | None) -> Alignment:
    """The alignment that widths are judged by: the one asked for, or what is known of this machine."""
    if alignment is not None and alignment.source != AS_ASKED:
        return alignment
    try:
        return alignment_for(measure=False)
    except InputError:
        return Alignment(1, 1, "a machine of which nothing is known", AS_ASKED)


def misaligned(model: nn.Module, choices: Sequence[Choice], runtime: Alignment) -> tuple[str, ...]:
    """Coupled groups that the choices leave at a width outside the runtime's fast layout, by name."""
    found = []
    for choice in choices:
        width = choice.group.channels - len(choice.removed_roots())
        members = _convolutions(model, choice.group)
        # A dense convolution of less than a block of channels is in the layout at any width.
        matters = members and (width >= runtime.block or any(map(_is_depthwise, members)))
        if width % runtime.grain and matters:
            found.append(choice.group.name)
    return tuple(found)


def has_conv_groups(model: nn.Module, group: CoupledGroup) -> bool:
    """Whether a member is a convolution with conv groups (depthwise ones have none)."""
    return any(m.groups > 1 and not _is_depthwise(m) for m in _convolutions(model, group))


def _convolutions(model: nn.Module, group: CoupledGroup) -> list[nn.modules.conv._ConvNd]:
    modules = (model.get_submodule(site.path) for site in (*group.producers, *group.consumers))
    return [m for m in modules if isinstance(m, nn.modules.conv._ConvNd)]


def _is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups == module.out_channels > 1
