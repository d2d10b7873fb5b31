"""Which layers of a model a defect of the host touches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.calling import call, output_tensors, preserved
from fair_prune_plugins.gates.closing import width_of
from fair_prune_plugins.gates.enumeration import endless_roots
from fair_prune_plugins.gates.removal import HEAD_ATTRIBUTES, build_graph
from fair_prune_plugins.gates.structure import CoupledGroup, PruningSettings
from fair_prune_plugins.torch_pruning.heads import find_heads
from fair_prune_plugins.torch_pruning.selection import kept_count
from fair_prune_plugins.workflow.doctor.defects import Subject

Convolution = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm
InstanceNorm = nn.modules.instancenorm._InstanceNorm


def outputs(subject: Subject) -> list[str]:
    """Layers that give the model's outputs."""
    return [] if subject.plan is None else list(subject.plan.outputs)


def layer_norms(subject: Subject) -> list[str]:
    """LayerNorms over channels that can be pruned."""
    return _widths_that_change(subject, _of(subject, nn.LayerNorm))


def rms_norms(subject: Subject) -> list[str]:
    """RMSNorms over channels that can be pruned."""
    return _widths_that_change(subject, _of(subject, nn.RMSNorm))


def multihead(subject: Subject) -> list[str]:
    """``nn.MultiheadAttention`` modules."""
    return _of(subject, nn.MultiheadAttention)


def lstms(subject: Subject) -> list[str]:
    """``nn.LSTM`` modules."""
    return _of(subject, nn.LSTM)


def instance_norms(subject: Subject) -> list[str]:
    """InstanceNorms with running statistics."""
    return _of(subject, InstanceNorm, lambda m: m.running_mean is not None)


def batch_norms_without_statistics(subject: Subject) -> list[str]:
    """BatchNorms that say that they track running statistics and have none."""
    return _of(subject, BatchNorm, lambda m: m.track_running_stats and m.running_mean is None)


def batch_norms(subject: Subject) -> list[str]:
    """BatchNorms with weights."""
    return _of(subject, BatchNorm, lambda m: m.affine)


def channel_multipliers(subject: Subject) -> list[str]:
    """Convolutions with one conv group per input channel and several outputs each."""
    return _of(subject, Convolution, lambda m: 1 < m.groups == m.in_channels < m.out_channels)


def taken_for_depthwise(subject: Subject) -> list[str]:
    """Convolutions with one conv group per output channel and several inputs each."""
    return _of(subject, Convolution, lambda m: 1 < m.groups == m.out_channels < m.in_channels)


def single_channel_partners(subject: Subject) -> list[str]:
    """Layers in one coupled group with a layer of a single channel."""
    found = []
    for group in _wanted(subject):
        produced = [(s.path, width_of(subject.model.get_submodule(s.path), output=True)) for s in group.producers]
        if any(n == 1 for _, n in produced):
            found += [path for path, n in produced if n > 1]
    return found


def repeated(subject: Subject) -> list[str]:
    """Layers whose channels fall into conv groups, norm groups or heads (of ``nn.MultiheadAttention`` too)."""
    names: list[str] = []
    for path, module in subject.model.named_modules():
        conv_groups = isinstance(module, Convolution) and 1 < module.groups < module.out_channels
        norm_groups = isinstance(module, nn.GroupNorm) and module.num_groups > 1
        if conv_groups or norm_groups:
            names.append(path)
    heads = _paths(subject, (m for m, count in find_heads(subject.model).items() if count > 1))
    return [*names, *heads]


def attention_owners(subject: Subject) -> list[str]:
    """Hand-written attention that keeps head counts or sizes in attributes of its own."""
    projections = {m for m in find_heads(subject.model) if not isinstance(m, nn.MultiheadAttention)}
    return [
        path
        for path, module in subject.model.named_modules()
        if any(child in projections for child in module.children())
        and any(isinstance(vars(module).get(name), int) for name in HEAD_ATTRIBUTES)
    ]


def tied(subject: Subject) -> list[str]:
    """Modules that share a parameter with another module."""
    owners: dict[nn.Parameter, dict[str, None]] = {}
    for name, parameter in subject.model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, {})[name.rpartition(".")[0]] = None
    shared: dict[str, None] = {}
    for paths in owners.values():
        if len({id(subject.model.get_submodule(p)) for p in paths}) > 1:
            shared.update(paths)
    return list(shared)


def frozen_beginnings(subject: Subject) -> list[str]:
    """Frozen layers whose outputs carry no gradient, so that autograd does not lead the host to them."""
    frozen = {
        path: module
        for path, module in subject.model.named_modules()
        if isinstance(module, Convolution | nn.Linear | nn.Embedding)
        and not any(p.requires_grad for p in module.parameters())
    }
    unseen: dict[str, None] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not output.requires_grad:
                unseen[path] = None

        return hook

    if not frozen:
        return []
    handles = [module.register_forward_hook(look(path)) for path, module in frozen.items()]
    try:
        with preserved(subject.model), torch.enable_grad():
            subject.model.eval()
            output_tensors(call(subject.model, subject.example_inputs))
    finally:
        for handle in handles:
            handle.remove()
    return _widths_that_change(subject, list(unseen))


def narrower_than_block(subject: Subject) -> list[str]:
    """Coupled groups that would keep fewer channels than the target's block."""
    if subject.block is None:
        return []
    return [g.name for g in _wanted(subject) if _kept_channels(g, subject.ratio) < subject.block]


def cut_short(subject: Subject) -> list[str]:
    """Coupled groups of which the host would keep fewer units than asked at this very ratio."""
    return [
        g.name
        for g in _wanted(subject)
        if int(g.units.size * (1 - subject.ratio)) != kept_count(g.units.size, subject.ratio)
    ]


def endless(subject: Subject) -> list[str]:
    """Layers from which the host's enumeration would not come to an end; none where there is a plan."""
    if subject.plan is not None:
        return []
    with preserved(subject.model):
        subject.model.eval()
        try:
            graph: tp.DependencyGraph = build_graph(subject.model, subject.example_inputs)
        except UnsupportedModelError:
            return []
    names = {m: path for path, m in subject.model.named_modules()}
    return [names[m] for m in endless_roots(graph, PruningSettings().root_module_types)]


def _of(
    subject: Subject, kind: type[nn.Module] | tuple[type[nn.Module], ...], which: Callable[[Any], bool] = lambda m: True
) -> list[str]:
    return [path for path, m in subject.model.named_modules() if isinstance(m, kind) and which(m)]


def _paths(subject: Subject, modules: Iterable[nn.Module]) -> list[str]:
    wanted = set(modules)
    return [path for path, m in subject.model.named_modules() if m in wanted]


def _wanted(subject: Subject) -> list[CoupledGroup]:
    """Coupled groups that a user would expect to be pruned: neither ignored nor outputs nor single units."""
    if subject.plan is None:
        return []
    return [g for g in subject.plan.groups if not g.ignored and not g.reaches_output and g.units.size > 1]


def _widths_that_change(subject: Subject, paths: list[str]) -> list[str]:
    """Those whose coupled group would be pruned; all of them where there is no plan to tell."""
    if subject.plan is None:
        return paths
    changing = {s.path for g in _wanted(subject) for s in (*g.producers, *g.norms, *g.consumers, *g.attentions)}
    return [p for p in paths if p in changing]


def _kept_channels(group: CoupledGroup, ratio: float) -> int:
    return kept_count(group.units.size, ratio) * (group.channels // group.units.size)
