"""AutoBot as Meyer and Wong use it (arXiv:2211.10285): learn only the gates, under a budget of MACs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm

from fair_prune_plugins.learned_gates.bilevel import Checkpoint
from fair_prune_plugins.learned_gates.gates import LearnedGates
from fair_prune_plugins.learned_gates.macs import GatedMacs
from fair_prune_plugins.learned_gates.resuming import random_numbers, restored_modes, set_random_numbers
from fair_prune_plugins.learned_gates.settings import AutoBotSettings
from fair_prune_plugins.learned_gates.streams import Objective, Stream


@dataclass
class AutoBotReport:
    """What the loop did.

    Attributes:
        losses: the data loss of every iteration.
        macs: MACs of the gated network in every iteration, as a fraction of the dense network's.
        best: iteration (from 1) whose gates were kept.
        best_loss: its whole loss.
    """

    losses: list[float] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    best: int = 0
    best_loss: float = float("inf")


def budget_term(macs: torch.Tensor, target: float, dense: float) -> torch.Tensor:
    """``(F - T) / (F0 - T)`` above the target, ``1 - F / T`` below it: 1 at the dense network, 0 at the target.

    Args:
        macs: ``F``, of the gated network, a scalar.
        target: ``T``.
        dense: ``F0``.
    """
    return torch.where(macs > target, (macs - target) / (dense - target), 1 - macs / target)


class AutoBotTraining:
    """The loop, and all that a later run needs to go on with it. Weights and buffers of the model stay as they are.

    Args:
        gates: of the model, sigmoids of their scores.
        macs: of the network with these gates.
        target: MACs to come down to.
        objective: the data loss.
        settings: see :class:`AutoBotSettings`.
    """

    def __init__(
        self, gates: LearnedGates, macs: GatedMacs, target: float, objective: Objective, settings: AutoBotSettings
    ) -> None:
        self._gates, self._macs, self._target = gates, macs, target
        self._objective, self._settings = objective, settings
        self._optimizer = torch.optim.Adam([gates.scores], lr=settings.learning_rate)
        self._best = gates.scores.detach().clone()
        self.step = 0
        self.report = AutoBotReport()
        self._numbers: Any = None

    def run(self, stream: Stream, *, progress: bool, checkpoint: Checkpoint | None, checkpoint_every: int) -> None:
        """Take all iterations that are left, then go back to the best gates; the model runs in eval mode.

        Raises:
            InputError: a loss that is not finite, or a loader without people.
        """
        model, device = self._gates.plan.model, self._gates.scores.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), restored_modes(model), self._gates.attached():
            model.eval()
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            if self._numbers is None:
                torch.manual_seed(self._settings.seed)
            else:
                set_random_numbers(self._numbers, device)
            iterations = self._settings.iterations
            with tqdm(
                total=iterations, initial=self.step, desc="learning gates", disable=not progress, leave=False
            ) as bar:
                while self.step < iterations:
                    self._take(stream.next())
                    self.step += 1
                    bar.update()
                    bar.set_postfix(macs=f"{self.report.macs[-1]:.1%}", refresh=False)
                    if checkpoint is not None and self.step % checkpoint_every == 0:
                        checkpoint(self.state_dict(stream))
        with torch.no_grad():
            self._gates.scores.copy_(self._best)

    def state_dict(self, stream: Stream) -> dict[str, Any]:
        """Everything that the iterations to come depend on; a copy."""
        hook = self._objective.hook
        state = {
            "step": self.step,
            "gates": self._gates.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "hook": None if hook is None else hook.state_dict(),
            "report": dict(self.report.__dict__),
            "random": random_numbers(self._gates.scores.device),
            "stream": stream.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any], stream: Stream) -> None:
        """Go on where a saved run was.

        Raises:
            InputError: gates of another model, or a loader of other data.
        """
        state = copy.deepcopy(dict(state))
        self._gates.load_state_dict(state["gates"])
        self._best = state["best"].to(self._gates.scores)
        self._optimizer.load_state_dict(state["optimizer"])
        if (hook := self._objective.hook) is not None:
            hook.load_state_dict(state["hook"])
        self.report = AutoBotReport(**state["report"])
        self.step, self._numbers = state["step"], state["random"]
        stream.load_state_dict(state["stream"])

    def _take(self, batch: Any) -> None:
        settings = self._settings
        values = self._gates.values()
        with self._gates.using(values):
            data = self._objective.loss(self._objective.outputs(batch), batch, self.step + 1)
        macs = self._macs(values)
        rounding = (values - values.detach().round()).abs().mean()
        total = data + settings.beta * budget_term(macs, self._target, self._macs.dense).to(data)
        total = total + settings.rounding * rounding
        report, whole = self.report, float(total.detach())
        report.losses.append(float(data.detach()))
        report.macs.append(float(macs.detach()) / self._macs.dense)
        settled = self.step + 1 > settings.settled * settings.iterations
        if settled and whole < report.best_loss:
            report.best, report.best_loss = self.step + 1, whole
            self._best = self._gates.scores.detach().clone()
        self._optimizer.zero_grad(set_to_none=True)
        (self._gates.scores.grad,) = torch.autograd.grad(total, [self._gates.scores])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
