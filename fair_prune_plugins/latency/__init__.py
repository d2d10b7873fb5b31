"""How long a model takes in ONNX Runtime, measured so that the answer can be trusted on a noisy machine.

:func:`benchmark` times ONNX files against each other; :func:`pareto_front` picks those that nothing else beats;
:func:`alignment_for` says which widths a runtime rewards. What needs the ``onnx`` extra asks for it when it is called:
the rest works without.
"""

from fair_prune_plugins.latency.alignment import Alignment, alignment_for
from fair_prune_plugins.latency.intervals import Estimate
from fair_prune_plugins.latency.layout import ConvLayer, Layout, fast_layout
from fair_prune_plugins.latency.machine import Machine, describe_machine
from fair_prune_plugins.latency.pareto import pareto_front
from fair_prune_plugins.latency.report import LatencyReport, ModelLatency
from fair_prune_plugins.latency.timing import benchmark

__all__ = [
    "Alignment",
    "ConvLayer",
    "Estimate",
    "LatencyReport",
    "Layout",
    "Machine",
    "ModelLatency",
    "alignment_for",
    "benchmark",
    "describe_machine",
    "fast_layout",
    "pareto_front",
]
