"""``FairPruner``: the host's pruner with the guards that an importance cannot carry."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from fair_prune_plugins.errors import FairPruneError, InputError, UnsupportedModelError
from fair_prune_plugins.gates import CoupledGroup, GatePlan, build_plan
from fair_prune_plugins.gates.calling import ForwardFn, call, copied, moved, preserved, resized
from fair_prune_plugins.gates.enumeration import roots_to_avoid
from fair_prune_plugins.gates.plan import UNREACHED
from fair_prune_plugins.gates.removal import (
    NO_GRAPH,
    graph_builder,
    no_hooks_left,
    traceable_outputs,
    with_norm_pruners,
)
from fair_prune_plugins.gates.structure import OUTPUT, group_key, host_groups, read_groups
from fair_prune_plugins.latency.alignment import Alignment
from fair_prune_plugins.torch_pruning.arguments import (
    check_amounts,
    check_forward,
    check_members,
    check_options,
    check_schedules,
    largest_ratio,
)
from fair_prune_plugins.torch_pruning.choices import Choice, carried_out
from fair_prune_plugins.torch_pruning.cost_target import CostTarget
from fair_prune_plugins.torch_pruning.counting import macs_and_params
from fair_prune_plugins.torch_pruning.distributed import without_ddp
from fair_prune_plugins.torch_pruning.dry_run import check_pruned, check_widths, output_shapes
from fair_prune_plugins.torch_pruning.heads import find_heads, heads_that_stay
from fair_prune_plugins.torch_pruning.history import PruningHistory
from fair_prune_plugins.torch_pruning.importances import FairImportance
from fair_prune_plugins.torch_pruning.optimizers import rebinding
from fair_prune_plugins.torch_pruning.planning import settings_of
from fair_prune_plugins.torch_pruning.ranking import Ranked, Rules
from fair_prune_plugins.torch_pruning.recording import HistoryRecorder
from fair_prune_plugins.torch_pruning.scoring import unit_scores
from fair_prune_plugins.torch_pruning.search import cheapest_ratio_within
from fair_prune_plugins.torch_pruning.step_report import ReachedCost, StepReport, WidthReport
from fair_prune_plugins.torch_pruning.transaction import transaction
from fair_prune_plugins.torch_pruning.widths import alignment_of, has_conv_groups, judged_by, misaligned

logger = logging.getLogger(__name__)

NOTHING_TO_PRUNE = "no coupled group of the model can be pruned:\n{plan}"
UNSUPPORTED = "not pruned: the coupled group of {layer!r}: {reason}"
UNPROVED = (
    "the coupled group of {layer!r} was not there when the pruner was made, so its gates were never proved: the "
    "model's structure was changed by something else; make a new pruner"
)
NO_EFFECT = (
    "pruning_ratio_dict: the ratio for {layers} has no effect, because none of these layers makes channels that can be "
    "pruned"
)
DEFAULT_RATIO = 0.5
"""The host's."""

INTERACTIVE_OPTIMIZER = (
    "an interactive step prunes while its groups are taken: take them inside rebinding(optimizer, model) instead of "
    "passing optimizer="
)
NO_STEPS_LEFT = "all {steps} steps were taken; make a new pruner to prune further"


class FairPruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """``torch_pruning.pruner.BasePruner`` that finds the outputs, proves its gates, and cannot leave a broken model
    behind.

    What it adds to the host's pruner: cost targets; widths that the runtime rewards; output layers and groups whose
    removal the proof refuses are left alone and told; sorted LayerNorm pruning and RMSNorm pruning; dictionaries of its
    own (the host's defaults are shared between pruners); the model's mode is kept; missing or non-finite scores raise;
    kept counts follow ``floor(size * (1 - ratio))`` before they are aligned; ties and ``max_pruning_ratio`` hold inside
    a step; attention modules learn their new head counts and sizes; frozen layers are pruned with their group, stay
    frozen, and are named; a dry forward after the step, and all is undone if it fails.

    Args:
        model: the model; pruned in place. ``DistributedDataParallel`` is taken off (``pruner.model`` is what was
            inside); put it on again after each step with :func:`~fair_prune_plugins.torch_pruning.rewrapped`.
        example_inputs: what it is called with: a tensor, a tuple or list, or a dict.
        importance: scores per coupled group: one of ours, the host's, or any callable.
        pruning_ratio: fraction of units to remove from each coupled group (or overall, with ``global_pruning``), in
            [0, 1); 0.5 by default.
        target: what the model may cost instead: a fraction of its MACs or parameters, or a latency. The ratio is
            searched for in every step, never above the target; schedules then speak of the cost removed. Without
            ``global_pruning`` the widths depend on no score, so all criteria end at the same cost exactly.
        pruning_ratio_dict: ratios of single layers or tuples of layers; a target leaves them alone.
        max_pruning_ratio: no group loses more than this fraction of its initial units; by default 1, and 0.9 with
            ``global_pruning``, where whole layers would go otherwise.
        iterative_steps: number of ``step()`` calls in which the ratio is reached.
        iterative_pruning_ratio_scheduler: ``scheduler(ratio, steps) -> steps + 1`` cumulative ratios.
        ignored_layers: modules (with all they contain) whose outputs keep their width, and bare parameters that stay
            as they are; outputs of the model are found.
        round_to: which widths to keep: ``"auto"``, those that ONNX Runtime rewards on this machine (see
            :func:`~fair_prune_plugins.latency.alignment.alignment_for`, which other targets can be had from), multiples
            of a number of channels, or ``None`` for any. What is kept instead of what was asked is reported.
        global_pruning: one ranking over all groups instead of one per group.
        isomorphic: with ``global_pruning``, one ranking per kind of group (arXiv:2407.04616).
        num_heads: attention projections and head counts; found by usual names if absent.
        prune_num_heads: remove whole heads.
        prune_head_dims: remove head dimensions.
        head_pruning_ratio: fraction of heads to remove.
        head_pruning_ratio_dict: the same for single projections.
        forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.
        host_options: further keyword arguments of ``torch_pruning.pruner.BasePruner``.

    Raises:
        InputError: ratios out of range.
        UnsupportedModelError: the model does not run on its inputs, or nothing of it can be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        importance: Callable[[Any], torch.Tensor | None],
        *,
        pruning_ratio: float | None = None,
        target: CostTarget | None = None,
        pruning_ratio_dict: Mapping[Any, float] | None = None,
        max_pruning_ratio: float | None = None,
        iterative_steps: int = 1,
        iterative_pruning_ratio_scheduler: Callable[[float, int], list[float]] | None = None,
        ignored_layers: Sequence[nn.Module | nn.Parameter] | None = None,
        round_to: int | Alignment | Literal["auto"] | None = "auto",
        global_pruning: bool = False,
        isomorphic: bool = False,
        num_heads: Mapping[nn.Module, int] | None = None,
        prune_num_heads: bool = False,
        prune_head_dims: bool = True,
        head_pruning_ratio: float = 0.0,
        head_pruning_ratio_dict: Mapping[nn.Module, float] | None = None,
        forward_fn: ForwardFn | None = None,
        **host_options: Any,
    ) -> None:
        check_amounts(
            pruning_ratio=pruning_ratio,
            target=target,
            head_pruning_ratio=head_pruning_ratio,
            ratios=pruning_ratio_dict or {},
            head_ratios=head_pruning_ratio_dict or {},
            prune_num_heads=prune_num_heads,
            max_pruning_ratio=max_pruning_ratio,
            iterative_steps=iterative_steps,
            global_pruning=global_pruning,
            isomorphic=isomorphic,
        )
        check_options(host_options)
        model = without_ddp(model)
        unwrapped = list(dict(host_options.pop("unwrapped_parameters", None) or {}).items())
        check_members(
            model,
            layers={
                "ignored_layers": ignored_layers or (),
                "pruning_ratio_dict": pruning_ratio_dict or (),
                "head_pruning_ratio_dict": head_pruning_ratio_dict or (),
                "num_heads": num_heads or (),
            },
            parameters={"unwrapped_parameters": [p for p, _ in unwrapped]},
        )
        asked_ratio = 0.0 if target is not None else DEFAULT_RATIO if pruning_ratio is None else pruning_ratio
        pruning_ratio = asked_ratio
        example_inputs = _fitted(model, example_inputs)
        check_forward(model, example_inputs, forward_fn)
        self.alignment = alignment_of(round_to)
        self._runtime = judged_by(self.alignment)
        self.example_inputs = example_inputs
        self._forward_fn = forward_fn
        transform = host_options.pop("output_transform", None)
        self._judged_fn = _transformed(forward_fn, transform)
        output_transform = transform or traceable_outputs
        customized = host_options.pop("customized_pruners", None)
        self._build_graph = graph_builder(
            model,
            forward_fn=forward_fn,
            output_transform=output_transform,
            customized_pruners=customized,
            unwrapped_parameters=unwrapped,
            ignored_params=[p for p in ignored_layers or () if isinstance(p, nn.Parameter)],
        )
        self.target, self._gauge = target, None
        if target is not None:
            self._gauge = target.gauge(model, resized(example_inputs, 2), forward_fn)
            pruning_ratio = 1 - self._gauge.fraction  # the host's schedule of ratios is one of the cost removed
        heads = dict(find_heads(model) if num_heads is None else num_heads)
        schedule = {} if iterative_pruning_ratio_scheduler is None else {
            "iterative_pruning_ratio_scheduler": iterative_pruning_ratio_scheduler
        }  # fmt: skip
        frozen = [p for p in model.parameters() if not p.requires_grad]
        with preserved(model), no_hooks_left(model), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unwrapped parameters detected")  # the plan lists them as members
            for p in frozen:
                p.requires_grad_(True)
            try:
                super().__init__(
                    model,
                    (example_inputs,)
                    if isinstance(example_inputs, torch.Tensor) and forward_fn is None
                    else example_inputs,
                    importance,
                    global_pruning=global_pruning,
                    pruning_ratio=pruning_ratio,
                    pruning_ratio_dict=None if pruning_ratio_dict is None else dict(pruning_ratio_dict),
                    max_pruning_ratio=largest_ratio(max_pruning_ratio, asked_ratio, global_pruning),
                    iterative_steps=iterative_steps,
                    **schedule,
                    ignored_layers=list(ignored_layers or ()),
                    round_to=None,
                    isomorphic=isomorphic,
                    # The host's defaults for these are dictionaries shared by all pruners, which it writes into.
                    in_channel_groups=dict(host_options.pop("in_channel_groups", None) or {}),
                    out_channel_groups=dict(host_options.pop("out_channel_groups", None) or {}),
                    num_heads=heads,
                    prune_num_heads=prune_num_heads,
                    prune_head_dims=prune_head_dims,
                    head_pruning_ratio=head_pruning_ratio,
                    head_pruning_ratio_dict=None if head_pruning_ratio_dict is None else dict(head_pruning_ratio_dict),
                    customized_pruners=with_norm_pruners(model, customized),
                    unwrapped_parameters=unwrapped,
                    forward_fn=forward_fn,
                    output_transform=output_transform,
                    **host_options,
                )
            except FairPruneError:
                raise
            except Exception as error:
                if "ignored_params" not in self.__dict__ or "_graph" in self.__dict__:
                    raise  # before or after the host read the model: something else is wrong
                raise UnsupportedModelError(NO_GRAPH.format(error=f"{type(error).__name__}: {error}")) from error
        check_schedules(
            (
                self.per_step_pruning_ratio,
                self.per_step_head_pruning_ratio,
                *self.pruning_ratio_dict.values(),
                *self.head_pruning_ratio_dict.values(),
            ),
            iterative_steps,
        )
        plan = build_plan(model, example_inputs, settings=settings_of(self), graph=self.DG, forward_fn=self._judged_fn)
        self._plan = replace(plan, forward_fn=forward_fn)
        if not self._plan.prunable:
            raise UnsupportedModelError(NOTHING_TO_PRUNE.format(plan=self._plan.describe()))
        self.not_pruned = self._left_alone(self._plan)
        for key in pruning_ratio_dict or {}:
            self._warn_of_no_effect(key)
        self._initial = {name: units.size for name, units in self._plan.units.items()}
        self._recorder = HistoryRecorder(self)

    def history(self) -> PruningHistory:
        """What the steps taken so far left of the model, in its original numbering;
        :func:`~fair_prune_plugins.torch_pruning.replay` prunes a fresh model alike.
        """
        return self._recorder.history()

    @property
    def DG(self) -> tp.DependencyGraph:
        """The host's dependency graph, which the host assigns; refused if its groups could not be enumerated."""
        return self._graph

    @DG.setter
    def DG(self, graph: tp.DependencyGraph) -> None:
        roots_to_avoid(graph, self.root_module_types, self.ignored_layers)
        self._graph = graph

    def gate_plan(self) -> GatePlan:
        """The gate plan of the model as it is now; verdicts carry over from the proof made at construction."""
        before = {g.name: g for g in self._plan.groups}
        plan = build_plan(
            self.model,
            self.example_inputs,
            settings=settings_of(self),
            graph=self.DG,
            forward_fn=self._judged_fn,
            prove_groups=False,
        )
        groups = tuple(g.judged_like(before[g.name]) if g.name in before else g for g in plan.groups)
        return replace(plan, groups=groups, forward_fn=self._forward_fn)

    def step(self, interactive: bool = False, *, optimizer: Optimizer | None = None) -> Any:
        """Prune up to the next step's ratio, or down to its share of the cost target.

        Args:
            interactive: yield the host's groups instead, for the caller to prune (``group.prune()``); the scores
                are checked, the dry run is the caller's.
            optimizer: it goes on with the pruned parameters and what it remembers of them; see
                :func:`~fair_prune_plugins.torch_pruning.rebinding`, inside of which interactive steps belong.

        Returns:
            A :class:`StepReport`, or the host's groups.

        Raises:
            InputError: all steps were taken; an optimizer that cannot be carried over.
            ScoreError: missing or non-finite scores, naming the layer. Nothing was pruned.
            UnsupportedModelError: the cost target cannot be reached, or the pruned model does not run, or not as
                asked. Everything was put back.
        """
        if self.current_step >= self.iterative_steps:
            raise InputError(NO_STEPS_LEFT.format(steps=self.iterative_steps))
        if (
            isinstance(self.importance, FairImportance)
            and self.importance.statistics is None
            and not self.importance.criterion.needs_data
        ):
            self.importance.use(self.gate_plan(), None)
        if interactive:
            if optimizer is not None:
                raise InputError(INTERACTIVE_OPTIMIZER)
            return self._prune()
        rebound = nullcontext() if optimizer is None else rebinding(optimizer, self.model)
        with transaction(self.model, self, self._rebuilt_graph), rebound:
            self.current_step += 1
            macs_before, params_before = self._macs_and_params()
            inputs = resized(self.example_inputs, 2)
            shapes = output_shapes(self.model, inputs, self._judged_fn)
            choices, reached = self._chosen()
            rows = self._rows(choices)
            for host in self._removals(choices):
                host.prune()
            check_pruned(self.model, inputs, self._judged_fn, shapes)
            # All groups: one whose head dimensions are down to one has no prunable units left, but still has its heads.
            groups = read_groups(self.DG, settings_of(self))
            check_widths({u.name: u for g in groups for u in g.unit_sets}, rows)
            macs, params = self._macs_and_params()
        report = StepReport(
            self.current_step,
            float(self.per_step_pruning_ratio[self.current_step]) if reached is None else reached.ratio,
            rows,
            macs_before,
            macs,
            params_before,
            params,
            dict(self.not_pruned),
            self._plan.frozen,
            misaligned(self.model, choices, self._runtime),
            reached,
        )
        logger.info("%s", report)
        return report

    def _prune(self) -> Iterator[Any]:
        """The host's generator of groups to remove, decided by our rules."""
        self.current_step += 1
        try:
            choices, _ = self._chosen()
        except BaseException:
            self.current_step -= 1
            raise
        yield from self._removals(choices)

    @torch.no_grad()
    def _chosen(self) -> tuple[tuple[Choice, ...], ReachedCost | None]:
        """What this step removes, and for a cost target what that costs."""
        ranked = self._ranked(self.gate_plan())
        rules = Rules(
            self._initial,
            self.max_pruning_ratio,
            self.alignment,
            together=self.global_pruning,
            prune_head_dims=self.prune_head_dims,
        )
        share = float(self.per_step_pruning_ratio[self.current_step])
        if self._gauge is None or self.target is None:
            return rules.choose(ranked, share), None
        gauge, goal = self._gauge, self._gauge.dense * (1 - share)
        # Each candidate of a latency is exported and timed, which takes seconds.
        quiet = not self.target.is_latency
        with tqdm(desc="searching the latency", unit=" networks", leave=False, disable=quiet) as bar:

            def cost(choices: Sequence[Choice]) -> float:
                bar.update()
                return self._cost_after(choices)

            found = cheapest_ratio_within(
                lambda ratio: rules.choose(ranked, ratio), cost, goal, self.target.slack, unit=self.target.unit
            )
        reached = ReachedCost(
            self.target.quantity, goal, found.cost, found.cost / gauge.dense, found.ratio, found.evaluations
        )
        if found.cost < goal * (1 - self.target.slack):
            logger.info("%s", reached)
        return found.choices, reached

    def _cost_after(self, choices: Sequence[Choice]) -> float:
        """What the model would cost after some choices: they are carried out on a copy."""
        assert self._gauge is not None
        twin = copied(self.model).eval()
        graph = self._graph_of(twin)
        for host in carried_out(twin, graph, choices):
            host.prune()
        return self._gauge.cost(twin)

    def _removals(self, choices: Sequence[Choice]) -> Iterator[Any]:
        yield from carried_out(self.model, self.DG, choices, self._remember_heads)

    def _remember_heads(self, choice: Choice) -> None:
        for path, count in choice.group.heads.items():
            heads = choice.kept("heads")
            layer = self.model.get_submodule(path)
            self.num_heads[layer] = self.out_channel_groups[layer] = count if heads is None else heads

    def _rows(self, choices: Sequence[Choice]) -> tuple[WidthReport, ...]:
        return tuple(
            WidthReport(
                units.name,
                units.kind,
                self._initial[units.name],
                units.size,
                decision.asked,
                units.size - len(decision.removed),
                decision.reason,
            )
            for choice in choices
            for units in choice.group.unit_sets
            if (decision := choice.decisions.get(units.name)) is not None
        )

    def _ranked(self, plan: GatePlan) -> list[Ranked]:
        groups = {g.name: g for g in plan.groups}
        ranked = []
        for host in host_groups(self.DG, settings_of(self)):
            name = group_key(self.DG, host)
            if name in self.not_pruned or not groups[name].prunable:
                continue
            if groups[name].status == "unproved":
                raise UnsupportedModelError(UNPROVED.format(layer=name))
            scores = unit_scores(self.importance, host, groups[name])
            scope, ratio = self._scope(host, name)
            grouped = has_conv_groups(self.model, groups[name])
            ranked.append(Ranked(groups[name], scores, scope, ratio, self._head_ratio(groups[name]), grouped))
        return ranked

    def _scope(self, host: Any, name: str) -> tuple[str, float | None]:
        """Which ranking a group takes part in, and that ranking's own ratio if it has one: the host's rules."""
        for dep, _ in host:
            for module, fn in ((dep.source.module, dep.trigger), (dep.target.module, dep.handler)):
                if module in self._layer_to_scope and self.DG.is_out_channel_pruning_fn(fn):
                    return self._layer_to_scope[module][0], self.get_target_pruning_ratio(module)
        if not self.global_pruning:
            return name, None
        if not self.isomorphic:
            return "all coupled groups", None
        kinds = [
            f"{type(dep.source.module).__name__}>{type(dep.target.module).__name__}:{self.DG.is_out_channel_pruning_fn(dep.handler)}"
            for dep, _ in host
        ]
        return " ".join(kinds), None

    def _head_ratio(self, group: CoupledGroup) -> float:
        for path in group.heads:
            own = self.head_pruning_ratio_dict.get(self.model.get_submodule(path))
            if own is not None:
                return float(own[self.current_step])
        return float(self.per_step_head_pruning_ratio[self.current_step])

    def _warn_of_no_effect(self, key: Any) -> None:
        """A ratio of its own for layers none of which makes channels that can be pruned."""
        layers = {m for layer in (key if isinstance(key, tuple | list) else (key,)) for m in layer.modules()}
        made = {self.model.get_submodule(s.path) for g in self._plan.prunable for s in (*g.producers, *g.attentions)}
        if not layers & made:
            names = {m: name for name, m in self.model.named_modules()}
            named = ", ".join(names[m] for m in layers if not list(m.children()))
            warnings.warn(NO_EFFECT.format(layers=named), stacklevel=4)

    def _left_alone(self, plan: GatePlan) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for group in plan.groups:
            if group.ignored:
                reasons[group.name] = "ignored as asked"
            elif group.reaches_output:
                reasons[group.name] = OUTPUT
                logger.info("%s is not pruned: %s", group.name, OUTPUT)
            elif group.status == "unsupported":
                reasons[group.name] = group.reason
                warnings.warn(UNSUPPORTED.format(layer=group.name, reason=group.reason), stacklevel=4)
            elif group.units.size == 1:
                reasons[group.name] = "it has a single unit"
        if self.prune_num_heads:
            for path, reason in heads_that_stay(self.model, self.num_heads).items():
                reasons[f"{path}#heads"] = reason
                warnings.warn(reason, stacklevel=4)
        ignored = set(self.ignored_layers)
        for path in plan.unreached:
            if self.model.get_submodule(path) not in ignored:
                reasons[path] = UNREACHED
                warnings.warn(UNSUPPORTED.format(layer=path, reason=UNREACHED), stacklevel=4)
        if plan.frozen:
            logger.info(
                "frozen layers are pruned with their coupled groups and stay frozen: %s", ", ".join(plan.frozen)
            )
        return reasons

    def _macs_and_params(self) -> tuple[int, int]:
        """MACs of one sample and number of parameters, as the host counts them."""
        return macs_and_params(self.model, resized(self.example_inputs, 1), self._forward_fn)

    def _rebuilt_graph(self) -> tp.DependencyGraph:
        with preserved(self.model):
            self.model.eval()
            return self._graph_of(self.model)

    def _graph_of(self, model: nn.Module) -> tp.DependencyGraph:
        """A graph with this pruner's settings, of its model or of a copy in eval mode."""
        return self._build_graph(model, self.example_inputs)


def _fitted(model: nn.Module, inputs: Any) -> Any:
    """Inputs of the model's device and type."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    return inputs if parameter is None else moved(inputs, device=parameter.device, dtype=parameter.dtype)


def _transformed(forward_fn: ForwardFn | None, transform: Callable[[Any], Any] | None) -> ForwardFn | None:
    """How the model is called where its outputs are looked at: through the user's ``output_transform``."""
    if transform is None:
        return forward_fn
    return lambda model, inputs: transform(call(model, inputs, forward_fn))
