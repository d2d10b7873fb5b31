"""From masks to a smaller model: read, decide, and do it all or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import ForwardFn, call, generic, moved, output_tensors, preserved
from fair_prune_plugins.gates.norms import MIXING_NORMS
from fair_prune_plugins.gates.rollback import undone_on_error
from fair_prune_plugins.nni.choosing import Choice, choose
from fair_prune_plugins.nni.following import follow
from fair_prune_plugins.nni.heads import tell_owners
from fair_prune_plugins.nni.links import PRODUCERS, passes_through, widths
from fair_prune_plugins.nni.liveness import holding, masked_activations, masked_parameters
from fair_prune_plugins.nni.masks import NORMS, Masks, masked_share, read_masks
from fair_prune_plugins.nni.narrowing import kept, kept_weight, narrow
from fair_prune_plugins.nni.shifts import Shift, Values, settle, silenced, watched
from fair_prune_plugins.nni.speedup_report import Difference, NormShift, SpeedupReport
from fair_prune_plugins.nni.tracing import as_in_training, liveness_behind_functions, trace

NOTHING_MASKED = "the masks mask nothing, and the model stays as it is"
NOTHING_REMOVED = (
    "the masks ({share:.1%} zeros) leave no unit that could be removed: {why}. Prune whole units (granularity "
    "'default' of NNI's norm pruners), all layers of a coupled group alike (auto_set_denpendency_group_ids)"
)
FINE = "no layer's output or input channel is masked as a whole"
SMALLER_FAILS = (
    "the smaller model fails in its forward ({error}); something in it remembers a width. Leave the layers around it "
    "out of the pruner's configuration. The model is as it was"
)
STAYS = (
    "{units} units are masked in some layers of their coupled group and stay, because other layers or the structure "
    "keep them ({groups} coupled groups); the report of the speedup says which and why"
)
NO_TRAINING = "the smaller model runs in eval mode, but not in training mode: {error}"
UNEXPECTED = (
    "the smaller model differs from the masked one by {relative:.1e} of its outputs' scale, and nothing says why: "
    "perhaps channels are averaged, or a reshape of them was misread; compare before you use it"
)

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE = 5e-2

DROPPED = "constants that norms and biases made of masked units were dropped"
STATISTICS = "norms take their statistics over fewer channels"
ACTIVATIONS = "masks of activations that could not be made structure are no part of the model"


def realise(
    model: nn.Module,
    given: Mapping[str, Mapping[str, torch.Tensor | None]],
    dummy_input: Any,
    norm_shift: NormShift,
    forward_fn: ForwardFn | None,
    log: logging.Logger,
) -> SpeedupReport:
    """Make masks structure, in place.

    Args:
        model: the model.
        given: masks as NNI writes them.
        dummy_input: what the model is called with.
        norm_shift: what becomes of the constants that removed units leave.
        forward_fn: how it is called, if not plainly.
        log: takes the warnings.

    Raises:
        InputError, UnsupportedModelError: as :meth:`~fair_prune_plugins.nni.ModelSpeedup.speedup_model`; the model is
            as it was.
    """
    masks = read_masks(model, given)
    before = _widths(model), _parameters(model)
    if all(mask.nothing for mask in masks.values()):
        log.warning("%s", NOTHING_MASKED)
        return SpeedupReport({}, {}, (), {}, {}, (before[1], before[1]), norm_shift, (), None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = generic(moved(dummy_input, device=device), seed=0)
    seen: dict[nn.Module, Values] = {}
    masked = masked_parameters(masks)
    with _examined(model), holding(masked):
        traced = trace(model, masks, inputs, forward_fn)
        behind = partial(liveness_behind_functions, model, masks, traced, inputs, forward_fn)
        choice = choose(model, follow(traced.graph), traced.liveness, behind, masks, traced.links)
        if not choice.gone:
            why = "; ".join(map(str, choice.kept[:4])) or FINE
            raise InputError(NOTHING_REMOVED.format(share=masked_share(masks), why=why))
        with torch.no_grad(), masked_activations(masks), watched(choice.gone, seen):
            expected = output_tensors(call(model, inputs, forward_fn))
            if norm_shift == "fold":
                call(model, _shuffled(inputs), forward_fn)
        with torch.no_grad(), masked_activations(masks), silenced(choice.gone):
            without_constants = output_tensors(call(model, inputs, forward_fn)) if norm_shift == "drop" else []
    with undone_on_error(model):
        for parameter, values in masked.items():
            parameter.data = values
        names = {module: name for name, module in model.named_modules()}
        shifts = settle(seen, traced.links, names, fold=norm_shift == "fold")
        zeros = _zeros(masks, choice, names)
        narrow(traced.graph, choice.gone)
        tell_owners(model, choice.heads)
        reasons = _reasons(shifts, choice, masks)
        difference = _compare(model, inputs, forward_fn, expected, without_constants, reasons)
    if traced.in_training:
        _try_training(model, inputs, forward_fn, log)
    if choice.kept:
        groups = len({k.coupled_group for k in choice.kept})
        log.warning("%s", STAYS.format(units=sum(k.units for k in choice.kept), groups=groups))
    if not difference.expected:
        log.warning("%s", UNEXPECTED.format(relative=difference.relative))
    after = _widths(model)
    changed = {name: (old, after[name]) for name, old in before[0].items() if old != after[name]}
    return SpeedupReport(
        choice.removed,
        choice.units,
        choice.kept,
        changed,
        zeros,
        (before[1], _parameters(model)),
        norm_shift,
        tuple(shifts),
        difference,
    )


@contextmanager
def _examined(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, handed back as it was."""
    with preserved(model):
        model.eval()
        yield


def _shuffled(inputs: Any) -> Any:
    """Other inputs of the same values: every floating tensor's in random order."""
    generator = torch.Generator().manual_seed(0)

    def shuffle(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        order = torch.randperm(leaf.numel(), generator=generator).to(leaf.device)
        return leaf.flatten()[order].reshape(leaf.shape)

    return pytree.tree_map(shuffle, inputs)


def _zeros(masks: Masks, choice: Choice, names: Mapping[nn.Module, str]) -> dict[str, float]:
    """Share of masked values among those that stay."""
    zeros = {}
    for module, mask in masks.items():
        for name, values in mask.parameters.items():
            if mask.nothing:
                continue
            staying = _staying(module, name, values, choice)
            left = staying.numel() - int(staying.count_nonzero())
            if left:
                path = f"{names[module]}.{name}" if names[module] else name
                zeros[path] = left / staying.numel()
    return zeros


def _staying(module: nn.Module, name: str, values: torch.Tensor, choice: Choice) -> torch.Tensor:
    """What stays of a parameter's mask."""

    def channels(side: bool, width: int) -> torch.Tensor:
        gone = choice.gone.get((module, side))
        return kept(width, () if gone is None else gone.tolist())

    if isinstance(module, PRODUCERS) and name == "weight":
        ins, outs = widths(module)
        outputs = channels(True, outs)
        return kept_weight(module, values, outputs, outputs if passes_through(module) else channels(False, ins))
    if isinstance(module, (*PRODUCERS, *NORMS)):
        return values.index_select(-1, channels(True, values.shape[-1]).to(values.device))
    return values


def _reasons(shifts: list[Shift], choice: Choice, masks: Masks) -> tuple[str, ...]:
    reasons = []
    if any(s.dropped for s in shifts):
        reasons.append(DROPPED)
    if any(isinstance(module, MIXING_NORMS) for module, _ in choice.gone):
        reasons.append(STATISTICS)
    if any(mask.inputs or mask.outputs or mask.positions for mask in masks.values()):
        reasons.append(ACTIVATIONS)
    return tuple(reasons)


def _compare(
    model: nn.Module,
    inputs: Any,
    forward_fn: ForwardFn | None,
    expected: list[torch.Tensor],
    without_constants: list[torch.Tensor],
    reasons: tuple[str, ...],
) -> Difference:
    """The smaller model beside the masked one's outputs.

    That constants were dropped explains a difference only if the masked model without these constants is the smaller
    model.

    Raises:
        UnsupportedModelError: it does not run, or returns tensors of other shapes.
    """
    with _examined(model), torch.no_grad():
        try:
            found = output_tensors(call(model, inputs, forward_fn))
        except Exception as error:
            raise UnsupportedModelError(SMALLER_FAILS.format(error=f"{type(error).__name__}: {error}")) from error
    shapes, smaller = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
    if shapes != smaller:
        raise UnsupportedModelError(SMALLER_FAILS.format(error=f"it returns {smaller} instead of {shapes}"))
    tolerance = max((TOLERANCES.get(t.dtype, COARSE) for t in expected if t.is_floating_point()), default=0.0)
    if reasons == (DROPPED,) and without_constants and _distance(without_constants, found)[1] > tolerance:
        reasons = ()
    return Difference(*_distance(expected, found), tolerance, reasons)


def _distance(expected: list[torch.Tensor], found: list[torch.Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and the same beside the largest expected value."""
    largest = scale = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.is_floating_point() and a.numel():
            largest = max(largest, float((a - b).abs().max()))
            scale = max(scale, float(a.abs().max()))
    return largest, largest / scale if scale else largest


def _try_training(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None, log: logging.Logger) -> None:
    with _examined(model), torch.no_grad():
        try:
            as_in_training(model, inputs, forward_fn)
        except Exception as error:
            log.warning("%s", NO_TRAINING.format(error=f"{type(error).__name__}: {error}"))


def _widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every layer by path."""
    return {name: widths(m) for name, m in model.named_modules() if isinstance(m, PRODUCERS)}


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
