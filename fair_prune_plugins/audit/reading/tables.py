"""Tables of predictions and a table of people, put together by id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.reading.inputs import Inputs, ModelFiles
from fair_prune_plugins.audit.reading.matching import Matched, Source, lacking, match
from fair_prune_plugins.audit.reading.people import PeopleColumns, PeopleTable, read_people
from fair_prune_plugins.audit.reading.prediction_columns import PredictionColumns
from fair_prune_plugins.audit.reading.predictions import PredictionTable, read_predictions
from fair_prune_plugins.errors import InputError

MIXED_KINDS = (
    "the runs of {name!r} hold different things: {kinds}. Runs are averaged and must hold the same; declare what they "
    "hold if it was told wrongly"
)
MIXED_WIDTHS = "the runs of {name!r} have different numbers of columns: {widths}; they must be of the same kind"
NO_VALIDATION = (
    "There are {n} validation people in {people}, but {origin} has predictions of none of them, so nothing is chosen "
    "on them."
)

_Runs = list[tuple[ModelFiles, list[PredictionTable]]]


def read_tables(
    people: Path,
    dense: ModelFiles,
    pruned: Sequence[ModelFiles] = (),
    *,
    columns: PeopleColumns,
    predictions: PredictionColumns | None = None,
    only_common: bool = False,
) -> Inputs:
    """Read people and predictions from CSV or Parquet files and match them by id.

    Args:
        people: the table of people.
        dense: tables of the dense model's predictions.
        pruned: tables of each compressed model's.
        columns: what the columns of the people's table mean.
        predictions: what those of the predictions mean; by default ids are called as the people's, and the rest is
            found by name and told from the values, which the notes then say.
        only_common: audit only the people who are in all tables, instead of stopping where one lacks somebody.

    Returns:
        the audited people in the order of their table. Where the table of people has parts, test people are audited,
        validation people form ``validation`` if the tables have them, and training people give ``data.training``.

    Raises:
        InputError: what is wrong with which file; the message names the id or column and what was expected.
    """
    everybody = read_people(people, columns)
    asked = predictions or PredictionColumns(columns.id)
    runs: _Runs = [
        (model, [read_predictions(path, asked, everybody) for path in model.paths]) for model in (dense, *pruned)
    ]
    for model, tables in runs:
        _check_alike(model, tables)
    notes = list(dict.fromkeys(t.statement for _, tables in runs for t in tables))
    known = Source(str(people), everybody.frame.ids)
    sources = [Source(str(t.frame.path), t.frame.ids) for _, tables in runs for t in tables]
    matched = match(known, everybody.rows("test"), sources, only_common=only_common)
    notes += [matched.note] if matched.note else []
    validation = None
    rows = everybody.rows("validation")
    if rows.size:
        absent = next(lacking(everybody.frame.ids[rows], sources), None)
        if absent is None:
            validation = _assembled(everybody, runs, match(known, rows, sources, only_common=only_common))
        else:
            notes.append(NO_VALIDATION.format(n=rows.size, people=people, origin=absent.origin))
    return Inputs(_assembled(everybody, runs, matched), validation, tuple(notes))


def _check_alike(model: ModelFiles, tables: list[PredictionTable]) -> None:
    kinds = {str(t.frame.path): t.kind for t in tables}
    if len(set(kinds.values())) > 1:
        raise InputError(MIXED_KINDS.format(name=model.name, kinds=", ".join(f"{p} {k}" for p, k in kinds.items())))
    widths = {str(t.frame.path): t.logits.shape[1] for t in tables}
    if len(set(widths.values())) > 1:
        raise InputError(MIXED_WIDTHS.format(name=model.name, widths=widths))


def _assembled(everybody: PeopleTable, runs: _Runs, matched: Matched) -> AuditData:
    rows = iter(matched.rows)
    models = [
        ModelPredictions(
            model.name,
            tuple(table.logits[next(rows)] for table in tables),
            model.run_names,
            graded=tables[0].kind != "decisions",
        )
        for model, tables in runs
    ]
    return AuditData(everybody.people(matched.people), models[0], tuple(models[1:]), everybody.training())
