"""What the command line asks to audit, read as tables, ONNX files or run folders, whichever the paths are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fair_prune_plugins.errors import ConfigError, InputError

if TYPE_CHECKING:
    from fair_prune_plugins.audit.reading import Inputs, Kind, ModelFiles, PeopleColumns

Form = Literal["tables of predictions", "ONNX files", "run folders"]

NOTHING_THERE = "{option}: there is nothing at {path}; give a .csv, .parquet or .onnx file, or a run folder"
NO_FORM = "{option}: {path} is no .csv, .parquet or .onnx file and no run folder"
MIXED = (
    "all models must be given in one form; {first} is among {one}, {other} among {two}. The exported file of a run is "
    "models/NAME/onnx/model.onnx in its folder"
)
NEEDED = "{form} need {option}: {why}"
OF_NO_USE = "{options} belong to {form}, and {path} is among {got}; leave them out"
SAME_STEM = (
    "two pruned files are called {name!r}; tell them apart with --pruned NAME=PATH, or give both the same NAME if they "
    "are runs of one model"
)
DENSE_NAMES = "--dense names one model, got the names {names}; several files are its runs"
RUNS_ARE_NAMED = "{option}: {text}: the models of a run folder have names already; choose among them with --model"
BAD_PARTS = "--parts takes COLUMN or COLUMN=TEST,VALIDATION,TRAIN, got {text!r}"
EMPTY_NAME = "{option}: {text!r} has nothing before or after =; expected is NAME=PATH"

_SUFFIXES: dict[str, Form] = {
    ".csv": "tables of predictions",
    ".parquet": "tables of predictions",
    ".onnx": "ONNX files",
}


@dataclass(frozen=True)
class Request:
    """What was asked, as the options give it; see :mod:`fair_prune_plugins.workflow.audit_options`."""

    dense: Sequence[str]
    pruned: Sequence[str]
    people: Path | None
    id: str
    labels: Sequence[str]
    groups: Sequence[str]
    intersections: Sequence[str]
    classes: str | None
    parts: str | None
    kind: str | None
    columns: Sequence[str]
    only_common: bool
    data: Path | None
    everybody: bool
    models: Sequence[str]

    def read(self) -> Inputs:
        """Read it.

        Raises:
            InputError: whatever is wrong with options or files; the message names the option, or the file and row.
        """
        dense = [_named_path(text, "--dense") for text in self.dense]
        pruned = [_named_path(text, "--pruned") for text in self.pruned]
        form = self._form([("--dense", p) for _, p in dense] + [("--pruned", p) for _, p in pruned])
        self._check_options(form, dense[0][1])
        if form == "run folders":
            return self._runs(dense, pruned)
        before, after = _dense_files(dense), _pruned_files(pruned)
        return self._tables(before, after) if form == "tables of predictions" else self._onnx(before, after)

    def _form(self, paths: Sequence[tuple[str, Path]]) -> Form:
        forms = [(path, _form_of(option, path)) for option, path in paths]
        first, one = forms[0]
        for other, two in forms[1:]:
            if two != one:
                raise InputError(MIXED.format(first=first, one=one, other=other, two=two))
        return one

    def _check_options(self, form: Form, path: Path) -> None:
        """An option that does nothing was given in the belief that it does."""
        given: dict[Form, Mapping[str, Any]] = {
            "tables of predictions": {
                "--people": self.people,
                "--label": self.labels,
                "--group": self.groups,
                "--intersection": self.intersections,
                "--classes": self.classes,
                "--parts": self.parts,
                "--predictions": self.kind,
                "--prediction-column": self.columns,
            },
            "ONNX files": {"--data": self.data, "--everybody": self.everybody},
            "run folders": {"--model": self.models},
        }
        for other, options in given.items():
            stray = [name for name, value in options.items() if value]
            if other != form and stray:
                raise ConfigError(OF_NO_USE.format(options=", ".join(stray), form=other, path=path, got=form))
        if form == "ONNX files" and self.only_common:
            raise ConfigError(OF_NO_USE.format(options="--only-common", form="tables and runs", path=path, got=form))

    def _runs(self, dense: list[tuple[str | None, Path]], pruned: list[tuple[str | None, Path]]) -> Inputs:
        from fair_prune_plugins.workflow.audit_runs import read_runs

        for option, named in (("--dense", dense), ("--pruned", pruned)):
            for name, path in named:
                if name is not None:
                    raise ConfigError(RUNS_ARE_NAMED.format(option=option, text=f"{name}={path}"))
        return read_runs(
            [p for _, p in dense], [p for _, p in pruned], models=self.models, only_common=self.only_common
        )

    def _onnx(self, dense: ModelFiles, pruned: list[ModelFiles]) -> Inputs:
        from fair_prune_plugins.workflow.audit_inputs import read_onnx

        if self.data is None:
            raise ConfigError(NEEDED.format(form="ONNX files", option="--data", why="whom to ask them about"))
        return read_onnx(self.data, dense, pruned, everybody=self.everybody)

    def _tables(self, dense: ModelFiles, pruned: list[ModelFiles]) -> Inputs:
        from fair_prune_plugins.audit.reading import PredictionColumns, read_tables

        form = "tables of predictions"
        if self.people is None:
            raise ConfigError(NEEDED.format(form=form, option="--people", why="a table of ids, labels and groups"))
        if not self.labels:
            raise ConfigError(NEEDED.format(form=form, option="--label", why="the column of what is true"))
        if not self.groups:
            raise ConfigError(NEEDED.format(form=form, option="--group", why="the column of a sensitive attribute"))
        asked = PredictionColumns(self.id, tuple(self.columns) or None, cast("Kind | None", self.kind))
        return read_tables(
            self.people, dense, pruned, columns=self._columns(), predictions=asked, only_common=self.only_common
        )

    def _columns(self) -> PeopleColumns:
        from fair_prune_plugins.audit.reading import PeopleColumns

        groups = [text.partition("=") for text in self.groups]
        return PeopleColumns(
            labels=tuple(self.labels),
            groups=tuple(column for column, _, _ in groups),
            id=self.id,
            intersections=tuple(_listed(text) for text in self.intersections),
            classes=None if self.classes is None else _listed(self.classes),
            names={column: _listed(names) for column, equals, names in groups if equals},
            parts=None if self.parts is None else _parts(self.parts),
        )


def _form_of(option: str, path: Path) -> Form:
    if path.is_dir():
        return "run folders"
    if not path.exists():
        raise InputError(NOTHING_THERE.format(option=option, path=path))
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(NO_FORM.format(option=option, path=path))
    return _SUFFIXES[path.suffix.lower()]


def _named_path(text: str, option: str) -> tuple[str | None, Path]:
    """``NAME=PATH`` parted; a path that has = in it and exists, or in a folder's name, is a path."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or "\\" in name or Path(text).exists():
        return None, Path(text)
    if not name or not path:
        raise ConfigError(EMPTY_NAME.format(option=option, text=text))
    return name, Path(path)


def _dense_files(named: list[tuple[str | None, Path]]) -> ModelFiles:
    from fair_prune_plugins.audit.reading import ModelFiles

    names = list(dict.fromkeys(name for name, _ in named if name is not None))
    if len(names) > 1:
        raise ConfigError(DENSE_NAMES.format(names=names))
    return ModelFiles(names[0] if names else "dense", tuple(path for _, path in named))


def _pruned_files(named: list[tuple[str | None, Path]]) -> list[ModelFiles]:
    from fair_prune_plugins.audit.reading import ModelFiles

    files: dict[str, list[Path]] = {}
    for name, path in named:
        if name is None and path.stem in files:
            raise ConfigError(SAME_STEM.format(name=path.stem))
        files.setdefault(path.stem if name is None else name, []).append(path)
    return [ModelFiles(name, tuple(paths)) for name, paths in files.items()]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parts(text: str) -> Any:
    from fair_prune_plugins.audit.reading import Parts

    column, equals, names = text.partition("=")
    values = _listed(names)
    if not column or (equals and len(values) != 3):
        raise ConfigError(BAD_PARTS.format(text=text))
    return Parts(column, *values) if equals else Parts(column)
