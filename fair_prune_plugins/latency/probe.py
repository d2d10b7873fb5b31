"""The latency of a model that is still being shaped: exported, and timed beside the one it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from fair_prune_plugins.gates.calling import ForwardFn

MIN_SECONDS = 1.0


class LatencyProbe:
    """Times candidates in ONNX Runtime beside the dense model.

    Nothing is kept: what ships is exported and proven on its own.

    Args:
        dense: the model to compare with, exported once.
        inputs: an example of its inputs, two samples or more.
        forward_fn: how it is called, if not plainly.
        threads: of ONNX Runtime.
        batch_size: samples per call.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        ExportError: the model cannot be exported.
    """

    def __init__(
        self, dense: nn.Module, inputs: Any, *, forward_fn: ForwardFn | None, threads: int, batch_size: int
    ) -> None:
        self._inputs, self._forward_fn = inputs, forward_fn
        self._threads, self._batch_size = threads, batch_size
        self._arrays: dict[str, Any] = {}
        self._dense = self._exported(dense)

    def __call__(self, model: nn.Module) -> tuple[float, float]:
        """Median latency of a model in milliseconds, and as a fraction of the dense model's."""
        from fair_prune_plugins.latency import benchmark

        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "candidate")}
            files["dense"].write_bytes(self._dense)
            files["candidate"].write_bytes(self._exported(model))
            report = benchmark(
                files,
                inputs=self._arrays,
                threads=self._threads,
                batch_size=self._batch_size,
                min_seconds=MIN_SECONDS,
                reference="dense",
                progress=False,
            )
        milliseconds = report["candidate"].p50_ms.value
        return milliseconds, milliseconds / report["dense"].p50_ms.value

    def _exported(self, model: nn.Module) -> bytes:
        from fair_prune_plugins.onnx import export
        from fair_prune_plugins.onnx.calling import Call

        called = model if self._forward_fn is None else _Called(model, self._forward_fn, type(self._inputs))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            # Whether both runtimes agree matters for what ships, not for how long a half-pruned network takes.
            written = export(called, self._inputs, path, batch_sizes=(self._batch_size,), tolerance=1.0)
            tensors = Call.of(self._inputs, "example_inputs").tensors
            self._arrays = {name: t.numpy() for name, t in zip(written.inputs, tensors, strict=True)}
            return path.read_bytes()


class _Called(nn.Module):
    """A model behind its ``forward_fn``, called like a plain one."""

    def __init__(self, model: nn.Module, forward_fn: ForwardFn, container: type) -> None:
        super().__init__()
        self.model, self.forward_fn, self.container = model, forward_fn, container

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            return self.forward_fn(self.model, kwargs)
        return self.forward_fn(self.model, self.container(args) if self.container in (tuple, list) else args[0])
