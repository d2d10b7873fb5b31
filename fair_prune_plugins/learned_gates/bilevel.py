"""The bi-level loop of BiFP (arXiv:2312.10181) and of BiP, which it extends, on gates of whole units.

Lower level: the weights, with the gates as they are. Upper level: the gates, with weights that follow them. With ``z``
the weights a gate multiplies (the consumers' columns ``W_c`` of its unit: ``z_e = m_c W_e``) and a lower level
``min_W loss(z) + gamma/2 |W|^2`` whose loss has no curvature in ``z``, the best weights move with the gates as
``dW_e/dm_c = -g_e / gamma``, ``g = d loss / d z``. Hence, summed over the columns of unit c,

    d loss / d m_c  =  sum_e W_e g_e  -  (m_c / gamma) sum_e g_e^2.

The first sum is the derivative by the gate itself, also of a closed one, whose unit may so come back. The second needs
no ``g``: ``m_c g_e`` is the ordinary gradient of ``W_e``, so it is ``1 / (gamma m_c)`` times the sum of squared weight
gradients, and 0 for closed gates. (BiP's released code multiplies gradients of scores instead; this is its formula.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from fair_prune_plugins.learned_gates.gates import LearnedGates
from fair_prune_plugins.learned_gates.resuming import random_numbers, restored_modes, set_random_numbers
from fair_prune_plugins.learned_gates.settings import BiFPSettings
from fair_prune_plugins.learned_gates.streams import Objective, Stream
from fair_prune_plugins.learned_gates.surrogate import FairnessTerm
from fair_prune_plugins.learned_gates.top_k import ramp, straight_through

Checkpoint = Callable[[dict[str, Any]], None]
"""Is given the training's state, to save it."""

Keeper = Callable[[float], torch.Tensor]
"""Tells from the gates which units stay (bool ``[columns]``) when a share of what goes in the end is gone."""


@dataclass
class BiFPReport:
    """What the loop did.

    Attributes:
        weight_losses: the data loss of every lower step.
        mask_losses: the data loss of every upper step.
        gaps: the groups' gap at every upper step that could tell.
        weight_penalty: what the gap's penalty counts at the lower level, at the end.
        mask_penalty: the same at the upper level.
        skipped_weight_steps: lower steps without the fairness term, because their batch lacked a group.
        skipped_mask_steps: the same of upper steps.
    """

    weight_losses: list[float] = field(default_factory=list)
    mask_losses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    weight_penalty: float = 0.0
    mask_penalty: float = 0.0
    skipped_weight_steps: int = 0
    skipped_mask_steps: int = 0


def gate_gradient(
    gates: LearnedGates, kept: torch.Tensor, loss: Callable[[], torch.Tensor], inverse_gamma: float
) -> torch.Tensor:
    """The upper level's gradient by the gates, ``[columns]``; see the module.

    Args:
        gates: attached to the model.
        kept: bool ``[columns]``: the binary gates that the model runs with.
        loss: computes the upper level's loss.
        inverse_gamma: ``1 / gamma``; 0 leaves the weights' answer out.
    """
    model = gates.plan.model
    weights = {n: p for n in gates.folded_parameters if (p := model.get_parameter(n)).requires_grad}
    with gates.using(straight_through(gates.scores, kept.to(gates.scores.device))):
        total = loss()
    direct, *by_weights = torch.autograd.grad(
        total, [gates.scores, *weights.values()], allow_unused=True, materialize_grads=True
    )
    if inverse_gamma:
        squares = {name: g.square() for name, g in zip(weights, by_weights, strict=True)}
        direct = direct - inverse_gamma * kept.to(direct) * gates.unit_sums(squares)
    return direct


class BilevelTraining:
    """The loop, and all that a later run needs to go on with it.

    Args:
        gates: of the model; their scores are the masks.
        objective: the data loss.
        term: the fairness term, or ``None`` (BiP).
        settings: see :class:`BiFPSettings`.
        steps: upper steps in all.
        keep: tells which units stay.
    """

    def __init__(
        self,
        gates: LearnedGates,
        objective: Objective,
        term: FairnessTerm | None,
        settings: BiFPSettings,
        steps: int,
        keep: Keeper,
    ) -> None:
        self._gates, self._objective, self._term = gates, objective, term
        self._settings, self._steps, self._keep = settings, steps, keep
        self._model = gates.plan.model
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        decayed = [p for p in self._trained if p.ndim > 1]
        free = [p for p in self._trained if p.ndim <= 1]
        sets = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
        self._weights = torch.optim.SGD(
            [s for s in sets if s["params"]] or [{"params": [torch.zeros(())]}],
            lr=settings.weight_lr,
            momentum=settings.momentum,
        )
        self._masks = torch.optim.SGD([gates.scores], lr=settings.mask_lr)
        self.step = 0
        self.report = BiFPReport()
        self.report.weight_penalty = 0.0 if term is None else settings.weight_penalty
        self.report.mask_penalty = 0.0 if term is None else settings.mask_penalty
        self._numbers: Any = None

    def run(
        self,
        lower: Stream,
        upper: Stream,
        *,
        progress: bool,
        checkpoint: Checkpoint | None,
        checkpoint_every: int,
    ) -> None:
        """Take all steps that are left; the model's modes and ``.grad`` are put back, also after an exception.

        Raises:
            InputError: a loss that is not finite, or a loader without people.
        """
        device = self._gates.scores.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _in_training(self._model), self._gates.attached():
            if self._numbers is None:
                torch.manual_seed(self._settings.seed)
            else:
                set_random_numbers(self._numbers, device)
            with tqdm(
                total=self._steps, initial=self.step, desc="learning gates", unit=" steps", disable=not progress,
                leave=False,
            ) as bar:  # fmt: skip
                while self.step < self._steps:
                    self._take(lower, upper)
                    self.step += 1
                    bar.update()
                    if self.step % 10 == 0:
                        gap = f"{self.report.gaps[-1]:.3f}" if self.report.gaps else "-"
                        bar.set_postfix(loss=f"{self.report.mask_losses[-1]:.3f}", gap=gap, refresh=False)
                    if checkpoint is not None and self.step % checkpoint_every == 0:
                        checkpoint(self.state_dict(lower, upper))

    def state_dict(self, lower: Stream, upper: Stream) -> dict[str, Any]:
        """Everything that the steps to come depend on; a copy."""
        hook = self._objective.hook
        state = {
            "step": self.step,
            "gates": self._gates.state_dict(),
            "model": self._model.state_dict(),
            "weights": self._weights.state_dict(),
            "masks": self._masks.state_dict(),
            "hook": None if hook is None else hook.state_dict(),
            "report": dict(self.report.__dict__),
            "random": random_numbers(self._gates.scores.device),
            "lower": lower.state_dict(),
            "upper": upper.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any], lower: Stream, upper: Stream) -> None:
        """Go on where a saved run was.

        Raises:
            InputError: gates of another model, or loaders of other data.
        """
        state = copy.deepcopy(dict(state))
        self._gates.load_state_dict(state["gates"])
        self._model.load_state_dict(state["model"])
        self._weights.load_state_dict(state["weights"])
        self._masks.load_state_dict(state["masks"])
        if (hook := self._objective.hook) is not None:
            hook.load_state_dict(state["hook"])
        self.report = BiFPReport(**state["report"])
        self.step, self._numbers = state["step"], state["random"]
        lower.load_state_dict(state["lower"])
        upper.load_state_dict(state["upper"])

    def _take(self, lower: Stream, upper: Stream) -> None:
        settings = self._settings
        gone = ramp(self.step, math.ceil(settings.ramp * self._steps))
        kept = self._keep(gone)
        done = self.step / self._steps
        for options in self._weights.param_groups:
            options["lr"] = settings.weight_lr * 0.5 * (1 + math.cos(math.pi * done))
        for options in self._masks.param_groups:
            options["lr"] = settings.mask_lr * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
        for _ in range(settings.weight_steps):
            self._lower(lower.next(), kept)
        self._upper(upper.next(), kept)

    def _lower(self, batch: Any, kept: torch.Tensor) -> None:
        report = self.report
        with self._gates.using(kept.to(self._gates.scores)), self._learning(True):
            data, gap = self._terms(batch)
        total = self._with_penalty(data, gap, report.weight_penalty)
        report.weight_losses.append(float(data.detach()))
        gradients = torch.autograd.grad(total, self._trained, allow_unused=True) if self._trained else []
        for p, gradient in zip(self._trained, gradients, strict=True):
            p.grad = gradient
        self._weights.step()
        self._weights.zero_grad(set_to_none=True)
        if self._settings.weight_penalty and self._term is not None:
            report.skipped_weight_steps += gap is None
            report.weight_penalty = self._raised(report.weight_penalty, gap)

    def _upper(self, batch: Any, kept: torch.Tensor) -> None:
        report = self.report
        seen: list[torch.Tensor | None] = []

        def loss() -> torch.Tensor:
            with self._learning(False):
                data, gap = self._terms(batch)
            report.mask_losses.append(float(data.detach()))
            seen.append(gap)
            return self._with_penalty(data, gap, report.mask_penalty)

        self._gates.scores.grad = gate_gradient(self._gates, kept, loss, self._settings.inverse_gamma)
        self._masks.step()
        self._masks.zero_grad(set_to_none=True)
        self._gates.project()
        (gap,) = seen
        if gap is not None:
            report.gaps.append(float(gap.detach()))
        if self._settings.mask_penalty and self._term is not None:
            report.skipped_mask_steps += gap is None
            report.mask_penalty = self._raised(report.mask_penalty, gap)

    def _terms(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The data loss, and the groups' gap."""
        outputs = self._objective.outputs(batch)
        data = self._objective.loss(outputs, batch, self.step + 1)
        if self._term is None:
            return data, None
        targets = self._objective.truth(batch, self._gates.scores.device)
        return data, self._term.gap(outputs, targets, self._objective.codes(batch))

    def _with_penalty(self, data: torch.Tensor, gap: torch.Tensor | None, penalty: float) -> torch.Tensor:
        return data if gap is None or self._term is None else data + penalty * self._term.penalised(gap)

    def _raised(self, penalty: float, gap: torch.Tensor | None) -> float:
        """Dual ascent: what the penalty counts grows while the gap is above tau, and shrinks below."""
        rate = self._settings.dual_rate
        if gap is None or not rate:
            return penalty
        return max(penalty + rate * (float(gap.detach()) - self._settings.tau), 0.0)

    @contextmanager
    def _learning(self, learns: bool) -> Iterator[None]:
        """Whether the loss hook's state moves on: only with the weights."""
        hook = self._objective.hook
        if hook is None:
            yield
            return
        before = hook.training
        hook.train(learns)
        try:
            yield
        finally:
            hook.train(before)


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    with restored_modes(model):
        model.train()
        yield
