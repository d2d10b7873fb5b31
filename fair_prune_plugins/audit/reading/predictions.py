"""A table of predictions as logits: scores as they are, probabilities turned back, decisions as signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fair_prune_plugins.audit.reading.frames import Frame, as_text, read_frame
from fair_prune_plugins.audit.reading.people import PeopleTable
from fair_prune_plugins.audit.reading.prediction_columns import Found, Kind, PredictionColumns, find_columns
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.postprocessing.scores import FloatArray, as_logits

NOT_NUMBERS = "{path}: the id {id!r} has {value!r} in the column {column!r}, where numbers are expected ({kind})"
NOT_FINITE = (
    "{path}: the id {id!r} has NaN or infinity in the column {column!r} ({count} of {n} people are concerned); a "
    "model that diverged cannot be audited, a missing row must be left out (and the others audited alone)"
)
NOT_PROBABILITY = "{path}: the id {id!r} has {value:g} in the column {column!r}, and probabilities lie in 0 to 1"
NOT_ONE = (
    "{path}: the probabilities of the id {id!r} sum to {total:g}, not to 1, over the columns {columns}; if these are "
    "no probabilities, say what they are (logits or decisions)"
)
NOT_A_CLASS = "{path}: the id {id!r} is decided to be {value!r} in the column {column!r}; the classes are {classes}"
NOT_A_DECISION = "{path}: the id {id!r} has {value!r} in the column {column!r}, and decisions are 0 or 1"
NOT_ONE_HOT = (
    "{path}: the id {id!r} is decided for {count} classes over the columns {columns}; decisions of classes must name "
    "exactly one"
)
NEEDS_CLASSES = (
    "{path}: the single column {column!r} cannot hold {kind} of {count} classes; give a column for each class, or a "
    "column of decisions with the classes' names"
)
STATEMENT = "{path}: {columns} read as {kind} ({how})."
CLIPPED = " {count} probabilities are exactly 0 or 1 and were moved inwards by 1e-16 to have logits."
ONLY_DECISIONS = " Only decisions are known, so AUROC, ECE, uncertainty and thresholds are undefined for this model."

SMALLEST = 2.0**-53
"""The closest that a probability is taken to be to 0 or 1: what double precision tells apart from 1."""

SUM_TOLERANCE = 0.01
"""Probabilities of classes may miss a sum of 1 by this much: tables are rounded."""


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of one run of a model.

    Attributes:
        frame: the file.
        logits: float64 ``[M, K]``, rows as in the file.
        kind: what the file holds.
        statement: what was read as what, in a sentence or two.
    """

    frame: Frame
    logits: FloatArray
    kind: Kind
    statement: str


def read_predictions(path: Path, asked: PredictionColumns, people: PeopleTable) -> PredictionTable:
    """Read a table of predictions.

    Args:
        path: the CSV or Parquet file.
        asked: what is known of its columns.
        people: whose labels say which outputs there are.

    Raises:
        InputError: what is wrong with the file; the message names it, the column, the id and what was expected.
    """
    frame = read_frame(path, id_column=asked.id, as_text=False)
    found = find_columns(frame, people, asked)
    columns = [frame.column(name) for name in found.columns]
    by_class = people.task == "multiclass" and len(columns) == 1
    said = asked.kind or found.kind
    if said in (None, "decisions") and (by_class or any(_is_text(column) for column in columns)):
        codes = _class_codes(frame, people, columns, found)
        if codes is not None:
            return _table(frame, found, "decisions", "they name classes", as_logits(codes, len(people.classes)))
    if by_class:
        kind = asked.kind or found.kind or "numbers"
        raise InputError(NEEDS_CLASSES.format(path=path, column=found.columns[0], kind=kind, count=len(people.classes)))
    values = _numbers(frame, found, asked.kind or found.kind or "logits, probabilities or decisions")
    kind, how = _kind(values, people, found, asked)
    logits, remark = _logits(frame, found, people, values, kind)
    return _table(frame, found, kind, how, logits, remark)


def _table(frame: Frame, found: Found, kind: Kind, how: str, logits: FloatArray, remark: str = "") -> PredictionTable:
    names = found.columns
    shown = ", ".join(names) if len(names) <= 4 else f"{len(names)} columns from {names[0]} to {names[-1]}"
    said = STATEMENT.format(path=frame.path, columns=shown, kind=kind, how=how) + remark
    return PredictionTable(frame, logits, kind, said + (ONLY_DECISIONS if kind == "decisions" else ""))


def _is_text(column: pd.Series[Any]) -> bool:
    return not pd.api.types.is_numeric_dtype(column)


def _class_codes(
    frame: Frame, people: PeopleTable, columns: list[pd.Series[Any]], found: Found
) -> npt.NDArray[np.int64] | None:
    """Classes that a single column names; ``None`` where it does not name classes at all."""
    if len(columns) != 1:
        return None
    numbers, values = pd.factorize(columns[0])
    texts = [as_text(v) for v in values]
    known = [t in people.classes for t in texts]
    if not any(known):
        return None
    stray = np.flatnonzero(~np.array([*known, False])[numbers])
    if stray.size:
        who, code = frame.ids[int(stray[0])], numbers[stray[0]]
        value = None if code < 0 else texts[code]
        raise InputError(
            NOT_A_CLASS.format(
                path=frame.path, id=who, value=value, column=found.columns[0], classes=list(people.classes)
            )
        )
    return np.array([people.classes.index(t) for t in texts], dtype=np.int64)[numbers]


def _numbers(frame: Frame, found: Found, expected: str) -> FloatArray:
    values = np.empty((len(frame), len(found.columns)))
    for i, name in enumerate(found.columns):
        column = frame.column(name)
        numbers = pd.to_numeric(column, errors="coerce")
        if _is_text(column):
            # "nan" and "inf" are numbers that are not finite, told below; anything else is no number at all.
            odd = numbers.isna() & column.notna() & (column.astype(str).str.strip().str.lower() != "nan")
            if odd.any():
                row = int(odd.to_numpy().argmax())
                raise InputError(
                    NOT_NUMBERS.format(
                        path=frame.path, id=frame.ids[row], value=column.iloc[row], column=name, kind=expected
                    )
                )
        values[:, i] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    broken = ~np.isfinite(values)
    if broken.any():
        people = broken.any(axis=1)
        row = int(people.argmax())
        raise InputError(
            NOT_FINITE.format(
                path=frame.path,
                id=frame.ids[row],
                column=found.columns[int(broken[row].argmax())],
                count=int(people.sum()),
                n=len(frame),
            )
        )
    return values


def _kind(values: FloatArray, people: PeopleTable, found: Found, asked: PredictionColumns) -> tuple[Kind, str]:
    if asked.kind is not None:
        return asked.kind, "as declared"
    if found.kind is not None:
        return found.kind, "as their names say"
    low, high = values.min(), values.max()
    if np.isin(values, (0.0, 1.0)).all():
        return "decisions", "all are 0 or 1"
    if np.isin(values, (-1.0, 1.0)).all():
        return "decisions", "all are -1 or 1"
    if low < 0 or high > 1:
        return "logits", f"they reach from {low:.3g} to {high:.3g}"
    if values.shape[1] == 1 or people.task == "multilabel":
        return "probabilities", "all lie in 0 to 1; declare logits if they are"
    if np.abs(values.sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        return "probabilities", "all lie in 0 to 1 and sum to 1"
    return "logits", "all lie in 0 to 1, but do not sum to 1"


def _logits(frame: Frame, found: Found, people: PeopleTable, values: FloatArray, kind: Kind) -> tuple[FloatArray, str]:
    if kind == "logits":
        return values, ""
    exclusive = values.shape[1] > 1 and people.task != "multilabel"
    if kind == "decisions":
        return _signs(frame, found, values, exclusive=exclusive), ""
    outside = (values < 0) | (values > 1)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            NOT_PROBABILITY.format(
                path=frame.path, id=frame.ids[row], value=values[row, column], column=found.columns[column]
            )
        )
    if exclusive:
        total = values.sum(axis=1)
        off = np.abs(total - 1) > SUM_TOLERANCE
        if off.any():
            row = int(off.argmax())
            raise InputError(
                NOT_ONE.format(path=frame.path, id=frame.ids[row], total=total[row], columns=list(found.columns)[:12])
            )
    clipped = np.clip(values, SMALLEST, 1 - SMALLEST)
    moved = int((clipped != values).sum())
    logits = np.log(clipped) if exclusive else np.log(clipped) - np.log1p(-clipped)
    return logits, CLIPPED.format(count=moved) if moved else ""


def _signs(frame: Frame, found: Found, values: FloatArray, *, exclusive: bool) -> FloatArray:
    signed = np.isin(values, (-1.0, 1.0)).all()
    bad = ~np.isin(values, (-1.0, 1.0) if signed else (0.0, 1.0))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            NOT_A_DECISION.format(
                path=frame.path, id=frame.ids[row], value=values[row, column], column=found.columns[column]
            )
        )
    yes = values > 0
    if exclusive and (yes.sum(axis=1) != 1).any():
        row = int((yes.sum(axis=1) != 1).argmax())
        raise InputError(
            NOT_ONE_HOT.format(
                path=frame.path, id=frame.ids[row], count=int(yes[row].sum()), columns=list(found.columns)[:12]
            )
        )
    return np.where(yes, 1.0, -1.0)
