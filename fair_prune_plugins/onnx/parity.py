"""The proof that an ONNX file says what the torch model says.

Measured on real samples at several batch sizes: the largest difference of each output relative to the output's own
scale (freshly initialised nets emit numbers near 1e-9, on which an absolute tolerance passes anything), and how many
predicted classes differ, per sensitive group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from fair_prune_plugins.errors import ExportError, InputError
from fair_prune_plugins.evaluation import predicted_classes
from fair_prune_plugins.groups import UNKNOWN, GroupLabels
from fair_prune_plugins.onnx.calling import Array, Call, ModelInputs, settled_copy
from fair_prune_plugins.onnx.metadata import graphs

TOLERANCE = 1e-4
"""Largest accepted ``max|difference| / max|output|`` in float32."""

WARN_ABOVE = 1e-5
"""A difference above this is accepted, and said: networks that export cleanly stay near 1e-6."""

BATCH_SIZES = (1, 2, 7, 32)
"""Proven by default. 1 and 7 are those that a batch dimension baked in at 2, or a wrong reshape, does not survive."""

FEW = 32
"""Samples that every batch size sees at least; the largest batch size sees all of them."""

NOT_FINITE = (
    "{side} gives outputs that are not finite (output {name!r}, {count} of {total} values at batch size {batch})"
)
TORCH_FAILS = "the torch model itself fails at batch size {batch}: {error}"
RUNTIME_FAILS = (
    "ONNX Runtime cannot run {path} at batch size {batch}: {error}. "
    "If other batch sizes work, the model bakes its batch size in: look for view(), reshape() or torch.arange() with a "
    "fixed size"
)
SHAPE_DIFFERS = "output {name!r} has shape {onnx} in ONNX Runtime and {torch} in torch at batch size {batch}"
TOO_DIFFERENT = (
    "ONNX Runtime differs from torch by {relative:.2g} of the scale of output {name!r} at batch size {batch} "
    "(accepted: {tolerance:.2g}). The file does not compute what the model computes"
)
OUTPUTS_MISSING = "the file has the outputs {onnx}, the torch model returns {torch}"
INPUTS_DIFFER = "the file has the inputs {onnx}, the model is called with {torch}"
SIDECAR_MISSING = (
    "{path} keeps its weights beside it in {files}, which is not there; copy it along or export to one file"
)
NOT_A_FILE = "there is no ONNX file {path}"
NOT_ONNX = "{path} is not a valid ONNX model: {error}"


@dataclass(frozen=True)
class OutputParity:
    """How close one output is.

    Attributes:
        name: its name in the file.
        scale: ``max|y|`` of torch over all samples.
        difference: ``max|y_onnx - y_torch|`` over all samples and batch sizes.
        relative: ``difference / scale``; 0 where both are zero throughout.
        spread: largest range of one element of the output over the samples, relative to the scale.
    """

    name: str
    scale: float
    difference: float
    relative: float
    spread: float


@dataclass(frozen=True)
class GroupParity:
    """Predicted classes of one group (or of everyone): how many people, how many classes differ, how many are right."""

    name: str
    count: int
    differ: int
    correct_torch: int | None = None
    correct_onnx: int | None = None


@dataclass(frozen=True)
class ClassParity:
    """Predicted classes, torch against ONNX Runtime.

    Attributes:
        output: the output that was read as logits.
        overall: everyone, those of unknown group included.
        groups: per sensitive group, in their order; empty without groups.
    """

    output: str
    overall: GroupParity
    groups: tuple[GroupParity, ...] = ()


@dataclass(frozen=True)
class ParityReport:
    """A proof that was passed.

    Attributes:
        outputs: one entry per output.
        classes: predicted classes of the first output of shape ``[n]`` or ``[n, K]``; ``None`` where there is none.
        batch_sizes: as proven.
        samples: how many samples the largest batch size ran over.
        tolerance: what was accepted.
        attribute: what the groups are groups of.
        notes: what a reader should know, in sentences.
    """

    outputs: tuple[OutputParity, ...]
    classes: ClassParity | None
    batch_sizes: tuple[int, ...]
    samples: int
    tolerance: float
    attribute: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def relative(self) -> float:
        """The worst output's relative difference."""
        return max(output.relative for output in self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "relative": self.relative}

    def statement(self) -> str:
        """The proof in words."""
        sizes = ", ".join(map(str, self.batch_sizes))
        said = f"ONNX Runtime equals torch to {self.relative:.1e} of the output's scale on {self.samples} samples"
        said += f" (batch sizes {sizes})"
        if self.classes is None:
            return f"{said}."
        everyone = self.classes.overall
        if everyone.differ == 0:
            return f"{said}; all {everyone.count} predicted classes are equal."
        where = ", ".join(f"{g.name} {g.differ} of {g.count}" for g in self.classes.groups if g.differ)
        return f"{said}; {everyone.differ} of {everyone.count} predicted classes differ" + (
            f" ({where})." if where else "."
        )


@dataclass(frozen=True)
class Reference:
    """What torch says, computed once and compared with as many files as needed.

    Attributes:
        call: the samples.
        names: default names of the outputs, in order.
        batches: for each batch that was run, its batch size, its rows and torch's outputs; the largest size comes last.
        batch_sizes: sorted.
    """

    call: Call
    names: tuple[str, ...]
    batches: tuple[tuple[int, npt.NDArray[np.int64], tuple[Array, ...]], ...]
    batch_sizes: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module, call: Call, batch_sizes: Sequence[int]) -> Reference:
        """Run the model; it is copied (float32, CPU, eval mode) and left as it is.

        Args:
            model: any module that can be copied.
            call: the samples; every output is kept, so pass as many as fit.
            batch_sizes: to run at; the largest over all samples, the others over the first :data:`FEW`.

        Raises:
            InputError: no batch size, or one that is no positive integer.
            ExportError: the model fails or gives outputs that are not finite.
        """
        sizes = sorted(set(batch_sizes))
        if not sizes or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in sizes):
            raise InputError(f"batch_sizes must be positive integers, at least one, got {tuple(batch_sizes)}")
        twin = settled_copy(model)
        names: tuple[str, ...] = ()
        batches = []
        for size in sizes:
            for rows in _rows(call.rows, size, everything=size == sizes[-1]):
                try:
                    names, tensors = call.take(rows).run(twin)
                except InputError:
                    raise
                except Exception as error:  # whatever a forward raises
                    raise ExportError(TORCH_FAILS.format(batch=len(rows), error=_first_line(error))) from error
                outputs = tuple(
                    t.cpu().numpy() if t.dtype != torch.bfloat16 else t.float().cpu().numpy() for t in tensors
                )
                for name, output in zip(names, outputs, strict=True):
                    _check_finite(output, "the torch model", name, len(rows))
                batches.append((size, rows, outputs))
        return cls(call, names, tuple(batches), tuple(sizes))


def prove(
    model: nn.Module,
    path: str | Path,
    samples: ModelInputs,
    groups: GroupLabels | None = None,
    *,
    labels: Sequence[int] | Array | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerance: float = TOLERANCE,
    threads: int = 1,
) -> ParityReport:
    """Prove that an ONNX file computes what a torch model computes.

    The file must pass the ONNX checker, take the model's inputs, and give every output of the model in its order. The
    model is left exactly as it was: a float32 copy of it runs on the CPU in eval mode.

    Args:
        model: the torch model.
        path: the ONNX file.
        samples: float32 ``[n, ...]`` (array or tensor), a tuple of them for several inputs, or a dict of names to them.
        groups: the sensitive group of each sample.
        labels: int ``[n]`` true classes, to count right predictions on both sides.
        batch_sizes: the largest runs over all samples, the others over the first few; samples are repeated where there
            are fewer than a batch.
        tolerance: largest accepted ``max|difference| / max|output|``.
        threads: of ONNX Runtime.

    Raises:
        InputError: samples, groups or labels that do not fit together, or no such file.
        ExportError: the file is invalid, cannot run at some batch size, or differs; the message says where.
    """
    reference = Reference.of(model, Call.of(samples, "samples"), batch_sizes)
    return compare(reference, path, groups, labels=labels, tolerance=tolerance, threads=threads)


def compare(
    reference: Reference,
    path: str | Path,
    groups: GroupLabels | None = None,
    *,
    labels: Sequence[int] | Array | None = None,
    tolerance: float = TOLERANCE,
    threads: int = 1,
) -> ParityReport:
    """Compare a file with what torch said; see :func:`prove`."""
    labels = check_people(reference.call.rows, groups, labels)
    check_tolerance(tolerance)
    path = Path(path)
    check_file(path)
    session = _session(path, threads)
    names = [output.name for output in session.get_outputs()]
    if len(names) != len(reference.names):
        raise ExportError(OUTPUTS_MISSING.format(onnx=names, torch=list(reference.names)))
    tallies = [_Tally(name) for name in names]
    logits_at = _logits_at(reference)
    predicted: list[tuple[Array, Array]] = []
    for size, rows, expected in reference.batches:
        feed = _feed(session, reference.call.take(rows))
        try:
            outputs = session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise ExportError(
                RUNTIME_FAILS.format(path=path.name, batch=len(rows), error=_first_line(error))
            ) from error
        for tally, ours, theirs in zip(tallies, expected, outputs, strict=True):
            tally.add(ours, theirs, len(rows))
        if size == reference.batch_sizes[-1] and logits_at is not None:
            predicted.append((predicted_classes(expected[logits_at]), predicted_classes(outputs[logits_at])))
    results = tuple(tally.result(tolerance) for tally in tallies)
    classes = None
    if logits_at is not None:
        n = reference.call.rows
        torch_classes, onnx_classes = (np.concatenate(side)[:n] for side in zip(*predicted, strict=True))
        classes = _class_parity(names[logits_at], torch_classes, onnx_classes, groups, labels)
    return ParityReport(
        outputs=results,
        classes=classes,
        batch_sizes=reference.batch_sizes,
        samples=reference.call.rows,
        tolerance=tolerance,
        attribute=None if groups is None else groups.attribute,
        notes=_notes(results, classes, reference.call.rows, tolerance),
    )


def check_file(path: Path) -> None:
    """The ONNX checker, and a clear word where weights lie in another file that is not there.

    Raises:
        InputError: no such file.
        ExportError: it is not valid ONNX, or its external weights are missing.
    """
    if not path.is_file():
        raise InputError(NOT_A_FILE.format(path=path))
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ExportError(NOT_ONNX.format(path=path, error=_first_line(error))) from error
    missing = sorted(name for name in external_files(proto) if not (path.parent / name).is_file())
    if missing:
        raise ExportError(SIDECAR_MISSING.format(path=path, files=missing))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # ValidationError, InferenceError, or a bare RuntimeError of the C++ checker
        raise ExportError(NOT_ONNX.format(path=path, error=_first_line(error))) from error


def external_files(proto: onnx.ModelProto) -> set[str]:
    """Names of the files beside the model that hold weights."""
    tensors = (t for graph in graphs(proto) if isinstance(graph, onnx.GraphProto) for t in graph.initializer)
    external = (t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}


def check_tolerance(tolerance: float) -> None:
    """Check that a tolerance is a positive number.

    Raises:
        InputError: it is not.
    """
    if not (isinstance(tolerance, int | float) and math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance must be a positive number (of the output's scale), got {tolerance!r}")


def check_people(
    rows: int, groups: GroupLabels | None, labels: Sequence[int] | Array | None
) -> npt.NDArray[np.int64] | None:
    """Check that there is one group and one label per sample; the labels as int64.

    Raises:
        InputError: other lengths, or labels that are not whole numbers.
    """
    if groups is not None and len(groups) != rows:
        raise InputError(f"groups has {len(groups)} people for {rows} samples; one per sample is needed")
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (rows,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"labels must be integers of shape ({rows},), one per sample, got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


@dataclass
class _Tally:
    """Running maxima of one output."""

    name: str
    scale: float = 0.0
    difference: float = 0.0
    worst_batch: int = 0
    low: Array | None = field(default=None, repr=False)
    high: Array | None = field(default=None, repr=False)

    def add(self, expected: Array, got: Any, batch: int) -> None:
        got = np.asarray(got)
        if got.shape != expected.shape:
            raise ExportError(SHAPE_DIFFERS.format(name=self.name, onnx=got.shape, torch=expected.shape, batch=batch))
        _check_finite(got, "the ONNX file", self.name, batch)
        if not expected.size:
            return
        ours, theirs = _wide(expected), _wide(got)
        self.scale = max(self.scale, float(np.abs(ours).max()))
        difference = float(np.abs(ours - theirs).max())
        if difference > self.difference or not self.worst_batch:
            self.difference, self.worst_batch = difference, batch
        if ours.ndim and ours.shape[0] == batch:
            self.low = ours.min(0) if self.low is None else np.minimum(self.low, ours.min(0))
            self.high = ours.max(0) if self.high is None else np.maximum(self.high, ours.max(0))

    def result(self, tolerance: float) -> OutputParity:
        relative = self.difference / self.scale if self.scale > 0 else (0.0 if self.difference == 0 else math.inf)
        if relative > tolerance:
            raise ExportError(
                TOO_DIFFERENT.format(relative=relative, name=self.name, batch=self.worst_batch, tolerance=tolerance)
            )
        spread = 0.0
        if self.low is not None and self.high is not None and self.scale > 0:
            spread = float((np.abs(self.high - self.low)).max()) / self.scale
        return OutputParity(self.name, self.scale, self.difference, relative, spread)


def _class_parity(
    output: str,
    torch_classes: Array,
    onnx_classes: Array,
    groups: GroupLabels | None,
    labels: npt.NDArray[np.int64] | None,
) -> ClassParity:
    def tally(name: str, rows: npt.NDArray[np.bool_]) -> GroupParity:
        ours, theirs = torch_classes[rows], onnx_classes[rows]
        right = (
            (None, None) if labels is None else (int((ours == labels[rows]).sum()), int((theirs == labels[rows]).sum()))
        )
        return GroupParity(name, len(ours), int((ours != theirs).sum()), *right)

    everyone = tally("everyone", np.ones(len(torch_classes), dtype=bool))
    if groups is None:
        return ClassParity(output, everyone)
    per_group = [tally(name, groups.codes == code) for code, name in enumerate(groups.names)]
    if groups.unknown:
        per_group.append(tally("(unknown)", groups.codes == UNKNOWN))
    return ClassParity(output, everyone, tuple(per_group))


def _notes(
    results: Sequence[OutputParity], classes: ClassParity | None, rows: int, tolerance: float
) -> tuple[str, ...]:
    notes = [
        f"output {r.name!r} differs by {r.relative:.1e} of its scale; clean exports stay below {WARN_ABOVE:.0e}"
        for r in results
        if r.relative > WARN_ABOVE
    ]
    notes += [
        f"output {r.name!r} hardly depends on the sample (range {r.spread:.1e} of its scale), so that a file which "
        "ignores its input would pass too: prove with a trained model and samples that differ"
        for r in results
        if rows > 1 and r.spread <= tolerance
    ]
    if classes is not None and classes.overall.differ:
        notes.append(
            f"{classes.overall.differ} of {classes.overall.count} predicted classes differ: those samples lie within "
            "rounding of a decision boundary"
        )
    return tuple(notes)


def _rows(total: int, size: int, *, everything: bool) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices batch by batch; rows repeat where there are fewer than one batch of them."""
    count = total if everything else min(total, max(size, FEW))
    rows = np.arange(max(count, size), dtype=np.int64) % total
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _logits_at(reference: Reference) -> int | None:
    """Index of the first output that is one number, or one row of numbers, per sample."""
    _, rows, outputs = reference.batches[-1]
    for index, output in enumerate(outputs):
        shaped = output.ndim in (1, 2) and output.shape[0] == len(rows) and (output.ndim == 1 or output.shape[1] > 0)
        if shaped and np.issubdtype(output.dtype, np.floating):
            return index
    return None


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come back as exceptions; the log would print them a second time
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ExportError(f"ONNX Runtime cannot load {path.name}: {_first_line(error)}") from error


def _feed(session: onnxruntime.InferenceSession, call: Call) -> dict[str, Array]:
    """Inputs by the file's names: by keyword where the names agree, else by position."""
    names = [value.name for value in session.get_inputs()]
    arrays = [t.numpy() for t in call.tensors]
    if call.keys is not None and set(names) <= set(call.keys):
        by_key = dict(zip(call.keys, arrays, strict=True))
        return {name: by_key[name] for name in names}
    if len(names) != len(arrays):
        raise ExportError(INPUTS_DIFFER.format(onnx=names, torch=list(call.names())))
    return dict(zip(names, arrays, strict=True))


def _check_finite(values: Array, side: str, name: str, batch: int) -> None:
    if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ExportError(NOT_FINITE.format(side=side, name=name, count=bad, total=values.size, batch=batch))


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:400]
