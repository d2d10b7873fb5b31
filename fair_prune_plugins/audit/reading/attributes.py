"""An intersection of sensitive attributes taken apart into the attributes it crosses."""

from __future__ import annotations

import numpy as np

from fair_prune_plugins.groups import JOIN, UNKNOWN, GroupLabels


def taken_apart(groups: GroupLabels) -> tuple[GroupLabels, ...]:
    """Each attribute of an intersection by itself, then the intersection.

    Values never contain what joins them (:data:`~fair_prune_plugins.groups.JOIN`), so that this loses nothing, except
    that a person of whom one attribute is unknown is unknown in all: that is all that an intersection remembers.

    Args:
        groups: of one attribute, which is returned as it is, or of several crossed.
    """
    attributes = groups.attribute.split(JOIN)
    values = [name.split(JOIN) for name in groups.names]
    if len(attributes) < 2 or any(len(v) != len(attributes) for v in values):
        return (groups,)
    single = []
    for i, attribute in enumerate(attributes):
        names = sorted({v[i] for v in values})
        code_of = np.array([*(names.index(v[i]) for v in values), UNKNOWN], dtype=np.int64)
        single.append(GroupLabels(tuple(names), code_of[groups.codes], attribute))
    return (*single, groups)
