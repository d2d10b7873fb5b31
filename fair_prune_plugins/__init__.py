"""Fairness-aware structured pruning inside the tools people already use.

The core (``groups``, ``gates``, ``statistics``, ``criteria``) ranks the units of a network by what their removal costs
each sensitive group of people; ``torch_pruning`` carries that into Torch-Pruning; ``onnx``, ``evaluation``, ``latency``
and ``workflow`` take the smaller network to a decision. Subpackages are imported on demand: the core needs no ONNX, no
pandas.
"""

__version__ = "0.1.0"
