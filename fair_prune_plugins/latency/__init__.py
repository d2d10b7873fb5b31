"""How long a model takes in ONNX Runtime, measured so that the answer can be trusted on a noisy machine.

:func:`benchmark` times ONNX files against each other; :func:`pareto_front` picks those that nothing else beats.
"""

from fair_prune_plugins.errors import MissingDependencyError

try:
    import onnx as _onnx  # noqa: F401
    import onnxruntime as _onnxruntime  # noqa: F401
    import scipy as _scipy  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        f"{error.name} is needed to time models; install it with: pip install 'fair-prune-plugins[onnx]'"
    ) from error

from fair_prune_plugins.latency.intervals import Estimate
from fair_prune_plugins.latency.layout import ConvLayer, Layout, fast_layout
from fair_prune_plugins.latency.machine import Machine, describe_machine
from fair_prune_plugins.latency.pareto import pareto_front
from fair_prune_plugins.latency.report import LatencyReport, ModelLatency
from fair_prune_plugins.latency.timing import benchmark

__all__ = [
    "ConvLayer",
    "Estimate",
    "LatencyReport",
    "Layout",
    "Machine",
    "ModelLatency",
    "benchmark",
    "describe_machine",
    "fast_layout",
    "pareto_front",
]
