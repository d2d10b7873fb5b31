"""What one pass leaves behind: per sensitive group and unit, additive numbers of gates, or the weights' importance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import SMALL_GROUP, statement
from fair_prune_plugins.statistics.units import UnitStatistics

EVERYONE = "everyone"
"""Name of the only group where no sensitive attribute was given."""

FORMAT = 1

STATES = ("people", "weight", "sum", "absolute", "square")
"""The states that add up over batches, files and ranks."""

ADDITIVE = ("fisher", "snnl")
"""Those that add up as well, where they were measured."""

OPTIONAL = ("elementwise", *ADDITIVE)

OTHER_UNITS = (
    "these statistics are of other units: {here} against {there}; they can be merged only if the model had the same "
    "structure"
)
OTHER_ATTRIBUTE = "these statistics are by {here!r} and by {there!r}; merge statistics by the same sensitive attribute"
OTHER_MODEL = (
    "these statistics are of different states of the model (checksums {here} and {there}); collect both on the same "
    "weights"
)
NOT_ADDITIVE = (
    "element-wise statistics do not add up: the gradients of a group are summed before they are squared. Collect them "
    "in one pass over all the data"
)
OTHER_PASSES = (
    "one of these statistics has {what} and the other has not; merge statistics that were collected for the same "
    "criterion"
)
NOT_STATISTICS = "{path} holds no gate statistics: {why}"


def first_not_finite(columns: Mapping[str, tuple[int, int]], values: torch.Tensor) -> str:
    """Name of the first unit set with a value that is not finite.

    Args:
        columns: unit-set name to its first column and its width.
        values: ``[..., columns]``, not all finite.
    """
    column = int((~torch.isfinite(values)).reshape(-1, values.shape[-1]).any(0).nonzero()[0])
    return next(name for name, (first, size) in columns.items() if first <= column < first + size)


@dataclass
class GateStatistics:
    """Per sensitive group and gate: people, weight, and the sums of s, |s| and s squared.

    Rows are the groups in ``names`` and, last, the people whose group is unknown. These states add up, so statistics
    of disjoint data merge, and a distributed run is one all-reduce. Element-wise statistics do not: a group's gradients
    are summed before they are squared.

    Attributes:
        attribute: what the groups are groups of.
        names: the groups' names, ``G`` of them.
        columns: unit-set name to ``(first column, size)``.
        people: int64 ``[G + 1]``.
        weight: float64 ``[G + 1]``.
        sum: float64 ``[G + 1, columns]``; so are ``absolute`` and ``square``.
        weight_square: float64 ``[columns]``; a property of the model, not of the data.
        checksum: of the model that was measured.
        notes: what a reader should know.
        elementwise: float64 ``[G, columns]``, see :class:`UnitStatistics`; ``None`` where it was not measured, as for
            those that follow.
        gates: whether the sums of s were measured; they are NaN otherwise.
        fisher: float64 ``[G + 1, columns]``.
        snnl: float64 ``[2, columns]``: the sum over people, and the weight of the people who were compared.
    """

    attribute: str
    names: tuple[str, ...]
    columns: dict[str, tuple[int, int]]
    people: torch.Tensor
    weight: torch.Tensor
    sum: torch.Tensor
    absolute: torch.Tensor
    square: torch.Tensor
    weight_square: torch.Tensor
    checksum: str = ""
    notes: list[str] = field(default_factory=list)
    elementwise: torch.Tensor | None = None
    gates: bool = True
    fisher: torch.Tensor | None = None
    snnl: torch.Tensor | None = None

    @classmethod
    def empty(
        cls,
        attribute: str,
        names: Sequence[str],
        columns: Mapping[str, tuple[int, int]],
        weight_square: torch.Tensor,
        checksum: str,
    ) -> GateStatistics:
        """No people yet."""
        rows, width = len(names) + 1, sum(size for _, size in columns.values())
        return cls(
            attribute,
            tuple(names),
            dict(columns),
            people=torch.zeros(rows, dtype=torch.int64),
            weight=torch.zeros(rows, dtype=torch.float64),
            sum=torch.zeros(rows, width, dtype=torch.float64),
            absolute=torch.zeros(rows, width, dtype=torch.float64),
            square=torch.zeros(rows, width, dtype=torch.float64),
            weight_square=weight_square,
            checksum=checksum,
        )

    def of(self, name: str) -> UnitStatistics:
        """The statistics of one unit set.

        Raises:
            KeyError: the plan had no unit set of that name.
        """
        first, size = self.columns[name]
        part = slice(first, first + size)
        return UnitStatistics(
            self.names,
            self.weight[:-1],
            self.sum[:-1, part],
            self.absolute[:-1, part],
            self.square[:-1, part],
            float(self.weight[-1]),
            self.sum[-1, part],
            self.absolute[-1, part],
            self.square[-1, part],
            self.weight_square[part],
            elementwise=None if self.elementwise is None else self.elementwise[:, part],
            gates=self.gates,
            fisher=None if self.fisher is None else self.fisher[:-1, part],
            snnl=None if self.snnl is None else self.snnl[0, part] / self.snnl[1, part],
            overall_square=self.square[:-1].sum(1),
            overall_fisher=None if self.fisher is None else self.fisher[:-1].sum(1),
        )

    @property
    def counts(self) -> dict[str, int]:
        """People per group."""
        return dict(zip(self.names, self.people[:-1].tolist(), strict=True))

    @property
    def unknown(self) -> int:
        """People in no known group."""
        return int(self.people[-1])

    def statement(self, minimum: int = SMALL_GROUP) -> str:
        """Say how large the groups are, how many people are in none, and which are too small to judge."""
        return statement(self.attribute, self.counts, self.unknown, minimum)

    def merged(self, other: GateStatistics) -> GateStatistics:
        """The statistics of both data sets together; groups that only one of them has are kept.

        Raises:
            InputError: other units, another sensitive attribute, another state of the model, statistics for another
                criterion, or element-wise statistics.
        """
        if self.elementwise is not None or other.elementwise is not None:
            raise InputError(NOT_ADDITIVE)
        if self.columns != other.columns:
            raise InputError(OTHER_UNITS.format(here=_sizes(self.columns), there=_sizes(other.columns)))
        if self.attribute != other.attribute:
            raise InputError(OTHER_ATTRIBUTE.format(here=self.attribute, there=other.attribute))
        if self.checksum != other.checksum:
            raise InputError(OTHER_MODEL.format(here=self.checksum, there=other.checksum))
        for what, here, there in (
            ("the states of gates", self.gates, other.gates),
            *((s, getattr(self, s) is not None, getattr(other, s) is not None) for s in ADDITIVE),
        ):
            if here != there:
                raise InputError(OTHER_PASSES.format(what=what))
        names = tuple(sorted({*self.names, *other.names})) if self.names != other.names else self.names
        a, b = self.rearranged(names), other.rearranged(names)
        states = {s: getattr(a, s) + getattr(b, s) for s in a._additive}
        return GateStatistics(
            self.attribute,
            names,
            self.columns,
            **states,
            weight_square=self.weight_square,
            checksum=self.checksum,
            notes=list(dict.fromkeys([*self.notes, *other.notes])),
            gates=self.gates,
        )

    @property
    def _additive(self) -> tuple[str, ...]:
        return (*STATES, *(s for s in ADDITIVE if getattr(self, s) is not None))

    def rearranged(self, names: Sequence[str]) -> GateStatistics:
        """The same statistics with rows for ``names``, in that order; groups not present get zeros."""
        missing = sorted(set(self.names) - set(names))
        if missing:
            raise InputError(f"the statistics have the groups {missing}, which are not among {list(names)}")
        result = GateStatistics.empty(self.attribute, names, self.columns, self.weight_square, self.checksum)
        at = [list(names).index(n) for n in self.names] + [len(names)]
        for state in STATES:
            getattr(result, state)[at] = getattr(self, state)
        if self.elementwise is not None:
            result.elementwise = torch.zeros(len(names), self.elementwise.shape[1], dtype=torch.float64)
            result.elementwise[at[:-1]] = self.elementwise
        if self.fisher is not None:
            result.fisher = torch.zeros(len(names) + 1, self.fisher.shape[1], dtype=torch.float64)
            result.fisher[at] = self.fisher
        result.snnl = None if self.snnl is None else self.snnl.clone()
        result.gates, result.notes = self.gates, list(self.notes)
        return result

    def all_reduced(self, process_group: Any = None) -> GateStatistics:
        """Add up over the ranks of a ``torch.distributed`` run; every rank gets the same result.

        Ranks may know different groups, and a rank may have seen nobody (``collect(..., allow_empty=True)``). Works on
        CPU and GPU backends.

        Raises:
            InputError: the ranks measured different units, attributes or states of the model, raised on every rank; or
                element-wise statistics.
        """
        from torch import distributed as dist

        if self.elementwise is not None:
            raise InputError(NOT_ADDITIVE)

        gathered: list[Any] = [None] * dist.get_world_size(process_group)
        mine = (self.names, self.columns, self.attribute, self.checksum, self.notes)
        dist.all_gather_object(gathered, mine, group=process_group)
        # Compared with the first rank's, so that every rank comes to the same end.
        _, first_columns, first_attribute, first_checksum, _ = gathered[0]
        for _, columns, attribute, checksum, _ in gathered:
            if columns != first_columns:
                raise InputError(OTHER_UNITS.format(here=_sizes(first_columns), there=_sizes(columns)))
            if attribute != first_attribute:
                raise InputError(OTHER_ATTRIBUTE.format(here=first_attribute, there=attribute))
            if checksum != first_checksum:
                raise InputError(OTHER_MODEL.format(here=first_checksum, there=checksum))
        same = all(names == gathered[0][0] for names, *_ in gathered)
        union = self.names if same else tuple(sorted({n for names, *_ in gathered for n in names}))
        result = self.rearranged(union)
        on_gpu = dist.get_backend(process_group) == dist.Backend.NCCL
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        for state in result._additive:
            total = getattr(result, state).to(device)
            dist.all_reduce(total, group=process_group)
            setattr(result, state, total.cpu())
        result.notes = list(dict.fromkeys(note for *_, notes in gathered for note in notes))
        return result

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file (no pickle inside); an older file is replaced only by a complete one."""
        path = Path(path)
        header = {
            "format": FORMAT,
            "attribute": self.attribute,
            "names": list(self.names),
            "columns": {k: list(v) for k, v in self.columns.items()},
            "checksum": self.checksum,
            "notes": self.notes,
            "gates": self.gates,
        }
        stored = [s for s in (*STATES, "weight_square", *OPTIONAL) if getattr(self, s) is not None]
        arrays = {s: getattr(self, s).numpy() for s in stored}
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> GateStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is no complete statistics file of a known format.
        """
        try:
            # Opened here, because numpy leaves a damaged file open.
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(bytes(file["header"]).decode())
                stored = (*STATES, "weight_square", *(s for s in OPTIONAL if s in file.files))
                tensors = {s: torch.from_numpy(file[s].copy()) for s in stored}
        except FileNotFoundError:
            raise InputError(NOT_STATISTICS.format(path=path, why="there is no such file")) from None
        except Exception as error:
            raise InputError(NOT_STATISTICS.format(path=path, why=f"{type(error).__name__}: {error}")) from error
        if header.get("format") != FORMAT:
            why = f"format {header.get('format')}, this version reads format {FORMAT}"
            raise InputError(NOT_STATISTICS.format(path=path, why=why))
        return cls(
            header["attribute"],
            tuple(header["names"]),
            {k: (int(v[0]), int(v[1])) for k, v in header["columns"].items()},
            **tensors,
            checksum=header["checksum"],
            notes=list(header["notes"]),
            gates=header.get("gates", "elementwise" not in tensors),
        )


def _sizes(columns: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    return {name: size for name, (_, size) in columns.items()}
