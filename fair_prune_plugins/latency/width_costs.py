"""What widths cost, timed: for targets of which nothing is documented.

A stack of pointwise and depthwise convolutions is timed at many widths side by side. Where a runtime computes blocks
of channels, a width of three and a half blocks costs as much as one of four; where it does not, half way between three
and four.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.extras import need
from fair_prune_plugins.latency.timing import measure

BLOCKS = (32, 16, 8, 4)
"""Blocks looked for, the largest first: a multiple of a block is one of its halves too."""

LINEAR = 0.25
"""Share of a block's saving that half a block may bring; a half without blocks, nothing with them."""

SLOWER = 1.15
"""A width that costs this much more than a wider one is outside the fast layout."""

OUTER, PIXELS, REPEATS = 32, 28, 4

FLAT = (
    "the cost of a convolution hardly depends on its width on {provider!r} here ({ratio:.2f} times the time for twice "
    "the channels): its widths cannot be judged at this size. Pass an Alignment of your own"
)

Costs = Mapping[int, float]
Layer = tuple[int, int, int]


@functools.cache
def measured(provider: str) -> tuple[int, int, str]:
    """Block, grain and a sentence on what was measured, of a provider that is installed here.

    Raises:
        InputError: the provider does not work here, or its cost does not depend on widths.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    need("onnx", "onnxruntime", purpose="measure what widths cost")

    def timed(widths: Sequence[int]) -> Costs:
        return time_stacks({width: inverted_residuals(width) for width in widths}, provider)

    block, grain = rewarded(timed, provider)
    told = f"timed stacks of pointwise and depthwise convolutions, {PIXELS} pixels, 1 thread: "
    return block, grain, told + f"steps of {block} channels, multiples of {grain} are no slower than wider ones"


def rewarded(timed: Callable[[Sequence[int]], Costs], provider: str) -> tuple[int, int]:
    """Block and grain from costs.

    Args:
        timed: the cost of each width, in any unit; called for a set of widths that are to be compared.
        provider: for the message.

    Raises:
        InputError: the cost does not depend on the width.
    """
    costs = timed(sorted({width for block in BLOCKS for width in (3 * block, 7 * block // 2, 4 * block)}))
    widest = 4 * BLOCKS[0]
    ratio = costs[widest] / costs[widest // 2]
    if ratio < 1.2:
        raise InputError(FLAT.format(provider=provider, ratio=ratio))
    block = next((b for b in BLOCKS if _stepped(costs, b)), 1)
    grains = [grain for grain in (1, 2, 4, 8, 16, 32) if grain < block]
    costs = timed([4 * block, *(4 * block - grain for grain in grains)])
    return block, next((g for g in grains if costs[4 * block - g] <= SLOWER * costs[4 * block]), block)


def _stepped(costs: Costs, block: int) -> bool:
    three, between, four = costs[3 * block], costs[7 * block // 2], costs[4 * block]
    return four > three and four - between < LINEAR * (four - three)


def time_stacks(stacks: Mapping[int, Sequence[Layer]], provider: str, *, min_seconds: float = 0.2) -> dict[int, float]:
    """Seconds of stacks of convolutions, side by side: the 10th percentile, which a busy machine hardly moves.

    Args:
        stacks: any key to layers, each ``(output channels, kernel size, conv groups)``; the input has ``OUTER``
            channels.
        provider: execution provider of ONNX Runtime.
        min_seconds: time spent on each stack.

    Raises:
        InputError: the provider does not work here.
    """
    rng = np.random.default_rng(0)
    calls = {str(key): _call(_model(layers, rng), provider, rng) for key, layers in stacks.items()}
    times = measure(calls, rounds=10, warmup=5, min_iterations=50, min_seconds=min_seconds, rng=rng)
    return {key: float(np.quantile(np.concatenate(times[str(key)]), 0.1)) for key in stacks}


def inverted_residuals(width: int) -> list[Layer]:
    """Pointwise to ``width``, depthwise, pointwise back, a few times."""
    return [(width, 1, 1), (width, 3, width), (OUTER, 1, 1)] * REPEATS


def _call(model: bytes, provider: str, rng: np.random.Generator) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise InputError(f"ONNX Runtime cannot use {provider!r} here: {error}") from error
    if session.get_providers()[0] != provider:
        raise InputError(f"ONNX Runtime took {session.get_providers()} instead of {provider!r}: it does not work here")
    feed = {"x": rng.standard_normal((1, OUTER, PIXELS, PIXELS)).astype(np.float32)}
    return lambda: session.run(None, feed)


def _model(layers: Sequence[Layer], rng: np.random.Generator) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []
    value, inputs = "x", OUTER
    for index, (outputs, size, conv_groups) in enumerate(layers):
        weight = rng.standard_normal((outputs, inputs // conv_groups, size, size)) / np.sqrt(inputs)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{index}"))
        attributes: dict[str, Any] = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "group": conv_groups}
        nodes.append(helper.make_node("Conv", [value, f"weight{index}"], [f"conv{index}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]))
        value, inputs = f"relu{index}", outputs
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    shapes = [("x", [1, OUTER, PIXELS, PIXELS]), ("y", [1, inputs, 1, 1])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    graph = helper.make_graph(nodes, "stack", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    serialised: bytes = model.SerializeToString()
    return serialised
