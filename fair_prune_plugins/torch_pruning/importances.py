"""The importance that all criteria share, for any ``torch_pruning`` pruner."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.criteria import Criterion, get
from fair_prune_plugins.errors import InputError, ScoreError, StaleStatisticsError
from fair_prune_plugins.gates import GatePlan, PruningSettings
from fair_prune_plugins.gates.calling import ForwardFn
from fair_prune_plugins.gates.plan import unit_weight_square
from fair_prune_plugins.gates.removal import channel_groups
from fair_prune_plugins.gates.structure import OUTPUT, CoupledGroup, group_key, read_group
from fair_prune_plugins.statistics import BatchReader, GateStatistics, measure, model_checksum
from fair_prune_plugins.statistics.batches import AUTO, BatchSource
from fair_prune_plugins.statistics.ranks import Distributed, collected_together, in_agreement, together
from fair_prune_plugins.statistics.sample_losses import LossFn, Reduction
from fair_prune_plugins.statistics.units import UnitStatistics
from fair_prune_plugins.statistics.walking import Groups
from fair_prune_plugins.torch_pruning.planning import peeked, plan_of

OnStale = Literal["error", "warn", "ignore"]

NOT_COLLECTED = (
    "{importance} has no statistics yet: call importance.collect(pruner, loader, loss_fn, groups=...) before "
    "pruner.step()"
)
UNKNOWN_GROUP = (
    "{importance} has no statistics for the coupled group of {layer!r}: the model's structure changed since they were "
    "collected, they are of another model, or they were collected from the model where the pruner knows more (heads, "
    "ignored layers). Collect again, from the pruner"
)
OTHER_WIDTH = (
    "{importance}: {layer!r} has {now} channels now, the statistics are for {then}; collect again before this step"
)
STALE = (
    "{importance}: the model's weights changed since the statistics were collected (fine-tuned, or pruned already). "
    "Collect again before this step. Where only values changed and the old statistics are meant, pass on_stale='warn' "
    "or 'ignore'; after a pruning step they no longer fit"
)
NOT_FINITE = (
    "{importance}: the scores of {layer!r} are not finite ({count} of {total}); check the statistics and the criterion"
)
SKIPPED = "{importance} gives no score to the coupled group of {layer!r}, so it is not pruned: {reason}"
NO_EXAMPLE = "example_inputs are needed to build the gate plan: pass example_inputs=, or a loader to take a batch from"
NO_SENSITIVE_GROUP = (
    "{importance} compares sensitive groups: pass groups= the key, index or callable that finds them in a batch"
)
ELEMENTWISE_OVER_RANKS = (
    "{importance}: element-wise statistics do not add up over ranks (gradients of a group are summed before they are "
    "squared). Collect on all the data on every rank, with distributed=False"
)
NO_LOADER = "{importance} needs data: pass a loader and a loss_fn"


class FairImportance(tp.importance.Importance):  # type: ignore[misc]
    """Scores of a registered criterion, for any pruner of Torch-Pruning.

    Args:
        criterion: name in the registry of criteria.
        on_stale: what to do when the model's weights changed between collecting and pruning: raise, warn once, or go
            on.
        options: the criterion's own.

    Raises:
        InputError: no such criterion, option, value of an option, or policy.
    """

    def __init__(self, criterion: str, *, on_stale: OnStale = "error", **options: Any) -> None:
        if on_stale not in ("error", "warn", "ignore"):
            raise InputError(f"on_stale must be 'error', 'warn' or 'ignore', got {on_stale!r}")
        self.criterion: Criterion = get(criterion)
        self.criterion.check_options(options)
        self.options = options
        self.on_stale = on_stale
        self.plan: GatePlan | None = None
        self.statistics: GateStatistics | None = None
        self._dense: GateStatistics | None = None
        self._asked: set[str] = set()
        self._told: set[str] = set()

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"{type(self).__name__}({self.criterion.name!r}{options})"

    def collect(
        self,
        pruner_or_model: Any,
        loader: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        *,
        groups: Groups | None = None,
        example_inputs: Any = None,
        inputs: BatchSource = AUTO,
        targets: BatchSource | None = AUTO,
        weights: BatchSource | None = None,
        output: Any = None,
        reduction: Reduction = "auto",
        forward_fn: ForwardFn | None = None,
        distributed: Distributed = "auto",
        process_group: Any = None,
        progress: bool = True,
    ) -> GateStatistics | None:
        """Measure the gates of the model as it is now; call it before every ``pruner.step()``.

        Args:
            pruner_or_model: a pruner, which brings its graph, ignored layers, heads and conv groups; or a plain model.
            loader: yields batches; may be left out for criteria that look at weights only.
            loss_fn: ``loss_fn(outputs, targets)``; may be left out for criteria that look at no loss.
            groups: where a batch has the sensitive group: a key, index or callable, or several for intersections.
            example_inputs: for the gate plan; a batch of the loader serves if they are not given. Not with a
                :class:`FairPruner`, which has its own.
            inputs: see :func:`fair_prune_plugins.statistics.collect`, as for all that follow.
            targets: see there.
            weights: see there.
            output: see there.
            reduction: see there.
            forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly. Not with a
                :class:`FairPruner`, which has its own.
            distributed: add up over the ranks of a ``torch.distributed`` run, so that all prune the same units: every
                rank calls this with its share of the data, which may be empty, and takes rank 0's buffers (running
                statistics) first. ``"auto"`` does so wherever there are several ranks; ``False`` for a rank by itself.
            process_group: those ranks, if not all.
            progress: show a progress bar.

        Returns:
            The statistics, which stay with the importance as well; ``None`` where the criterion needs no data and
            got none.

        Raises:
            InputError: see :func:`fair_prune_plugins.statistics.collect`; no loader for a criterion that needs one; or
                an argument that the pruner has already.
            UnsupportedModelError: see :func:`fair_prune_plugins.gates.build_plan`.
            FairPruneError: another rank failed.
        """
        needs = self.criterion.needs(self.options)
        if needs.passes and (loader is None or (loss_fn is None and needs.loss)):
            raise InputError(NO_LOADER.format(importance=self))
        if groups is None and needs.groups:
            raise InputError(NO_SENSITIVE_GROUP.format(importance=self))
        if not needs.passes and loss_fn is not None:
            needs = replace(needs, passes=frozenset({"gates"}))  # not for the scores, but for whoever reads them
        ranks = together(distributed, process_group)
        if ranks and "elementwise" in needs.passes:
            raise InputError(ELEMENTWISE_OVER_RANKS.format(importance=self))

        def planned() -> tuple[GatePlan, Iterable[Any] | None]:
            if example_inputs is not None or hasattr(pruner_or_model, "gate_plan"):
                return plan_of(pruner_or_model, example_inputs, forward_fn), loader
            if loader is None:
                raise InputError(NO_EXAMPLE)
            first, rest = peeked(loader, BatchReader(inputs, targets, weights))
            return plan_of(pruner_or_model, first, forward_fn), rest

        plan, batches = in_agreement(planned, process_group) if ranks else planned()
        statistics = None
        if batches is not None and needs.passes:
            work = partial(
                measure,
                plan,
                batches,
                loss_fn,
                needs,
                groups=groups,
                inputs=inputs,
                targets=targets,
                weights=weights,
                output=output,
                reduction=reduction,
                progress=progress,
                allow_empty=ranks,
            )
            statistics = collected_together(plan.model, work, process_group) if ranks else work()
        self.use(plan, statistics)
        return statistics

    def use(self, plan: GatePlan, statistics: GateStatistics | None) -> None:
        """Take statistics collected elsewhere (merged, loaded, all-reduced) for a plan of the model to prune."""
        if self._dense is None or (self.plan is not None and self.plan.model is not plan.model):
            self._dense = statistics  # the first of this model
        self.plan, self.statistics = plan, statistics
        self._asked.clear()
        self._told.clear()

    @torch.no_grad()
    def __call__(self, group: Any) -> torch.Tensor | None:
        """Scores of a host group, float64, one per index of its root; ``None`` for what must not be pruned.

        Raises:
            ScoreError: no statistics, statistics of another structure, or scores that are not finite.
            StaleStatisticsError: the weights changed since collecting, and ``on_stale`` is ``"error"``.
        """
        graph = group._DG
        layer = group_key(graph, group)
        coupled = self._coupled(graph, group, layer)
        if not coupled.prunable:
            self._tell(coupled)
            return None
        now = _root_width(graph, group)
        if coupled.channels != now:
            raise ScoreError(OTHER_WIDTH.format(importance=self, layer=layer, now=now, then=coupled.channels))
        if self.statistics is not None:
            self._refuse_stale(graph.model, layer)
        scores = self.root_scores(coupled)
        bad = ~torch.isfinite(scores)
        if bad.any():
            raise ScoreError(NOT_FINITE.format(importance=self, layer=layer, count=int(bad.sum()), total=len(scores)))
        return scores[torch.tensor(group[0].idxs, dtype=torch.int64)]

    def root_scores(self, coupled: CoupledGroup) -> torch.Tensor:
        """One score per root channel of a coupled group, float64 ``[root channels]``.

        Every root channel carries its unit's score, so the host's mean over conv groups and heads gives it back.
        Attention has two unit sets; ``dimension + head - mean(head)`` has both orders: its mean over heads is the
        dimension's score, its mean over dimensions the head's score up to a constant.
        """
        scores = torch.zeros(coupled.channels, dtype=torch.float64)
        of_units = self.unit_scores(coupled)
        for units in coupled.unit_sets:
            values = of_units[units.name]
            scores += (values if units is coupled.units else values - values.mean())[units.of_root]
        if not self.criterion.comparable and self.plan is not None:
            # Ranks of different layers tie, and the host prunes all that tie at a global threshold.
            position = next((i for i, g in enumerate(self.plan.groups) if g.name == coupled.name), 0)
            scores += 1e-9 * position / max(len(self.plan.groups), 1)
        return scores

    def unit_scores(self, coupled: CoupledGroup) -> dict[str, torch.Tensor]:
        """The criterion's own scores: unit-set name to float64 ``[units]``."""
        return {
            units.name: self.criterion(self._unit_statistics(coupled, units.name), **self.options)
            for units in coupled.unit_sets
        }

    def _unit_statistics(self, coupled: CoupledGroup, name: str) -> UnitStatistics:
        if self.statistics is None:
            if self.criterion.needs_data:
                raise ScoreError(NOT_COLLECTED.format(importance=self))
            return _weights_only(coupled, name, self._model)
        own = self.statistics.of(name)
        if self._dense is not None and name in self._dense.columns:
            own = replace(own, dense=self._dense.of(name))
        return own

    def _coupled(self, graph: tp.DependencyGraph, group: Any, layer: str) -> CoupledGroup:
        self._model = graph.model
        if self.plan is None:
            if self.criterion.needs_data:
                raise ScoreError(NOT_COLLECTED.format(importance=self))
            ins, outs = channel_groups(graph, graph.model)
            dep = group[0].dep
            whole = graph.get_pruning_group(dep.target.module, dep.handler, list(range(_root_width(graph, group))))
            return read_group(graph, whole, PruningSettings(in_channel_groups=ins, out_channel_groups=outs))
        for coupled in self.plan.groups:
            if coupled.name == layer:
                return coupled
        raise ScoreError(UNKNOWN_GROUP.format(importance=self, layer=layer))

    def _refuse_stale(self, model: nn.Module, layer: str) -> None:
        """Compare the model with the one measured, once per step.

        A step asks for each layer once, before it prunes any.
        """
        assert self.statistics is not None
        first_of_step = not self._asked or layer in self._asked
        if first_of_step:
            self._asked.clear()
        self._asked.add(layer)
        if not first_of_step or self.on_stale == "ignore" or not self.statistics.checksum:
            return
        if model_checksum(model) == self.statistics.checksum:
            return
        message = STALE.format(importance=self)
        if self.on_stale == "error":
            raise StaleStatisticsError(message)
        warnings.warn(message, stacklevel=4)

    def _tell(self, coupled: CoupledGroup) -> None:
        if coupled.name in self._told or coupled.ignored or coupled.units.size == 1:
            return
        self._told.add(coupled.name)
        reason = OUTPUT if coupled.reaches_output else coupled.reason
        warnings.warn(SKIPPED.format(importance=self, layer=coupled.name, reason=reason), stacklevel=4)


def _root_width(graph: tp.DependencyGraph, group: Any) -> int:
    dep = group[0].dep
    out = graph.is_out_channel_pruning_fn(dep.handler)
    return int((graph.get_out_channels if out else graph.get_in_channels)(dep.target.module))


def _weights_only(coupled: CoupledGroup, name: str, model: nn.Module) -> UnitStatistics:
    units = next(u for u in coupled.unit_sets if u.name == name)
    none = torch.zeros(0, units.size, dtype=torch.float64)
    nobody = torch.zeros(units.size, dtype=torch.float64)
    return UnitStatistics(
        (),
        torch.zeros(0, dtype=torch.float64),
        none,
        none,
        none,
        0.0,
        nobody,
        nobody,
        nobody,
        unit_weight_square(model, coupled, units),
    )
