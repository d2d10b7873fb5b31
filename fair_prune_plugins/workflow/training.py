"""Train a network: the dense one, and pruned ones again."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.losses import CrossEntropy, LossHook
from fair_prune_plugins.workflow.data import Augmentation, Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.training_config import FinetuneConfig, TrainingConfig

DIVERGED = (
    "the training loss became {loss} in epoch {epoch} of {what}; lower {key}.learning_rate (it is {rate:g}) or "
    "check the inputs"
)


def fit(
    model: nn.Module,
    samples: Samples,
    normalise: Normalisation,
    recipe: TrainingConfig | FinetuneConfig,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    what: str,
    key: str,
    loss: LossHook | None = None,
) -> None:
    """Train on the training part; the network is left in evaluation mode on ``device``.

    Args:
        model: changed in place.
        samples: the data set.
        normalise: applied to every batch.
        recipe: batch size, optimizer, schedule, augmentation.
        epochs: passes over the training people; 0 leaves the weights as they are.
        seed: of the order of people and of augmentation.
        device: where to train.
        what: shown beside the progress bar.
        key: the configuration key of the recipe, for messages.
        loss: what is optimised; its state moves on. ``None`` is plain cross-entropy.

    Raises:
        InputError: the loss is no longer finite.
    """
    model.to(device)
    augment = Augmentation(recipe.flip, recipe.shift)
    batches = Batches(
        samples,
        samples.rows(Part.TRAIN),
        normalise,
        recipe.batch_size,
        device,
        shuffle_seed=seed,
        augment=augment if recipe.flip or recipe.shift else None,
    )
    if epochs:
        optimizer = _optimizer(model, recipe)
        # The seed also covers dropout and the like, without disturbing the caller's random numbers.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            _run(model, batches, recipe, optimizer, epochs, what, key, CrossEntropy() if loss is None else loss)
    model.eval()


def _run(
    model: nn.Module,
    batches: Batches,
    recipe: TrainingConfig | FinetuneConfig,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    what: str,
    key: str,
    hook: LossHook,
) -> None:
    steps = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(recipe.schedule, steps))
    model.train()
    hook.train()
    with tqdm(total=steps, desc=what, unit="step", leave=False, disable=None) as bar:
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=batches.device)
            for batch in batches:
                optimizer.zero_grad(set_to_none=True)
                inputs = batch["inputs"]
                outputs = model(inputs)
                try:
                    loss = hook(outputs, batch["targets"], groups=batch["codes"], inputs=inputs)
                except InputError as error:
                    if bool(torch.isfinite(outputs).all()):
                        raise
                    raise _diverged("infinite", epoch, what, key, recipe) from error
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.detach()
                bar.update()
            mean = float(total) / len(batches)
            bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{mean:.3f}")
            if not math.isfinite(mean):
                raise _diverged(mean, epoch, what, key, recipe)


def _diverged(loss: object, epoch: int, what: str, key: str, recipe: TrainingConfig | FinetuneConfig) -> InputError:
    return InputError(DIVERGED.format(loss=loss, epoch=epoch, what=what, key=key, rate=recipe.learning_rate))


def _optimizer(model: nn.Module, recipe: TrainingConfig | FinetuneConfig) -> torch.optim.Optimizer:
    # Norms and biases are not decayed: pulling a norm's scale to zero is sparse training by accident.
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    free = [p for p in parameters if p.ndim <= 1]
    sets = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    sets = [s for s in sets if s["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(sets, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(sets, lr=recipe.learning_rate)


_WARM_UP = 0.25
"""Share of the steps in which one_cycle climbs."""


def _factor(schedule: str, steps: int) -> Callable[[int], float]:
    """The learning rate at each step as a share of the highest one; one_cycle climbs for a quarter of the steps."""

    def factor(step: int) -> float:
        progress = min(1.0, (step + 1) / steps)
        if schedule == "constant":
            return 1.0
        if schedule == "one_cycle" and progress < _WARM_UP:
            return progress / _WARM_UP
        start = _WARM_UP if schedule == "one_cycle" else 0.0
        return 0.5 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))

    return factor
