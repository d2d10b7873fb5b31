"""One ONNX file that is written only when it is proven.

The current exporter is tried first, the older TorchScript one where the first cannot make a file that passes; the
report says which made it and why. Work happens in a hidden folder beside the target and ends with a rename, so that a
refused export leaves nothing behind and an earlier good file where it was.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # documented, but not in __all__

from fair_prune_plugins.errors import ExportError, InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.onnx.calling import Array, Call, ModelInputs, flatten, invoke, settled_copy
from fair_prune_plugins.onnx.metadata import check_metadata, read_entries, stamp
from fair_prune_plugins.onnx.parity import (
    BATCH_SIZES,
    TOLERANCE,
    ParityReport,
    Reference,
    check_people,
    check_tolerance,
    compare,
)

BATCH = "batch"
"""Name of the dynamic dimension in the file."""

EXPORT_ROWS = 2
"""Rows of the example that the exporter sees: with one row it takes the batch for a constant."""

ONE_FILE_LIMIT = 2**31 - 2**20
"""Bytes of weights that fit into one ONNX file: protobuf ends at 2 GiB, and the graph needs room too."""

OLDEST_OPSET = 9

TOO_LARGE = (
    "the model has {size} bytes of weights, and one ONNX file holds at most {limit}; this export writes one file only"
)
BAD_OPSET = "opset must be a whole number from {low} to {high} (the installed onnx knows these), got {got!r}"
OTHER_OPSET = "it wrote opset {got} where {asked} was asked for"
NO_EXPORTER = "the model could not be exported to {path}; nothing was written. {reasons}"
SAMPLES_NEEDED = "groups and labels belong to samples; pass samples= as well"
MADE_UP_SAMPLES = (
    "proven on made-up inputs in the range of the example, not on real samples; pass samples= from the data it will see"
)


@dataclass(frozen=True)
class ExportReport:
    """An export that was proven.

    Attributes:
        path: the file.
        size: of the file in bytes.
        exporter: ``"dynamo"`` or ``"torchscript"``.
        fallback_reason: why the first exporter was not used, or ``None``.
        opset: of the file.
        inputs: name to shape of each input, the batch by name.
        outputs: name to shape of each output.
        parity: the proof.
        metadata: everything in the file's ``metadata_props``.
        notes: what a reader should know, in sentences.
    """

    path: Path
    size: int
    exporter: str
    fallback_reason: str | None
    opset: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    parity: ParityReport
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the file by its name, so that nothing of this machine is in it."""
        return {**asdict(self), "path": self.path.name, "parity": self.parity.as_dict()}

    def statement(self) -> str:
        """The export in words."""
        text = f"{self.path.name}: {self.size / 1e6:.2f} MB, opset {self.opset}. {self.parity.statement()}"
        return " ".join([text, *(f"Note: {note}." for note in (*self.notes, *self.parity.notes))])


def export(
    model: nn.Module,
    example_inputs: ModelInputs,
    path: str | Path,
    *,
    samples: ModelInputs | None = None,
    labels: Sequence[int] | Array | None = None,
    groups: GroupLabels | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Write a model to one float32 ONNX file with a dynamic batch, proven equal to torch.

    The model is left exactly as it was (mode, device, hooks, cached tensors): copies of it are exported and run.

    Args:
        model: any module whose forward takes tensors and returns tensors, tuples or dicts of them.
        example_inputs: one tensor ``[n, ...]``, a tuple of them, or a dict of keyword names to them. Every input as
            long as the first one in dimension 0 carries the batch. With a single row an input that merely has a 1 there
            is taken for batched too, so pass two rows where that matters.
        path: the file; missing folders are made.
        samples: real samples to prove on, of the same form as ``example_inputs``. Without them inputs are made up from
            the example, and the report says so.
        labels: int ``[n]`` true classes of the samples, to count right predictions per group on both sides.
        groups: the sensitive group of each sample, to count differing classes in each.
        opset: of the file; by default what the exporter prefers.
        tolerance: largest accepted ``max|difference| / max|output|``.
        batch_sizes: to prove at; see :func:`~fair_prune_plugins.onnx.prove`.
        input_names: by default ``input``, or the keywords, or what forward calls its arguments.
        output_names: by default ``output``, or a dict's keys, or ``output_0`` and so on.
        metadata: further text entries for the file's ``metadata_props``.

    Returns:
        What was written and how it was proven.

    Raises:
        InputError: an argument that is not usable; nothing was written.
        ExportError: no exporter made a file that passes the proof; nothing was written, and an earlier file at ``path``
            is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path must be a file to write, but {path} is a folder; add a file name such as model.onnx")
    metadata = dict(metadata or {})
    check_metadata(metadata)
    _check_opset(opset)
    example = Call.of(example_inputs, "example_inputs")
    if samples is None and (groups is not None or labels is not None):
        raise InputError(SAMPLES_NEEDED)
    evidence = (
        _made_up(example, max(batch_sizes, default=1)) if samples is None else example.matching(samples, "samples")
    )
    check_people(evidence.rows, groups, labels)
    check_tolerance(tolerance)
    _check_size(model)
    reference = Reference.of(model, evidence, batch_sizes)
    inputs = _names(input_names, example.names(model), "input_names")
    outputs = _names(output_names, reference.names, "output_names")
    if set(inputs) & set(outputs):
        raise InputError(f"inputs and outputs need different names, both have {sorted(set(inputs) & set(outputs))}")

    path.parent.mkdir(parents=True, exist_ok=True)
    failures: dict[str, Exception] = {}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        for exporter, write in EXPORTERS.items():
            draft = Path(folder) / f"{exporter}.onnx"
            notes = [] if samples is not None else [MADE_UP_SAMPLES]
            try:
                traced = _two_rows(example)
                with _quiet() as caught:
                    proto = write(settled_copy(model), traced, draft, inputs, outputs, opset)
                if opset is not None and _opset(proto) != opset:
                    raise ExportError(OTHER_OPSET.format(got=_opset(proto), asked=opset))
                stamp(proto, model=type(model).__name__, exporter=exporter, metadata=metadata)
                onnx.save_model(proto, str(draft), save_as_external_data=False)
                parity = compare(reference, draft, groups, labels=labels, tolerance=tolerance)
            except InputError:
                raise
            except Exception as error:  # an exporter may raise anything, and the next one may still do
                failures[exporter] = error
                continue
            reason = "; ".join(map(_reason, failures.values())) or None
            if reason is not None:
                notes.append(f"made by the older {exporter} exporter, because the current one failed ({reason})")
                notes += _baked_in(caught)
            size = draft.stat().st_size
            os.replace(draft, path)
            return ExportReport(
                path=path,
                size=size,
                exporter=exporter,
                fallback_reason=reason,
                opset=_opset(proto),
                inputs=_shapes(proto.graph.input),
                outputs=_shapes(proto.graph.output),
                parity=parity,
                metadata=read_entries(proto),
                notes=tuple(notes),
            )
    reasons = " ".join(f"[{exporter}] {_reason(error)}." for exporter, error in failures.items())
    raise ExportError(NO_EXPORTER.format(path=path, reasons=reasons)) from list(failures.values())[-1]


Writer = Callable[[nn.Module, Call, Path, Sequence[str], Sequence[str], int | None], onnx.ModelProto]


def _with_dynamo(
    model: nn.Module, call: Call, draft: Path, inputs: Sequence[str], outputs: Sequence[str], opset: int | None
) -> onnx.ModelProto:
    dimension = torch.export.Dim(BATCH)
    shapes: Any = tuple({0: dimension} if batched else None for batched in call.batched)
    module = _positional(model, call)
    if isinstance(module, _Positional):
        shapes = (shapes,)  # forward(*tensors) is one argument
    proto = _converted(module, call, draft, inputs, outputs, opset, shapes)
    if _keeps_batch(proto, call):
        return proto
    # Where Python code turns the batch into a number, len(x) for one, the exporter quietly takes it for a constant. Its
    # strict capture reads the code instead of running it, and keeps such numbers symbolic.
    captured = torch.export.export(module, call.tensors, dynamic_shapes=shapes, strict=True)
    return _converted(captured, call, draft, inputs, outputs, opset, shapes)


def _converted(
    source: nn.Module | torch.export.ExportedProgram,
    call: Call,
    draft: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int | None,
    shapes: Any,
) -> onnx.ModelProto:
    program = torch.onnx.export(
        source,
        call.tensors,
        dynamo=True,
        external_data=False,
        dynamic_shapes=shapes,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=opset,
        verbose=False,
    )
    program.save(str(draft), external_data=False)  # type: ignore[union-attr]  # None is for the other exporter
    return onnx.load(str(draft))


def _keeps_batch(proto: onnx.ModelProto, call: Call) -> bool:
    dims = [value.type.tensor_type.shape.dim for value in proto.graph.input]
    return not any(b and d[0].HasField("dim_value") for b, d in zip(call.batched, dims, strict=True))


def _with_torchscript(
    model: nn.Module, call: Call, draft: Path, inputs: Sequence[str], outputs: Sequence[str], opset: int | None
) -> onnx.ModelProto:
    axes = {name: {0: BATCH} for name, batched in zip(inputs, call.batched, strict=True) if batched}
    _, results = call.run(model)
    rows = call.rows
    axes |= {n: {0: BATCH} for n, y in zip(outputs, results, strict=True) if y.ndim and y.shape[0] == rows}
    torch.onnx.export(
        _positional(model, call),
        call.tensors,
        str(draft),
        dynamo=False,
        dynamic_axes=axes,
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=opset,
    )
    return onnx.load(str(draft))


EXPORTERS: dict[str, Writer] = {"dynamo": _with_dynamo, "torchscript": _with_torchscript}
"""In the order they are tried."""


class _Positional(nn.Module):
    """A model with keyword inputs or nested outputs, as the flat lists of tensors that an ONNX graph has."""

    def __init__(self, model: nn.Module, keys: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.keys = keys

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return flatten(invoke(self.model, self.keys, tensors))[1]


def _positional(model: nn.Module, call: Call) -> nn.Module:
    """The model itself where it is plain already: wrapping puts a prefix before every weight's name."""
    with torch.no_grad():
        outputs = invoke(model, call.keys, call.tensors)
    several = isinstance(outputs, tuple | list) and all(isinstance(y, torch.Tensor) for y in outputs)
    if call.keys is None and (isinstance(outputs, torch.Tensor) or several) and not _takes_any(model):
        return model
    return _Positional(model, call.keys)


def _takes_any(model: nn.Module) -> bool:
    """Whether forward is declared with ``*args``, on which shapes cannot be declared per argument."""
    if isinstance(model, torch.jit.ScriptModule):
        return False
    return bool(model.forward.__code__.co_flags & 0x04) if hasattr(model.forward, "__code__") else False


def _two_rows(example: Call) -> Call:
    """The example with :data:`EXPORT_ROWS` rows, repeated where it has fewer."""
    return example.take(np.arange(EXPORT_ROWS) % example.rows)


def _made_up(example: Call, rows: int) -> Call:
    """Inputs in the example's range: whole numbers are its own rows, other numbers are drawn between its extremes."""
    generator = torch.Generator().manual_seed(0)
    call = example.take(np.arange(max(rows, EXPORT_ROWS)) % example.rows)
    tensors = []
    for tensor, batched in zip(call.tensors, call.batched, strict=True):
        if batched and tensor.is_floating_point():
            low, high = tensor.min(), tensor.max()
            noise = torch.rand(tensor.shape, generator=generator) * (high - low) + low
            tensor = noise if high > low else torch.randn(tensor.shape, generator=generator)
        tensors.append(tensor)
    return Call(call.keys, tuple(tensors), call.batched)


def _names(given: Sequence[str] | None, default: tuple[str, ...], what: str) -> tuple[str, ...]:
    if given is None:
        return default
    if isinstance(given, str) or len(given) != len(default) or len(set(given)) != len(given) or not all(given):
        raise InputError(f"{what} must be {len(default)} different names (by default {list(default)}), got {given!r}")
    return tuple(given)


def _check_opset(opset: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    whole = isinstance(opset, int) and not isinstance(opset, bool)
    if opset is not None and not (whole and OLDEST_OPSET <= opset <= newest):
        raise InputError(BAD_OPSET.format(low=OLDEST_OPSET, high=newest, got=opset))


def _check_size(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors)
    if size > ONE_FILE_LIMIT:
        raise ExportError(TOO_LARGE.format(size=size, limit=ONE_FILE_LIMIT))


def _opset(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int | str, ...]]:
    dims = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {
        name: tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in ds)
        for name, ds in dims.items()
    }


def _reason(error: Exception) -> str:
    """The error in one line, with its cause where the exporter wrapped it in its own advice."""
    cause = error.__cause__ if error.__cause__ is not None and not isinstance(error, ExportError) else error
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text[:300] or 'no message'}".rstrip(". ")


def _baked_in(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Where tracing took a choice that depends on the data for a constant, as the tracer told."""
    texts = [str(w.message).split(":")[0] for w in caught if issubclass(w.category, TracerWarning)]
    return [f"tracing took a choice for a constant: {text}" for text in dict.fromkeys(texts)]


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Silence the exporters' own warnings, prints and logs for one call; the warnings are returned.

    They concern torch's internals and its advice on deprecated paths; whether the file is right is judged by the proof.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        sink = io.StringIO()
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(before)
