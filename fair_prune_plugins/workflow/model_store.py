"""Pruned networks on disk without pickles: weights as safetensors, and a JSON recipe to rebuild the network they fit.

The recipe holds the factory, the pruning history in the network's original channel numbers, and the weights' SHA-256.
Rebuilding replays the history on a fresh network, then loads the weights; that it gives the same outputs bit by bit is
checked when a network is stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.calling import copied
from fair_prune_plugins.torch_pruning import PruningHistory, replay
from fair_prune_plugins.workflow import models
from fair_prune_plugins.workflow.run_folder import read_json, write_json

WEIGHTS, RECIPE = "model.safetensors", "model.json"
SCHEMA_VERSION = 3

NO_MODEL = "there is no stored model in {folder}: {file} is missing"
DAMAGED = "{path} is damaged: its SHA-256 is not the one that {recipe} names; remove the folder and run again"
NOT_A_RECIPE = "{path} is damaged ({reason}); remove the folder and run again"
OTHER_SCHEMA = "{path} was written by another version of this package (schema {got}, this one reads {expected})"
NOT_THE_SAME = (
    "the pruned network cannot be stored: rebuilt from its pruning history it gives other outputs (largest difference "
    "{difference:.3g}). Its factory must give the same layers each time it is called"
)
NOT_REBUILT = (
    "the pruned network cannot be rebuilt from its pruning history ({type}: {reason}). Its factory must give the same "
    "layers each time it is called, and what its forward reads besides weights must be plain numbers on its modules"
)


@dataclass(frozen=True)
class Recipe:
    """How to rebuild a network.

    Attributes:
        factory: built-in name or ``module:function``.
        options: keyword arguments of the factory.
        classes: number of classes.
        input_shape: shape of one input, ``(C, ...)``.
        history: what pruning left, to replay; ``None`` for a network that was not pruned.
    """

    factory: str
    options: dict[str, Any]
    classes: int
    input_shape: tuple[int, ...]
    history: PruningHistory | None = None

    def build(self, beside: Path | None) -> nn.Module:
        """The network before pruning, with fresh weights."""
        return models.build(
            self.factory, self.options, classes=self.classes, channels=self.input_shape[0], beside=beside
        )

    def example(self, people: int = 2) -> torch.Tensor:
        """Random normalised inputs, the same each time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(people, *self.input_shape, generator=generator)


def save(model: nn.Module, recipe: Recipe, folder: Path, *, beside: Path | None) -> None:
    """Store a network, having checked that it can be rebuilt.

    Args:
        model: on any device; left as it is.
        recipe: how it came to be.
        folder: existing folder to write into.
        beside: where the factory's module is looked for.

    Raises:
        UnsupportedModelError: the network cannot be rebuilt, or then gives other outputs.
    """
    weights = save_weights({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)
    values = {
        "schema_version": SCHEMA_VERSION,
        "sha256": hashlib.sha256(weights).hexdigest(),
        **{f.name: getattr(recipe, f.name) for f in fields(recipe)},
        "history": None if recipe.history is None else recipe.history.as_dict(),
    }
    write_json(folder / RECIPE, values)
    rebuilt, _ = load(folder, beside=beside)
    example = recipe.example()
    kept = copied(model).cpu().eval()
    with torch.no_grad():
        expected = kept(example)
        try:
            difference = (expected - rebuilt(example)).abs().max()
        except Exception as error:  # whatever a forward of someone else's raises
            raise UnsupportedModelError(NOT_REBUILT.format(type=type(error).__name__, reason=error)) from error
    if not difference == 0:
        raise UnsupportedModelError(NOT_THE_SAME.format(difference=float(difference)))


def load(folder: Path, *, beside: Path | None) -> tuple[nn.Module, Recipe]:
    """Rebuild a stored network, on the CPU and in evaluation mode.

    Raises:
        InputError: files are missing, damaged or of another schema.
        UnsupportedModelError: the factory no longer gives the layers that the recipe fits.
    """
    recipe, weights = read_recipe(folder), (folder / WEIGHTS).read_bytes()
    model = _replayed(recipe, beside)
    try:
        model.load_state_dict(load_weights(weights))
    except RuntimeError as error:
        raise UnsupportedModelError(NOT_REBUILT.format(type=type(error).__name__, reason=error)) from error
    return model.eval(), recipe


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a stored network, its weights' hash checked.

    Raises:
        InputError: see :func:`load`.
    """
    for file in (RECIPE, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(NO_MODEL.format(folder=folder, file=file))
    try:
        values = read_json(folder / RECIPE)
        schema, sha256 = values.pop("schema_version"), values.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(NOT_A_RECIPE.format(path=folder / RECIPE, reason=error)) from None
    if schema != SCHEMA_VERSION:
        raise InputError(OTHER_SCHEMA.format(path=folder / RECIPE, got=schema, expected=SCHEMA_VERSION))
    if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != sha256:
        raise InputError(DAMAGED.format(path=folder / WEIGHTS, recipe=RECIPE))
    try:
        history = None if values["history"] is None else PruningHistory.from_dict(values["history"])
        return Recipe(**{**values, "input_shape": tuple(values["input_shape"]), "history": history})
    except (InputError, KeyError, TypeError) as error:
        raise InputError(NOT_A_RECIPE.format(path=folder / RECIPE, reason=error)) from None


def _replayed(recipe: Recipe, beside: Path | None) -> nn.Module:
    """A fresh network, pruned as the recipe's history tells; in evaluation mode."""
    model = recipe.build(beside).eval()
    if recipe.history is None:
        return model
    try:
        replay(model, recipe.history, recipe.example())
    except UnsupportedModelError as error:
        raise UnsupportedModelError(NOT_REBUILT.format(type=type(error).__name__, reason=error)) from error
    return model
