"""Prune one network by one criterion to one ratio, in one or several steps."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fair_prune_plugins import criteria
from fair_prune_plugins import torch_pruning as fpt
from fair_prune_plugins.errors import ConfigError
from fair_prune_plugins.gates.structure import OUTPUT
from fair_prune_plugins.groups import GroupReader
from fair_prune_plugins.learned_gates import LearnedMethod
from fair_prune_plugins.losses import CrossEntropy, LossHook
from fair_prune_plugins.torch_pruning import PruningHistory
from fair_prune_plugins.workflow import methods, training
from fair_prune_plugins.workflow.amounts import OF, Amount
from fair_prune_plugins.workflow.config import ModelConfig, RunConfig
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part, Samples
from fair_prune_plugins.workflow.progress import show_bars
from fair_prune_plugins.workflow.prune_config import MethodConfig

BAD_METHOD = "prune.methods: {name} does not take the options {options}: {reason}"
NO_LAYER = "{key}: the network has no module {path!r}; there are {near}"


@dataclass
class Pruned:
    """What pruning did.

    Attributes:
        history: for rebuilding the network, in its original channel numbers.
        steps: the pruner's report of every step.
        seconds: spent on ``collect``, ``prune`` and ``finetune`` (between steps).
        notes: what the statistics had to say, each once.
    """

    history: PruningHistory
    steps: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("collect", "prune", "finetune"), 0.0))


def importance(method: MethodConfig) -> Any:
    """The importance object of a method.

    Raises:
        ConfigError: options that the criterion does not have.
    """
    try:
        return methods.importance(method.name, method.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(BAD_METHOD.format(name=method.name, options=method.options, reason=error)) from error


def prune(
    model: nn.Module,
    method: MethodConfig,
    amount: Amount,
    config: RunConfig,
    samples: Samples,
    normalise: Normalisation,
    *,
    device: torch.device,
    loss: LossHook | None = None,
    collect_loss: LossHook | None = None,
) -> Pruned:
    """Prune a network in place: collect statistics, remove units, and fine-tune between steps.

    Args:
        model: the dense network; left on ``device`` in evaluation mode.
        method: the criterion.
        amount: what to prune down to.
        config: of the run; ``prune``, ``model``, ``finetune`` and ``seed`` are read.
        samples: the data set.
        normalise: applied to every batch.
        device: where to work.
        loss: what is fine-tuned with between steps; plain cross-entropy if absent.
        collect_loss: whose derivatives rank the channels; as ``prune.collect_loss`` says if absent.
    """
    hook = CrossEntropy() if loss is None else loss
    ranking = collect_loss
    if ranking is None:
        ranking = hook if config.prune.collect_loss == "finetune" else CrossEntropy()
    model.to(device)
    steps = config.prune.steps_to(amount)
    score = importance(method)
    if isinstance(score, LearnedMethod):
        return _learned(model, score, method, amount, config, samples, normalise, ranking, device)
    pruner = _pruner(model, score, method, amount, steps, config, samples, normalise, device)
    rows = samples.rows(Part(config.prune.collect_on))
    people = Batches(samples, rows, normalise, config.prune.batch_size, device)
    result = Pruned(pruner.history())
    for step in range(steps):
        start = time.perf_counter()
        if methods.get(method.name).needs_data:
            groups = GroupReader({samples.groups.attribute: "group"}, names=samples.groups.names)
            measured = score.collect(
                pruner,
                people,
                ranking.for_statistics(groups=groups, inputs="inputs", targets="targets"),
                groups=groups,
                inputs="inputs",
                targets=None,
                progress=show_bars(),
            )
            result.notes += [note for note in measured.notes if note not in result.notes]
        collected = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + step)  # of the host's random criterion
            result.steps.append(pruner.step().as_dict())
        if config.prune.reestimate_batch_norm:
            learned = Batches(samples, samples.rows(Part.TRAIN), normalise, config.prune.batch_size, device)
            fpt.reestimate_batch_norm(model, learned, inputs="inputs", progress=show_bars())
        removed = time.perf_counter()
        if step < steps - 1:
            training.fit(
                model,
                samples,
                normalise,
                config.finetune,
                epochs=config.finetune.epochs_between,
                seed=config.seed + step,
                device=device,
                what=f"fine-tuning after step {step + 1} of {steps}",
                key="finetune",
                loss=hook,
            )
        for what, seconds in (
            ("collect", collected - start),
            ("prune", removed - collected),
            ("finetune", time.perf_counter() - removed),
        ):
            result.seconds[what] += seconds
    result.history = pruner.history()
    return result


def _learned(
    model: nn.Module,
    learned: LearnedMethod,
    method: MethodConfig,
    amount: Amount,
    config: RunConfig,
    samples: Samples,
    normalise: Normalisation,
    loss: LossHook,
    device: torch.device,
) -> Pruned:
    """Learn gates, and the weights from the training people where the method trains them, then remove units once."""
    prune = config.prune
    limit = {} if prune.max_pruning_ratio is None else {"max_pruning_ratio": prune.max_pruning_ratio}
    pruner = learned.make(
        model,
        _example(samples, normalise, device),
        seed=config.seed,
        together=prune.allocation_of(method) == "global",
        options=method.options,
        **_layers_and_widths(model, amount, config),
        **limit,
    )
    groups = GroupReader({samples.groups.attribute: "group"}, names=samples.groups.names)
    lower, upper = (
        Batches(samples, samples.rows(part), normalise, prune.batch_size, device, shuffle_seed=config.seed + number)
        for number, part in enumerate((Part.TRAIN, Part(prune.collect_on)))
    )
    start = time.perf_counter()
    on_batches = loss.on_batches(groups=groups, inputs="inputs", targets="targets")
    learned.fit(pruner, lower, upper, on_batches, groups=groups, options=method.options, progress=show_bars())
    collected = time.perf_counter()
    result = Pruned(pruner.history(), [pruner.step().as_dict()])
    result.seconds |= {"collect": collected - start, "prune": time.perf_counter() - collected}
    result.history = pruner.history()
    model.eval()
    return result


def notes(steps: list[dict[str, Any]]) -> list[str]:
    """What the reports of the steps have to say beside widths, in sentences, each once.

    Outputs keep their width in every model, so they share one line.
    """
    kept = {layer: why for step in steps for layer, why in step["not_pruned"].items()}
    outputs = [layer for layer, why in kept.items() if why == OUTPUT]
    frozen = dict.fromkeys(layer for step in steps for layer in step["frozen"])
    lines = [f"{layer} keeps its width: {why}." for layer, why in kept.items() if why != OUTPUT]
    if outputs:
        lines.append(f"Outputs of the model keep their width: {', '.join(outputs)}.")
    if frozen:
        lines.append(f"Frozen layers were pruned with their coupled group and stay frozen: {', '.join(frozen)}.")
    last = steps[-1]
    if last["cost"] is not None:
        cost = last["cost"]
        lines.append(
            f"Pruned to {100 * cost['fraction']:.1f} % of the dense network's {OF.get(cost['quantity'], 'latency')}."
        )
    if last["misaligned"]:
        lines.append(f"Outside ONNX Runtime's fast layout: {', '.join(last['misaligned'])}.")
    return lines


def _pruner(
    model: nn.Module,
    score: Any,
    method: MethodConfig,
    amount: Amount,
    steps: int,
    config: RunConfig,
    samples: Samples,
    normalise: Normalisation,
    device: torch.device,
) -> Any:
    prune = config.prune
    allocation = prune.allocation_of(method)
    schedule: dict[str, Any] = {}
    if prune.schedule == "keep_fraction":
        schedule = {"iterative_pruning_ratio_scheduler": criteria.keep_fraction_schedule(prune.keep_fraction)}
    return fpt.FairPruner(
        model,
        _example(samples, normalise, device),
        importance=score,
        iterative_steps=steps,
        global_pruning=allocation != "local",
        isomorphic=allocation == "isomorphic",
        max_pruning_ratio=prune.max_pruning_ratio,
        **_layers_and_widths(model, amount, config),
        **schedule,
    )


def _example(samples: Samples, normalise: Normalisation, device: torch.device) -> torch.Tensor:
    return normalise(torch.from_numpy(samples.inputs[samples.rows(Part.TRAIN)[:2]]).to(device))


def _layers_and_widths(model: nn.Module, amount: Amount, config: RunConfig) -> dict[str, Any]:
    """What every pruner is told of the model and of what to prune it to."""
    return {
        "round_to": config.prune.round_to,
        "ignored_layers": ignored_layers(model, config.model),
        "num_heads": num_heads(model, config.model.num_heads) or None,
        **amount.pruner_options,
    }


def ignored_layers(model: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """The modules that ``model.ignored_layers`` names.

    Raises:
        ConfigError: there is no such module.
    """
    return [_module(model, path, "model.ignored_layers") for path in config.ignored_layers]


def num_heads(model: nn.Module, heads: dict[str, int]) -> dict[nn.Module, int]:
    """Attention heads by module, from module paths.

    Raises:
        ConfigError: there is no such module.
    """
    return {_module(model, path, "model.num_heads"): count for path, count in heads.items()}


def _module(model: nn.Module, path: str, key: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path not in modules:
        near = difflib.get_close_matches(path, list(modules), n=3, cutoff=0.3) or list(modules)[1:4]
        raise ConfigError(NO_LAYER.format(key=key, path=path, near=", ".join(near)))
    found: nn.Module = modules[path]
    return found
