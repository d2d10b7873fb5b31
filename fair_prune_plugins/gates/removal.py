"""Removing units for real: the host's dependency graph, with norm pruners that are right.

Torch-Pruning 1.6.1's own LayerNorm pruner leaves its keep list unsorted when few channels are kept and so permutes
weights silently, and ``nn.RMSNorm`` has no pruner at all. The two here replace them wherever this package builds a
graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning import ops
from torch_pruning.pruner.function import BasePruningFunc

from fair_prune_plugins.errors import UnsupportedModelError
from fair_prune_plugins.gates.attention import kept_scales
from fair_prune_plugins.gates.calling import ForwardFn, output_tensors
from fair_prune_plugins.gates.norms import gone_channels
from fair_prune_plugins.gates.static_sizes import update_sizes
from fair_prune_plugins.gates.structure import SizeAttribute

NO_GRAPH = (
    "Torch-Pruning cannot read the model's structure: {error}. It traces autograd through ordinary layers and tensor "
    "operations; channel shuffles and forwards that cut the graph are known to stop it"
)

HEAD_COUNT_NAMES = ("num_heads", "n_heads", "n_head", "heads", "nhead", "num_attention_heads")
HEAD_SIZE_NAMES = ("head_dim", "dim_head", "head_size", "attention_head_size", "d_head")
INNER_SIZE_NAMES = ("inner_dim", "attn_dim", "all_head_size")
HEAD_ATTRIBUTES = (*HEAD_COUNT_NAMES, *HEAD_SIZE_NAMES, *INNER_SIZE_NAMES)


class LastDimensionNormPruner(BasePruningFunc):  # type: ignore[misc]
    """Prunes a norm over the last dimension (``nn.LayerNorm``, ``nn.RMSNorm``), keeping the order of what stays.

    Args:
        head_norms: norms over head dimensions; their width does not say how many channels may go.
    """

    TARGET_MODULES = (nn.LayerNorm, nn.RMSNorm)

    def __init__(self, head_norms: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.head_norms = set(head_norms)

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        """Drop ``idxs`` from the last normalised dimension; of a norm over head dimensions, see
        :func:`~fair_prune_plugins.gates.norms.gone_channels`.
        """
        gone = gone_channels(torch.tensor(idxs, dtype=torch.int64), int(layer.normalized_shape[-1]))
        keep = (~gone).nonzero().flatten().tolist()
        for name in ("weight", "bias"):
            parameter = getattr(layer, name, None)
            if parameter is not None:
                setattr(layer, name, self._prune_parameter_and_grad(parameter, keep, -1))
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        return layer  # type: ignore[no-any-return]

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int | None:
        """Size of the last normalised dimension; ``None`` for norms over head dimensions."""
        return None if layer in self.head_norms else int(layer.normalized_shape[-1])

    get_in_channels = get_out_channels


def with_norm_pruners(model: nn.Module, customized: Mapping[Any, BasePruningFunc] | None) -> dict[Any, BasePruningFunc]:
    """The user's customised pruners, plus ours for every LayerNorm and RMSNorm type in the model that they leave alone.

    The host looks pruners up by exact class, so subclasses (channels-first LayerNorms) are registered one by one. Ours
    are made anew if they are there, because they know modules of the model that they were made for.
    """
    pruners = dict(customized or {})
    ours = LastDimensionNormPruner(
        child for module in model.modules() for child in module.children() if is_head_norm(module, child)
    )
    for module in model.modules():
        known = pruners.get(type(module))
        if isinstance(module, LastDimensionNormPruner.TARGET_MODULES) and (
            known is None or type(known) is LastDimensionNormPruner
        ):
            pruners[type(module)] = ours
    return pruners


def is_head_norm(owner: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` is one over the head dimensions of the attention ``owner``, by the sizes that it remembers."""
    if not isinstance(norm, LastDimensionNormPruner.TARGET_MODULES):
        return False
    heads = next((n for name in HEAD_COUNT_NAMES if type(n := getattr(owner, name, None)) is int), 1)
    width = norm.normalized_shape[-1]
    widths = {layer.out_features for layer in owner.children() if isinstance(layer, nn.Linear)}
    return heads > 1 and width not in widths and any(heads * width in (w, w // 3) for w in widths)


def traceable_outputs(outputs: Any) -> list[torch.Tensor]:
    """Output tensors that the graph can be traced from."""
    return [t for t in output_tensors(outputs) if t.grad_fn is not None]


@contextmanager
def no_hooks_left(model: nn.Module) -> Iterator[None]:
    """Take the hooks away that the host leaves in a model that fails while it is traced."""
    hooks = [(m, set(m._forward_hooks)) for m in model.modules()]
    try:
        yield
    finally:
        for module, before in hooks:
            for key in module._forward_hooks.keys() - before:
                del module._forward_hooks[key]


def build_graph(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFn | None = None,
    output_transform: Any = None,
    customized_pruners: Mapping[Any, BasePruningFunc] | None = None,
    unwrapped_parameters: Sequence[tuple[nn.Parameter, int]] | None = None,
    ignored_params: Sequence[nn.Parameter] = (),
) -> tp.DependencyGraph:
    """The host's dependency graph with our norm pruners; frozen parameters are traced like all others.

    The model must be in eval mode; its ``requires_grad`` flags are put back.

    Raises:
        UnsupportedModelError: the host cannot trace it.
    """
    # The host calls model(*inputs) first, which would unroll a bare tensor along its batch.
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) and forward_fn is None else example_inputs
    frozen = [p for p in model.parameters() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with no_hooks_left(model), torch.enable_grad(), warnings.catch_warnings():
            # "Unwrapped parameters detected": the plan lists them as members, and says so in its own words.
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=forward_fn,
                output_transform=traceable_outputs if output_transform is None else output_transform,
                customized_pruners=with_norm_pruners(model, customized_pruners),
                unwrapped_parameters=None if unwrapped_parameters is None else list(unwrapped_parameters),
                ignored_params=list(ignored_params),
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedModelError(NO_GRAPH.format(error=f"{type(error).__name__}: {error}")) from error
    finally:
        for p in frozen:
            p.requires_grad_(False)


def graph_builder(
    model: nn.Module,
    *,
    forward_fn: ForwardFn | None = None,
    output_transform: Any = None,
    customized_pruners: Mapping[Any, BasePruningFunc] | None = None,
    unwrapped_parameters: Iterable[tuple[nn.Parameter, int]] = (),
    ignored_params: Iterable[nn.Parameter] = (),
) -> Callable[[nn.Module, Any], tp.DependencyGraph]:
    """:func:`build_graph` with one model's settings, for that model and its copies, whatever their parameters are then.

    Bare parameters are remembered by name.
    """
    names = {p: name for name, p in model.named_parameters()}
    bare = [(names[p], dim) for p, dim in unwrapped_parameters if p in names]
    ignored = [names[p] for p in ignored_params if p in names]

    def build(of: nn.Module, inputs: Any) -> tp.DependencyGraph:
        return build_graph(
            of,
            inputs,
            forward_fn=forward_fn,
            output_transform=output_transform,
            customized_pruners=customized_pruners,
            unwrapped_parameters=[(of.get_parameter(name), dim) for name, dim in bare],
            ignored_params=[of.get_parameter(name) for name in ignored],
        )

    return build


def channel_groups(graph: tp.DependencyGraph, model: nn.Module) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """How many conv groups or norm groups each layer's inputs and outputs fall into (depthwise convolutions have
    none).
    """
    ins: dict[nn.Module, int] = {}
    outs: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, ops.TORCH_CONV) and module.groups == module.out_channels:
            continue
        pruner = graph.get_pruner_of_module(module)
        if pruner is None:
            continue
        if pruner.get_in_channel_groups(module) > 1:
            ins[module] = pruner.get_in_channel_groups(module)
        if pruner.get_out_channel_groups(module) > 1:
            outs[module] = pruner.get_out_channel_groups(module)
    return ins, outs


def remove(graph: tp.DependencyGraph, group: Any) -> None:
    """Remove a coupled group's indices; parameters that were frozen stay frozen."""
    with frozen_stay(graph, group):
        group.prune()


@contextmanager
def frozen_stay(graph: tp.DependencyGraph, group: Any) -> Iterator[None]:
    """Freeze what was frozen of a coupled group again after it was pruned: the host makes new parameters."""
    frozen = [
        (item.dep.target.module, name)
        for item in group
        if isinstance(item.dep.target.module, nn.Module)
        for name, p in item.dep.target.module.named_parameters()
        if not p.requires_grad
    ]
    bare = [
        graph._param_to_name[item.dep.target.module]
        for item in group
        if isinstance(item.dep.target.module, nn.Parameter) and not item.dep.target.module.requires_grad
    ]
    try:
        yield
    finally:
        for name in bare:
            graph.model.get_parameter(name).requires_grad_(False)
        for module, name in frozen:
            module.get_parameter(name).requires_grad_(False)


def update_attention_owners(
    model: nn.Module,
    layers: Sequence[tuple[nn.Linear, int, int]],
    before: Mapping[nn.Linear, tuple[int, int]],
    sizes: Sequence[SizeAttribute] = (),
) -> None:
    """Tell the modules that own attention projections their new head count, sizes and scale, and all others the widths
    that they remember.

    Attention modules keep these as plain attributes and reshape by them, so a pruned projection alone breaks their
    forward.

    Args:
        model: the pruned model.
        layers: ``(projection, heads, head size)`` after pruning.
        before: ``(heads, head size)`` of each projection before.
        sizes: numbers that follow widths of layers, of all coupled groups that were pruned.
    """
    owners = {child: module for module in model.modules() for child in module.children()}
    for layer, heads, size in layers:
        owner = owners.get(layer)
        if owner is None or isinstance(owner, nn.Sequential | nn.ModuleList):
            continue
        old_heads, old_size = before[layer]
        for names, old, new in (
            (HEAD_COUNT_NAMES, old_heads, heads),
            (HEAD_SIZE_NAMES, old_size, size),
            (INNER_SIZE_NAMES, old_heads * old_size, heads * size),
        ):
            for name in names:
                value = owner.__dict__.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value == old:
                    setattr(owner, name, new)
        for name, value in kept_scales(owner, old_size, size).items():
            setattr(owner, name, value)
    update_sizes(model, sizes)
