"""The pruners by name: one class per registered criterion, those of other installed packages among them."""

from __future__ import annotations

import logging
import re

from fair_prune_plugins.criteria import get, names
from fair_prune_plugins.nni.criterion_pruner import CriterionPruner

SUFFIX = "Pruner"


class MagnitudePruner(CriterionPruner):
    """Euclidean norm of the unit's weights (arXiv:1608.08710), over whole coupled groups; needs no data, sees no
    groups: ``MagnitudePruner(model, config_list, dummy_input=x)``.
    """

    criterion_name = "magnitude"


class GateTaylorPruner(CriterionPruner):
    """Mean absolute first-order effect over all people (arXiv:1906.10771), measured on gates; it needs no groups.

    NNI's own ``TaylorPruner`` is of weights, and trains meanwhile.
    """

    criterion_name = "taylor"


class FairTaylorPruner(CriterionPruner):
    """Taylor importance in which every sensitive group counts the same, whatever its size."""

    criterion_name = "group_balanced_taylor"


GroupBalancedTaylorPruner = FairTaylorPruner


class WorstGroupTaylorPruner(CriterionPruner):
    """The largest of the sensitive groups' own Taylor importances: a unit that any group depends on stays."""

    criterion_name = "worst_group_taylor"


class FairGRAPEPruner(CriterionPruner):
    """FairGRAPE's greedy selection on units (arXiv:2207.10888): every group keeps its share of each layer's importance.

    Its scores are ranks within a layer, so a ``global_group_id`` gives every layer about the same ratio.
    """

    criterion_name = "fairgrape"


class FairPrunePruner(CriterionPruner):
    """FairPrune's difference of saliencies (arXiv:2203.02110): keeps what the unprivileged group needs."""

    criterion_name = "fairprune"


PRUNERS: dict[str, type[CriterionPruner]] = {
    c.criterion_name: c
    for c in (
        MagnitudePruner,
        GateTaylorPruner,
        FairTaylorPruner,
        WorstGroupTaylorPruner,
        FairGRAPEPruner,
        FairPrunePruner,
    )
}


def pruner_class(name: str) -> type[CriterionPruner]:
    """The pruner of any registered criterion, by the criterion's name.

    Raises:
        InputError: no such criterion.
    """
    found = get(name)
    if name not in PRUNERS:
        body = {
            "criterion_name": name,
            "__doc__": f"{found.summary}\n\nSource: {found.source}.",
            "__module__": __name__,
        }
        PRUNERS[name] = type(class_name(name), (CriterionPruner,), body)
    return PRUNERS[name]


def class_name(criterion: str) -> str:
    """``median_group_taylor`` -> ``MedianGroupTaylorPruner``."""
    if criterion in PRUNERS:
        return PRUNERS[criterion].__name__
    words = re.split(r"[^0-9A-Za-z]+", criterion)
    return "".join(word[:1].upper() + word[1:] for word in words) + SUFFIX


def class_named(attribute: str) -> type[CriterionPruner]:
    """The pruner of that class name; for the ``__getattr__`` of a module.

    Raises:
        AttributeError: no criterion has a pruner of that name.
    """
    if attribute.endswith(SUFFIX):
        for name in names():
            if class_name(name) == attribute:
                return pruner_class(name)
    raise AttributeError(f"module 'fair_prune_plugins.nni' has no attribute {attribute!r}")


def _tested_with_schedules(record: logging.LogRecord) -> bool:
    """Not NNI's remark that ``AGPPruner`` and ``LinearPruner`` were not tested with a pruner, where it is ours."""
    message = record.getMessage()
    return not any(message == HOST_REMARK.format(name=c.__name__) for c in PRUNERS.values())


HOST_REMARK = "Compatibility not tested with pruner type {name}."
logging.getLogger("nni.compression.pruning.scheduled_pruner").addFilter(_tested_with_schedules)
