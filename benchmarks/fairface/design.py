"""Which networks the study is made of, and in which order they are made.

One walk takes a trained network of one seed, prunes it by one criterion from one share of the MACs to the next, and
trains it in between with one loss. All walks of one seed start from the same dense network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.prune_config import MethodConfig
from fair_prune_plugins.workflow.training_config import LossConfig

EXCESS_GAP, STEP_SIZE = "excess_gap", "step_size"


@dataclass(frozen=True)
class Design:
    """How often what is repeated.

    Attributes:
        seeds: of the complete factorial, every criterion with every loss; they are 0, 1, 2, ...
        headline_seeds: of the headline: every criterion under the plain loss, every loss under ``loss_criteria``.
        loss_criteria: see there.
        stopovers: shares of the MACs at which a walk trains for ``finetune.epochs_between`` and is not judged.
        step_sizes: what the dual step size of the excess-gap loss is chosen from, on validation people of seed 0. Its
            default is meant for trainings that are a hundred times as long.
    """

    seeds: int = 5
    headline_seeds: int = 7
    loss_criteria: tuple[str, ...] = ("taylor", "fairgrape")
    stopovers: tuple[float, ...] = (0.5,)
    step_sizes: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)

    def is_headline(self, config: RunConfig, method: MethodConfig, loss: LossConfig) -> bool:
        """Whether a pair gets ``headline_seeds``."""
        return loss == config.finetune.losses[0] or method.title in self.loss_criteria

    def stops(self, config: RunConfig) -> list[float]:
        """Shares of the dense network's MACs that a walk comes by, from most to least."""
        return sorted({*self.stopovers, *config.prune.macs}, reverse=True)


QUICK = Design(seeds=0, headline_seeds=2, loss_criteria=("taylor",), stopovers=(0.4,), step_sizes=(0.1,))
QUICK_SETTINGS = (
    "name=FairFace at 64 pixels, the quick variant of the study",
    "training.epochs=4",
    "finetune.epochs=1",
    "prune.methods=[taylor, magnitude, fairgrape]",
    "prune.macs=[0.1]",
    "finetune.losses=[cross_entropy, group_balanced]",
)
"""For the impatient: some minutes, and intervals to match."""


@dataclass(frozen=True)
class DenseTask:
    """Train the dense network of a seed."""

    seed: int

    @property
    def name(self) -> str:
        """Also its folder."""
        return f"seed-{self.seed}/dense"

    def needs(self) -> tuple[str, ...]:
        """What must be finished before."""
        return ()


@dataclass(frozen=True)
class WalkTask:
    """Prune the dense network of a seed all the way down.

    Attributes:
        seed: whose dense network.
        method: the criterion.
        loss: of the training in between.
        after: names of tasks that must be finished before, beside the dense network's.
    """

    seed: int
    method: MethodConfig
    loss: LossConfig
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Also its folder."""
        return walk_name(self.seed, self.method.slug, self.loss.slug)

    def needs(self) -> tuple[str, ...]:
        """What must be finished before."""
        return (DenseTask(self.seed).name, *self.after)


Task = DenseTask | WalkTask


def walk_name(seed: int, method: str, loss: str) -> str:
    """The folder of a walk, from the slugs of criterion and loss."""
    return f"seed-{seed}/{method}/{loss}"


def tuning(config: RunConfig, design: Design) -> list[WalkTask]:
    """The walks among which the step size of the excess-gap loss is chosen; none if the configuration gives it."""
    if not any(is_untuned(loss) for loss in config.finetune.losses):
        return []
    sizes = [
        LossConfig(name=EXCESS_GAP, label=f"{EXCESS_GAP} step {size:g}", options={STEP_SIZE: size})
        for size in design.step_sizes
    ]
    return [WalkTask(0, config.prune.methods[0], loss) for loss in sizes]


def is_untuned(loss: LossConfig) -> bool:
    """Whether a loss still asks for its step size."""
    return loss.name == EXCESS_GAP and STEP_SIZE not in loss.options


def walks(config: RunConfig, design: Design) -> list[WalkTask]:
    """All walks but those of the tuning, in the order to make them: what tells most comes first.

    Criteria under the plain loss over seeds; losses under the headline's criteria over the same seeds; further seeds of
    both; what completes the factorial.
    """
    plain = config.finetune.losses[0]
    first = range(design.seeds or design.headline_seeds)
    pairs = [(method, loss) for loss in config.finetune.losses for method in config.prune.methods]
    headline = [pair for pair in pairs if design.is_headline(config, *pair)]
    tiers = [
        (first, [pair for pair in headline if pair[1] == plain]),
        (first, [pair for pair in headline if pair[1] != plain]),
        (range(len(first), design.headline_seeds), headline),
        (range(design.seeds), [pair for pair in pairs if pair not in headline]),
    ]
    tuned = tuple(task.name for task in tuning(config, design))
    return [
        WalkTask(seed, method, loss, tuned if is_untuned(loss) else ())
        for seeds, chosen in tiers
        for seed in seeds
        for method, loss in chosen
    ]


def tasks(config: RunConfig, design: Design) -> list[Task]:
    """Everything there is to do, in order: each dense network one seed ahead of where it is needed."""
    return list(_with_dense(config, design))


def _with_dense(config: RunConfig, design: Design) -> Iterator[Task]:
    planned = walks(config, design)
    seeds = list(dict.fromkeys(task.seed for task in planned))
    yield from map(DenseTask, seeds[:1])
    tuned = tuning(config, design)
    started: set[int] = set()
    for task in planned:
        if task.seed not in started:
            started.add(task.seed)
            yield from map(DenseTask, seeds[len(started) : len(started) + 1])
        if task.after:
            yield from tuned
            tuned = []
        yield task
