"""How many convolutions ONNX Runtime runs in its fast blocked layout, and which it does not.

On the CPU the runtime lays channels out in blocks (NCHWc) and leaves a convolution in the slow layout where its
channels do not fit, which is what pruning to arbitrary widths does: fewer multiplications, same or worse latency. Which
widths it rewards is the subject of :mod:`fair_prune_plugins.latency.alignment`; what it decided for a model is read
here, from the optimised graph that it writes out.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.extras import need

if TYPE_CHECKING:
    import onnx

NCHWC_DOMAIN = "com.microsoft.nchwc"
CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
"""What a convolution is called in an optimised graph, by itself or with its activation merged in."""

WEIGHT = ".weight"
"""Ends the name of a layer's weight in torch, which the exporters keep."""


@dataclass(frozen=True)
class ConvLayer:
    """A convolution that runs in the slow layout.

    Attributes:
        name: of the node in the optimised graph.
        inputs: input channels; ``None`` where the weight is no constant.
        outputs: output channels, likewise.
        conv_groups: conv groups.
        module: its name in the torch model; ``None`` where the export did not keep it.
    """

    name: str
    inputs: int | None
    outputs: int | None
    conv_groups: int
    module: str | None = None

    def __str__(self) -> str:
        widths = [str(width) for width in (self.inputs, self.outputs) if width is not None]
        return f"{self.module or self.name} ({' to '.join(widths)})" if widths else self.module or self.name


@dataclass(frozen=True)
class Layout:
    """Convolutions of one model, by layout.

    Attributes:
        fast: convolutions in the NCHWc layout.
        total: all of them.
        slow: those that are not in it.
    """

    fast: int
    total: int
    slow: tuple[ConvLayer, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of the convolutions in the fast layout; ``None`` where the model has none."""
        return self.fast / self.total if self.total else None


def fast_layout(path: str | Path) -> Layout:
    """Let ONNX Runtime optimise a model for this machine's CPU, and count its convolutions by layout.

    Args:
        path: an ONNX file.

    Raises:
        InputError: no such file, or one that ONNX Runtime cannot load.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    need("onnx", "onnxruntime", purpose="read the layout of a model")
    import onnx
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no ONNX file {path}")
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 4  # it warns that the file fits this machine only, which is what is wanted here
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise InputError(f"ONNX Runtime cannot load {path}: {error}") from error
        proto = onnx.load(str(optimised), load_external_data=False)
    return _count(proto, _weights(onnx.load(str(path), load_external_data=False)))


def _weights(proto: onnx.ModelProto) -> dict[str, str]:
    """What the weight of each convolution is called; fusions rename weights, but not the nodes they leave slow."""
    return {node.name: node.input[1] for node in _convolutions(proto) if node.name}


def _convolutions(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    from fair_prune_plugins.onnx.metadata import graphs

    return [node for graph in graphs(proto) for node in graph.node if node.op_type in CONVOLUTIONS]


def _count(proto: onnx.ModelProto, weights: dict[str, str]) -> Layout:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    convolutions = _convolutions(proto)
    slow = [node for node in convolutions if node.domain != NCHWC_DOMAIN]
    return Layout(
        fast=len(convolutions) - len(slow),
        total=len(convolutions),
        slow=tuple(_layer(node, shapes.get(node.input[1]), weights.get(node.name, node.input[1])) for node in slow),
    )


def _layer(node: onnx.NodeProto, shape: tuple[int, ...] | None, weight: str) -> ConvLayer:
    conv_groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    inputs, outputs = (None, None) if shape is None else (shape[1] * conv_groups, shape[0])
    return ConvLayer(node.name, inputs, outputs, conv_groups, _module(node.name, weight))


def _module(node: str, weight: str) -> str | None:
    """The torch module: from its weight's name, or from the path that the older exporter gives to the node."""
    if weight.endswith(WEIGHT):
        return weight.removesuffix(WEIGHT)
    path = node.strip("/").split("/")[:-1] if node.startswith("/") else []
    return ".".join(path) or None
