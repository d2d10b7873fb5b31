"""Which models nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fair_prune_plugins.errors import InputError


def pareto_front(points: Sequence[tuple[float | None, float | None]], *, tolerance: float = 0.0) -> list[int]:
    """Indices of the points that no other point dominates.

    A point dominates another when it is no slower and no less accurate, and better in one of the two. Equal points do
    not dominate each other. A point with an undefined coordinate (``None`` or NaN) is never on the front and dominates
    nothing.

    Args:
        points: ``(latency, accuracy)`` of each model: less latency and more accuracy are better.
        tolerance: latencies that differ by no more than this fraction count as equal, so that noise alone puts nobody
            on the front.

    Returns:
        Indices into ``points``, from the fastest to the slowest; equal points in their given order.

    Raises:
        InputError: a point that is no pair, or a negative tolerance.
    """
    if tolerance < 0:
        raise InputError(f"tolerance must not be negative, got {tolerance}")
    defined: list[tuple[float, float, int]] = []
    for index, point in enumerate(points):
        if len(point) != 2:
            raise InputError(f"points must be pairs (latency, accuracy), got {point!r} at index {index}")
        latency, accuracy = point
        if latency is None or accuracy is None or math.isnan(latency) or math.isnan(accuracy):
            continue
        defined.append((float(latency), float(accuracy), index))

    def dominated(latency: float, accuracy: float) -> bool:
        return any(
            (a > accuracy and t <= latency * (1 + tolerance)) or (a == accuracy and t * (1 + tolerance) < latency)
            for t, a, _ in defined
        )

    return [
        index for latency, accuracy, index in sorted(defined, key=lambda p: p[0]) if not dominated(latency, accuracy)
    ]
