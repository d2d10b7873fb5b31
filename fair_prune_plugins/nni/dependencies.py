"""NNI's ``auto_set_denpendency_group_ids``, from the dependency graph: one configuration per layer, coupled layers with
one id.
"""

from __future__ import annotations

import difflib
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from nni.compression.base.config import select_modules_by_config, trans_legacy_config_list
from torch import nn

from fair_prune_plugins.errors import InputError, UnsupportedModelError
from fair_prune_plugins.nni.coupling import OutputCoupling, read_coupling

logger = logging.getLogger(__name__)

NOT_A_LIST = (
    "config_list must be a list of dicts such as [{{'op_types': ['Conv2d'], 'sparse_ratio': 0.5}}]; got {found}"
)
NO_SUCH_LAYER = (
    "config_list names {names}, which the model does not have{hint}; names are those of model.named_modules()"
)
NOTHING_SELECTED = (
    "config_list selects no module of {model}: op_types are class names of modules ({types} are in the model), "
    "op_names those of model.named_modules()"
)
ENDLESS = (
    "Torch-Pruning cannot follow the channels of {layers}: {reason}. Name them in exclude_op_names to prune the rest "
    "of the model"
)
NOT_SELECTED = (
    "{count} coupled sets have layers that config_list does not select. Their masks cannot agree, and speedup keeps "
    "every channel that is not masked in all layers of its set. Select all layers of a set or none:\n{lines}"
)
MISALIGNED = (
    "{count} pairs of layers share output channels, but not one for one, which a dependency id cannot say. Each layer "
    "has an id without the other, and speedup keeps the channels that they do not agree on:\n{lines}"
)
UNREAD = (
    "no gradient arrives at {layers} (a no_grad, a detach or an operation without a gradient): what these layers are "
    "coupled with is unknown, and each has an id of its own"
)
UNEQUAL = (
    "{count} coupled sets have layers of different sparse_ratio; NNI's pruners accept one for all layers of a set and "
    "stop with an AssertionError:\n{lines}"
)
THRESHOLD = (
    "{layers} have a sparse_threshold and no sparse_ratio; NNI's pruners stop with an AssertionError where such a "
    "layer has a dependency_group_id. Give a sparse_ratio as well, or take the ids out again"
)

MIXED = (
    "{count} coupled sets have both convolutions and linear layers; NNI's pruners add up their scores, which have "
    "different shapes, and stop with a RuntimeError. Leave these sets out of config_list:\n{lines}"
)

ID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "fair_prune_plugins.nni.dependencies")


def auto_set_denpendency_group_ids(
    model: nn.Module, config_list: list[dict[str, Any]], dummy_input: Any
) -> list[dict[str, Any]]:
    """Give layers whose output channels are coupled the same ``dependency_group_id``.

    A replacement for the function of the same name in ``nni.compression.utils``, with its result: one configuration per
    selected module with all other keys kept; a ``dependency_group_id`` for each convolution, linear layer and embedding
    that runs, alone or not (an id that the configuration had is replaced); an ``internal_metric_block`` for each
    convolution (1 if neither it nor what follows has conv groups), and for linear layers in front of a grouped
    convolution or a group norm.

    Where it differs from NNI's:

    * Ids are a hash of the coupled layers' names and of all names and shapes of the model, not random: two calls on one
      model agree, and so do calls on two models that are built alike. Configurations come in the order of the model's
      modules.
    * Layers count as coupled where their channels are the same, one for one. NNI also joins layers of different widths
      that meet behind a concatenation, which no pruner of its own survives, and queries and keys with the residual
      stream; it misses layers that meet behind a reshape, and those that run twice.
    * 1d and 3d convolutions have ids as well.

    What a user should know (coupled layers that are not selected, or have another ``sparse_ratio``) is logged as a
    warning.

    Args:
        model: any module, also one whose layers are nested under a prefix; left exactly as it was.
        config_list: NNI's configurations, legacy keys included.
        dummy_input: what the model is called with: a tensor, a tuple or list of tensors (positional), or a dict
            (keywords).

    Returns:
        The new configurations. ``config_list`` stays as it is.

    Raises:
        InputError: ``config_list`` is no list of dicts, names a module that does not exist or selects none; or the
            model fails on ``dummy_input``.
        UnsupportedModelError: Torch-Pruning cannot trace the model, or cannot follow channels of selected layers.
    """
    selected = _selected(model, config_list)
    if not selected:
        return []
    coupling = read_coupling(model, dummy_input)
    names = {name for name, _ in selected}
    endless = [name for name in coupling.endless if name in names]
    if endless:
        reason = coupling.endless[endless[0]]
        raise UnsupportedModelError(ENDLESS.format(layers=", ".join(endless), reason=reason))
    paths = {module: name for name, module in reversed(list(model.named_modules()))}
    ids = _identifiers(model, coupling)
    _warn(model, coupling, {paths[model.get_submodule(name)]: config for name, config in reversed(selected)})
    new_config_list = []
    for name, config in selected:
        path = paths[model.get_submodule(name)]  # a module can have several names
        extra: dict[str, Any] = {}
        if path in ids:
            extra["dependency_group_id"] = ids[path]
        if path in coupling.blocks:
            extra["internal_metric_block"] = coupling.blocks[path]
        new_config_list.append({"op_names": [name], **config, **extra})
    return new_config_list


auto_set_dependency_group_ids = auto_set_denpendency_group_ids


def _selected(model: nn.Module, config_list: Any) -> list[tuple[str, dict[str, Any]]]:
    """Module name and configuration of every module that every configuration selects.

    Raises:
        InputError: see :func:`auto_set_denpendency_group_ids`.
    """
    if not isinstance(config_list, list | tuple):
        raise InputError(NOT_A_LIST.format(found=f"{type(config_list).__name__} {config_list!r}"))
    wrong = [config for config in config_list if not isinstance(config, Mapping)]
    if wrong:
        raise InputError(NOT_A_LIST.format(found=f"{type(wrong[0]).__name__} {wrong[0]!r} in it"))
    order = [name for name, _ in model.named_modules(remove_duplicate=False)]
    selected: list[tuple[str, dict[str, Any]]] = []
    for config in trans_legacy_config_list([dict(config) for config in config_list]):
        try:
            modules, public, _ = select_modules_by_config(model, config)
        except KeyError as error:
            raise InputError(_no_such_layer(order, config["op_names"])) from error
        selected += [(name, deepcopy(public)) for name in order if name in modules]
    if config_list and not selected:
        types = ", ".join(sorted({type(m).__name__ for m in model.modules() if not list(m.children())}))
        raise InputError(NOTHING_SELECTED.format(model=type(model).__name__, types=types))
    return selected


def _no_such_layer(known: Sequence[str], names: Iterable[str]) -> str:
    missing = [name for name in names if name not in known]
    close = [found for name in missing for found in difflib.get_close_matches(name, known, n=1)]
    hint = f" (did you mean {', '.join(dict.fromkeys(close))}?)" if close else ""
    return NO_SUCH_LAYER.format(names=", ".join(map(repr, missing)), hint=hint)


def _identifiers(model: nn.Module, coupling: OutputCoupling) -> dict[str, str]:
    """An id of 32 hexadecimal digits, as NNI's have, for every layer of a coupled set."""
    build = "\n".join(f"{name} {list(parameter.shape)}" for name, parameter in model.named_parameters())
    namespace = uuid.uuid5(ID_NAMESPACE, build)
    return {name: uuid.uuid5(namespace, "\n".join(found)).hex for found in coupling.sets for name in found}


def _warn(model: nn.Module, coupling: OutputCoupling, selected: Mapping[str, Mapping[str, Any]]) -> None:
    """Say where masks cannot agree. Of several configurations for a module NNI takes the first, and so does
    ``selected``.
    """
    partial, unequal, threshold, mixed = [], [], [], []
    for found in coupling.sets:
        inside = [name for name in found if name in selected]
        outside = [name for name in found if name not in selected]
        if inside and outside:
            partial.append(f"  {', '.join(outside)} not selected, coupled with {', '.join(inside)}")
        ratios = {name: _setting(selected[name], "sparse_ratio") for name in inside}
        if len(set(ratios.values())) > 1:
            unequal.append("  " + ", ".join(f"{name}: {ratio}" for name, ratio in ratios.items()))
        threshold += [n for n in inside if ratios[n] is None and _setting(selected[n], "sparse_threshold") is not None]
        if len({isinstance(model.get_submodule(name), nn.modules.conv._ConvNd) for name in inside}) > 1:
            mixed.append(f"  {', '.join(inside)}")
    misaligned = [f"  {one} and {other}" for one, other in coupling.misaligned if {one, other} & selected.keys()]
    for message, lines in ((NOT_SELECTED, partial), (UNEQUAL, unequal), (MIXED, mixed), (MISALIGNED, misaligned)):
        if lines:
            logger.warning(message.format(count=len(lines), lines="\n".join(lines)))
    unread = [name for name in coupling.unread if name in selected]
    for message, layers in ((UNREAD, unread), (THRESHOLD, threshold)):
        if layers:
            logger.warning(message.format(layers=", ".join(layers)))


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """What a configuration says of a layer's weight."""
    own = (config.get("target_settings") or {}).get("weight") or {}
    return own.get(key, config.get(key))
