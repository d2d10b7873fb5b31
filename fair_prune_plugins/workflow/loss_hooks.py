"""The losses of a run: made for its people, and kept with its networks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fair_prune_plugins import losses
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.losses import DenseAccuracy, LossHook, Teacher, TeacherCache
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.training_config import LossConfig

STATE, OTHER = "loss.safetensors", "other_state"

BAD_LOSS = "{key}: {name} does not go with this run: {reason}"


def make(
    config: LossConfig,
    samples: Samples,
    normalise: Normalisation,
    *,
    dense: nn.Module | None,
    augmented: bool,
    batch_size: int,
    device: torch.device,
    key: str,
) -> LossHook:
    """The loss of a configuration, told about the training people and the dense network.

    Args:
        config: which loss.
        samples: the data set; its training people are the groups that are balanced.
        normalise: applied to every batch.
        dense: the dense network, for losses that compare with it; ``None`` while it is being trained.
        augmented: whether training images change from epoch to epoch, so that a teacher cannot remember them.
        batch_size: people per batch while the dense network is asked.
        device: where.
        key: the configuration key, for messages.

    Raises:
        ConfigError: options that the loss does not take, or people that it cannot compare.
    """
    loss = losses.get(config.name)
    rows = samples.rows(Part.TRAIN)
    groups = samples.groups.take(rows)
    teacher = accuracy = None
    try:
        if dense is not None and "teacher" in loss.requirements:
            teacher = Teacher(dense, cache=None if augmented else TeacherCache())
        if dense is not None and "dense" in loss.requirements:
            accuracy = DenseAccuracy.measure(
                dense.to(device),
                Batches(samples, rows, normalise, batch_size, device),
                groups=GroupReader({groups.attribute: "group"}, names=groups.names),
                inputs="inputs",
                targets="targets",
            )
        return loss.make(groups=groups, teacher=teacher, dense=accuracy, **config.options)
    except (InputError, TypeError, ValueError) as error:
        raise ConfigError(BAD_LOSS.format(key=key, name=config.title, reason=error)) from error


def save_state(hook: LossHook, folder: Path) -> None:
    """Keep what the loss has learned (multipliers, replay buffers) beside a network."""
    state = hook.state_dict()
    tensors = {name: value.detach().cpu() for name, value in state.items() if isinstance(value, torch.Tensor)}
    other = {name: value for name, value in state.items() if name not in tensors}
    save_file(tensors, folder / STATE, metadata={OTHER: json.dumps(other)})


def load_state(hook: LossHook, folder: Path) -> None:
    """Go on with what the loss had learned when the network in ``folder`` was stored."""
    with safe_open(folder / STATE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, has no iterator
        other = json.loads((file.metadata() or {})[OTHER])
    hook.load_state_dict({**tensors, **other})
