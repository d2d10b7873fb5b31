"""Which channel widths a runtime rewards.

Runtimes compute channels in blocks. ONNX Runtime on a CPU with AVX-512 has blocks of 16: a convolution of 18 channels
costs about what one of 32 costs, or more, because widths that are no multiple of 4 leave its fast layout. The rule of
:meth:`Alignment.fit` is what was measured there (ONNX Runtime 1.31, 1 thread, 28 pixels, time relative to 16 channels):

===================================== ==== ==== ==== ==== ==== ==== ==== ==== ====
channels of the pruned width             2    4    8   12   16   18   24   32   40
===================================== ==== ==== ==== ==== ==== ==== ==== ==== ====
1x1, 96 to it and back                0.92 1.05 1.31 1.58 1.00 1.73 1.51 1.51 2.03
3x3, it to itself                     0.56 0.67 0.88 1.09 1.00 2.46 2.61 2.59 4.85
bottleneck 1x1, 3x3, 1x1              0.64 0.78 1.04 1.31 1.00 2.10 2.04 2.05 3.52
depthwise between two 1x1             0.96 1.03 1.30 1.57 1.00 3.39 1.65 1.65 2.32
1x1 around a depthwise of 96          0.92 1.02 1.30 1.54 1.00 1.70 1.51 1.49 1.98
===================================== ==== ==== ==== ==== ==== ==== ==== ==== ====

Costs rise in steps of a block, so only its multiples pay. From 5 to 15 channels cost as much as a block or more, chains
of 3x3 apart; 4 and fewer cost about as much or less. ``benchmarks/width_costs.py`` prints the table, and
``benchmarks/realised_speedup.py`` what the rule does for whole networks.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass

import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.latency.machine import Machine

CPU = "CPUExecutionProvider"

UNKNOWN = (
    "nothing is documented about the widths that {provider!r} rewards{hint}; known are {known}. Measure where it is "
    "installed (measure=True), or pass an Alignment of your own"
)

NVIDIA = (
    8,
    4,
    "Tensor Cores work on 16 bytes of channels, 4 numbers in TF32 and 8 in FP16 (NVIDIA, Matrix Multiplication "
    "Background User's Guide, Tensor Core Requirements)",
)
DOCUMENTED = {
    "CUDAExecutionProvider": NVIDIA,
    "TensorrtExecutionProvider": NVIDIA,
    "NvTensorRTRTXExecutionProvider": NVIDIA,
    "QNNExecutionProvider": (
        32,
        1,
        "the Hexagon Tensor Processor stores channels in multiples of 32 (Qualcomm AI Engine Direct, HTP guidelines, "
        "Number of channels)",
    ),
    "CANNExecutionProvider": (
        16,
        1,
        "Ascend computes multiples of 16 channels, of 32 where quantised (Huawei, Operator Usage Suggestions)",
    ),
}
"""Block, grain and where that stands, for what is no CPU. Hardware that pads by itself has a grain of 1."""

KNOWN = (CPU, *DOCUMENTED)


@dataclass(frozen=True)
class Alignment:
    """Widths that a target rewards.

    Attributes:
        block: channels computed together; multiples of it cost what their MACs say.
        grain: channels whose multiples stay in the runtime's fast layout, at most a block. Equal to the block it means
            that nothing but multiples will do.
        target: what it holds for.
        source: how it is known: where it is documented, or what was measured.
    """

    block: int
    grain: int
    target: str
    source: str

    def __post_init__(self) -> None:
        if not 1 <= self.grain <= self.block:
            raise InputError(f"an alignment needs 1 <= grain <= block, got block={self.block}, grain={self.grain}")

    def fit(self, asked: int, width: int, least: int = 1, repeat: int = 1) -> int:
        """How many of ``width`` units to keep.

        The nearest multiple of the block, the larger of two; at least one block. A layer narrower than a block keeps
        the nearest multiple of the grain. Two exceptions: the whole width counts as a choice, whatever it is, and no
        more than one grain may stay as it was asked for, since such layers are cheap at any width.

        Args:
            asked: units that the ratio alone would keep.
            width: units there are.
            least: units that must stay.
            repeat: channels per unit (conv groups, heads); units times ``repeat`` are what is aligned.

        Returns:
            Between ``min(least, width)`` and ``width``.
        """
        asked = min(max(asked, least), width)
        block, grain = self._steps(repeat)
        if asked == width or asked <= grain < block:
            return asked
        step = block if width >= block else grain
        choices: list[int] = [count for count in (*range(step, width, step), width) if count >= least]
        return min(choices, key=lambda count: (abs(count - asked), -count))

    def why(self, asked: int, kept: int, width: int, repeat: int = 1) -> str:
        """Why :meth:`fit` keeps ``kept`` units where ``asked`` were to stay; empty where they are the same.

        Args:
            asked: units that the ratio alone would keep.
            kept: what :meth:`fit` made of it.
            width: units there are.
            repeat: channels per unit.
        """
        if kept == asked:
            return ""
        block, grain = self._steps(repeat)
        narrow = f"narrower than {block}: " if width < block else ""
        step = grain if narrow else block
        if kept % step == 0:
            return f"{narrow}rounded to a multiple of {step}"
        return f"{narrow}kept whole, no multiple of {step} is nearer" if kept == width else f"at least {kept} must stay"

    def _steps(self, repeat: int) -> tuple[int, int]:
        """Block and grain in units."""
        return self.block // math.gcd(self.block, repeat), self.grain // math.gcd(self.grain, repeat)


def alignment_for(provider: str = CPU, *, machine: Machine | None = None, measure: bool | None = None) -> Alignment:
    """The alignment of a target.

    Args:
        provider: execution provider of ONNX Runtime.
        machine: where the model will run; by default here. Only the CPU's alignment depends on it.
        measure: time small stacks of convolutions at many widths instead of looking it up (about ten seconds, once per
            process); by default where nothing is documented and the provider is installed here.

    Raises:
        InputError: nothing is documented and nothing can be, or may be, measured; or another machine is to be measured.
        MissingDependencyError: onnx or onnxruntime is needed to measure.
    """
    if measure and machine is not None:
        raise InputError("only this machine can be measured; leave out measure=True or machine=")
    if not measure:
        if provider == CPU and (known := _cpu(machine)) is not None:
            return known
        if provider in DOCUMENTED:
            block, grain, source = DOCUMENTED[provider]
            return Alignment(block, grain, provider, source)
        if measure is False or machine is not None or not _installed(provider):
            hint = "" if _installed(provider) else ", and it is not installed here"
            raise InputError(UNKNOWN.format(provider=provider, hint=hint, known=", ".join(KNOWN)))
    from fair_prune_plugins.latency.width_costs import measured

    block, grain, source = measured(provider)
    return Alignment(block, grain, f"{provider}, {platform.machine()}, as measured", source)


def _cpu(machine: Machine | None) -> Alignment | None:
    """What ONNX Runtime's kernels say: ``NchwcBlockSize`` in onnxruntime/core/mlas/lib/platform.cpp, multiples of 4 in
    onnxruntime/core/optimizer/nchwc_transformer.cc.
    """
    architecture = (platform.machine() if machine is None else machine.architecture).lower()
    kernels = "ONNX Runtime's kernels (MLAS): channels in blocks of {}, its layout takes multiples of 4"
    if architecture in ("x86_64", "amd64"):
        wide = _wide_vectors(machine)
        block = 8 if wide is False else 16
        told = {True: "with AVX-512", False: "without AVX-512", None: "of unknown flags (a multiple of 16 is one of 8)"}
        return Alignment(block, 4, f"{CPU}, x86-64 {told[wide]}", kernels.format(block))
    if architecture in ("aarch64", "arm64"):
        source = kernels.format(16) + " where the build has them for ARM; without, its matrix kernel takes rows of 4"
        return Alignment(16, 4, f"{CPU}, ARM64", source)
    return None


def _wide_vectors(machine: Machine | None) -> bool | None:
    if machine is None:
        # torch asks the processor, as the runtime does.
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return None if machine.flags is None else "avx512f" in machine.flags


def _installed(provider: str) -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return provider in onnxruntime.get_available_providers()
