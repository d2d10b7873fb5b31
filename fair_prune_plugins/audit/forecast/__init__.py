"""What the dense model alone tells of the risks of compression, and how good that forecast was."""

from fair_prune_plugins.audit.forecast.curvature import average, gradients
from fair_prune_plugins.audit.forecast.detecting import MEAN
from fair_prune_plugins.audit.forecast.forecasting import forecast
from fair_prune_plugins.audit.forecast.judging import judge
from fair_prune_plugins.audit.forecast.result import (
    AttributeRisk,
    Detection,
    ForecastQuality,
    Gradients,
    GroupGradient,
    GroupOutputRisk,
    GroupRisk,
    OrderQuality,
    OutputRisk,
    PersonRisk,
    RiskReport,
)

__all__ = [
    "MEAN",
    "AttributeRisk",
    "Detection",
    "ForecastQuality",
    "Gradients",
    "GroupGradient",
    "GroupOutputRisk",
    "GroupRisk",
    "OrderQuality",
    "OutputRisk",
    "PersonRisk",
    "RiskReport",
    "average",
    "forecast",
    "gradients",
    "judge",
]
