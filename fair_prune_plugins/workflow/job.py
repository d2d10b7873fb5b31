"""Carry out a configuration in its run folder, and read back what a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from fair_prune_plugins.errors import InputError
from fair_prune_plugins.workflow import model_store, report, sources
from fair_prune_plugins.workflow.config import RunConfig, check_opset, remarks
from fair_prune_plugins.workflow.progress import ConsoleWatcher
from fair_prune_plugins.workflow.results import RunResults
from fair_prune_plugins.workflow.run_folder import MARKER, RunFolder, read_json
from fair_prune_plugins.workflow.stages import Run, export_stored, stage_count, variants

NOT_A_RUN = "{path} is not a run folder (it has no {marker}); give the folder that `fair-prune run` wrote"
DAMAGED_RUN = (
    "{path} cannot be read as the configuration of a run ({reason}): it is damaged, or was written by another version "
    "of this package; call `fair-prune run` with the configuration again"
)
NO_SUCH_MODEL = "the run in {path} has no finished model {name!r}; it has {names}"

REPORT_FOLDER = "report"


def run(config: RunConfig, *, base: Path, output: Path, console: Console) -> RunResults:
    """Do what is not yet finished of a run.

    Args:
        config: validated.
        base: folder that relative paths and ``module:function`` are looked up in.
        output: the run folder.
        console: where progress is printed.
    """
    watcher = ConsoleWatcher(console, stage_count(config))
    description = {"config": config.model_dump(mode="json"), "base": str(base.resolve())}
    with RunFolder.open(output, watcher, description) as folder:
        for remark in remarks(config):
            console.print(f"[yellow]Note:[/] {escape(remark)}.", highlight=False)
        console.print("[dim]reading the data ...[/]")
        return Run(config, base, folder).execute()


def export_model(folder: Path, name: str, path: Path, *, opset: int | None) -> dict[str, Any]:
    """Export one finished model of a run again, proven on the run's test people.

    Args:
        folder: the run folder.
        name: of the model, as the report calls it.
        path: ONNX file to write.
        opset: instead of the run's.

    Returns:
        see :func:`fair_prune_plugins.workflow.stages.export_stored`.

    Raises:
        InputError: it is not a run folder, is damaged, or has no such model.
        ConfigError: an opset that the installed onnx does not know.
    """
    config, base = read_run(folder)
    if opset is not None:
        check_opset(opset)
        config = config.model_copy(update={"export": config.export.model_copy(update={"opset": opset})})
    stored = {"dense": folder / "models/dense/trained"}
    stored |= {v.name: folder / v.folder / "finetuned" for v in variants(config)}
    finished = {n: place for n, place in stored.items() if (place / model_store.RECIPE).is_file()}
    if name not in finished:
        raise InputError(NO_SUCH_MODEL.format(path=folder, name=name, names=list(finished)))
    samples = sources.load(config.data, base=base, seed=config.seed)
    return export_stored(finished[name], path, config=config, base=base, samples=samples, name=name)


def rewrite_report(folder: Path) -> report.ReportFiles:
    """Write the report of a finished run again, from its ``results.json``.

    Raises:
        InputError: the run has no results yet.
    """
    read_run(folder)
    place = folder / REPORT_FOLDER
    return report.write(RunResults.read_json(place / report.JSON_NAME), place)


def read_run(folder: Path) -> tuple[RunConfig, Path]:
    """What a run folder was asked: its configuration, and the folder that its paths are relative to.

    Raises:
        InputError: it is not a run folder, or its configuration cannot be read.
    """
    place = folder / MARKER
    try:
        asked = read_json(place)
    except OSError:
        raise InputError(NOT_A_RUN.format(path=folder, marker=MARKER)) from None
    except ValueError as error:
        raise InputError(DAMAGED_RUN.format(path=place, reason=f"not JSON: {error}")) from None
    try:
        return RunConfig.model_validate(asked["config"]), Path(asked["base"])
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except KeyError as error:
        reason = f"it has no {error}"
    except TypeError as error:
        reason = str(error)
    raise InputError(DAMAGED_RUN.format(path=place, reason=reason))
