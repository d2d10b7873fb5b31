"""BiFP and BiP as pruners: learn gates and weights, then remove what the gates close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates import CoupledGroup
from fair_prune_plugins.learned_gates.base import LearnedGatePruner, check_count, check_one_ranking
from fair_prune_plugins.learned_gates.bilevel import BiFPReport, BilevelTraining, Checkpoint, Keeper
from fair_prune_plugins.learned_gates.initial import set_magnitudes, set_random
from fair_prune_plugins.learned_gates.macs import GatedMacs
from fair_prune_plugins.learned_gates.settings import BiFPSettings
from fair_prune_plugins.learned_gates.streams import Objective, Stream
from fair_prune_plugins.learned_gates.surrogate import FairnessTerm
from fair_prune_plugins.learned_gates.top_k import keep_within
from fair_prune_plugins.losses import LossHook
from fair_prune_plugins.losses.batch_loss import BatchLoss
from fair_prune_plugins.picking import Source
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.sample_losses import LossFn
from fair_prune_plugins.statistics.walking import Groups
from fair_prune_plugins.torch_pruning.selection import floor_count

NEEDS_GROUPS = (
    "{pruner} compares sensitive groups: pass groups= the key, index or callable that finds them in a batch, or take "
    "BiPPruner, which does not"
)
NO_GROUPS = "{pruner} compares no groups without penalties, and this loss takes none from it: leave out groups="
ONE_GROUP = "the data have people of {found}; a gap needs people of at least two groups"


class BiFPPruner(LearnedGatePruner):
    """BiFP (arXiv:2312.10181), structured: gates and weights are learned in turn, both with a fairness term, and the
    units whose gates are closed are removed.

    Args:
        model: the model; its weights are trained by :meth:`fit`, and it is pruned by ``step()``.
        example_inputs: what it is called with.
        settings: see :class:`BiFPSettings`.
        pruner_options: ``pruning_ratio=`` or ``target=``, and all other options of
            :class:`~fair_prune_plugins.torch_pruning.FairPruner` but ``global_pruning``, which
            ``settings.allocation`` decides about.

    Raises:
        InputError: options out of range; ``allocation="macs"`` without a MACs target.
        UnsupportedModelError: see :class:`~fair_prune_plugins.torch_pruning.FairPruner`.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, *, settings: BiFPSettings | None = None, **pruner_options: Any
    ) -> None:
        self.settings = BiFPSettings() if settings is None else settings
        together = self.settings.allocation == "macs"
        if together:
            check_one_ranking("allocation='macs'", pruner_options.get("target"), pruner_options)
        super().__init__(model, example_inputs, sigmoid=False, initial=1.0, global_pruning=together, **pruner_options)
        if self.settings.initial == "magnitude":
            set_magnitudes(self.gates)
        else:
            set_random(self.gates, self.settings.seed)

    def fit(
        self,
        loader_lower: Iterable[Any],
        loader_upper: Iterable[Any],
        loss_fn: LossFn | LossHook | BatchLoss,
        *,
        steps: int,
        groups: Groups | None = None,
        inputs: BatchSource = AUTO,
        targets: BatchSource | None = AUTO,
        output: Source | None = None,
        checkpoint: Checkpoint | None = None,
        checkpoint_every: int = 100,
        progress: bool = True,
    ) -> BiFPReport:
        """Learn gates and weights; call it before ``step()``.

        The model runs in training mode while it learns and is in its own modes afterwards. Frozen layers stay as they
        are. All randomness comes from ``settings.seed``, as far as torch draws it.

        Args:
            loader_lower: yields the batches that the weights learn from, again and again.
            loader_upper: yields the batches that the gates learn from: other people than the weights'.
            loss_fn: ``loss_fn(outputs, targets)``, one value per sample or their mean; a loss hook of
                :mod:`fair_prune_plugins.losses`, whose state moves on in the lower steps only; or what its
                ``on_batches`` gives.
            steps: upper steps.
            groups: where a batch has the sensitive group: a key, index or callable, or several for intersections.
            inputs: where it has the model's inputs.
            targets: where it has the targets: hard labels, which the fairness term needs.
            output: takes the logits out of what the model returns.
            checkpoint: called with the training state after every ``checkpoint_every`` steps.
            checkpoint_every: see there.
            progress: show a progress bar.

        Returns:
            What happened on the way.

        Raises:
            InputError: no groups, people of a single group, losses that are not finite, or gates learned already.
        """
        self._check_unfitted()
        check_count("steps", steps)
        check_count("checkpoint_every", checkpoint_every)
        fair = self.settings.fair
        if fair and groups is None:
            raise InputError(NEEDS_GROUPS.format(pruner=type(self).__name__))
        if not fair and groups is not None and not isinstance(loss_fn, LossHook):
            raise InputError(NO_GROUPS.format(pruner=type(self).__name__))
        objective = Objective.of(self.gates.plan, loss_fn, groups, inputs, targets, output)
        term = None
        if fair:
            objective, counts = objective.with_groups_of(loader_lower, loader_upper)
            term = self._term(counts)
        lower, upper = (
            Stream(loader, name, objective)
            for loader, name in ((loader_lower, "loader_lower"), (loader_upper, "loader_upper"))
        )
        training = BilevelTraining(self.gates, objective, term, self.settings, steps, self._keeper())
        if self._saved is not None:
            training.load_state_dict(self._saved, lower, upper)
        training.run(lower, upper, progress=progress, checkpoint=checkpoint, checkpoint_every=checkpoint_every)
        self._learned(training.state_dict(lower, upper))
        return training.report

    def _term(self, counts: Mapping[str, int]) -> FairnessTerm:
        people = sum(counts.values())
        if sum(count > 0 for count in counts.values()) < 2:
            raise InputError(ONE_GROUP.format(found=[name for name, count in counts.items() if count] or "no group"))
        s = self.settings
        shares = [count / people for count in counts.values()]
        return FairnessTerm(shares, s.surrogate, s.sharpness, s.penalty, s.tau, s.task)

    def _keeper(self) -> Keeper:
        """What :class:`BilevelTraining` asks: which gates are open when a share of the removal is done."""
        if self.settings.allocation == "macs":
            return self._within_macs()
        sizes = {name: size for name, (_, size) in self.gates.columns.items()}
        final = self._final_counts()

        def keep(gone: float) -> torch.Tensor:
            counts = {name: size - round((size - final.get(name, size)) * gone) for name, size in sizes.items()}
            return self.gates.joined(self.gates.kept(counts))

        return keep

    def _final_counts(self) -> dict[str, int]:
        """How many units of every unit set ``step()`` will keep: without a common ranking no score decides that."""
        before, self.importance.learned = self.importance.learned, True
        self.current_step += 1
        try:
            choices, _ = self._chosen()
        finally:
            self.current_step -= 1
            self.importance.learned = before
        return {name: _units(c.group, name) - len(d.removed) for c in choices for name, d in c.decisions.items()}

    def _within_macs(self) -> Keeper:
        gates = self.gates
        macs = GatedMacs(gates.plan, gates.columns, self.example_inputs)
        assert self._gauge is not None
        goal = self._gauge.fraction * macs.dense
        parts = {u.name: g.parts(u) for g in gates.groups for u in g.unit_sets}
        floors = {name: floor_count(size, self.max_pruning_ratio) for name, (_, size) in gates.columns.items()}

        def cost(kept: Mapping[str, torch.Tensor]) -> float:
            return float(macs(torch.cat([kept[name] for name in gates.columns]).double()))

        def keep(gone: float) -> torch.Tensor:
            values = gates.by_unit_set(gates.scores.detach().double().cpu())
            budget = macs.dense - gone * (macs.dense - goal)
            return gates.joined(keep_within(values, cost, budget, floors=floors, parts=parts))

        return keep


class BiPPruner(BiFPPruner):
    """BiP (Zhang et al., 2022), structured: :class:`BiFPPruner` without fairness; ``groups=`` of its :meth:`fit` is
    for losses that need them.

    Raises:
        InputError: see :class:`BiFPPruner`.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, *, settings: BiFPSettings | None = None, **pruner_options: Any
    ) -> None:
        plain = BiFPSettings() if settings is None else settings
        options = {**plain.__dict__, "weight_penalty": 0.0, "mask_penalty": 0.0}
        super().__init__(model, example_inputs, settings=BiFPSettings(**options), **pruner_options)


def _units(group: CoupledGroup, name: str) -> int:
    return next(u.size for u in group.unit_sets if u.name == name)
