"""What the methods that learn gates can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.learned_gates.surrogate import Penalty, Surrogate, check_surrogate
from fair_prune_plugins.losses.labels import Task, check_task

Allocation = Literal["uniform", "macs"]
Initial = Literal["magnitude", "random"]

NOT_POSITIVE = "{name} must be a finite number above 0, got {value!r}"
NEGATIVE = "{name} must be a finite number of at least 0, got {value!r}"
NOT_AMONG = "{name} must be one of {known}, got {value!r}"
NOT_WHOLE = "{name} must be a whole number of at least 1, got {value!r}"
TAU_ALONE = (
    "tau={tau!r} has no effect with penalty='absolute' and dual_rate=0: take penalty='hinge', or a dual_rate above 0"
)


@dataclass(frozen=True)
class BiFPSettings:
    """Options of BiFP and BiP.

    The papers leave open most numbers: BiFP (arXiv:2312.10181, version 1) states no learning rate, batch size, penalty,
    tau or surrogate. Where a default is BiP's, it is that of its released configurations.

    Attributes:
        weight_lr: of SGD on the weights, falling to 0 along a cosine. BiP: 0.1 on small images, 0.01 on ImageNet.
        momentum: of SGD on the weights (BiP).
        weight_decay: of weights that are not biases or norms (BiP; it decays those too).
        weight_steps: lower steps per upper step.
        mask_lr: of SGD on the gates: a tenth from half of the steps on, a hundredth from three quarters on (BiP). BiP
            has 0.1, for scores of single weights; the derivative by a unit's gate is a sum over all its weights, and
            units that change places in every step leave the weights nothing to follow.
        inverse_gamma: ``1 / gamma``, how strongly the weights' answer counts in the gates' gradient (BiP's ``lr2``); 0
            leaves it out.
        initial: gates at first: in proportion to the norm of the rows that make the unit (BiP's scaling, here on
            units), or drawn from (0, 1) (BiFP's wording).
        allocation: which gates are open: the largest of every coupled group, as many as the pruner keeps of it
            (``"uniform"``, as BiP does for filters), or the largest of the whole model within the MACs target.
        ramp: share of the steps in which the number of closed gates grows to its end, by a cubic; at 0 it is there from
            the first step on (BiP).
        weight_penalty: what the fairness term counts at the lower level; 0 is the paper's ablation "w/o w".
        mask_penalty: what it counts at the upper level; 0 is the ablation "w/o m".
        dual_rate: both grow by ``dual_rate * (gap - tau)`` in every step, never below 0; one that is 0 stays 0.
        surrogate: see :class:`~fair_prune_plugins.learned_gates.surrogate.FairnessTerm`, as for those that follow.
        sharpness: see there.
        penalty: see there.
        tau: see there.
        task: see there.
        seed: of all randomness of the loop.

    Raises:
        InputError: a value out of range.
    """

    weight_lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_steps: int = 1
    mask_lr: float = 0.01
    inverse_gamma: float = 1e-4
    initial: Initial = "magnitude"
    allocation: Allocation = "uniform"
    ramp: float = 0.0
    weight_penalty: float = 1.0
    mask_penalty: float = 1.0
    dual_rate: float = 0.0
    surrogate: Surrogate = "sigmoid"
    sharpness: float = 1.0
    penalty: Penalty = "absolute"
    tau: float = 0.0
    task: Task = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("momentum", "weight_decay", "inverse_gamma", "weight_penalty", "mask_penalty", "dual_rate"):
            _not_negative(name, getattr(self, name))
        for name in ("weight_lr", "mask_lr"):
            _positive(name, getattr(self, name))
        _whole("weight_steps", self.weight_steps)
        _among("initial", self.initial, ("magnitude", "random"))
        _among("allocation", self.allocation, ("uniform", "macs"))
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp is a share of the steps, 0 to 1, got {self.ramp!r}")
        check_surrogate(self.surrogate, self.sharpness, self.penalty, self.tau)
        if self.tau and self.penalty == "absolute" and not self.dual_rate:
            raise InputError(TAU_ALONE.format(tau=self.tau))
        check_task(self.task, 0.0)

    @property
    def fair(self) -> bool:
        """Whether the fairness term counts anywhere."""
        return self.weight_penalty > 0 or self.mask_penalty > 0


@dataclass(frozen=True)
class AutoBotSettings:
    """Options of AutoBot.

    Defaults are those of the script for CelebA and ResNet-18 that is released with Meyer and Wong, 2022
    (arXiv:2211.10285); its scripts for other networks take learning rates of 0.7 to 1.88 and betas of 0.5 to 6.76.

    Attributes:
        learning_rate: of Adam on the gates' parameters.
        beta: what the distance to the MACs target counts beside the data loss.
        iterations: batches to learn from.
        rounding: what ``mean |gate - round(gate)|`` counts; 0 in all released scripts.
        initial: gates at first.
        settled: share of the iterations after which the best gates, by their batch's whole loss, are kept.
        weights: what the survivors' weights are after pruning: ``"dense"``, as they were; or ``"folded"``, with the
            gates put into the consumers' columns, so that the network computes what it did with the gates that stay.
        seed: of all randomness of the loop.

    Raises:
        InputError: a value out of range.
    """

    learning_rate: float = 0.85
    beta: float = 2.7
    iterations: int = 200
    rounding: float = 0.0
    initial: float = 0.9
    settled: float = 0.6
    weights: Literal["dense", "folded"] = "dense"
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _not_negative("beta", self.beta)
        _not_negative("rounding", self.rounding)
        _whole("iterations", self.iterations)
        _among("weights", self.weights, ("dense", "folded"))
        if not 0 < self.initial < 1:
            raise InputError(f"initial is a gate strictly between 0 and 1, got {self.initial!r}")
        if not 0 <= self.settled < 1:
            raise InputError(f"settled is a share of the iterations, at least 0 and below 1, got {self.settled!r}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(NOT_POSITIVE.format(name=name, value=value))


def _not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(NEGATIVE.format(name=name, value=value))


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(NOT_WHOLE.format(name=name, value=value))


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(NOT_AMONG.format(name=name, known=", ".join(map(repr, known)), value=value))
