"""The proof: random units closed by gates against the same units structurally removed, on a float64 copy.

The proof is of the structure, so the copy's weights are drawn at random: trained or freshly initialised ones can hide a
mistake (norms at their initial values, layer scales near zero, an output layer of zeros). All coupled groups are tried
at once, with few, many and most units closed; only where that disagrees are they tried in halves, so a sound network
costs three copies.

A second comparison, gates closed at the consumers alone, shows whether the consumers are all that reads the channels:
what is closed exactly may still be measured incompletely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.gates.attention import Contraction
from fair_prune_plugins.gates.calling import ForwardFn, call, copied, output_tensors
from fair_prune_plugins.gates.closing import Masks, closed_gates, masks_for, with_first_input
from fair_prune_plugins.gates.norms import MIXING_NORMS
from fair_prune_plugins.gates.removal import HEAD_ATTRIBUTES, remove, update_attention_owners
from fair_prune_plugins.gates.static_sizes import with_sizes
from fair_prune_plugins.gates.structure import CoupledGroup

EXACT = 1e-9
"""Largest relative difference in float64 that counts as rounding."""

APPROXIMATE = 0.1
"""Above this fraction of the outputs' scale with few units closed, closing says nothing about removing: unsupported."""

SINGLE_PRECISION = 1e-4
"""Stands in for EXACT where the model insists on float32."""

FRACTIONS = (0.3, 0.6, 0.9)
"""Of units closed, one comparison each: with a single draw, channels that are mixed can agree by accident."""

UNFELT = 1e3
"""A group whose weights move the outputs by less than this many times what counts as equal is not proved by equal
outputs."""

REDRAWS = 5
"""How often weights are drawn until the outputs react to a group: few units behind a ReLU may all be dead by chance."""

MIXES = "something mixes its channels in a way that gates do not follow"
NOT_TOGETHER = "exact alone, but not together with {others}"
READ_ELSEWHERE = (
    "closing is removing, but its channels are read beside its consumers too (a product of two activations, a sum over "
    "channels), and statistics miss that path"
)
NOT_FELT = "the outputs hardly react to its units on random inputs, so that they are equal shows nothing"

GraphBuilder = Callable[[nn.Module, Any], tp.DependencyGraph]


@dataclass(frozen=True)
class Verdict:
    """What a comparison found: the relative error of closed against removed, or why there is none.

    ``unread`` is the relative error of closed at the consumers against closed everywhere; ``few`` the error with
    few units closed, where there were several comparisons.
    """

    error: float | None
    reason: str = ""
    unread: float = 0.0
    few: float = 0.0


def randomised_copy(model: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode with generic weights, norms and scales; see :func:`randomise`."""
    twin = copied(model).to(device="cpu", dtype=dtype).eval()
    randomise(twin, torch.Generator().manual_seed(seed))
    return twin


def randomise(twin: nn.Module, generator: torch.Generator) -> None:
    """Draw a copy's weights, so that no term of the proof is zero by initialisation or by training.

    Norm weights are drawn from U(0.5, 1.5), norm biases and running means from N(0, 0.3), running variances from U(0.5,
    1.5); weights of convolutions and linear layers from N(0, 2 / fan-in), their biases from N(0, 0.3); parameters of
    other modules get N(0, 0.5) added.
    """

    def uniform(t: torch.Tensor) -> torch.Tensor:
        return torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) + 0.5

    def normal(t: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)

    with torch.no_grad():
        for module in twin.modules():
            own = dict(module.named_parameters(recurse=False))
            buffers = dict(module.named_buffers(recurse=False))
            if isinstance(module, (nn.modules.batchnorm._NormBase, *MIXING_NORMS)):
                for name, p in own.items():
                    p.copy_(uniform(p) if name == "weight" else normal(p, 0.3))
                if isinstance(buffers.get("running_mean"), torch.Tensor):
                    buffers["running_mean"].copy_(normal(buffers["running_mean"], 0.3))
                    buffers["running_var"].copy_(uniform(buffers["running_var"]))
            elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.MultiheadAttention):
                for name, p in own.items():
                    if p.is_floating_point():
                        p.copy_(normal(p, 0.3 if name == "bias" or p.ndim < 2 else math.sqrt(2 / _fan_in(module, p))))
            elif not isinstance(module, nn.Embedding | nn.RNNBase):
                for p in own.values():
                    if p.is_floating_point():
                        p.add_(normal(p, 0.5))


def _fan_in(module: nn.Module, weight: torch.Tensor) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return max(weight.shape[0] * weight[0, 0].numel() // module.groups, 1)
    return max(weight[0].numel(), 1)


def random_units(
    groups: Sequence[CoupledGroup], fraction: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Close about ``fraction`` of every unit set at random: at least one unit, never all of a layer's.

    Returns:
        unit-set name to bool ``[units]``.
    """
    closed = {}
    for group in groups:
        for units in group.unit_sets:
            if units.size < 2:
                continue
            order = torch.randperm(units.size, generator=generator)
            staying = {int(order[torch.isin(order, part)][0]) for part in group.parts(units)} or {int(order[0])}
            count = max(round(fraction * units.size), 1)
            mask = torch.zeros(units.size, dtype=torch.bool)
            mask[[u for u in order.tolist() if u not in staying][:count]] = True
            closed[units.name] = mask
    return closed


def removed_copy(
    twin: nn.Module, graph: tp.DependencyGraph, groups: Sequence[CoupledGroup], closed: Mapping[str, torch.Tensor]
) -> None:
    """Remove the closed units from ``twin`` for real, in place."""
    before: dict[nn.Linear, tuple[int, int]] = {}
    after: list[tuple[nn.Linear, int, int]] = []
    for group in groups:
        if not any(u.name in closed for u in group.unit_sets):
            continue
        roots = torch.zeros(group.channels, dtype=torch.bool)
        for units in group.unit_sets:
            if units.name in closed:
                roots |= closed[units.name][units.of_root]
        module = twin.get_submodule(group.root)
        pruner = graph.get_pruner_of_module(module)
        fn = pruner.prune_out_channels if group.root_is_output else pruner.prune_in_channels
        host = graph.get_pruning_group(module, fn, roots.nonzero().flatten().tolist())
        if not graph.check_pruning_group(host):
            raise ValueError("no channel would be left")
        remove(graph, host)
        if group.heads:
            heads = next(iter(group.heads.values()))
            kept_heads, kept_size = heads, group.units.size
            for units in group.unit_sets:
                gone = int(closed[units.name].sum()) if units.name in closed else 0
                kept_heads -= gone if units.kind == "heads" else 0
                kept_size -= gone if units.kind == "head dimensions" else 0
            for path in group.heads:
                layer = twin.get_submodule(path)
                assert isinstance(layer, nn.Linear)
                before[layer] = (heads, group.units.size)
                after.append((layer, kept_heads, kept_size))
    update_attention_owners(twin, after, before, [size for group in groups for size in group.sizes])


def compare(
    model: nn.Module,
    inputs: Any,
    groups: Sequence[CoupledGroup],
    contractions: Sequence[Contraction],
    build: GraphBuilder,
    forward_fn: ForwardFn | None,
    closed: Mapping[str, torch.Tensor],
) -> Verdict:
    """Close on ``model``, remove on a copy of it, and compare all outputs; also closed at the consumers alone.

    Returns:
        The largest absolute differences relative to the largest absolute output, or the reason why they cannot be had.
    """
    twin = copied(model)
    try:
        graph = build(twin, inputs)
        removed_copy(twin, graph, groups, closed)
        with torch.no_grad():
            removed = output_tensors(call(twin, inputs, forward_fn))
    except Exception as error:
        return Verdict(None, f"the model does not run with units removed ({_first_line(error)})")
    try:
        gated, measured = (
            _closed_outputs(
                model, inputs, forward_fn, masks_for(model, groups, closed, contractions, consumers_only=only)
            )
            for only in (False, True)
        )
    except Exception as error:
        return Verdict(None, f"the gates do not fit the model ({_first_line(error)})")
    if [t.shape for t in removed] != [t.shape for t in gated]:
        return Verdict(None, "removal changes the shape of an output")
    return Verdict(_difference(gated, removed), "", _difference(measured, gated))


@torch.no_grad()
def _closed_outputs(model: nn.Module, inputs: Any, forward_fn: ForwardFn | None, masks: Masks) -> list[torch.Tensor]:
    with closed_gates(model, masks):
        return output_tensors(call(model, inputs, forward_fn))


def _difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not a.numel() or not a.is_floating_point():
            continue
        difference = float((a - b).abs().max()) / max(float(b.abs().max()), torch.finfo(b.dtype).tiny)
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def unfelt(
    model: nn.Module, inputs: Any, groups: Sequence[CoupledGroup], forward_fn: ForwardFn | None, least: float
) -> set[str]:
    """Names of the groups whose producers move no output by ``least`` of its scale, to first order."""
    paths = {g.name: [s.path for s in (*g.producers, *g.attentions)] for g in groups}
    probes: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def probe(path: str, _module: nn.Module, _args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, torch.Tensor):
            return output
        nothing = torch.zeros_like(first, requires_grad=True)
        probes.setdefault(path, []).append((first.detach().clone(), nothing))
        return (first + nothing, *output[1:]) if isinstance(output, tuple) else first + nothing

    def cloned(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_first_input(args, kwargs, torch.clone)

    flags = [(p, p.requires_grad) for p in model.parameters()]
    handles = [
        model.get_submodule(path).register_forward_hook(partial(probe, path))
        for path in dict.fromkeys(path for found in paths.values() for path in found)
    ]
    # What a consumer reads may be overwritten later, which autograd refuses.
    handles += [
        model.get_submodule(path).register_forward_pre_hook(cloned, with_kwargs=True)
        for path in dict.fromkeys(s.path for g in groups for s in g.consumers)
    ]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        with torch.enable_grad():
            outputs = [t for t in output_tensors(call(model, inputs, forward_fn)) if t.grad_fn is not None]
            # Signs instead of a plain sum, over which softmax outputs and the like are constant.
            signs = [torch.arange(t.numel()).bitwise_and(1).mul(2).sub(1).reshape(t.shape) for t in outputs]
            scales = [t.detach().abs().max().clamp_min(torch.finfo(t.real.dtype).tiny) for t in outputs]
            totals = [(t.real * s).sum() / c for t, s, c in zip(outputs, signs, scales, strict=True)]
            leaves = [nothing for pairs in probes.values() for _, nothing in pairs]
            found = iter(torch.autograd.grad(totals, leaves, allow_unused=True) if leaves and totals else ())
    finally:
        for handle in handles:
            handle.remove()
        for p, flag in flags:
            p.requires_grad_(flag)
    moves = (
        {
            path: max(0.0 if d is None else float((x * d).norm()) for (x, _), d in zip(pairs, found, strict=False))
            for path, pairs in probes.items()
        }
        if totals
        else {}
    )
    return {name for name, mine in paths.items() if mine and not any(moves.get(path, 0.0) >= least for path in mine)}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def prove(
    model: nn.Module,
    inputs: Any,
    groups: Sequence[CoupledGroup],
    contractions: Sequence[Contraction],
    build: GraphBuilder,
    forward_fn: ForwardFn | None,
    seed: int,
    exact: float = EXACT,
) -> dict[str, CoupledGroup]:
    """Give every candidate group its verdict.

    Args:
        model: the randomised copy; its outputs are computed with gates closed, its structure stays, its weights may
            be drawn anew.
        inputs: example inputs in the copy's dtype.
        groups: the groups to prove.
        contractions: where attention contracts.
        build: makes the host's graph of another copy.
        forward_fn: how the model is called, if not plainly.
        seed: of the random units.
        exact: largest relative difference that counts as equal.

    Returns:
        Group name to the group with its status, error and reason.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [random_units(groups, fraction, generator) for fraction in FRACTIONS]
    verdicts: dict[str, CoupledGroup] = {}

    def compared(part: Sequence[CoupledGroup]) -> Verdict:
        worst = Verdict(0.0)
        for number, closed in enumerate(draws):
            subset = {u.name: closed[u.name] for g in part for u in g.unit_sets if u.name in closed}
            verdict = compare(model, inputs, part, contractions, build, forward_fn, subset)
            if verdict.error is None:
                return verdict
            few = worst.few if number else verdict.error
            worst = Verdict(max(worst.error or 0.0, verdict.error), "", max(worst.unread, verdict.unread), few)
            if max(verdict.error, verdict.unread) > exact and len(part) > 1:
                break
        return worst

    def settle(part: Sequence[CoupledGroup]) -> list[CoupledGroup]:
        """Judge the groups of ``part``; returns those that are exact, all together."""
        verdict = compared(part)
        if verdict.error is not None and max(verdict.error, verdict.unread) <= exact:
            verdicts.update({g.name: g.with_verdict("exact", verdict.error) for g in part})
            return list(part)
        if len(part) == 1:
            verdicts[part[0].name] = _judged(part[0], verdict, exact)
            return []
        sound = [*settle(part[: len(part) // 2]), *settle(part[len(part) // 2 :])]
        together = verdict if len(sound) == len(part) else compared(sound) if sound else Verdict(0.0)
        if together.error is None or max(together.error, together.unread) > exact:
            for g in sound:
                reason = NOT_TOGETHER.format(others=", ".join(o.name for o in sound if o is not g)[:200])
                verdicts[g.name] = g.with_verdict("approximate", together.error, reason)
            return []
        return sound

    def agrees(group: CoupledGroup) -> bool:
        verdict = compared([group])
        return verdict.error is not None and verdict.error <= exact

    candidates = [g for g in groups if any(u.name in draws[0] for u in g.unit_sets)]
    if candidates:
        kept_elsewhere = {path.rpartition(".")[0]: HEAD_ATTRIBUTES for g in candidates for path in g.heads}
        candidates = with_sizes(model, inputs, candidates, agrees, forward_fn, kept_elsewhere)
        silent = settle(candidates)
        for draw in range(REDRAWS):
            names = unfelt(model, inputs, silent, forward_fn, UNFELT * exact)
            felt = [g for g in silent if g.name not in names]
            if draw and felt:
                settle(felt)
            silent = [g for g in silent if g.name in names]
            if not silent:
                break
            randomise(model, generator)
        for g in silent:
            verdicts[g.name] = g.with_verdict("approximate", verdicts[g.name].error, NOT_FELT)
    return verdicts


def _judged(group: CoupledGroup, verdict: Verdict, exact: float) -> CoupledGroup:
    if verdict.error is None:
        return group.with_verdict("unsupported", None, verdict.reason)
    if verdict.few > APPROXIMATE:
        reason = f"closed and removed differ by {verdict.few:.2g} of the output's scale"
        return group.with_verdict("unsupported", verdict.error, reason)
    if verdict.error > exact:
        return group.with_verdict("approximate", verdict.error, MIXES)
    return group.with_verdict("approximate", verdict.unread, READ_ELSEWHERE)
