"""What a pruned model may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.gates.calling import ForwardFn, resized
from fair_prune_plugins.torch_pruning.counting import macs_and_params

Quantity = Literal["macs", "params", "latency", "latency_ms"]

UNITS: dict[Quantity, str] = {
    "macs": "MACs",
    "params": "parameters",
    "latency": "of the dense model's latency",
    "latency_ms": "ms",
}

TOLERANCES: dict[Quantity, float] = {"macs": 0.01, "params": 0.01, "latency": 0.05, "latency_ms": 0.05}

ONE_QUANTITY = "a CostTarget is one of macs, params, latency or latency_ms, got {got}"
BAD_FRACTION = "CostTarget({name}=...) is a fraction of the dense model's, above 0 and below 1, got {value!r}"
BAD_MS = "CostTarget(latency_ms=...) is a time in milliseconds above 0, got {value!r}"
NOT_A_NUMBER = "CostTarget({name}=...) is a number, got {value!r}"
BAD_COUNT = "CostTarget({name}=...) is a whole number of at least 1, got {value!r}"
BAD_TOLERANCE = "the tolerance of a CostTarget is a fraction above 0 and below 1, got {value!r}"
FAST_ALREADY = (
    "the model takes {dense:.3g} ms already, no more than the {asked:.3g} ms asked for: there is nothing to do"
)


@dataclass(frozen=True)
class CostTarget:
    """The cost to prune down to: exactly one of the first four.

    Attributes:
        macs: fraction of the dense model's MACs, as Torch-Pruning counts them.
        params: fraction of its parameters.
        latency: fraction of its median latency in ONNX Runtime on this machine, timed side by side.
        latency_ms: median milliseconds in ONNX Runtime on this machine.
        tolerance: how far below the target is near enough, as a fraction of it; by default 0.01, for latencies 0.05.
        threads: of ONNX Runtime, for latencies.
        batch_size: samples per call, for latencies.

    Raises:
        InputError: none or several quantities, or values out of range.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    tolerance: float | None = None
    threads: int = 1
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, number in (("threads", self.threads), ("batch_size", self.batch_size)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InputError(BAD_COUNT.format(name=name, value=number))
        given = {f.name: getattr(self, f.name) for f in fields(self)[:4] if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise InputError(ONE_QUANTITY.format(got=", ".join(given) or "none"))
        ((name, value),) = given.items()
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(NOT_A_NUMBER.format(name=name, value=value))
        if name == "latency_ms":
            if not value > 0:
                raise InputError(BAD_MS.format(value=value))
        elif not 0 < value < 1:
            raise InputError(BAD_FRACTION.format(name=name, value=value))
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InputError(BAD_TOLERANCE.format(value=self.tolerance))

    @property
    def quantity(self) -> Quantity:
        """Which of the four it is."""
        names: tuple[Quantity, ...] = ("macs", "params", "latency", "latency_ms")
        return next(n for n in names if getattr(self, n) is not None)

    @property
    def is_latency(self) -> bool:
        """Whether it is timed."""
        return self.quantity in ("latency", "latency_ms")

    @property
    def asked(self) -> float:
        """The number that was given."""
        return float(getattr(self, self.quantity))

    @property
    def slack(self) -> float:
        """The tolerance, or its default."""
        return TOLERANCES[self.quantity] if self.tolerance is None else self.tolerance

    @property
    def unit(self) -> str:
        """Of the cost."""
        return UNITS[self.quantity]

    def gauge(self, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> Gauge:
        """What measures this cost, made while the model is still dense.

        Args:
            model: the dense model.
            inputs: two samples of its inputs, on its device.
            forward_fn: how it is called, if not plainly.

        Raises:
            InputError: the model is as fast as asked already.
            MissingDependencyError: onnxruntime is not installed (latencies).
            ExportError: the model cannot be exported (latencies).
        """
        return Gauge(self, model, inputs, forward_fn)


class Gauge:
    """Measures one kind of cost.

    Attributes:
        dense: cost of the dense model.
        fraction: the target as a fraction of it.
    """

    def __init__(self, target: CostTarget, model: nn.Module, inputs: Any, forward_fn: ForwardFn | None) -> None:
        self._target, self._inputs, self._forward_fn = target, resized(inputs, 1), forward_fn
        self._probe: Any = None
        if target.is_latency:
            # Only who asks for a latency needs ONNX Runtime.
            from fair_prune_plugins.latency.probe import LatencyProbe

            self._probe = LatencyProbe(
                model, inputs, forward_fn=forward_fn, threads=target.threads, batch_size=target.batch_size
            )
        self.dense = 1.0 if target.quantity == "latency" else self.cost(model)
        self.fraction = target.asked / self.dense if target.quantity == "latency_ms" else target.asked
        if self.fraction >= 1:
            raise InputError(FAST_ALREADY.format(dense=self.dense, asked=target.asked))

    def cost(self, model: nn.Module) -> float:
        """Cost of a model, in the target's unit."""
        if self._probe is None:
            macs, params = macs_and_params(model, self._inputs, self._forward_fn)
            return float(macs if self._target.quantity == "macs" else params)
        milliseconds, relative = self._probe(model)
        return float(relative if self._target.quantity == "latency" else milliseconds)
