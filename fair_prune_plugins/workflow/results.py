"""What a whole run found: one typed object, written as ``results.json`` and ``results.csv``, read by the report.

The numbers of one model stay in the dicts that ``Evaluation.as_dict()``, ``LatencyReport.as_dict()`` and
``ParityReport.as_dict()`` made, so that nothing is lost on the way;
:mod:`fair_prune_plugins.workflow.readings` reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fair_prune_plugins.errors import InputError

SCHEMA_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning; new optional fields leave it."""

NOT_RESULTS = (
    "{path} is not a results file of this version (schema {version}): {reason}. Run the report stage again to write it"
)
NO_SUCH_MODEL = "no model is called {name!r} in this run; it has {names}"

JsonDict = dict[str, Any]
"""What ``as_dict()`` of another part returned: JSON-ready, undefined numbers ``None``."""


def json_ready(value: Any) -> Any:
    """Plain JSON types with undefined (NaN, infinite) numbers as ``None``; numpy scalars and arrays become Python's.

    Raises:
        InputError: a value that JSON has no type for.
    """
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise InputError(f"results hold JSON values only, got {type(value).__name__}: {value!r}")


class _Record(BaseModel):
    """A part of the results: unknown fields are refused and nothing changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {k: v if isinstance(v, BaseModel) or _holds_records(v) else json_ready(v) for k, v in data.items()}


def _holds_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(v, BaseModel) for v in value)


class Task(_Record):
    """What the models decide, and for whom.

    Attributes:
        target: what is predicted, e.g. ``"digit"``.
        classes: names of the classes.
        attribute: what the sensitive groups are groups of, e.g. ``"race x gender"``.
        groups: names of the sensitive groups.
        statement: ``GroupLabels.statement()`` of the test data: sizes, unknown people, groups too small to judge.
        description: one or two sentences for a reader who sees the task for the first time.
    """

    target: str
    classes: list[str]
    attribute: str
    groups: list[str]
    statement: str
    description: str = ""


class Data(_Record):
    """Where the people come from.

    Attributes:
        name: what the data set is called.
        attribution: lines that the data's licence asks to be shown.
        sizes: people per split, e.g. ``{"train": 1000, "validation": 300, "test": 497}``.
        notes: what was changed or left out, and how groups were made.
    """

    name: str = ""
    attribution: list[str] = Field(default_factory=list)
    sizes: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


class Width(_Record):
    """How one coupled group changed: units asked for, units kept, units before.

    Attributes:
        layer: module path of the coupled group's root.
        asked: units that the pruning ratio asked to keep.
        kept: units that are left.
        total: units of the dense model.
        note: why ``kept`` is not ``asked``, where it is not.
    """

    layer: str
    asked: int
    kept: int
    total: int
    note: str = ""


class ModelResult(_Record):
    """Everything known about one model: the dense one (``method`` is ``None``) or a pruned one.

    Attributes:
        name: unique in the run, e.g. ``"fairgrape 50 %"``.
        method: registry name of the criterion, ``None`` for the dense model.
        summary: what the criterion does, in one line.
        source: the paper.
        pruning_ratio: share of units that was asked to go, 0 to 1, or that a share of the cost was found to take;
            ``None`` for the dense model.
        asked: what it was pruned down to, in words: ``"50 %"`` of the units to go, or ``"30 % of MACs"`` to keep.
        macs: multiply-accumulates for one input.
        params: number of parameters.
        file_bytes: size of the ONNX file.
        evaluation: ``Evaluation.as_dict()`` on the test people.
        against: ``Evaluation.as_dict()`` of this model with *another pruned model* in the place of the dense one, by
            that model's name: what allows to say whether two pruned models differ.
        latency: this model's part of ``LatencyReport.as_dict()``.
        parity: ``ParityReport.as_dict()``.
        widths: what each coupled group lost.
        seconds: what the stages took: ``collect``, ``prune``, ``finetune``.
        notes: what the stages had to say about this model.
    """

    name: str
    method: str | None = None
    summary: str = ""
    source: str = ""
    pruning_ratio: float | None = None
    asked: str = ""
    macs: int
    params: int
    file_bytes: int | None = None
    evaluation: JsonDict = Field(default_factory=dict)
    against: dict[str, JsonDict] = Field(default_factory=dict)
    latency: JsonDict = Field(default_factory=dict)
    parity: JsonDict = Field(default_factory=dict)
    widths: list[Width] = Field(default_factory=list)
    seconds: dict[str, float | None] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def is_dense(self) -> bool:
        """Whether this is the model before pruning."""
        return self.method is None


class Postprocessed(_Record):
    """What thresholds or label overrides made of one model's answers: chosen on validation people, judged on test.

    Attributes:
        model: whose answers.
        name: of the step, e.g. ``"match_labels per group"``.
        kind: ``"thresholds"`` or ``"override"``.
        uses_groups: whether the group of a person is needed to decide about that person.
        by_chance: whether lots are drawn.
        rule: ``ThresholdRule.as_dict()`` or ``OverridePolicy.as_dict()``.
        validation: accuracy and worst-group accuracy on the validation people, ``before`` and ``after``.
        effect: ``Effect.as_dict()`` on the test people: after against before, paired.
        against_dense: ``Evaluation.as_dict()`` against the dense model; empty for the dense model.
        overridden: share of the test people overridden, and by group; empty for thresholds.
        macs: multiply-accumulates for one person on average, the dense model's included where it has to run.
    """

    model: str
    name: str
    kind: str
    uses_groups: bool
    by_chance: bool
    rule: JsonDict
    validation: JsonDict
    effect: JsonDict
    against_dense: JsonDict = Field(default_factory=dict)
    overridden: JsonDict = Field(default_factory=dict)
    macs: float


class RunResults(_Record):
    """A whole run.

    Attributes:
        name: what the run is called.
        created: when it finished, ISO 8601.
        seed: the one seed of the run.
        task: what is decided, and for whom.
        data: where the people come from.
        machine: the machine that was timed, as ``LatencyReport.as_dict()`` describes it.
        timing: how it was timed (threads, rounds, warm-up, ..., and notes of a noisy run): ``LatencyReport.as_dict()``
            without the models and the machine.
        models: the dense model first, then the pruned ones in the order to show them.
        postprocessed: what thresholds and label overrides made of their answers, where the run was asked for that.
        versions: package name to version.
        schema_version: of this layout.
    """

    name: str
    created: str
    seed: int
    task: Task
    data: Data = Field(default_factory=Data)
    machine: JsonDict = Field(default_factory=dict)
    timing: JsonDict = Field(default_factory=dict)
    models: list[ModelResult]
    postprocessed: list[Postprocessed] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @field_validator("created")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value

    @field_validator("schema_version")
    @classmethod
    def _is_this_version(cls, value: int) -> int:
        if value != SCHEMA_VERSION:
            raise ValueError(f"schema {value} is not {SCHEMA_VERSION}")
        return value

    @model_validator(mode="after")
    def _one_dense_unique_names(self) -> RunResults:
        names = [m.name for m in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"model names are not unique: {names}")
        dense = [m.name for m in self.models if m.is_dense]
        if len(dense) != 1:
            raise ValueError(f"exactly one model must be the dense one (method None), got {dense}")
        return self

    @property
    def dense(self) -> ModelResult:
        """The model before pruning."""
        return next(m for m in self.models if m.is_dense)

    @property
    def pruned(self) -> list[ModelResult]:
        """The pruned models, in the order to show them."""
        return [m for m in self.models if not m.is_dense]

    def model(self, name: str) -> ModelResult:
        """The model of that name.

        Raises:
            InputError: there is none.
        """
        for m in self.models:
            if m.name == name:
                return m
        raise InputError(NO_SUCH_MODEL.format(name=name, names=[m.name for m in self.models]))

    def to_json(self) -> str:
        """The results as indented JSON text; undefined numbers are ``null``."""
        return self.model_dump_json(indent=2) + "\n"

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str, *, origin: str = "the text") -> RunResults:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON text.
            origin: where it came from, for messages.

        Raises:
            InputError: not JSON, or fields that are missing, unknown or of the wrong type.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise InputError(NOT_RESULTS.format(path=origin, version=SCHEMA_VERSION, reason=reason)) from None

    @classmethod
    def read_json(cls, path: str | os.PathLike[str]) -> RunResults:
        """Read a file that :meth:`write_json` wrote.

        Raises:
            InputError: see :meth:`from_json`; or there is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"there is no results file at {path}; run `fair-prune run` first") from None
        return cls.from_json(text, origin=str(path))
