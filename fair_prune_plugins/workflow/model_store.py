"""Pruned networks on disk without pickles: weights as safetensors, and a JSON recipe to rebuild the network they fit.

The recipe holds the factory, the pruning history that Torch-Pruning records, and the weights' SHA-256. Rebuilding
replays the history on a fresh network, then loads the weights; that it gives the same outputs bit by bit is checked
when a network is stored.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.workflow import models
from fair_prune_plugins.workflow.run_folder import read_json, write_json

WEIGHTS, RECIPE = "model.safetensors", "model.json"
SCHEMA_VERSION = 1

NO_MODEL = "there is no stored model in {folder}: {file} is missing"
DAMAGED = "{path} is damaged: its SHA-256 is not the one that {recipe} names; remove the folder and run again"
OTHER_SCHEMA = "{path} was written by another version of this package (schema {got}, this one reads {expected})"
NOT_THE_SAME = (
    "the pruned network cannot be stored: rebuilt from its pruning history it gives other outputs (largest difference "
    "{difference:.3g}). Its factory must give the same layers each time it is called"
)

History = list[list[Any]]
"""What Torch-Pruning's ``DependencyGraph.pruning_history()`` gives: layer, whether its outputs were pruned, indices."""


@dataclass(frozen=True)
class Recipe:
    """How to rebuild a network.

    Attributes:
        factory: built-in name or ``module:function``.
        options: keyword arguments of the factory.
        classes: number of classes.
        input_shape: shape of one input, ``(C, ...)``.
        history: pruning steps to replay.
        num_heads: attention heads by module path, as the pruner was told.
    """

    factory: str
    options: dict[str, Any]
    classes: int
    input_shape: tuple[int, ...]
    history: History = field(default_factory=list)
    num_heads: dict[str, int] = field(default_factory=dict)

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
        UnsupportedModelError: the rebuilt network gives other outputs.
    """
    weights = save_weights({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)
    values = {"schema_version": SCHEMA_VERSION, "sha256": hashlib.sha256(weights).hexdigest(), **asdict(recipe)}
    write_json(folder / RECIPE, values)
    rebuilt, _ = load(folder, beside=beside)
    example = recipe.example()
    kept = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        difference = (kept(example) - rebuilt(example)).abs().max()
    if not difference == 0:
        raise UnsupportedModelError(NOT_THE_SAME.format(difference=float(difference)))


def load(folder: Path, *, beside: Path | None) -> tuple[nn.Module, Recipe]:
    """Rebuild a stored network, on the CPU and in evaluation mode.

    Raises:
        InputError: files are missing, damaged or of another schema.
    """
    recipe, weights = read_recipe(folder), (folder / WEIGHTS).read_bytes()
    model = recipe.build(beside)
    if recipe.history:
        replay(model, recipe)
    model.load_state_dict(load_weights(weights))
    return model.eval(), recipe


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a stored network, its weights' hash checked.

    Raises:
        InputError: see :func:`load`.
    """
    for file in (RECIPE, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(NO_MODEL.format(folder=folder, file=file))
    values = read_json(folder / RECIPE)
    schema, sha256 = values.pop("schema_version"), values.pop("sha256")
    if schema != SCHEMA_VERSION:
        raise InputError(OTHER_SCHEMA.format(path=folder / RECIPE, got=schema, expected=SCHEMA_VERSION))
    if hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != sha256:
        raise InputError(DAMAGED.format(path=folder / WEIGHTS, recipe=RECIPE))
    return Recipe(**{**values, "input_shape": tuple(values["input_shape"])})


def replay(model: nn.Module, recipe: Recipe) -> None:
    """Prune a fresh network as its history tells."""
    from fair_prune_plugins import torch_pruning as fpt

    modules = dict(model.named_modules())
    pruner = fpt.FairPruner(
        model,
        recipe.example(),
        importance=fpt.importance("magnitude"),
        num_heads={modules[path]: heads for path, heads in recipe.num_heads.items()},
    )
    pruner.load_pruning_history(copy.deepcopy(recipe.history))
