"""Masks as NNI writes them, checked against the model that they are meant for.

NNI masks ``{module: {target: mask}}``: parameters by their name, activations as ``_input_<position or name>`` and
``_output_<position or name>``. A mask has the shape of its target, 0 where something is masked.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.norms import MIXING_NORMS
from fair_prune_plugins.nni.links import CONTRACTIONS, CONVOLUTIONS, PRODUCERS, column_mask, row_mask, widths

PARTS = {
    ("collections", "defaultdict"),
    ("collections", "OrderedDict"),
    ("builtins", "dict"),
    ("__builtin__", "dict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
"""What a file of masks is made of, by module and name."""

INPUT, OUTPUT = "_input_", "_output_"

NO_MASKS = (
    "masks must be what pruner.compress() returned second, {{module: {{target: tensor}}}}, or the path of a file in "
    "which torch.save put it; got {got}"
)
NO_FILE = "there is no mask file {path}; pass the masks, or the path that they were saved to with torch.save"
UNREADABLE = "{path} holds no masks ({reason}); save them with torch.save(masks, path)"
EMPTY = "there is no mask in masks; a pruner returns them after compress()"
UNKNOWN_MODULES = (
    "{count} of the {total} masked modules are not in the model: {names}. {hint}Masks belong to the model that was "
    "pruned, under the names of its named_modules()"
)
STRIP = "Without their first {prefix!r} (DataParallel adds one) the names fit: take it off, or pass the wrapper. "
ADD = "The model has them under {prefix!r}: pass the submodule that was pruned, or add the prefix to the names. "
UNKNOWN_TARGET = (
    "{module} ({kind}) has nothing called {target!r} to mask; it has the parameters {have}, and activations are "
    "'_input_0' or '_output_0'"
)
WRONG_SHAPE = "the mask of {target} has shape {got}, and {target} has {expected}; are these the masks of another model?"
NOT_A_MASK = "the mask of {target} must be a tensor or None, got {got}"
NOT_FINITE = "the mask of {target} holds NaN or infinite values; masks are 1 where a value stays and 0 where it goes"
WRAPPED = "{module} is still wrapped by NNI; call pruner.unwrap_model() before the speedup"

CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
NORMS = (*CHANNEL_NORMS, *MIXING_NORMS)


@dataclass
class ModuleMask:
    """What is masked of one module.

    Attributes:
        parameters: by name, of the parameter's shape, device and type.
        inputs: of activations, by position or name of the argument, as given; those of layers that contract over
            channels are among ``parameters``, where they have the same effect.
        outputs: by position or key; likewise.
        nothing: no value is masked.
        positions: names of activation masks that mask some positions of a channel and leave others; only channels that
            are masked everywhere count.
    """

    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    nothing: bool = True
    positions: list[str] = field(default_factory=list)


Masks = dict[nn.Module, ModuleMask]


def load_masks(masks_or_file: Any, map_location: Any = None) -> Mapping[str, Mapping[str, torch.Tensor | None]]:
    """Masks, or the masks in a file that ``torch.save`` wrote.

    Raises:
        InputError: neither.
    """
    if isinstance(masks_or_file, str | PathLike):
        path = Path(masks_or_file)
        if not path.is_file():
            raise InputError(NO_FILE.format(path=path))
        try:
            masks_or_file = torch.load(path, map_location=map_location, weights_only=False, pickle_module=_MasksOnly)
        except Exception as error:
            raise InputError(UNREADABLE.format(path=path, reason=f"{type(error).__name__}: {error}")) from error
    if not isinstance(masks_or_file, Mapping) or not all(isinstance(v, Mapping) for v in masks_or_file.values()):
        raise InputError(NO_MASKS.format(got=type(masks_or_file).__name__))
    if not any(isinstance(m, torch.Tensor) for targets in masks_or_file.values() for m in targets.values()):
        raise InputError(EMPTY)
    return masks_or_file


class _Unpickler(pickle.Unpickler):
    """Loads tensors and dicts and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PARTS or (module == "torch" and name.endswith("Storage")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"masks have no {module}.{name} in them")


class _MasksOnly:
    """What ``torch.load`` unpickles with: its own ``weights_only`` refuses the ``defaultdict`` that NNI's masks are."""

    __name__ = "masks"
    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def read_masks(model: nn.Module, masks: Mapping[str, Mapping[str, torch.Tensor | None]]) -> Masks:
    """Masks by module, all checked; modules of several names have one entry.

    Raises:
        InputError: masks that do not belong to this model, or a model that NNI still wraps.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if "_nni_wrapper" in module.__dict__ or "_nni_wrapper" in module._modules:
            raise InputError(WRAPPED.format(module=name or type(module).__name__))
    unknown = [name for name in masks if name not in modules]
    if unknown:
        shown = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        hint = _prefix_hint(unknown, modules)
        raise InputError(UNKNOWN_MODULES.format(count=len(unknown), total=len(masks), names=shown, hint=hint))
    read: Masks = {}
    for name, targets in masks.items():
        mask = read.setdefault(modules[name], ModuleMask())
        for target, values in targets.items():
            if values is not None:
                _read_target(name, modules[name], target, values, mask)
    return read


def masked_share(masks: Masks) -> float:
    """Share of zeros among all masked parameters and activations."""
    tensors = [t for m in masks.values() for t in (*m.parameters.values(), *m.inputs.values(), *m.outputs.values())]
    total = sum(t.numel() for t in tensors)
    return 1 - sum(int(t.count_nonzero()) for t in tensors) / total if total else 0.0


def _prefix_hint(unknown: list[str], modules: Mapping[str, nn.Module]) -> str:
    first = unknown[0].partition(".")[0]
    if all(n.startswith(f"{first}.") and n[len(first) + 1 :] in modules for n in unknown):
        return STRIP.format(prefix=f"{first}.")
    for name in modules:
        if name.endswith(f".{unknown[0]}"):
            prefix = name.removesuffix(unknown[0])
            if all(prefix + n in modules for n in unknown):
                return ADD.format(prefix=prefix)
    return ""


def _read_target(name: str, module: nn.Module, target: str, values: Any, mask: ModuleMask) -> None:
    label = f"{name}.{target}" if name else target
    if not isinstance(values, torch.Tensor):
        raise InputError(NOT_A_MASK.format(target=label, got=type(values).__name__))
    if values.numel():
        low, high = torch.aminmax(values.to(torch.uint8) if values.dtype == torch.bool else values)
        if not bool((high - low).isfinite()):
            raise InputError(NOT_FINITE.format(target=label))
        mask.nothing = mask.nothing and not bool(low <= 0 <= high)
    if target.startswith((INPUT, OUTPUT)):
        _read_activation(label, module, target, values, mask)
        return
    if target not in module._parameters:
        have = ", ".join(repr(k) for k in module._parameters) or "none"
        kind = type(module).__name__
        raise InputError(UNKNOWN_TARGET.format(module=name or kind, kind=kind, target=target, have=have))
    parameter = module._parameters[target]
    if parameter is None:  # a layer without a bias
        return
    if values.shape != parameter.shape:
        raise InputError(WRONG_SHAPE.format(target=label, got=tuple(values.shape), expected=tuple(parameter.shape)))
    _multiply(mask, module, target, values)


def _multiply(mask: ModuleMask, module: nn.Module, target: str, values: torch.Tensor) -> None:
    parameter = module._parameters[target]
    if parameter is not None:
        values = values.detach().to(parameter)
        mask.parameters[target] = mask.parameters[target] * values if target in mask.parameters else values


def _read_activation(label: str, module: nn.Module, target: str, values: torch.Tensor, mask: ModuleMask) -> None:
    """An activation's mask; where the module has weights to the same effect, as a mask of those."""
    is_input = target.startswith(INPUT)
    place = target.removeprefix(INPUT if is_input else OUTPUT)
    if not isinstance(module, CONTRACTIONS if is_input else PRODUCERS):
        device = next((p.device for p in module.parameters()), values.device)
        (mask.inputs if is_input else mask.outputs)[place] = values.detach().to(device)
        return
    width = widths(module)[0 if is_input else 1]
    dim = channel_dim(module, values.ndim)
    if values.ndim == 0 or values.shape[dim] != width:
        raise InputError(WRONG_SHAPE.format(target=label, got=tuple(values.shape), expected=f"{width} channels"))
    kept = (values != 0).movedim(dim, 0).flatten(1)
    keep = kept.any(1)
    if bool((kept != keep[:, None]).any()):
        mask.positions.append(label)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    keep = keep.to(weight.device)
    _multiply(mask, module, "weight", (column_mask if is_input else row_mask)(module, keep).expand_as(weight))
    if not is_input and "bias" in module._parameters:
        _multiply(mask, module, "bias", keep)


def channel_dim(module: nn.Module, ndim: int) -> int:
    """Where the channels are in a module's activation of ``ndim`` dimensions, with or without a batch."""
    if isinstance(module, CONVOLUTIONS):
        return max(ndim - 1 - len(module.kernel_size), 0)
    if isinstance(module, (*CHANNEL_NORMS, nn.GroupNorm)):
        return 1 if ndim > 1 else 0
    return -1
