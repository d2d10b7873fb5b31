"""The table of people: who they are, what is true of them, and which groups they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fair_prune_plugins.audit.data import NO_GROUPS, People, TrainingPeople
from fair_prune_plugins.audit.reading.frames import Frame, coded, read_frame
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.groups import EMPTY_GROUPS, GroupLabels
from fair_prune_plugins.postprocessing.scores import IntArray, Task

NO_LABELS = "no label column is given; name the column that holds what is true of each person"
NO_LABEL = "{path}: {count} of {n} people have nothing in the label column {column!r}, first the id {id!r}"
ONE_CLASS = (
    "{path}: the label column {column!r} has the single value {value!r}; name all classes in order (classes) if the "
    "others are only absent here"
)
STRAY_CLASS = "{path}: the id {id!r} has the label {value!r} in {column!r}; the classes are {classes}"
NOT_BINARY = (
    "{path}: the label column {column!r} holds {values}; with several label columns each must hold 0 and 1, -1 and 1, "
    "or false and true"
)
CLASSES_OF_ONE = "classes are named for one label column; there are {n}, each of which is yes or no"
TOO_FEW_CLASSES = "two different classes or more are needed, got {classes}"
STRAY_GROUP = (
    "{path}: the id {id!r} has the value {value!r} in {column!r}; the groups that were named are {names}. Correct the "
    "table or name this group too"
)
STRAY_NAMES = "groups are named for {stray}, which is not among the group columns {columns}"
BAD_INTERSECTION = "an intersection needs two or more different group columns out of {columns}, got {got}"
STRAY_PART = (
    "{path}: the id {id!r} has the value {value!r} in the column {column!r} of parts; expected are {expected}. Correct "
    "the table, or name the values that are used"
)
NO_PART = "{path}: no person has the value {value!r} in the column {column!r}; there is nobody to audit"


@dataclass(frozen=True)
class Parts:
    """A column that says what each person is used for.

    Attributes:
        column: its name.
        test: value of the people who are audited.
        validation: value of the people whom countermeasures are chosen on.
        train: value of the people whom the models were trained on; only their labels and groups are used.
    """

    column: str
    test: str = "test"
    validation: str = "validation"
    train: str = "train"


@dataclass(frozen=True)
class PeopleColumns:
    """What the columns of the table of people mean.

    Attributes:
        labels: one column (two classes: a binary task; more: multi-class), or several of yes and no (multi-label).
        groups: sensitive attributes, a column each.
        id: who a row is.
        intersections: attributes to cross in addition, e.g. ``(("race", "gender"),)``.
        classes: the classes of one label column in order, the last of two being the positive one; sorted by default.
        names: the groups of an attribute, in order; a value outside is an error. By default all that occur, sorted.
        parts: where training, validation and test people are told apart; by default everybody is audited.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    id: str = "id"
    intersections: tuple[tuple[str, ...], ...] = ()
    classes: tuple[str, ...] | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parts: Parts | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise InputError(NO_LABELS)
        if not self.groups:
            raise InputError(NO_GROUPS)
        if self.classes is not None and len(self.labels) > 1:
            raise InputError(CLASSES_OF_ONE.format(n=len(self.labels)))
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise InputError(TOO_FEW_CLASSES.format(classes=list(self.classes)))
        stray = sorted(set(self.names) - set(self.groups))
        if stray:
            raise InputError(STRAY_NAMES.format(stray=stray, columns=list(self.groups)))
        for crossed in self.intersections:
            if len(crossed) < 2 or len(set(crossed)) < len(crossed) or not set(crossed) <= set(self.groups):
                raise InputError(BAD_INTERSECTION.format(columns=list(self.groups), got=list(crossed)))


@dataclass(frozen=True)
class PeopleTable:
    """Everybody in the table, of whatever part.

    Attributes:
        frame: the file.
        columns: what was asked.
        task: binary, multi-label or multi-class.
        classes: names of the classes of one label column; no and yes for several.
        labels: int64 ``[N]``, or ``[N, A]`` (multi-label).
        groups: attributes, then intersections.
        parts: the part of each row as text; ``None`` without.
    """

    frame: Frame
    columns: PeopleColumns
    task: Task
    classes: tuple[str, ...]
    labels: IntArray
    groups: tuple[GroupLabels, ...]
    parts: npt.NDArray[np.object_] | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """How reports call the outputs."""
        if self.task == "multilabel":
            return self.columns.labels
        return self.classes if self.task == "multiclass" else (output_name(self.columns.labels[0], self.classes),)

    def rows(self, part: str) -> npt.NDArray[np.intp]:
        """Rows of the test, validation or training people; without parts everybody is a test person."""
        if self.columns.parts is None or self.parts is None:
            return np.arange(len(self.frame) if part == "test" else 0)
        return np.flatnonzero(self.parts == getattr(self.columns.parts, part))

    def people(self, rows: npt.NDArray[np.intp]) -> People:
        """Some of them, as an audit takes them."""
        return People(
            ids=tuple(self.frame.ids[rows].tolist()),
            labels=self.labels[rows],
            groups=tuple(groups.take(rows) for groups in self.groups),
            outputs=self.outputs,
            task=self.task,
        )

    def training(self) -> TrainingPeople | None:
        """Labels and groups of the training people, where there are any."""
        rows = self.rows("train")
        if not rows.size:
            return None
        return TrainingPeople(self.labels[rows], tuple(groups.take(rows) for groups in self.groups))


def output_name(target: str, classes: Sequence[str]) -> str:
    """How a binary task's output is called: by its target, and by the positive class where that says something."""
    return target if tuple(classes) in (("0", "1"), ("False", "True")) else f"{target}: {classes[1]}"


def read_people(path: Path, columns: PeopleColumns) -> PeopleTable:
    """Read the table of people.

    Raises:
        InputError: what is wrong with the file; the message names it, the column, the id and what was expected.
    """
    frame = read_frame(path, id_column=columns.id, as_text=True)
    if len(columns.labels) > 1:
        task: Task = "multilabel"
        classes: tuple[str, ...] = ("no", "yes")
        labels = np.stack([_yes_or_no(frame, name) for name in columns.labels], axis=1)
    else:
        labels, classes = _classes(frame, columns.labels[0], columns.classes)
        task = "binary" if len(classes) == 2 else "multiclass"
    values = {name: _group_values(frame, name, columns.names.get(name)) for name in columns.groups}
    groups = [GroupLabels.from_columns({n: values[n]}, names=columns.names.get(n)) for n in columns.groups]
    groups += [GroupLabels.from_columns({n: values[n] for n in crossed}) for crossed in columns.intersections]
    for one in groups:
        if one.unknown == len(one):
            raise InputError(f"{path}: " + EMPTY_GROUPS.format(n=len(one), attribute=one.attribute))
    return PeopleTable(frame, columns, task, classes, labels, tuple(groups), _parts(frame, columns.parts))


def _classes(frame: Frame, name: str, declared: tuple[str, ...] | None) -> tuple[IntArray, tuple[str, ...]]:
    codes, found = _coded(frame, name)
    if declared is None:
        if len(found) < 2:
            raise InputError(ONE_CLASS.format(path=frame.path, column=name, value=found[0]))
        return codes, found
    position = {value: i for i, value in enumerate(declared)}
    for code, value in enumerate(found):
        if value not in position:
            who = frame.ids[int((codes == code).argmax())]
            raise InputError(
                STRAY_CLASS.format(path=frame.path, id=who, value=value, column=name, classes=list(declared))
            )
    return np.array([position[v] for v in found], dtype=np.int64)[codes], declared


def _yes_or_no(frame: Frame, name: str) -> IntArray:
    codes, found = _coded(frame, name)
    meaning = {"0": 0, "-1": 0, "false": 0, "1": 1, "true": 1}
    values = [v.lower() for v in found]
    # 0 and -1 would both be "no": which of them is, is not for us to guess.
    if not set(values) <= set(meaning) or {"0", "-1"} <= set(values) or len(values) > 2:
        raise InputError(NOT_BINARY.format(path=frame.path, column=name, values=list(found[:5])))
    return np.array([meaning[v] for v in values], dtype=np.int64)[codes]


def _coded(frame: Frame, name: str) -> tuple[IntArray, tuple[str, ...]]:
    codes, found = coded(frame.column(name))
    missing = np.flatnonzero(codes < 0)
    if missing.size:
        raise InputError(
            NO_LABEL.format(
                path=frame.path, count=missing.size, n=len(frame), column=name, id=frame.ids[int(missing[0])]
            )
        )
    return codes, found


def _group_values(frame: Frame, name: str, declared: Sequence[str] | None) -> list[Any]:
    """The values of an attribute, ``None`` where unknown; whole numbers as such, so that negative codes are unknown."""
    column = frame.column(name)
    codes, found = coded(column)
    numbers = bool(found) and all(v.lstrip("-").isdigit() for v in found)
    names: list[str | None] = [None if numbers and v.startswith("-") else v for v in found]
    if declared is not None:
        for code, value in enumerate(names):
            if value is not None and value.strip() and value not in declared:
                who = frame.ids[int((codes == code).argmax())]
                raise InputError(
                    STRAY_GROUP.format(path=frame.path, id=who, value=value, column=name, names=list(declared))
                )
    return [names[c] if c >= 0 else None for c in codes.tolist()]


def _parts(frame: Frame, parts: Parts | None) -> npt.NDArray[np.object_] | None:
    if parts is None:
        return None
    codes, found = coded(frame.column(parts.column))
    expected = [parts.train, parts.validation, parts.test]
    for row in np.flatnonzero(np.isin(codes, [c for c, v in enumerate(found) if v not in expected] + [-1])):
        value = None if codes[row] < 0 else found[codes[row]]
        raise InputError(
            STRAY_PART.format(
                path=frame.path, id=frame.ids[int(row)], value=value, column=parts.column, expected=expected
            )
        )
    if parts.test not in found:
        raise InputError(NO_PART.format(path=frame.path, value=parts.test, column=parts.column))
    values: npt.NDArray[np.object_] = np.asarray(pd.Series(found).to_numpy(dtype=object)[codes])
    return values
