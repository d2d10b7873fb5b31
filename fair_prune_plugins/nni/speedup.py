"""Masks in, structurally smaller model out: what NNI's ``ModelSpeedup`` is for, on today's torch."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import ForwardFn
from fair_prune_plugins.nni.masks import load_masks
from fair_prune_plugins.nni.realising import realise
from fair_prune_plugins.nni.speedup_report import NormShift, SpeedupReport

_logger = logging.getLogger(__name__)

WRONG_SHIFT = "norm_shift must be 'drop' or 'fold', got {got!r}"
REFUSED = (
    "{name} has no meaning here: which units go is derived from the model's structure, not inferred from values, and "
    "every layer type is made narrower in the same way. Leave it out"
)


NOT_NEEDED = ("TransformersAttentionReplacer",)
"""What NNI needs for heads of attention, by name, because importing it takes the whole of transformers."""


class ModelSpeedup:
    """Drop-in for ``nni.compression.speedup.ModelSpeedup``: makes the masks' zeros structure, in place.

    A unit goes when nothing is left of it wherever it is read: it is masked in all layers that make it, or all its
    readers ignore it. Masks that do not become structure stay as zeros in the weights (NNI's own forgets
    them). Narrower parameters are new objects, so an optimizer must be made anew, as with NNI. What was done is in
    :attr:`report`.

    Closing a masked convolution leaves the shift of the norm behind it (``beta - mean * gamma / std``), so a model
    with masks and the smaller model are equal only if the norm is masked as well. ``norm_shift="drop"`` lets these
    constants go with the units, which is what NNI's own does in effect; ``"fold"`` puts them into the biases of the
    layers that read them wherever that is exact: where the unit is constant on the dummy input and on a random one,
    and the layer pads with no zeros. The same holds for what functions make of masked units (``sigmoid(0)``). The
    report has what was folded, what was dropped, and the measured difference. Layers that run in training mode only
    (auxiliary heads) become narrower as well, where training needs no other inputs.

    Args:
        model: the model that was pruned, after ``pruner.unwrap_model()``. Modules stay the objects that they are.
        dummy_input: a tensor, a tuple or list of positional or a dict of keyword arguments.
        masks_or_file: ``{module: {target: mask}}``, or the path of a file that ``torch.save`` wrote.
        map_location: for the file, as of ``torch.load``.
        batch_dim: accepted; nothing is inferred from samples here.
        batch_size: likewise.
        customized_mask_updaters: must be empty; they correct an inference that is not made here.
        customized_replacers: must be empty, but for ``TransformersAttentionReplacer``: heads are understood without it.
        graph_module: accepted; the structure is read off autograd and needs no trace.
        garbage_collect_values: accepted; nothing is cached.
        logger: for the warnings.
        norm_shift: ``"drop"`` or ``"fold"``.

    Attributes:
        report: :class:`SpeedupReport`; ``None`` before :meth:`speedup_model`.

    Raises:
        InputError: masks that are none, or an argument that cannot mean anything here.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        masks_or_file: Any,
        map_location: Any = None,
        batch_dim: int = 0,
        batch_size: int = 8,
        customized_mask_updaters: list[Any] | None = None,
        customized_replacers: list[Any] | None = None,
        graph_module: torch.fx.GraphModule | None = None,
        garbage_collect_values: bool = True,
        logger: logging.Logger | None = None,
        *,
        norm_shift: NormShift = "drop",
    ) -> None:
        for name, value in (
            ("customized_mask_updaters", customized_mask_updaters),
            ("customized_replacers", customized_replacers),
        ):
            if value and not all(type(v).__name__ in NOT_NEEDED for v in value):
                raise InputError(REFUSED.format(name=name))
        _check_shift(norm_shift)
        self.bound_model = model
        self.dummy_input = dummy_input
        self.masks = load_masks(masks_or_file, map_location)
        self.batch_dim, self.batch_size = batch_dim, batch_size
        self.graph_module = graph_module
        self.garbage_collect_values = garbage_collect_values
        self.logger = _logger if logger is None else logger
        self.norm_shift = norm_shift
        self.report: SpeedupReport | None = None

    def speedup_model(self) -> nn.Module:
        """Make the model smaller.

        Returns:
            The model, the same object.

        Raises:
            InputError: masks of another model or of wrong shape, masks that leave nothing of a layer or of which
                nothing can be made structure, a dummy input that the model fails on, a model that NNI still wraps.
            UnsupportedModelError: the structure cannot be read, or the smaller model does not run. Whatever is raised,
                the model is as it was.
        """
        self.report = realise(self.bound_model, self.masks, self.dummy_input, self.norm_shift, None, self.logger)
        return self.bound_model

    run = speedup_model


def speedup(
    model: nn.Module,
    masks: Any,
    example_inputs: Any,
    *,
    norm_shift: NormShift = "drop",
    map_location: Any = None,
    forward_fn: ForwardFn | None = None,
) -> nn.Module:
    """Make what masks mask structure, in place; see :class:`ModelSpeedup`, which has the report as well.

    Args:
        model: the model that was pruned, unwrapped.
        masks: ``{module: {target: mask}}``, or the path of a file that ``torch.save`` wrote.
        example_inputs: a tensor, a tuple or list of positional or a dict of keyword arguments.
        norm_shift: ``"drop"`` or ``"fold"``.
        map_location: for the file, as of ``torch.load``.
        forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.

    Returns:
        The model, the same object.

    Raises:
        InputError, UnsupportedModelError: as :meth:`ModelSpeedup.speedup_model`.
    """
    _check_shift(norm_shift)
    realise(model, load_masks(masks, map_location), example_inputs, norm_shift, forward_fn, _logger)
    return model


def _check_shift(norm_shift: str) -> None:
    if norm_shift not in ("drop", "fold"):
        raise InputError(WRONG_SHIFT.format(got=norm_shift))
