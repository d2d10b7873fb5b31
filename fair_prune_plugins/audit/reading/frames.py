"""CSV and Parquet files as columns of text or numbers, with ids that tell their rows apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fair_prune_plugins.errors import InputError

NO_TABLE = "there is no table {path}"
UNKNOWN_KIND = "{path} must end in .csv or .parquet"
NOT_A_TABLE = "{path} cannot be read as {kind}: {reason}"
NO_COLUMN = "{path} has no column {name!r}; it has {have}"
EMPTY = "{path} has no rows"
TWO_COLUMNS = "{path} has two columns called {name!r}; rename one"
NO_ID = (
    "{path}: {count} of {n} rows have nothing in the id column {column!r}, first row {row}; every person needs an id"
)
REPEATED_ID = (
    "{path}: the id {id!r} is in the rows {first} and {second} ({count} ids are repeated in all); every person needs "
    "one row"
)

IntArray = npt.NDArray[np.int64]

_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
_SHOWN = 12


@dataclass(frozen=True)
class Frame:
    """A table with one row per person.

    Attributes:
        path: where it came from, for messages.
        columns: all of them.
        ids: who the rows are, unique.
    """

    path: Path
    columns: pd.DataFrame
    ids: pd.Index[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [str(c) for c in self.columns.columns]

    def column(self, name: str) -> pd.Series[Any]:
        """One column.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns.columns:
            have = self.names
            shown = have if len(have) <= _SHOWN else [*have[:_SHOWN], f"and {len(have) - _SHOWN} more"]
            raise InputError(NO_COLUMN.format(path=self.path, name=name, have=shown))
        found: pd.Series[Any] = self.columns[name]
        return found


def read_frame(path: Path, *, id_column: str, as_text: bool) -> Frame:
    """Read a table and its ids.

    Only an empty cell of a CSV file is a missing value: a group called ``None`` or ``NA`` keeps its name.

    Args:
        path: a ``.csv`` or ``.parquet`` file.
        id_column: the column that says who a row is.
        as_text: take every cell of a CSV file as it stands, so that a class ``007`` keeps its name; otherwise only ids.

    Raises:
        InputError: no such file, not readable as what its name says, without rows, without the id column, two columns
            of one name, ids that are missing or repeated.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(UNKNOWN_KIND.format(path=path))
    if not path.is_file():
        raise InputError(NO_TABLE.format(path=path))
    try:
        columns = _read_csv(path, id_column, as_text) if suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise InputError(NOT_A_TABLE.format(path=path, kind=suffix[1:], reason=error)) from error
    if columns.empty:
        raise InputError(EMPTY.format(path=path))
    frame = Frame(path, columns, pd.Index([], dtype=object))
    return Frame(path, columns, _ids(path, id_column, frame.column(id_column)))


def _read_csv(path: Path, id_column: str, as_text: bool) -> pd.DataFrame:
    # The header is read by itself: pandas would silently call a second "x" "x.1".
    names = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise InputError(TWO_COLUMNS.format(path=path, name=twice))
    dtype: Any = str if as_text else {id_column: str}
    return pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""], low_memory=False)


def _ids(path: Path, name: str, column: pd.Series[Any]) -> pd.Index[str]:
    missing = np.flatnonzero(column.isna())
    if missing.size:
        raise InputError(NO_ID.format(path=path, count=missing.size, n=len(column), column=name, row=missing[0]))
    ids = pd.Index(column if column.dtype == object else [as_text(v) for v in column.tolist()], dtype=object)
    ids = ids.map(as_text)
    repeated = ids.duplicated()
    if repeated.any():
        second = int(repeated.argmax())
        who = ids[second]
        first = ids.tolist().index(who)
        raise InputError(REPEATED_ID.format(path=path, id=who, first=first, second=second, count=int(repeated.sum())))
    return ids


def as_text(value: Any) -> str:
    """A value as text; whole floats lose their ``.0``, which integers get where a column has a missing value."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    whole = _WHOLE_FLOAT.fullmatch(text)
    return whole[1] if whole else text


def coded(column: pd.Series[Any]) -> tuple[IntArray, tuple[str, ...]]:
    """A column as codes into its distinct values.

    Args:
        column: of text, numbers or truth values.

    Returns:
        int64 ``[N]``, -1 where a value is missing, and the distinct values as text: in numeric order where all are
        whole numbers, else sorted.
    """
    codes, values = pd.factorize(column)
    texts = [as_text(v) for v in values]
    names = sorted_names(texts)
    position = {name: i for i, name in enumerate(names)}
    table = np.array([*(position[t] for t in texts), -1], dtype=np.int64)  # the last one for code -1
    return table[codes], names


def sorted_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Distinct texts, in numeric order where all are whole numbers."""
    distinct = set(texts)
    if all(t.lstrip("-").isdigit() for t in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))
