"""From the ``data`` part of a configuration to people in memory."""

from __future__ import annotations

import inspect
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import GroupLabels
from fair_prune_plugins.workflow import image_tables, loading
from fair_prune_plugins.workflow.config import path_of
from fair_prune_plugins.workflow.data import Part, Samples, draw_parts, outside
from fair_prune_plugins.workflow.data_config import FunctionData, NpzData, Parts, TableData

NO_COLUMN = "{key}: the data has no column {name!r}; it has {have}"
GROUP_UNKNOWN = "data.groups: not one of the {n} people has a known value of {names}; check the column"
NO_TARGET = "{key}: {count} of {n} people have no value, first in row {row}; leave them out or repair them"
STRAY_CLASS = "{key}: the {part} part has the value {value!r} (row {row}), which is not among the classes {classes}"
STRAY_PART = (
    "data.parts.column: row {row} has the value {value!r}; allowed are {allowed}. Name all three parts, or leave "
    "such rows out"
)
NO_FILE_NAME = "data.file: {count} of {n} rows name no image, first row {row}; leave them out or repair them"
NOBODY = "{key}: no person is left for the {part} part ({sizes}); {advice}"
BAD_CODES = "{key}: {problem}. Repair them, or name as many classes in data.classes"
NOT_NPZ = "data.path: {path} cannot be read as .npz ({reason}); write it with numpy.savez"
PICKLED = (
    "data.path: the array {name!r} holds Python objects, which are never unpickled; store numbers or text (dtype U)"
)
BAD_LAYOUT = "data.layout: {layout} needs {dims} dimensions, the array {name!r} has shape {shape}"
NOT_SAMPLES = "data.function: {reference} must return fair_prune_plugins.workflow.data.Samples, got {type}"

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d*)")
_LAYOUT_DIMENSIONS = {"nchw": 4, "nhwc": 4, "nhw": 3, "features": 2}


def load(data: TableData | NpzData | FunctionData, *, base: Path, seed: int) -> Samples:
    """Read the data set.

    Args:
        data: the configuration.
        base: the configuration file's folder.
        seed: of the parts that are drawn.

    Raises:
        InputError: whatever is wrong with the data; the message names the key, file, column or row.
    """
    if isinstance(data, TableData):
        return _from_table(data, base, seed)
    if isinstance(data, NpzData):
        return _from_npz(data, base, seed)
    samples = loading.call(data.function, _seeded(data, base, seed), key="data.function", beside=base)
    if not isinstance(samples, Samples):
        raise InputError(NOT_SAMPLES.format(reference=data.function, type=type(samples).__name__))
    return replace(samples, attribution=(*samples.attribution, *data.attribution))


def _seeded(data: FunctionData, base: Path, seed: int) -> dict[str, Any]:
    """The function's options, with the run's seed where it takes one and is given none."""
    function = loading.load_function(data.function, key="data.function", beside=base)
    try:
        takes_seed = "seed" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        takes_seed = False
    return {"seed": seed, **data.options} if takes_seed else data.options


def _from_table(data: TableData, base: Path, seed: int) -> Samples:
    with image_tables.ImageStore(path_of(data.images, base, key="data.images")) as store:
        folder, table_name = base, str(path_of(data.table, Path(), key="data.table"))
        table = image_tables.read_table(table_name, folder, store)
        columns = {str(c): table[c].tolist() for c in table.columns}
        files = _files(_column(columns, data.file, "data.file"))
        labels = _column(columns, data.target, "data.target")  # asked for before hours of decoding, not after
        if table_name.lower().endswith(".csv"):
            columns |= {n: _numbers_as_such(columns[n]) for n in data.groups if n in columns}
        groups = _groups(columns, data.groups)
        given = _given_parts(data.parts, columns)
        images, read, skipped = image_tables.read_images(
            files, store, channels=data.channels, size=data.size, skip_corrupt=data.skip_corrupt
        )
    notes: tuple[str, ...] = ()
    if skipped:
        notes = (f"{len(skipped)} of {len(files)} images are damaged and were left out, the first {skipped[0]!r}.",)
    names = tuple(files[row] for row in read)
    return _assemble(
        images,
        [labels[row] for row in read],
        groups.take(read),
        None if given is None else given[read],
        data,
        seed,
        notes,
        names if len(set(names)) == len(names) else (),
    )


def _files(values: Sequence[Any]) -> list[str]:
    texts = [_text(v) for v in values]
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise InputError(NO_FILE_NAME.format(count=len(missing), n=len(texts), row=missing[0]))
    return [t for t in texts if t is not None]


def _numbers_as_such(values: list[Any]) -> list[Any]:
    """A text column that holds whole numbers alone as numbers, so that a negative code is an unknown group."""
    texts = [v for v in values if isinstance(v, str)]
    if not all(_WHOLE_NUMBER.fullmatch(t) for t in texts):
        return values
    return [int(v) if isinstance(v, str) else v for v in values]


def _from_npz(data: NpzData, base: Path, seed: int) -> Samples:
    path = path_of(data.path, base, key="data.path")
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(NOT_NPZ.format(path=path, reason=error)) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(NOT_NPZ.format(path=path, reason="it holds a single array"))
    with archive:
        wanted = [data.inputs, data.labels, *data.groups, *([data.parts.column] if data.parts else [])]
        for name, key in zip(
            wanted,
            ["data.inputs", "data.labels", *["data.groups"] * len(data.groups), "data.parts.column"],
            strict=False,
        ):
            if name not in archive:
                raise InputError(NO_COLUMN.format(key=key, name=name, have=sorted(archive.files)))
        arrays = {name: _array(archive, name, path) for name in wanted}
    inputs = _as_channels_first(arrays[data.inputs], data)
    for name in wanted[1:]:
        if arrays[name].shape != (len(inputs),):
            raise InputError(
                f"data: the array {name!r} must have one value for each of {len(inputs)} inputs, got shape "
                f"{arrays[name].shape}"
            )
    columns = {name: arrays[name].tolist() for name in wanted[1:]}
    return _assemble(
        inputs, columns[data.labels], _groups(columns, data.groups), _given_parts(data.parts, columns), data, seed, ()
    )


def _array(archive: Any, name: str, path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = archive[name]
    except ValueError:
        raise InputError(PICKLED.format(name=name)) from None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(NOT_NPZ.format(path=path, reason=f"array {name!r}: {error}")) from error
    return array


def _as_channels_first(inputs: npt.NDArray[Any], data: NpzData) -> npt.NDArray[Any]:
    if inputs.ndim != _LAYOUT_DIMENSIONS[data.layout]:
        dims = _LAYOUT_DIMENSIONS[data.layout]
        raise InputError(BAD_LAYOUT.format(layout=data.layout, dims=dims, name=data.inputs, shape=inputs.shape))
    if data.layout == "nhwc":
        inputs = inputs.transpose(0, 3, 1, 2)
    elif data.layout == "nhw":
        inputs = inputs[:, None]
    return np.ascontiguousarray(inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32))


def _column(columns: Mapping[str, list[Any]], name: str, key: str) -> list[Any]:
    try:
        return columns[name]
    except KeyError:
        raise InputError(NO_COLUMN.format(key=key, name=name, have=sorted(columns))) from None


def _groups(columns: Mapping[str, list[Any]], names: Sequence[str]) -> GroupLabels:
    groups = GroupLabels.from_columns({n: _column(columns, n, "data.groups") for n in names})
    if groups.unknown == len(groups):
        raise InputError(GROUP_UNKNOWN.format(n=len(groups), names=list(names)))
    return groups


def _text(value: Any) -> str | None:
    """A class or part as text, ``None`` where missing.

    Whole floats lose their ``.0``: a column of integers turns to floats where a value is missing.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return str(value)


def _given_parts(parts: Parts | None, columns: Mapping[str, list[Any]]) -> npt.NDArray[Any] | None:
    """The part that the data itself names for each row."""
    if parts is None:
        return None
    meaning = {parts.train: Part.TRAIN, parts.validation: Part.VALIDATION, parts.test: Part.TEST}
    values = [_text(v) for v in _column(columns, parts.column, "data.parts.column")]
    for row, value in enumerate(values):
        if value is None or value not in meaning:
            allowed = [m for m in meaning if m is not None]
            raise InputError(STRAY_PART.format(row=row, value=value, allowed=allowed))
    return np.array([str(meaning[v]) for v in values], dtype=object)


def _assemble(
    inputs: npt.NDArray[Any],
    targets: Sequence[Any],
    groups: GroupLabels,
    given: npt.NDArray[Any] | None,
    data: TableData | NpzData,
    seed: int,
    notes: tuple[str, ...],
    ids: tuple[str, ...] = (),
) -> Samples:
    key = "data.labels" if isinstance(data, NpzData) else "data.target"
    values = [_text(t) for t in targets]
    missing = [row for row, v in enumerate(values) if v is None]
    if missing:
        raise InputError(NO_TARGET.format(key=key, count=len(missing), n=len(values), row=missing[0]))
    texts = [v for v in values if v is not None]
    parts = _complete_parts(given, texts, groups, data, seed)
    _check_parts(parts, data)
    classes = (
        tuple(data.classes)
        if data.classes
        else _classes_of([t for t, p in zip(texts, parts, strict=True) if p == Part.TRAIN])
    )
    labels = _codes(texts, classes, parts, key)
    return Samples(inputs, labels, classes, groups, parts, tuple(data.attribution), notes, ids)


def _complete_parts(
    given: npt.NDArray[Any] | None, texts: Sequence[str], groups: GroupLabels, data: TableData | NpzData, seed: int
) -> npt.NDArray[Any]:
    """Draw from the training people those parts that the data does not name itself."""
    parts = np.full(len(texts), str(Part.TRAIN), dtype=object) if given is None else given.copy()
    shares: dict[Part, float] = {}
    if data.parts is None or data.parts.test is None:
        shares[Part.TEST] = data.test
    if data.parts is None or data.parts.validation is None:
        shares[Part.VALIDATION] = data.validation
    free = np.flatnonzero(parts == Part.TRAIN)
    if shares and free.size:
        cells = [f"{texts[row]} {groups.codes[row]}" for row in free.tolist()]
        parts[free] = draw_parts(cells, shares, seed=seed)
    return parts


def _check_parts(parts: npt.NDArray[Any], data: TableData | NpzData) -> None:
    """Name the key that leaves a part without people."""
    sizes = {str(part): int((parts == part).sum()) for part in Part}
    for part in Part:
        if sizes[part]:
            continue
        if data.parts is not None and getattr(data.parts, part) is not None:
            key, advice = f"data.parts.{part}", f"check it against the values of {data.parts.column!r}"
        elif part == Part.TRAIN:
            key, advice = "data.validation and data.test", "make them smaller"
        else:
            key, advice = f"data.{part}", "enlarge this share"
        raise InputError(NOBODY.format(key=key, part=part, sizes=sizes, advice=advice))


def _classes_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct values, in numeric order where all are whole numbers."""
    distinct = set(texts)
    if all(t.lstrip("-").isdigit() for t in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def _codes(texts: Sequence[str], classes: Sequence[str], parts: npt.NDArray[Any], key: str) -> npt.NDArray[np.int64]:
    index = {name: code for code, name in enumerate(classes)}
    if all(t.lstrip("-").isdigit() for t in set(texts)) and not any(t in index for t in texts):
        codes = np.array([int(t) for t in texts], dtype=np.int64)  # from 0
        problem = outside(codes, len(classes))
        if problem:
            raise InputError(BAD_CODES.format(key=key, problem=problem))
        return codes
    for row, text in enumerate(texts):
        if text not in index:
            raise InputError(STRAY_CLASS.format(key=key, part=parts[row], value=text, row=row, classes=list(classes)))
    return np.array([index[t] for t in texts], dtype=np.int64)
