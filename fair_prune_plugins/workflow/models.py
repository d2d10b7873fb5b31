"""Where networks come from: the small built-in ones, or any ``module:function`` with a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import loading
from fair_prune_plugins.workflow.nets import digits_resnet, face_mobilenet, face_resnet

BUILT_IN: Mapping[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    "face_resnet": face_resnet,
    "face_mobilenet": face_mobilenet,
}
"""Networks that come with the package; they take ``classes`` and ``channels`` from the data."""

NO_SUCH_NET = "model.factory: {name!r} is neither built in ({built_in}) nor module:function"
BAD_OPTIONS = "model.options: {name} does not take {options}: {reason}"
NOT_A_MODULE = "model.factory: {name} must return a torch.nn.Module, got {type}"
NO_CHECKPOINT = "model.checkpoint: there is no file {path}"
UNREADABLE = (
    "model.checkpoint: {path} cannot be read ({reason}); save the weights with safetensors, or "
    "torch.save(model.state_dict(), path)"
)
WRONG_WEIGHTS = "model.checkpoint: {path} does not fit the network: {reason}"
WRONG_OUTPUTS = (
    "model.factory: the network gives outputs of shape {got} for {n} inputs; {expected} is needed for {classes} classes"
)
FORWARD_FAILED = "model.factory: the network fails on inputs of shape {shape}: {reason}"

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly keep the weights inside a checkpoint."""


def build(factory: str, options: dict[str, Any], *, classes: int, channels: int, beside: Path | None) -> nn.Module:
    """Make an untrained network.

    Args:
        factory: a built-in name or ``module:function``.
        options: keyword arguments of the factory.
        classes: number of classes, given to built-in networks.
        channels: channels of the inputs, given to built-in networks.
        beside: a folder in which the module is looked for too.

    Raises:
        InputError: no such factory, options it does not take, or it returns something else.
    """
    if factory in BUILT_IN:
        try:
            return BUILT_IN[factory](**{"classes": classes, "channels": channels, **options})
        except TypeError as error:
            raise InputError(BAD_OPTIONS.format(name=factory, options=options, reason=error)) from None
    if ":" not in factory:
        raise InputError(NO_SUCH_NET.format(name=factory, built_in=", ".join(BUILT_IN)))
    model = loading.call(factory, options, key="model.factory", beside=beside)
    if not isinstance(model, nn.Module):
        raise InputError(NOT_A_MODULE.format(name=factory, type=type(model).__name__))
    return model


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Fill a network with trained weights; a ``module.`` prefix (of DataParallel) is taken off.

    Raises:
        InputError: no such file, not safely readable, or other weights than the network has (the message names them).
    """
    weights = _read_weights(path)
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(WRONG_WEIGHTS.format(path=path, reason=" ".join(str(error).split()))) from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(NO_CHECKPOINT.format(path=path))
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(UNREADABLE.format(path=path, reason=error)) from error
    try:
        with warnings.catch_warnings():
            # A file in another pickle protocol is read or refused all the same; there is nothing to warn about.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a file that is no checkpoint the unpickler fails in every way there is
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
        raise InputError(UNREADABLE.format(path=path, reason=reason)) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise InputError(UNREADABLE.format(path=path, reason="it holds no mapping of names to tensors"))
    return dict(loaded)


def check_outputs(model: nn.Module, inputs: torch.Tensor, classes: int) -> None:
    """Try the network on a few real inputs.

    Raises:
        InputError: the forward fails, or the outputs are not logits of the right number of classes.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(FORWARD_FAILED.format(shape=tuple(inputs.shape), reason=reason)) from error
    finally:
        model.train(was_training)
    got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if got != (len(inputs), classes):
        expected = f"({len(inputs)}, {classes})"
        raise InputError(WRONG_OUTPUTS.format(got=got, n=len(inputs), expected=expected, classes=classes))
