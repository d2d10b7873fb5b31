"""Whether a pruned model runs, and is what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates import UnitSet
from fair_prune_plugins.gates.calling import ForwardFn, call, copied, output_tensors
from fair_prune_plugins.torch_pruning.step_report import WidthReport

DRY_RUN = "the pruned model does not run ({error}); the model was put back as it was before this step"
SHAPES = "pruning changed the shapes of the model's outputs from {before} to {after}"
NOT_ACHIEVED = "{layer!r} has {got} channels after the step where {expected} were to stay"


@torch.no_grad()
def output_shapes(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> list[torch.Size]:
    """Shapes of all output tensors, from a forward of a copy in eval mode."""
    twin = copied(model).eval()
    return [t.shape for t in output_tensors(call(twin, inputs, forward_fn))]


def check_pruned(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None, expected: list[torch.Size]) -> None:
    """Run a copy of the pruned model.

    Raises:
        UnsupportedModelError: it fails, or its outputs have other shapes than before.
    """
    try:
        after = output_shapes(model, inputs, forward_fn)
    except Exception as error:
        raise UnsupportedModelError(DRY_RUN.format(error=f"{type(error).__name__}: {error}")) from error
    if after != expected:
        before_text, after_text = ([tuple(shape) for shape in part] for part in (expected, after))
        raise UnsupportedModelError(DRY_RUN.format(error=SHAPES.format(before=before_text, after=after_text)))


def check_widths(now: Mapping[str, UnitSet], rows: Sequence[WidthReport]) -> None:
    """Compare achieved widths with decided ones.

    Args:
        now: unit sets of all coupled groups of the pruned model, by name.
        rows: what was decided.

    Raises:
        UnsupportedModelError: they differ.
    """
    for row in rows:
        got = now[row.name].size if row.name in now else (1 if row.kept == 1 else 0)
        if got != row.kept:
            raise UnsupportedModelError(
                DRY_RUN.format(error=NOT_ACHIEVED.format(layer=row.name, got=got, expected=row.kept))
            )
