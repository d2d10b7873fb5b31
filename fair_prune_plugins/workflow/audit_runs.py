"""Run folders of ``fair-prune run`` as the inputs of an audit; several folders are several runs (seeds) of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fair_prune_plugins.audit.data import AuditData, ModelPredictions
from fair_prune_plugins.audit.reading import Inputs, ModelFiles
from fair_prune_plugins.errors import InputError
from fair_prune_plugins.postprocessing.scores import FloatArray
from fair_prune_plugins.workflow.audit_inputs import file_logits
from fair_prune_plugins.workflow.audit_people import AuditedSet, Rows
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Normalisation, Part
from fair_prune_plugins.workflow.job import read_run
from fair_prune_plugins.workflow.run_folder import read_json
from fair_prune_plugins.workflow.stages import DENSE, variants

UNFINISHED = "{folder} has no finished model {name!r}; it has {have}. Call `fair-prune run` again to finish the run"
NO_SUCH_MODEL = "no pruned model of the runs is called {name!r}; there are {have}"
NOT_IN_ALL = (
    "the pruned model {name!r} is in {there} but not in {missing}; audit runs of the same configuration together, or "
    "choose models (--model)"
)
NOTHING_PRUNED = "{folder} has no finished pruned model; call `fair-prune run` again to finish the run"
CHANGED_DATA = (
    "{folder}: the data is no longer what the run was made from ({what} differ); bring the data back, or run again"
)
OTHER_DATA = "{folder} and {first} are not of the same data: {what} differ. Runs of one model must share it"
OTHER_TEST_PEOPLE = (
    "{folder} has other test people than {first}: without parts of its own, each seed draws them anew. Say in the "
    "data who they are (data.parts, or a fixed seed in data.options), or audit those who are test people in all runs "
    "(--only-common)"
)
OTHER_GROUPS = "{count} people belong to another group in {folder} than in {first}, whose groups are taken."
FEW = "{kept} of {n} test people are test people in all runs; only they are audited."
NO_VALIDATION = "No validation person is one in all runs, so nothing is chosen on them."
BAD_LOGITS = "{path} is damaged: {reason}; remove its folder and call `fair-prune run` again"

LOGITS = "logits.npy"


@dataclass(frozen=True)
class _Run:
    """A run folder, opened."""

    folder: Path
    config: RunConfig
    audited: AuditedSet

    @property
    def models(self) -> dict[str, Path]:
        """Finished models by the names that reports call them."""
        places = {DENSE: self.folder / "models" / DENSE}
        places |= {v.name: self.folder / v.folder for v in variants(self.config)}
        return {name: place for name, place in places.items() if (place / "onnx/model.onnx").is_file()}

    def logits(self, name: str, part: Part, notes: dict[str, None]) -> FloatArray:
        """What a model says of a part: as the run kept it, else from the exported file."""
        place = self.models.get(name)
        if place is None:
            raise InputError(UNFINISHED.format(folder=self.folder, name=name, have=list(self.models)))
        rows, kept = self.audited.rows(part), place / f"{part}_logits" / LOGITS
        if not kept.is_file():
            return file_logits(place / "onnx/model.onnx", self.audited, rows, notes)
        try:
            values = np.load(kept, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(BAD_LOGITS.format(path=kept, reason=error)) from error
        if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) != len(rows):
            shape = getattr(values, "shape", None)
            raise InputError(BAD_LOGITS.format(path=kept, reason=f"shape {shape} for {len(rows)} people"))
        return values.astype(np.float64)


def read_runs(
    dense: Sequence[Path], pruned: Sequence[Path] = (), *, models: Sequence[str] = (), only_common: bool = False
) -> Inputs:
    """The dense and the pruned models of run folders, on the runs' test people.

    Args:
        dense: folders whose dense network is meant; several are its runs (seeds).
        pruned: folders whose pruned networks are meant; a model of one name in several folders is one model of several
            runs.
        models: names of the pruned models, as the run's report calls them; all by default.
        only_common: where seeds draw different test people, audit those who are test people in all runs.

    Raises:
        InputError: a folder that is no finished run, data that has changed since or differs between the runs, or no
            such model.
    """
    opened = _open([*dense, *pruned])
    of_dense, of_pruned = [opened[p] for p in dense], [opened[p] for p in pruned]
    names = _names(of_pruned, models)
    first, every = of_dense[0], list({r.folder: r for r in (*of_dense, *of_pruned)}.values())
    notes = dict.fromkeys(note for run in every for note in run.audited.notes())
    for other in every[1:]:
        _check_same_data(first, other, notes, only_common=only_common)

    def audited(part: Part) -> AuditData | None:
        common = np.flatnonzero(np.logical_and.reduce([run.audited.samples.parts == part for run in every]))
        if not common.size:
            return None
        listed = [(DENSE, of_dense), *((name, of_pruned) for name in names)]
        found = [_model(name, runs, part, common, notes) for name, runs in listed]
        return AuditData(first.audited.people(common), found[0], tuple(found[1:]), first.audited.training())

    test, validation = audited(Part.TEST), audited(Part.VALIDATION)
    if test is None:
        raise InputError(OTHER_TEST_PEOPLE.format(folder=every[-1].folder, first=first.folder))
    n = len(first.audited.rows(Part.TEST))
    if len(test.people) < n:
        notes[FEW.format(kept=len(test.people), n=n)] = None
    if validation is None:
        notes[NO_VALIDATION] = None
    return Inputs(test, validation, tuple(notes))


def _open(folders: Sequence[Path]) -> dict[Path, _Run]:
    """Each folder once, and each data set once: reading one may take long."""
    sets: dict[str, AuditedSet] = {}
    opened: dict[Path, _Run] = {}
    for folder in dict.fromkeys(folders):
        config, base = read_run(folder)
        key = json.dumps([config.data.model_dump(mode="json"), config.seed, str(base)], sort_keys=True)
        if key not in sets:
            sets[key] = AuditedSet.load(config, base)
        opened[folder] = _Run(folder, config, sets[key])
        _check_unchanged(opened[folder])
    return opened


def _check_unchanged(run: _Run) -> None:
    """Compare the data with what the run noted of it."""
    try:
        noted = read_json(run.folder / "data/data.json")
        sizes, classes, *moments = (noted[key] for key in ("sizes", "classes", "mean", "std"))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(UNFINISHED.format(folder=run.folder, name=DENSE, have=[])) from None
    samples = run.audited.samples
    now = Normalisation.of_training(samples)
    for what, same in (
        ("the numbers of people", sizes == samples.sizes),
        ("the classes", classes == list(samples.classes)),
        # Of the training inputs, as JSON keeps them: to the last digit, but for another numpy's order of summing.
        ("the inputs", np.shape(moments) == np.shape([now.mean, now.std])),
        ("the inputs", np.allclose(moments, [now.mean, now.std], rtol=1e-6)),
    ):
        if not same:
            raise InputError(CHANGED_DATA.format(folder=run.folder, what=what))


def _names(runs: Sequence[_Run], asked: Sequence[str]) -> list[str]:
    """The pruned models to audit; each must be in all folders."""
    have = list(dict.fromkeys(name for run in runs for name in run.models if name != DENSE))
    for run in runs:
        if not set(run.models) - {DENSE}:
            raise InputError(NOTHING_PRUNED.format(folder=run.folder))
    for name in asked:
        if name not in have:
            raise InputError(NO_SUCH_MODEL.format(name=name, have=have))
    chosen = list(dict.fromkeys(asked)) or have
    for name in chosen:
        missing = [str(run.folder) for run in runs if name not in run.models]
        if missing:
            there = [str(run.folder) for run in runs if name in run.models]
            raise InputError(NOT_IN_ALL.format(name=name, there=", ".join(there), missing=", ".join(missing)))
    return chosen


def _check_same_data(first: _Run, other: _Run, notes: dict[str, None], *, only_common: bool) -> None:
    """The same people and labels in the same order; and, unless parts are intersected, the same test people.

    Who belongs to which group may differ where limits between groups are measured on the training people.
    """
    one, two = first.audited.samples, other.audited.samples
    if one is two:
        return
    for what, same in (
        ("the classes", one.classes == two.classes),
        ("the labels", np.array_equal(one.labels, two.labels)),
        ("the group names", (one.groups.names, one.groups.attribute) == (two.groups.names, two.groups.attribute)),
        ("the inputs", np.array_equal(one.inputs, two.inputs)),
    ):
        if not same:
            raise InputError(OTHER_DATA.format(folder=other.folder, first=first.folder, what=what))
    moved = int((one.groups.codes != two.groups.codes).sum())
    if moved:
        notes[OTHER_GROUPS.format(folder=other.folder, first=first.folder, count=moved)] = None
    if not only_common and not np.array_equal(one.parts == Part.TEST, two.parts == Part.TEST):
        raise InputError(OTHER_TEST_PEOPLE.format(folder=other.folder, first=first.folder))


def _model(name: str, runs: Sequence[_Run], part: Part, rows: Rows, notes: dict[str, None]) -> ModelPredictions:
    """A model's predictions in the order of ``rows``, each run's matched by row number."""
    logits = [
        run.logits(name, part, notes)[np.searchsorted(run.audited.rows(part), rows)]  # both ascend, and hold all rows
        for run in runs
    ]
    return ModelPredictions(name, tuple(logits), ModelFiles(name, tuple(r.folder for r in runs)).run_names)
