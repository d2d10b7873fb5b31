"""Which models nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fair_prune_plugins.errors import InputError


def pareto_front(points: Sequence[tuple[float | None, float | None]]) -> list[int]:
    """Indices of the points that no other point dominates.

    A point dominates another when it is no slower and no less accurate, and better in one of the two. Equal points do
    not dominate each other. A point with an undefined coordinate (``None`` or NaN) is never on the front and dominates
    nothing.

    Args:
        points: ``(latency, accuracy)`` of each model: less latency and more accuracy are better.

    Returns:
        Indices into ``points``, from the fastest to the slowest; equal points in their given order.

    Raises:
        InputError: a point that is no pair.
    """
    defined: list[tuple[float, float, int]] = []
    for index, point in enumerate(points):
        if len(point) != 2:
            raise InputError(f"points must be pairs (latency, accuracy), got {point!r} at index {index}")
        latency, accuracy = point
        if latency is None or accuracy is None or math.isnan(latency) or math.isnan(accuracy):
            continue
        defined.append((float(latency), float(accuracy), index))
    front: list[int] = []
    best, best_latency = -math.inf, -math.inf
    for latency, accuracy, index in sorted(defined, key=lambda p: (p[0], -p[1], p[2])):
        if accuracy > best or not front or (accuracy == best and latency == best_latency):
            front.append(index)
            best, best_latency = accuracy, latency
    return front
