"""Widths that a runtime rewards: the rule against its statement, the blocks against the runtime's own graph."""

import dataclasses
import itertools
import math
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fair_prune_plugins.errors import InputError, MissingDependencyError
from fair_prune_plugins.latency import Alignment, alignment_for, describe_machine, fast_layout
from fair_prune_plugins.latency import alignment as alignment_module
from fair_prune_plugins.latency import width_costs as width_costs_module
from fair_prune_plugins.latency.extras import need
from fair_prune_plugins.latency.width_costs import inverted_residuals, rewarded, time_stacks
from fair_prune_plugins.onnx import export

NCHWC = "com.microsoft.nchwc"


def stated(block, grain, asked, width, least, repeat):
    """The rule, spelled out: every count from 1 to ``width`` is looked at."""
    asked = min(max(asked, least), width)
    multiples = [k for k in range(1, width + 1) if k * repeat % block == 0]
    fine = [k for k in range(1, width + 1) if k * repeat % grain == 0]
    first_grain = next(k for k in itertools.count(1) if k * repeat % grain == 0)
    if grain < block and asked <= first_grain and any(k * repeat % block for k in range(first_grain + 1)):
        return asked
    allowed = {k for k in (multiples or fine) if k >= least} | {width}
    nearest = min(abs(k - asked) for k in allowed)
    return max(k for k in allowed if abs(k - asked) == nearest)


@pytest.mark.parametrize(("block", "grain"), [(16, 4), (8, 4), (8, 8), (32, 1), (1, 1), (4, 4)])
def test_fit_is_its_rule_on_all_small_inputs(block, grain):
    rule = Alignment(block, grain, "t", "s")
    for width, repeat in itertools.product(range(1, 41), (1, 2, 3, 4, 12, 16)):
        for asked, least in itertools.product(range(1, width + 1), {1, min(3, width), min(20, width), width}):
            kept = rule.fit(asked, width, least, repeat)
            assert kept == stated(block, grain, asked, width, least, repeat), (asked, width, least, repeat)


def test_fit_on_examples_that_a_reader_can_check():
    rule = Alignment(16, 4, "t", "s")
    assert [rule.fit(asked, 64) for asked in (1, 4, 5, 8, 16, 23, 24, 40, 63)] == [1, 4, 16, 16, 16, 16, 32, 48, 64]
    assert [rule.fit(asked, 24) for asked in (19, 20, 24)] == [16, 24, 24]
    assert [rule.fit(asked, 10) for asked in (3, 5, 6, 9, 10)] == [3, 4, 8, 10, 10]
    assert rule.fit(5, 64, least=17) == 32
    assert rule.fit(3, 12, repeat=8) == 4
    assert rule.fit(5, 12, repeat=8) == 6
    eights = Alignment(8, 8, "round_to=8", "as asked")
    assert [eights.fit(asked, 30) for asked in (1, 11, 12, 26, 29)] == [8, 8, 16, 24, 30]
    assert eights.fit(2, 6) == 6


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 3, 4, 8, 12, 64]))
def test_fit_stays_in_bounds_and_near_and_never_turns_around(asked, width, least, repeat):
    rule = Alignment(16, 4, "t", "s")
    asked, least = min(asked, width), min(least, width)
    kept = rule.fit(asked, width, least, repeat)
    assert least <= kept <= width
    assert rule.fit(width, width, least, repeat) == width
    assert rule.fit(max(asked - 1, 1), width, least, repeat) <= kept
    assert rule.fit(kept, width, least, repeat) == kept
    step = 16 // math.gcd(16, repeat)
    if max(asked, least) >= step:
        assert kept - max(asked, least) < step
        assert max(asked, least) - kept <= step / 2
    assert (rule.why(asked, kept, width, repeat) == "") == (kept == asked)


def test_why_says_what_was_done():
    rule = Alignment(16, 4, "t", "s")
    assert rule.why(16, 16, 64) == ""
    assert rule.why(20, 16, 64) == "rounded to a multiple of 16"
    assert rule.why(22, 24, 24) == "kept whole, no multiple of 16 is nearer"
    assert rule.why(7, 8, 12) == "narrower than 16: rounded to a multiple of 4"
    assert rule.why(9, 10, 10) == "narrower than 16: kept whole, no multiple of 4 is nearer"
    assert rule.why(5, 6, 12, 8) == "rounded to a multiple of 2"
    assert rule.why(1, 3, 64) == "at least 3 must stay"


@pytest.mark.parametrize(("block", "grain"), [(0, 1), (8, 0), (8, 16)])
def test_an_alignment_that_cannot_be_is_refused(block, grain):
    with pytest.raises(InputError, match=f"1 <= grain <= block, got block={block}, grain={grain}"):
        Alignment(block, grain, "t", "s")


def chain(width, folder):
    """Pointwise to ``width``, depthwise, 3x3 and back; the optimised graph."""
    net = nn.Sequential(
        nn.Conv2d(16, width, 1),
        nn.Conv2d(width, width, 3, groups=width, padding=1),
        nn.Conv2d(width, width, 3, padding=1),
        nn.Conv2d(width, 16, 1),
    ).eval()
    path = folder / f"{width}.onnx"
    torch.onnx.export(net, (torch.randn(1, 16, 6, 6),), path, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_cpus_block_and_grain_are_what_the_runtime_does(tmp_path):
    """Block: weights of the blocked layout are padded to whole ones. Grain: which widths have no slow convolution."""
    rule = alignment_for()
    fast, padded = set(), {}
    widths = [*range(1, 14), *range(14, 45, 2), 17, 33]
    for width in widths:
        proto = chain(width, tmp_path)
        convolutions = [node for node in proto.graph.node if node.op_type in ("Conv", "FusedConv")]
        assert len(convolutions) == 4
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        padded[width] = shapes[convolutions[0].input[1]][0]
        if all(node.domain == NCHWC for node in convolutions):
            fast.add(width)
    if not fast:
        pytest.skip("this CPU has no NCHWc kernels")
    assert {width: padded[width] for width in widths} == {w: math.ceil(w / rule.block) * rule.block for w in widths}
    assert {width for width in fast if width >= rule.grain} == {w for w in widths if w % rule.grain == 0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_slow_layers_are_named_as_torch_names_them(tmp_path):
    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(outputs)

        def forward(self, x):
            return torch.relu(self.norm(self.conv(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layers = Block(3, 18), nn.ModuleList([Block(18, 22), Block(22, 32), Block(32, 16)])

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return x

    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    export(net, torch.cat([x, x]), tmp_path / "new.onnx")
    torch.onnx.export(net, (x,), tmp_path / "old.onnx", dynamo=False)
    for name in ("new.onnx", "old.onnx"):
        layout = fast_layout(tmp_path / name)
        if layout.fast == 0:
            pytest.skip("this CPU has no NCHWc kernels")
        assert (layout.fast, layout.total) == (2, 4)
        assert [(layer.module, layer.inputs, layer.outputs) for layer in layout.slow] == [
            ("layers.0.conv", 18, 22),
            ("layers.1.conv", 22, 32),
        ]
        in_file = {node.name for node in onnx.load(tmp_path / name).graph.node}
        assert {layer.name for layer in layout.slow} <= in_file
        assert str(layout.slow[0]) == "layers.0.conv (18 to 22)"
    # A file that kept no names: the weight says nothing, and the node is all there is.
    proto = onnx.load(tmp_path / "new.onnx")
    renamed = {tensor.name: f"w{i}" for i, tensor in enumerate(proto.graph.initializer)}
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in proto.graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    onnx.save(proto, tmp_path / "anonymous.onnx")
    slow = fast_layout(tmp_path / "anonymous.onnx").slow
    assert [layer.module for layer in slow] == [None, None]
    assert str(slow[0]) == f"{slow[0].name} (18 to 22)"


def test_the_target_decides():
    here = describe_machine()
    intel = dataclasses.replace(here, architecture="x86_64", flags=("avx2", "avx512f"))
    old = dataclasses.replace(here, architecture="AMD64", flags=("avx2", "fma"))
    arm = dataclasses.replace(here, architecture="aarch64", flags=("neon",))
    unknown = dataclasses.replace(here, architecture="x86_64", flags=None)
    expected = {"with AVX-512": (intel, 16), "without AVX-512": (old, 8), "ARM64": (arm, 16), "unknown": (unknown, 16)}
    for told, (machine, block) in expected.items():
        rule = alignment_for(machine=machine)
        assert (rule.block, rule.grain) == (block, 4)
        assert told in rule.target
        assert "MLAS" in rule.source
    if here.flags is not None:  # torch's word for this processor and the flags' agree
        assert alignment_for(machine=here) == alignment_for()
    assert (alignment_for("CUDAExecutionProvider").block, alignment_for("CUDAExecutionProvider").grain) == (8, 4)
    assert alignment_for("QNNExecutionProvider", measure=False).block == 32


def test_what_is_not_known_is_said_with_what_is(monkeypatch):
    with pytest.raises(InputError, match=r"'AbacusExecutionProvider' rewards, and it is not installed here; known are"):
        alignment_for("AbacusExecutionProvider")
    with pytest.raises(InputError, match="CPUExecutionProvider, CUDAExecutionProvider, TensorrtExecutionProvider"):
        alignment_for("CoreMLExecutionProvider")
    odd = dataclasses.replace(describe_machine(), architecture="s390x")
    with pytest.raises(InputError, match="'CPUExecutionProvider' rewards; known are"):
        alignment_for(machine=odd)
    with pytest.raises(InputError, match="only this machine can be measured"):
        alignment_for(machine=odd, measure=True)
    # Unknown and installed: measured, unless that is ruled out.
    monkeypatch.setattr(alignment_module.platform, "machine", lambda: "s390x")
    monkeypatch.setattr(width_costs_module, "measured", lambda provider: (32, 2, f"timed on {provider}"))
    assert alignment_for() == Alignment(
        32, 2, "CPUExecutionProvider, s390x, as measured", "timed on " + "CPUExecutionProvider"
    )
    with pytest.raises(InputError, match="nothing is documented"):
        alignment_for(measure=False)


@pytest.mark.parametrize(("block", "grain"), [(32, 8), (16, 4), (16, 1), (8, 4), (8, 8), (4, 2), (1, 1)])
def test_blocks_are_read_from_costs(block, grain):
    """A made-up runtime: whole blocks are computed, and twice the work is done at widths off the grain."""

    def timed(widths):
        return {w: 50 + 3 * math.ceil(w / block) * block * (2 if w % grain else 1) for w in widths}

    assert rewarded(timed, "p") == (block, grain)


def test_costs_that_do_not_depend_on_widths_say_nothing():
    with pytest.raises(InputError, match=r"hardly depends on its width on 'p' here \(1.01 times"):
        rewarded(lambda widths: {w: 100 + w / 64 for w in widths}, "p")


def test_measuring_runs_on_the_provider_asked_for():
    stacks = {width: inverted_residuals(width) for width in (8, 16)}
    costs = time_stacks(stacks, "CPUExecutionProvider")
    assert set(costs) == {8, 16}
    assert all(cost > 0 for cost in costs.values())
    with pytest.raises(InputError, match="AbacusExecutionProvider"):
        time_stacks(stacks, "AbacusExecutionProvider")


BLOCKED = """
import sys
for module in ("onnx", "onnxruntime", "onnxscript", "scipy", "cpuinfo"):
    sys.modules[module] = None
import fair_prune_plugins.latency as latency
from fair_prune_plugins.errors import InputError, MissingDependencyError
print(latency.alignment_for("CUDAExecutionProvider").block)
print(latency.pareto_front([(1.0, 0.5)]))
for call in (
    lambda: latency.benchmark({"m": "m.onnx"}),
    lambda: latency.fast_layout("m.onnx"),
    latency.describe_machine,
    lambda: latency.alignment_for(measure=True),
):
    try:
        call()
    except MissingDependencyError as error:
        print(error)
try:
    latency.alignment_for("CoreMLExecutionProvider")
except InputError as error:
    print(error)
"""


def test_what_needs_no_runtime_works_without_and_the_rest_says_what_to_install():
    result = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[:2] == ["8", "[0]"]
    assert len(lines) == 7
    assert all("pip install 'fair-prune-plugins[onnx]'" in line for line in lines[2:6])
    assert [line.split(" is needed to ")[1].split(";")[0] for line in lines[2:6]] == [
        "time models",
        "read the layout of a model",
        "describe what models are timed on",
        "measure what widths cost",
    ]
    assert "not installed here" in lines[6]


def test_a_missing_package_is_named():
    with pytest.raises(MissingDependencyError, match=r"^no_such_package is needed to count sheep; install"):
        need("math", "no_such_package", purpose="count sheep")
