"""The gate plan of a model: its coupled groups, their gates, and a proof for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.gates.attention import Contraction, check_multihead, find_contractions
from fair_prune_plugins.gates.calling import ForwardFn, call, generic, moved, output_tensors, preserved, resized
from fair_prune_plugins.gates.closing import closed_gates, masks_for, width_of
from fair_prune_plugins.gates.probing import misplaced_batches
from fair_prune_plugins.gates.proof import EXACT, SINGLE_PRECISION, prove, randomised_copy
from fair_prune_plugins.gates.removal import build_graph, channel_groups, graph_builder
from fair_prune_plugins.gates.structure import OUTPUT, CoupledGroup, PruningSettings, UnitSet, members, read_groups
from fair_prune_plugins.gates.unit_weights import unit_square, weight_parts

NO_RUNNING_STATISTICS = (
    "{path} is a BatchNorm without running statistics: in eval mode it mixes the samples of a batch, so no sample "
    "has a gradient of "
    "its own. Use track_running_stats=True and run some training data through it"
)
NO_SUCH_UNITS = "the plan has no unit set {name!r}; it has {have}"
WRONG_UNITS = "{name!r} has {size} units; got {got}"
ALL_CLOSED = "{name!r}: all {size} units closed; at least one must stay"
TIED = "{one} and {other} share a parameter; pruning one of them would untie it"
UNREACHED = "the host's graph has no coupled group of its own for it"
FORWARD_FAILED = (
    "the model fails on its example inputs: {error}. Pass inputs it accepts (or forward_fn=) to build a gate plan"
)
NO_OUTPUT = (
    "the model returns nothing that tensors can be found in; return tensors, tuples, lists or dicts of them, or pass a "
    "forward_fn= that does"
)


@dataclass(frozen=True)
class GatePlan:
    """Where the gates of a model are and what is known about each.

    Made by :func:`build_plan`. The plan holds the model, not copies of it; it is good until the model's structure
    changes.

    Attributes:
        model: the model.
        groups: all coupled groups, those that must or cannot be pruned included.
        contractions: where attention contracts queries with keys.
        forward_fn: how the model is called, if not plainly.
    """

    model: nn.Module
    groups: tuple[CoupledGroup, ...]
    contractions: tuple[Contraction, ...] = ()
    forward_fn: ForwardFn | None = None

    @property
    def prunable(self) -> tuple[CoupledGroup, ...]:
        """Coupled groups that units may be removed from."""
        return tuple(g for g in self.groups if g.prunable)

    @property
    def units(self) -> dict[str, UnitSet]:
        """Unit sets of the prunable groups by name."""
        return {u.name: u for g in self.prunable for u in g.unit_sets}

    @property
    def frozen(self) -> tuple[str, ...]:
        """Members of prunable groups whose parameters do not require a gradient."""
        return tuple(dict.fromkeys(name for g in self.prunable for name in g.frozen))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Layers whose width is a width of the model's outputs."""
        return tuple(
            dict.fromkeys(s.path for g in self.groups if g.reaches_output for s in (*g.producers, *g.attentions))
        )

    @property
    def unreached(self) -> tuple[str, ...]:
        """Layers with several outputs that belong to no coupled group as a producer, so that nothing can prune them."""
        produced = {s.path for g in self.groups for s in (*g.producers, *g.attentions)}
        return tuple(
            path
            for path, m in self.model.named_modules()
            if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)
            and width_of(m, output=True) > 1
            and path not in produced
            and not any(path.startswith(f"{p}.") for p in produced)
        )

    def closed_masks(self, closed: Mapping[str, torch.Tensor | Sequence[int]]) -> dict[str, torch.Tensor]:
        """Check and complete a choice of closed units.

        Args:
            closed: unit-set name to closed unit numbers, or to a bool mask ``[units]`` (``True`` is closed).

        Returns:
            unit-set name to bool ``[units]``.

        Raises:
            InputError: an unknown name, a number out of range, a mask of another size, or nothing left open.
        """
        units = self.units
        masks = {}
        for name, chosen in closed.items():
            if name not in units:
                raise InputError(NO_SUCH_UNITS.format(name=name, have=sorted(units)))
            size = units[name].size
            picked = torch.as_tensor(chosen)
            if picked.dtype == torch.bool:
                if picked.shape != (size,):
                    raise InputError(
                        WRONG_UNITS.format(name=name, size=size, got=f"a mask of shape {tuple(picked.shape)}")
                    )
                mask = picked.detach().cpu().clone()
            else:
                if picked.numel() and (picked.is_floating_point() or picked.is_complex()):
                    raise InputError(WRONG_UNITS.format(name=name, size=size, got=f"numbers of type {picked.dtype}"))
                picked = picked.long().flatten()
                if picked.numel() and (picked.min() < 0 or picked.max() >= size):
                    raise InputError(
                        WRONG_UNITS.format(name=name, size=size, got=f"unit numbers {picked.min()} to {picked.max()}")
                    )
                mask = torch.zeros(size, dtype=torch.bool)
                mask[picked] = True
            if mask.all():
                raise InputError(ALL_CLOSED.format(name=name, size=size))
            masks[name] = mask
        return masks

    @contextmanager
    def closed(self, units: Mapping[str, torch.Tensor | Sequence[int]]) -> Iterator[nn.Module]:
        """Evaluate the model as if these units were pruned.

        Args:
            units: unit-set name to closed unit numbers or bool mask.

        Yields:
            The model, which computes what it would without the units for as long as the context is open.

        Raises:
            InputError: see :meth:`closed_masks`.
        """
        masks = masks_for(self.model, self.groups, self.closed_masks(units), self.contractions)
        with closed_gates(self.model, masks):
            yield self.model

    def weight_square(self) -> dict[str, torch.Tensor]:
        """Sum of squared weights of every unit: its producers' rows and its consumers' columns, without biases and
        norms.

        Returns:
            unit-set name to float64 ``[units]``; NaN where all weights are of layers whose layout only a user's
            customised pruner knows.
        """
        return {u.name: unit_weight_square(self.model, g, u) for g in self.prunable for u in g.unit_sets}

    def describe(self) -> str:
        """The plan as a text table: one line per coupled group with units, verdict and reason."""
        lines = [f"{'coupled group':<40} {'units':>6}  verdict"]
        for g in self.groups:
            units = " + ".join(f"{u.size}" for u in g.unit_sets)
            if g.ignored:
                verdict = "ignored as asked"
            elif g.reaches_output:
                verdict = f"not pruned: {OUTPUT}"
            elif g.status in ("exact", "unproved"):
                verdict = g.status if g.units.size > 1 else "not pruned: a single unit"
            elif g.status == "approximate":
                verdict = f"approximate ({g.error:.1e} of the output's scale): {g.reason}"
            else:
                verdict = f"unsupported: {g.reason}"
            if g.frozen:
                verdict += f"; frozen: {', '.join(g.frozen)}"
            lines.append(f"{g.name:<40} {units:>6}  {verdict}")
        lines += [f"{path:<40} {'':>6}  not pruned: {UNREACHED}" for path in self.unreached]
        return "\n".join(lines)


def build_plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    settings: PruningSettings | None = None,
    ignored_layers: Sequence[nn.Module] = (),
    num_heads: Mapping[nn.Module, int] | None = None,
    prune_num_heads: bool = False,
    graph: tp.DependencyGraph | None = None,
    forward_fn: ForwardFn | None = None,
    prove_groups: bool = True,
    seed: int = 0,
) -> GatePlan:
    """Find a model's gates and prove that closing them is removing.

    Args:
        model: any module; it is left exactly as it was.
        example_inputs: what the model is called with: a tensor, a tuple or list (positional), or a dict (keywords). The
            batch is dimension 0 of its tensors; its size does not matter.
        settings: all of a pruner's settings at once, instead of the next three.
        ignored_layers: modules whose outputs must keep their width.
        num_heads: attention projections (``nn.Linear``) and their head counts; without it the projections of
            hand-written attention cannot be pruned. ``nn.MultiheadAttention`` is understood by itself.
        prune_num_heads: also make unit sets of whole heads.
        graph: a host pruner's graph of this very model; built if absent.
        forward_fn: ``forward_fn(model, inputs)`` if the model is not called plainly.
        prove_groups: whether to run the proof. Without it groups have the status ``"unproved"``; for models that were
            proved before.
        seed: of the random units and norms of the proof.

    Raises:
        UnsupportedModelError: the model fails on its inputs, or has a BatchNorm without running statistics.
        InputError: no tensor among the inputs.
    """
    inputs = resized(moved(example_inputs, device=torch.device("cpu")), 2)
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(NO_RUNNING_STATISTICS.format(path=path or type(module).__name__))
    with preserved(model):
        model.eval()
        # First of all, because it says best what is wrong with inputs that do not fit.
        copied = _twin(model, inputs, forward_fn, seed) if prove_groups else None
        if settings is None:
            settings = _settings(model, ignored_layers, num_heads, prune_num_heads)
        if graph is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
            graph = build_graph(model, moved(inputs, device=device, dtype=dtype), forward_fn=forward_fn)
            ins, outs = channel_groups(graph, model)
            settings = replace(
                settings, in_channel_groups=ins, out_channel_groups={**outs, **settings.out_channel_groups}
            )
        groups = read_groups(graph, settings)
    tied = _tied_modules(model)
    groups = [_refuse_tied(_checked_attentions(model, g), tied) for g in groups]
    wanted = [g for g in groups if g.prunable]
    projections = sorted({path for g in wanted for path in g.heads})
    contractions: list[Contraction] = []
    if projections and copied is None:
        copied = _twin(model, inputs, forward_fn, seed)
    if copied is not None:
        norms = sorted({site.path for g in wanted if g.heads for site in g.norms})
        norms = [path for path in norms if _over_last_dimension(model.get_submodule(path))]
        contractions = find_contractions(copied[0], projections, copied[1], forward_fn, norms=norms)
    if prove_groups and copied is not None:
        twin, inputs, exact = copied
        misplaced = misplaced_batches(twin, sorted(members(wanted) & _module_paths(model)), inputs, forward_fn)
        candidates = [g for g in (_refuse_misplaced(g, misplaced) for g in wanted) if g.prunable]
        refused = {g.name: _refuse_misplaced(g, misplaced) for g in wanted}
        verdicts = prove(
            twin, inputs, candidates, contractions, _builder(model, graph, forward_fn), forward_fn, seed, exact
        )
        groups = [verdicts.get(g.name, refused.get(g.name, g)) for g in groups]
    if not prove_groups:
        groups = [g.with_verdict("unproved", None) if g.status == "exact" else g for g in groups]
    return GatePlan(model, tuple(groups), tuple(contractions), forward_fn)


def _tied_modules(model: nn.Module) -> dict[str, str]:
    """Modules that share a parameter with another module: path to the other's path."""
    owners: dict[nn.Parameter, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path = name.rpartition(".")[0]
        first = owners.setdefault(parameter, path)
        if first != path and model.get_submodule(first) is not model.get_submodule(path):
            tied[path], tied[first] = first, path
    return tied


def _refuse_tied(group: CoupledGroup, tied: Mapping[str, str]) -> CoupledGroup:
    for site in (*group.producers, *group.consumers, *group.norms, *group.attentions):
        if site.path in tied:
            return group.with_verdict("unsupported", None, TIED.format(one=site.path, other=tied[site.path]))
    return group


def _over_last_dimension(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm | nn.RMSNorm)


def _module_paths(model: nn.Module) -> set[str]:
    return {path for path, _ in model.named_modules()}


def _settings(
    model: nn.Module, ignored: Sequence[nn.Module], num_heads: Mapping[nn.Module, int] | None, prune_num_heads: bool
) -> PruningSettings:
    heads: dict[nn.Module, int] = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    layers = [m for layer in ignored for m in layer.modules()]
    return PruningSettings(
        ignored_layers=layers, num_heads={**heads, **(num_heads or {})}, prune_num_heads=prune_num_heads
    )


def _twin(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None, seed: int) -> tuple[nn.Module, Any, float]:
    """A randomised copy that runs: in float64, or in float32 where the model insists on it."""
    failure: Exception | None = None
    for dtype, exact in ((torch.float64, EXACT), (torch.float32, SINGLE_PRECISION)):
        twin = randomised_copy(model, seed, dtype)
        fitted = generic(moved(inputs, dtype=dtype), seed)
        try:
            with torch.no_grad():
                outputs = output_tensors(call(twin, fitted, forward_fn))
        except Exception as error:
            failure = error
            continue
        if not outputs:
            raise UnsupportedModelError(NO_OUTPUT)
        return twin, fitted, exact
    raise UnsupportedModelError(FORWARD_FAILED.format(error=f"{type(failure).__name__}: {failure}")) from failure


def _checked_attentions(model: nn.Module, group: CoupledGroup) -> CoupledGroup:
    for site in group.attentions:
        module = model.get_submodule(site.path)
        assert isinstance(module, nn.MultiheadAttention)
        try:
            check_multihead(site.path, module)
        except UnsupportedModelError as error:
            return group.with_verdict("unsupported", None, str(error))
    return group


def _refuse_misplaced(group: CoupledGroup, misplaced: Mapping[str, str]) -> CoupledGroup:
    for site in (*group.consumers, *group.attentions):
        if site.path in misplaced:
            return group.with_verdict("unsupported", None, misplaced[site.path])
    return group


def _builder(
    model: nn.Module, graph: tp.DependencyGraph, forward_fn: ForwardFn | None
) -> Callable[[nn.Module, Any], tp.DependencyGraph]:
    """Build, for copies, graphs like the one in use: the same customised pruners, bare parameters and ignored
    parameters.
    """
    return graph_builder(
        model,
        forward_fn=forward_fn,
        # The host refuses pruners of single modules, so these are all of types.
        customized_pruners={k: v for k, v in graph.CUSTOMIZED_PRUNERS.items() if not isinstance(k, nn.Module)},
        unwrapped_parameters=[(p, dim) for p, dim in graph.unwrapped_parameters],
        ignored_params=graph.ignored_params,
    )


def unit_weight_square(model: nn.Module, group: CoupledGroup, units: UnitSet) -> torch.Tensor:
    """Sum of squared weights of every unit of a coupled group, float64 ``[units]``; see
    :meth:`GatePlan.weight_square`.
    """
    try:
        return unit_square(weight_parts(model, group, units), model)
    except UnsupportedModelError:  # only layers with customised pruners, whose weights' layout is not known
        return torch.full((units.size,), math.nan, dtype=torch.float64)
