"""Who: sensitive groups of people, their names, and how a batch carries them.

Two types. :class:`GroupLabels` says for each row of a *data set* which group the person belongs to.
:class:`GroupReader` takes the same from one *batch* at a time, by key, index or callable, one or several attributes and
their intersections.

A value that is missing (``None``, NaN, an empty string, ``pandas.NA``, or a negative integer code) is *unknown*: such
people are counted apart, never dropped and never merged into a group.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.picking import Source, pick

UNKNOWN = -1
"""Code of a person whose group is not known."""

SMALL_GROUP = 30
"""Groups with fewer people are called too small to judge: at 30 people one person is 3 points of accuracy."""

JOIN = " x "
"""Between attribute names and between values of an intersection: ``race x gender``, ``Black x Female``."""

EMPTY_GROUPS = (
    "every group is unknown: none of the {n} rows has a known value of {attribute}; check the column or the callable"
)
NO_SUCH_KEY = (
    "the batch has no {key!r} to take the sensitive group from; it is {have}. Pass groups= the right key, index or a "
    "callable"
)
WRONG_LENGTH = (
    "the sensitive group {attribute!r} has {got} values for a batch of {expected}; one value per sample is needed"
)
AMBIGUOUS_VALUE = "a value among {values} contains {join!r}, which joins the values of intersections; rename it"
NOT_SCALAR = "the sensitive group {attribute!r} must be one value per sample, got an array of shape {shape}"

GroupSource = Source
"""Where one attribute is found in a batch: a key (dict batches), an index (tuple batches) or a callable on the
batch."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupLabels:
    """The sensitive group of every row of a data set.

    Attributes:
        names: the groups' names, ``G`` of them, sorted unless given.
        codes: int64 array ``[N]``, index into ``names``, or :data:`UNKNOWN`.
        attribute: what the groups are groups of, e.g. ``"gender"`` or ``"race x gender"``.

    Raises:
        InputError: a code outside ``[-1, G)``, duplicate names, or codes that are not one-dimensional.
    """

    names: tuple[str, ...]
    codes: IntArray
    attribute: str = "group"

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        if codes.ndim != 1:
            raise InputError(NOT_SCALAR.format(attribute=self.attribute, shape=codes.shape))
        if codes.size and not np.issubdtype(codes.dtype, np.integer):
            raise InputError(
                f"group codes of {self.attribute!r} must be integers, got {codes.dtype}; use "
                f"GroupLabels.from_columns for values"
            )
        if len(set(self.names)) != len(self.names):
            raise InputError(f"the group names of {self.attribute!r} are not unique: {list(self.names)}")
        if codes.size and (codes.max() >= len(self.names) or codes.min() < UNKNOWN):
            raise InputError(
                f"group codes of {self.attribute!r} must lie in [-1, {len(self.names)}) (-1 is unknown), got "
                f"{codes.min()} to {codes.max()}"
            )
        object.__setattr__(self, "codes", codes.astype(np.int64))
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]],
        *,
        names: Sequence[str] | None = None,
    ) -> GroupLabels:
        """Make groups from one attribute, or the intersection of several.

        Args:
            columns: attribute name to its ``N`` values (strings, numbers, booleans; missing ones are unknown). With
                more than one attribute each combination that occurs is a group, and a person with any attribute unknown
                is unknown.
            names: the vocabulary to code against (so that two data sets share it); a value outside it is an error.

        Raises:
            InputError: no column, columns of different lengths, or a value that is not in ``names``.
        """
        if not columns:
            raise InputError("no sensitive attribute given; pass at least one column, e.g. {'gender': [...]}")
        attribute = JOIN.join(columns)
        values = [_value_names(name, column) for name, column in columns.items()]
        lengths = {name: len(v) for name, v in zip(columns, values, strict=True)}
        if len(set(lengths.values())) > 1:
            raise InputError(f"sensitive attributes have different lengths: {lengths}")
        return cls._from_names([_join(row) for row in zip(*values, strict=True)], attribute, names)

    @classmethod
    def _from_names(cls, people: Sequence[str | None], attribute: str, names: Sequence[str] | None) -> GroupLabels:
        vocabulary = sorted({p for p in people if p is not None}) if names is None else list(names)
        index = {n: i for i, n in enumerate(vocabulary)}
        stray = sorted({p for p in people if p is not None and p not in index})
        if stray:
            raise InputError(f"{attribute!r} has values outside the known groups {vocabulary}: {stray[:5]}")
        codes = np.array([UNKNOWN if p is None else index[p] for p in people], dtype=np.int64)
        return cls(tuple(vocabulary), codes, attribute)

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[Any] | Sequence[int]) -> GroupLabels:
        """The same groups for a subset of rows (indices or a boolean mask); the vocabulary stays."""
        return GroupLabels(
            self.names, self.codes[np.asarray(rows, dtype=None if len(rows) else np.int64)], self.attribute
        )

    @property
    def counts(self) -> IntArray:
        """People per group, int64 ``[G]``; unknown people are not among them."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).astype(np.int64)

    @property
    def unknown(self) -> int:
        """How many people have no known group."""
        return int((self.codes < 0).sum())

    def too_small(self, minimum: int = SMALL_GROUP) -> tuple[str, ...]:
        """Names of the groups with fewer than ``minimum`` people (a group nobody belongs to included)."""
        return tuple(n for n, c in zip(self.names, self.counts, strict=True) if c < minimum)

    def statement(self, minimum: int = SMALL_GROUP) -> str:
        """One sentence a reader needs before any per-group number: sizes, unknown people, groups too small to judge."""
        return statement(
            self.attribute, dict(zip(self.names, self.counts.tolist(), strict=True)), self.unknown, minimum
        )


def statement(attribute: str, counts: Mapping[str, int], unknown: int, minimum: int = SMALL_GROUP) -> str:
    """Say in words how large the groups are, how many people are in none, and which groups are too small to judge.

    Args:
        attribute: what the groups are groups of.
        counts: people per group.
        unknown: people whose group is not known.
        minimum: fewer people than this is too small to judge.
    """
    total = sum(counts.values()) + unknown
    sizes = f", {min(counts.values())} to {max(counts.values())} people each" if counts else ""
    text = f"{len(counts)} groups by {attribute} over {total} people{sizes}."
    if unknown:
        text += f" {unknown} have no known group: they count in pooled numbers and in no group."
    small = [f"{n} ({c})" for n, c in counts.items() if c < minimum]
    if small:
        text += f" Too small to judge (under {minimum}): {', '.join(small)}."
    return text


@dataclass
class GroupReader:
    """Takes the sensitive group from batches, learning the groups' names as they appear.

    Codes are given in order of appearance while reading; :attr:`order` sorts them by name at the end, so that what is
    reported does not depend on the order of the data.

    Args:
        sources: attribute name to where a batch has it; several attributes make intersections.
        names: fixed vocabulary, in order; a value outside it is an error. ``None`` learns the vocabulary.
        value_names: for attributes carried as integer codes, the name of each code: ``{"gender": ["female", "male"]}``.
    """

    sources: Mapping[str, GroupSource]
    names: Sequence[str] | None = None
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError(
                "no sensitive attribute given; pass groups= a key, an index, a callable or a mapping of them"
            )
        stray = sorted(set(self.value_names) - set(self.sources))
        if stray:
            raise InputError(f"value_names has {stray}, which are not among the attributes {list(self.sources)}")
        if self.names is not None:
            self._index = {str(n): i for i, n in enumerate(self.names)}

    @property
    def attribute(self) -> str:
        """What the groups are groups of, e.g. ``"race x gender"``."""
        return JOIN.join(self.sources)

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names seen so far, by code."""
        return tuple(self._index)

    @property
    def order(self) -> list[int]:
        """Codes in the order to report them: as given by ``names``, else by name."""
        if self.names is not None:
            return list(range(len(self._index)))
        return [self._index[n] for n in sorted(self._index)]

    def read(self, batch: Any, size: int) -> torch.Tensor:
        """Group codes of one batch.

        Args:
            batch: what the loader yields.
            size: number of samples in it, to check against.

        Returns:
            int64 ``[size]`` on the CPU, :data:`UNKNOWN` where a value is missing.

        Raises:
            InputError: the key or index is not in the batch, or there is not one value per sample, or a value
                outside ``names``.
        """
        columns = []
        for name, source in self.sources.items():
            values = _value_names(name, pick(batch, source, NO_SUCH_KEY), self.value_names.get(name))
            if len(values) != size:
                raise InputError(WRONG_LENGTH.format(attribute=name, got=len(values), expected=size))
            columns.append(values)
        people = [_join(row) for row in zip(*columns, strict=True)]
        if self.names is not None:
            stray = sorted({p for p in people if p is not None and p not in self._index})
            if stray:
                raise InputError(
                    f"{self.attribute!r} has values outside the known groups {list(self.names)}: {stray[:5]}"
                )
        codes = [UNKNOWN if p is None else self._index.setdefault(p, len(self._index)) for p in people]
        return torch.tensor(codes, dtype=torch.int64)


def as_reader(groups: GroupReader | GroupSource | Sequence[GroupSource] | Mapping[str, GroupSource]) -> GroupReader:
    """Make a reader of whatever a user passes as ``groups=``.

    A key, an index or a callable is one attribute; a sequence or mapping of them is an intersection.
    """
    if isinstance(groups, GroupReader):
        return groups
    if isinstance(groups, Mapping):
        return GroupReader(dict(groups))
    if isinstance(groups, str | int) or callable(groups):
        return GroupReader({_source_name(groups): groups})
    if isinstance(groups, Sequence):
        names = [_source_name(g) for g in groups]
        if len(set(names)) != len(names):
            raise InputError(f"attributes need different names, got {names}; pass a mapping of name to source instead")
        return GroupReader(dict(zip(names, groups, strict=True)))
    raise InputError(f"groups= must be a key, an index, a callable, or several of them, got {type(groups).__name__}")


def _source_name(source: GroupSource) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, int):
        return f"group[{source}]"
    name = getattr(source, "__name__", "group")
    return "group" if name == "<lambda>" else name


def _value_names(attribute: str, values: Any, names: Sequence[str] | None = None) -> list[str | None]:
    """One name or ``None`` per person; integer codes are named by ``names`` or as they print."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise InputError(NOT_SCALAR.format(attribute=attribute, shape=values.shape))
        values = values.tolist()
    elif isinstance(values, str) or not hasattr(values, "__iter__"):
        raise InputError(NOT_SCALAR.format(attribute=attribute, shape=f"a single {type(values).__name__}"))
    cache: dict[tuple[type, Hashable], str | None] = {}  # by type too: True, 1 and 1.0 are equal as keys
    out = []
    for value in values:
        value = value.item() if isinstance(value, torch.Tensor | np.generic) else value
        try:
            key = type(value), value
            if key not in cache:
                cache[key] = _name(attribute, value, names)
            out.append(cache[key])
        except TypeError:  # NaN is hashable, pandas.NA compares to NA: neither may serve as a key
            out.append(_name(attribute, value, names))
    return out


def _name(attribute: str, value: Any, names: Sequence[str] | None) -> str | None:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            value = int(value)  # integer codes turn into floats when a column has a missing value
    if isinstance(value, bool):
        if names is None:
            return str(value)
        value = int(value)
    if isinstance(value, int):
        if value < 0:
            return None
        if names is not None:
            if value >= len(names):
                raise InputError(
                    f"{attribute!r} has the code {value}, but only {len(names)} value names were given: {list(names)}"
                )
            return str(names[value])
        return str(value)
    text = str(value).strip()
    return text or None


def _join(row: Sequence[str | None]) -> str | None:
    values = [v for v in row if v is not None]
    if len(values) > 1 and any(JOIN in v for v in values):
        raise InputError(AMBIGUOUS_VALUE.format(values=values, join=JOIN))
    return JOIN.join(values) if len(values) == len(row) else None
