"""What a pruning step did, against what was asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WidthReport:
    """One coupled group after a step.

    Attributes:
        name: the coupled group (for attention also ``#heads``).
        kind: what its units are.
        initial: units before any pruning.
        before: units before this step.
        asked: units to keep by the pruning ratio.
        kept: units there are now.
        reason: why ``kept`` is not ``asked``, or empty.
    """

    name: str
    kind: str
    initial: int
    before: int
    asked: int
    kept: int
    reason: str = ""


@dataclass(frozen=True)
class ReachedCost:
    """What a step reached of its cost target.

    Attributes:
        quantity: ``"macs"``, ``"params"``, ``"latency"`` (a fraction of the dense model's) or ``"latency_ms"``.
        asked: the most the model was to cost after this step.
        reached: what it costs.
        fraction: that, as a fraction of the dense model's cost.
        ratio: pruning ratio that it took, the largest of any coupled group.
        evaluations: candidate models that were costed to find it.
    """

    quantity: str
    asked: float
    reached: float
    fraction: float
    ratio: float
    evaluations: int

    def __str__(self) -> str:
        return (
            f"{self.quantity} {self.reached:,.4g} of at most {self.asked:,.4g} asked ({self.fraction:.1%} of the dense "
            f"model's), at pruning ratio {self.ratio:.3f}"
        )


@dataclass(frozen=True)
class StepReport:
    """A pruning step.

    Attributes:
        step: number of the step, from 1.
        pruning_ratio: the ratio asked for by the end of this step, or the one found for the cost target.
        widths: one entry per coupled group (two for attention whose heads are removed).
        macs_before: multiply-accumulates of one sample before the step, as Torch-Pruning counts them.
        macs: the same after it.
        params_before: parameters before the step.
        params: parameters after it.
        not_pruned: layers that were left alone, and why: outputs, ignored and unsupported ones.
        frozen: layers without gradients that were pruned with their coupled group; they stay frozen.
        misaligned: coupled groups at widths outside ONNX Runtime's fast layout on this machine.
        cost: what was reached of the cost target, if there is one.
    """

    step: int
    pruning_ratio: float
    widths: tuple[WidthReport, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    not_pruned: dict[str, str]
    frozen: tuple[str, ...] = ()
    misaligned: tuple[str, ...] = ()
    cost: ReachedCost | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        kept, initial = sum(w.kept for w in self.widths), sum(w.initial for w in self.widths)
        lines = [
            f"step {self.step}: {kept} of {initial} units kept, MACs {self.macs_before:,} -> {self.macs:,}, "
            f"parameters {self.params_before:,} -> {self.params:,}"
        ]
        if self.cost is not None:
            lines.append(f"  {self.cost}")
        for w in self.widths:
            why = f": {w.reason}" if w.reason else ""
            lines.append(f"  {w.name}: kept {w.kept} of {w.initial}, {w.asked} asked{why}")
        lines += [f"  {name}: left alone, {reason}" for name, reason in self.not_pruned.items()]
        if self.frozen:
            lines.append(f"  frozen and pruned with their coupled group: {', '.join(self.frozen)}")
        if self.misaligned:
            lines.append(f"  outside ONNX Runtime's fast layout on this machine: {', '.join(self.misaligned)}")
        return "\n".join(lines)
