"""One run of a sweep: `fair-prune run` with the dense network shared, and validation accuracies on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fair_prune_plugins.evaluation import TorchPredictor, predict, predicted_classes
from fair_prune_plugins.workflow import model_store
from fair_prune_plugins.workflow.config import RunConfig
from fair_prune_plugins.workflow.data import Batches, Part
from fair_prune_plugins.workflow.progress import ConsoleWatcher
from fair_prune_plugins.workflow.run_folder import Finished, RunFolder, read_json
from fair_prune_plugins.workflow.stages import DENSE, PREDICTION_BATCH, Run, stage_count
from fair_prune_plugins.workflow.sweep.dense import SharedDense
from fair_prune_plugins.workflow.sweep.outcome import Accuracies


def run_point(
    config: RunConfig, base: Path, output: Path, *, shared: Path | None, report: Callable[[float], None]
) -> tuple[dict[str, Accuracies], str]:
    """Do what is not yet finished of one run of a sweep.

    Args:
        config: of one criterion, one amount and one loss.
        base: folder that relative paths and ``module:function`` are looked up in.
        output: the run folder.
        shared: the sweep folder, through which the dense network is shared; ``None`` where trials do not see it.
        report: told the worst group's validation accuracy of each network as soon as it is there.

    Returns:
        validation accuracies of the networks ``dense``, ``pruned`` and ``finetuned``; and the worst group.
    """
    output.mkdir(parents=True, exist_ok=True)
    dense = None if shared is None else SharedDense(shared, config, output)
    watcher = _Watcher(ConsoleWatcher(Console(), stage_count(config)), dense, report)
    description = {"config": config.model_dump(mode="json"), "base": str(base.resolve())}
    with RunFolder.open(output, watcher, description) as folder:
        run = Run(config, base, folder)
        watcher.score = _Score(run)
        try:
            if dense is not None:
                dense.take()
            run.execute()
        finally:
            if dense is not None:
                dense.release()
    return watcher.accuracies, watcher.score.worst_group


class _Score:
    """Accuracies on validation people, the worst group as the run picked it on them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        rows = run.samples.rows(Part.VALIDATION)
        self._people = Batches(run.samples, rows, run.normalise, PREDICTION_BATCH, run.device)
        self._labels = run.samples.labels[rows]
        self._groups = run.samples.groups.take(rows)
        self.worst_group = ""

    def __call__(self, stored: Path) -> Accuracies:
        model, _ = model_store.load(stored, beside=self._run.base)
        logits = predict(TorchPredictor(model.to(self._run.device)), self._people.arrays(), progress=False)
        right = predicted_classes(logits) == self._labels
        mine = self._groups.codes == self._groups.names.index(self.worst_group)
        return Accuracies(worst_group=float(right[mine].mean()), everyone=float(right.mean()))


class _Watcher:
    """Prints, shares the dense network, and reports each network when it is there."""

    def __init__(self, printer: ConsoleWatcher, dense: SharedDense | None, report: Callable[[float], None]) -> None:
        self._printer = printer
        self._dense = dense
        self._report = report
        self._trained = Path()
        self.score: _Score
        self.accuracies: dict[str, Accuracies] = {}

    def started(self, stage: str) -> None:
        self._printer.started(stage)

    def finished(self, stage: str, outcome: Finished) -> None:
        self._printer.finished(stage, outcome)
        if self._dense is not None:
            self._dense.give(stage, outcome)
        name = stage.rsplit("/", 1)[-1]
        if stage == f"models/{DENSE}/trained":
            self._trained = outcome.folder
        elif stage == f"models/{DENSE}/worst_group":
            self.score.worst_group = read_json(outcome.folder / "worst_group.json")["worst_group"]
            self._tell(DENSE, self._trained)
        elif name in ("pruned", "finetuned"):
            self._tell(name, outcome.folder)

    def _tell(self, name: str, stored: Path) -> None:
        self.accuracies[name] = self.score(stored)
        self._report(self.accuracies[name].worst_group)
