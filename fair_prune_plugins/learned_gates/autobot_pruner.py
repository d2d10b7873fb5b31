"""AutoBot as a pruner: learn gates within a MACs budget, then remove the smallest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fair_prune_plugins.learned_gates.autobot import AutoBotReport, AutoBotTraining
from fair_prune_plugins.learned_gates.base import LearnedGatePruner, check_count, check_one_ranking
from fair_prune_plugins.learned_gates.bilevel import Checkpoint
from fair_prune_plugins.learned_gates.gates import LearnedGates
from fair_prune_plugins.learned_gates.macs import GatedMacs
from fair_prune_plugins.learned_gates.settings import AutoBotSettings
from fair_prune_plugins.learned_gates.streams import Objective, Stream
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.sample_losses import LossFn
from fair_prune_plugins.statistics.walking import Groups
from fair_prune_plugins.torch_pruning import CostTarget


class AutoBotPruner(LearnedGatePruner):
    """AutoBot with a MACs budget, as Meyer and Wong, 2022 (arXiv:2211.10285) use it: gates are learned while the
    weights stay as they are, then the smallest gates of the whole model are removed until the budget is met.

    With :class:`~fair_prune_plugins.losses.PerformanceWeightedLoss` as ``loss_fn`` it is their fair variant; its
    weights are below 1, which shifts the balance with the budget unless ``normalise=True``. The weights after pruning
    follow ``settings.weights`` whatever the loss.

    Args:
        model: the model; only ``step()`` changes it.
        example_inputs: what it is called with.
        target: ``CostTarget(macs=...)``.
        settings: see :class:`AutoBotSettings`.
        max_pruning_ratio: no coupled group loses more than this share; at 1, one unit of each stays.
        pruner_options: other options of :class:`~fair_prune_plugins.torch_pruning.FairPruner`.

    Raises:
        InputError: options out of range, or no MACs target.
        UnsupportedModelError: see :class:`~fair_prune_plugins.torch_pruning.FairPruner`.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        target: CostTarget,
        settings: AutoBotSettings | None = None,
        max_pruning_ratio: float = 1.0,
        **pruner_options: Any,
    ) -> None:
        self.settings = AutoBotSettings() if settings is None else settings
        check_one_ranking("AutoBotPruner", target, pruner_options)
        super().__init__(
            model,
            example_inputs,
            sigmoid=True,
            initial=self.settings.initial,
            global_pruning=True,
            target=target,
            max_pruning_ratio=max_pruning_ratio,
            **pruner_options,
        )

    def fit(
        self,
        loader: Iterable[Any],
        loss_fn: LossFn | LossHook | BatchLoss,
        *,
        groups: Groups | None = None,
        inputs: BatchSource = AUTO,
        targets: BatchSource | None = AUTO,
        output: Source | None = None,
        checkpoint: Checkpoint | None = None,
        checkpoint_every: int = 100,
        progress: bool = True,
    ) -> AutoBotReport:
        """Learn the gates; call it before ``step()``. The model runs in eval mode and is left exactly as it was.

        Args:
            loader: yields batches, again and again.
            loss_fn: see :meth:`BiFPPruner.fit`.
            groups: for a loss hook that needs them.
            inputs: see :meth:`BiFPPruner.fit`, as for all that follow.
            targets: see there.
            output: see there.
            checkpoint: see there.
            checkpoint_every: see there.
            progress: see there.

        Returns:
            What happened on the way.

        Raises:
            InputError: losses that are not finite, a loader without people, or gates learned already.
        """
        self._check_unfitted()
        check_count("checkpoint_every", checkpoint_every)
        plan = self.gates.plan
        macs = GatedMacs(plan, self.gates.columns, self.example_inputs)
        assert self._gauge is not None
        objective = Objective.of(plan, loss_fn, groups, inputs, targets, output)
        stream = Stream(loader, "loader", objective)
        training = AutoBotTraining(self.gates, macs, self._gauge.fraction * macs.dense, objective, self.settings)
        if self._saved is not None:
            training.load_state_dict(self._saved, stream)
        training.run(stream, progress=progress, checkpoint=checkpoint, checkpoint_every=checkpoint_every)
        self._learned(training.state_dict(stream))
        return training.report

    def step(self, interactive: bool = False, *, optimizer: Optimizer | None = None) -> Any:
        """Remove the units with the smallest gates, with ``weights="folded"`` after putting the gates into the weights;
        see :meth:`FairPruner.step <fair_prune_plugins.torch_pruning.FairPruner.step>`.

        Raises:
            ScoreError: the gates were not learned.
        """
        if self.settings.weights == "dense" or not self.importance.learned:
            return super().step(interactive, optimizer=optimizer)
        with _put_back_on_error(self.gates):
            self.gates.fold()
            return super().step(interactive, optimizer=optimizer)


@contextmanager
def _put_back_on_error(gates: LearnedGates) -> Iterator[None]:
    parameters = [gates.plan.model.get_parameter(name) for name in gates.folded_parameters]
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, values in zip(parameters, before, strict=True):
                p.copy_(values)
        raise
