"""How many convolutions ONNX Runtime runs in its fast blocked layout.

On the CPU the runtime lays channels out in blocks (NCHWc) and leaves a convolution in the slow layout where its
channels do not fit, which is what pruning to arbitrary widths does: fewer multiplications, same or worse latency. A
multiple of 4 keeps convolutions in ONNX Runtime's fast CPU layout, 16 is faster where the width allows. What the
runtime decided is read from the optimised graph that it writes out.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.onnx.metadata import graphs

NCHWC_DOMAIN = "com.microsoft.nchwc"
CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
"""What a convolution is called in an optimised graph, by itself or with its activation merged in."""


@dataclass(frozen=True)
class ConvLayer:
    """A convolution that runs in the slow layout.

    Attributes:
        name: of the node in the optimised graph.
        inputs: input channels; ``None`` where the weight is no constant.
        outputs: output channels, likewise.
        conv_groups: conv groups.
    """

    name: str
    inputs: int | None
    outputs: int | None
    conv_groups: int


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
    """
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
    return _count(proto)


def _count(proto: onnx.ModelProto) -> Layout:
    weights = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    convolutions = [node for graph in graphs(proto) for node in graph.node if node.op_type in CONVOLUTIONS]
    slow = [node for node in convolutions if node.domain != NCHWC_DOMAIN]
    return Layout(
        fast=len(convolutions) - len(slow),
        total=len(convolutions),
        slow=tuple(_layer(node, weights.get(node.input[1])) for node in slow),
    )


def _layer(node: onnx.NodeProto, weight: tuple[int, ...] | None) -> ConvLayer:
    conv_groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    inputs, outputs = (None, None) if weight is None else (weight[1] * conv_groups, weight[0])
    return ConvLayer(node.name, inputs, outputs, conv_groups)
