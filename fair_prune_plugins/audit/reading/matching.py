"""Rows of several tables put into one order of people, by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fair_prune_plugins.errors import InputError

MISSING_PEOPLE = (
    "{origin} lacks {count} of the {n} people of {people}, first the id {id!r}{rows}. Add them, or audit only the "
    "people that are in all tables (--only-common; only_common=True)"
)
EXTRA_PEOPLE = (
    "{origin} has {count} of its {n} people not in {people}, first the id {id!r}{rows}. Add them there, or audit only "
    "the people that are in all tables (--only-common; only_common=True)"
)
NOBODY = (
    "{origin} has not one id in common with {people}: ids such as {theirs!r} here and {ours!r} there. Check the id "
    "columns, and that both are of the same data"
)
NOBODY_COMMON = "not one person is in all of {origins}; check that they are of the same data"
LEFT_OUT = "Only the {kept} people who are in all tables are audited; {lost} of {n} are left out{extra}."

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Source:
    """Ids of one table.

    Attributes:
        origin: how messages call it.
        ids: unique.
    """

    origin: str
    ids: pd.Index[str]


@dataclass(frozen=True)
class Matched:
    """Who is audited, and where the tables have them.

    Attributes:
        people: rows of the people, ascending.
        rows: for each source, its rows of these people, in their order.
        note: what was left out; empty where nobody was.
    """

    people: Rows
    rows: tuple[Rows, ...]
    note: str


def match(people: Source, wanted: Rows, sources: Sequence[Source], *, only_common: bool = False) -> Matched:
    """Find the people in every table.

    Args:
        people: the ids of everybody in the table of people.
        wanted: those rows of it that are to be audited.
        sources: tables of predictions.
        only_common: leave out whoever is not in all tables, instead of stopping.

    Raises:
        InputError: without ``only_common``: a table that lacks people or has others; always: nobody in common.
    """
    ids = people.ids[wanted]
    positions = [np.asarray(s.ids.get_indexer(ids), dtype=np.intp) for s in sources]
    extras = [np.flatnonzero(people.ids.get_indexer(s.ids) < 0) for s in sources]
    for source, found, extra in zip(sources, positions, extras, strict=True):
        if (found < 0).all():
            raise InputError(
                NOBODY.format(origin=source.origin, people=people.origin, theirs=source.ids[0], ours=ids[0])
            )
        if only_common:
            continue
        missing = np.flatnonzero(found < 0)
        for who, kind, n in (
            (ids[missing], MISSING_PEOPLE, len(ids)),
            (source.ids[extra], EXTRA_PEOPLE, len(source.ids)),
        ):
            if len(who):
                rows = f" (row {extra[0]})" if kind is EXTRA_PEOPLE else f" (row {wanted[missing[0]]} there)"
                raise InputError(
                    kind.format(
                        origin=source.origin, people=people.origin, count=len(who), n=n, id=str(who[0]), rows=rows
                    )
                )
    common = np.logical_and.reduce([found >= 0 for found in positions])
    if not common.any():
        raise InputError(NOBODY_COMMON.format(origins=", ".join([people.origin, *(s.origin for s in sources)])))
    note = ""
    outside = max((len(e) for e in extras), default=0)
    if not common.all() or outside:
        extra_note = f", and up to {outside} of a table whom {people.origin} does not have" if outside else ""
        kept = int(common.sum())
        note = LEFT_OUT.format(kept=kept, lost=len(ids) - kept, n=len(ids), extra=extra_note)
    return Matched(wanted[common], tuple(found[common] for found in positions), note)


def lacking(wanted: Any, sources: Sequence[Source]) -> Iterator[Source]:
    """The tables that have not one of the wanted ids."""
    for source in sources:
        if not source.ids.isin(wanted).any():
            yield source
