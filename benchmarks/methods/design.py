"""Which networks the comparison is made of, what is chosen on validation people first, and the order of it all.

Walks are those of the face study: one network, pruned on and on from one share of the MACs to the next. What differs is
that options are tuned, on a seed of its own and on people who rank no channel (see :mod:`benchmarks.methods.bench`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.fairface.design import EXCESS_GAP, STEP_SIZE, DenseTask, Design, Task, WalkTask
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.prune_config import MethodConfig
from fair_prune_plugins.workflow.training_config import LossConfig

Options = Mapping[str, Any]


@dataclass(frozen=True)
class MethodsDesign(Design):
    """How often what is repeated; see :class:`Design`.

    Attributes:
        seeds: of every method under the plain loss, and of ``loss_criteria`` under every loss.
        headline_seeds: of ``loss_criteria`` alone; more than ``seeds`` adds to them.
        loss_criteria: the methods of the factorial with the losses; the reference must be among them.
        tune: whether options are chosen on validation people, or are the defaults.
        tuning_seed: whose dense network the choices are made on; it takes no part in the comparison.
        tuning_macs: shares of the MACs at which candidates are judged.
        learned_share: of the training at each stop that a bi-level method does while it learns its gates.
    """

    seeds: int = 3
    headline_seeds: int = 3
    loss_criteria: tuple[str, ...] = ("taylor", "fairgrape", "PW-Taylor", "bifp")
    tune: bool = True
    tuning_seed: int = 1000
    tuning_macs: tuple[float, ...] = (0.1,)
    learned_share: float = 2 / 3

    def stops_of(self, config: RunConfig, seed: int) -> list[float]:
        """Shares that a seed's walks come by: those of the tuning end early."""
        stops = self.stops(config)
        return [share for share in stops if seed != self.tuning_seed or share >= min(self.tuning_macs)]

    def judged(self, config: RunConfig, seed: int) -> tuple[float, ...]:
        """Shares at which a seed's networks are looked at."""
        return self.tuning_macs if seed == self.tuning_seed else tuple(config.prune.macs)


FACES = MethodsDesign()
ADULT = replace(FACES, seeds=5, headline_seeds=5)
QUICK = replace(FACES, seeds=2, headline_seeds=2, loss_criteria=("taylor",), stopovers=(0.4,), tune=False)
QUICK_SETTINGS = (
    "training.epochs=4",
    "finetune.epochs=2",
    "prune.methods=[taylor, random, worst_group_taylor, bifp, autobot]",
    "prune.macs=[0.1]",
    "finetune.losses=[cross_entropy, group_balanced]",
)
"""For the impatient: some minutes, default options, intervals to match."""


@dataclass(frozen=True)
class Choice:
    """Options that are chosen on validation people.

    Attributes:
        title: of the method or loss.
        values: the candidates; the first is the default.
        of: whose options: the method's own, those of the loss that it ranks under, or those of a loss.
    """

    title: str
    values: tuple[Options, ...]
    of: Literal["method", "collect_loss", "loss"] = "method"

    @property
    def key(self) -> str:
        """Under which the choice is kept: a loss may be called like a method."""
        return f"loss {self.title}" if self.of == "loss" else self.title


_BETAS: tuple[Options, ...] = ({}, {"beta": 0.1}, {"beta": 0.8})
_MASK_RATES: tuple[Options, ...] = ({}, {"mask_lr": 0.003}, {"mask_lr": 0.03}, {"weight_lr": 0.03})
_BUDGETS: tuple[Options, ...] = ({}, {"learning_rate": 0.3}, {"beta": 1.0})
_WEIGHTS: tuple[Options, ...] = ({}, {"theta": 0.3, "gamma": 1.0}, {"theta": 0.75, "gamma": 3.0})
_MIXES: tuple[Options, ...] = (
    {},
    {"weights": {"group_balanced_taylor": 0.8, "fairprune": 0.2}},
    {"weights": {"group_balanced_taylor": 0.8, "snnl": 0.2}},
)


def choices(config: RunConfig, design: MethodsDesign) -> list[Choice]:
    """What is tuned: the knobs that a paper tunes, or leaves open, by three to five candidates each."""
    if not design.tune:
        return []
    penalties = tuple({"weight_penalty": penalty, "mask_penalty": penalty} for penalty in (0.3, 0.1))
    every = [
        Choice("fairprune", _BETAS),
        Choice("fairprune elementwise", _BETAS),
        Choice("snnl", ({}, {"temperature": 0.1})),
        Choice("rank_mix", _MIXES),
        Choice("PW-Taylor", _WEIGHTS, "collect_loss"),
        Choice("bip", _MASK_RATES),
        Choice("bifp", (*_MASK_RATES, *penalties)),
        Choice("autobot", _BUDGETS),
        Choice("PW-AutoBot", _WEIGHTS, "collect_loss"),
        Choice("performance_weighted", _WEIGHTS, "loss"),
        Choice(EXCESS_GAP, tuple({STEP_SIZE: size} for size in design.step_sizes), "loss"),
    ]
    methods = {m.title for m in config.prune.methods}
    losses = {loss.title for loss in config.finetune.losses}
    return [choice for choice in every if choice.title in (losses if choice.of == "loss" else methods)]


def with_options(method: MethodConfig, options: Options, of: str) -> MethodConfig:
    """A method with options of its own, or of the loss that it ranks under, added."""
    if of == "method":
        return method.model_copy(update={"options": {**method.options, **options}})
    assert method.collect_loss is not None
    return method.model_copy(update={"collect_loss": loss_with(method.collect_loss, options)})


def loss_with(loss: LossConfig, options: Options) -> LossConfig:
    """A loss with options added."""
    return loss.model_copy(update={"options": {**loss.options, **options}})


def candidates(config: RunConfig, design: MethodsDesign, choice: Choice) -> list[WalkTask]:
    """A walk of the tuning seed for each candidate; a loss's are those of the reference."""
    by_title = {m.title: m for m in config.prune.methods}
    walks = []
    for number, options in enumerate(choice.values, start=1):
        label = {"label": f"{choice.title} candidate {number}"}
        if choice.of == "loss":
            loss = next(x for x in config.finetune.losses if x.title == choice.title)
            walks.append((config.prune.methods[0], loss_with(loss, options).model_copy(update=label)))
        else:
            changed = with_options(by_title[choice.title], options, choice.of).model_copy(update=label)
            walks.append((changed, config.finetune.losses[0]))
    return [WalkTask(design.tuning_seed, method, loss) for method, loss in walks]


def walks(config: RunConfig, design: MethodsDesign) -> list[WalkTask]:
    """All walks but those of the tuning, in the order to make them: what tells most comes first.

    Every method under the plain loss, seed by seed; the factorial with the losses; further seeds of the headline.
    """
    plain, *others = config.finetune.losses
    methods = config.prune.methods
    headline = [m for m in methods if m.title in design.loss_criteria]
    tiers = [
        (range(design.seeds), methods, [plain]),
        (range(design.seeds), headline, others),
        (range(design.seeds, design.headline_seeds), headline, [plain, *others]),
    ]
    waits = {
        choice.key: tuple(task.name for task in candidates(config, design, choice))
        for choice in choices(config, design)
    }
    return [
        WalkTask(seed, method, loss, (*waits.get(method.title, ()), *waits.get(f"loss {loss.title}", ())))
        for seeds, chosen, losses in tiers
        for seed in seeds
        for loss in losses
        for method in chosen
    ]


def tasks(config: RunConfig, design: MethodsDesign) -> list[Task]:
    """Everything there is to do, in order.

    On the first seed what needs no tuning goes first; a method's candidates stand right before its first walk.
    """
    return list(_ordered(config, design))


def _ordered(config: RunConfig, design: MethodsDesign) -> Iterator[Task]:
    planned = walks(config, design)
    first, later = planned[: len(config.prune.methods)], planned[len(config.prune.methods) :]
    tuning = {task.name: task for choice in choices(config, design) for task in candidates(config, design, choice)}
    seeds = list(dict.fromkeys(task.seed for task in planned))
    dense = [*seeds[:1], *([design.tuning_seed] if tuning else []), *seeds[1:]]
    yield from map(DenseTask, dense[:2])
    dense = dense[2:]
    started = set(seeds[:1])
    for task in [*sorted(first, key=lambda t: bool(t.after)), *later]:
        if (starts := task.seed not in started) or task.after:  # each dense network a while before it is needed
            started.add(task.seed)
            yield from map(DenseTask, dense[:1])
            dense = dense[1:]
        assert not starts or DenseTask(task.seed).seed not in dense
        yield from [tuning.pop(name) for name in task.after if name in tuning]
        yield task
