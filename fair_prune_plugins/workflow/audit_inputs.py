"""ONNX files on a configuration's data set, as the inputs of an audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from fair_prune_plugins import yaml_text
from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.reading import Inputs, ModelFiles, predictions_of
from fair_prune_plugins.audit.reading.models import check_weights
from fair_prune_plugins.errors import ConfigError, InputError
from fair_prune_plugins.onnx import read_metadata
from fair_prune_plugins.postprocessing.scores import FloatArray
from fair_prune_plugins.workflow import config as configuration
from fair_prune_plugins.workflow.audit_people import AuditedSet, Rows
from fair_prune_plugins.workflow.data import Batches, Normalisation, Part
from fair_prune_plugins.workflow.job import read_run
from fair_prune_plugins.workflow.progress import show_bars

NO_DATA = "{path}: the key 'data' is missing; it says where the people are, as in a configuration of `fair-prune run`"
OTHER_CLASSES = "{path} tells the classes {got} apart, the data has {expected}; both must have the same, in one order"
OTHER_WIDTH = "{path} gives {got} outputs and the data has {expected} classes ({classes}); they must fit"
MEASURED = (
    "{path} does not say how its inputs were normalised; they are normalised by the mean and deviation of the "
    "training people. If it wants them otherwise, its answers are worthless here."
)
EVERYBODY = "Everybody in the data is audited, training people included: models are better on those they have seen."

PREDICTION_BATCH = 256
"""People per call; no result depends on it."""

_NOT_LOOKED_AT = {"model": {"factory": "digits_resnet"}, "prune": {"methods": ["magnitude"], "ratios": [0.5]}}
"""What a configuration must have besides data, so that its data is checked like any other's."""


def read_data(path: Path) -> AuditedSet:
    """The people of a configuration file, of which only ``data`` and ``seed`` are looked at, or of a run folder.

    Raises:
        ConfigError: no such file, no key ``data``, or one that is not allowed.
        InputError: the data set cannot be read, or it is no run folder.
    """
    if path.is_dir():
        return AuditedSet.load(*read_run(path))
    try:
        values = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(configuration.NO_FILE.format(path=path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(configuration.NOT_YAML.format(origin=path, reason=" ".join(str(error).split()))) from None
    if not isinstance(values, dict) or "data" not in values:
        raise ConfigError(NO_DATA.format(path=path))
    wanted = {key: values[key] for key in ("data", "seed") if key in values}
    text = yaml_text.dump({**wanted, **_NOT_LOOKED_AT})
    return AuditedSet.load(configuration.parse(text, origin=str(path)), path.resolve().parent)


def read_onnx(data: Path, dense: ModelFiles, pruned: Sequence[ModelFiles] = (), *, everybody: bool = False) -> Inputs:
    """ONNX files asked about the people of a configuration.

    Inputs are normalised as each file's metadata says, which the exports of this package have; else as the training
    people are.

    Args:
        data: a configuration with ``data``, or a run folder.
        dense: files of the dense model.
        pruned: files of each compressed model.
        everybody: audit everybody in the data, whatever the part; without, test people are audited, countermeasures
            are chosen on validation people, and training people say what was frequent.

    Raises:
        ConfigError: as :func:`read_data`.
        InputError: data or a file that cannot be read (external weights that are missing included), or files that do
            not fit the data.
    """
    for path in [p for model in (dense, *pruned) for p in model.paths]:
        check_weights(path)  # before the data set is read, which may take long
    audited = read_data(data)
    notes = dict.fromkeys(audited.notes())
    if everybody:
        notes[EVERYBODY] = None

    def predicted(rows: Rows) -> AuditData:
        models = [_predictions(model, audited, rows, notes) for model in (dense, *pruned)]
        training = None if everybody else audited.training()
        return AuditData(audited.people(rows), models[0], tuple(models[1:]), training)

    found = predicted(audited.rows(None if everybody else Part.TEST))
    validation = None if everybody else predicted(audited.rows(Part.VALIDATION))
    return Inputs(found, validation, tuple(notes))


def _predictions(model: ModelFiles, audited: AuditedSet, rows: Rows, notes: dict[str, None]) -> ModelPredictions:
    return ModelPredictions(
        model.name, tuple(file_logits(path, audited, rows, notes) for path in model.paths), model.run_names
    )


def file_logits(path: Path, audited: AuditedSet, rows: Rows, notes: dict[str, None]) -> FloatArray:
    """What an ONNX file says of some people.

    Args:
        path: the file.
        audited: the data set.
        rows: whom of it.
        notes: what a reader must know is added here.

    Returns:
        float64 ``[n, outputs]``.

    Raises:
        InputError: the file cannot be read, or is of other classes or inputs than the data.
    """
    check_weights(path)
    said, classes = read_metadata(path), audited.samples.classes
    named = _classes_said(said.get("classes"))
    if named is not None and named != classes:
        raise InputError(OTHER_CLASSES.format(path=path, got=list(named), expected=list(classes)))
    normalise = _normalisation_said(said)
    if normalise is None:
        normalise = Normalisation.of_training(audited.samples)
        notes[MEASURED.format(path=path)] = None
    batches = Batches(audited.samples, rows, normalise, PREDICTION_BATCH)
    (logits,) = predictions_of(path.stem, path, batches.arrays(), progress=show_bars()).runs
    if logits.shape[1] != len(classes) and not (logits.shape[1] == 1 and len(classes) == 2):
        raise InputError(
            OTHER_WIDTH.format(path=path, got=logits.shape[1], expected=len(classes), classes=", ".join(classes))
        )
    return logits


def _classes_said(text: str | None) -> tuple[str, ...] | None:
    """Classes in the metadata as this package writes them; someone else's entry of that name may be anything."""
    try:
        named = json.loads(text or "")
    except ValueError:
        return None
    return tuple(named) if isinstance(named, list) and all(isinstance(n, str) for n in named) else None


def _normalisation_said(said: dict[str, str]) -> Normalisation | None:
    try:
        mean, std = (tuple(float(x) for x in said[key].split()) for key in ("normalisation_mean", "normalisation_std"))
    except (KeyError, ValueError):
        return None
    usable = mean and len(mean) == len(std) and np.isfinite([*mean, *std]).all() and all(s > 0 for s in std)
    return Normalisation(mean, std) if usable else None
