"""Which columns of a table of predictions belong to which output, and what they hold.

Columns are found by name, never by position: the output's own name, or a prefix that also says what the column holds,
as in ``logit_smiling``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from fair_prune_plugins.audit.reading.frames import Frame
from fair_prune_plugins.audit.reading.people import PeopleTable
from fair_prune_plugins.errors import InputError

Kind = Literal["logits", "probabilities", "decisions"]

PREFIXES: dict[Kind, tuple[str, ...]] = {
    "logits": ("logit", "logits"),
    "probabilities": ("probability", "prob", "p"),
    "decisions": ("decision", "prediction", "predicted", "pred"),
}
"""What a column's name may start with, before ``_`` and the output; alone it names the only output."""

NOT_FOUND = (
    "{path}: no columns of predictions are recognised among {have}. Expected is {expected}, each alone or with a "
    "prefix such as logit_, probability_ or decision_; or name the columns in this order yourself"
)
SOME_MISSING = "{path} lacks the columns {missing} (it has {found}); every output needs its column of predictions"
OTHER_CLASSES = (
    "{path} has the columns {stray}, and the people's classes are {classes}; models and people must have the same "
    "classes. Name all classes in order if nobody here belongs to some"
)
WRONG_COUNT = (
    "{count} columns of predictions are named ({columns}); a {task} task with the outputs {outputs} has {need}"
)
BAD_KIND = "predictions must be called one of {kinds}, got {kind!r}"

_SHOWN = 12


@dataclass(frozen=True)
class PredictionColumns:
    """What the columns of a table of predictions mean.

    Attributes:
        id: who a row is.
        columns: the columns in the order of the outputs; by default they are found by name.
        kind: what they hold; by default told from prefixes, else from the values.
    """

    id: str = "id"
    columns: tuple[str, ...] | None = None
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise InputError(BAD_KIND.format(kinds=list(get_args(Kind)), kind=self.kind))


@dataclass(frozen=True)
class Found:
    """Columns of predictions.

    Attributes:
        columns: one per output, or per class.
        kind: what their names say they hold; ``None`` where they say nothing.
    """

    columns: tuple[str, ...]
    kind: Kind | None


def find_columns(frame: Frame, people: PeopleTable, asked: PredictionColumns) -> Found:
    """The columns of predictions of a table.

    Raises:
        InputError: there are none, only some, or some of other classes; or those that are named do not fit.
    """
    if asked.columns is not None:
        return _named(frame, people, asked.columns)
    same_file = frame.path.resolve() == people.frame.path.resolve()
    own = {people.columns.id, *people.columns.labels, *people.columns.groups} if same_file else set()
    if people.columns.parts is not None:
        own.add(people.columns.parts.column)
    free = [n for n in frame.names if n != asked.id and n not in own]
    partly: tuple[list[str], list[str]] | None = None
    for kind, layout in _layouts(people):
        there = [name for name in layout if name in free]
        if len(there) == len(layout):
            if len(layout) > 1:
                _check_classes(frame, people, layout, free)
            return Found(tuple(layout), kind)
        if there and (partly is None or len(there) > len(partly[1])):
            partly = [name for name in layout if name not in free], there
    if partly is not None:
        missing, found = partly
        raise InputError(SOME_MISSING.format(path=frame.path, missing=missing[:_SHOWN], found=found[:_SHOWN]))
    if len(free) == 1 and (people.task != "multilabel"):
        return Found((free[0],), None)
    expected = list(people.outputs) if people.task != "binary" else [*people.columns.labels, *people.classes]
    raise InputError(NOT_FOUND.format(path=frame.path, have=free[:_SHOWN], expected=expected[:_SHOWN]))


def _named(frame: Frame, people: PeopleTable, columns: tuple[str, ...]) -> Found:
    count, outputs = len(columns), len(people.outputs)
    allowed = {"binary": (1, 2), "multilabel": (outputs,), "multiclass": (outputs, 1)}[people.task]
    if count not in allowed or len(set(columns)) < count:
        need = " or ".join(str(a) for a in allowed)
        raise InputError(
            WRONG_COUNT.format(
                count=count, columns=list(columns), task=people.task, outputs=list(people.outputs), need=need
            )
        )
    for name in columns:
        frame.column(name)
    return Found(columns, _kind_of(columns))


def _kind_of(columns: tuple[str, ...]) -> Kind | None:
    """What the names say, where all say the same."""
    said = {
        next((kind for kind, prefixes in PREFIXES.items() if name.partition("_")[0].lower() in prefixes), None)
        for name in columns
    }
    return said.pop() if len(said) == 1 else None


def _layouts(people: PeopleTable) -> Iterator[tuple[Kind | None, list[str]]]:
    """Names that a table's columns may have, the most telling first: prefixed, one column alone, bare."""
    several = list(people.outputs) if people.task != "binary" else list(people.classes)
    for kind, prefixes in PREFIXES.items():
        for prefix in prefixes:
            yield kind, [f"{prefix}_{name}" for name in several]
            if people.task != "multilabel":
                yield kind, [f"{prefix}_{people.columns.labels[0]}"]
                yield kind, [prefix]
    yield None, several
    if people.task != "multilabel":
        yield None, [people.columns.labels[0]]


def _check_classes(frame: Frame, people: PeopleTable, layout: list[str], free: list[str]) -> None:
    """Columns of further classes are no accident: a model of other classes answers another question."""
    if people.task == "multilabel":
        return
    prefix = layout[0].removesuffix(people.classes[0])
    stray = [name for name in free if prefix and name.startswith(prefix) and name not in layout]
    if stray:
        raise InputError(
            OTHER_CLASSES.format(path=frame.path, stray=stray[:_SHOWN], classes=list(people.classes)[:_SHOWN])
        )
