"""The kinds of evidence that the dense model gives, and how each is put in words."""

from __future__ import annotations

from collections.abc import Sequence

from fair_prune_plugins.audit.forecast.ordering import Signal, percent
from fair_prune_plugins.evaluation.intervals import Estimate

Values = Sequence[float | None]

UNCERTAINTY, ERROR, BOUNDARY = "uncertainty", "error", "boundary"
INTERDEPENDENCE, IMBALANCE, ASSOCIATION = "interdependence", "imbalance", "association"
NORM, EIGENVALUE, BEYOND_CHANCE = "gradient norm", "Hessian eigenvalue", "gradient norm beyond chance"

OF_OUTPUTS = (UNCERTAINTY, INTERDEPENDENCE, ERROR, IMBALANCE)
OF_GROUPS = (UNCERTAINTY, BOUNDARY, ERROR)
OF_GRADIENTS = (NORM, EIGENVALUE)
OF_PAIRS = (UNCERTAINTY, ERROR, ASSOCIATION)


def uncertainty(estimates: Sequence[Estimate | None]) -> Signal:
    """Share of answers that the dense model is unsure of."""
    return Signal(UNCERTAINTY, _values(estimates), lambda v: f"unsure of {percent(v)} of answers", percent)


def error(accuracies: Sequence[Estimate | None]) -> Signal:
    """Share of answers that the dense model has wrong, from accuracies."""
    values = [None if v is None else 1 - v for v in _values(accuracies)]
    return Signal(ERROR, values, lambda v: f"wrong in {percent(v)} of answers", percent)


def boundary(estimates: Sequence[Estimate | None]) -> Signal:
    """Closeness to the decision boundary, mean of ``1 - sum p²``."""
    return Signal(BOUNDARY, _values(estimates), lambda v: f"near the decision boundary, 1 - sum p² is {v:.2g}", _two)


def interdependence(values: Values) -> Signal:
    """How far an output's answers follow from the other outputs' answers."""
    return Signal(INTERDEPENDENCE, values, lambda v: f"tied to the other outputs, R² {v:.2f}", _two)


def imbalance(rare: Values) -> Signal:
    """How rare the rarer value is among training people."""
    values = [None if v is None else 0.5 - v for v in rare]
    return Signal(
        IMBALANCE,
        values,
        lambda v: f"its rarer value is true of {percent(0.5 - v)} of training people",
        lambda v: percent(0.5 - v),
    )


def association(correlations: Values) -> Signal:
    """How far training labels go with the group."""
    values = [None if v is None else abs(v) for v in correlations]
    return Signal(
        ASSOCIATION, values, lambda v: f"training labels go with the group, correlation {v:.2f} in size", _two
    )


def gradient_norm(values: Values) -> Signal:
    """Norm of the group's mean gradient."""
    return Signal(NORM, values, lambda v: f"its loss is steep around the network, gradient norm {v:.2g}", _two)


def eigenvalue(values: Values) -> Signal:
    """Largest eigenvalue of the group's Hessian."""
    return Signal(EIGENVALUE, values, lambda v: f"its loss is sharply curved, Hessian eigenvalue {v:.2g}", _two)


def _values(estimates: Sequence[Estimate | None]) -> list[float | None]:
    return [None if estimate is None else estimate.value for estimate in estimates]


def _two(value: float) -> str:
    return f"{value:.2g}"
