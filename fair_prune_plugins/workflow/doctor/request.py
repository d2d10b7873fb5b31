"""What the command line asks of the doctor: a model by name, and inputs of a shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fair_prune_plugins import yaml_text
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import loading, models
from fair_prune_plugins.workflow.doctor.diagnosis import ModelReport

KEY = "MODEL"
DEFAULT_CLASSES = 10
DEFAULT_SHAPE = "3,224,224"

BAD_SHAPE = "--input-shape takes whole numbers, e.g. 3,224,224 for one colour image without its batch, got {got!r}"
NO_MODULE = "MODEL: {module} cannot be imported ({error}); modules are looked for in {folder} and on PYTHONPATH"
NO_NAME = "MODEL: {name!r} is neither a built-in network ({built_in}) nor MODULE:FUNCTION, e.g. my_models:build"
BAD_OPTION = "--options takes KEY=VALUE, e.g. --options width=32, got {got!r}"
NOT_A_MODULE = "MODEL: {name} must return a torch.nn.Module, alone or with its example inputs, got {type}"
NO_LAYER = "--ignore: the network has no layer {path!r}; it has {near}"
WRONG_CLASSES = "MODEL: the outputs have the shape {got} for 2 inputs; (2, {classes}) is needed for {classes} classes"


@dataclass(frozen=True)
class Request:
    """A model to examine.

    Attributes:
        model: the model.
        example_inputs: what it is called with.
        ignored_layers: layers that are to keep their width.
    """

    model: nn.Module
    example_inputs: Any
    ignored_layers: tuple[nn.Module, ...]


def read_request(
    name: str,
    *,
    shapes: Sequence[str] = (),
    classes: int | None = None,
    options: Sequence[str] = (),
    ignored: Sequence[str] = (),
    beside: Path,
) -> Request:
    """Make the model and its inputs.

    Args:
        name: a built-in name or ``module:function``; the function returns a module, or a module and example inputs.
        shapes: one text like ``3,224,224`` per positional input, without the batch; inputs are uniform in [0, 1).
        classes: number of classes, given to built-in networks.
        options: ``KEY=VALUE`` texts, keyword arguments of the function; values are YAML.
        ignored: paths of layers that are to keep their width.
        beside: a folder in which the module is looked for too.

    Raises:
        InputError: anything of it that cannot be used, naming it.
    """
    keywords = dict(_option(text) for text in options)
    sizes = [_shape(text) for text in shapes or (DEFAULT_SHAPE,)]
    inputs: Any = None
    if name in models.BUILT_IN:
        made: Any = models.build(
            name, keywords, classes=classes or DEFAULT_CLASSES, channels=sizes[0][0], beside=beside
        )
    elif ":" in name:
        made = _called(name, keywords, beside)
    else:
        raise InputError(NO_NAME.format(name=name, built_in=", ".join(models.BUILT_IN)))
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise InputError(NOT_A_MODULE.format(name=name, type=type(made).__name__))
    if inputs is None:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.rand(2, *size, generator=generator) for size in sizes]
        inputs = drawn[0] if len(drawn) == 1 else tuple(drawn)
    return Request(made, inputs, tuple(_layer(made, path) for path in ignored))


def check_classes(report: ModelReport, classes: int) -> None:
    """Compare the outputs with a number of classes.

    Raises:
        InputError: they are not one logit per class.
    """
    if report.outputs != ((2, classes),):
        got = ", ".join(str(shape) for shape in report.outputs)
        raise InputError(WRONG_CLASSES.format(got=got, classes=classes))


def _called(reference: str, keywords: dict[str, Any], beside: Path) -> Any:
    try:
        loading.load_function(reference, key=KEY, beside=beside)
    except Exception as error:  # a module may raise anything while it is imported
        reason = error.__cause__ if isinstance(error, InputError) else error
        if reason is None:
            raise
        text = f"{type(reason).__name__}: {reason}"
        module = reference.partition(":")[0]
        raise InputError(NO_MODULE.format(module=module, error=text, folder=beside)) from error
    return loading.call(reference, keywords, key=KEY, beside=beside)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in re.split("[,x]", text.strip().strip("()[]")) if part.strip())
    except ValueError:
        raise InputError(BAD_SHAPE.format(got=text)) from None
    if not sizes or min(sizes) < 1:
        raise InputError(BAD_SHAPE.format(got=text))
    return sizes


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        loaded = yaml_text.load(value)
    except yaml.YAMLError:
        loaded, equals = None, ""
    if not equals or not key.strip().isidentifier():
        raise InputError(BAD_OPTION.format(got=text))
    return key.strip(), loaded


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        near = [name for name, _ in model.named_modules() if name]
        raise InputError(NO_LAYER.format(path=path, near=", ".join(near[:12]) or "none")) from None
